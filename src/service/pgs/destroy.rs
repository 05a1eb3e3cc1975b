//! Taking a pg away: its server, its mount, its branch with its snapshots, its record.

use std::path::Path;
use std::sync::Arc;
use std::{fs, io};

use pageserver::BranchName;

use super::Service;
use crate::error::Result;
use crate::postgres::server::StopMode;
use crate::service::jobs::Job;
use crate::service::memory::{PgRecord, Unfinished};
use crate::service::mounts::log_failure;

impl Service {
    /// Why the pg would not be destroyed now, if so. Programs that use its directory are left aside: a server among
    /// them is stopped first, and of others only the unmounting tells.
    pub fn check_pg_destroyable(&self, name: &BranchName) -> Result<()> {
        let _inside = self.gate.enter()?;
        self.pg_record(name)?;
        self.check_branch_let_go(name)
    }

    pub fn destroy_pg(self: &Arc<Self>, name: &BranchName, job: &Job) -> Result<()> {
        let _inside = self.gate.enter()?;
        self.locks.with(name, || {
            let record = self.pg_record(name)?;
            self.check_branch_let_go(name)?;
            let ran = self.stop_pg(name, StopMode::Fast, job)?;
            job.step(format!("destroy {name}"));
            let gone = self.let_go_of(name, &record).inspect_err(|_| {
                if ran {
                    log_failure("start the server again", self.start_pg(name, job));
                }
            });
            gone?;
            log_failure("remove the log", remove_log(&self.log_of(name)));
            tracing::info!("pg {name} on {} destroyed", record.dir.display());
            Ok(())
        })
    }

    /// As the pg goes, what was looked at through its own mount is no reason to stay.
    fn check_branch_let_go(&self, name: &BranchName) -> Result<()> {
        let store = self.storages.store_of(name)?;
        for snapshot in store.snapshots(Some(name)) {
            self.table.release_snapshot(name, snapshot.layer);
        }
        Ok(store.check_branch_destroyable(name)?)
    }

    /// What is in use makes it fail before anything is gone.
    fn let_go_of(self: &Arc<Self>, name: &BranchName, record: &PgRecord) -> Result<()> {
        let dir = match self.table.head_of(name) {
            Some(dir) => {
                self.unmount_patiently(&dir)?;
                self.table.settle(&dir, Err("its pg is being destroyed".into()));
                dir
            }
            None => record.dir.clone(),
        };
        let unfinished = Unfinished {
            branch: name.clone(),
            storage: record.storage.clone(),
            dir: dir.clone(),
            made_dir: true,
        };
        let begun = self.memory.change(|memory| {
            memory.pgs.remove(name);
            memory.schedules.remove(name);
            memory.unfinished.push(unfinished.clone());
        });
        begun.inspect_err(|_| log_failure("mount again", self.remount(&dir).map(drop)))?;
        self.discard(&unfinished)
    }
}

fn remove_log(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}
