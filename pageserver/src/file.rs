//! A regular file of a view, while somebody uses it: its size, its parts, and the map that says which part answers
//! for which block.
//!
//! ```text
//!   parts   0: layer 12   ████████████████              oldest
//!           1: layer 31      ▒▒   ▒          |floor
//!           2: layer 40    ░                            the head's, when the file was written in it
//!   map        0 2 0 1 1 0 1 0 0 0 ...  HOLE HOLE
//! ```
//!
//! A file with one part needs no map: what that part lacks reads as zeros there already. For more parts the map is
//! asked of the filesystem once and kept current from then on. Reads and in-place overwrites share the content's lock;
//! whatever changes size or parts takes it alone.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::block_map::{BlockMap, HOLE, PARTS_MAX};
use crate::disk::Wait;
use crate::layer::Backing;
use crate::namespace::Inode;
use crate::sums::CHUNK_BLOCKS;
use crate::types::{BLOCK, Ino, LayerId, Seek, Time};

/// Parts of a file before it is looked which of them nobody sees any more.
pub const UNSEEN_EVERY: usize = 64;

pub const TOO_MANY_PARTS: &str = "the file has blocks in too many layers";

pub struct File {
    pub ino: Ino,
    content: RwLock<Content>,
    times: Mutex<FileTimes>,
    /// Used since the table of files last looked for one to drop.
    pub recent: AtomicBool,
    /// Differs from what the namespace says, and the timeline knows.
    pub touched: AtomicBool,
}

/// Times that writes move.
#[derive(Clone, Copy)]
pub struct FileTimes {
    pub mtime: Time,
    pub ctime: Time,
}

#[derive(Clone)]
pub struct Part {
    pub backing: Arc<Backing>,
    pub floor: u64,
}

pub struct Content {
    pub size: u64,
    pub parts: Vec<Part>,
    pub map: Option<BlockMap>,
    /// The floor that a restart would find for the head's part, where that is known; else more than any.
    pub saved_floor: u64,
}

impl File {
    /// The file that an inode describes; `backing` gives the backing file of each part.
    pub fn new(ino: Ino, inode: &Inode, backing: impl Fn(LayerId) -> Arc<Backing>) -> File {
        let parts = inode.parts.iter().map(|part| Part {
            backing: backing(part.layer),
            floor: part.floor,
        });
        let parts: Vec<Part> = parts.collect();
        File {
            ino,
            content: RwLock::new(Content {
                size: inode.size,
                parts,
                map: None,
                saved_floor: u64::MAX,
            }),
            times: Mutex::new(FileTimes {
                mtime: inode.mtime,
                ctime: inode.ctime,
            }),
            recent: AtomicBool::new(true),
            touched: AtomicBool::new(false),
        }
    }

