//! Changes of names and attributes: each is one batch of the database, then applied to the namespace in memory.

use std::ffi::OsStr;
use std::sync::atomic::Ordering;

use rocksdb::WriteBatch;

use super::Timeline;
use super::blocks::checked_end;
use crate::answers;
use crate::error::{FsResult, Result};
use crate::file::FileTimes;
use crate::namespace::ops::{self, Outcome, Place};
use crate::namespace::{Namespace, codec};
use crate::types::*;

/// What a change of names was about, as its result tells.
trait Subject {
    fn ino(&self) -> Ino;
}

impl Subject for Attr {
    fn ino(&self) -> Ino {
        self.ino
    }
}

/// Nothing needs to be told of what was replaced.
impl Subject for Option<Attr> {
    fn ino(&self) -> Ino {
        Ino(0)
    }
}

impl Subject for () {
    fn ino(&self) -> Ino {
        Ino(0)
    }
}

impl Timeline {
    /// Makes a change of the namespace: worked out, written to the database, applied.
    fn mutate<T: Subject>(
        &self,
        request: &Request,
        op: impl FnOnce(&Namespace) -> FsResult<Outcome<T>>,
    ) -> FsResult<T> {
        let head = self.head();
        let mut ns = self.view.ns_mut();
        let Outcome { changes, result } = op(&ns)?;
        if changes.is_empty() {
            return Ok(result);
        }
        let mut batch = WriteBatch::default();
        codec::put_changes(&self.shared.db, &mut batch, head.layer.id, &head.below, &changes);
        answers::put(&self.shared.db, &mut batch, self.id, request, result.ino());
        self.shared.db.write(batch).map_err(|e| self.db_failed(&e))?;
        answers::kept(request);
        changes.into_iter().for_each(|change| ns.apply(change));
        head.changed.store(true, Ordering::Release);
        Ok(result)
    }

    /// What a request that comes again was about, when its change has been made: it must not be made twice.
    pub fn answer(&self, request: &Request) -> FsResult<Option<Ino>> {
        answers::get(&self.shared.db, self.id, request).map_err(|e| self.db_failed(&e))
    }

    /// Forgets the results of requests: those of the mount that begins or ends can't come again.
    pub fn forget_answers(&self) -> Result<()> {
        let mut batch = WriteBatch::default();
        match answers::delete_all(&self.shared.db, &mut batch, self.id)? {
            true => self.shared.db.write(batch),
            false => Ok(()),
        }
    }

    pub fn create<'r>(
        &self,
        parent: Ino,
        name: &OsStr,
        node: NewNode,
        request: impl Into<Request<'r>>,
    ) -> FsResult<Attr> {
        let request = request.into();
        self.take_room_for_name(parent)?;
        let ino = self.shared.new_ino().map_err(|e| self.db_failed(&e))?;
        self.mutate(&request, |ns| {
            ops::create(ns, Place { parent, name }, ino, node, request.now)
        })
    }

    pub fn link<'r>(&self, ino: Ino, parent: Ino, name: &OsStr, request: impl Into<Request<'r>>) -> FsResult<Attr> {
        let request = request.into();
        self.take_room_for_name(parent)?;
        let attr = self.mutate(&request, |ns| ops::link(ns, ino, Place { parent, name }, request.now))?;
        Ok(self.view.current(attr))
    }

    /// Only names that come ask for room. Those that go or move pass on a full disk too, out of the reserve.
    fn take_room_for_name(&self, parent: Ino) -> FsResult<()> {
        let taken = self.shared.room.take(BLOCK);
        taken.map_err(|e| self.failed("make a name in", parent, &e))
    }

    /// Returns the inode that lost a name; without any it lives on until [`Timeline::forget`].
    pub fn unlink<'r>(&self, parent: Ino, name: &OsStr, request: impl Into<Request<'r>>) -> FsResult<Attr> {
        let request = request.into();
        self.mutate(&request, |ns| ops::unlink(ns, Place { parent, name }, request.now))
    }

    /// Returns the directory that is gone.
    pub fn rmdir<'r>(&self, parent: Ino, name: &OsStr, request: impl Into<Request<'r>>) -> FsResult<Attr> {
        let request = request.into();
        self.mutate(&request, |ns| ops::rmdir(ns, Place { parent, name }, request.now))
    }

    /// Returns the inode that was replaced, if any.
    pub fn rename<'r>(
        &self,
        parent: Ino,
        name: &OsStr,
        new_parent: Ino,
        new_name: &OsStr,
        how: Rename,
        request: impl Into<Request<'r>>,
    ) -> FsResult<Option<Attr>> {
        let request = request.into();
        let to = Place {
            parent: new_parent,
            name: new_name,
        };
        self.mutate(&request, |ns| {
            ops::rename(ns, Place { parent, name }, to, how, request.now)
        })
    }

    pub fn setattr(&self, ino: Ino, set: SetAttr, now: Time) -> FsResult<Attr> {
        if let Some(size) = set.size {
            checked_end(size, 0)?;
            self.resize(ino, |_| size, now)?;
        }
        let in_record = set.mode.is_some() || set.uid.is_some() || set.gid.is_some() || set.atime.is_some();
        let in_blocks = match set.mtime {
            Some(mtime) => self.set_mtime_of_blocks(ino, mtime, now)?,
            None => true,
        };
        if in_record || !in_blocks {
            self.mutate(&now.into(), |ns| ops::set_attr(ns, ino, &set, now))?;
        }
        self.view.getattr(ino)
    }

    /// Sets the time of modification of a file in use; true when it has blocks in the head, whose backing file keeps it.
    fn set_mtime_of_blocks(&self, ino: Ino, mtime: Time, now: Time) -> FsResult<bool> {
        if self.view.getattr(ino)?.kind != Kind::File {
            return Ok(false);
        }
        let head = self.head();
        let file = self.view.file(ino)?;
        let content = file.peek();
        let backing = content.head(head.layer.id);
        if let Some(backing) = backing {
            let set = backing.file().and_then(|f| backing.disk().set_mtime(&f, mtime));
            set.map_err(|e| self.failed("set the time of", ino, &e))?;
        }
        *file.times() = FileTimes { mtime, ctime: now };
        head.touch(&file);
        Ok(backing.is_some())
    }
}
