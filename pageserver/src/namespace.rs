//! The file tree of a view: inodes and names, in persistent (structure-sharing) maps.
//!
//! ```text
//!   inodes  ino                    -> Inode { kind, mode, links, size, times, parts … }
//!   names   (parent, cookie, name) -> ino        cookie = hash of the name
//! ```
//!
//! A clone of a namespace costs O(1) and shares everything until one side changes, so every seal keeps one for free.
//! A change is worked out by `ops` as a list of [`Change`]s, written to the database by `codec`, and only then
//! applied here: memory never runs ahead of what a restart would find.
//!
//! A listing goes by cookie, a hash of the name. So a position in a directory stays valid whatever else is added
//! or removed, over restarts too, and needs no state.

pub mod codec;
pub mod ops;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use imbl::{OrdMap, Vector};
use nix::errno::Errno;

use crate::error::FsResult;
use crate::types::{Attr, DirEntry, Ino, Kind, LayerId, Time};

/// A layer in which a file has blocks, and the file's floor there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PartRef {
    pub layer: LayerId,
    /// The smallest size the file had during that layer: at and above it nothing older shows through.
    pub floor: u64,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Inode {
    pub kind: Kind,
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub nlink: u32,
    pub size: u64,
    pub atime: Time,
    pub mtime: Time,
    pub ctime: Time,
    /// The directory that last gave the inode a name; of a directory, its `..`.
    pub parent: Ino,
    /// A directory whose files are Postgres WAL.
    pub wal_dir: bool,
    /// A symlink's target.
    pub target: Option<Arc<OsStr>>,
    /// A file's layers, oldest first.
    pub parts: Vector<PartRef>,
}

impl Inode {
    pub fn attr(&self, ino: Ino) -> Attr {
        Attr {
            ino,
            kind: self.kind,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            nlink: self.nlink,
            size: self.size,
            atime: self.atime,
            mtime: self.mtime,
            ctime: self.ctime,
        }
    }
}

/// A step from one namespace to the next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    SetInode(Ino, Inode),
    DropInode(Ino),
    SetName(Ino, Arc<OsStr>, Ino),
    DropName(Ino, Arc<OsStr>),
}

type NameKey = (Ino, u64, Arc<OsStr>);

#[derive(Clone, Default)]
pub struct Namespace {
    inodes: OrdMap<Ino, Arc<Inode>>,
    names: OrdMap<NameKey, Ino>,
}

impl Namespace {
    pub fn inode(&self, ino: Ino) -> FsResult<&Arc<Inode>> {
        self.inodes.get(&ino).ok_or(Errno::ENOENT)
    }

    pub fn dir(&self, ino: Ino) -> FsResult<&Arc<Inode>> {
        let inode = self.inode(ino)?;
        match inode.kind {
            Kind::Dir => Ok(inode),
            _ => Err(Errno::ENOTDIR),
        }
    }

    /// What `name` in `parent` stands for, if anything.
    pub fn get(&self, parent: Ino, name: &OsStr) -> Option<Ino> {
        self.names.get(&name_key(parent, name)).copied()
    }

    pub fn lookup(&self, parent: Ino, name: &OsStr) -> FsResult<Ino> {
        self.dir(parent)?;
        self.get(parent, name).ok_or(Errno::ENOENT)
    }

    /// Follows names from the root.
    pub fn resolve(&self, path: &[&str]) -> FsResult<Ino> {
        path.iter()
            .try_fold(Ino::ROOT, |dir, name| self.lookup(dir, OsStr::new(name)))
    }

    /// The names in a directory whose cookies are greater than `cookie`.
    pub fn names(&self, dir: Ino, cookie: u64) -> impl Iterator<Item = (&Arc<OsStr>, u64, Ino)> {
        let from: NameKey = (dir, cookie.saturating_add(1), Arc::from(OsStr::new("")));
        self.names
            .range(from..)
            .take_while(move |((parent, ..), _)| *parent == dir)
            .map(|((_, cookie, name), ino)| (name, *cookie, *ino))
    }

    /// Up to `max` entries of a directory after `cookie`.
    pub fn entries(&self, dir: Ino, cookie: u64, max: usize) -> FsResult<Vec<DirEntry>> {
        self.dir(dir)?;
        self.names(dir, cookie)
            .take(max)
            .map(|(name, cookie, ino)| {
                Ok(DirEntry {
                    name: OsString::from(&**name),
                    ino,
                    kind: self.inode(ino)?.kind,
                    cookie,
                })
            })
            .collect()
    }

    pub fn is_empty_dir(&self, dir: Ino) -> bool {
        self.names(dir, 0).next().is_none()
    }

    pub fn inodes(&self) -> impl Iterator<Item = (Ino, &Arc<Inode>)> {
        self.inodes.iter().map(|(ino, inode)| (*ino, inode))
    }

    pub fn all_names(&self) -> impl Iterator<Item = (Ino, &Arc<OsStr>, Ino)> {
        self.names.iter().map(|((parent, _, name), ino)| (*parent, name, *ino))
    }

    pub fn apply(&mut self, change: Change) {
        match change {
            Change::SetInode(ino, inode) => {
                self.inodes.insert(ino, Arc::new(inode));
            }
            Change::DropInode(ino) => {
                self.inodes.remove(&ino);
            }
            Change::SetName(parent, name, ino) => {
                self.names.insert((parent, cookie_of(&name), name), ino);
            }
            Change::DropName(parent, name) => {
                self.names.remove(&(parent, cookie_of(&name), name));
            }
        }
    }
}

fn name_key(parent: Ino, name: &OsStr) -> NameKey {
    (parent, cookie_of(name), Arc::from(name))
}

/// FNV-1a of the name in 63 bits, above the positions that "." and ".." have in a listing.
fn cookie_of(name: &OsStr) -> u64 {
    let hash = name.as_bytes().iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    (hash >> 1).max(3)
}