    /// The content with its map in place, for reads and overwrites.
    pub fn shared(&self) -> io::Result<RwLockReadGuard<'_, Content>> {
        loop {
            let content = self.peek();
            if content.is_mapped() {
                return Ok(content);
            }
            drop(content);
            drop(self.alone()?);
        }
    }

    /// The content, if its map is in place and nobody changes it.
    pub fn at_once(&self) -> Option<RwLockReadGuard<'_, Content>> {
        let content = self.content.try_read().ok()?;
        content.is_mapped().then_some(content)
    }

    /// The content with its map in place, for changes.
    pub fn alone(&self) -> io::Result<RwLockWriteGuard<'_, Content>> {
        let mut content = self.content.write().unwrap_or_else(|e| e.into_inner());
        if !content.is_mapped() {
            *content = content.mapped()?;
        }
        Ok(content)
    }

    /// The content for changes, if its map is in place and nobody uses it.
    pub fn alone_at_once(&self) -> Option<RwLockWriteGuard<'_, Content>> {
        let content = self.content.try_write().ok()?;
        content.is_mapped().then_some(content)
    }

    /// The content as it is; the map may be missing.
    pub fn peek(&self) -> RwLockReadGuard<'_, Content> {
        self.content.read().unwrap_or_else(|e| e.into_inner())
    }

    pub fn times(&self) -> MutexGuard<'_, FileTimes> {
        self.times.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Moves the times to `now`, where the caller keeps them.
    pub fn modified(&self, now: Option<Time>) {
        if let Some(now) = now {
            *self.times() = FileTimes { mtime: now, ctime: now };
        }
    }

    /// Makes the file's blocks and backing files durable; free when they are.
    pub fn sync(&self) -> io::Result<()> {
        let unsynced: Vec<Arc<Backing>> = {
            let content = self.peek();
            content.parts.iter().map(|part| part.backing.clone()).collect()
        };
        unsynced.iter().try_for_each(|backing| backing.sync())
    }

    /// Takes new backing files for those parts for which `backing` gives one.
    pub fn renew(&self, backing: impl Fn(LayerId) -> Option<Arc<Backing>>) {
        let is_old = |part: &Part| part.backing.is_durable() && backing(part.backing.layer()).is_some();
        if !self.peek().parts.iter().any(is_old) {
            return;
        }
        let mut content = self.content.write().unwrap_or_else(|e| e.into_inner());
        for (slot, part) in content
            .parts
            .iter_mut()
            .enumerate()
            .filter(|(_, part)| part.backing.is_durable())
        {
            if let Some(backing) = backing(part.backing.layer()) {
                if slot > 0 {
                    backing.scattered();
                }
                part.backing = backing;
            }
        }
    }

    /// Closes the backing files of sealed parts that were not used since the last call. Those of a file that somebody reads or writes just now stay.
    /// `head` is asked for the layer that is no sealed one while nobody can add another.
    pub fn close_idle(&self, head: impl FnOnce() -> LayerId) {
        let Ok(mut content) = self.content.try_write() else {
            return;
        };
        let head = head();
        let sealed = content.parts.iter_mut().filter(|part| part.backing.layer() != head);
        for part in sealed.filter(|part| part.backing.is_idle()) {
            part.backing = part.backing.closed();
        }
    }

    /// Has the part of a body answer for blocks, by chunk, that parts below it did, and lets go of those that answer for none any more.
    pub fn adopt(&self, body: LayerId, blocks: &BTreeMap<u64, Vec<u64>>) {
        let mut content = self.content.write().unwrap_or_else(|e| e.into_inner());
        content.adopt(body, blocks);
    }

    /// Whether dropping the file from memory loses nothing.
    pub fn is_clean(&self) -> bool {
        self.is_durable() && !self.touched.load(Ordering::Acquire)
    }

    /// Whether a sync of its blocks has nothing to do.
    pub fn is_durable(&self) -> bool {
        self.peek().parts.iter().all(|part| part.backing.is_durable())
    }
}

impl Content {
    fn is_mapped(&self) -> bool {
        self.parts.len() <= 1 || self.map.is_some()
    }

    /// The same with its map: asks which blocks each part but the oldest has; the oldest answers for all the rest below the floors. A load
    /// finds a part in each layer that the file was written in, which can be more than a map can tell apart; so those that nobody
    /// sees go on the way.
    fn mapped(&mut self) -> io::Result<Content> {
        let mut mapped = Content {
            size: self.size,
            parts: Vec::new(),
            map: Some(BlockMap::filled(self.size, 0)),
            saved_floor: self.saved_floor,
        };
        let mut unseen_at = UNSEEN_EVERY * UNSEEN_EVERY;
        for nth in 0..self.parts.len() {
            if mapped.parts.len() >= unseen_at {
                mapped.drop_unseen();
                unseen_at = (2 * mapped.parts.len()).clamp(unseen_at, PARTS_MAX);
            }
            mapped.put_on_top(self.parts[nth].clone())?;
            // Only the newest may be a head's.
            if let (Some(part), true) = (mapped.parts.last_mut(), nth + 1 < self.parts.len())
                && part.backing.is_spare()
            {
                part.backing = part.backing.closed();
                self.parts[nth].backing = part.backing.clone();
            }
        }
        if mapped.parts.len() > UNSEEN_EVERY {
            mapped.drop_unseen();
        }
        Ok(mapped)
    }

    fn put_on_top(&mut self, part: Part) -> io::Result<()> {
        let slot = self.parts.len();
        if slot >= PARTS_MAX {
            return Err(io::Error::other(TOO_MANY_PARTS));
        }
        if let Some(map) = self.map.as_ref().filter(|_| slot > 0) {
            part.backing.scattered();
            map.set(part.floor.div_ceil(BLOCK)..u64::MAX, HOLE);
            part.backing.each_range(|blocks| map.set(blocks, slot as u16))?;
        }
        self.parts.push(part);
        Ok(())
    }

