//! How a file's content changes in the head: overwrite, growth, cut, zeros.
//!
//! The rules, each of them there for a power cut at any point:
//! * the head's backing file always has the file's size, and gets it before any write past the end;
//! * a block that is only partly written is copied up from the view first, which changes nothing that can be read;
//! * before a file grows past a place where it was cut, its last block is copied up and durable, and the floor is kept
//!   beside the backing file: or else the older, longer content would show through;
//! * WAL has the blocks that follow copied up with it, which changes nothing that can be read either: then the commits to come overwrite blocks
//!   that are there, and their syncs have nothing to tell the filesystem but bytes;
//! * zeros over inherited blocks are written, since a hole of ours falls through.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use crate::block_map::{BlockMap, HOLE, PARTS_MAX};
use crate::disk::Wait;
use crate::file::{Content, Part, TOO_MANY_PARTS, UNSEEN_EVERY};
use crate::layer::{Backing, Layer};
use crate::types::{BLOCK, Ino, LayerId, Seek};

/// So many blocks are copied up ahead at most: one write in 32 of a page has to wait for them.
const AHEAD: u64 = 64;

static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

/// The file being changed and the head that takes the change.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    pub ino: Ino,
    pub layer: &'a Arc<Layer>,
}

impl Content {
    /// The head's backing file, if the file was changed in the head already.
    pub fn head(&self, layer: LayerId) -> Option<&Arc<Backing>> {
        self.parts
            .last()
            .map(|part| &part.backing)
            .filter(|backing| backing.layer() == layer)
    }

    fn head_slot(&self) -> u16 {
        (self.parts.len() - 1) as u16
    }

    /// Whether a write of these bytes needs nothing but the bytes written: see [`Content::overwrite`].
    pub fn can_overwrite(&self, layer: LayerId, bytes: Range<u64>) -> bool {
        self.head(layer).is_some() && bytes.end <= self.size && self.edges(bytes).into_iter().flatten().next().is_none()
    }

    /// Whether the head has all blocks of a range that it can overwrite, so that a write there takes no room.
    pub fn is_in_place(&self, bytes: Range<u64>) -> io::Result<bool> {
        match (&self.map, self.parts.last()) {
            (Some(map), _) => Ok(map.runs(bytes).all(|(slot, _)| slot == self.head_slot())),
            (None, Some(head)) => {
                let hole = head
                    .backing
                    .disk()
                    .seek(&*head.backing.file()?, bytes.start, Seek::Hole)?;
                Ok(hole.is_some_and(|hole| hole >= bytes.end))
            }
            (None, None) => Ok(false),
        }
    }

    /// Writes into the head's backing file, below the file's end. Blocks the head lacked are the head's from then on. What failed is to be taken
    /// back: see [`Content::take_back`].
    pub fn overwrite(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let Some(head) = self.parts.last() else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let (written, result) = head.backing.write_at(data, offset);
        if let Some(map) = &self.map {
            let end = offset + written as u64;
            let last = if result.is_ok() {
                end.div_ceil(BLOCK)
            } else {
                end / BLOCK
            };
            map.set(offset / BLOCK..last, self.head_slot());
        }
        result
    }

    /// Takes from the head's backing file what a write that failed has left in blocks which are another part's for all that: where a page cache finds no
    /// room for all of a page it fills the rest of it with zeros, and after a restart they would be the head's. Returns the write's error, or EIO
    /// where they stay.
    pub fn take_back(&mut self, error: io::Error, bytes: Range<u64>) -> io::Error {
        match self.clear_others(bytes) {
            Ok(()) => error,
            Err(why) => {
                tracing::error!(%error, %why, "what a write that failed has left can't be taken back");
                io::Error::from_raw_os_error(libc::EIO)
            }
        }
    }

    fn clear_others(&self, bytes: Range<u64>) -> io::Result<()> {
        let (Some(map), Some(head)) = (&self.map, self.parts.last()) else {
            return Ok(());
        };
        let blocks = bytes.start / BLOCK * BLOCK..bytes.end.next_multiple_of(BLOCK);
        let mut others = map.runs(blocks).filter(|(slot, _)| *slot != self.head_slot());
        others.try_for_each(|(_, run)| head.backing.clear(run))
    }

