//! Which part of a file answers for each of its blocks.
//!
//! One 16-bit slot a block (half a MiB per GiB of file; what all maps take together is counted, so that files that are not used can be let go of): the index of a part, or [`HOLE`]. A slot is read and
//! written without a lock that excludes others, since an overwrite only ever moves a block up to the head; growing
//! and shrinking the map needs it alone.

use std::ops::Range;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};

use crate::types::BLOCK;

/// No part has the block: it reads as zeros.
pub const HOLE: u16 = u16::MAX;

/// Parts that one file can have.
pub const PARTS_MAX: usize = HOLE as usize;

/// Slots of all maps of the process.
static SLOTS: AtomicUsize = AtomicUsize::new(0);

/// Above so many slots, 256 MiB of them, files are let go of that nobody has used for a while.
const SLOTS_MAX: usize = 128 << 20;

/// Whether files that are not needed should be let go of.
pub fn are_too_many() -> bool {
    SLOTS.load(Ordering::Relaxed) > SLOTS_MAX
}

#[derive(Default)]
pub struct BlockMap(Vec<AtomicU16>);

impl Drop for BlockMap {
    fn drop(&mut self) {
        SLOTS.fetch_sub(self.0.len(), Ordering::Relaxed);
    }
}

impl BlockMap {
    /// A map of a file of `size` bytes whose every block is `slot`'s.
    pub fn filled(size: u64, slot: u16) -> BlockMap {
        let mut map = BlockMap::default();
        map.set_len(size, slot);
        map
    }

    /// Follows the file's size; new blocks are holes.
    pub fn resize(&mut self, size: u64) {
        self.set_len(size, HOLE);
    }

    fn set_len(&mut self, size: u64, slot: u16) {
        let (before, len) = (self.0.len(), size.div_ceil(BLOCK) as usize);
        self.0.resize_with(len, || AtomicU16::new(slot));
        SLOTS.fetch_add(len, Ordering::Relaxed);
        SLOTS.fetch_sub(before, Ordering::Relaxed);
    }

    /// The slot of a block; past the end there is nothing but a hole.
    pub fn slot(&self, block: u64) -> u16 {
        self.0
            .get(block as usize)
            .map_or(HOLE, |slot| slot.load(Ordering::Acquire))
    }

    /// Gives the blocks of a range, as far as the map goes, to `slot`.
    pub fn set(&self, blocks: Range<u64>, slot: u16) {
        let len = self.0.len() as u64;
        let range = blocks.start.min(len) as usize..blocks.end.min(len) as usize;
        for entry in &self.0[range] {
            entry.store(slot, Ordering::Release);
        }
    }

    /// Calls `each` with the slot of every block that is no hole.
    pub fn each_slot(&self, mut each: impl FnMut(u16)) {
        let slots = self.0.iter().map(|slot| slot.load(Ordering::Acquire));
        slots.filter(|slot| *slot != HOLE).for_each(&mut each);
    }

    /// Gives each slot's blocks to the one that stands in its place.
    pub fn renumber(&self, slots: &[u16]) {
        for entry in &self.0 {
            let slot = entry.load(Ordering::Acquire);
            if slot != HOLE {
                entry.store(slots[usize::from(slot)], Ordering::Release);
            }
        }
    }

    /// Cuts a range of bytes into runs that one slot answers.
    pub fn runs(&self, bytes: Range<u64>) -> impl Iterator<Item = (u16, Range<u64>)> {
        let mut at = bytes.start;
        std::iter::from_fn(move || {
            if at >= bytes.end {
                return None;
            }
            let start = at;
            let slot = self.slot(start / BLOCK);
            let mut block = start / BLOCK + 1;
            while block * BLOCK < bytes.end && self.slot(block) == slot {
                block += 1;
            }
            at = (block * BLOCK).min(bytes.end);
            Some((slot, start..at))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_join_neighbours_and_keep_to_the_bytes_asked_for() {
        let map = BlockMap::filled(4 * BLOCK, 0);
        map.set(1..3, 5);
        let runs: Vec<_> = map.runs(100..4 * BLOCK + 7).collect();
        assert_eq!(
            runs,
            [
                (0, 100..BLOCK),
                (5, BLOCK..3 * BLOCK),
                (0, 3 * BLOCK..4 * BLOCK),
                (HOLE, 4 * BLOCK..4 * BLOCK + 7)
            ]
        );
    }

    #[test]
    fn a_map_that_shrinks_and_grows_forgets_what_was_cut_off() {
        let mut map = BlockMap::filled(3 * BLOCK, 1);
        map.resize(BLOCK);
        map.resize(3 * BLOCK);
        assert_eq!([0, 1, 2].map(|block| map.slot(block)), [1, HOLE, HOLE]);
    }
}
