//! How much of the disk branches and snapshots hold, in bytes as the backing filesystem counts them.
//!
//! A layer's bytes are those of its backing files, or of its pack. A sealed layer changes only when it is merged, so its figure is kept. What a snapshot in the
//! middle of a history holds alone is what the layer above hides of its own, told by the checksums' records; until both have these,
//! and where a head stands on it, whose blocks change with every write, that is not counted. Of a pack it is an estimate: a part of its bytes,
//! as large as that of its blocks.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use crate::catalog::Catalog;
use crate::error::{Error, Result};
use crate::names::{BranchName, SnapshotName};
use crate::store::Store;
use crate::types::LayerId;

/// What a snapshot holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SnapshotBytes {
    /// What destroying it would give back: the layers that nothing else needs, and what merging frees then.
    pub alone: u64,
    /// All layers that it stands on, shared or not.
    pub whole: u64,
}

impl Store {
    /// What the branch's own head and the layers sealed for its snapshots hold, without what it shares with where it
    /// started.
    pub fn branch_bytes(&self, name: &BranchName) -> Result<u64> {
        let (head, own) = {
            let catalog = self.catalog();
            let (id, record) = catalog.timeline(name)?;
            let own: Vec<LayerId> = catalog.layers_of(id).collect();
            (record.head, own)
        };
        own.into_iter().map(|id| self.layer_bytes(id, id != head)).sum()
    }

    pub fn snapshot_bytes(&self, name: &SnapshotName) -> Result<SnapshotBytes> {
        let (alone, merged, whole) = {
            let catalog = self.catalog();
            let layer = catalog.snapshot(name)?.layer;
            let freed = freed_with(&catalog, name)?;
            let merged = merged_with(&catalog, layer, freed.last().copied())?;
            (freed, merged, chain(&catalog, layer)?)
        };
        let sum =
            |layers: Vec<LayerId>| -> Result<u64> { layers.into_iter().map(|id| self.layer_bytes(id, true)).sum() };
        Ok(SnapshotBytes {
            alone: sum(alone)? + merged.map_or(Ok(0), |(older, newer)| self.freed_by_merging(older, newer))?,
            whole: sum(whole)?,
        })
    }

    /// Of a pack, as large a part as of its blocks is hidden.
    fn freed_by_merging(&self, older: LayerId, newer: LayerId) -> Result<u64> {
        let (hidden, all) = self.hidden(older, newer)?;
        let is_packed = self.catalog().layer(older).is_ok_and(|record| record.pack.is_some());
        match is_packed && all > 0 {
            true => Ok((u128::from(self.layer_bytes(older, true)?) * u128::from(hidden) / u128::from(all)) as u64),
            false => Ok(hidden),
        }
    }

    /// The bytes of the blocks of a layer that the one above hides, and of all its blocks.
    pub(crate) fn hidden(&self, older: LayerId, newer: LayerId) -> Result<(u64, u64)> {
        let seen = self.figures();
        if let Some(bytes) = self.hidden_bytes_known().get(&(older, newer)) {
            return Ok(*bytes);
        }
        let bytes = self.hidden_bytes(older, newer)?;
        let mut known = self.hidden_bytes_known();
        if self.figures() == seen {
            known.insert((older, newer), bytes);
        }
        Ok(bytes)
    }

    /// What all layers hold.
    pub fn bytes(&self) -> Result<u64> {
        let (all, heads): (Vec<LayerId>, BTreeSet<LayerId>) = {
            let catalog = self.catalog();
            let heads = catalog.timelines().map(|(_, record)| record.head).collect();
            (catalog.layers().map(|(id, _)| id).collect(), heads)
        };
        all.into_iter()
            .map(|id| self.layer_bytes(id, !heads.contains(&id)))
            .sum()
    }

    /// To be called when what layers hold is another figure now.
    pub(crate) fn forget_bytes(&self, layers: &[LayerId]) {
        // First, so that whoever has measured before keeps nothing of it afterwards.
        self.figures.fetch_add(1, Ordering::AcqRel);
        self.sealed_bytes().retain(|id, _| !layers.contains(id));
        self.hidden_bytes_known()
            .retain(|(older, newer), _| !layers.contains(older) && !layers.contains(newer));
    }

