//! Merging layers: space comes back when a name in the middle of a history goes.
//!
//! A sealed layer that nobody names (the *older* one) and on which only one other sealed layer stands (the *newer* one) has blocks that
//! nobody reads: those that the newer one has, too. Both become one:
//!
//! ```text
//!   before    base <── older <── newer <── …        newer keeps its number, its names and who stands on it;
//!   after     base <─────────── newer <── …         its body is that of whichever had more, or a new pack
//! ```
//!
//! A layer's *body*, its files or its pack and its records, has the number of the layer it was made for. One of both ends, and what
//! it had goes over to the other. Where both have backing files that goes file by file (`merge/files.rs`): a file that only one of them has gets
//! a second name; of one that both have, the smaller part is copied into the larger. Where one is packed both are written into
//! another pack (`merge/packs.rs`), which costs as much as they have, and so is done only where enough comes back.
//!
//! Nobody can tell while that goes on, or at whichever step it ends, since older is only ever seen through newer: a block that
//! goes over is either one that newer lacks, and then the same was read through it before; or one that newer has, and then
//! nobody reads older's. All that a reader finds another way afterwards (parts, floors, checksums, names, who stands on whom) changes in
//! one batch of the database. Before files are touched the older layer is marked as merging: they need not be what was kept of them. Work that
//! was interrupted is done once more from the start, and each step of it may be done twice. What is copied is verified first.
//!
//! Namespaces and files in memory may speak of a body that has ended; they are led to the other one: see [`crate::sealed`].

mod files;
mod packs;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{PoisonError, RwLockWriteGuard, TryLockError};

use rocksdb::WriteBatch;

use crate::catalog::{Body, Catalog, Entry, Flat, LayerRecord};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::load;
use crate::namespace::{Change, Namespace, codec};
use crate::parts::{self, Kept, Pace};
use crate::sealed::Form;
use crate::store::Store;
use crate::sums::{CHUNK, CHUNK_BLOCKS, Chunk};
use crate::types::{BLOCK, Ino, LayerId};

/// Two layers that can be one.
#[derive(Clone)]
struct Pair {
    older: LayerId,
    newer: LayerId,
    older_body: Body,
    newer_body: Body,
    /// The body that stays, and the one that ends.
    stays: LayerId,
    ends: LayerId,
}

/// What becomes of a file's records.
enum Records {
    /// Those of the body that stays.
    Stay(Kept),
    /// Those of the body that ends go over.
    Move(Kept),
    /// They are made of both: newer's blocks, and older's below a block.
    Mix(Kept, u64),
    /// The newer layer has no such file any more.
    Drop,
}

impl Store {
    /// How many layers that nobody names could be merged with the one above.
    pub fn unmerged(&self) -> usize {
        self.catalog().mergeable().count()
    }

    /// Merges a layer that nobody names with the only one that stands on it. False when there is none, or `pace` has ended it.
    pub(crate) fn merge_next(&self, level: i32, pace: Pace) -> Result<bool> {
        let (mut begun, mut full): (Vec<Pair>, Option<Error>) = (Vec::new(), None);
        for (older, newer) in self.mergeable() {
            // Of what is half done nothing else is begun.
            if begun.iter().any(|pair| pair.has(older) || pair.has(newer)) {
                continue;
            }
            let pair = match self.begin_pair(older, newer) {
                Err(_) if [older, newer].iter().any(|id| self.catalog().layer(*id).is_err()) => continue,
                Err(error) if !error.is_full() => return self.tended(older, "layers are not merged", Err(error)),
                pair => pair?,
            };
            let Some(pair) = pair else {
                continue;
            };
            match self.merge(&pair, level, pace) {
                // One of them was destroyed meanwhile.
                Err(_) if !self.is_pair(&pair) => return Ok(true),
                // Others may need less.
                Err(error) if error.is_full() => full = full.or(Some(error)),
                merged => return self.tended(older, "layers are not merged", merged),
            }
            begun.push(pair);
        }
        match full {
            None => Ok(false),
            Some(error) => match self.empty(&begun)? {
                true => Ok(true),
                false => Err(error),
            },
        }
    }

