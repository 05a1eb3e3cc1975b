//! Checksums of sealed blocks.
//!
//! A sealed layer is never written again. Soon after its seal ([`crate::parts`]) each of its blocks gets a checksum, the crc32c of its
//! 4 KiB, which the database keeps with the layer's other records. From then on these say which blocks the layer has, and not the
//! filesystem; and whatever is read of it is compared first. A block that is not what it was is an error of the read: never other
//! bytes, never zeros, never an older block.
//!
//! One record is for a *chunk* of 256 blocks: 32 bytes, of which bit `n % 8` of byte `n / 8` says whether the layer has block `n` of the
//! chunk, then for each of those its checksum, little-endian. So a GiB of blocks has a MiB of checksums.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock, RwLockReadGuard};

use rocksdb::WriteBatch;

use crate::db::Db;
use crate::error::{Error, Result};
use crate::namespace::codec;
use crate::types::{BLOCK, Ino, LayerId};

/// Blocks of a chunk.
pub const CHUNK_BLOCKS: u64 = 256;

/// Bytes of a chunk.
pub const CHUNK: u64 = CHUNK_BLOCKS * BLOCK;

/// Chunks whose checksums are kept in memory, about 1 KiB each.
const CACHED: usize = 8192;

/// The checksums of one chunk of a file in a layer.
#[derive(Default, PartialEq, Eq, Debug)]
pub struct Chunk {
    present: [u64; 4],
    sums: Vec<u32>,
}

impl Chunk {
    /// Adds the chunk's next block; they come in order.
    pub fn push(&mut self, block: u64, sum: u32) {
        self.present[(block / 64) as usize] |= 1 << (block % 64);
        self.sums.push(sum);
    }

    pub fn is_empty(&self) -> bool {
        self.sums.is_empty()
    }

    /// The checksum of a block of the chunk, if the layer has it.
    pub fn sum(&self, block: u64) -> Option<u32> {
        let (word, bit) = ((block / 64) as usize, 1 << (block % 64));
        if self.present[word] & bit == 0 {
            return None;
        }
        let before: u32 = self.present[..word].iter().map(|word| word.count_ones()).sum();
        let rank = before + (self.present[word] & (bit - 1)).count_ones();
        self.sums.get(rank as usize).copied()
    }

    /// The blocks that the layer has, in order, with their checksums.
    pub fn blocks(&self) -> impl Iterator<Item = (u64, u32)> {
        (0..CHUNK_BLOCKS)
            .filter(|block| self.present[(block / 64) as usize] >> (block % 64) & 1 == 1)
            .zip(self.sums.iter().copied())
    }

    pub fn encode(&self) -> Vec<u8> {
        let present = self.present.iter().flat_map(|word| word.to_le_bytes());
        present
            .chain(self.sums.iter().flat_map(|sum| sum.to_le_bytes()))
            .collect()
    }

    pub fn decode(record: &[u8]) -> Option<Chunk> {
        let (present, sums) = record.split_first_chunk::<32>()?;
        let (words, sums) = (present.as_chunks::<8>().0, sums.as_chunks::<4>());
        let present = [0, 1, 2, 3].map(|word| u64::from_le_bytes(words[word]));
        let blocks: u32 = present.iter().map(|word| word.count_ones()).sum();
        let whole = sums.1.is_empty() && sums.0.len() == blocks as usize;
        whole.then(|| Chunk {
            present,
            sums: sums.0.iter().map(|sum| u32::from_le_bytes(*sum)).collect(),
        })
    }
}

/// The checksum of one block.
pub fn of(block: &[u8]) -> u32 {
    crc32c::crc32c(block)
}

/// A chunk of a file in a layer, and its checksums.
type Cached = ((LayerId, Ino, u64), Arc<Chunk>);

/// What has become of bodies by merging: see `merge.rs`.
#[derive(Default)]
struct Bodies {
    /// Those that have ended, each with the one that has what it had.
    ended: HashMap<LayerId, LayerId>,
    /// Older ones that are being merged, each with the newer one.
    merging: HashMap<LayerId, LayerId>,
}

