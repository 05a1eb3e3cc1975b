//! The hidden directory at the root of a branch's mount:
//!
//! ```text
//! .zenith/              in no listing of the root, so initdb and pg_basebackup don't see it
//!   snapshot/           lists the branch's snapshots; mkdir takes one, rmdir destroys it
//!     TAG/…             the snapshot's tree, read-only
//! ```
//!
//! Both directories are made up: they belong to the owner of the mount's root, and nobody else may look inside.
//! Snapshots come and go behind the kernel's back (from the command line, say), so it may keep nothing of what
//! these two directories hold; what lies below `TAG/` never changes.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use pageserver::{Attr, Error, FsResult, Kind, LayerId, SnapshotInfo, Tag, Time, View};

use crate::errno::errno;
use crate::node::{CONTROL_INO, Node, SNAPSHOTS_INO};

/// The name of the hidden directory.
pub const CONTROL_NAME: &str = ".zenith";
/// The name of the directory in it that holds the snapshots.
pub const SNAPSHOTS_NAME: &str = "snapshot";

/// What the hidden directory needs to know and do about the snapshots of the mounted branch.
pub trait Snapshots: Send + Sync {
    /// Oldest first.
    fn list(&self) -> Vec<SnapshotInfo>;
    /// The layer of one of them.
    fn find(&self, tag: &Tag) -> Option<LayerId>;
    /// Whether one of them has this layer.
    fn has(&self, layer: LayerId) -> bool;
    /// The tree of the snapshot with this layer.
    fn view(&self, layer: LayerId) -> Result<Arc<View>, Error>;
    fn take(&self, tag: &Tag, now: Time) -> Result<SnapshotInfo, Error>;
    fn destroy(&self, tag: &Tag) -> Result<(), Error>;
}

pub(crate) struct Control {
    snapshots: Box<dyn Snapshots>,
    /// The trees that the kernel looks into.
    views: Mutex<HashMap<LayerId, Arc<View>>>,
}

impl Control {
    pub fn new(snapshots: Box<dyn Snapshots>) -> Control {
        Control {
            snapshots,
            views: Mutex::default(),
        }
    }

    /// The snapshots as entries of their directory.
    pub fn list(&self) -> Vec<SnapshotInfo> {
        self.snapshots.list()
    }

    /// The layer of the snapshot that the entry `name` stands for.
    pub fn find(&self, name: &OsStr) -> FsResult<LayerId> {
        parse(name)
            .and_then(|tag| self.snapshots.find(&tag))
            .ok_or(Errno::ENOENT)
    }

    /// The tree of a snapshot. ESTALE when there is none with this layer any more.
    pub fn view(&self, layer: LayerId) -> FsResult<Arc<View>> {
        if let Some(view) = self.views().get(&layer) {
            return Ok(view.clone());
        }
        if !self.snapshots.has(layer) {
            return Err(Errno::ESTALE);
        }
        let view = self.snapshots.view(layer).map_err(|error| refuse("open", &error))?;
        self.views().insert(layer, view.clone());
        Ok(view)
    }

    /// Whether a snapshot's tree is loaded.
    pub fn has(&self, layer: LayerId) -> bool {
        self.views().contains_key(&layer)
    }

    /// Lets go of a snapshot's tree. It is opened again if somebody still asks for it and the snapshot exists.
    pub fn release(&self, layer: LayerId) {
        self.views().remove(&layer);
    }

    pub fn take(&self, name: &OsStr, now: Time) -> FsResult<LayerId> {
        let tag = parse(name).ok_or(Errno::EINVAL)?;
        let taken = self.snapshots.take(&tag, now);
        taken.map(|info| info.layer).map_err(|error| refuse("take", &error))
    }

    pub fn destroy(&self, name: &OsStr) -> FsResult<()> {
        let tag = parse(name).ok_or(Errno::ENOENT)?;
        self.release(self.find(name)?);
        self.snapshots.destroy(&tag).map_err(|error| refuse("destroy", &error))
    }

    fn views(&self) -> MutexGuard<'_, HashMap<LayerId, Arc<View>>> {
        self.views.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn parse(name: &OsStr) -> Option<Tag> {
    name.to_str()?.parse().ok()
}

/// An errno says little, so the log says what was wrong.
fn refuse(what: &str, error: &Error) -> Errno {
    tracing::warn!("could not {what} a snapshot through the mount: {error}");
    errno(error)
}

/// The attributes of the made-up directories, which follow those of the mount's root.
pub(crate) fn attr(node: Node, root: Attr) -> Attr {
    let (ino, mode) = match node {
        Node::Snapshots => (SNAPSHOTS_INO, 0o700),
        _ => (CONTROL_INO, 0o500),
    };
    Attr {
        ino,
        kind: Kind::Dir,
        mode,
        nlink: 1,
        size: 0,
        ..root
    }
}
