//! Mounting and unmounting, and what a stop and the next start do with the mounts.

use std::fmt::Display;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use fusefs::{Fs, Kept, Mount, MountError, Options};
use pageserver::{BranchName, Start};

use super::Service;
use super::detach::{self, clear, tear_off};
use super::memory::{Place, Unfinished};
use super::parent::Inherited;
use super::snapshots::Hidden;
use crate::api::mounts as api;
use crate::api::pgs::{Action, At};
use crate::error::{Error, Kind, Result};
use crate::name::ViewName;
use crate::postgres::server;

/// How long a mount may stay busy after its server has stopped.
const PATIENCE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(20);

impl Service {
    pub fn mounts(&self) -> Result<Vec<api::Mount>> {
        Ok(self.table.list())
    }

    /// Mounts a view, making what it was asked to make. When it fails, what was made goes away again.
    pub fn mount(self: &Arc<Self>, new: &api::NewMount) -> Result<api::Mount> {
        let _inside = self.gate.enter()?;
        self.check_outside(&new.dir)?;
        let branch = new.cow.as_ref().unwrap_or(new.view.branch());
        self.locks.with(branch, || {
            let made = new.create && make_dir(&new.dir)?;
            self.mount_there(new).inspect_err(|_| {
                if made {
                    log_failure("remove the new directory", fs::remove_dir(&new.dir));
                }
            })
        })
    }

    pub(super) fn check_outside(&self, dir: &Path) -> Result<()> {
        if !dir.is_absolute() {
            return Err(Error::usage(format!("the path {} is not absolute", dir.display())));
        }
        let stores = self.storages.stores();
        let store = stores.iter().find(|(_, store)| dir.starts_with(store.dir()));
        let around = match store {
            Some((name, _)) if name.is_local() => Some("the store".into()),
            Some((name, _)) => Some(format!("the storage {name}")),
            None => self.table.mount_around(dir).map(|view| format!("the mount of {view}")),
        };
        match around {
            None => Ok(()),
            Some(around) => Err(Error::refused(format!("{} lies in {around}", dir.display()))
                .hint("give a directory outside of it to mount on")),
        }
    }

    fn mount_there(self: &Arc<Self>, new: &api::NewMount) -> Result<api::Mount> {
        let made = self.make_branch(new)?;
        let view = match &new.cow {
            Some(cow) => ViewName::Head(cow.clone()),
            None => new.view.clone(),
        };
        let branch = view.branch().clone();
        let dir = new.dir.clone();
        let mounted = self.place(Place { view, dir }).inspect_err(|_| {
            if made {
                let store = self.storages.store_of(&branch);
                let deleted = store.and_then(|store| Ok(store.destroy_branch(&branch)?));
                log_failure("delete the new branch", deleted);
            }
        })?;
        Ok(api::Mount {
            new_branch: made,
            ..mounted
        })
    }