    /// Makes room where there is none for merging: takes from the files of older layers what nobody sees of them. Whether there was
    /// any that had not been emptied before.
    fn empty(&self, begun: &[Pair]) -> Result<bool> {
        let mut was_any = false;
        for pair in begun.iter().filter(|pair| pair.is_plain()) {
            if self.emptied().insert((pair.older, pair.newer)) {
                was_any |= self.merger(pair)?.empty()?;
                self.forget_bytes(&[pair.older, pair.newer]);
            }
        }
        Ok(was_any)
    }

    fn mergeable(&self) -> Vec<(LayerId, LayerId)> {
        let catalog = self.catalog();
        let (aside, naming) = (self.aside(), self.naming());
        let found = catalog.mergeable();
        found
            .filter(|(older, _)| !aside.has(*older) && !naming.contains(older))
            .collect()
    }

    /// Two layers as they are to be merged, unless that would not be worth it; if their files are to be touched, the older one is marked,
    /// durably.
    fn begin_pair(&self, older: LayerId, newer: LayerId) -> Result<Option<Pair>> {
        let (older_body, newer_body) = {
            let catalog = self.catalog();
            (catalog.body_and_form(older)?, catalog.body_and_form(newer)?)
        };
        let is_plain = [older_body, newer_body].iter().all(|body| body.form == Form::Plain);
        if is_plain {
            self.mark(older, older_body.id, newer_body.id)?;
        } else if !self.is_worth_packing(older, newer)? {
            return Ok(None);
        }
        let has_more = is_plain && self.layer_bytes(older, true)? > self.layer_bytes(newer, true)?;
        let (stays, ends) = if has_more {
            (older_body.id, newer_body.id)
        } else {
            (newer_body.id, older_body.id)
        };
        Ok(Some(Pair {
            older,
            newer,
            older_body,
            newer_body,
            stays,
            ends,
        }))
    }

    fn mark(&self, older: LayerId, older_body: LayerId, newer_body: LayerId) -> Result<()> {
        let mut catalog = self.catalog();
        if !catalog.layer(older)?.merging {
            let mut record = catalog.layer(older)?.clone();
            record.merging = true;
            let entries = vec![Entry::Layer(older, Some(record))];
            catalog.commit(&self.shared.db, WriteBatch::default(), entries)?;
        }
        drop(catalog);
        self.shared.sealed.begin_merge(older_body, newer_body);
        self.sync_db()?;
        self.at("merge: marked");
        Ok(())
    }

    fn is_pair(&self, pair: &Pair) -> bool {
        let catalog = self.catalog();
        catalog.layer(pair.older).is_ok()
            && catalog
                .layer(pair.newer)
                .is_ok_and(|record| record.parent == Some(pair.older))
    }

    fn merge(&self, pair: &Pair, level: i32, pace: Pace) -> Result<bool> {
        let merger = self.merger(pair)?;
        match pair.is_plain() {
            true => merger.merge_files(pace),
            false => merger.merge_packs(level, pace),
        }
    }

    fn merger<'a>(&'a self, pair: &'a Pair) -> Result<Merger<'a>> {
        let (base, newer) = {
            let mut catalog = self.catalog();
            let base = catalog.layer(pair.older)?.parent;
            let base = load::sealed(&self.shared, &mut catalog, base)?;
            (base, load::sealed(&self.shared, &mut catalog, Some(pair.newer))?)
        };
        Ok(Merger {
            store: self,
            pair,
            older: parts::kept(&self.shared.db, pair.older_body.id)?,
            newer: parts::kept(&self.shared.db, pair.newer_body.id)?,
            base,
            ns: newer,
        })
    }

    /// The bytes of a sealed layer's blocks that nobody sees through the only one that stands on it, and those of all its blocks.
    pub(crate) fn hidden_bytes(&self, older: LayerId, newer: LayerId) -> Result<(u64, u64)> {
        let (older, newer, ns) = {
            let mut catalog = self.catalog();
            let ns = load::sealed(&self.shared, &mut catalog, Some(newer))?;
            (catalog.body(older)?, catalog.body(newer)?, ns)
        };
        let [olders, newers] = [older, newer].map(|body| parts::kept(&self.shared.db, body));
        let (olders, newers) = (olders?, newers?);
        let (mut hidden, mut all) = (0, 0);
        for (ino, kept) in olders {
            let chunks = self.shared.sealed.chunks(older, ino)?;
            let has = blocks(&chunks).count();
            let seen = match newers.get(&ino) {
                _ if !parts::is_file(&ns, ino) => 0,
                None => has,
                Some(above) => {
                    let limit = floor_above(&kept, above).div_ceil(BLOCK);
                    inherited(&chunks, &self.shared.sealed.chunks(newer, ino)?, limit).count()
                }
            };
            hidden += (has - seen) as u64 * BLOCK;
            all += has as u64 * BLOCK;
        }
        Ok((hidden, all))
    }

