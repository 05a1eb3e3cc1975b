//! What a pack says of itself, for people and tests.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{FRAME_BLOCKS, Pack, Source, VERSION};
use crate::error::{Error, Result};
use crate::sums::{self, CHUNK_BLOCKS};
use crate::types::{BLOCK, Time};

/// A pack, as its directory and its records have it. Its frames were read and compared with the checksums.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PackDump {
    pub version: u32,
    /// Of the pack.
    pub bytes: u64,
    pub files: Vec<FileDump>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FileDump {
    /// The inode's number, hexadecimal as everywhere.
    pub ino: String,
    /// Of the file when the layer was sealed.
    pub size: u64,
    /// The smallest size that it had during the layer, where it is known.
    pub floor: Option<u64>,
    pub mtime: Time,
    /// Bytes of its blocks in the layer, and of their frames.
    pub data: u64,
    pub packed: u64,
    pub frames: Vec<FrameDump>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FrameDump {
    pub offset: u64,
    /// With the checksum; 0 where all of its blocks are zeros.
    pub bytes: u32,
    /// The blocks of the file that it has: first and count of each run.
    pub blocks: Vec<(u64, u64)>,
}

/// Reads a whole pack; the first damage ends it.
pub fn dump_pack(path: &Path) -> Result<PackDump> {
    let name = path.display().to_string();
    // One that somebody else would have to write to must not be waited for.
    let opened = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let file = opened.map_err(Error::io(format!("open {name}")))?;
    dump(file, name)
}

impl Source for File {
    fn size(&self) -> io::Result<u64> {
        let meta = self.metadata()?;
        match meta.is_file() {
            true => Ok(meta.len()),
            false => Err(io::Error::other("it is no regular file")),
        }
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match FileExt::read_at(self, &mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }
}

pub fn dump<S: Source>(source: S, name: String) -> Result<PackDump> {
    let bytes = source.size().map_err(Error::io(format!("read {name}")))?;
    let pack = Pack::open(source, name)?;
    let files = pack.files().iter().map(|file| {
        let frames = frames(&pack, file)?;
        let blocks = frames.iter().flat_map(|frame| &frame.blocks).map(|(_, count)| count);
        Ok(FileDump {
            ino: file.ino.to_string(),
            size: file.kept.size,
            floor: file.kept.floor,
            mtime: file.kept.mtime,
            data: blocks.sum::<u64>() * BLOCK,
            packed: frames.iter().map(|frame| u64::from(frame.bytes)).sum(),
            frames,
        })
    });
    Ok(PackDump {
        version: VERSION,
        bytes,
        files: files.collect::<Result<_>>()?,
    })
}

fn frames<S: Source>(pack: &Pack<S>, file: &super::FileEntry) -> Result<Vec<FrameDump>> {
    let mut frames = Vec::new();
    pack.each_chunk(file.ino, |number, chunk| {
        let blocks: Vec<(u64, u32)> = chunk.blocks().collect();
        for (frame, blocks) in chunk.frames().iter().zip(blocks.chunks(FRAME_BLOCKS)) {
            let bytes = pack.frame(*frame, blocks.len())?;
            for ((block, sum), bytes) in blocks.iter().zip(bytes.chunks(BLOCK as usize)) {
                if sums::difference(Some(*sum), bytes).is_some() {
                    let block = number * CHUNK_BLOCKS + block;
                    let what = format!("block {block} of the file {} is not what was packed", file.ino);
                    return Err(Error::Damaged { what });
                }
            }
            let runs = blocks.chunk_by(|(a, _), (b, _)| a + 1 == *b);
            frames.push(FrameDump {
                offset: frame.offset,
                bytes: frame.len,
                blocks: runs
                    .map(|run| (number * CHUNK_BLOCKS + run[0].0, run.len() as u64))
                    .collect(),
            });
        }
        Ok(())
    })?;
    Ok(frames)
}
