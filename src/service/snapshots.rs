//! Snapshots, from the command line and from the hidden directory of a branch's mount.

use std::sync::{Arc, Weak};

use fusefs::Snapshots;
use pageserver::{BranchName, LayerId, SnapshotInfo, SnapshotName, Store, Tag, Time, View};

use super::Service;
use crate::api::snapshots::Snapshot;
use crate::error::Result;
use crate::name::ViewName;
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

    /// Takes no branch lock: it may come at any moment between the steps of another operation.
    pub fn create_snapshot(&self, name: &SnapshotName) -> Result<Snapshot> {
        let _inside = self.gate.enter()?;
        let info = self.store.create_snapshot(name, now())?;
        tracing::info!("snapshot {name} taken");
        Ok(info.into())
    }

    pub fn destroy_snapshot(&self, name: &SnapshotName) -> Result<()> {
        let _inside = self.gate.enter()?;
        Ok(self.drop_snapshot(name)?)
    }

    /// Without the gate: a stop that waits at it for this would wait for ever, since it unmounts what this serves.
    fn drop_snapshot(&self, name: &SnapshotName) -> pageserver::Result<()> {
        self.locks.with(&name.branch, || {
            if self.table.dir_of(&ViewName::Snapshot(name.clone())).is_some() {
                return Err(pageserver::Error::Busy { name: name.to_string() });
            }
            let layer = self.store.snapshot(name)?.layer;
            self.table.release_snapshot(&name.branch, layer);
            self.store.destroy_snapshot(name)?;
            tracing::info!("snapshot {name} destroyed");
            Ok(())
        })
    }
}

/// The snapshots of one branch for its mount. The mount belongs to the service, so it holds it weakly.
pub struct Hidden {
    service: Weak<Service>,
    store: Arc<Store>,
    branch: BranchName,
}

impl Hidden {
    pub fn new(service: &Arc<Service>, branch: &BranchName) -> Hidden {
        Hidden {
            service: Arc::downgrade(service),
            store: service.store.clone(),
            branch: branch.clone(),
        }
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
        self.store.create_snapshot(&self.named(tag), now)
    }

    fn destroy(&self, tag: &Tag) -> pageserver::Result<()> {
        let name = self.named(tag);
        match self.service.upgrade() {
            Some(service) => service.drop_snapshot(&name),
            None => Err(pageserver::Error::Busy { name: name.to_string() }),
        }
    }
}