    fn overwrite_alone(&mut self, data: &[u8], offset: u64) -> io::Result<()> {
        let written = self.overwrite(data, offset);
        written.map_err(|error| self.take_back(error, offset..offset + data.len() as u64))
    }

    /// The first and the last block of a range, where they are written in part and an older part answers for them.
    fn edges(&self, bytes: Range<u64>) -> [Option<u64>; 2] {
        let (first, last) = (bytes.start / BLOCK, bytes.end.saturating_sub(1) / BLOCK);
        let starts_inside = !bytes.start.is_multiple_of(BLOCK);
        let ends_inside = !bytes.end.is_multiple_of(BLOCK) && bytes.end < self.size;
        [
            (starts_inside || (first == last && ends_inside)).then_some(first),
            (first != last && ends_inside).then_some(last),
        ]
        .map(|edge| edge.filter(|block| self.is_inherited(*block)))
    }

    fn is_inherited(&self, block: u64) -> bool {
        self.map.is_some() && !matches!(self.slot(block), HOLE) && self.slot(block) != self.head_slot()
    }

    /// Writes anywhere. When it fails the size is the old one.
    pub fn write(&mut self, target: Target, data: &[u8], offset: u64) -> io::Result<()> {
        let end = offset + data.len() as u64;
        let old_size = self.size;
        self.begin(target, old_size)?;
        if end > old_size {
            self.grow(end)?;
        }
        let result = self
            .copy_up_edges(offset..end)
            .and_then(|()| self.overwrite_alone(data, offset));
        if result.is_err() && end > old_size {
            self.cut(old_size)?;
        }
        result
    }

    /// Whether the head has a part of the file, and another part has the block that follows `end`.
    pub fn leaves_head_at(&self, layer: LayerId, end: u64) -> bool {
        self.head(layer).is_some() && end < self.size && self.is_inherited(end.div_ceil(BLOCK))
    }

    /// The bytes from `end` on that a file which is written from front to back is going to need in the head: as much as that has right before them.
    pub fn ahead(&self, end: u64) -> Range<u64> {
        let first = end.div_ceil(BLOCK);
        let written = (1..=AHEAD.min(first)).take_while(|back| self.slot(first - back) == self.head_slot());
        let wanted = (first..self.size / BLOCK).take(written.count());
        let missing = wanted.take_while(|block| self.is_inherited(*block)).count() as u64;
        first * BLOCK..(first + missing) * BLOCK
    }

    /// Copies inherited bytes into the head. Readers can't tell. What is not in memory is asked for, for the next time; what can't be read is left to who
    /// asks for it.
    pub fn copy_up_ahead(&mut self, ahead: Range<u64>) -> io::Result<()> {
        let mut bytes = vec![0; (ahead.end - ahead.start) as usize];
        match (self.read(ahead.start, &mut bytes, Wait::No), &self.map) {
            (Ok(read), _) => return self.overwrite_alone(&bytes[..read], ahead.start),
            (Err(_), Some(map)) => self.read_ahead(map, ahead),
            (Err(_), None) => {}
        }
        Ok(())
    }

    fn copy_up_edges(&mut self, bytes: Range<u64>) -> io::Result<()> {
        let mut edges = self.edges(bytes).into_iter().flatten();
        edges.try_for_each(|block| self.copy_up(block))
    }

    /// Sets the size, as ftruncate does.
    pub fn set_size(&mut self, target: Target, size: u64) -> io::Result<()> {
        if self.head(target.layer.id).is_none() {
            self.begin(target, size.min(self.size))?;
        }
        match size {
            size if size > self.size => self.grow(size),
            size if size < self.size => self.cut(size),
            _ => Ok(()),
        }
    }

