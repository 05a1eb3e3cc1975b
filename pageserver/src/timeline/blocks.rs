//! Changes of a file's blocks and size: they go to the head's backing file.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::errno::Errno;

use super::{Head, Timeline};
use crate::error::FsResult;
use crate::file::File;
use crate::layer::Layer;
use crate::types::*;

/// A longer write of WAL pays for its blocks itself.
const COMMIT_MAX: usize = 64 * 1024;

const COPY_CHUNK: usize = 256 * 1024;

impl Timeline {
    /// Writes all of `data`, growing the file where it must. `now` is `None` where the kernel keeps the times.
    pub fn write(&self, ino: Ino, offset: u64, data: &[u8], now: Option<Time>) -> FsResult<usize> {
        let end = checked_end(offset, data.len() as u64)?;
        let file = self.file(ino)?;
        let head = self.head();
        self.write_blocks(&head, &file, offset..end, data).map_err(|e| {
            let errno = self.failed("write", ino, &e);
            // Whoever wrote it was answered long ago, and the kernel tells of its loss once: no later sync may be taken for true.
            if now.is_none() && !matches!(errno, Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG) {
                self.poison();
            }
            errno
        })?;
        file.modified(now);
        if now.is_some() {
            head.touch(&file);
            let ahead = self.copy_up_ahead(&head, &file, end, data.len());
            ahead.map_err(|e| self.failed("write ahead", ino, &e))?;
        }
        Ok(data.len())
    }

    /// Has the head own what follows a commit's write of WAL, if that needs no waiting. Where it finds no room nothing is lost.
    fn copy_up_ahead(&self, head: &Head, file: &File, end: u64, written: usize) -> io::Result<()> {
        let is_commits = written <= COMMIT_MAX && self.shared.overwrites_in_place;
        let is_last = || {
            file.at_once()
                .is_some_and(|content| content.leaves_head_at(head.layer.id, end))
        };
        if !is_commits || !is_last() || !self.view.is_wal(file.ino) {
            return Ok(());
        }
        let Some(mut content) = file.alone_at_once() else {
            return Ok(());
        };
        let ahead = content.ahead(end);
        if ahead.is_empty() || self.shared.room.take(ahead.end - ahead.start).is_err() {
            return Ok(());
        }
        match content.copy_up_ahead(ahead) {
            Err(e) if e.raw_os_error() == Some(libc::EIO) => Err(e),
            _ => Ok(()),
        }
    }

    fn write_blocks(&self, head: &Head, file: &Arc<File>, bytes: Range<u64>, data: &[u8]) -> io::Result<()> {
        let room = self.shared.room.take(data.len() as u64);
        let content = file.shared()?;
        if content.can_overwrite(head.layer.id, bytes.clone()) {
            if let Err(full) = room
                && !content.is_in_place(bytes.clone())?
            {
                return Err(full);
            }
            let written = content.overwrite(data, bytes.start);
            drop(content);
            return written.or_else(|error| Err(file.alone()?.take_back(error, bytes)));
        }
        drop(content);
        room?;
        let mut content = file.alone()?;
        head.touch(file);
        content.write(head.target(file.ino), data, bytes.start)
    }

    /// Has the disk start on bytes that were written, without waiting for it, so that a sync or a seal that comes
    /// later waits for less.
    pub fn write_out(&self, ino: Ino, offset: u64, len: u64) -> FsResult<()> {
        let end = checked_end(offset, len)?;
        let Some(file) = self.view.files.get(ino) else {
            return Ok(());
        };
        let newest = file.peek().parts.last().map(|part| part.backing.clone());
        let started = newest.map_or(Ok(()), |backing| backing.start_sync(offset..end));
        started.map_err(|e| {
            // The kernel gives up bytes that it finds no place for, and tells nobody else.
            self.poison_after(&e);
            self.failed("write out", ino, &e)
        })
    }

    /// Gives the file the size that is `wanted` instead of the one it has.
    pub(super) fn resize(&self, ino: Ino, wanted: impl FnOnce(u64) -> u64, now: Time) -> FsResult<()> {
        let file = self.file(ino)?;
        let head = self.head();
        let resized = file.alone().and_then(|mut content| {
            let size = wanted(content.size);
            head.touch(&file);
            content.set_size(head.target(ino), size)
        });
        resized.map_err(|e| self.failed("resize", ino, &e))?;
        file.modified(Some(now));
        // The namespace may have been told of it before it had these times.
        head.touch(&file);
        Ok(())
    }

