//! Merging layers: space comes back when a name in the middle of a history goes.
//!
//! A sealed layer that nobody names (the *older* one) and on which only one other sealed layer stands (the *newer* one) has blocks that
//! nobody reads: those that the newer one has, too. Both become one:
//!
//! ```text
//!   before    base <── older <── newer <── …        newer keeps its number, its names and who stands on it;
//!   after     base <─────────── newer <── …         its body is that of whichever had more
//! ```
//!
//! A layer's *body*, its directory and its records, has the number of the layer it was made for. That of the smaller layer ends, and what
//! it had goes over to the other's, file by file: a file that only one of them has gets a second name; of one that both have, the smaller part
//! is copied into the larger.
//!
//! Nobody can tell while that goes on, or at whichever step it ends, since older is only ever seen through newer: a block that
//! goes over is either one that newer lacks, and then the same was read through it before; or one that newer has, and then
//! nobody reads older's. All that a reader finds another way afterwards (parts, floors, checksums, names, who stands on whom) changes in
//! one batch of the database. Before it the older layer is marked as merging: its files need not be what was kept of them. Work that
//! was interrupted is done once more from the start, and each step of it may be done twice. What is copied is verified first.
//!
//! Namespaces and files in memory may speak of a body that has ended; they are led to the other one: see [`crate::sums::Sums::body`].

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::{PoisonError, RwLockWriteGuard};

use rocksdb::WriteBatch;

use crate::catalog::{Catalog, Entry, LayerRecord};
use crate::disk::{Disk, DiskFile};
use crate::error::{Error, Result};
use crate::layer::HALF_MADE;
use crate::load;
use crate::namespace::{Change, Namespace, codec};
use crate::parts::{self, Kept, Pace};
use crate::store::Store;
use crate::sums::{self, CHUNK, CHUNK_BLOCKS, Chunk};
use crate::types::{BLOCK, Ino, LayerId};

/// Two layers that can be one.
#[derive(Clone)]
struct Pair {
    older: LayerId,
    newer: LayerId,
    older_body: LayerId,
    newer_body: LayerId,
    /// The body that stays, and the one that ends.
    stays: LayerId,
    ends: LayerId,
}

/// What becomes of a file's records.
enum Records {
    /// Those of the body that stays.
    Stay,
    /// Those of the body that ends go over.
    Move(Kept),
    /// They are made of both: newer's blocks, and older's below a block.
    Mix(Kept, u64),
    /// The newer layer has no such file any more.
    Drop,
}

impl Store {
    /// Merges a layer that nobody names with the only one that stands on it. False when there is none, or `pace` has ended it.
    pub(crate) fn merge_next(&self, pace: Pace) -> Result<bool> {
        let Some(pair) = self.choose_pair()? else {
            return Ok(false);
        };
        match self.merge(&pair, pace) {
            // One of them was destroyed meanwhile.
            Err(_) if !self.is_pair(&pair) => Ok(true),
            Err(error @ Error::Damaged { .. }) => {
                tracing::error!(older = %pair.older, newer = %pair.newer, %error, "layers are not merged");
                self.unmergeable().insert(pair.older);
                Ok(true)
            }
            merged => merged,
        }
    }