    /// Counts how often figures were forgotten.
    fn figures(&self) -> u64 {
        self.figures.load(Ordering::Acquire)
    }

    /// A layer that is gone meanwhile holds nothing. What was just sealed may lose files that were gone by then, and what is being merged
    /// changes until that has ended; so neither is kept.
    pub(crate) fn layer_bytes(&self, id: LayerId, is_sealed: bool) -> Result<u64> {
        let seen = self.figures();
        let (record, is_final) = {
            let catalog = self.catalog();
            let record = catalog.layer(id).ok().cloned();
            let has_sums = record.as_ref().is_some_and(|record| record.has_sums);
            (record, is_sealed && has_sums && !catalog.is_changing(id))
        };
        if let Some(bytes) = self.sealed_bytes().get(&id).filter(|_| is_final) {
            return Ok(*bytes);
        }
        let pack = record.as_ref().and_then(|record| record.pack);
        let body = record.and_then(|record| record.body).unwrap_or(id);
        let bytes = match pack {
            Some(pack) => self.shared.sealed.packs.bytes(pack)?,
            None => {
                let path = self.shared.layers.path(body);
                let bytes = self.shared.disk.bytes_in(&path);
                bytes.map_err(Error::io(format!("look at {}", path.display())))?
            }
        };
        let mut known = self.sealed_bytes();
        if is_final && self.figures() == seen {
            known.insert(id, bytes);
        }
        Ok(bytes)
    }
}

/// A layer and all below it.
fn chain(catalog: &Catalog, top: LayerId) -> Result<Vec<LayerId>> {
    let mut layers = vec![top];
    let mut next = catalog.layer(top)?.parent;
    while let Some(id) = next {
        layers.push(id);
        next = catalog.layer(id)?.parent;
    }
    Ok(layers)
}

/// The layers that would be deleted together with a snapshot's name, the youngest first.
fn freed_with(catalog: &Catalog, name: &SnapshotName) -> Result<Vec<LayerId>> {
    let layer = catalog.snapshot(name)?.layer;
    let mut freed = Vec::new();
    let mut next = Some(layer);
    while let Some(id) = next {
        let names = catalog.snapshots().filter(|(.., record)| record.layer == id).count();
        let heads = catalog.timelines().filter(|(_, record)| record.head == id).count();
        let children = catalog.layers().filter(|(_, record)| record.parent == Some(id)).count();
        // Its own name, or the child that goes before it.
        if names + heads + children > 1 {
            break;
        }
        freed.push(id);
        next = catalog.layer(id)?.parent;
    }
    Ok(freed)
}

/// The two layers that would be merged when a snapshot of `layer` went, and the layers down to `freed` with it.
fn merged_with(catalog: &Catalog, layer: LayerId, freed: Option<LayerId>) -> Result<Option<(LayerId, LayerId)>> {
    let older = match freed {
        Some(freed) => catalog.layer(freed)?.parent,
        None => Some(layer),
    };
    let Some(older) = older else {
        return Ok(None);
    };
    // Its own name goes, or the child that is freed.
    let names = catalog.snapshots().filter(|(.., record)| record.layer == older).count();
    let is_named = names > usize::from(freed.is_none());
    let is_head = |id: LayerId| catalog.timelines().any(|(_, record)| record.head == id);
    let children = catalog
        .layers()
        .filter(|(id, record)| record.parent == Some(older) && Some(*id) != freed);
    let children: Vec<LayerId> = children.map(|(id, _)| id).collect();
    let [newer] = children.as_slice() else {
        return Ok(None);
    };
    let is_ready = |id: LayerId| catalog.layer(id).is_ok_and(|record| record.has_sums) && !is_head(id);
    Ok((!is_named && is_ready(older) && is_ready(*newer)).then_some((older, *newer)))
}
