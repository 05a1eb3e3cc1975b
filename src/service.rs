//! The service: the one process that owns a store, its mounts and its socket.
//!
//! ```text
//!   cli ──REST──> api ──> Service ──┬─> Storages ──> Store   (pageserver)
//!                                   ├─> Table      which view is mounted where
//!                                   ├─> Memory     mounts, pgs and storages, remembered on disk
//!                   kernel <──FUSE──┴─> Mount      (fusefs)
//! ```
//!
//! Rules:
//! * Operations block, so they run on threads made for that; what is begun goes on although its client goes away.
//! * What takes several steps (mount, umount, checkout, …) holds its branch's lock ([`locks`]) and undoes what it
//!   did when a later step fails. What outlives a crash in the middle stands in the memory beforehand.
//! * Stopping waits for the operations that run, lets no new ones in, and unmounts without forgetting.

mod branches;
mod check;
mod cluster;
mod descriptors;
mod detach;
mod door;
mod gate;
pub mod jobs;
mod locks;
mod memory;
mod metrics;
mod mounts;
pub mod parent;
mod peeks;
mod pgs;
mod schedules;
mod serve;
mod snapshots;
mod startup;
mod storages;
mod table;
mod tcp;
pub mod token;
mod upkeep;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{self, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use std::{env, io, thread};

use jiff::Timestamp;
use pageserver::Store;
use tokio::sync::watch;

use crate::api::status::{self, Http, Process, Status, Upgrade};
use crate::api::storages::{NewStorage, Storage, StorageName};
use crate::error::{Error, Result};
use crate::store_dir;
pub use check::closed as check_closed;
use descriptors::Descriptors;
use gate::Gate;
use jobs::Jobs;
use locks::BranchLocks;
use memory::Memory;
use metrics::Requests;
use mounts::log_failure;
use parent::{Inherited, Parent};
use peeks::Peeks;
use schedules::Resting;
use storages::Storages;
use table::Table;
pub use tcp::asked as asked_to_listen;

/// Everything that requests work on.
pub struct Service {
    storages: Storages,
    memory: Arc<Memory>,
    table: Table,
    pub jobs: Jobs,
    peeks: Peeks,
    pub requests: Requests,
    /// Whether and where it listens on TCP.
    http: Http,
    locks: BranchLocks,
    gate: Gate,
    resting: Resting,
    /// Ports of temporary servers. Locked while a port is chosen, so that two don't choose the same.
    ports: Mutex<BTreeSet<u16>>,
    started: Timestamp,
    /// Who holds the mounts when this process dies.
    parent: Arc<Parent>,
    /// How the process is to end, as soon as it is.
    stopped: watch::Sender<Option<Ending>>,
}

/// What a service exits with that is to be started again, from a program that may be another.
pub const RESTART: i32 = 75;

const KEEPER_IS_GONE: &str =
    "the keeper has died: if the service dies too, its mounts end (`zenith stop --pgs`, then `zenith start` mends it)";

/// How long a program may take to say its version.
const VERSION_PATIENCE: Duration = Duration::from_secs(5);

/// How a service ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// For good: nothing is mounted any more.
    Stop,
    /// The next one takes its mounts over.
    Restart,
}

/// Runs the service of a store until it is stopped; returns what to exit with.
pub fn run(dir: &Path, listen: Option<&str>) -> Result<i32> {
    startup::start(dir, listen)?.serve()
}

/// The same below a keeper, for a starter that listens on stdout.
pub fn run_kept(dir: &Path, listen: Option<&str>) -> Result<i32> {
    match startup::start(dir, listen) {
        Ok(running) => {
            tell(&Ok(()));
            running.serve()
        }
        Err(down) => {
            tell(&Err(down.clone()));
            Err(down.into())
        }
    }
}

pub use startup::{leave_session, tell};

impl Service {
    fn new(
        store: Arc<Store>,
        descriptors: Arc<Descriptors>,
        http: Http,
        parent: Arc<Parent>,
        inherited: &mut Inherited,
    ) -> Result<Service> {
        let memory = Arc::new(Memory::load(&store.dir().join(store_dir::STATE))?);
        Ok(Service {
            table: Table::new(memory.clone(), descriptors.clone()),
            storages: Storages::open(store, descriptors, memory.clone(), parent.clone(), inherited)?,
            parent,
            memory,
            jobs: Jobs::default(),
            peeks: Peeks::default(),
            requests: Requests::default(),
            http,
            locks: BranchLocks::default(),
            gate: Gate::default(),
            resting: Resting::default(),
            ports: Mutex::default(),
            started: Timestamp::now(),
            stopped: watch::Sender::new(None),
        })
    }

