//! What each operation on names and attributes changes, and when it must fail, as POSIX has it.
//!
//! Pure functions of a namespace: they return the changes and leave it to the timeline to make them durable and
//! apply them. Permissions were checked by the kernel before.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use nix::errno::Errno;

use super::{Change, Inode, Namespace};
use crate::error::FsResult;
use crate::pg;
use crate::types::{Attr, Ino, Kind, NAME_MAX, NewKind, NewNode, Rename, SYMLINK_MAX, SetAttr, Time};

/// As ext4's, so that a directory tree that fits there fits here.
const LINK_MAX: u32 = 65_000;

pub struct Outcome<T> {
    pub changes: Vec<Change>,
    pub result: T,
}

/// A name in a directory.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    pub parent: Ino,
    pub name: &'a OsStr,
}

impl Place<'_> {
    fn arc(&self) -> Arc<OsStr> {
        Arc::from(self.name)
    }

    fn set(&self, ino: Ino) -> Change {
        Change::SetName(self.parent, self.arc(), ino)
    }

    fn drop(&self) -> Change {
        Change::DropName(self.parent, self.arc())
    }

    fn is_wal_dir(&self, kind: Kind) -> bool {
        kind == Kind::Dir && pg::is_wal_dir(self.name.as_bytes())
    }

    /// A directory that still exists, and a name that one can have.
    fn check(&self, ns: &Namespace) -> FsResult<Inode> {
        let dir = ns.dir(self.parent)?;
        match self.name.len() {
            _ if dir.nlink == 0 => Err(Errno::ENOENT),
            0 => Err(Errno::ENOENT),
            len if len > NAME_MAX => Err(Errno::ENAMETOOLONG),
            _ => Ok(Inode::clone(dir)),
        }
    }

    /// As [`Place::check`], and the name is free.
    fn check_free(&self, ns: &Namespace) -> FsResult<Inode> {
        let dir = self.check(ns)?;
        match ns.get(self.parent, self.name) {
            Some(_) => Err(Errno::EEXIST),
            None => Ok(dir),
        }
    }
}

/// The directory `dir` after an entry came or went; `links` counts subdirectories that came.
fn touched_dir(mut dir: Inode, links: i32, now: Time) -> Inode {
    dir.nlink = dir.nlink.saturating_add_signed(links);
    dir.mtime = now;
    dir.ctime = now;
    dir
}

fn links_of(kind: Kind) -> i32 {
    i32::from(kind == Kind::Dir)
}

pub fn new_inode(node: NewNode, parent: Ino, now: Time) -> FsResult<Inode> {
    let (kind, target) = match node.kind {
        NewKind::File => (Kind::File, None),
        NewKind::Dir => (Kind::Dir, None),
        NewKind::Fifo => (Kind::Fifo, None),
        NewKind::Socket => (Kind::Socket, None),
        NewKind::Symlink(target) if target.len() > SYMLINK_MAX => return Err(Errno::ENAMETOOLONG),
        NewKind::Symlink(target) => (Kind::Symlink, Some(Arc::from(target))),
    };
    Ok(Inode {
        kind,
        mode: node.mode & 0o7777,
        uid: node.uid,
        gid: node.gid,
        nlink: if kind == Kind::Dir { 2 } else { 1 },
        size: target.as_ref().map_or(0, |target: &Arc<OsStr>| target.len() as u64),
        atime: now,
        mtime: now,
        ctime: now,
        parent,
        wal_dir: false,
        target,
        parts: Default::default(),
    })
}

pub fn create(ns: &Namespace, at: Place, ino: Ino, node: NewNode, now: Time) -> FsResult<Outcome<Attr>> {
    let dir = at.check_free(ns)?;
    let mut inode = new_inode(node, at.parent, now)?;
    if inode.kind == Kind::Dir && dir.nlink >= LINK_MAX {
        return Err(Errno::EMLINK);
    }
    inode.wal_dir = at.is_wal_dir(inode.kind);
    let attr = inode.attr(ino);
    let dir = touched_dir(dir, links_of(inode.kind), now);
    Ok(Outcome {
        changes: vec![
            Change::SetInode(ino, inode),
            at.set(ino),
            Change::SetInode(at.parent, dir),
        ],
        result: attr,
    })
}

pub fn link(ns: &Namespace, ino: Ino, at: Place, now: Time) -> FsResult<Outcome<Attr>> {
    let dir = at.check_free(ns)?;
    let mut inode = Inode::clone(ns.inode(ino)?);
    match inode.nlink {
        _ if inode.kind == Kind::Dir => return Err(Errno::EPERM),
        0 => return Err(Errno::ENOENT),
        LINK_MAX.. => return Err(Errno::EMLINK),
        _ => inode.nlink += 1,
    }
    inode.ctime = now;
    inode.parent = at.parent;
    let attr = inode.attr(ino);
    Ok(Outcome {
        changes: vec![
            Change::SetInode(ino, inode),
            at.set(ino),
            Change::SetInode(at.parent, touched_dir(dir, 0, now)),
        ],
        result: attr,
    })
}