    /// Keeps bodies as they are: nobody looks at them, merges or removes them.
    fn layers_alone(&self) -> Option<RwLockWriteGuard<'_, ()>> {
        match self.bodies.try_write() {
            Ok(alone) => Some(alone),
            Err(TryLockError::Poisoned(poisoned)) => Some(PoisonError::into_inner(poisoned)),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Waits until that can be had; `None` when `pace` has ended it.
    pub(crate) fn wait_for_layers(&self, pace: Pace) -> Option<RwLockWriteGuard<'_, ()>> {
        loop {
            if let Some(alone) = self.layers_alone() {
                return Some(alone);
            }
            if !pace(CHUNK) {
                return None;
            }
            std::thread::yield_now();
        }
    }
}

impl Catalog {
    /// Layers that nobody names, each with the only one that stands on it; those that were begun first.
    fn mergeable(&self) -> impl Iterator<Item = (LayerId, LayerId)> {
        let heads: BTreeSet<LayerId> = self.timelines().map(|(_, record)| record.head).collect();
        let named: BTreeSet<LayerId> = self.snapshots().map(|(.., record)| record.layer).collect();
        let mut children: BTreeMap<LayerId, Vec<LayerId>> = BTreeMap::new();
        for (id, record) in self.layers() {
            if let Some(parent) = record.parent {
                children.entry(parent).or_default().push(id);
            }
        }
        let is_ready = move |id: LayerId, record: &LayerRecord| {
            record.has_sums && record.flat != Flat::Begun && !heads.contains(&id)
        };
        let pair = |(id, record): (LayerId, &LayerRecord)| {
            let [child] = children.get(&id)?.as_slice() else {
                return None;
            };
            let newer = self.layer(*child).ok()?;
            // What is half merged into it has to become one with it first, and so has the newer one with what it is half merged into: it may share
            // files with that already.
            let is_changing = record
                .parent
                .is_some_and(|below| self.layer(below).is_ok_and(|below| below.merging));
            let is_ready = is_ready(id, record) && is_ready(*child, newer);
            let is_pair = is_ready && !is_changing && !newer.merging && !named.contains(&id);
            is_pair.then_some((record.merging, id, *child))
        };
        let mut pairs: Vec<_> = self.layers().filter_map(pair).collect();
        pairs.sort_by_key(|(merging, id, _)| (!merging, *id));
        pairs.into_iter().map(|(_, older, newer)| (older, newer))
    }

    /// The layers whose images tell of a layer's body: itself, and all that stand on it.
    fn images_above(&self, id: LayerId) -> Vec<LayerId> {
        let mut above = BTreeSet::from([id]);
        // A child's number is greater than its parent's.
        for (layer, record) in self.layers() {
            if record.parent.is_some_and(|parent| above.contains(&parent)) {
                above.insert(layer);
            }
        }
        above.retain(|layer| self.layer(*layer).is_ok_and(|record| record.has_image));
        above.into_iter().collect()
    }
}

impl Pair {
    fn has(&self, layer: LayerId) -> bool {
        layer == self.older || layer == self.newer
    }

    fn is_plain(&self) -> bool {
        [self.older_body, self.newer_body]
            .iter()
            .all(|body| body.form == Form::Plain)
    }
}

/// Two layers while they are merged.
struct Merger<'a> {
    store: &'a Store,
    pair: &'a Pair,
    older: BTreeMap<Ino, Kept>,
    newer: BTreeMap<Ino, Kept>,
    /// The namespace that the older layer stands on.
    base: Namespace,
    /// The newer layer's.
    ns: Namespace,
}

/// A file that both layers have.
struct Both {
    older: BTreeMap<u64, Chunk>,
    newer: BTreeMap<u64, Chunk>,
    /// What is kept of it once they are one.
    kept: Kept,
    /// Older's blocks from here on are seen by nobody.
    limit: u64,
}

