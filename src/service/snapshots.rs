//! Snapshots, from the command line and from the hidden directory of a branch's mount.
//!
//! Each is one step of the store's own, so none takes a branch's lock.

use std::sync::Arc;

use fusefs::Snapshots;
use jiff::Timestamp;
use pageserver::{BranchName, Keep, LayerId, SnapshotInfo, SnapshotName, Store, Tag, Time, View};

use super::Service;
use crate::api::snapshots::{NewSnapshot, Snapshot, SnapshotChange};
use crate::error::{Kind, Result};
use crate::time::{now, time};

impl Service {
    /// Those of a branch, or all.
    pub fn snapshots(&self, branch: Option<&BranchName>) -> Result<Vec<Snapshot>> {
        if let Some(branch) = branch {
            let store = self.storages.store_of(branch)?;
            return Ok(described(&store, store.snapshots(Some(branch))));
        }
        let stores = self.storages.stores();
        Ok(stores
            .iter()
            .flat_map(|(_, store)| described(store, store.snapshots(None)))
            .collect())
    }

    pub fn snapshot(&self, name: &SnapshotName) -> Result<Snapshot> {
        let store = self.storages.store_of(&name.branch)?;
        Ok(described_one(&store, store.snapshot(name)?))
    }

    pub fn create_snapshot(&self, new: &NewSnapshot) -> Result<Snapshot> {
        let _inside = self.gate.enter()?;
        let name = &new.name;
        let keep = keep(new.protected, new.expires);
        let store = self.storages.store_of(&name.branch)?;
        if new.checkpoint {
            self.checkpoint(&name.branch)?;
        }
        let info = store.create_snapshot(name, keep, now())?;
        tracing::info!("snapshot {name} taken");
        Ok(info.into())
    }

    /// Gives a snapshot another tag, or changes how long it is to stay.
    pub fn change_snapshot(&self, name: &SnapshotName, change: &SnapshotChange) -> Result<Snapshot> {
        let _inside = self.gate.enter()?;
        let store = self.storages.store_of(&name.branch)?;
        let mut info = store.snapshot(name)?;
        if change.protected.is_some() || change.expires.is_some() {
            let expires = change.expires.map(|expires| expires.map(time));
            info = store.keep_snapshot(name, change.protected, expires)?;
        }
        if let Some(tag) = &change.tag {
            info = store.rename_snapshot(name, tag)?;
            tracing::info!("snapshot {name} is now {}", info.name);
        }
        Ok(described_one(&store, info))
    }

    /// Why the snapshot would not be destroyed now, if so.
    pub fn check_snapshot_destroyable(&self, name: &SnapshotName) -> Result<()> {
        let _inside = self.gate.enter()?;
        Ok(self.released(name)?.check_snapshot_destroyable(name)?)
    }

    pub fn destroy_snapshot(&self, name: &SnapshotName) -> Result<()> {
        let _inside = self.gate.enter()?;
        self.released(name)?.destroy_snapshot(name)?;
        tracing::info!("snapshot {name} destroyed");
        Ok(())
    }

    /// The snapshot's store, after the branch's mount has let go of the snapshot, where nothing else keeps it.
    fn released(&self, name: &SnapshotName) -> Result<Arc<Store>> {
        let store = self.storages.store_of(&name.branch)?;
        let layer = store.snapshot(name)?.layer;
        if let Err(pageserver::Error::Busy { .. }) = store.check_snapshot_destroyable(name) {
            self.table.release_snapshot(&name.branch, layer);
        }
        Ok(store)
    }

    /// Destroys the snapshots whose time has come. One that is protected or in use stays until it isn't.
    pub(super) fn destroy_expired(&self) {
        for (_, store) in self.storages.stores() {
            let due = |info: &SnapshotInfo| info.expires.is_some_and(|at| at <= now());
            for info in store.snapshots(None).into_iter().filter(due) {
                match self.destroy_if_expired(&info.name) {
                    Err(error) if error.kind != Kind::Refused => {
                        tracing::error!("{} has expired, but stays: {error}", info.name);
                    }
                    _ => {}
                }
            }
        }
    }

    /// Somebody may have given it more time since it was looked at.
    fn destroy_if_expired(&self, name: &SnapshotName) -> Result<()> {
        let _inside = self.gate.enter()?;
        if self.released(name)?.destroy_expired_snapshot(name, now())? {
            tracing::info!("snapshot {name} has expired");
        }
        Ok(())
    }
}

fn keep(protected: bool, expires: Option<Timestamp>) -> Keep {
    let expires = expires.map(time);
    Keep { protected, expires }
}

fn described(store: &Store, infos: Vec<SnapshotInfo>) -> Vec<Snapshot> {
    infos.into_iter().map(|info| described_one(store, info)).collect()
}

/// With what has to be looked up; a snapshot that is gone meanwhile has none of it.
fn described_one(store: &Store, info: SnapshotInfo) -> Snapshot {
    let bytes = store.snapshot_bytes(&info.name).ok();
    let wal_to_replay = store.wal_to_replay(&info.name).ok();
    Snapshot {
        used: bytes.map(|bytes| bytes.alone),
        total: bytes.map(|bytes| bytes.whole),
        wal_to_replay,
        ..Snapshot::from(info)
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

    fn find(&self, tag: &Tag) -> Option<LayerId> {
        self.store.find_snapshot(&self.named(tag))
    }

    fn has(&self, layer: LayerId) -> bool {
        self.store.is_snapshot_of(&self.branch, layer)
    }

    fn view(&self, layer: LayerId) -> pageserver::Result<Arc<View>> {
        self.store.sealed_view(layer)
    }

    fn take(&self, tag: &Tag, now: Time) -> pageserver::Result<SnapshotInfo> {
        let name = self.named(tag);
        let taken = self.store.create_snapshot(&name, Keep::default(), now)?;
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
