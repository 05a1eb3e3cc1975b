//! Packs: the immutable, compressed form of a sealed layer, one file that tells all of itself.
//!
//! ```text
//!   header    "zenpack\n"  version  crc32c                                              16 bytes
//!   file      frame frame frame …   record record …                                     for each file, in order of inode numbers
//!   file      frame frame …         record …
//!   directory ino size floor mtime, where its records begin; number, length, crc32c of each   for each file
//!   footer    where the directory is, its length, its crc32c; version; crc32c; "zenpack\n"   40 bytes
//! ```
//!
//! A *frame* is up to 32 blocks (128 KiB) of one file, those that follow one another in the layer, in one zstd frame with a crc32c behind
//! it. Frames don't go past a *chunk*, 1 MiB of the file. A chunk's *record* says which of its 256 blocks the layer has, the
//! crc32c of each, and where its frames are ([`crate::sums`]); so a block is found with one small read, and read with one more. The
//! directory has the crc32c of each record, and so the footer's stands for every block. A frame of nothing but zeros has no bytes at all.
//!
//! Every byte stands under a checksum, and nothing is taken from lengths that do not fit into the file, so whatever a damaged or foreign file
//! says costs at most three times its size in memory. All numbers are little-endian. docs/design.md has the format byte by byte.

mod dump;
mod format;
mod reader;
mod writer;

#[cfg(fuzzing)]
pub use dump::dump;
pub use dump::{FileDump, FrameDump, PackDump, dump_pack};
pub use format::{FRAME_BLOCKS, FileEntry, Frame, VERSION};
pub use reader::{Pack, Source};
pub use writer::Writer;

#[cfg(test)]
mod tests;
