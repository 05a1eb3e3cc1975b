//! A backing file: the blocks that one file has in one layer.

use std::io;
use std::ops::{Deref, Range};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use super::{Layer, Reading};
use crate::disk::{Disk, DiskFile, Wait};
use crate::sync_point::SyncPoint;
use crate::types::{BLOCK, Ino, LayerId, Seek};

/// A backing file, opened when it is first needed.
pub struct Backing {
    layer: Arc<Layer>,
    ino: Ino,
    writable: bool,
    file: OnceLock<DiskFile>,
    is_scattered: AtomicBool,
    /// Used since it was last looked for one to close.
    recent: AtomicBool,
    pub(super) data: SyncPoint,
    /// How many changes of names there were in the layer when it had its own.
    named: u64,
    /// Known to the layer as one that is to be synced.
    pub(super) listed: AtomicBool,
}

/// A backing file that is open.
pub enum Opened<'a> {
    Kept(&'a DiskFile),
    /// Closed after this one use, since many are open.
    Once(DiskFile),
}

impl Deref for Opened<'_> {
    type Target = DiskFile;

    fn deref(&self) -> &DiskFile {
        match self {
            Opened::Kept(file) => file,
            Opened::Once(file) => file,
        }
    }
}

impl Backing {
    /// Opened when it is first needed.
    pub(super) fn new(layer: Arc<Layer>, ino: Ino, writable: bool) -> Backing {
        Backing {
            layer,
            ino,
            writable,
            file: OnceLock::new(),
            is_scattered: AtomicBool::new(false),
            recent: AtomicBool::new(false),
            data: SyncPoint::default(),
            named: 0,
            listed: AtomicBool::new(false),
        }
    }

    /// Made and opened just now; its name is among so many changes of names.
    pub(super) fn made(layer: Arc<Layer>, ino: Ino, file: DiskFile, named: u64) -> Backing {
        Backing {
            file: OnceLock::from(file),
            named,
            ..Backing::new(layer, ino, true)
        }
    }

    pub fn layer(&self) -> LayerId {
        self.layer.id
    }

    pub fn disk(&self) -> &Disk {
        &self.layer.disk
    }

