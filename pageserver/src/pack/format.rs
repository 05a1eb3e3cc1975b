//! How a pack's header, directory and footer lie in it.

use crate::fields::Fields;
use crate::parts::Kept;
use crate::sums::CHUNK;
use crate::types::{FILE_SIZE_MAX, Ino};

pub const MAGIC: [u8; 8] = *b"zenpack\n";

/// The version that this code writes, and the only one that it reads.
pub const VERSION: u32 = 1;

/// Bytes of the header and of the footer.
pub const HEADER: usize = 16;
pub const FOOTER: usize = 40;

/// Blocks of a frame, at most.
pub const FRAME_BLOCKS: usize = 32;

/// Where a frame is: its compressed bytes with their checksum, or nothing where all of its blocks are zeros.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frame {
    pub offset: u64,
    pub len: u32,
}

/// Where a chunk's record is, and its checksum.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record {
    pub chunk: u32,
    pub len: u16,
    pub sum: u32,
    pub offset: u64,
}

/// What a pack has of one file.
#[derive(PartialEq, Eq, Debug)]
pub struct FileEntry {
    pub ino: Ino,
    pub kept: Kept,
    pub(super) records: Vec<Record>,
}

/// Where the directory is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Footer {
    pub offset: u64,
    pub len: u64,
    pub sum: u32,
}

/// Whether bytes have a checksum. Fuzzers are to get behind it.
pub fn is_sum(bytes: &[u8], sum: u32) -> bool {
    cfg!(fuzzing) || crc32c::crc32c(bytes) == sum
}

/// What tells one pack from another: the checksum that is in its footer. It covers that of the directory, which covers those of the records,
/// which cover those of the blocks. (That of all of the footer is the same for all, as it is of whatever has its own behind it.)
pub fn sum_of(footer: &[u8; FOOTER]) -> u32 {
    crc32c::crc32c(&footer[..28])
}

pub fn header() -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..8].copy_from_slice(&MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    let sum = crc32c::crc32c(&header[..12]);
    header[12..].copy_from_slice(&sum.to_le_bytes());
    header
}

impl Footer {
    /// Offset u64, length u64 and crc32c of the directory, version u32, four zero bytes, crc32c of all that, the magic.
    pub fn encode(&self) -> [u8; FOOTER] {
        let mut footer = [0; FOOTER];
        footer[..8].copy_from_slice(&self.offset.to_le_bytes());
        footer[8..16].copy_from_slice(&self.len.to_le_bytes());
        footer[16..20].copy_from_slice(&self.sum.to_le_bytes());
        footer[20..24].copy_from_slice(&VERSION.to_le_bytes());
        let sum = crc32c::crc32c(&footer[..28]);
        footer[28..32].copy_from_slice(&sum.to_le_bytes());
        footer[32..].copy_from_slice(&MAGIC);
        footer
    }

    fn fields(footer: &[u8]) -> Option<(Footer, [u32; 3])> {
        let mut fields = Fields(footer);
        let found = Footer {
            offset: fields.u64()?,
            len: fields.u64()?,
            sum: fields.u32()?,
        };
        Some((found, [fields.u32()?, fields.u32()?, fields.u32()?]))
    }

    /// The footer of a pack of `size` bytes, or what is wrong with it.
    pub fn decode(footer: &[u8; FOOTER], size: u64) -> Result<Footer, &'static str> {
        let (found, [version, reserved, sum]) = Footer::fields(footer).ok_or("its footer is cut off")?;
        if footer[32..] != MAGIC {
            return Err("it does not end as a pack does");
        }
        if !is_sum(&footer[..28], sum) || reserved != 0 {
            return Err("its footer is not what was written");
        }
        if version != VERSION {
            return Err("it has a version that this zenith does not know");
        }
        let end = found
            .offset
            .checked_add(found.len)
            .and_then(|end| end.checked_add(FOOTER as u64));
        match end == Some(size) && found.offset >= HEADER as u64 {
            true => Ok(found),
            false => Err("its directory lies outside of it"),
        }
    }
}

/// For each file: ino u64, size u64, floor u64, mtime i64 + u32, where its records begin u64, count u32; then for each record its chunk
/// u32, its length u16 and its crc32c u32. They follow one another without a gap.
pub fn encode_directory(files: &[FileEntry]) -> Vec<u8> {
    let mut out = Vec::new();
    for file in files {
        out.extend(file.ino.0.to_le_bytes());
        out.extend(file.kept.encode());
        let first = file.records.first().map_or(0, |record| record.offset);
        out.extend(first.to_le_bytes());
        out.extend((file.records.len() as u32).to_le_bytes());
        for record in &file.records {
            out.extend(record.chunk.to_le_bytes());
            out.extend(record.len.to_le_bytes());
            out.extend(record.sum.to_le_bytes());
        }
    }
    out
}

/// The files of a directory; their records lie between the header and `end`.
pub fn decode_directory(directory: &[u8], end: u64) -> Option<Vec<FileEntry>> {
    let mut fields = Fields(directory);
    let mut files: Vec<FileEntry> = Vec::new();
    while !fields.0.is_empty() {
        let file = decode_file(&mut fields, end)?;
        if files.last().is_some_and(|last| last.ino >= file.ino) {
            return None;
        }
        files.push(file);
    }
    Some(files)
}

fn decode_file(fields: &mut Fields, end: u64) -> Option<FileEntry> {
    let ino = Ino(fields.u64()?);
    let kept = Kept::decode(&fields.take::<{ Kept::LEN }>()?)?;
    let mut offset = fields.u64()?;
    let mut records: Vec<Record> = Vec::new();
    for _ in 0..fields.u32()? {
        let (chunk, len, sum) = (fields.u32()?, fields.u16()?, fields.u32()?);
        let record = Record {
            chunk,
            len,
            sum,
            offset,
        };
        offset = offset.checked_add(len.into())?;
        let follows = records.last().is_none_or(|last| last.chunk < chunk);
        if !follows || record.offset < HEADER as u64 || offset > end || u64::from(chunk) >= FILE_SIZE_MAX / CHUNK {
            return None;
        }
        records.push(record);
    }
    Some(FileEntry { ino, kept, records })
}
