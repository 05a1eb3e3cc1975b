//! A new cluster on a new branch: initdb on a mount that is there for it only.
//!
//! Until it is done the cluster stands in the table's file as unfinished. Whatever ends it early, be it initdb, the
//! disk or a killed service, leaves no branch behind.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use fusefs::{Fs, Mount, Options};
use nix::unistd::mkdtemp;
use pageserver::{BranchName, Start};

use super::Service;
use super::detach::clear;
use super::mounts::log_failure;
use super::remembered::Unfinished;
use super::snapshots::Hidden;
use crate::api::branches::NewCluster;
use crate::error::{Error, Result};
use crate::postgres::Cluster;

/// Everyone can reach what is mounted in /tmp, so that Postgres' own user can.
const TEMPLATE: &str = "/tmp/zenith-initdb-XXXXXX";

impl Service {
    /// To be called with the branch's lock.
    pub(super) fn make_cluster(self: &Arc<Self>, branch: &BranchName, new: &NewCluster) -> Result<()> {
        if self.store.branch(branch).is_ok() {
            let name = branch.to_string();
            return Err(pageserver::Error::BranchExists { name }.into());
        }
        let dir = mkdtemp(TEMPLATE).map_err(Error::io("make a directory in /tmp"))?;
        let unfinished = Unfinished {
            branch: branch.clone(),
            dir,
        };
        let begun = self.table.begin(&unfinished);
        let made = begun.and_then(|()| self.initdb_on(&unfinished, new));
        made.and_then(|()| self.table.finish(&unfinished)).inspect_err(|_| {
            log_failure("discard an unfinished cluster", self.discard(&unfinished));
        })?;
        tracing::info!("branch {branch} has a new cluster");
        log_failure("remove a directory in /tmp", fs::remove_dir(&unfinished.dir));
        Ok(())
    }

    fn initdb_on(self: &Arc<Self>, Unfinished { branch, dir }: &Unfinished, new: &NewCluster) -> Result<()> {
        self.add_branch(branch, &Start::Empty)?;
        let mount = self.attach_privately(branch, dir)?;
        let cluster = Cluster {
            pg_bin: &new.pg_bin,
            dir,
            options: &new.options,
            locale: &new.locale,
        };
        let made = cluster.initdb();
        let unmounted = mount.unmount();
        made.and(unmounted.map_err(Error::from))
    }

    fn attach_privately(self: &Arc<Self>, branch: &BranchName, dir: &Path) -> Result<Mount> {
        let fs = Fs::of_branch(self.store.timeline(branch)?, Box::new(Hidden::new(&self.store, branch)));
        Ok(Mount::new(fs, dir, &Options::new(branch), || {})?)
    }

    /// Takes away an unfinished cluster's branch and directory, as far as they are there.
    pub(super) fn discard(&self, unfinished: &Unfinished) -> Result<()> {
        let Unfinished { branch, dir } = unfinished;
        clear(dir)?;
        if dir.exists() {
            fs::remove_dir(dir).map_err(Error::path("remove", dir))?;
        }
        match self.store.destroy_branch(branch) {
            Err(pageserver::Error::NoBranch { .. }) => Ok(()),
            destroyed => destroyed,
        }?;
        self.table.finish(unfinished)
    }
}