    /// The file, for one use. It is opened if it is not, and stays open then if there is room for that.
    pub fn file(&self) -> io::Result<Opened<'_>> {
        if !self.recent.load(Ordering::Relaxed) {
            self.recent.store(true, Ordering::Relaxed);
        }
        if let Some(file) = self.file.get() {
            return Ok(Opened::Kept(file));
        }
        // What is written to stays: it hears of a write that fails later.
        let stays = self.writable || self.disk().may_keep_open();
        let file = self.layer.open_now(self.ino, self.writable)?;
        let file = match stays {
            true => Opened::Kept(self.file.get_or_init(|| file)),
            false => Opened::Once(file),
        };
        if self.is_scattered.load(Ordering::Acquire) {
            file.expect_no_order();
        }
        Ok(file)
    }

    /// As [`Backing::file`]; to open it can mean to wait for the disk.
    fn file_at(&self, wait: Wait) -> io::Result<Opened<'_>> {
        match (wait, self.file.get()) {
            (Wait::No, None) => Err(io::ErrorKind::WouldBlock.into()),
            _ => self.file(),
        }
    }

    /// Whether it is open, was not used since the last call, and loses nothing when it is closed.
    pub fn is_idle(&self) -> bool {
        self.file.get().is_some() && !self.recent.swap(false, Ordering::Relaxed) && self.is_durable()
    }

    /// Whether it is open, there is too much open, and it loses nothing when it is closed.
    pub fn is_spare(&self) -> bool {
        self.file.get().is_some() && self.disk().is_crowded() && self.is_durable()
    }

    /// The same file of a sealed layer, to be opened when it is next needed.
    pub fn closed(&self) -> Arc<Backing> {
        let backing = self.layer.backing(self.ino, false);
        backing
            .is_scattered
            .store(self.is_scattered.load(Ordering::Acquire), Ordering::Release);
        backing
    }

    /// Tells that the file has blocks here and there, over another one's. Where the kernel reads ahead in the mount's file this one is asked
    /// for what it has; what the kernel read ahead in it by itself would be holes.
    pub fn scattered(&self) {
        self.is_scattered.store(true, Ordering::Release);
        if let Some(file) = self.file.get() {
            file.expect_no_order();
        }
    }

    /// The size that the file has in the layer.
    pub fn size(&self) -> io::Result<u64> {
        let sealed = &self.layer.sealed;
        loop {
            let seen = sealed.changes();
            let size = match self.layer.reading() {
                Reading::Packed => sealed.packed_size(self.layer.id, self.ino),
                _ => self
                    .file()
                    .and_then(|file| self.disk().stat(&file))
                    .map(|stat| stat.size),
            };
            match size {
                Err(_) if sealed.changes() != seen => {}
                size => return size,
            }
        }
    }

    /// Notes that bytes, size or floor were changed.
    pub fn changed(self: &Arc<Backing>) {
        self.data.changed();
        self.list();
    }

    /// Has the layer sync this file with the next of its syncs.
    pub(super) fn list(self: &Arc<Backing>) {
        if !self.listed.swap(true, Ordering::AcqRel) {
            self.layer.unsynced().insert(self.ino, self.clone());
        }
    }

    /// Writes, and notes it; returns how much was written, with the error that stopped it.
    pub fn write_at(self: &Arc<Backing>, data: &[u8], offset: u64) -> (usize, io::Result<()>) {
        let file = match self.file() {
            Ok(file) => file,
            Err(e) => return (0, Err(e)),
        };
        let outcome = self.disk().write_at(&file, data, offset);
        self.changed();
        outcome
    }

    /// Makes holes of what there is in a range of whole blocks.
    pub fn clear(self: &Arc<Backing>, bytes: Range<u64>) -> io::Result<()> {
        // One that is not open was never written to.
        let (disk, Some(file)) = (self.disk(), self.file.get()) else {
            return Ok(());
        };
        let data = disk.seek(file, bytes.start, Seek::Data)?;
        if data.is_none_or(|data| data >= bytes.end) {
            return Ok(());
        }
        disk.punch(file, bytes.start, bytes.end - bytes.start)?;
        self.changed();
        Ok(())
    }

    /// Fills `buf` with what the layer has from `offset` on: zeros where it has nothing, and an error where that is not what was
    /// sealed.
    pub fn read(&self, buf: &mut [u8], offset: u64, wait: Wait) -> io::Result<()> {
        if self.layer.reading() == Reading::Unverified {
            return self.read_unverified(buf, offset, wait);
        }
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let (inside, left) = (at % BLOCK, buf.len() - done);
            if inside == 0 && left as u64 >= BLOCK {
                let whole = left - left % BLOCK as usize;
                self.read_blocks(&mut buf[done..done + whole], at, wait)?;
                done += whole;
            } else {
                let mut block = [0; BLOCK as usize];
                self.read_blocks(&mut block, at - inside, wait)?;
                let wanted = &block[inside as usize..];
                let len = wanted.len().min(left);
                buf[done..done + len].copy_from_slice(&wanted[..len]);
                done += len;
            }
        }
        Ok(())
    }

    /// Reads whole blocks of a layer that has checksums. What has failed while the layer got another form is tried again.
    fn read_blocks(&self, buf: &mut [u8], offset: u64, wait: Wait) -> io::Result<()> {
        let sealed = &self.layer.sealed;
        loop {
            let seen = sealed.changes();
            let read = match self.layer.reading() {
                Reading::Packed => sealed.read_packed(self.layer.id, self.ino, offset, buf, wait),
                _ => self.read_plain(buf, offset, wait).map(Some),
            };
            match read {
                Ok(Some(())) => return Ok(()),
                Err(e) if sealed.changes() == seen => return Err(e),
                _ => {}
            }
        }
    }

    fn read_plain(&self, buf: &mut [u8], offset: u64, wait: Wait) -> io::Result<()> {
        match self.read_and_verify(&*self.file_at(wait)?, buf, offset, wait) {
            // One that was open before its layer was merged may have more behind the file's end than the one that has its blocks now.
            Err(e) if e.kind() == io::ErrorKind::InvalidData && self.layer.sealed.has_merged() => {
                if wait == Wait::No {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                self.read_and_verify(&self.layer.open_now(self.ino, false)?, buf, offset, wait)
            }
            read => read,
        }
    }

    fn read_and_verify(&self, file: &DiskFile, buf: &mut [u8], offset: u64, wait: Wait) -> io::Result<()> {
        let read = self.read_file(file, buf, offset, wait)?;
        buf[read..].fill(0);
        self.layer.sealed.verify(self.layer.id, self.ino, offset, buf)
    }

    fn read_file(&self, file: &DiskFile, buf: &mut [u8], offset: u64, wait: Wait) -> io::Result<usize> {
        match wait {
            Wait::Yes => self.disk().read_at(file, buf, offset),
            Wait::No => self.disk().read_cached(file, buf, offset),
        }
    }

    /// Only the last block may end early, and reads as zeros from there.
    fn read_unverified(&self, buf: &mut [u8], offset: u64, wait: Wait) -> io::Result<()> {
        let read = self.read_file(&*self.file_at(wait)?, buf, offset, wait)?;
        let end = (offset + read as u64).next_multiple_of(BLOCK);
        if read < buf.len() && end < offset + buf.len() as u64 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("layer {}: a backing file is too short", self.layer.id),
            ));
        }
        buf[read..].fill(0);
        Ok(())
    }

    /// Calls `each` with every range of blocks that the layer has of the file, in order.
    pub fn each_range(&self, each: impl FnMut(Range<u64>)) -> io::Result<()> {
        while self.layer.reading() == Reading::Unverified {
            let ranges = self.disk().data_blocks(&*self.file()?)?;
            // A layer that has checksums by now may have been merged with another, and its file have more.
            if self.layer.reading() == Reading::Unverified {
                ranges.into_iter().for_each(each);
                return Ok(());
            }
        }
        Ok(self.layer.sealed.each_range(self.layer.id, self.ino, each)?)
    }

    /// The next data or hole of the layer's at or after `offset`; `None` when there is no data up to the end.
    pub fn seek(&self, offset: u64, whence: Seek) -> io::Result<Option<u64>> {
        while self.layer.reading() == Reading::Unverified {
            let found = self.disk().seek(&*self.file()?, offset, whence)?;
            if self.layer.reading() == Reading::Unverified {
                return Ok(found);
            }
        }
        // The end of the last range that goes on from `offset`, and the first that begins there or later.
        let (mut hole, mut data) = (offset, None);
        self.each_range(|blocks| {
            let (start, end) = (blocks.start * BLOCK, blocks.end * BLOCK);
            if start <= hole && end > hole {
                hole = end;
            }
            if end > offset && data.is_none() {
                data = Some(start.max(offset));
            }
        })?;
        Ok(match whence {
            Seek::Hole => Some(hole),
            Seek::Data => data,
        })
    }

    /// Asks for a range of bytes to be read ahead, where a file has them as they are.
    pub fn will_need(&self, bytes: Range<u64>) -> io::Result<()> {
        if self.layer.reading() == Reading::Packed {
            return Ok(());
        }
        self.disk()
            .will_need(&*self.file()?, bytes.start, bytes.end - bytes.start)
    }

    /// Whether the file's bytes, size and name are known to be durable.
    pub fn is_durable(&self) -> bool {
        self.data.is_durable() && self.layer.has_durable_names_up_to(self.named)
    }

    /// Has the disk start on a range of bytes, so that a later sync waits for less. What has checksums, or is closed, is durable.
    pub fn start_sync(&self, bytes: Range<u64>) -> io::Result<()> {
        match self.file.get() {
            Some(file) if self.layer.reading() == Reading::Unverified => self.disk().start_sync(file, bytes),
            _ => Ok(()),
        }
    }

    pub(super) fn sync_data(&self) -> io::Result<()> {
        self.data.sync(|| self.disk().sync_data(&*self.file()?))
    }

    /// Makes the file's bytes, size and name durable.
    pub fn sync(&self) -> io::Result<()> {
        self.sync_data()?;
        match self.layer.has_durable_names_up_to(self.named) {
            true => Ok(()),
            false => self.layer.sync_names(),
        }
    }
}
