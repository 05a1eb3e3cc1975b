//! Writing a pack, from its first byte to its last.

use std::io::{self, Write};

use zstd::bulk::Compressor;

use super::format::{FRAME_BLOCKS, FileEntry, Footer, Frame, Record, encode_directory, header, sum_of};
use crate::parts::Kept;
use crate::sums::{self, Chunk};
use crate::types::{BLOCK, Ino};

pub struct Writer<W> {
    to: W,
    /// Bytes written.
    at: u64,
    compressor: Compressor<'static>,
    files: Vec<FileEntry>,
    /// Of the file that is being written: its chunks' records, one after the other.
    records: Vec<u8>,
}

impl<W: Write> Writer<W> {
    /// Begins a pack with frames compressed at a level of zstd's.
    pub fn new(to: W, level: i32) -> io::Result<Writer<W>> {
        let mut writer = Writer {
            to,
            at: 0,
            compressor: Compressor::new(level)?,
            files: Vec::new(),
            records: Vec::new(),
        };
        writer.write(&header())?;
        Ok(writer)
    }

    /// Begins the next file; they come in order of their inode numbers.
    pub fn begin_file(&mut self, ino: Ino, kept: Kept) {
        self.files.push(FileEntry {
            ino,
            kept,
            records: Vec::new(),
        });
    }

    /// Adds what the layer has of the file's next chunk: which of its blocks, in order, and their bytes.
    pub fn add_chunk(&mut self, number: u64, blocks: &[u64], bytes: &[u8]) -> io::Result<()> {
        let mut chunk = Chunk::default();
        for (block, bytes) in blocks.iter().zip(bytes.chunks(BLOCK as usize)) {
            chunk.push(*block, sums::of(bytes));
        }
        for bytes in bytes.chunks(FRAME_BLOCKS * BLOCK as usize) {
            let frame = self.frame(bytes)?;
            chunk.push_frame(frame);
        }
        let record = chunk.encode();
        let start = self.records.len();
        self.records.extend(&record);
        if let Some(file) = self.files.last_mut() {
            file.records.push(Record {
                chunk: number as u32,
                len: record.len() as u16,
                sum: crc32c::crc32c(&record),
                offset: start as u64,
            });
        }
        Ok(())
    }

    fn frame(&mut self, bytes: &[u8]) -> io::Result<Frame> {
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(Frame { offset: 0, len: 0 });
        }
        let mut packed = self.compressor.compress(bytes)?;
        packed.extend(crc32c::crc32c(&packed).to_le_bytes());
        let frame = Frame {
            offset: self.at,
            len: packed.len() as u32,
        };
        self.write(&packed)?;
        Ok(frame)
    }

    /// Ends the file that was begun last.
    pub fn end_file(&mut self) -> io::Result<()> {
        let records = std::mem::take(&mut self.records);
        if let Some(file) = self.files.last_mut() {
            file.records.iter_mut().for_each(|record| record.offset += self.at);
        }
        self.write(&records)
    }

    /// Writes the rest; returns what it was written to, and the checksum of what it ends with.
    pub fn finish(mut self) -> io::Result<(W, u32)> {
        let directory = encode_directory(&self.files);
        let footer = Footer {
            offset: self.at,
            len: directory.len() as u64,
            sum: crc32c::crc32c(&directory),
        };
        self.write(&directory)?;
        let footer = footer.encode();
        self.write(&footer)?;
        self.to.flush()?;
        Ok((self.to, sum_of(&footer)))
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.to.write_all(bytes)?;
        self.at += bytes.len() as u64;
        Ok(())
    }
}