impl Bodies {
    fn now(&self, layer: LayerId) -> LayerId {
        self.ended.get(&layer).copied().unwrap_or(layer)
    }
}

/// The checksums of a store.
pub struct Sums {
    db: Arc<Db>,
    summed: RwLock<HashSet<LayerId>>,
    bodies: RwLock<Bodies>,
    /// Counts the changes of both.
    changes: AtomicU64,
    /// Each chunk has one place here, which it shares with others.
    cache: Vec<Mutex<Option<Cached>>>,
}

impl Sums {
    pub fn new(db: Arc<Db>, summed: impl Iterator<Item = LayerId>) -> Sums {
        Sums {
            db,
            summed: RwLock::new(summed.collect()),
            bodies: RwLock::default(),
            changes: AtomicU64::new(1),
            cache: (0..CACHED).map(|_| Mutex::default()).collect(),
        }
    }

    /// Changes whenever another layer has checksums.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    pub fn has(&self, layer: LayerId) -> bool {
        self.summed.read().unwrap_or_else(|e| e.into_inner()).contains(&layer)
    }

    /// The layer's blocks have checksums from now on.
    pub fn add(&self, layer: LayerId) {
        self.summed.write().unwrap_or_else(|e| e.into_inner()).insert(layer);
        self.changes.fetch_add(1, Ordering::Release);
    }

    /// The layer is gone.
    pub fn remove(&self, layer: LayerId) {
        self.summed.write().unwrap_or_else(|e| e.into_inner()).remove(&layer);
        self.changes.fetch_add(1, Ordering::Release);
    }

    /// The body that has what this one had: itself, unless it was merged.
    pub fn body(&self, layer: LayerId) -> LayerId {
        self.bodies().now(layer)
    }

    /// Whether a layer's number is that of a body that has ended.
    pub fn has_ended(&self, layer: LayerId) -> bool {
        self.bodies().ended.contains_key(&layer)
    }

    /// Whether any body has ended since the store was opened.
    pub fn has_merged(&self) -> bool {
        !self.bodies().ended.is_empty()
    }

    /// Has one body have what another had. Nobody looks at checksums until `commit` has changed the database.
    pub fn merge(&self, ends: LayerId, stays: LayerId, commit: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut bodies = self.bodies.write().unwrap_or_else(|e| e.into_inner());
        commit()?;
        bodies
            .ended
            .values_mut()
            .filter(|to| **to == ends)
            .for_each(|to| *to = stays);
        bodies.ended.insert(ends, stays);
        bodies.merging.retain(|older, _| ![ends, stays].contains(older));
        self.forget_chunks();
        self.changes.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// The older body is going to be merged with the newer one.
    pub fn begin_merge(&self, older: LayerId, newer: LayerId) {
        let mut bodies = self.bodies.write().unwrap_or_else(|e| e.into_inner());
        bodies.merging.insert(older, newer);
    }

    /// Has the database be asked anew, which has other records of a file now.
    pub fn forget_chunks(&self) {
        for place in &self.cache {
            *place.lock().unwrap_or_else(|e| e.into_inner()) = None;
        }
    }

    fn bodies(&self) -> RwLockReadGuard<'_, Bodies> {
        self.bodies.read().unwrap_or_else(|e| e.into_inner())
    }

    /// A chunk's checksums.
    fn chunk(&self, layer: LayerId, ino: Ino, number: u64) -> Result<Arc<Chunk>> {
        let key = (layer, ino, number);
        let spread = layer.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ ino.0.wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
        let place = &self.cache[(spread.wrapping_add(number) as usize) % CACHED];
        if let Some((cached, chunk)) = &*place.lock().unwrap_or_else(|e| e.into_inner())
            && *cached == key
        {
            return Ok(chunk.clone());
        }
        let chunk = Arc::new(codec::read_sums(&self.db, layer, ino, number)?.unwrap_or_default());
        *place.lock().unwrap_or_else(|e| e.into_inner()) = Some((key, chunk.clone()));
        Ok(chunk)
    }

    /// Calls `each` with every block that the layer has of a file, in order.
    pub fn each_block(&self, layer: LayerId, ino: Ino, mut each: impl FnMut(u64)) -> Result<()> {
        let bodies = self.bodies();
        codec::each_sums(&self.db, bodies.now(layer), ino, |number, chunk| {
            let blocks = chunk.blocks().map(|(block, _)| number * CHUNK_BLOCKS + block);
            blocks.for_each(&mut each);
            Ok(())
        })
    }

    /// Compares what was read of whole blocks, from `offset` on, with their checksums.
    pub fn verify(&self, layer: LayerId, ino: Ino, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let bodies = self.bodies();
        let layer = bodies.now(layer);
        let mut chunk: Option<(u64, Arc<Chunk>)> = None;
        for (block, bytes) in (offset / BLOCK..).zip(bytes.chunks(BLOCK as usize)) {
            let number = block / CHUNK_BLOCKS;
            let sums = match &chunk {
                Some((have, sums)) if *have == number => sums,
                _ => &chunk.insert((number, self.chunk(layer, ino, number)?)).1,
            };
            if let Some(difference) = difference(sums.sum(block % CHUNK_BLOCKS), bytes) {
                // Its file may be the newer one's already, which ends earlier.
                if let Some(newer) = bodies.merging.get(&layer)
                    && self.chunk(*newer, ino, number)?.sum(block % CHUNK_BLOCKS) == Some(of(bytes))
                {
                    continue;
                }
                return Err(damaged(layer, ino, block, difference));
            }
        }
        Ok(())
    }
}

