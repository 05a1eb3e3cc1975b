//! Merging layers of which one is packed: what both have that can be seen is written into another pack.

use std::collections::{BTreeMap, BTreeSet};

use super::{Both, Merger, Records, blocks};
use crate::error::Result;
use crate::packing::NewPack;
use crate::parts::{self, Kept, Pace};
use crate::sealed::Form;
use crate::store::Store;
use crate::sums::{CHUNK_BLOCKS, Chunk};
use crate::types::{BLOCK, Ino, LayerId};

/// Of what both have at least so much must be seen by nobody, or the smaller one be so large a part of the larger: so each byte is written
/// again a few times in its life, and what nobody needs stays a small part of all.
const HIDDEN_MIN: u64 = 20;
const SMALLER_MIN: u64 = 8;

impl Store {
    /// Whether enough is gained by writing both layers anew.
    pub(super) fn is_worth_packing(&self, older: LayerId, newer: LayerId) -> Result<bool> {
        let [a, b] = [older, newer].map(|id| self.layer_bytes(id, true));
        let (smaller, larger) = (a?, b?);
        let (smaller, larger) = (smaller.min(larger), smaller.max(larger));
        let (hidden, all) = self.hidden(older, newer)?;
        Ok(smaller * SMALLER_MIN >= larger || hidden * HIDDEN_MIN >= all.max(1))
    }
}

impl Merger<'_> {
    pub fn merge_packs(&self, level: i32, pace: Pace) -> Result<bool> {
        let (store, pair) = (self.store, self.pair);
        let mut pack = NewPack::begin(store, level, true)?;
        let mut records = BTreeMap::new();
        for ino in self.inos() {
            if !store.is_pair(pair) {
                return Ok(true);
            }
            let Some(record) = self.pack_file(&mut pack, ino, pace)? else {
                return Ok(false);
            };
            records.insert(ino, record);
        }
        let pack = pack.finish()?;
        store.at("merge: pack made");
        let Some(alone) = store.wait_for_layers(pace) else {
            return store.shared.sealed.packs.remove(pack).map(|()| false);
        };
        let committed = match store.is_pair(pair) {
            true => self.commit(&records, Form::Packed(pack)),
            false => Ok(false),
        };
        if !matches!(committed, Ok(true)) {
            store.remove_unused(pack, committed.as_ref().err())?;
            return committed.map(|_| true);
        }
        let removed = self.remove(&[pair.older_body, pair.newer_body]);
        drop(alone);
        self.finish(removed);
        Ok(true)
    }

    /// Writes what can be seen of a file; `None` when `pace` has ended it.
    fn pack_file(&self, pack: &mut NewPack, ino: Ino, pace: Pace) -> Result<Option<Records>> {
        let pair = self.pair;
        if !parts::is_file(&self.ns, ino) {
            return Ok(Some(Records::Drop));
        }
        let (both, records) = match (self.older.get(&ino), self.newer.get(&ino)) {
            (Some(older), Some(newer)) => {
                let both = self.both(ino, *older, *newer)?;
                let records = Records::Mix(both.kept, both.limit);
                (both, records)
            }
            (Some(older), None) => {
                let (kept, chunks) = (self.as_in_newer(ino, *older), self.chunks(pair.older_body, ino)?);
                (alone(kept, chunks, BTreeMap::new()), Records::Move(kept))
            }
            (None, Some(newer)) => {
                let chunks = self.chunks(pair.newer_body, ino)?;
                (alone(*newer, BTreeMap::new(), chunks), Records::Stay(*newer))
            }
            (None, None) => return Ok(Some(Records::Drop)),
        };
        let layers = &self.store.shared.layers;
        let older = layers.open(pair.older_body.id).backing(ino, false);
        let newer = layers.open(pair.newer_body.id).backing(ino, false);
        pack.begin_file(ino, both.kept);
        let (none, seen) = (Chunk::default(), both.seen());
        let numbers: BTreeSet<u64> = seen.keys().chain(both.newer.keys()).copied().collect();
        for number in numbers {
            let [below, above] = [&seen, &both.newer].map(|chunks| chunks.get(&number).unwrap_or(&none));
            pack.add_chunk(number, &[(&newer, above), (&older, below)], both.kept.size)?;
            if !pace((above.blocks().count() + below.blocks().count()) as u64 * BLOCK) {
                return Ok(None);
            }
        }
        pack.end_file()?;
        Ok(Some(records))
    }
}

/// A file that only one of the layers has.
fn alone(kept: Kept, older: BTreeMap<u64, Chunk>, newer: BTreeMap<u64, Chunk>) -> Both {
    Both {
        older,
        newer,
        kept,
        limit: u64::MAX,
    }
}

impl Both {
    /// Of older's blocks those below the limit.
    fn seen(&self) -> BTreeMap<u64, Chunk> {
        let mut seen: BTreeMap<u64, Chunk> = BTreeMap::new();
        for (block, sum) in blocks(&self.older).filter(|(block, _)| *block < self.limit) {
            let chunk = seen.entry(block / CHUNK_BLOCKS).or_default();
            chunk.push(block % CHUNK_BLOCKS, sum);
        }
        seen
    }
}
