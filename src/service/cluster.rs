//! A new cluster on a new branch: initdb on a mount that is there for it only.
//!
//! Until it is done the cluster stands in the memory as unfinished. Whatever ends it early, be it initdb, the
//! disk or a killed service, leaves no branch behind.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use fusefs::{Fs, Keeping, Mount, Options};
use nix::unistd::mkdtemp;
use pageserver::{BranchName, Start};

use super::Service;
use super::detach::clear;
use super::memory::Unfinished;
use super::mounts::log_failure;
use super::snapshots::Hidden;
use crate::api::branches::NewCluster;
use crate::api::storages::StorageName;
use crate::error::{Error, Result};
use crate::postgres::{Owner, cluster, programs};

/// Everyone can reach what is mounted in /tmp, so that Postgres' own user can.
const TEMPLATE: &str = "/tmp/zenith-initdb-XXXXXX";

impl Service {
    /// To be called with the branch's lock.
    pub(super) fn make_cluster(self: &Arc<Self>, branch: &BranchName, new: &NewCluster) -> Result<()> {
        let storage = StorageName::local();
        self.check_free(&storage, branch)?;
        let dir = mkdtemp(TEMPLATE).map_err(Error::io("make a directory in /tmp"))?;
        let unfinished = Unfinished {
            branch: branch.clone(),
            storage,
            dir,
            made_dir: true,
        };
        let begun = self.memory.change(|memory| memory.unfinished.push(unfinished.clone()));
        let made = begun.and_then(|()| self.initdb_on(&unfinished, new));
        made.and_then(|()| self.finish(&unfinished)).inspect_err(|_| {
            log_failure("discard an unfinished cluster", self.discard(&unfinished));
        })?;
        tracing::info!("branch {branch} has a new cluster");
        log_failure("remove a directory in /tmp", fs::remove_dir(&unfinished.dir));
        Ok(())
    }

    fn initdb_on(self: &Arc<Self>, unfinished: &Unfinished, new: &NewCluster) -> Result<()> {
        let Unfinished { branch, dir, .. } = unfinished;
        let programs = programs::find(&new.pg_bins, None)?;
        let owner = Owner::of_new(None)?;
        self.add_branch(branch, &Start::Empty)?;
        let mount = self.attach_privately(branch, dir)?;
        let cluster = cluster::NewCluster {
            programs: &programs,
            dir,
            owner,
            options: &new.options,
            locale: &new.locale,
        };
        let made = cluster.make();
        let unmounted = mount.unmount();
        made.and(unmounted.map_err(Error::from))
    }

    fn attach_privately(self: &Arc<Self>, branch: &BranchName, dir: &Path) -> Result<Mount> {
        let store = self.storages.store_of(branch)?;
        let fs = Fs::of_branch(store.timeline(branch)?, Box::new(Hidden::new(&store, branch)));
        // Nobody keeps it: what is unfinished goes when the service dies.
        Ok(Mount::new(fs, dir, &Options::new(branch), Keeping::none(), || {})?)
    }

    /// Takes away an unfinished data directory's mount, branch and directory, as far as they are there.
    pub(super) fn discard(&self, unfinished: &Unfinished) -> Result<()> {
        let Unfinished {
            branch,
            storage,
            dir,
            made_dir,
        } = unfinished;
        match self.table.head_of(branch) {
            Some(dir) => self.unmount(&dir)?,
            None => clear(dir)?,
        }
        if let Ok(store) = self.storages.named(storage)
            && store.branch(branch).is_ok()
        {
            store.destroy_branch(branch)?;
        }
        self.table.forget_branch(branch)?;
        self.finish(unfinished)?;
        match fs::remove_dir(dir) {
            Err(error) if *made_dir && dir.exists() => tracing::warn!("{} stays: {error}", dir.display()),
            _ => {}
        }
        Ok(())
    }

    /// From now on the data directory is there, or is gone, for good.
    fn finish(&self, finished: &Unfinished) -> Result<()> {
        self.memory
            .change(|memory| memory.unfinished.retain(|unfinished| unfinished != finished))
    }
}