/// An inode that lost one name; a directory loses its last two links at once.
fn unnamed(inode: &Inode, now: Time) -> Inode {
    let mut inode = inode.clone();
    inode.nlink = match inode.kind {
        Kind::Dir => 0,
        _ => inode.nlink.saturating_sub(1),
    };
    inode.ctime = now;
    inode
}

pub fn unlink(ns: &Namespace, at: Place, now: Time) -> FsResult<Outcome<Attr>> {
    remove(ns, at, now, |_, inode| match inode.kind {
        Kind::Dir => Err(Errno::EISDIR),
        _ => Ok(()),
    })
}

pub fn rmdir(ns: &Namespace, at: Place, now: Time) -> FsResult<Outcome<Attr>> {
    remove(ns, at, now, |ino, inode| match inode.kind {
        Kind::Dir if ns.is_empty_dir(ino) => Ok(()),
        Kind::Dir => Err(Errno::ENOTEMPTY),
        _ => Err(Errno::ENOTDIR),
    })
}

fn remove(
    ns: &Namespace,
    at: Place,
    now: Time,
    allowed: impl Fn(Ino, &Inode) -> FsResult<()>,
) -> FsResult<Outcome<Attr>> {
    let dir = at.check(ns)?;
    let ino = ns.lookup(at.parent, at.name)?;
    let inode = ns.inode(ino)?;
    allowed(ino, inode)?;
    let gone = unnamed(inode, now);
    let attr = gone.attr(ino);
    Ok(Outcome {
        changes: vec![
            at.drop(),
            Change::SetInode(at.parent, touched_dir(dir, -links_of(gone.kind), now)),
            Change::SetInode(ino, gone),
        ],
        result: attr,
    })
}

/// Returns the inode that was replaced, if any.
pub fn rename(ns: &Namespace, from: Place, to: Place, how: Rename, now: Time) -> FsResult<Outcome<Option<Attr>>> {
    from.check(ns)?;
    to.check(ns)?;
    let ino = ns.lookup(from.parent, from.name)?;
    let target = ns.get(to.parent, to.name);
    not_below_itself(ns, ino, to.parent)?;
    match (how, target) {
        (Rename::NoReplace, Some(_)) => Err(Errno::EEXIST),
        (Rename::Exchange, None) => Err(Errno::ENOENT),
        (_, Some(target)) if target == ino => Ok(Outcome {
            changes: Vec::new(),
            result: None,
        }),
        (Rename::Exchange, Some(target)) => exchange(ns, (from, ino), (to, target), now),
        (_, target) => replace(ns, (from, ino), to, target, now),
    }
}

/// A directory can't become its own descendant.
fn not_below_itself(ns: &Namespace, ino: Ino, mut dir: Ino) -> FsResult<()> {
    if ns.inode(ino)?.kind != Kind::Dir {
        return Ok(());
    }
    loop {
        match dir {
            _ if dir == ino => return Err(Errno::EINVAL),
            Ino::ROOT => return Ok(()),
            _ => dir = ns.inode(dir)?.parent,
        }
    }
}

fn replace(
    ns: &Namespace,
    (from, ino): (Place, Ino),
    to: Place,
    target: Option<Ino>,
    now: Time,
) -> FsResult<Outcome<Option<Attr>>> {
    let inode = ns.inode(ino)?;
    let mut dirs = Dirs::new(ns, from.parent, to.parent, now)?;
    let mut changes = vec![from.drop(), to.set(ino), moved(ino, inode, to, now)];
    dirs.links(from.parent, -links_of(inode.kind));
    dirs.links(to.parent, links_of(inode.kind));
    let mut replaced = None;
    if let Some(target) = target {
        let old = ns.inode(target)?;
        can_replace(ns, inode.kind, target, old.kind)?;
        dirs.links(to.parent, -links_of(old.kind));
        let gone = unnamed(old, now);
        replaced = Some(gone.attr(target));
        changes.push(Change::SetInode(target, gone));
    }
    changes.extend(dirs.into_changes());
    Ok(Outcome {
        changes,
        result: replaced,
    })
}

fn can_replace(ns: &Namespace, kind: Kind, target: Ino, old: Kind) -> FsResult<()> {
    match (kind == Kind::Dir, old == Kind::Dir) {
        (true, false) => Err(Errno::ENOTDIR),
        (false, true) => Err(Errno::EISDIR),
        (true, true) if !ns.is_empty_dir(target) => Err(Errno::ENOTEMPTY),
        _ => Ok(()),
    }
}

fn exchange(
    ns: &Namespace,
    (a, a_ino): (Place, Ino),
    (b, b_ino): (Place, Ino),
    now: Time,
) -> FsResult<Outcome<Option<Attr>>> {
    not_below_itself(ns, b_ino, a.parent)?;
    let (a_inode, b_inode) = (ns.inode(a_ino)?, ns.inode(b_ino)?);
    let mut dirs = Dirs::new(ns, a.parent, b.parent, now)?;
    let shift = links_of(a_inode.kind) - links_of(b_inode.kind);
    dirs.links(a.parent, -shift);
    dirs.links(b.parent, shift);
    let mut changes = vec![
        a.set(b_ino),
        b.set(a_ino),
        moved(a_ino, a_inode, b, now),
        moved(b_ino, b_inode, a, now),
    ];
    changes.extend(dirs.into_changes());
    Ok(Outcome { changes, result: None })
}