    fn adopt(&mut self, body: LayerId, blocks: &BTreeMap<u64, Vec<u64>>) {
        let slot = self.parts.iter().position(|part| part.backing.layer() == body);
        let (Some(slot), Some(map)) = (slot, &self.map) else {
            return;
        };
        for block in blocks
            .iter()
            .flat_map(|(number, blocks)| blocks.iter().map(move |block| number * CHUNK_BLOCKS + block))
        {
            // A hole has a greater number than any part.
            if usize::from(map.slot(block)) < slot {
                map.set(block..block + 1, slot as u16);
            }
        }
        self.drop_unseen();
    }

    /// Drops parts that answer for no block, but for the oldest and the newest. What they hide of older ones the next one hides.
    pub fn drop_unseen(&mut self) {
        let Some(map) = &self.map else {
            return;
        };
        let mut seen = vec![false; self.parts.len()];
        map.each_slot(|slot| seen[usize::from(slot)] = true);
        let last = self.parts.len() - 1;
        let (mut slots, mut kept, mut floor) = (vec![HOLE; self.parts.len()], Vec::new(), u64::MAX);
        for (nth, mut part) in std::mem::take(&mut self.parts).into_iter().enumerate() {
            floor = floor.min(part.floor);
            if seen[nth] || nth == 0 || nth == last || !part.backing.is_durable() {
                part.floor = floor;
                floor = u64::MAX;
                slots[nth] = kept.len() as u16;
                kept.push(part);
            }
        }
        self.parts = kept;
        map.renumber(&slots);
    }

    /// The part that answers for a block, if any does.
    pub fn slot(&self, block: u64) -> u16 {
        match (&self.map, self.parts.is_empty()) {
            (Some(map), _) => map.slot(block),
            (None, false) => 0,
            (None, true) => HOLE,
        }
    }

    /// Cuts a range of bytes into runs that one part answers.
    fn runs(&self, bytes: Range<u64>) -> Vec<(u16, Range<u64>)> {
        match &self.map {
            Some(map) => map.runs(bytes).collect(),
            None => vec![(self.slot(0), bytes)],
        }
    }

    /// Fills `buf` from `offset`, as far as the file goes; returns the bytes read.
    pub fn read(&self, offset: u64, buf: &mut [u8], wait: Wait) -> io::Result<usize> {
        let len = self.size.saturating_sub(offset).min(buf.len() as u64);
        let buf = &mut buf[..len as usize];
        match (&self.map, self.parts.first()) {
            (None, Some(part)) => part.backing.read(buf, offset, wait)?,
            (None, None) => buf.fill(0),
            (Some(map), _) => self.read_runs(map, offset, buf, wait)?,
        }
        Ok(buf.len())
    }

    fn read_runs(&self, map: &BlockMap, offset: u64, buf: &mut [u8], wait: Wait) -> io::Result<()> {
        let range = offset..offset + buf.len() as u64;
        let mut runs = map.runs(range.clone()).peekable();
        let first = runs.next();
        if wait == Wait::Yes && runs.peek().is_some() {
            self.read_ahead(map, range);
        }
        for (slot, run) in first.into_iter().chain(runs) {
            let target = &mut buf[(run.start - offset) as usize..(run.end - offset) as usize];
            match slot {
                HOLE => target.fill(0),
                slot => self.parts[slot as usize].backing.read(target, run.start, wait)?,
            }
        }
        Ok(())
    }

    /// Starts all reads of a scattered range at once, so that the disk works on them together. That is advice: what is wrong the reads tell.
    pub fn read_ahead(&self, map: &BlockMap, range: Range<u64>) {
        for (slot, run) in map.runs(range).filter(|(slot, _)| *slot != HOLE) {
            let _advice = self.parts[slot as usize].backing.will_need(run);
        }
    }

    /// The next data or hole at or after `offset`, which lies below the size; `None` when there is no data up to the end.
    pub fn seek(&self, offset: u64, whence: Seek) -> io::Result<Option<u64>> {
        for (slot, run) in self.runs(offset..self.size) {
            let found = match (slot, whence) {
                (HOLE, Seek::Hole) => Some(run.start),
                (HOLE, Seek::Data) => None,
                (0, _) => self.seek_oldest(run, whence)?,
                (_, Seek::Data) => Some(run.start),
                (_, Seek::Hole) => None,
            };
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok((whence == Seek::Hole).then_some(self.size))
    }

    /// The oldest part's holes are the file's.
    fn seek_oldest(&self, run: Range<u64>, whence: Seek) -> io::Result<Option<u64>> {
        let found = self.parts[0].backing.seek(run.start, whence)?;
        Ok(match (found, whence) {
            (Some(at), _) if at < run.end => Some(at),
            (None, Seek::Hole) => Some(run.start),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests;