    /// Makes the branch to be mounted, if one is to be made.
    fn make_branch(&self, new: &api::NewMount) -> Result<bool> {
        match (&new.cow, &new.view) {
            (Some(cow), view) => self.add_branch(cow, &view.clone().start())?,
            (None, ViewName::Head(branch)) if new.create && self.storages.store_of(branch).is_err() => {
                self.add_branch(branch, &Start::Empty)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    pub(super) fn place(self: &Arc<Self>, place: Place) -> Result<api::Mount> {
        self.table.reserve(&place)?;
        match self.attach(&place) {
            Ok(mount) => self.table.settle(&place.dir, Ok(mount)),
            Err(error) => {
                log_failure("forget a mount", self.forget(&place.dir));
                return Err(error);
            }
        }
        tracing::info!("{} mounted on {}", place.view, place.dir.display());
        self.mount_at(&place.dir)
    }

    fn mount_at(&self, dir: &Path) -> Result<api::Mount> {
        self.table.forget_ended()?;
        let found = self.table.list().into_iter().find(|mount| mount.dir == dir);
        found.ok_or_else(|| Error::failure(format!("{} was unmounted at once by somebody else", dir.display())))
    }

    /// Mounts, and sees to it that the mount is forgotten when somebody else unmounts it.
    fn attach(self: &Arc<Self>, place: &Place) -> Result<Mount> {
        let store = self.storages.store_of(place.view.branch())?;
        let fs = match &place.view {
            ViewName::Head(branch) => Fs::of_branch(store.timeline(branch)?, Box::new(Hidden::new(&store, branch))),
            ViewName::Snapshot(name) => Fs::of_snapshot(store.snapshot_view(name)?),
        };
        let (options, keeping) = (Options::new(&place.view), self.parent.keeping(label(place)));
        Ok(Mount::new(fs, &place.dir, &options, keeping, self.forgetting())?)
    }

    /// Goes on with a mount that an earlier service has left.
    #[cfg(target_os = "linux")]
    fn resume(self: &Arc<Self>, place: &Place, kept: Kept, crashed: bool) -> Result<Mount> {
        let fs = match self.resumed_fs(place) {
            Ok(fs) => fs,
            Err(error) => {
                // While the keeper has it whoever looks at the mount waits, this service too.
                kept.end(&*self.parent);
                return Err(error);
            }
        };
        let keeping = self.parent.still_keeping(kept.number, kept.label());
        let options = Options::new(&place.view);
        Ok(Mount::resume(
            fs,
            kept,
            &place.dir,
            &options,
            keeping,
            crashed,
            self.forgetting(),
        )?)
    }

    #[cfg(target_os = "linux")]
    fn resumed_fs(&self, place: &Place) -> Result<Fs> {
        let store = self.storages.store_of(place.view.branch())?;
        Ok(match &place.view {
            ViewName::Head(branch) => {
                let timeline = store.resumed_timeline(branch)?;
                Fs::of_branch(timeline, Box::new(Hidden::new(&store, branch)))
            }
            ViewName::Snapshot(name) => Fs::of_snapshot(store.snapshot_view(name)?),
        })
    }

    /// What is done when a mount has ended.
    fn forgetting(self: &Arc<Self>) -> impl FnOnce() + Send + 'static {
        let service = Arc::downgrade(self);
        move || {
            if let Some(service) = service.upgrade() {
                log_failure("forget a mount", service.table.forget_ended());
            }
        }
    }

    /// Unmounts and forgets.
    pub fn umount(&self, dir: &Path) -> Result<()> {
        let _inside = self.gate.enter()?;
        let view = self.table.view_at(dir)?;
        self.locks.with(view.branch(), || {
            self.unmount(dir)?;
            self.forget(dir)?;
            tracing::info!("{view} unmounted from {}", dir.display());
            Ok(())
        })
    }

    /// What can't be forgotten stays as missing, so that it can be asked for again.
    fn forget(&self, dir: &Path) -> Result<()> {
        let forgotten = self.table.forget(dir);
        forgotten.inspect_err(|error| {
            let missing = format!("it is unmounted, but that could not be noted: {error}");
            self.table.settle(dir, Err(missing));
        })
    }

    /// As [`Service::unmount`], where a server may just have stopped: its last processes take a moment to be gone.
    pub(super) fn unmount_patiently(&self, dir: &Path) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.unmount(dir) {
                Err(error)
                    if error.kind == Kind::Refused && server::pid(dir).is_none() && Instant::now() < deadline =>
                {
                    thread::sleep(PAUSE);
                }
                unmounted => return unmounted,
            }
        }
    }

    /// Unmounts; the table still has the place, as changing. When it fails everything is as before.
    pub(super) fn unmount(&self, dir: &Path) -> Result<()> {
        let Some(mount) = self.table.take(dir)? else {
            return clear(dir).inspect_err(|error| self.table.settle(dir, Err(error.message.clone())));
        };
        let unmounted = match mount.unmount() {
            // It may have ended without having been unmounted.
            Ok(()) | Err(MountError::Dead { .. }) => clear(dir),
            Err(error) => Err(self.told(error, dir)),
        };
        unmounted.inspect_err(|_| self.table.settle(dir, Ok(mount)))
    }