    /// The next two to merge; the older one is marked, durably.
    fn choose_pair(&self) -> Result<Option<Pair>> {
        let mut catalog = self.catalog();
        let unmergeable = self.unmergeable().clone();
        let found = catalog.mergeable().find(|(older, _)| !unmergeable.contains(older));
        let Some((older, newer)) = found else {
            return Ok(None);
        };
        if !catalog.layer(older)?.merging {
            let mut record = catalog.layer(older)?.clone();
            record.merging = true;
            let entries = vec![Entry::Layer(older, Some(record))];
            catalog.commit(&self.shared.db, WriteBatch::default(), entries)?;
        }
        let (older_body, newer_body) = (catalog.body(older)?, catalog.body(newer)?);
        drop(catalog);
        self.shared.sums.begin_merge(older_body, newer_body);
        self.sync_db()?;
        self.at("merge: marked");
        let has_more = self.layer_bytes(older, true)? > self.layer_bytes(newer, true)?;
        let (stays, ends) = if has_more {
            (older_body, newer_body)
        } else {
            (newer_body, older_body)
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

    fn is_pair(&self, pair: &Pair) -> bool {
        let catalog = self.catalog();
        let is_marked = catalog.layer(pair.older).is_ok_and(|record| record.merging);
        is_marked
            && catalog
                .layer(pair.newer)
                .is_ok_and(|record| record.parent == Some(pair.older))
    }

    fn merge(&self, pair: &Pair, pace: Pace) -> Result<bool> {
        let (base, newer) = {
            let mut catalog = self.catalog();
            let base = catalog.layer(pair.older)?.parent;
            let base = load::sealed(&self.shared, &mut catalog, base)?;
            (base, load::sealed(&self.shared, &mut catalog, Some(pair.newer))?)
        };
        let merger = Merger {
            store: self,
            pair,
            older: parts::kept(&self.shared.db, pair.older_body)?,
            newer: parts::kept(&self.shared.db, pair.newer_body)?,
            base,
            ns: newer,
        };
        let inos: BTreeSet<Ino> = merger.older.keys().chain(merger.newer.keys()).copied().collect();
        let mut records = BTreeMap::new();
        for ino in inos {
            let Some(_alone) = self.layers_alone() else {
                return Ok(false);
            };
            if !self.is_pair(pair) {
                return Ok(true);
            }
            records.insert(ino, merger.file(ino, pace)?);
            if !pace(0) {
                return Ok(false);
            }
        }
        self.at("merge: files done");
        merger.commit(&records)
    }

    /// The bytes of a sealed layer that nobody sees through the only one that stands on it: what merging them gives back.
    pub(crate) fn hidden_bytes(&self, older: LayerId, newer: LayerId) -> Result<u64> {
        let (older, newer, ns) = {
            let mut catalog = self.catalog();
            let ns = load::sealed(&self.shared, &mut catalog, Some(newer))?;
            (catalog.body(older)?, catalog.body(newer)?, ns)
        };
        let [olders, newers] = [older, newer].map(|body| parts::kept(&self.shared.db, body));
        let (olders, newers) = (olders?, newers?);
        let mut hidden = 0;
        for (ino, kept) in olders {
            let above = newers.get(&ino);
            let is_gone = !parts::is_file(&ns, ino);
            if !is_gone && above.is_none() {
                continue;
            }
            let chunks = codec::sums_of(&self.shared.db, older, ino)?;
            let seen = match above.filter(|_| !is_gone) {
                Some(above) => {
                    let limit = floor_above(&kept, above).div_ceil(BLOCK);
                    inherited(&chunks, &codec::sums_of(&self.shared.db, newer, ino)?, limit).count()
                }
                None => 0,
            };
            hidden += (blocks(&chunks).count() - seen) as u64 * BLOCK;
        }
        Ok(hidden)
    }

    /// Keeps bodies as they are: nobody merges, and nobody removes one that is being merged.
    fn layers_alone(&self) -> Option<RwLockWriteGuard<'_, ()>> {
        match self.bodies.try_write() {
            Ok(alone) => Some(alone),
            Err(std::sync::TryLockError::Poisoned(poisoned)) => Some(PoisonError::into_inner(poisoned)),
            Err(std::sync::TryLockError::WouldBlock) => None,
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
        let is_ready = move |id: LayerId, record: &LayerRecord| record.has_sums && !heads.contains(&id);
        let pair = |(id, record): (LayerId, &LayerRecord)| {
            let [child] = children.get(&id)?.as_slice() else {
                return None;
            };
            let newer = self.layer(*child).ok()?;
            let is_pair = is_ready(id, record) && !named.contains(&id) && is_ready(*child, newer);
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

impl Merger<'_> {
    fn disk(&self) -> &Disk {
        &self.store.shared.disk
    }

    fn path(&self, body: LayerId, ino: Ino) -> PathBuf {
        self.store.shared.layers.path(body).join(ino.to_string())
    }

    /// Brings one file to where it is to be.
    fn file(&self, ino: Ino, pace: Pace) -> Result<Records> {
        let failed = || {
            Error::io(format!(
                "merge the file {ino} of the layers {} and {}",
                self.pair.older, self.pair.newer
            ))
        };
        if !parts::is_file(&self.ns, ino) {
            return Ok(Records::Drop);
        }
        let (body, kept) = match (self.older.get(&ino), self.newer.get(&ino)) {
            (Some(older), Some(newer)) => return self.both(ino, *older, *newer, pace),
            (Some(older), None) => (self.pair.older_body, *older),
            (None, Some(newer)) => (self.pair.newer_body, *newer),
            (None, None) => return Ok(Records::Drop),
        };
        if body == self.pair.stays {
            return Ok(Records::Stay);
        }
        self.name(body, ino).map_err(failed())?;
        Ok(Records::Move(kept))
    }

    /// Gives a backing file of one body the same name in the one that stays.
    fn name(&self, body: LayerId, ino: Ino) -> io::Result<()> {
        let (from, to) = (self.path(body, ino), self.path(self.pair.stays, ino));
        if from == to || self.disk().is_same(&from, &to)? {
            return Ok(());
        }
        let new = to.with_extension(&HALF_MADE[1..]);
        self.disk().remove(&new)?;
        self.disk().link(&from, &new)?;
        self.disk().rename(&new, &to)
    }

    /// A file that both layers have blocks of.
    fn both(&self, ino: Ino, older: Kept, newer: Kept, pace: Pace) -> Result<Records> {
        let failed = || Error::io(format!("merge the file {ino} into layer {}", self.pair.newer));
        let base_size = self.base.inode(ino).map_or(0, |inode| inode.size);
        let older_floor = older.floor.unwrap_or(base_size).min(older.size);
        let newer_floor = floor_above(&older, &newer);
        let kept = Kept {
            floor: Some(older_floor.min(newer_floor)),
            ..newer
        };
        // Older's blocks from here on are seen by nobody.
        let limit = newer_floor.div_ceil(BLOCK);
        let [olders, newers] = [self.pair.older_body, self.pair.newer_body].map(|body| self.chunks(body, ino));
        let (olders, newers) = (olders?, newers?);
        let inherited: Vec<u64> = inherited(&olders, &newers, limit).collect();
        let last = newer.size / BLOCK;
        let ends_early = !newer.size.is_multiple_of(BLOCK) && inherited.contains(&last);
        let copy = Copy {
            merger: self,
            ino,
            size: newer.size,
        };
        let newer_blocks: Vec<u64> = blocks(&newers).map(|(block, _)| block).collect();
        let paths = [self.pair.older_body, self.pair.newer_body].map(|body| self.path(body, ino));
        let (base, tail) = if self.disk().is_same(&paths[0], &paths[1]).map_err(failed())? {
            // Done before this was interrupted.
            (self.pair.stays, None)
        } else if ends_early || inherited.len() <= newer_blocks.len() {
            let (older, newer) = (
                self.open(self.pair.older_body, ino, false)?,
                self.open(self.pair.newer_body, ino, true)?,
            );
            let tail = copy.blocks((&older, &olders), &newer, &inherited, pace)?;
            (self.pair.newer_body, tail.filter(|_| ends_early))
        } else {
            let (older, newer) = (
                self.open(self.pair.older_body, ino, true)?,
                self.open(self.pair.newer_body, ino, false)?,
            );
            copy.uncover(&older, &olders, limit)?;
            copy.blocks((&newer, &newers), &older, &newer_blocks, pace)?;
            (self.pair.older_body, None)
        };
        let file = self.open(base, ino, true)?;
        self.settle(&file, &kept).map_err(failed())?;
        if let Some(sum) = tail {
            self.keep_last(ino, &newers, (last, sum))?;
        }
        self.name(base, ino).map_err(failed())?;
        Ok(Records::Mix(kept, limit))
    }

    /// Keeps the checksum of a last block that ends earlier in newer than it did in older, as a block of newer, which has it now: before
    /// older's file becomes the same.
    fn keep_last(&self, ino: Ino, newers: &BTreeMap<u64, Chunk>, (last, sum): (u64, u32)) -> Result<()> {
        let shared = &self.store.shared;
        let number = last / CHUNK_BLOCKS;
        let mut chunk = Chunk::default();
        // The file's last block is the chunk's.
        for (block, sum) in newers.get(&number).iter().flat_map(|chunk| chunk.blocks()) {
            chunk.push(block, sum);
        }
        chunk.push(last % CHUNK_BLOCKS, sum);
        let mut batch = WriteBatch::default();
        sums::put(&shared.db, &mut batch, self.pair.newer_body, ino, number, &chunk);
        shared.db.write(batch)?;
        shared.sums.forget_chunks();
        self.store.sync_db()
    }

    /// Makes a merged backing file what is kept of it, and durable.
    fn settle(&self, file: &DiskFile, kept: &Kept) -> io::Result<()> {
        if let Some(floor) = kept.floor {
            self.disk().set_floor(file, floor)?;
        }
        self.disk().set_mtime(file, kept.mtime)?;
        self.disk().sync_data(file)
    }

    fn open(&self, body: LayerId, ino: Ino, write: bool) -> Result<DiskFile> {
        let path = self.path(body, ino);
        let opened = self.disk().open(&path, write);
        opened.map_err(Error::io(format!("open {}", path.display())))
    }

    fn chunks(&self, body: LayerId, ino: Ino) -> Result<BTreeMap<u64, Chunk>> {
        codec::sums_of(&self.store.shared.db, body, ino)
    }

    /// Makes one layer of both for everybody, and removes what is left of the body that ends.
    fn commit(&self, records: &BTreeMap<Ino, Records>) -> Result<bool> {
        let (store, pair) = (self.store, self.pair);
        let Some(alone) = store.layers_alone() else {
            return Ok(false);
        };
        let dir = store.shared.layers.path(pair.stays);
        let synced = self.disk().sync_dir(&dir);
        synced.map_err(Error::io(format!("sync {}", dir.display())))?;
        let mut batch = WriteBatch::default();
        for (ino, record) in records {
            self.put(&mut batch, *ino, record)?;
        }
        self.put_names(&mut batch)?;
        let mut catalog = store.catalog();
        let (older, mut newer) = (catalog.layer(pair.older)?.clone(), catalog.layer(pair.newer)?.clone());
        if newer.parent != Some(pair.older) {
            return Ok(true);
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
        newer.has_image = false;
        entries.push(Entry::Layer(pair.older, None));
        entries.push(Entry::Layer(pair.newer, Some(newer)));
        let commit = || catalog.commit(&store.shared.db, batch, entries);
        store.shared.sums.merge(pair.ends, pair.stays, commit)?;
        drop(catalog);
        store.at("merge: committed");
        for id in [pair.older, pair.newer] {
            store.sealed_bytes().remove(&id);
            store
                .hidden_bytes_known()
                .retain(|(older, newer), _| ![older, newer].contains(&&id));
        }
        // What the database may come back with must find its blocks.
        store.sync_db()?;
        for (ino, _) in records.iter().filter(|(_, record)| matches!(record, Records::Drop)) {
            let path = self.path(pair.stays, *ino);
            let removed = self.disk().remove(&path);
            removed.map_err(Error::io(format!("remove {}", path.display())))?;
        }
        store.at("merge: about to remove");
        store.remove_layer_dir(pair.ends)?;
        drop(alone);
        tracing::info!(older = %pair.older, newer = %pair.newer, body = %pair.stays, "layers merged");
        Ok(true)
    }

    /// Adds what the layer is to have of a file to a batch.
    fn put(&self, batch: &mut WriteBatch, ino: Ino, record: &Records) -> Result<()> {
        let (db, pair) = (&self.store.shared.db, self.pair);
        match record {
            Records::Stay => {}
            Records::Drop => codec::delete_part(db, batch, pair.stays, ino),
            Records::Move(kept) => {
                codec::put_part(db, batch, pair.stays, ino, &kept.encode());
                for (number, chunk) in self.chunks(pair.ends, ino)? {
                    sums::put(db, batch, pair.stays, ino, number, &chunk);
                }
            }
            Records::Mix(kept, limit) => {
                codec::delete_part(db, batch, pair.stays, ino);
                codec::put_part(db, batch, pair.stays, ino, &kept.encode());
                let (older, newer) = (self.chunks(pair.older_body, ino)?, self.chunks(pair.newer_body, ino)?);
                for (number, chunk) in mixed(&older, &newer, *limit) {
                    sums::put(db, batch, pair.stays, ino, number, &chunk);
                }
            }
        }
        Ok(())
    }

    /// Adds what both layers have changed of names and inodes to a batch.
    fn put_names(&self, batch: &mut WriteBatch) -> Result<()> {
        let (db, pair) = (&self.store.shared.db, self.pair);
        let mut newer = codec::read_changes(db, pair.newer_body)?;
        if pair.stays == pair.newer_body {
            let mut older = codec::read_changes(db, pair.older_body)?;
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

/// Copies blocks between the backing files of a file.
struct Copy<'a> {
    merger: &'a Merger<'a>,
    ino: Ino,
    /// The file's in the newer layer.
    size: u64,
}

impl Copy<'_> {
    /// Copies blocks, verified. Returns the checksum of the last one as it is now, if it ends early there.
    fn blocks(
        &self,
        (from, sums): (&DiskFile, &BTreeMap<u64, Chunk>),
        to: &DiskFile,
        blocks: &[u64],
        pace: Pace,
    ) -> Result<Option<u32>> {
        let failed = || {
            Error::io(format!(
                "copy the file {} into layer {}",
                self.ino, self.merger.pair.newer
            ))
        };
        let (mut buf, mut tail) = (vec![0; CHUNK as usize], None);
        for run in blocks
            .chunk_by(|a, b| a + 1 == *b)
            .flat_map(|run| run.chunks(CHUNK_BLOCKS as usize))
        {
            let buf = &mut buf[..run.len() * BLOCK as usize];
            let offset = run[0] * BLOCK;
            let read = self.merger.disk().read_at(from, buf, offset).map_err(failed())?;
            buf[read..].fill(0);
            for (block, bytes) in run.iter().zip(buf.chunks(BLOCK as usize)) {
                self.verify(sums, *block, bytes)?;
            }
            let len = (self.size.saturating_sub(offset)).min(buf.len() as u64) as usize;
            if len < buf.len() {
                buf[len..].fill(0);
                tail = buf.chunks(BLOCK as usize).next_back().map(sums::of);
            }
            self.merger.store.shared.room.take(len as u64).map_err(failed())?;
            let (_, written) = self.merger.disk().write_at(to, &buf[..len], offset);
            written.map_err(failed())?;
            pace(len as u64);
        }
        Ok(tail)
    }

    fn verify(&self, sums: &BTreeMap<u64, Chunk>, block: u64, bytes: &[u8]) -> Result<()> {
        let chunk = sums.get(&(block / CHUNK_BLOCKS));
        let sum = chunk.and_then(|chunk| chunk.sum(block % CHUNK_BLOCKS));
        match sums::difference(sum, bytes) {
            None => Ok(()),
            Some(difference) => Err(Error::Damaged {
                what: format!("block {block} of the file {} {difference}", self.ino),
            }),
        }
    }

    /// Takes from older's file what newer's blocks do not cover and nobody sees, and gives it newer's size.
    fn uncover(&self, older: &DiskFile, olders: &BTreeMap<u64, Chunk>, limit: u64) -> Result<()> {
        let failed = || Error::io(format!("cut the file {} of layer {}", self.ino, self.merger.pair.older));
        let unseen: Vec<u64> = blocks(olders)
            .map(|(block, _)| block)
            .filter(|block| *block >= limit)
            .collect();
        for run in unseen.chunk_by(|a, b| a + 1 == *b) {
            let punched = self
                .merger
                .disk()
                .punch(older, run[0] * BLOCK, run.len() as u64 * BLOCK);
            punched.map_err(failed())?;
        }
        self.merger.disk().set_len(older, self.size).map_err(failed())
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
