//! Making a pg: a branch, a mount, a cluster on it, a port. All of it or nothing.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use jiff::Timestamp;
use pageserver::{Bond, BranchName, Start};

use super::Service;
use crate::api::pgs::{At, NewPg, Pg};
use crate::api::storages::StorageName;
use crate::error::{Error, Result};
use crate::name::ViewName;
use crate::postgres::cluster::{self, NewCluster};
use crate::postgres::programs::{self, Programs};
use crate::postgres::{Owner, server};
use crate::service::jobs::Job;
use crate::service::memory::{PgRecord, Place, Unfinished};
use crate::service::mounts::{log_failure, make_dir};

/// How pgs are called that nobody names: `pgdata1`, `pgdata2`, …
const NAMES: &str = "pgdata";

/// How often something new gets another port when somebody was quicker.
pub(in crate::service) const OTHER_PORTS: usize = 5;

/// A pg that is about to be made.
pub(in crate::service) struct Plan {
    pub name: BranchName,
    pub dir: PathBuf,
    pub start: Start,
    pub bond: Bond,
    pub storage: StorageName,
    pub owner: Owner,
    pub port: Option<u16>,
    pub follows: Option<BranchName>,
}

impl Service {
    pub fn create_pg(self: &Arc<Self>, name: Option<&BranchName>, new: &NewPg, job: &Job) -> Result<Pg> {
        let _inside = self.gate.enter()?;
        let name = match name {
            Some(name) => {
                self.locks.with(name, || self.create_named(name, new, job))?;
                name.clone()
            }
            None => self.with_free_name(NAMES, |name| self.create_named(name, new, job))?,
        };
        if new.start {
            self.locks.with(&name, || self.start_new(&name, new.port, job))?;
        }
        self.pg(&name)
    }

    /// The first start of a pg. A port that nobody asked for may have been taken meanwhile, by something that isn't this
    /// service's: then it gets another.
    pub(super) fn start_new(self: &Arc<Self>, name: &BranchName, wanted: Option<u16>, job: &Job) -> Result<()> {
        let mut started = self.start_pg(name, job);
        for _ in 0..OTHER_PORTS {
            let port = self.pg_record(name)?.port;
            match &started {
                Err(error) if wanted.is_none() && server::lost_port(port, error) => {
                    self.move_port(name)?;
                    started = self.start_pg(name, job);
                }
                _ => break,
            }
        }
        started.map_err(|error| Error {
            message: format!("{name} was made, but {}", error.message),
            ..error
        })
    }

    fn move_port(&self, name: &BranchName) -> Result<()> {
        let held = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        let port = self.choose_port(None, &held)?;
        self.memory.change(|memory| {
            if let Some(record) = memory.pgs.get_mut(name) {
                record.port = port;
            }
        })
    }

    /// Works on the first name of the sequence that nobody has, under its lock.
    pub(in crate::service) fn with_free_name(
        &self,
        prefix: &str,
        mut work: impl FnMut(&BranchName) -> Result<()>,
    ) -> Result<BranchName> {
        let mut number = 0;
        loop {
            number += 1;
            let name: BranchName = format!("{prefix}{number}").parse()?;
            let done = self.locks.with(&name, || match self.is_taken(&name) {
                true => None,
                false => Some(work(&name)),
            });
            if let Some(done) = done {
                return done.map(|()| name);
            }
        }
    }

    fn is_taken(&self, name: &BranchName) -> bool {
        self.storages.store_of(name).is_ok() || self.memory.get().pgs.contains_key(name)
    }

    fn create_named(self: &Arc<Self>, name: &BranchName, new: &NewPg, job: &Job) -> Result<()> {
        if self.memory.get().pgs.contains_key(name) {
            return Err(Error::refused(format!("a pg named {name} exists already")).hint("take another name"));
        }
        for (setting, value) in &new.settings {
            cluster::check_setting(setting, value).map_err(Error::usage)?;
        }
        if new.from.as_ref() == Some(&ViewName::Head(name.clone())) {
            return self.adopt(name, new, job);
        }
        let plan = self.plan(name, new)?;
        match new.from {
            None => {
                let programs = programs::find(&new.pg_bins, new.pg_version)?;
                self.make(&plan, job, |dir| {
                    job.step(format!("initdb, PostgreSQL {}", programs.major));
                    let cluster = NewCluster {
                        programs: &programs,
                        dir,
                        owner: plan.owner,
                        options: &new.initdb,
                        locale: &new.locale,
                    };
                    cluster.make()?;
                    cluster::configure(dir, &new.settings)?;
                    Ok(programs.clone())
                })
            }
            Some(_) => self.make(&plan, job, |dir| {
                let programs = self.check_cluster(dir, new)?;
                cluster::configure(dir, &new.settings)?;
                Ok(programs)
            }),
        }
    }