impl Merger<'_> {
    fn disk(&self) -> &Disk {
        &self.store.shared.disk
    }

    fn chunks(&self, body: Body, ino: Ino) -> Result<BTreeMap<u64, Chunk>> {
        self.store.shared.sealed.chunks(body.id, ino)
    }

    /// What is to be kept of a file that only the older layer has: the newer one may have given it another time.
    fn as_in_newer(&self, ino: Ino, kept: Kept) -> Kept {
        let mtime = self.ns.inode(ino).map_or(kept.mtime, |inode| inode.mtime);
        Kept { mtime, ..kept }
    }

    /// All files of both.
    fn inos(&self) -> BTreeSet<Ino> {
        self.older.keys().chain(self.newer.keys()).copied().collect()
    }

    fn both(&self, ino: Ino, older: Kept, newer: Kept) -> Result<Both> {
        let base_size = self.base.inode(ino).map_or(0, |inode| inode.size);
        let older_floor = older.floor.unwrap_or(base_size).min(older.size);
        let newer_floor = floor_above(&older, &newer);
        Ok(Both {
            older: self.chunks(self.pair.older_body, ino)?,
            newer: self.chunks(self.pair.newer_body, ino)?,
            kept: Kept {
                floor: Some(older_floor.min(newer_floor)),
                ..newer
            },
            limit: newer_floor.div_ceil(BLOCK),
        })
    }

    /// Makes one layer of both for everybody, in one batch; false when they are none any more. The caller removes what nobody needs then.
    fn commit(&self, records: &BTreeMap<Ino, Records>, form: Form) -> Result<bool> {
        let (store, pair) = (self.store, self.pair);
        let mut batch = WriteBatch::default();
        for (ino, record) in records {
            self.put(&mut batch, *ino, record, form)?;
        }
        self.put_names(&mut batch)?;
        let mut catalog = store.catalog();
        let (older, mut newer) = (catalog.layer(pair.older)?.clone(), catalog.layer(pair.newer)?.clone());
        if newer.parent != Some(pair.older) || store.naming().contains(&pair.older) {
            return Ok(false);
        }
        let mut entries = Vec::new();
        for id in catalog.images_above(pair.newer) {
            codec::delete_image(&store.shared.db, &mut batch, catalog.body(id)?);
            let mut record = catalog.layer(id)?.clone();
            record.has_image = false;
            entries.push(Entry::Layer(id, Some(record)));
        }
        codec::delete_image(&store.shared.db, &mut batch, pair.stays);
        codec::delete_layer(&store.shared.db, &mut batch, pair.ends);
        newer.parent = older.parent;
        newer.body = Some(pair.stays);
        newer.flat = newer.flat.max(older.flat);
        newer.has_image = false;
        if let Form::Packed(pack) = form {
            codec::delete_sums(&store.shared.db, &mut batch, pair.stays);
            newer.pack = Some(pack);
            newer.pack_sum = store.shared.sealed.packs.sum(pack);
        }
        entries.push(Entry::Layer(pair.older, None));
        entries.push(Entry::Layer(pair.newer, Some(newer)));
        let commit = || catalog.commit(&store.shared.db, batch, entries);
        store.shared.sealed.merge(pair.ends, pair.stays, form, commit)?;
        tracing::info!(older = %pair.older, newer = %pair.newer, body = %pair.stays, "layers merged");
        Ok(true)
    }

    /// Removes bodies that nobody needs since the commit.
    fn remove(&self, bodies: &[Body]) -> Result<()> {
        self.store.at("merge: committed");
        // What the database may come back with must find its blocks.
        self.store.sync_db()?;
        for body in bodies {
            self.store.at("merge: about to remove");
            self.store.remove_body(*body)?;
        }
        Ok(())
    }

    /// To be called when what nobody needs any more is `removed`, or could not be: what both hold is another figure now, for views too.
    fn finish(&self, removed: Result<()>) {
        let (store, pair) = (self.store, self.pair);
        store.forget_bytes(&[pair.older, pair.newer]);
        store.renew(&[pair.stays, pair.ends]);
        if let Err(error) = removed {
            tracing::error!(layer = %pair.newer, %error, "what merged layers had stays until the store is opened anew");
            store.aside().put(pair.newer, error);
        }
    }

    /// Adds what the layer is to have of a file to a batch; a pack has its checksums.
    fn put(&self, batch: &mut WriteBatch, ino: Ino, record: &Records, form: Form) -> Result<()> {
        let (db, pair) = (&self.store.shared.db, self.pair);
        let is_plain = form == Form::Plain;
        match record {
            Records::Stay(kept) => {
                let is_known = [&self.older, &self.newer]
                    .map(|files| files.get(&ino))
                    .contains(&Some(kept));
                if !is_known {
                    codec::put_part(db, batch, pair.stays, ino, &kept.encode());
                }
            }
            Records::Drop => codec::delete_part(db, batch, pair.stays, ino),
            Records::Move(kept) => {
                codec::put_part(db, batch, pair.stays, ino, &kept.encode());
                if is_plain {
                    for (number, chunk) in self.store.shared.sealed.chunks(pair.ends, ino)? {
                        codec::put_sums(db, batch, pair.stays, ino, number, &chunk);
                    }
                }
            }
            Records::Mix(kept, limit) => {
                codec::delete_part(db, batch, pair.stays, ino);
                codec::put_part(db, batch, pair.stays, ino, &kept.encode());
                if is_plain {
                    let (older, newer) = (self.chunks(pair.older_body, ino)?, self.chunks(pair.newer_body, ino)?);
                    for (number, chunk) in mixed(&older, &newer, *limit) {
                        codec::put_sums(db, batch, pair.stays, ino, number, &chunk);
                    }
                }
            }
        }
        Ok(())
    }

    /// Adds what both layers have changed of names and inodes to a batch.
    fn put_names(&self, batch: &mut WriteBatch) -> Result<()> {
        let (db, pair) = (&self.store.shared.db, self.pair);
        let mut newer = codec::read_changes(db, pair.newer_body.id)?;
        if pair.stays == pair.newer_body.id {
            let mut older = codec::read_changes(db, pair.older_body.id)?;
            older.retain(|key, _| !newer.contains_key(key));
            // What has a tombstone only because of older needs none any more.
            newer.retain(|_, change| matches!(change, Change::DropInode(_) | Change::DropName(..)));
            newer.extend(older);
        }
        let changes: Vec<Change> = newer.into_values().collect();
        codec::put_changes(db, batch, pair.stays, &self.base, &changes);
        Ok(())
    }
}

