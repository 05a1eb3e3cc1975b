//! How much of the disk branches and snapshots hold, in bytes as the backing filesystem counts them.
//!
//! A layer's bytes are those of its backing files. A sealed layer is never written again, so its figure is kept.

use std::collections::BTreeSet;

use crate::catalog::Catalog;
use crate::error::{Error, Result};
use crate::names::{BranchName, SnapshotName};
use crate::store::Store;
use crate::types::LayerId;

/// What a snapshot holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SnapshotBytes {
    /// What destroying it would give back: the layers that nothing else needs.
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
        let (alone, whole) = {
            let catalog = self.catalog();
            let layer = catalog.snapshot(name)?.layer;
            (freed_with(&catalog, name)?, chain(&catalog, layer)?)
        };
        let sum =
            |layers: Vec<LayerId>| -> Result<u64> { layers.into_iter().map(|id| self.layer_bytes(id, true)).sum() };
        Ok(SnapshotBytes {
            alone: sum(alone)?,
            whole: sum(whole)?,
        })
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

    /// A layer that is gone meanwhile holds nothing.
    pub(crate) fn layer_bytes(&self, id: LayerId, is_sealed: bool) -> Result<u64> {
        if let Some(bytes) = self.sealed_bytes().get(&id).filter(|_| is_sealed) {
            return Ok(*bytes);
        }
        let body = self.catalog().body(id).unwrap_or(id);
        let path = self.shared.layers.path(body);
        let bytes = self.shared.disk.bytes_in(&path);
        let bytes = bytes.map_err(Error::io(format!("look at {}", path.display())))?;
        if is_sealed {
            self.sealed_bytes().insert(id, bytes);
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
