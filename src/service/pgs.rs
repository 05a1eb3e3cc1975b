//! pgs: a data directory each, on a branch and a mount of its own, and the Postgres on it.
//!
//! A pg is its branch (of the same name), its mount (in the table) and a record in the service's memory: the port, the
//! programs, whom it follows. The server itself is not the service's child for long: how it stands is asked of its
//! data directory each time. While a pg is being made or taken away it stands in the memory as unfinished, and a service
//! that finds it there at its start takes it away.

pub(super) mod create;
mod destroy;
mod run;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pageserver::{BranchName, known_names};

use super::Service;
use super::memory::{PgRecord, Place};
use super::mounts::make_dir;
use crate::api::pgs::{Acted, Action, LogText, Pg, PgDetails, Role};
use crate::api::snapshots::lsn;
use crate::error::{Error, Result};
use crate::name::ViewName;
use crate::postgres::programs::{self, Programs};
use crate::postgres::server::{self, Server, Status};
use crate::postgres::{Owner, cluster};
use crate::service::jobs::Job;
use crate::store_dir;

/// Most of a log that is sent at once, in bytes.
const LOG_PART: u64 = 1 << 20;

impl Service {
    pub fn pgs(&self) -> Result<Vec<Pg>> {
        let records = self.memory.get().pgs.clone();
        Ok(records
            .iter()
            .map(|(name, record)| self.described_pg(name, record))
            .collect())
    }

    pub fn pg(&self, name: &BranchName) -> Result<Pg> {
        Ok(self.described_pg(name, &self.pg_record(name)?))
    }

    fn described_pg(&self, name: &BranchName, record: &PgRecord) -> Pg {
        let used = self
            .storages
            .store_of(name)
            .and_then(|store| Ok(store.branch_bytes(name)?));
        let mounted = self.table.head_of(name);
        let standing = mounted.as_ref().map_or(Ok(()), |dir| self.table.check_standing(dir));
        let status = mounted.as_ref().map_or(Status::Stopped, |dir| server::status(dir));
        Pg {
            name: name.clone(),
            role: match record.follows {
                Some(_) => Role::Replica,
                None => Role::Primary,
            },
            follows: record.follows.clone(),
            pid: mounted.as_ref().and_then(|dir| server::pid(dir)),
            mounted: mounted.is_some(),
            dir: mounted.unwrap_or_else(|| record.dir.clone()),
            storage: record.storage.clone(),
            error: standing
                .and(used.as_ref().map(drop).map_err(Error::clone))
                .err()
                .map(|error| error.message),
            used: used.unwrap_or(0),
            port: record.port,
            socket_dir: record.socket_dir.clone(),
            user: record.user.clone(),
            status,
            parent: self.branch(name).ok().and_then(|branch| branch.parent),
            created: record.created,
        }
    }

    pub fn pg_details(&self, name: &BranchName) -> Result<PgDetails> {
        let record = self.pg_record(name)?;
        let pg = self.described_pg(name, &record);
        let store = self.storages.store_of(name)?;
        let control = store
            .timeline(name)
            .ok()
            .and_then(|timeline| timeline.view().postgres().ok().flatten());
        Ok(PgDetails {
            version: control
                .as_ref()
                .and_then(|control| control.version.parse().ok())
                .unwrap_or(0),
            pg_bin: record.pg_bin,
            redo_lsn: control.as_ref().map(|control| lsn(control.redo_lsn)),
            wal_timeline: control.as_ref().map(|control| control.wal_timeline),
            conninfo: server::conninfo(&pg.socket_dir, pg.port, &pg.user, "dbname=postgres"),
            snapshots: store.snapshots(Some(name)).into_iter().map(|info| info.name).collect(),
            replicas: self.followers(name),
            log: self.log_of(name),
            pg,
        })
    }

    pub fn pg_log(&self, name: &BranchName, from: u64) -> Result<LogText> {
        self.pg_record(name)?;
        let path = self.log_of(name);
        let len = fs::metadata(&path).map_or(0, |meta| meta.len());
        let from = from.min(len).max(len.saturating_sub(LOG_PART));
        let text = match len {
            0 => String::new(),
            _ => server::read_from(&path, from).map_err(Error::path("read", &path))?,
        };
        Ok(LogText { text, next: len })
    }