    pub fn status(&self) -> Result<Status> {
        Ok(Status {
            store: self.store_status()?,
            service: Process {
                pid: process::id(),
                version: env!("CARGO_PKG_VERSION").into(),
                program: env::current_exe().map_err(Error::io("find this program"))?,
                started: self.started,
                warning: self.parent.is_gone().then(|| KEEPER_IS_GONE.into()),
            },
            http: self.http.clone(),
            branches: self.branches().len(),
            snapshots: self.snapshots(None)?.len(),
            mounts: self.mounts()?,
        })
    }

    fn store_status(&self) -> Result<status::Store> {
        let store = self.storages.local();
        let space = store.space()?;
        Ok(status::Store {
            dir: store.dir().into(),
            total: space.total,
            available: space.available,
            warning: store.warning().map(String::from),
        })
    }

    pub fn storages(&self) -> Result<Vec<Storage>> {
        self.storages.list()
    }

    pub fn storage(&self, name: &StorageName) -> Result<Storage> {
        self.storages.show(name)
    }

    pub fn attach_storage(&self, name: &StorageName, new: &NewStorage) -> Result<Storage> {
        let _inside = self.gate.enter()?;
        self.storages.attach(name, new)
    }

    /// Refused while a pg or a mount uses it.
    pub fn detach_storage(&self, name: &StorageName) -> Result<()> {
        let _inside = self.gate.enter()?;
        self.check_storage_unused(name)?;
        self.storages.detach(name)
    }

    /// Why the storage would not be detached now, if so.
    pub fn check_storage_detachable(&self, name: &StorageName) -> Result<()> {
        let _inside = self.gate.enter()?;
        self.storages.check_detachable(name)?;
        self.check_storage_unused(name)
    }

    fn check_storage_unused(&self, name: &StorageName) -> Result<()> {
        let pgs = self.memory.get().pgs.clone();
        if let Some((pg, _)) = pgs.iter().find(|(_, record)| record.storage == *name) {
            return Err(Error::refused(format!("{pg} lies in the storage {name}")).hint(format!(
                "zenith pg destroy {pg}, if it is not needed any more; to give the storage other options, attach it again"
            )));
        }
        // Of one that can't be used nothing is mounted.
        let Ok(store) = self.storages.named(name) else {
            return Ok(());
        };
        let places = self.table.places();
        let used = places.iter().find(|place| store.branch(place.view.branch()).is_ok());
        used.map_or(Ok(()), |place| Err(branches::mounted(&place.view, &place.dir)))
    }

    /// To be called every now and then.
    fn tidy(self: &Arc<Self>) {
        match self.storages.local().is_deleted() {
            false => {
                for (_, store) in self.storages.stores() {
                    store.tidy();
                }
                self.destroy_expired();
                self.keep_schedules();
            }
            true => {
                tracing::error!("the store was deleted: stopping");
                log_failure("stop", self.stop(true));
            }
        }
    }

    fn is_stopped(&self) -> bool {
        self.stopped.borrow().is_some()
    }

    /// Unmounts everything and lets the process end. Refused while a mount is in use, unless forced.
    pub fn stop(self: &Arc<Self>, force: bool) -> Result<()> {
        self.gate.close(|| {
            self.close_peeks(force)?;
            self.unmount_all(force)
        })?;
        tracing::info!("stopping");
        self.parent.tell_stopping();
        self.stopped.send_replace(Some(Ending::Stop));
        Ok(())
    }

    /// Ends this service and has `program` be the next, which takes the mounts over while they are in use. Refused where nobody would start
    /// it, and while somebody looks into a snapshot, unless forced.
    pub fn upgrade(self: &Arc<Self>, upgrade: &Upgrade) -> Result<()> {
        if !self.parent.hears() {
            return Err(
                Error::refused("nobody stands behind this service who would start the next one")
                    .hint("`zenith stop`, then `zenith start` with the new program"),
            );
        }
        check_program(&upgrade.program)?;
        self.gate.close(|| self.close_peeks(upgrade.force))?;
        tracing::info!("making way for {}", upgrade.program.display());
        self.parent.tell_program(&upgrade.program);
        self.stopped.send_replace(Some(Ending::Restart));
        Ok(())
    }
}

/// Whether a program is zenith, by its own words.
fn check_program(program: &Path) -> Result<()> {
    let refused = |why: String| {
        Error::refused(format!("{} can't be the next service: {why}", program.display()))
            .hint("give the path of a zenith program")
    };
    if !program.is_absolute() {
        return Err(refused("its path is not absolute".into()));
    }
    let output = version_of(program).map_err(|error| refused(Error::io("run it")(error).message))?;
    match output.status.success() && output.stdout.starts_with(b"zenith ") {
        true => Ok(()),
        false => Err(refused("it isn't zenith".into())),
    }
}

/// What a program says of its version; one that takes its time over that is ended.
fn version_of(program: &Path) -> io::Result<Output> {
    let mut child = Command::new(program)
        .arg("version")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let deadline = Instant::now() + VERSION_PATIENCE;
    while child.try_wait()?.is_none() {
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            return Err(io::ErrorKind::TimedOut.into());
        }
        thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output()
}
