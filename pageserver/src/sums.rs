//! Checksums of sealed blocks.
//!
//! A sealed layer is never written again. Soon after its seal ([`crate::parts`]) each of its blocks gets a checksum, the crc32c of its
//! 4 KiB, which is kept with the layer's other records in the database, or in its pack. From then on these say which blocks the layer has, and
//! not the filesystem; and whatever is read of it is compared first. A block that is not what it was is an error of the read: never other
//! bytes, never zeros, never an older block.
//!
//! One record is for a *chunk* of 256 blocks: 32 bytes, of which bit `n % 8` of byte `n / 8` says whether the layer has block `n` of the
//! chunk; then for each of those its checksum; and in a pack for each 32 of those the frame that has them, its offset in 8 bytes and its length
//! in 4. All little-endian. So a GiB of blocks has a MiB of checksums.

use std::ops::Range;

use crate::fields::Fields;
use crate::pack::{FRAME_BLOCKS, Frame};
use crate::types::BLOCK;

/// Blocks of a chunk.
pub const CHUNK_BLOCKS: u64 = 256;

/// Bytes of a chunk.
pub const CHUNK: u64 = CHUNK_BLOCKS * BLOCK;

/// The checksums of one chunk of a file in a layer.
#[derive(Default, PartialEq, Eq, Debug)]
pub struct Chunk {
    present: [u64; 4],
    sums: Vec<u32>,
    /// Of a pack: where each 32 of its blocks are.
    frames: Vec<Frame>,
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

    /// Adds where the next of its blocks are.
    pub fn push_frame(&mut self, frame: Frame) {
        self.frames.push(frame);
    }

    pub fn is_packed(&self) -> bool {
        !self.frames.is_empty()
    }

    /// How many of the layer's blocks come before this one in the chunk, if the layer has it.
    fn rank(&self, block: u64) -> Option<usize> {
        let (word, bit) = ((block / 64) as usize, 1 << (block % 64));
        if self.present[word] & bit == 0 {
            return None;
        }
        let before: u32 = self.present[..word].iter().map(|word| word.count_ones()).sum();
        Some((before + (self.present[word] & (bit - 1)).count_ones()) as usize)
    }

    /// The checksum of a block of the chunk, if the layer has it.
    pub fn sum(&self, block: u64) -> Option<u32> {
        self.sums.get(self.rank(block)?).copied()
    }

    /// The frame that has a block of the chunk, how many blocks that has, and which of them it is.
    pub fn frame(&self, block: u64) -> Option<(Frame, usize, usize)> {
        let rank = self.rank(block)?;
        let (nth, inside) = (rank / FRAME_BLOCKS, rank % FRAME_BLOCKS);
        let blocks = (self.sums.len() - nth * FRAME_BLOCKS).min(FRAME_BLOCKS);
        Some((*self.frames.get(nth)?, blocks, inside))
    }

    pub fn frames(&self) -> &[Frame] {
        &self.frames
    }

    /// The blocks that the layer has, in order, with their checksums.
    pub fn blocks(&self) -> impl Iterator<Item = (u64, u32)> {
        (0..CHUNK_BLOCKS)
            .filter(|block| self.present[(block / 64) as usize] >> (block % 64) & 1 == 1)
            .zip(self.sums.iter().copied())
    }

    /// Calls `each` with every range of blocks that the layer has, in order.
    pub fn ranges(&self, mut each: impl FnMut(Range<u64>)) {
        let mut blocks = self.blocks().map(|(block, _)| block).peekable();
        while let Some(first) = blocks.next() {
            let mut end = first + 1;
            while blocks.next_if_eq(&end).is_some() {
                end += 1;
            }
            each(first..end);
        }
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut record: Vec<u8> = self.present.iter().flat_map(|word| word.to_le_bytes()).collect();
        record.extend(self.sums.iter().flat_map(|sum| sum.to_le_bytes()));
        for frame in &self.frames {
            record.extend(frame.offset.to_le_bytes());
            record.extend(frame.len.to_le_bytes());
        }
        record
    }

    pub fn decode(record: &[u8]) -> Option<Chunk> {
        let mut fields = Fields(record);
        let present = [fields.u64()?, fields.u64()?, fields.u64()?, fields.u64()?];
        let blocks: u32 = present.iter().map(|word| word.count_ones()).sum();
        let sums = (0..blocks).map(|_| fields.u32()).collect::<Option<Vec<u32>>>()?;
        let mut frames = Vec::new();
        while !fields.0.is_empty() {
            frames.push(Frame {
                offset: fields.u64()?,
                len: fields.u32()?,
            });
        }
        let is_whole = frames.is_empty() || frames.len() == sums.len().div_ceil(FRAME_BLOCKS);
        is_whole.then_some(Chunk { present, sums, frames })
    }
}

/// The checksum of one block.
pub fn of(block: &[u8]) -> u32 {
    crc32c::crc32c(block)
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
