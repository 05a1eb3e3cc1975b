//! A result of the file system as the reply to its request.

use std::ops::ControlFlow;

use fuser::{
    FopenFlags, INodeNo, ReplyAttr, ReplyCreate, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry,
    ReplyLseek, ReplyStatfs, ReplyWrite,
};
use nix::errno::Errno;
use pageserver::{BLOCK, FsResult, NAME_MAX, Space};

use super::NO_HANDLE;
use super::convert::{self, GENERATION, file_attr, file_type, ttl};
use crate::fs::{Entry, Fs, Item};
use crate::node::Node;

/// How many entries of a directory are fetched at once.
const BATCH: usize = 64;

pub fn entry(reply: ReplyEntry, result: FsResult<Entry>) {
    match result.and_then(|entry| Ok((ttl(entry.keep), file_attr(&entry)?))) {
        Ok((ttl, attr)) => reply.entry(&ttl, &attr, GENERATION),
        Err(error) => reply.error(convert::errno(error)),
    }
}

pub fn attr(reply: ReplyAttr, result: FsResult<Entry>) {
    match result.and_then(|entry| Ok((ttl(entry.keep), file_attr(&entry)?))) {
        Ok((ttl, attr)) => reply.attr(&ttl, &attr),
        Err(error) => reply.error(convert::errno(error)),
    }
}

pub fn created(reply: ReplyCreate, result: FsResult<(Entry, FopenFlags)>) {
    match result.and_then(|(entry, flags)| Ok((ttl(entry.keep), file_attr(&entry)?, flags))) {
        Ok((ttl, attr, flags)) => reply.created(&ttl, &attr, GENERATION, NO_HANDLE, flags),
        Err(error) => reply.error(convert::errno(error)),
    }
}

pub fn empty(reply: ReplyEmpty, result: FsResult<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(convert::errno(error)),
    }
}

/// For requests of at most `u32::MAX` bytes.
pub fn written(reply: ReplyWrite, result: FsResult<usize>) {
    match result {
        Ok(count) => reply.written(count as u32),
        Err(error) => reply.error(convert::errno(error)),
    }
}

pub fn found(reply: ReplyLseek, result: FsResult<u64>) {
    match result.and_then(|offset| i64::try_from(offset).map_err(|_| Errno::EOVERFLOW)) {
        Ok(offset) => reply.offset(offset),
        Err(error) => reply.error(convert::errno(error)),
    }
}

pub fn space(reply: ReplyStatfs, result: FsResult<Space>) {
    let blocks = |bytes| bytes / BLOCK;
    match result {
        Ok(space) => reply.statfs(
            blocks(space.total),
            blocks(space.free),
            blocks(space.available),
            space.files,
            space.files_free,
            BLOCK as u32,
            NAME_MAX as u32,
            BLOCK as u32,
        ),
        Err(error) => reply.error(convert::errno(error)),
    }
}

/// A listing that is being filled.
pub trait Listing: Sized {
    /// Adds an entry; breaks when there was no room for it.
    fn push(&mut self, fs: &Fs, item: &Item) -> FsResult<ControlFlow<()>>;
    fn send(self);
    fn refuse(self, error: fuser::Errno);
}

impl Listing for ReplyDirectory {
    fn push(&mut self, _fs: &Fs, item: &Item) -> FsResult<ControlFlow<()>> {
        let ino = INodeNo(item.node.id()?);
        Ok(full(self.add(ino, item.cookie, file_type(item.kind), &item.name)))
    }

    fn send(self) {
        self.ok();
    }

    fn refuse(self, error: fuser::Errno) {
        self.error(error);
    }
}

impl Listing for ReplyDirectoryPlus {
    fn push(&mut self, fs: &Fs, item: &Item) -> FsResult<ControlFlow<()>> {
        let entry = match fs.getattr(item.node) {
            // It went away since it was listed.
            Err(Errno::ENOENT | Errno::ESTALE) => return Ok(ControlFlow::Continue(())),
            entry => entry?,
        };
        let (ttl, attr) = (ttl(item.keep), file_attr(&entry)?);
        let added = full(self.add(attr.ino, item.cookie, &item.name, &ttl, &attr, GENERATION));
        if added.is_continue() && !item.is_dots() {
            fs.count(item.node);
        }
        Ok(added)
    }

    fn send(self) {
        self.ok();
    }

    fn refuse(self, error: fuser::Errno) {
        self.error(error);
    }
}

/// Replies with the entries of a directory after `cookie`.
pub fn listing(mut reply: impl Listing, fs: &Fs, dir: Node, cookie: u64) {
    let mut sent = cookie;
    match fill(&mut reply, fs, dir, &mut sent) {
        // References that were counted must reach the kernel; it meets the error when it goes on from there.
        Err(error) if sent == cookie => reply.refuse(convert::errno(error)),
        _ => reply.send(),
    }
}

/// Adds entries while there is room, and moves `cookie` along.
fn fill(reply: &mut impl Listing, fs: &Fs, dir: Node, cookie: &mut u64) -> FsResult<()> {
    loop {
        let items = fs.readdir(dir, *cookie, BATCH)?;
        if items.is_empty() {
            return Ok(());
        }
        for item in &items {
            if reply.push(fs, item)?.is_break() {
                return Ok(());
            }
            *cookie = item.cookie;
        }
    }
}

fn full(full: bool) -> ControlFlow<()> {
    if full {
        ControlFlow::Break(())
    } else {
        ControlFlow::Continue(())
    }
}