    pub fn act(self: &Arc<Self>, name: &BranchName, action: Action, job: &Job) -> Result<Acted> {
        let _inside = self.gate.enter()?;
        self.pg_record(name)?;
        let locked = |work: &dyn Fn() -> Result<()>| self.locks.with(name, work);
        let mut kept = None;
        match action {
            Action::Start { is_replica: true, at } => return self.add_replica(name, &at, job),
            Action::Start { .. } => locked(&|| self.start_pg(name, job))?,
            // Without the lock: a harder stop overtakes one that waits for clients.
            Action::Stop { mode } => drop(self.stop_pg(name, mode, job)?),
            Action::Restart { mode } => locked(&|| self.restart_pg(name, mode, job))?,
            Action::Promote => locked(&|| self.promote_pg(name, job))?,
            Action::Checkout { tag } => kept = Some(self.locks.with(name, || self.checkout_pg(name, tag, job))?),
        }
        let warning = kept.as_ref().and_then(|_| self.left_behind(name));
        let pg = self.pg(name)?;
        Ok(Acted { pg, kept, warning })
    }

    /// The replicas of a pg.
    fn followers(&self, name: &BranchName) -> Vec<BranchName> {
        let memory = self.memory.get();
        let followers = memory
            .pgs
            .iter()
            .filter(|(_, record)| record.follows.as_ref() == Some(name));
        followers.map(|(name, _)| name.clone()).collect()
    }

    pub(super) fn pg_record(&self, name: &BranchName) -> Result<PgRecord> {
        let memory = self.memory.get();
        memory.pgs.get(name).cloned().ok_or_else(|| {
            let known: Vec<String> = memory.pgs.keys().map(BranchName::to_string).collect();
            let error = Error::not_found(format!("no pg named {name}"));
            match known.is_empty() {
                true => error.hint("there are no pgs yet: `zenith pg create` makes one"),
                false => error.hint(known_names("pgs", name.as_str(), &known)),
            }
        })
    }

    /// The pg's data directory, mounted again if somebody has unmounted it.
    fn data_dir(self: &Arc<Self>, name: &BranchName) -> Result<PathBuf> {
        if let Some(dir) = self.table.head_of(name) {
            self.table.check_standing(&dir)?;
            return Ok(dir);
        }
        let dir = self.pg_record(name)?.dir;
        let view = ViewName::Head(name.clone());
        make_dir(&dir)?;
        Ok(self.place(Place { view, dir })?.dir)
    }

    /// The file that the pg's server logs to, in a directory that is there.
    pub(super) fn log_file(&self, name: &BranchName) -> Result<PathBuf> {
        let log = self.log_of(name);
        if let Some(logs) = log.parent() {
            fs::create_dir_all(logs).map_err(Error::path("make", logs))?;
        }
        Ok(log)
    }

    pub(super) fn log_of(&self, name: &BranchName) -> PathBuf {
        self.storages
            .local()
            .dir()
            .join(store_dir::PG_LOGS)
            .join(format!("{name}.log"))
    }

    /// Does something with the pg's server as it is to run.
    fn with_server<T>(self: &Arc<Self>, name: &BranchName, work: impl FnOnce(&Server) -> Result<T>) -> Result<T> {
        let record = self.pg_record(name)?;
        let dir = self.data_dir(name)?;
        let (owner, programs) = (Owner::of_dir(&dir)?, programs_for(&record, &dir)?);
        let log = self.log_file(name)?;
        work(&Server {
            programs: &programs,
            dir: &dir,
            owner,
            port: record.port,
            socket_dir: &record.socket_dir,
            log: &log,
            settings: &[],
        })
    }
}

/// The programs for what is in the data directory, which may have been upgraded.
fn programs_for(record: &PgRecord, dir: &Path) -> Result<Programs> {
    programs::find(std::slice::from_ref(&record.pg_bin), Some(cluster::major(dir)?))
}
