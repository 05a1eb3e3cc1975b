//! Reading a pack: the directory when it is opened, records and frames when they are asked for.

use std::io;

use super::format::{
    FOOTER, FRAME_BLOCKS, FileEntry, Footer, Frame, HEADER, Record, decode_directory, header, is_sum, sum_of,
};
use crate::error::{Error, Result};
use crate::sums::Chunk;
use crate::types::{BLOCK, Ino};

/// What a pack is read from.
pub trait Source {
    fn size(&self) -> io::Result<u64>;

    /// Reads until `buf` is full or the source ends; returns the bytes read.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
}

impl Source for &[u8] {
    fn size(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let from = usize::try_from(offset).ok().and_then(|offset| self.get(offset..));
        let from = from.unwrap_or_default();
        let len = from.len().min(buf.len());
        buf[..len].copy_from_slice(&from[..len]);
        Ok(len)
    }
}

/// An open pack.
pub struct Pack<S> {
    source: S,
    /// How it is called in errors.
    name: String,
    files: Vec<FileEntry>,
    /// Where frames and records end.
    end: u64,
    /// The checksum of its footer, under which its directory is.
    sum: u32,
}

impl<S: Source> Pack<S> {
    /// Reads header, footer and directory.
    pub fn open(source: S, name: String) -> Result<Pack<S>> {
        let failed = || Error::io(format!("read {name}"));
        let size = source.size().map_err(failed())?;
        let mut pack = Pack {
            source,
            files: Vec::new(),
            end: size,
            sum: 0,
            name: name.clone(),
        };
        let mut head = [0; HEADER];
        pack.read(&mut head, 0)?;
        if head != header() {
            return Err(pack.damaged("it does not begin as a pack that this zenith knows"));
        }
        let at = size.checked_sub(FOOTER as u64);
        let at = at.ok_or_else(|| pack.damaged("it is too short"))?;
        let mut footer = [0; FOOTER];
        pack.read(&mut footer, at)?;
        pack.sum = sum_of(&footer);
        let footer = Footer::decode(&footer, size).map_err(|what| pack.damaged(what))?;
        let mut directory = vec![0; footer.len as usize];
        pack.read(&mut directory, footer.offset)?;
        if !is_sum(&directory, footer.sum) {
            return Err(pack.damaged("its directory is not what was written"));
        }
        let files = decode_directory(&directory, footer.offset);
        pack.files = files.ok_or_else(|| pack.damaged("its directory can't be read"))?;
        pack.end = footer.offset;
        Ok(pack)
    }

    /// The checksum of what it ends with: another pack has another.
    pub fn sum(&self) -> u32 {
        self.sum
    }

    /// In order of their inode numbers.
    pub fn files(&self) -> &[FileEntry] {
        &self.files
    }

    fn file(&self, ino: Ino) -> Option<&FileEntry> {
        let at = self.files.binary_search_by_key(&ino, |file| file.ino).ok()?;
        self.files.get(at)
    }

    /// The size of a file when the layer was sealed.
    pub fn size(&self, ino: Ino) -> Option<u64> {
        self.file(ino).map(|file| file.kept.size)
    }

    /// What the layer has of a chunk of a file.
    pub fn chunk(&self, ino: Ino, number: u64) -> Result<Option<Chunk>> {
        let Some(file) = self.file(ino) else {
            return Ok(None);
        };
        let at = file.records.binary_search_by_key(&number, |record| record.chunk.into());
        at.ok().map(|at| self.record(ino, file.records[at])).transpose()
    }

    /// Calls `each` with all chunks of a file, in order.
    pub fn each_chunk(&self, ino: Ino, mut each: impl FnMut(u64, Chunk) -> Result<()>) -> Result<()> {
        let records = self.file(ino).map_or(&[][..], |file| &file.records);
        records
            .iter()
            .try_for_each(|record| each(record.chunk.into(), self.record(ino, *record)?))
    }

    fn record(&self, ino: Ino, record: Record) -> Result<Chunk> {
        let mut bytes = vec![0; record.len.into()];
        self.read(&mut bytes, record.offset)?;
        let is_whole = is_sum(&bytes, record.sum);
        let chunk = Chunk::decode(&bytes).filter(|chunk| is_whole && chunk.is_packed());
        chunk.ok_or_else(|| {
            let number = record.chunk;
            self.damaged(&format!(
                "the record of chunk {number} of the file {ino} is not what was written"
            ))
        })
    }

    /// The bytes of a frame that has so many blocks.
    pub fn frame(&self, frame: Frame, blocks: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; blocks * BLOCK as usize];
        if frame.len == 0 {
            return Ok(bytes);
        }
        let damaged = || self.damaged(&format!("the frame at {} is not what was written", frame.offset));
        let end = frame.offset.checked_add(frame.len.into());
        let most = zstd::zstd_safe::compress_bound(FRAME_BLOCKS * BLOCK as usize) + 4;
        if frame.len as usize > most || end.is_none_or(|end| end > self.end) {
            return Err(damaged());
        }
        let mut packed = vec![0; frame.len as usize];
        self.read(&mut packed, frame.offset)?;
        let (packed, sum) = packed.split_last_chunk::<4>().ok_or_else(damaged)?;
        if !is_sum(packed, u32::from_le_bytes(*sum)) {
            return Err(damaged());
        }
        match zstd::bulk::decompress_to_buffer(packed, &mut bytes) {
            Ok(len) if len == bytes.len() => Ok(bytes),
            _ => Err(damaged()),
        }
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let read = self.source.read_at(buf, offset);
        match read.map_err(Error::io(format!("read {}", self.name)))? == buf.len() {
            true => Ok(()),
            false => Err(self.damaged("it is too short")),
        }
    }

    fn damaged(&self, what: &str) -> Error {
        let what = format!("{}: {what}", self.name);
        Error::Damaged { what }
    }
}