/// How a block is not what it was, if so. One that the layer never had reads as zeros.
pub fn difference(sum: Option<u32>, block: &[u8]) -> Option<&'static str> {
    match sum {
        Some(sum) => (of(block) != sum).then_some("is not what was sealed"),
        None => block
            .iter()
            .any(|byte| *byte != 0)
            .then_some("was not there when it was sealed"),
    }
}

/// The error of a read, of which the kernel gets EIO and the log the rest.
fn damaged(layer: LayerId, ino: Ino, block: u64, difference: &str) -> io::Error {
    let what = format!("layer {layer}: block {block} of the file {ino} {difference}");
    io::Error::new(io::ErrorKind::InvalidData, Error::Damaged { what }.to_string())
}

/// Adds a chunk's checksums to a batch; none where the layer has nothing of it.
pub fn put(db: &Db, batch: &mut WriteBatch, layer: LayerId, ino: Ino, number: u64, chunk: &Chunk) {
    if !chunk.is_empty() {
        codec::put_sums(db, batch, layer, ino, number, chunk);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sparse() -> Chunk {
        let mut chunk = Chunk::default();
        for block in [0, 1, 63, 64, 130, 255] {
            chunk.push(block, block as u32 * 7);
        }
        chunk
    }

    #[test]
    fn a_chunk_tells_the_sum_of_each_block_it_has_and_of_no_other() {
        let chunk = sparse();
        for block in 0..CHUNK_BLOCKS {
            let expected = [0, 1, 63, 64, 130, 255].contains(&block).then_some(block as u32 * 7);
            assert_eq!(chunk.sum(block), expected, "block {block}");
        }
        let blocks: Vec<u64> = chunk.blocks().map(|(block, _)| block).collect();
        assert_eq!(blocks, [0, 1, 63, 64, 130, 255]);
    }

    #[test]
    fn a_record_comes_back_whole_or_not_at_all() {
        let record = sparse().encode();
        assert_eq!(Chunk::decode(&record), Some(sparse()));
        assert!((0..record.len()).all(|len| Chunk::decode(&record[..len]).is_none()));
        assert_eq!(Chunk::decode(&[&record[..], &[0; 4]].concat()), None);
    }
}