    pub fn fallocate(&self, ino: Ino, how: Fallocate, offset: u64, len: u64, now: Time) -> FsResult<()> {
        let end = checked_end(offset, len)?;
        match how {
            Fallocate::Extend | Fallocate::KeepSize => self.check_room(len)?,
            Fallocate::PunchHole | Fallocate::ZeroRange { .. } => self.zero(ino, offset..end, now)?,
        }
        let grows = matches!(how, Fallocate::Extend | Fallocate::ZeroRange { keep_size: false });
        if grows && end > self.view.getattr(ino)?.size {
            // A write beside this may have made it longer meanwhile.
            self.resize(ino, |size| size.max(end), now)?;
        }
        Ok(())
    }

    /// Nothing is set aside, for blocks that are allocated but unwritten could not be told from holes after a power cut.
    fn check_room(&self, len: u64) -> FsResult<()> {
        match self.view.space()?.available {
            available if available < len => Err(Errno::ENOSPC),
            _ => Ok(()),
        }
    }

    fn zero(&self, ino: Ino, bytes: Range<u64>, now: Time) -> FsResult<()> {
        let file = self.file(ino)?;
        let head = self.head();
        let zeroed = file.alone().and_then(|mut content| {
            head.touch(&file);
            if content.parts.len() > 1 {
                self.shared
                    .room
                    .take(content.size.min(bytes.end).saturating_sub(bytes.start))?;
            }
            content.zero(head.target(ino), bytes)
        });
        zeroed.map_err(|e| self.failed("punch", ino, &e))?;
        file.modified(Some(now));
        head.touch(&file);
        Ok(())
    }

    /// Copies bytes between files; returns how many, fewer only at the end of the source.
    pub fn copy_range(
        &self,
        from: Ino,
        from_offset: u64,
        to: Ino,
        to_offset: u64,
        len: u64,
        now: Time,
    ) -> FsResult<usize> {
        checked_end(from_offset, len)?;
        checked_end(to_offset, len)?;
        let mut buf = vec![0; COPY_CHUNK.min(len as usize)];
        let mut done = 0;
        while done < len {
            let want = buf.len().min((len - done) as usize);
            let got = self.view.read(from, from_offset + done, &mut buf[..want])?;
            if got == 0 {
                break;
            }
            self.write(to, to_offset + done, &buf[..got], Some(now))?;
            done += got as u64;
        }
        Ok(done as usize)
    }

    /// The regular file behind an inode number; makes room among the open files first.
    fn file(&self, ino: Ino) -> FsResult<Arc<File>> {
        if self.shared.disk.has_too_many_unsynced() {
            self.close_some();
        }
        self.view.file(ino)
    }

    /// Closes files that were not used for a while; those with unsynced bytes are synced for it, and snapshots go on meanwhile. Who finds somebody
    /// at it goes on.
    fn close_some(&self) {
        let Ok(_closing) = self.closing.try_lock() else {
            return;
        };
        let layer = self.fold_now();
        if !self.view.close_idle() {
            return;
        }
        if self.shared.disk.is_crowded() && !self.is_poisoned() {
            self.sync_to_close(&layer);
            if !self.view.close_idle() {
                return;
            }
        }
        self.shared.disk.has_synced_and_closed();
    }

    /// Has all that the head has open be such that it can be closed, if as many files were written in it as when it was last asked: then
    /// nobody writes there who would do so.
    pub(crate) fn make_closable(&self) {
        let Ok(_closing) = self.closing.try_lock() else {
            return;
        };
        let written = self.head().touched().len();
        if self.touched_before.swap(written, Ordering::Relaxed) != written || self.is_poisoned() {
            return;
        }
        let layer = self.fold_now();
        self.touched_before.store(0, Ordering::Relaxed);
        // What is overwritten in place is left to who does so.
        if written > 0 || layer.is_durable() {
            self.sync_to_close(&layer);
        }
    }

    fn fold_now(&self) -> Arc<Layer> {
        let head = self.head();
        self.fold(&head);
        head.layer.clone()
    }

    fn sync_to_close(&self, layer: &Layer) {
        if let Err(e) = self.sync_layer(layer) {
            self.failed("sync before closing", Ino::ROOT, &e);
            self.poison_after(&e);
        }
    }
}

/// The end of a range of bytes, where a file can reach so far.
pub(super) fn checked_end(offset: u64, len: u64) -> FsResult<u64> {
    match offset.checked_add(len) {
        Some(end) if end <= FILE_SIZE_MAX => Ok(end),
        _ => Err(Errno::EFBIG),
    }
}
