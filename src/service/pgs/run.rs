//! Starting, stopping, promoting and setting back what is there, and standbys beside it.

use std::path::PathBuf;
use std::sync::Arc;

use pageserver::{Bond, BranchName, SnapshotName, Start, Tag};

use super::create::Plan;
use super::{Service, programs_for};
use crate::api::pgs::{Acted, At, Role};
use crate::error::{Error, Result};
use crate::postgres::server::{self, Status, StopMode};
use crate::postgres::{Owner, cluster};
use crate::service::jobs::Job;
use crate::service::mounts::log_failure;

/// How standbys are called: `replica-1`, `replica-2`, …
const REPLICAS: &str = "replica-";

impl Service {
    /// Starts the pg's server. To be called with the pg's lock, as all of these.
    pub(super) fn start_pg(self: &Arc<Self>, name: &BranchName, job: &Job) -> Result<()> {
        let dir = self.data_dir(name)?;
        match server::status(&dir) {
            Status::Stopped => server::end_orphan(&dir),
            Status::Stopping => return Err(Error::refused(format!("{name} is stopping")).hint("try again in a moment")),
            Status::Starting | Status::Running => {
                return Err(
                    Error::refused(format!("{name} is running already")).hint("`zenith pg restart` restarts it")
                );
            }
        }
        self.with_server(name, |server| {
            job.step(format!(
                "start PostgreSQL {} on port {}",
                server.programs.major, server.port
            ));
            server.start()
        })?;
        tracing::info!("{name} started");
        Ok(())
    }

    /// Whether it ran.
    pub(super) fn stop_pg(&self, name: &BranchName, mode: StopMode, job: &Job) -> Result<bool> {
        let Some(dir) = self.table.head_of(name) else {
            return Ok(false);
        };
        self.table.check_standing(&dir)?;
        if server::status(&dir) == Status::Stopped {
            server::end_orphan(&dir);
            job.step(format!("{name} was not running"));
            return Ok(false);
        }
        job.step(format!("stop {name}"));
        let record = self.pg_record(name)?;
        server::stop(&programs_for(&record, &dir)?, Owner::of_dir(&dir)?, &dir, mode)?;
        tracing::info!("{name} stopped");
        Ok(true)
    }

    pub(super) fn restart_pg(self: &Arc<Self>, name: &BranchName, mode: StopMode, job: &Job) -> Result<()> {
        self.noting_restart(name, mode, || {
            self.stop_pg(name, mode, job)?;
            self.start_pg(name, job)
        })
    }

    /// Does what ends and starts a server so that it is started again also by the next service.
    fn noting_restart<T>(&self, name: &BranchName, mode: StopMode, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let note = |restarting| {
            self.memory.change(|memory| {
                if let Some(record) = memory.pgs.get_mut(name) {
                    record.restarting = restarting;
                }
            })
        };
        note(Some(mode))?;
        let done = work();
        log_failure(
            "forget a restart that is over",
            note(None).map_err(|error| error.message),
        );
        done
    }

    pub(super) fn promote_pg(self: &Arc<Self>, name: &BranchName, job: &Job) -> Result<()> {
        let pg = self.pg(name)?;
        if pg.role != Role::Replica {
            return Err(Error::refused(format!("{name} is no replica")).hint("`zenith pg list` shows the roles"));
        }
        if pg.status != Status::Running {
            return Err(
                Error::refused(format!("{name} is not running")).hint(format!("`zenith pg start {name}` first"))
            );
        }
        job.step(format!("promote {name}"));
        self.with_server(name, |server| server.promote())?;
        self.memory.change(|memory| {
            if let Some(record) = memory.pgs.get_mut(name) {
                record.follows = None;
            }
        })?;
        tracing::info!("{name} promoted");
        Ok(())
    }

    /// Sets the pg back. A server that ran runs again afterwards, also when something failed. Returns the name of the
    /// state before.
    pub(super) fn checkout_pg(self: &Arc<Self>, name: &BranchName, tag: Tag, job: &Job) -> Result<SnapshotName> {
        let to = SnapshotName {
            branch: name.clone(),
            tag,
        };
        self.storages.store_of(name)?.snapshot(&to)?;
        let runs = |dir: PathBuf| server::status(&dir) != Status::Stopped;
        match self.table.head_of(name).is_some_and(runs) {
            true => self.noting_restart(name, StopMode::Fast, || {
                self.stop_pg(name, StopMode::Fast, job)?;
                let set_back = self.set_back_telling(&to, job);
                let started = self.start_pg(name, job);
                let kept = set_back?;
                started.map(|()| kept)
            }),
            false => {
                // Ends what a server that is gone may have left.
                self.stop_pg(name, StopMode::Fast, job)?;
                self.set_back_telling(&to, job)
            }
        }
    }

    fn set_back_telling(self: &Arc<Self>, to: &SnapshotName, job: &Job) -> Result<SnapshotName> {
        job.step(format!("set {} back to {to}", to.branch));
        let kept = self.set_back(to)?.kept;
        job.step(format!("the state before is kept as {kept}"));
        Ok(kept)
    }

    /// What to know of the replicas of a pg that was set back: they went on to where it will not come again.
    pub(super) fn left_behind(&self, name: &BranchName) -> Option<String> {
        let replicas = self.followers(name);
        let list: Vec<&str> = replicas.iter().map(BranchName::as_str).collect();
        (!list.is_empty()).then(|| {
            let list = list.join(", ");
            format!("{list} can't follow {name} back: destroy what followed it and add new replicas")
        })
    }

    /// Adds a hot standby on a copy-on-write branch of the pg as it is now.
    pub(super) fn add_replica(self: &Arc<Self>, primary: &BranchName, at: &At, job: &Job) -> Result<Acted> {
        let record = self.pg_record(primary)?;
        if record.follows.is_some() {
            return Err(Error::refused(format!("{primary} is itself a replica")).hint("add replicas to its primary"));
        }
        let dir = self.data_dir(primary)?;
        let owner = Owner::of_dir(&dir)?;
        let programs = programs_for(&record, &dir)?;
        let name = self.with_free_name(REPLICAS, |name| {
            let plan = Plan {
                name: name.clone(),
                dir: self.place_for(name, at),
                start: Start::Branch(primary.clone()),
                bond: Bond::Tied,
                storage: record.storage.clone(),
                owner,
                port: None,
                follows: Some(primary.clone()),
            };
            let more = format!("application_name={name}");
            let conninfo = server::conninfo(&record.socket_dir, record.port, &record.user, &more);
            self.make(&plan, job, |dir| {
                cluster::follow(dir, owner, &conninfo)?;
                Ok(programs.clone())
            })
        })?;
        self.locks.with(&name, || self.start_new(&name, None, job))?;
        let pg = self.pg(&name)?;
        Ok(Acted {
            pg,
            kept: None,
            warning: None,
        })
    }
}

impl Service {
    /// Has the pg's server, if it runs, write a checkpoint.
    pub(in crate::service) fn checkpoint(&self, name: &BranchName) -> Result<()> {
        let record = self.pg_record(name)?;
        let dir = self.table.head_of(name).unwrap_or(record.dir.clone());
        match server::status(&dir) {
            Status::Running => {
                server::checkpoint(&record.pg_bin, Owner::of_dir(&dir)?, &record.socket_dir, record.port)
            }
            _ => Ok(()),
        }
    }
}
