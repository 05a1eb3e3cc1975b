//! Branches: list, fork, delete, set back.

use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;

use pageserver::{Bond, BranchInfo, BranchName, SnapshotName, Start, Store};

use super::Service;
use crate::api::branches::{self as api, Branch, CheckedOut, NewBranch};
use crate::api::storages::StorageName;
use crate::error::{Error, Result};
use crate::postgres::Owner;
use crate::time::{now, timestamp};

/// Where no user for Postgres is found, a directory is the service's own.
fn owner_of_new() -> Owner {
    Owner::of_new(None).unwrap_or_else(|_| Owner::own())
}

impl Service {
    pub fn branches(&self) -> Vec<Branch> {
        let stores = self.storages.stores();
        stores
            .iter()
            .flat_map(|(storage, store)| {
                let branches = store.branches().into_iter();
                branches.map(|info| self.described(info, storage, store))
            })
            .collect()
    }

    pub fn branch(&self, name: &BranchName) -> Result<Branch> {
        let (storage, store) = self.storages.of(name)?;
        Ok(self.described(store.branch(name)?, &storage, &store))
    }

    fn described(&self, info: BranchInfo, storage: &StorageName, store: &Store) -> Branch {
        Branch {
            snapshots: store.snapshots(Some(&info.name)).len(),
            storage: storage.clone(),
            mounted: self.table.head_of(&info.name),
            parent: info.parent,
            created: timestamp(info.created),
            name: info.name,
        }
    }

    pub fn create_branch(self: &Arc<Self>, new: &NewBranch) -> Result<Branch> {
        let _inside = self.gate.enter()?;
        if new.storage.is_some() && !matches!(new.start, api::Start::Empty) {
            return Err(Error::usage("only an empty branch can be put into a storage")
                .hint("a fork lies where its source does, and shares its blocks"));
        }
        self.locks.with(&new.name, || match &new.start {
            api::Start::Empty => {
                let storage = new.storage.clone().unwrap_or_else(StorageName::local);
                self.add_branch_to(&storage, &new.name, &Start::Empty, Bond::Tied, owner_of_new())
            }
            api::Start::View(view) => self.add_branch(&new.name, &view.clone().start()),
            api::Start::Cluster(cluster) => self.make_cluster(&new.name, cluster),
        })?;
        self.branch(&new.name)
    }

    pub(super) fn add_branch(&self, name: &BranchName, start: &Start) -> Result<()> {
        let storage = match start {
            Start::Empty => StorageName::local(),
            Start::Branch(from) => self.storages.of(from)?.0,
            Start::Snapshot(from) => self.storages.of(&from.branch)?.0,
        };
        self.add_branch_to(&storage, name, start, Bond::Tied, owner_of_new())
    }

    pub(super) fn add_branch_to(
        &self,
        storage: &StorageName,
        name: &BranchName,
        start: &Start,
        bond: Bond,
        owner: Owner,
    ) -> Result<()> {
        let store = self.check_free(storage, name)?;
        let made = store.create_bound_branch(name, start, bond, owner.ids(), now())?;
        tracing::info!(from = made.parent, "branch {name} made in the storage {storage}");
        Ok(())
    }

    /// The storage, where a branch can have that name: names are the same in all storages, so none may have it.
    pub(super) fn check_free(&self, storage: &StorageName, name: &BranchName) -> Result<Arc<Store>> {
        if self.storages.store_of(name).is_ok() {
            let name = name.to_string();
            return Err(pageserver::Error::BranchExists { name }.into());
        }
        let home = self.memory.get().pgs.get(name).map(|record| record.storage.clone());
        if let Some(home) = home.filter(|home| self.storages.named(home).is_err()) {
            return Err(
                Error::refused(format!("{name} is a pg in the storage {home}, which can't be used"))
                    .hint("bring its disk back, or take another name"),
            );
        }
        self.storages.named(storage)
    }

    /// Why the branch would not be destroyed now, if so.
    pub fn check_branch_destroyable(&self, name: &BranchName) -> Result<()> {
        let _inside = self.gate.enter()?;
        self.check_unused(name)?;
        Ok(self.storages.store_of(name)?.check_branch_destroyable(name)?)
    }

    /// A pg's branch goes with the pg, and a mounted one stays.
    fn check_unused(&self, name: &BranchName) -> Result<()> {
        if self.memory.get().pgs.contains_key(name) {
            return Err(Error::refused(format!("{name} is a pg")).hint(format!("`zenith pg destroy {name}`")));
        }
        match self.table.head_of(name) {
            Some(dir) => Err(mounted(name, &dir)),
            None => Ok(()),
        }
    }

    pub fn destroy_branch(&self, name: &BranchName) -> Result<()> {
        let _inside = self.gate.enter()?;
        self.locks.with(name, || {
            self.check_unused(name)?;
            self.storages.store_of(name)?.destroy_branch(name)?;
            self.table.forget_branch(name)?;
            self.memory.change(|memory| drop(memory.schedules.remove(name)))?;
            tracing::info!("branch {name} deleted");
            Ok(())
        })
    }

    /// Sets a branch back. Where it is mounted it is unmounted and mounted again around that.
    pub fn checkout(self: &Arc<Self>, to: &SnapshotName) -> Result<CheckedOut> {
        let _inside = self.gate.enter()?;
        self.locks.with(&to.branch, || self.set_back(to))
    }

    /// To be called with the branch's lock.
    pub(super) fn set_back(self: &Arc<Self>, to: &SnapshotName) -> Result<CheckedOut> {
        let store = self.storages.store_of(&to.branch)?;
        store.snapshot(to)?;
        let dir = self.table.head_of(&to.branch);
        if let Some(dir) = &dir {
            self.unmount_patiently(dir)?;
        }
        let kept = store.checkout(to, now());
        let mount = dir.map(|dir| self.remount(&dir)).transpose()?;
        let kept = kept?;
        tracing::info!("{} set back to {to}; before: {kept}", to.branch);
        Ok(CheckedOut {
            at: to.clone(),
            kept,
            mount,
        })
    }
}

pub(super) fn mounted(name: &impl Display, dir: &Path) -> Error {
    Error::refused(format!("{name} is mounted on {}", dir.display()))
        .hint(format!("`zenith umount {}` first", dir.display()))
}
