//! The service: the one process that owns a store, its mounts and its socket.
//!
//! ```text
//!   cli ──REST──> api ──> Service ──┬─> Store      (pageserver)
//!                                   ├─> Table      which view is mounted where, remembered on disk
//!                   kernel <──FUSE──┴─> Mount      (fusefs)
//! ```
//!
//! Rules:
//! * Operations block, so they run on threads made for that; what is begun goes on although its client goes away.
//! * What takes several steps (mount, umount, checkout, …) holds its branch's lock ([`locks`]) and undoes what it
//!   did when a later step fails. What outlives a crash in the middle stands in the table's file beforehand.
//! * Stopping waits for the operations that run, lets no new ones in, and unmounts without forgetting.

mod branches;
mod cluster;
mod detach;
mod gate;
mod locks;
mod log;
mod mounts;
mod remembered;
mod serve;
mod snapshots;
mod startup;
mod table;

use std::path::Path;
use std::process;
use std::sync::Arc;

use jiff::Timestamp;
use nix::sys::statvfs::statvfs;
use pageserver::Store;
use tokio::sync::watch;

use crate::api::status::{self, Process, Status};
use crate::error::{Error, Result};
use gate::Gate;
use locks::BranchLocks;
use mounts::log_failure;
use table::Table;

/// Everything that requests work on.
pub struct Service {
    store: Arc<Store>,
    table: Table,
    locks: BranchLocks,
    gate: Gate,
    started: Timestamp,
    /// Becomes true when the process is to end.
    stopped: watch::Sender<bool>,
}

/// Runs the service of a store in the foreground until it is stopped.
pub fn run(dir: &Path) -> Result<()> {
    startup::start(dir)?.serve()
}

/// The same in the background, for a starter that listens on stdout.
pub fn run_spawned(dir: &Path) -> Result<()> {
    startup::leave_session();
    match startup::start(dir) {
        Ok(running) => {
            startup::tell(&Ok(()));
            running.serve()
        }
        Err(down) => {
            startup::tell(&Err(down));
            Ok(())
        }
    }
}

impl Service {
    fn new(store: Arc<Store>) -> Result<Service> {
        Ok(Service {
            table: Table::load(store.dir())?,
            store,
            locks: BranchLocks::default(),
            gate: Gate::default(),
            started: Timestamp::now(),
            stopped: watch::Sender::new(false),
        })
    }

    pub fn status(&self) -> Result<Status> {
        Ok(Status {
            store: self.store_status()?,
            service: Process {
                pid: process::id(),
                version: env!("CARGO_PKG_VERSION").into(),
                started: self.started,
            },
            branches: self.store.branches().len(),
            snapshots: self.store.snapshots(None).len(),
            mounts: self.mounts()?,
        })
    }

    fn store_status(&self) -> Result<status::Store> {
        let dir = self.store.dir();
        let space = statvfs(dir).map_err(Error::path("look at", dir))?;
        Ok(status::Store {
            dir: dir.into(),
            total: space.blocks() * space.fragment_size(),
            available: space.blocks_available() * space.fragment_size(),
            warning: self.store.warning().map(String::from),
        })
    }

    /// To be called every now and then.
    fn tidy(self: &Arc<Self>) {
        match self.store.is_deleted() {
            false => self.store.tidy(),
            true => {
                tracing::error!("the store was deleted: stopping");
                log_failure("stop", self.stop(true));
            }
        }
    }

    /// Unmounts everything and lets the process end. Refused while a mount is in use, unless forced.
    pub fn stop(self: &Arc<Self>, force: bool) -> Result<()> {
        self.gate.close(|| self.unmount_all(force))?;
        tracing::info!("stopping");
        self.stopped.send_replace(true);
        Ok(())
    }
}
