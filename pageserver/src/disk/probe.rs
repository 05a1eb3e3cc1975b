//! Asks a filesystem, when a store is made on it, whether its holes are what the page store takes them for.
//!
//! In a sparse file of 64 MiB every 7th block is written, every second of those with zeros, and a byte of the last one; the file is read back by
//! `pread` and `mmap`, synced, read again, and a third of it is punched out. At each step the map of data must be
//! exactly the blocks that were written: a filesystem that drops written zeros, rounds extents up, has parts of blocks, or lets reads
//! allocate would show old bytes as new or new as old.

use std::io;
use std::ops::Range;
use std::path::Path;

use super::{Disk, DiskFile};
use crate::types::BLOCK;

const FILE_BLOCKS: u64 = 64 * 1024 * 1024 / BLOCK;
const STRIDE: u64 = 7;
const PUNCHED: Range<u64> = FILE_BLOCKS / 3..FILE_BLOCKS * 2 / 3;

/// What the probe writes to.
pub const PROBE_FILE: &str = "probe";

pub use super::filesystem::{Fitness, fitness};

/// Runs the probe in `dir`; `Some(why)` says what the filesystem got wrong. Leaves nothing behind.
pub fn probe(disk: &Disk, dir: &Path) -> io::Result<Option<String>> {
    let path = dir.join(PROBE_FILE);
    disk.remove(&path)?;
    let file = disk.create(&path)?;
    let found = probe_file(disk, &file);
    disk.remove(&path)?;
    found
}

fn probe_file(disk: &Disk, file: &DiskFile) -> io::Result<Option<String>> {
    disk.set_len(file, FILE_BLOCKS * BLOCK)?;
    for block in (0..FILE_BLOCKS).step_by(STRIDE as usize) {
        let (_, result) = disk.write_at(file, &content(block), block * BLOCK);
        result?;
    }
    let (_, result) = disk.write_at(file, &[1], (FILE_BLOCKS - 1) * BLOCK);
    result?;
    let written = |block: u64| block.is_multiple_of(STRIDE) || block == FILE_BLOCKS - 1;
    let is_whole = |range: &Range<u64>| range.start.is_multiple_of(BLOCK) && range.end.is_multiple_of(BLOCK);
    if !disk.data_ranges(file)?.iter().all(is_whole) {
        return Ok(Some(
            "its blocks are smaller than 4 KiB (`mkfs.ext4 -b 4096` makes them so large)".into(),
        ));
    }
    if let Some(wrong) = differs(disk, file, written)? {
        return Ok(Some(format!("{wrong} after writing")));
    }
    read_all(disk, file)?;
    read_mapped(file)?;
    disk.sync_data(file)?;
    if let Some(wrong) = differs(disk, file, written)? {
        return Ok(Some(format!("{wrong} after reading and syncing")));
    }
    let punched = PUNCHED.end - PUNCHED.start;
    if let Err(e) = disk.punch(file, PUNCHED.start * BLOCK, punched * BLOCK) {
        return Ok(Some(format!("it can't punch holes ({e})")));
    }
    disk.set_floor(file, BLOCK)?;
    let kept = |block: u64| written(block) && !PUNCHED.contains(&block);
    match differs(disk, file, kept)? {
        Some(wrong) => Ok(Some(format!("{wrong} after punching holes"))),
        None if disk.floor(file)? != Some(BLOCK) => Ok(Some("it lost an extended attribute".into())),
        None => Ok(None),
    }
}

/// Every second written block holds zeros.
fn content(block: u64) -> Vec<u8> {
    let byte = if (block / STRIDE).is_multiple_of(2) { 0 } else { 0xA5 };
    vec![byte; BLOCK as usize]
}

/// Compares the filesystem's map with the truth, block by block.
fn differs(disk: &Disk, file: &DiskFile, truth: impl Fn(u64) -> bool) -> io::Result<Option<String>> {
    let mut present = vec![false; FILE_BLOCKS as usize];
    for range in disk.data_ranges(file)? {
        let blocks = range.start / BLOCK..range.end.div_ceil(BLOCK).min(FILE_BLOCKS);
        blocks.for_each(|block| present[block as usize] = true);
    }
    let wrong = (0..FILE_BLOCKS).find(|block| present[*block as usize] != truth(*block));
    Ok(wrong.map(|block| format!("it tells wrongly whether block {block} of a sparse file was written")))
}

fn read_all(disk: &Disk, file: &DiskFile) -> io::Result<()> {
    let mut buf = vec![0; 1 << 20];
    for offset in (0..FILE_BLOCKS * BLOCK).step_by(buf.len()) {
        disk.read_at(file, &mut buf, offset)?;
    }
    Ok(())
}

/// Touches every page through a shared mapping.
fn read_mapped(file: &DiskFile) -> io::Result<()> {
    use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
    let len = std::num::NonZeroUsize::new((FILE_BLOCKS * BLOCK) as usize).ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: a fresh read-only mapping of a file of that length, unmapped before it goes out of scope.
    unsafe {
        let map = mmap(None, len, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, &file.file, 0)?;
        for block in 0..FILE_BLOCKS {
            std::ptr::read_volatile(map.as_ptr().cast::<u8>().add((block * BLOCK) as usize));
        }
        munmap(map, len.get())?;
    }
    Ok(())
}
