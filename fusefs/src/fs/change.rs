//! Everything that changes a mount: only a branch's own files can be changed. Snapshots are read-only (EROFS),
//! and the hidden directory only takes and destroys snapshots (EPERM for the rest).
//!
//! Device nodes do not exist in a store. Clearing setuid and setgid bits on write, truncate and chown is left to
//! the kernel, which knows the caller's capabilities and says the new mode.

use std::ffi::OsStr;

use nix::errno::Errno;
use pageserver::{Attr, Fallocate, FsResult, Ino, NewKind, NewNode, Rename, Request, SetAttr, Time, Timeline};

use super::{Entry, Fs, Opening, Tree, check_name, kept, opening};
use crate::node::Node;

const S_ISGID: u16 = 0o2000;
const MODE_BITS: u16 = 0o7777;

/// The most that one copy_range moves: a longer one comes back in pieces, between which it can be interrupted.
const COPY_MAX: u64 = 16 << 20;

/// Who asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Caller {
    pub uid: u32,
    pub gid: u32,
}

/// A name in a directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Name<'a> {
    pub parent: Node,
    pub name: &'a OsStr,
}

impl Fs {
    pub fn create<'r>(
        &self,
        at: Name,
        kind: NewKind,
        mode: u16,
        caller: Caller,
        request: impl Into<Request<'r>>,
    ) -> FsResult<Entry> {
        let request = request.into();
        let (timeline, parent) = self.free_name(at)?;
        let attr = match timeline.answer(&request)? {
            Some(made) => timeline.view().getattr(made)?,
            None => {
                let node = new_node(timeline.view().getattr(parent)?, kind, mode, caller);
                timeline.create(parent, at.name, node, request)?
            }
        };
        Ok(self.counted(kept(at.parent, attr)))
    }

    /// Makes a regular file and opens it. An existing one is opened as it is, unless it has to be a new one.
    pub fn create_and_open<'r>(
        &self,
        at: Name,
        mode: u16,
        exclusive: bool,
        caller: Caller,
        request: impl Into<Request<'r>>,
    ) -> FsResult<(Entry, Opening)> {
        let entry = match self.create(at, NewKind::File, mode, caller, request) {
            Err(Errno::EEXIST) if !exclusive => self.lookup(at.parent, at.name)?,
            created => created?,
        };
        let opening = self.view(entry.node, |view, ino| Ok(opening(view, ino)))?;
        Ok((entry, opening))
    }

    /// Makes a directory, or takes a snapshot where those are listed.
    pub fn mkdir<'r>(&self, at: Name, mode: u16, caller: Caller, request: impl Into<Request<'r>>) -> FsResult<Entry> {
        if at.parent != Node::Snapshots {
            return self.create(at, NewKind::Dir, mode, caller, request);
        }
        let request = request.into();
        let layer = match self.control()?.take(at.name, request.now) {
            // The kernel asks for names that it doesn't know: this one was given to the request when it came first.
            Err(Errno::EEXIST) if request.again => self.control()?.find(at.name)?,
            taken => taken?,
        };
        Ok(self.counted(self.snapshot_entry(layer)?))
    }

    pub fn link<'r>(&self, node: Node, at: Name, request: impl Into<Request<'r>>) -> FsResult<Entry> {
        let request = request.into();
        same_tree(node, at.parent)?;
        let (_, ino) = self.head(node)?;
        let (timeline, parent) = self.free_name(at)?;
        let attr = match timeline.answer(&request)? {
            Some(linked) => timeline.view().getattr(linked)?,
            None => timeline.link(ino, parent, at.name, request)?,
        };
        Ok(self.counted(kept(node, attr)))
    }

    pub fn unlink<'r>(&self, at: Name, request: impl Into<Request<'r>>) -> FsResult<()> {
        let request = request.into();
        let (timeline, parent) = self.taken_name(at)?;
        match timeline.answer(&request)? {
            Some(_) => Ok(()),
            None => timeline.unlink(parent, at.name, request).map(drop),
        }
    }

    /// Removes a directory, or destroys a snapshot where those are listed.
    pub fn rmdir<'r>(&self, at: Name, request: impl Into<Request<'r>>) -> FsResult<()> {
        let request = request.into();
        if at.parent == Node::Snapshots {
            return match self.control()?.destroy(at.name) {
                Err(Errno::ENOENT) if request.again => Ok(()),
                destroyed => destroyed,
            };
        }
        let (timeline, parent) = self.taken_name(at)?;
        match timeline.answer(&request)? {
            Some(_) => Ok(()),
            None => timeline.rmdir(parent, at.name, request).map(drop),
        }
    }

    pub fn rename<'r>(&self, from: Name, to: Name, how: Rename, request: impl Into<Request<'r>>) -> FsResult<()> {
        let request = request.into();
        same_tree(from.parent, to.parent)?;
        let (timeline, parent) = self.taken_name(from)?;
        let (_, new_parent) = self.taken_name(to)?;
        match timeline.answer(&request)? {
            Some(_) => Ok(()),
            None => timeline
                .rename(parent, from.name, new_parent, to.name, how, request)
                .map(drop),
        }
    }

    /// Sets attributes; `now` becomes the time of change.
    pub fn setattr(&self, node: Node, set: SetAttr, now: Time) -> FsResult<Entry> {
        let (timeline, ino) = self.head(node)?;
        let attr = timeline.setattr(ino, set, now)?;
        Ok(kept(node, attr))
    }

    /// Writes all of `data`. `now` is `None` where the kernel keeps the times itself.
    pub fn write(&self, node: Node, offset: u64, data: &[u8], now: Option<Time>) -> FsResult<usize> {
        let (timeline, ino) = self.head(node)?;
        timeline.write(ino, offset, data, now)
    }

    /// Has the disk start on bytes that were written.
    pub fn write_out(&self, node: Node, offset: u64, len: u64) -> FsResult<()> {
        let (timeline, ino) = self.head(node)?;
        timeline.write_out(ino, offset, len)
    }

    pub fn fallocate(&self, node: Node, how: Fallocate, offset: u64, len: u64, now: Time) -> FsResult<()> {
        let (timeline, ino) = self.head(node)?;
        timeline.fallocate(ino, how, offset, len, now)
    }

    /// Copies between files of the branch. From a snapshot the kernel has to copy itself (EXDEV).
    pub fn copy_range(&self, from: (Node, u64), to: (Node, u64), len: u64, now: Time) -> FsResult<usize> {
        same_tree(from.0, to.0)?;
        let (_, source) = self.head(from.0)?;
        let (timeline, target) = self.head(to.0)?;
        timeline.copy_range(source, from.1, target, to.1, len.min(COPY_MAX), now)
    }

    /// What can't be changed needs no sync.
    pub fn fsync(&self, node: Node) -> FsResult<()> {
        match self.head(node) {
            Ok((timeline, ino)) => timeline.fsync(ino),
            Err(_) => Ok(()),
        }
    }

    /// The branch that a node can be changed in.
    pub(super) fn head(&self, node: Node) -> FsResult<(&Timeline, Ino)> {
        match (node, &self.tree) {
            (Node::Own(ino), Tree::Head(timeline)) => Ok((timeline, ino)),
            (Node::Control | Node::Snapshots, _) => Err(Errno::EPERM),
            _ => Err(Errno::EROFS),
        }
    }

    /// The directory in which a new name is to appear.
    fn free_name(&self, at: Name) -> FsResult<(&Timeline, Ino)> {
        self.name(at, Errno::EEXIST)
    }

    /// The directory in which a name is to go or to be replaced.
    fn taken_name(&self, at: Name) -> FsResult<(&Timeline, Ino)> {
        self.name(at, Errno::EPERM)
    }

    fn name(&self, at: Name, if_hidden: Errno) -> FsResult<(&Timeline, Ino)> {
        check_name(at.name)?;
        if at.parent == Node::ROOT && self.is_control(at.name) {
            return Err(if_hidden);
        }
        self.head(at.parent)
    }
}

/// A node as its parent makes it: in a setgid directory it takes over the group, and a directory the bit too.
fn new_node(parent: Attr, kind: NewKind, mode: u16, caller: Caller) -> NewNode {
    let inherits = parent.mode & S_ISGID != 0;
    let setgid = if inherits && kind == NewKind::Dir { S_ISGID } else { 0 };
    NewNode {
        kind,
        mode: mode & MODE_BITS | setgid,
        uid: caller.uid,
        gid: if inherits { parent.gid } else { caller.gid },
    }
}

fn same_tree(a: Node, b: Node) -> FsResult<()> {
    match (a, b) {
        (Node::Snapshot(a, _), Node::Snapshot(b, _)) if a != b => Err(Errno::EXDEV),
        (Node::Own(_), Node::Snapshot(..)) | (Node::Snapshot(..), Node::Own(_)) => Err(Errno::EXDEV),
        _ => Ok(()),
    }
}
