//! Mounts file systems and watches over them.
//!
//! A mount lives until somebody unmounts it: this service, or anyone with the right to, from outside. Both look the
//! same to the session (the kernel closes its end), so there is one way to learn of it, the callback given to
//! [`Mount::new`]. A busy mount is never torn off: that would leave a Postgres with half a data directory.

mod check;
mod error;
mod keeping;
#[cfg(target_os = "linux")]
#[path = "mount/linux.rs"]
mod platform;
#[cfg(not(target_os = "linux"))]
#[path = "mount/macos.rs"]
mod platform;
mod record;
#[cfg(target_os = "linux")]
mod session;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use std::{io, thread};

use fuser::{Config, Session, SessionACL};
use pageserver::LayerId;

use crate::fs::Fs;
use crate::fuse::Fuse;

pub use error::MountError;
pub use keeping::{Keeper, Keeping, Kept, NoKeeper};
pub(crate) use record::{Record, THREADS_MAX};

/// How long an unmounted file system may still be held by others, such as a mount namespace of its own.
const PATIENCE: Duration = Duration::from_secs(10);

/// How to mount.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// What is mounted: a branch, or a snapshot. Shown as `zenith:SOURCE` by mount(8) and df(1).
    pub source: String,
    /// How many threads read requests, one at a time where it can; what waits for the disk is served by others.
    pub threads: usize,
}

impl Options {
    pub fn new(source: impl ToString) -> Options {
        Options {
            source: source.to_string(),
            threads: 2,
        }
    }
}

/// A mounted file system. Dropping it leaves the mount as it is.
pub struct Mount {
    mountpoint: PathBuf,
    /// The number of the mount's device, by which it is told from others.
    device: u64,
    /// Gone once the mount has ended, so that nothing holds on to the branch.
    fs: Weak<Fs>,
    ended: Arc<Ended>,
}

impl Mount {
    /// Mounts `fs`, and calls `on_end` when it is no longer mounted and has been let go of, whoever unmounted it.
    pub fn new(
        fs: Fs,
        mountpoint: &Path,
        options: &Options,
        keeping: Keeping,
        on_end: impl FnOnce() + Send + 'static,
    ) -> Result<Mount, MountError> {
        let mountpoint = check::mountpoint(mountpoint)?;
        fs.begin();
        let fs = Arc::new(fs);
        let watched = Arc::downgrade(&fs);
        let record = Record::new(&keeping.label).map_err(|error| MountError::session(&mountpoint, error))?;
        let record = Arc::new(record);
        let session = platform::open(fs, &mountpoint, options, &record, &keeping).inspect_err(|_| keeping.let_go())?;
        let ended = Arc::new(Ended::default());
        let device = serve(session, ended.clone(), keeping, on_end)
            .and_then(|()| platform::device(&mountpoint))
            .map_err(|source| abandon(&mountpoint, source))?;
        record.set_device(device);
        platform::tune(device);
        Ok(Mount {
            mountpoint,
            device,
            fs: watched,
            ended,
        })
    }

    /// Goes on with a mount that an earlier process has served, under the eyes of those who use it. `crashed` is whether that process
    /// died of itself. When it fails the mount is dead: whoever uses it gets errors, and it can be mounted anew.
    #[cfg(target_os = "linux")]
    pub fn resume(
        fs: Fs,
        kept: Kept,
        mountpoint: &Path,
        options: &Options,
        keeping: Keeping,
        crashed: bool,
        on_end: impl FnOnce() + Send + 'static,
    ) -> Result<Mount, MountError> {
        let fs = Arc::new(fs);
        let watched = Arc::downgrade(&fs);
        let Kept {
            device: fuse, record, ..
        } = kept;
        record.take_over(crashed);
        let lost = |error| MountError::lost(mountpoint, error);
        let session = fuse
            .try_clone()
            .and_then(|device| Fuse::new(fs.clone(), record.clone(), Some(device)))
            .and_then(|kernel| session::resume(kernel, &fuse, &record, config(options)))
            .inspect_err(|_| keeping.let_go())
            .map_err(lost)?;
        let ended = Arc::new(Ended::default());
        serve(session, ended.clone(), keeping, on_end).map_err(lost)?;
        end_orphans(fs, fuse);
        let device = record
            .device()
            .map_or_else(|| platform::device(mountpoint), Ok)
            .map_err(lost)?;
        record.set_device(device);
        Ok(Mount {
            mountpoint: mountpoint.to_owned(),
            device,
            fs: watched,
            ended,
        })
    }

