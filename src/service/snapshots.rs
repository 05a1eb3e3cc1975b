//! Snapshots, from the command line and from the hidden directory of a branch's mount.
//!
//! Each is one step of the store's own, so none takes a branch's lock.

use std::sync::Arc;

use fusefs::Snapshots;
use pageserver::{BranchName, LayerId, SnapshotInfo, SnapshotName, Store, Tag, Time, View};

use super::Service;
use crate::api::snapshots::Snapshot;
use crate::error::Result;
use crate::time::now;

impl Service {
    /// Those of a branch, or all.
    pub fn snapshots(&self, branch: Option<&BranchName>) -> Result<Vec<Snapshot>> {
        if let Some(branch) = branch {
            self.store.branch(branch)?;
        }
        Ok(self.store.snapshots(branch).into_iter().map(Snapshot::from).collect())
    }

    pub fn snapshot(&self, name: &SnapshotName) -> Result<Snapshot> {
        Ok(self.store.snapshot(name)?.into())
    }

    pub fn create_snapshot(&self, name: &SnapshotName) -> Result<Snapshot> {
        let _inside = self.gate.enter()?;
        let info = self.store.create_snapshot(name, now())?;
        tracing::info!("snapshot {name} taken");
        Ok(info.into())
    }

    pub fn destroy_snapshot(&self, name: &SnapshotName) -> Result<()> {
        let _inside = self.gate.enter()?;
        let layer = self.store.snapshot(name)?.layer;
        self.table.release_snapshot(&name.branch, layer);
        self.store.destroy_snapshot(name)?;
        tracing::info!("snapshot {name} destroyed");
        Ok(())
    }
}

/// The snapshots of one branch for its mount. It passes no gate: a stop closes that while it unmounts what this serves.
pub struct Hidden {
    store: Arc<Store>,
    branch: BranchName,
}

impl Hidden {
    pub fn new(store: &Arc<Store>, branch: &BranchName) -> Hidden {
        let (store, branch) = (store.clone(), branch.clone());
        Hidden { store, branch }
    }

    fn named(&self, tag: &Tag) -> SnapshotName {
        SnapshotName {
            branch: self.branch.clone(),
            tag: tag.clone(),
        }
    }
}

impl Snapshots for Hidden {
    fn list(&self) -> Vec<SnapshotInfo> {
        self.store.snapshots(Some(&self.branch))
    }

    fn view(&self, layer: LayerId) -> pageserver::Result<Arc<View>> {
        self.store.sealed_view(layer)
    }

    fn take(&self, tag: &Tag, now: Time) -> pageserver::Result<SnapshotInfo> {
        let name = self.named(tag);
        let taken = self.store.create_snapshot(&name, now)?;
        tracing::info!("snapshot {name} taken through its mount");
        Ok(taken)
    }

    fn destroy(&self, tag: &Tag) -> pageserver::Result<()> {
        let name = self.named(tag);
        self.store.destroy_snapshot(&name)?;
        tracing::info!("snapshot {name} destroyed through its mount");
        Ok(())
    }
}