fn moved(ino: Ino, inode: &Inode, to: Place, now: Time) -> Change {
    let mut inode = inode.clone();
    inode.parent = to.parent;
    inode.wal_dir = to.is_wal_dir(inode.kind);
    inode.ctime = now;
    Change::SetInode(ino, inode)
}

/// The one or two directories that a rename touches.
struct Dirs(Vec<(Ino, Inode)>);

impl Dirs {
    fn new(ns: &Namespace, a: Ino, b: Ino, now: Time) -> FsResult<Dirs> {
        let touched = |ino| Ok((ino, touched_dir(Inode::clone(ns.dir(ino)?), 0, now)));
        let mut dirs = vec![touched(a)?];
        if a != b {
            dirs.push(touched(b)?);
        }
        Ok(Dirs(dirs))
    }

    fn links(&mut self, dir: Ino, links: i32) {
        for (_, inode) in self.0.iter_mut().filter(|(ino, _)| *ino == dir) {
            inode.nlink = inode.nlink.saturating_add_signed(links);
        }
    }

    fn into_changes(self) -> impl Iterator<Item = Change> {
        self.0.into_iter().map(|(ino, dir)| Change::SetInode(ino, dir))
    }
}

/// Sets everything but the size. A file with blocks in the head also has its time of modification set there.
pub fn set_attr(ns: &Namespace, ino: Ino, set: &SetAttr, now: Time) -> FsResult<Outcome<()>> {
    let mut inode = Inode::clone(ns.inode(ino)?);
    inode.mode = set.mode.map_or(inode.mode, |mode| mode & 0o7777);
    inode.uid = set.uid.unwrap_or(inode.uid);
    inode.gid = set.gid.unwrap_or(inode.gid);
    inode.atime = set.atime.unwrap_or(inode.atime);
    inode.mtime = set.mtime.unwrap_or(inode.mtime);
    inode.ctime = now;
    Ok(Outcome {
        changes: vec![Change::SetInode(ino, inode)],
        result: (),
    })
}

/// The end of an inode that has no name left and that nobody holds.
pub fn drop_orphan(ns: &Namespace, ino: Ino) -> Option<Change> {
    let inode = ns.inode(ino).ok()?;
    (inode.nlink == 0 && ino != Ino::ROOT).then_some(Change::DropInode(ino))
}

/// What a new view of a running Postgres' data directory must not inherit; see [`pg::Purpose`].
pub fn leave_out(ns: &Namespace, purpose: pg::Purpose) -> Vec<Change> {
    let mut left = Left::of(ns);
    for (name, _, ino) in ns.names(Ino::ROOT, 0) {
        let is_dir = ns.inode(ino).is_ok_and(|inode| inode.kind == Kind::Dir);
        if is_dir && pg::empties_dir(purpose, name.as_bytes()) {
            left.empty_dir(ns, ino);
        } else if !is_dir && pg::leaves_out_file(purpose, name.as_bytes()) {
            left.drop_name(Ino::ROOT, name, ino);
        }
    }
    left.changes
}

/// What is left of a namespace: of a file that loses several names the next one finds how many links it has by then.
struct Left {
    ns: Namespace,
    changes: Vec<Change>,
}

impl Left {
    fn of(ns: &Namespace) -> Left {
        Left {
            ns: ns.clone(),
            changes: Vec::new(),
        }
    }

    fn change(&mut self, change: Change) {
        self.ns.apply(change.clone());
        self.changes.push(change);
    }

    fn empty_dir(&mut self, whole: &Namespace, dir: Ino) {
        let mut subdirs = 0;
        for (name, _, ino) in whole.names(dir, 0) {
            if whole.inode(ino).is_ok_and(|inode| inode.kind == Kind::Dir) {
                self.empty_dir(whole, ino);
                subdirs += 1;
            }
            self.drop_name(dir, name, ino);
        }
        if let (Ok(inode), true) = (self.ns.inode(dir).cloned(), subdirs > 0) {
            let mut inode = Inode::clone(&inode);
            inode.nlink = inode.nlink.saturating_sub(subdirs);
            self.change(Change::SetInode(dir, inode));
        }
    }

    fn drop_name(&mut self, dir: Ino, name: &Arc<OsStr>, ino: Ino) {
        self.change(Change::DropName(dir, name.clone()));
        let Ok(inode) = self.ns.inode(ino).cloned() else {
            return;
        };
        if inode.kind == Kind::Dir || inode.nlink <= 1 {
            self.change(Change::DropInode(ino));
        } else {
            let mut inode = Inode::clone(&inode);
            inode.nlink -= 1;
            self.change(Change::SetInode(ino, inode));
        }
    }
}
