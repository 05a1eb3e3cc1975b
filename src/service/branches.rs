//! Branches: list, fork, delete, set back.

use std::path::Path;
use std::sync::Arc;

use pageserver::{BranchInfo, BranchName, SnapshotName, Start};

use super::Service;
use crate::api::branches::{self as api, Branch, CheckedOut, NewBranch};
use crate::error::{Error, Result};
use crate::postgres;
use crate::time::{now, timestamp};

impl Service {
    pub fn branches(&self) -> Vec<Branch> {
        self.store
            .branches()
            .into_iter()
            .map(|info| self.described(info))
            .collect()
    }

    pub fn branch(&self, name: &BranchName) -> Result<Branch> {
        Ok(self.described(self.store.branch(name)?))
    }

    fn described(&self, info: BranchInfo) -> Branch {
        Branch {
            snapshots: self.store.snapshots(Some(&info.name)).len(),
            mounted: self.table.head_of(&info.name),
            parent: info.parent,
            created: timestamp(info.created),
            name: info.name,
        }
    }

    pub fn create_branch(self: &Arc<Self>, new: &NewBranch) -> Result<Branch> {
        let _inside = self.gate.enter()?;
        self.locks.with(&new.name, || match &new.start {
            api::Start::Empty => self.add_branch(&new.name, &Start::Empty),
            api::Start::View(view) => self.add_branch(&new.name, &view.clone().start()),
            api::Start::Cluster(cluster) => self.make_cluster(&new.name, cluster),
        })?;
        self.branch(&new.name)
    }

    pub(super) fn add_branch(&self, name: &BranchName, start: &Start) -> Result<()> {
        let made = self.store.create_branch(name, start, postgres::owner(), now())?;
        tracing::info!(from = made.parent, "branch {name} made");
        Ok(())
    }

    pub fn destroy_branch(&self, name: &BranchName) -> Result<()> {
        let _inside = self.gate.enter()?;
        self.locks.with(name, || {
            if let Some(dir) = self.table.head_of(name) {
                return Err(mounted(name, &dir));
            }
            self.store.destroy_branch(name)?;
            self.table.forget_branch(name)?;
            tracing::info!("branch {name} deleted");
            Ok(())
        })
    }

    /// Sets a branch back. Where it is mounted it is unmounted and mounted again around that.
    pub fn checkout(self: &Arc<Self>, to: &SnapshotName) -> Result<CheckedOut> {
        let _inside = self.gate.enter()?;
        self.locks.with(&to.branch, || {
            self.store.snapshot(to)?;
            let dir = self.table.head_of(&to.branch);
            if let Some(dir) = &dir {
                self.unmount(dir)?;
            }
            let kept = self.store.checkout(to, now());
            let mount = dir.map(|dir| self.remount(&dir)).transpose()?;
            let kept = kept?;
            tracing::info!("{} set back to {to}; before: {kept}", to.branch);
            Ok(CheckedOut {
                at: to.clone(),
                kept,
                mount,
            })
        })
    }
}

fn mounted(name: &BranchName, dir: &Path) -> Error {
    Error::refused(format!("{name} is mounted on {}", dir.display()))
        .hint(format!("`zenith umount {}` first", dir.display()))
}
