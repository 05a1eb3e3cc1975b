//! What makes a timeline durable, and what it says once something was lost.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};

use nix::errno::Errno;

use super::Timeline;
use crate::error::{Error, FsResult, Result};
use crate::layer::Layer;
use crate::sync_point::is_disk_failure;
use crate::types::*;

impl Timeline {
    /// Makes a file's bytes, and every change of names and attributes so far, durable. Free when they are.
    pub fn fsync(&self, ino: Ino) -> FsResult<()> {
        if self.is_poisoned() {
            return Err(Errno::EIO);
        }
        let data = self.view.files.get(ino).map_or(Ok(()), |file| file.sync());
        self.shared.settle().and(data).map_err(|e| {
            self.poison_after(&e);
            self.failed("sync", ino, &e)
        })?;
        // Somebody else's sync may have heard of the loss.
        if self.is_poisoned() {
            return Err(Errno::EIO);
        }
        self.sync_db().map_err(|e| self.db_failed(&e))
    }

    fn sync_db(&self) -> Result<()> {
        self.shared.db.sync().map_err(Error::io("sync the store's database"))
    }

    /// Makes everything durable, as an unmount does.
    pub fn sync_all(&self) -> Result<()> {
        self.sync_sealed()?;
        let layer = self.head().layer.clone();
        self.sync_layer(&layer).map_err(|e| self.sync_failed(&layer, e))?;
        self.check_poisoned()?;
        self.sync_db().inspect_err(|e| {
            self.db_failed(e);
        })?;
        self.shared.tidy();
        Ok(())
    }

    /// Makes the blocks of all sealed layers durable; what the database knows of them is for the caller to sync.
    pub(crate) fn sync_sealed(&self) -> Result<()> {
        self.check_poisoned()?;
        self.settle()?;
        let sealing = self.sealing().clone();
        for layer in &sealing {
            self.sync_layer(layer).map_err(|e| self.sync_failed(layer, e))?;
            self.sealing().retain(|other| other.id != layer.id);
        }
        // Somebody else's sync may have heard of a loss.
        self.check_poisoned()
    }

    pub(super) fn sync_layer(&self, layer: &Layer) -> io::Result<()> {
        layer.sync(|| self.shared.sync_filesystem())
    }

    fn settle(&self) -> Result<()> {
        self.shared.settle().map_err(|e| {
            self.poison_after(&e);
            Error::io("sync what an earlier life of the store has written")(e)
        })?;
        self.check_poisoned()
    }

    /// Whether the next sync of anything has also to make durable what nobody knows of any more, which can take long.
    pub fn is_settled(&self) -> bool {
        self.shared.is_settled()
    }

    /// Whether a change of names would have to wait for the disk just now.
    pub fn holds_up_changes(&self) -> bool {
        self.shared.db.is_syncing()
    }

    fn sync_failed(&self, layer: &Layer, error: io::Error) -> Error {
        self.poison_after(&error);
        Error::io(format!("sync layer {}", layer.id))(error)
    }

    /// Whether a layer is still being made durable.
    pub(crate) fn is_sealing(&self, layer: LayerId) -> bool {
        self.sealing().iter().any(|sealing| sealing.id == layer)
    }

    pub(super) fn sealing(&self) -> MutexGuard<'_, Vec<Arc<Layer>>> {
        self.sealing.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub(super) fn is_poisoned(&self) -> bool {
        self.poisoned.load(Ordering::Acquire) || self.losses != self.shared.losses()
    }

    pub(crate) fn check_poisoned(&self) -> Result<()> {
        match self.is_poisoned() {
            true => Err(Error::Poisoned {
                branch: self.name.to_string(),
            }),
            false => Ok(()),
        }
    }

    /// Takes no sync for true any more, after an error that can mean that bytes were lost.
    pub(super) fn poison_after(&self, error: &io::Error) {
        if is_disk_failure(error) {
            self.poison();
        }
    }

    pub(super) fn poison(&self) {
        if !self.poisoned.swap(true, Ordering::AcqRel) {
            self.shared.poisoned.set(self.id);
            tracing::error!(branch = %self.name, "a write to disk failed: every sync fails until the branch is mounted anew");
        }
    }

    pub(super) fn failed(&self, what: &str, ino: Ino, error: &io::Error) -> Errno {
        let errno = self.view.failed(what, ino, error);
        if errno == Errno::EIO {
            self.poison_after(error);
        }
        errno
    }

    /// Logs an error of the database. For lack of room it has lost nothing; after any other, what it has is not known.
    pub(super) fn db_failed(&self, error: &Error) -> Errno {
        tracing::error!(branch = %self.name, %error, "the store's database failed");
        if error.is_full() {
            return Errno::ENOSPC;
        }
        self.poison();
        Errno::EIO
    }
}
