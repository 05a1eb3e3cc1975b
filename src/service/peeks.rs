//! A temporary server over a snapshot, to look into it with psql.
//!
//! It runs on a copy-on-write branch that goes when whoever asked for it lets go of its connection, be it because psql
//! ended or because the command was killed. What a killed service leaves is unfinished, and taken away at the next start.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use nix::unistd::mkdtemp;
use pageserver::{Bond, BranchName, SnapshotName, Start};

use super::Service;
use super::memory::Unfinished;
use super::mounts::log_failure;
use super::pgs::create::{OTHER_PORTS, Plan};
use crate::api::peeks::{NewPeek, Peek};
use crate::error::{Error, Result};
use crate::postgres::programs::{self, Programs};
use crate::postgres::server::{self, Server, StopMode};
use crate::postgres::{Owner, cluster};

/// Everyone can reach what is mounted in /tmp, so that Postgres' own user can.
const TEMPLATE: &str = "/tmp/zenith-peek-XXXXXX";

/// How the branches are called: `peek-1`, …
const NAMES: &str = "peek-";

/// What changes nothing that is kept, and nothing of it must outlive a power cut.
const SETTINGS: [&str; 5] = [
    "default_transaction_read_only=on",
    "listen_addresses=",
    "fsync=off",
    "autovacuum=off",
    "archive_mode=off",
];

/// Peeks that are open.
#[derive(Default)]
pub struct Peeks {
    open: Mutex<BTreeMap<BranchName, Running>>,
}

struct Running {
    unfinished: Unfinished,
    programs: Programs,
    owner: Owner,
    port: u16,
}

/// Ends the peek when it is let go of.
pub struct Guard {
    service: Arc<Service>,
    branch: BranchName,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let (service, branch) = (self.service.clone(), self.branch.clone());
        // Stopping a server takes a while, and this may be a thread that must not wait. What can't be done now is unfinished,
        // and so done at the next start.
        let closing = thread::Builder::new().spawn(move || service.close_peek(&branch));
        log_failure("close a peek", closing.map(drop));
    }
}

impl Service {
    pub fn open_peek(self: &Arc<Self>, snapshot: &SnapshotName, new: &NewPeek) -> Result<(Peek, Guard)> {
        let _inside = self.gate.enter()?;
        let storage = self.storages.of(&snapshot.branch)?.0;
        self.snapshot(snapshot)?;
        let dir = mkdtemp(TEMPLATE).map_err(Error::io("make a directory in /tmp"))?;
        let mut opened = None;
        let branch = self.with_free_name(NAMES, |name| {
            let plan = Plan {
                name: name.clone(),
                dir: dir.clone(),
                start: Start::Snapshot(snapshot.clone()),
                bond: Bond::Tied,
                storage: storage.clone(),
                owner: Owner::own(),
                port: None,
                follows: None,
            };
            opened = Some(self.start_peek(&plan, new)?);
            Ok(())
        });
        let branch = branch.inspect_err(|_| remove_dir(&dir))?;
        let service = self.clone();
        let peek = opened.ok_or_else(|| Error::failure("the peek is gone"))?;
        tracing::info!("{branch} looks into {snapshot}");
        Ok((peek, Guard { service, branch }))
    }

    fn start_peek(self: &Arc<Self>, plan: &Plan, new: &NewPeek) -> Result<Peek> {
        let job = self.jobs.silent();
        let find = |dir: &Path| programs::find(&self.bins(&new.pg_bins), Some(cluster::major(dir)?));
        let (programs, unfinished) = self.make_unfinished(plan, &job, find)?;
        let started = self.run_peek(plan, &programs);
        let (peek, owner, port) = started.inspect_err(|_| log_failure("discard a peek", self.discard(&unfinished)))?;
        let mut open = self.peeks.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.insert(
            plan.name.clone(),
            Running {
                unfinished,
                programs,
                owner,
                port,
            },
        );
        Ok(peek)
    }

    /// Starts the server, on another port when somebody was quicker to take one.
    fn run_peek(&self, plan: &Plan, programs: &Programs) -> Result<(Peek, Owner, u16)> {
        let owner = Owner::of_dir(&plan.dir)?;
        let socket_dir = server::socket_dir(owner);
        let log = self.log_file(&plan.name)?;
        let mut tries = 0..OTHER_PORTS;
        loop {
            let port = self.take_port()?;
            let server = Server {
                programs,
                dir: &plan.dir,
                owner,
                port,
                socket_dir: &socket_dir,
                log: &log,
                settings: &SETTINGS,
            };
            match server.start() {
                Ok(()) => {
                    let peek = Peek {
                        conninfo: server.conninfo(),
                        socket_dir,
                        port,
                        psql: programs::psql(&programs.dir),
                        user: owner.name(),
                    };
                    return Ok((peek, owner, port));
                }
                Err(error) => {
                    self.ports().remove(&port);
                    if !server::lost_port(port, &error) || tries.next().is_none() {
                        return Err(error);
                    }
                }
            }
        }
    }

    /// A port for a temporary server, until it is given back.
    fn take_port(&self) -> Result<u16> {
        let mut ports = self.ports();
        let port = self.choose_port(None, &ports)?;
        ports.insert(port);
        Ok(port)
    }

    /// Ends a peek, if nobody has yet.
    fn close_peek(&self, branch: &BranchName) {
        let running = {
            let mut open = self.peeks.open.lock().unwrap_or_else(PoisonError::into_inner);
            open.remove(branch)
        };
        let Some(Running {
            unfinished,
            programs,
            owner,
            port,
        }) = running
        else {
            return;
        };
        let dir = &unfinished.dir;
        if server::pid(dir).is_some() {
            log_failure("stop a peek", server::stop(&programs, owner, dir, StopMode::Immediate));
        }
        self.ports().remove(&port);
        log_failure("take a peek away", self.discard(&unfinished));
        log_failure("remove its log", fs::remove_file(self.log_of(branch)));
    }

    fn ports(&self) -> MutexGuard<'_, BTreeSet<u16>> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For a stop: refused while somebody looks into a snapshot, unless forced.
    pub(super) fn close_peeks(&self, force: bool) -> Result<()> {
        let open: Vec<BranchName> = {
            let open = self.peeks.open.lock().unwrap_or_else(PoisonError::into_inner);
            open.keys().cloned().collect()
        };
        match open.is_empty() || force {
            true => open.iter().for_each(|branch| self.close_peek(branch)),
            false => {
                return Err(Error::refused("somebody looks into a snapshot with psql")
                    .hint("end those sessions, or stop all the same with --force"));
            }
        }
        Ok(())
    }
}

fn remove_dir(dir: &Path) {
    if dir.exists() {
        log_failure("remove a directory in /tmp", fs::remove_dir(dir));
    }
}