    fn plan(&self, name: &BranchName, new: &NewPg) -> Result<Plan> {
        if self.storages.store_of(name).is_ok() {
            let name = name.to_string();
            return Err(pageserver::Error::BranchExists { name }.into());
        }
        let source = match &new.from {
            Some(from) => Some(self.storages.of(from.branch())?.0),
            None => None,
        };
        let storage = match (source, &new.storage) {
            (Some(source), Some(wanted)) if source != *wanted => {
                return Err(Error::refused(format!(
                    "a copy of what lies in the storage {source} can't go to {wanted} yet"
                ))
                .hint(format!(
                    "leave -s away, or copy the files: `zenith pg create -s {wanted}` and pg_basebackup"
                )));
            }
            (Some(source), _) => source,
            (None, wanted) => wanted.clone().unwrap_or_else(StorageName::local),
        };
        Ok(Plan {
            name: name.clone(),
            dir: self.place_for(name, &new.at),
            start: new.from.clone().map_or(Start::Empty, ViewName::start),
            bond: if new.cow { Bond::Tied } else { Bond::Independent },
            storage,
            owner: Owner::of_new(new.user.as_deref())?,
            port: new.port,
            follows: None,
        })
    }

    pub(super) fn place_for(&self, name: &BranchName, at: &At) -> PathBuf {
        match at {
            At::Dir(dir) => dir.clone(),
            At::In(dir) => dir.join(name.as_str()),
            At::BesideStore => {
                let store = self.storages.local().dir();
                store.parent().unwrap_or(store).join(name.as_str())
            }
        }
    }

    /// Makes a pg: `fill` completes the mounted data directory and finds the programs for it. When a step fails, what
    /// was made goes away again.
    pub(super) fn make(
        self: &Arc<Self>,
        plan: &Plan,
        job: &Job,
        fill: impl FnOnce(&Path) -> Result<Programs>,
    ) -> Result<()> {
        self.refuse_port(plan.port)?;
        let (programs, unfinished) = self.make_unfinished(plan, job, fill)?;
        self.remember(plan, &programs, Some(&unfinished))
            .inspect_err(|_| log_failure("discard an unfinished pg", self.discard(&unfinished)))?;
        tracing::info!("pg {} made", plan.name);
        Ok(())
    }

    /// The same, as something that a service takes away that finds it when it starts.
    pub(in crate::service) fn make_unfinished(
        self: &Arc<Self>,
        plan: &Plan,
        job: &Job,
        fill: impl FnOnce(&Path) -> Result<Programs>,
    ) -> Result<(Programs, Unfinished)> {
        self.check_outside(&plan.dir)?;
        server::check_path(&plan.dir)?;
        // One that is there is nobody's to undo.
        self.check_free(&plan.storage, &plan.name)?;
        let made_dir = make_dir(&plan.dir)?;
        let unfinished = Unfinished {
            branch: plan.name.clone(),
            storage: plan.storage.clone(),
            dir: plan.dir.clone(),
            made_dir,
        };
        let begun = self.memory.change(|memory| memory.unfinished.push(unfinished.clone()));
        let made = begun.and_then(|()| {
            check_reachable(&plan.dir, plan.owner)?;
            job.step(format!("mount {} on {}", plan.name, plan.dir.display()));
            self.add_branch_to(&plan.storage, &plan.name, &plan.start, plan.bond, plan.owner)?;
            let view = ViewName::Head(plan.name.clone());
            let dir = plan.dir.clone();
            self.place(Place { view, dir })?;
            fill(&plan.dir)
        });
        let programs =
            made.inspect_err(|_| log_failure("discard an unfinished data directory", self.discard(&unfinished)))?;
        Ok((programs, unfinished))
    }