    /// Makes the range, clipped to the size, read as zeros.
    pub fn zero(&mut self, target: Target, bytes: Range<u64>) -> io::Result<()> {
        let bytes = bytes.start..bytes.end.min(self.size);
        if bytes.is_empty() {
            return Ok(());
        }
        self.begin(target, self.size)?;
        if self.parts.len() == 1 && self.punch(bytes.clone())? {
            return Ok(());
        }
        let runs: Vec<_> = match &self.map {
            Some(map) => map.runs(bytes).filter(|(slot, _)| *slot != HOLE).collect(),
            None => vec![(0, bytes)],
        };
        for (_, run) in runs {
            for offset in run.clone().step_by(ZEROS.len()) {
                let len = (run.end - offset).min(ZEROS.len() as u64);
                self.write(target, &ZEROS[..len as usize], offset)?;
            }
        }
        Ok(())
    }

    /// Punches the head's backing file, below which there is nothing; false when the filesystem can't.
    fn punch(&self, bytes: Range<u64>) -> io::Result<bool> {
        let backing = &self.parts[0].backing;
        let result = backing
            .disk()
            .punch(&*backing.file()?, bytes.start, bytes.end - bytes.start);
        backing.changed();
        match result {
            Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(false),
            other => other.map(|()| true),
        }
    }

    /// Gives the file a part in the head, of the size that the file is going to have.
    fn begin(&mut self, target: Target, size: u64) -> io::Result<()> {
        if self.head(target.layer.id).is_some() {
            return Ok(());
        }
        if self.parts.len().is_multiple_of(UNSEEN_EVERY) {
            self.drop_unseen();
        }
        if self.parts.len() >= PARTS_MAX {
            return Err(io::Error::other(TOO_MANY_PARTS));
        }
        let backing = match self.parts.len() {
            0 => target.layer.create_backing(target.ino)?,
            _ => target.layer.create_sized_backing(target.ino, size)?,
        };
        if self.parts.len() == 1 {
            self.map = Some(BlockMap::filled(self.size, 0));
        }
        self.saved_floor = self.size;
        self.parts.push(Part {
            backing,
            floor: self.size,
        });
        if size < self.size {
            self.was_cut(size);
        }
        Ok(())
    }

    /// Notes that the backing file is shorter now.
    fn was_cut(&mut self, size: u64) {
        self.size = size;
        if let Some(head) = self.parts.last_mut() {
            head.floor = head.floor.min(size);
        }
        if size == 0 {
            self.parts.drain(..self.parts.len() - 1);
            self.map = None;
        }
        if let Some(map) = &mut self.map {
            map.resize(size);
        }
    }

    fn cut(&mut self, size: u64) -> io::Result<()> {
        let Some(head) = self.parts.last() else {
            return Ok(());
        };
        head.backing.disk().set_len(&*head.backing.file()?, size)?;
        head.backing.changed();
        self.was_cut(size);
        Ok(())
    }

    fn grow(&mut self, size: u64) -> io::Result<()> {
        self.secure_tail()?;
        let Some(head) = self.parts.last() else {
            return Ok(());
        };
        let (backing, floor) = (&head.backing, head.floor);
        let (disk, file) = (backing.disk(), backing.file()?);
        if floor < self.saved_floor {
            disk.set_floor(&file, floor)?;
            self.saved_floor = floor;
        }
        disk.set_len(&file, size)?;
        backing.changed();
        self.size = size;
        if let Some(map) = &mut self.map {
            map.resize(size);
        }
        Ok(())
    }

    /// Makes sure that a last block which ends early is the head's before more follows it, and durably so where what
    /// lies below has more than the file may show.
    fn secure_tail(&mut self) -> io::Result<()> {
        let block = self.size / BLOCK;
        if self.size.is_multiple_of(BLOCK) || !self.is_inherited(block) {
            return Ok(());
        }
        let older = &self.parts[self.slot(block) as usize].backing;
        let hides_more = older.size()? > self.size;
        self.copy_up(block)?;
        match self.parts.last() {
            Some(head) if hides_more => head.backing.sync(),
            _ => Ok(()),
        }
    }

    /// Copies an inherited block into the head. Readers can't tell.
    fn copy_up(&mut self, block: u64) -> io::Result<()> {
        let mut bytes = [0; BLOCK as usize];
        let read = self.read(block * BLOCK, &mut bytes, Wait::Yes)?;
        self.overwrite_alone(&bytes[..read], block * BLOCK)
    }
}