    /// Absolute, without symbolic links.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    pub fn has_ended(&self) -> bool {
        *self.ended.lock()
    }

    /// Unmounts, and returns when nothing of the file system is held any more. Refuses while somebody uses it.
    pub fn unmount(&self) -> Result<(), MountError> {
        if self.has_ended() {
            return Ok(());
        }
        let path = &self.mountpoint;
        self.check_standing()?;
        platform::detach(path)?;
        match self.ended.wait() {
            true => Ok(()),
            false => Err(MountError::Held { path: path.clone() }),
        }
    }

    /// Refuses a mount that somebody else has covered or detached.
    pub fn check_standing(&self) -> Result<(), MountError> {
        let path = self.mountpoint.clone();
        match self.standing()? {
            Standing::OnTop => Ok(()),
            Standing::Covered => Err(MountError::Covered { path }),
            Standing::Detached => Err(MountError::Detached { path }),
        }
    }

    /// Whether somebody has mounted something else over it.
    pub fn is_covered(&self) -> bool {
        self.standing().is_ok_and(|standing| standing == Standing::Covered)
    }

    fn standing(&self) -> Result<Standing, MountError> {
        let path = &self.mountpoint;
        let unreadable = |source| MountError::unreadable(path, source);
        let (here, above) = (
            platform::device(path).map_err(unreadable)?,
            platform::device(&path.join("..")).map_err(unreadable)?,
        );
        Ok(match here == self.device {
            true => Standing::OnTop,
            false if here == above => Standing::Detached,
            false => Standing::Covered,
        })
    }

    /// Lets go of a snapshot, so that it can be destroyed. What the kernel still has of it can't be reached by
    /// any path: it asks anew for every name in `.zenith/snapshot`.
    pub fn release_snapshot(&self, layer: LayerId) {
        if let Some(fs) = self.fs.upgrade() {
            fs.release_snapshot(layer);
        }
    }
}

/// What is to be seen at the mount point of a mount that is served.
#[derive(PartialEq, Eq)]
enum Standing {
    OnTop,
    /// Something else was mounted over it.
    Covered,
    /// It was taken out of the file tree, and lives on for those who use it.
    Detached,
}

/// Whether a session has ended.
#[derive(Default)]
struct Ended {
    ended: Mutex<bool>,
    changed: Condvar,
}

impl Ended {
    fn lock(&self) -> MutexGuard<'_, bool> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self) {
        *self.lock() = true;
        self.changed.notify_all();
    }

    /// False when patience ran out.
    fn wait(&self) -> bool {
        let waited = self.changed.wait_timeout_while(self.lock(), PATIENCE, |ended| !*ended);
        let (ended, _) = waited.unwrap_or_else(PoisonError::into_inner);
        *ended
    }
}

fn serve(
    session: Session<Fuse>,
    ended: Arc<Ended>,
    keeping: Keeping,
    on_end: impl FnOnce() + Send + 'static,
) -> io::Result<()> {
    let unserved = keeping.clone();
    let run = move || {
        if let Err(error) = session.run() {
            tracing::error!("a mount's session ended with an error: {error}");
        }
        keeping.let_go();
        ended.set();
        on_end();
    };
    match thread::Builder::new().name("mount".into()).spawn(run) {
        Ok(_) => Ok(()),
        Err(error) => {
            unserved.let_go();
            Err(error)
        }
    }
}

/// Ends files without a name that nobody has open: what the kernel gave back of them while no process served the mount, no process was
/// told. To be called while the session runs, since the kernel may have to ask before it answers.
#[cfg(target_os = "linux")]
fn end_orphans(fs: Arc<Fs>, fuse: std::os::fd::OwnedFd) {
    use std::os::fd::AsFd;
    let orphans = fs.orphans();
    let end = move || {
        for node in orphans {
            match node
                .id()
                .map_err(io::Error::from)
                .and_then(|id| session::is_held(fuse.as_fd(), id))
            {
                Ok(true) => {}
                Ok(false) => fs.forget(node, 0),
                Err(error) => tracing::warn!("whether {node:?} is still open can't be told: {error}"),
            }
        }
    };
    if let Err(error) = thread::Builder::new().name("orphans".into()).spawn(end) {
        tracing::warn!("files that are gone keep their blocks until the branch is mounted anew: {error}");
    }
}

/// How fuser is to run a session. The kernel checks who may do what.
fn config(options: &Options) -> Config {
    let mut config = Config::default();
    config.acl = SessionACL::All;
    config.n_threads = Some(if cfg!(target_os = "linux") { options.threads } else { 1 });
    config
}

/// Takes away a mount that could not be served, and says why.
fn abandon(mountpoint: &Path, why: io::Error) -> MountError {
    match platform::detach(mountpoint) {
        Ok(()) => MountError::session(mountpoint, why),
        Err(error) => error,
    }
}