    /// Why a mount stays, with what to do about a Postgres on it.
    fn told(&self, error: MountError, dir: &Path) -> Error {
        let busy = matches!(error, MountError::Busy { .. });
        let told = Error::from(error);
        let Some(pid) = server::pid(dir).filter(|_| busy) else {
            return told;
        };
        let branch = self.table.view_at(dir).map(|view| view.branch().clone());
        let pg = branch.ok().filter(|branch| self.memory.get().pgs.contains_key(branch));
        let stop = match pg {
            Some(pg) => format!("zenith pg stop {pg}"),
            None => format!("pg_ctl stop -D {}", dir.display()),
        };
        told.hint(format!("PostgreSQL runs on it (pid {pid}): `{stop}`"))
    }

    /// Mounts again what [`Service::unmount`] took away. A failure stands in the answer and in the table.
    pub(super) fn remount(self: &Arc<Self>, dir: &Path) -> Result<api::Mount> {
        let view = self.table.view_at(dir)?;
        let place = Place { view, dir: dir.into() };
        let mounted = clear(dir).and_then(|()| self.attach(&place));
        if let Err(error) = &mounted {
            tracing::error!("{} is not mounted on {}: {}", place.view, dir.display(), error.message);
        }
        self.table.settle(dir, mounted.map_err(|error| error.message));
        self.mount_at(dir)
    }

    /// For a stop: unmounts all or nothing, the latest first; the places stay remembered.
    pub(super) fn unmount_all(self: &Arc<Self>, force: bool) -> Result<()> {
        let (mut done, mut kept) = (Vec::new(), Vec::new());
        for dir in self.table.mounted_dirs().into_iter().rev() {
            match self.unmount(&dir) {
                Ok(()) => done.push(dir),
                // What lies over it is somebody else's.
                Err(_) if force && !self.table.is_covered(&dir) => self.abandon(&dir)?,
                Err(error) => kept.push(error),
            }
        }
        let Some(refusal) = still_used(kept) else {
            return Ok(());
        };
        done.iter().rev().try_for_each(|dir| self.remount(dir).map(drop))?;
        Err(refusal)
    }

    /// Brings to the store what the kernel still holds of the mount and takes it away from whoever uses it.
    fn abandon(&self, dir: &Path) -> Result<()> {
        tracing::warn!("{} is taken away from those who use it", dir.display());
        let synced = fs::File::open(dir).and_then(|root| Ok(nix::unistd::syncfs(root)?));
        log_failure("sync the mount", synced);
        self.table.take(dir)?;
        tear_off(dir)
    }

    /// For a start: undoes what a killed service left half-made, goes on with its mounts, and mounts what else was remembered.
    pub(super) fn recover(self: &Arc<Self>, inherited: Inherited) -> Result<()> {
        let Inherited { mounts, crashed, .. } = inherited;
        let unfinished = self.memory.get().unfinished.clone();
        let is_finished = |place: &Place| !unfinished.iter().any(|made| made.branch == *place.view.branch());
        let mut kept: Vec<(Place, Kept)> = Vec::new();
        for mount in mounts {
            match serde_json::from_slice(&mount.label()) {
                Ok(place) if is_finished(&place) => kept.push((place, mount)),
                _ => mount.end(&*self.parent),
            }
        }
        for unfinished in unfinished {
            self.undo(&unfinished);
        }
        for place in self.table.places() {
            let found = kept.iter().position(|(of, _)| *of == place);
            match found.map(|found| kept.swap_remove(found).1) {
                Some(mount) => self.take_over(&place, mount, crashed)?,
                None => self.mount_anew(&place)?,
            }
        }
        kept.into_iter().for_each(|(_, mount)| mount.end(&*self.parent));
        self.restart_pgs();
        Ok(())
    }