/// The floor of a file in the newer of two layers.
pub fn floor_above(older: &Kept, newer: &Kept) -> u64 {
    newer.floor.unwrap_or(older.size).min(newer.size)
}

fn blocks(chunks: &BTreeMap<u64, Chunk>) -> impl Iterator<Item = (u64, u32)> {
    let numbered = |(number, chunk): (&u64, &Chunk)| {
        let first = number * CHUNK_BLOCKS;
        chunk
            .blocks()
            .map(|(block, sum)| (first + block, sum))
            .collect::<Vec<_>>()
    };
    chunks.iter().flat_map(numbered)
}

/// The blocks below `limit` that only the older layer has.
pub fn inherited<'a>(
    older: &'a BTreeMap<u64, Chunk>,
    newer: &'a BTreeMap<u64, Chunk>,
    limit: u64,
) -> impl Iterator<Item = u64> + 'a {
    let has = |block: u64| {
        let chunk = newer.get(&(block / CHUNK_BLOCKS));
        chunk.is_some_and(|chunk| chunk.sum(block % CHUNK_BLOCKS).is_some())
    };
    let seen = blocks(older)
        .map(|(block, _)| block)
        .filter(move |block| *block < limit);
    seen.filter(move |block| !has(*block))
}

/// The checksums of a file that was merged.
fn mixed(older: &BTreeMap<u64, Chunk>, newer: &BTreeMap<u64, Chunk>, limit: u64) -> BTreeMap<u64, Chunk> {
    let mut all: BTreeMap<u64, u32> = blocks(older).filter(|(block, _)| *block < limit).collect();
    all.extend(blocks(newer));
    let mut chunks: BTreeMap<u64, Chunk> = BTreeMap::new();
    for (block, sum) in all {
        let chunk = chunks.entry(block / CHUNK_BLOCKS).or_default();
        chunk.push(block % CHUNK_BLOCKS, sum);
    }
    chunks
}