    /// From now on the pg is there for good.
    fn remember(&self, plan: &Plan, programs: &Programs, finished: Option<&Unfinished>) -> Result<()> {
        let owner = Owner::of_dir(&plan.dir)?;
        let held = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        let record = PgRecord {
            dir: plan.dir.clone(),
            port: self.choose_port(plan.port, &held)?,
            socket_dir: server::socket_dir(owner),
            user: owner.name(),
            storage: plan.storage.clone(),
            pg_bin: programs.dir.clone(),
            follows: plan.follows.clone(),
            restarting: None,
            created: Timestamp::now(),
        };
        self.memory.change(|memory| {
            memory.unfinished.retain(|unfinished| Some(unfinished) != finished);
            memory.pgs.insert(plan.name.clone(), record);
        })
    }

    /// Makes a branch that is there a pg, where it is mounted or is to be.
    fn adopt(self: &Arc<Self>, name: &BranchName, new: &NewPg, job: &Job) -> Result<()> {
        let (storage, _) = self.storages.of(name)?;
        let dir = match self.table.head_of(name) {
            Some(dir) => dir,
            None => {
                let dir = self.place_for(name, &new.at);
                self.check_outside(&dir)?;
                make_dir(&dir)?;
                job.step(format!("mount {name} on {}", dir.display()));
                let view = ViewName::Head(name.clone());
                self.place(Place { view, dir })?.dir
            }
        };
        server::check_path(&dir)?;
        let owner = Owner::of_dir(&dir)?;
        check_reachable(&dir, owner)?;
        let programs = self.check_cluster(&dir, new)?;
        cluster::configure(&dir, &new.settings)?;
        let plan = Plan {
            name: name.clone(),
            dir,
            start: Start::Empty,
            bond: Bond::Independent,
            storage,
            owner,
            port: new.port,
            follows: None,
        };
        self.remember(&plan, &programs, None)
    }

    /// The programs for the cluster in a data directory.
    pub(super) fn check_cluster(&self, dir: &Path, new: &NewPg) -> Result<Programs> {
        let major = cluster::major(dir)?;
        match new.pg_version {
            Some(wanted) if wanted != major => Err(Error::refused(format!(
                "{} holds PostgreSQL {major}, not {wanted}",
                dir.display()
            ))
            .hint("leave --pg-version away: the version of the data decides")),
            _ => programs::find(&self.bins(&new.pg_bins), Some(major)),
        }
    }

    /// Where to look for programs: what the caller names, then what other pgs run on, as a copy's source does.
    pub(in crate::service) fn bins(&self, of_caller: &[PathBuf]) -> Vec<PathBuf> {
        let memory = self.memory.get();
        let known = memory.pgs.values().map(|record| record.pg_bin.clone());
        of_caller.iter().cloned().chain(known).collect()
    }

    pub(in crate::service) fn choose_port(&self, wanted: Option<u16>, held: &BTreeSet<u16>) -> Result<u16> {
        self.refuse_port(wanted)?;
        let memory = self.memory.get();
        let of_pgs = memory.pgs.values().map(|record| record.port);
        let taken: Vec<u16> = of_pgs.chain(held.iter().copied()).collect();
        wanted.map_or_else(|| server::free_port(&taken), Ok)
    }

    fn refuse_port(&self, wanted: Option<u16>) -> Result<()> {
        let memory = self.memory.get();
        let taken = memory.pgs.iter().find(|(_, record)| Some(record.port) == wanted);
        match taken {
            None => Ok(()),
            Some((name, record)) => {
                Err(Error::refused(format!("port {} belongs to {name}", record.port))
                    .hint("take another --port, or none"))
            }
        }
    }
}

/// Refuses a place that the user who runs Postgres can't get to. Only root runs it as somebody else.
fn check_reachable(dir: &Path, owner: Owner) -> Result<()> {
    if owner.uid == nix::unistd::geteuid() {
        return Ok(());
    }
    for above in dir.ancestors().skip(1) {
        let meta = fs::metadata(above).map_err(Error::path("look at", above))?;
        let enter = match (meta.uid() == owner.uid.as_raw(), meta.gid() == owner.gid.as_raw()) {
            (true, _) => 0o100,
            (false, true) => 0o010,
            (false, false) => 0o001,
        };
        if meta.mode() & enter == 0 {
            let (user, above) = (owner.name(), above.display());
            return Err(Error::refused(format!(
                "the user {user}, who is to run Postgres, can't get into {above}"
            ))
            .hint(format!("`chmod o+x {above}`, or give a place elsewhere with --dir")));
        }
    }
    Ok(())
}