    /// Goes on with a mount while it is in use. Where that can't be, its users have lost it, and it is mounted anew.
    fn take_over(self: &Arc<Self>, place: &Place, kept: Kept, crashed: bool) -> Result<()> {
        match self.resume(place, kept, crashed) {
            Ok(mount) => {
                self.table.settle(&place.dir, Ok(mount));
                tracing::info!("{} on {} goes on", place.view, place.dir.display());
                Ok(())
            }
            Err(error) => {
                tracing::error!("{} is mounted anew: {}", place.view, error.message);
                self.mount_anew(place)
            }
        }
    }

    /// Mounts what is not there any more, and starts the server again that lost it.
    fn mount_anew(self: &Arc<Self>, place: &Place) -> Result<()> {
        // A machine that has just been started has none.
        let was_dead = detach::is_dead(&place.dir);
        self.remount(&place.dir)?;
        let ViewName::Head(branch) = &place.view else {
            return Ok(());
        };
        let has_lost = || server::has_lost(&place.dir) || was_dead && server::has_ended_badly(&place.dir);
        if self.memory.get().pgs.contains_key(branch) && has_lost() {
            tracing::warn!("PostgreSQL of {branch} lost its data directory with the mount: it is restarted");
            let start = Action::Start {
                is_replica: false,
                at: At::default(),
            };
            self.act_in_background(branch, start);
        }
        Ok(())
    }

    /// Goes on with what a killed service was doing to its servers.
    fn restart_pgs(self: &Arc<Self>) {
        let pgs = self.memory.get().pgs.clone();
        for (name, record) in pgs {
            if let Some(mode) = record.restarting {
                tracing::warn!("{name} was being restarted when the service before ended");
                self.act_in_background(&name, Action::Restart { mode });
            }
        }
    }

    fn act_in_background(self: &Arc<Self>, pg: &BranchName, action: Action) {
        let (service, pg) = (self.clone(), pg.clone());
        let act = move || {
            let done = service.act(&pg, action, &service.jobs.silent());
            log_failure("restart PostgreSQL", done.map(drop).map_err(|error| error.message));
        };
        log_failure("restart PostgreSQL", thread::Builder::new().spawn(act).map(drop));
    }

    fn undo(&self, unfinished: &Unfinished) {
        let Unfinished { branch, dir, .. } = unfinished;
        tracing::info!("undoing the unfinished data directory on branch {branch}");
        self.table.settle(dir, Err("it is unfinished".into()));
        if let Err(error) = self.discard(unfinished) {
            tracing::error!("{branch} on {} is left as it is: {}", dir.display(), error.message);
        }
    }
}

/// By which a mount is known again: JSON.
fn label(place: &Place) -> Vec<u8> {
    serde_json::to_vec(place).unwrap_or_default()
}

/// Whether it was made just now.
pub(super) fn make_dir(dir: &Path) -> Result<bool> {
    match fs::create_dir(dir) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(Error::path("make the directory", dir)(error)),
    }
}

/// For what is done on the way out of something else.
pub(super) fn log_failure<E: Display>(what: &str, done: std::result::Result<(), E>) {
    if let Err(error) = done {
        tracing::error!("could not {what}: {error}");
    }
}

/// One refusal for all the mounts that stay.
fn still_used(kept: Vec<Error>) -> Option<Error> {
    let messages: Vec<&str> = kept.iter().map(|error| error.message.as_str()).collect();
    let message = messages.join("; ");
    let hint = match kept.as_slice() {
        [] => return None,
        [one] => one.hint.clone(),
        _ => None,
    };
    let hint = hint.unwrap_or_else(|| {
        "stop the pgs, too (`zenith stop --pgs`), and what else uses them; or stop all the same with --force".into()
    });
    Some(Error::refused(message).hint(hint))
}
