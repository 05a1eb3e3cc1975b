//! How the service comes up: one step after the other, each with its own error.
//!
//! The store's lock comes first, so everything after it is done by one process only: the process file, what a
//! killed predecessor left, the remembered mounts, and last the socket, so that whoever gets through finds all of it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;

use nix::sys::stat::{Mode, umask};
use nix::unistd::{dup2_stdout, setsid};
use pageserver::Store;
use tokio::runtime::{Builder, Runtime};

use super::descriptors::Descriptors;
use super::parent::{self, Inherited, Parent};
use super::serve::Running;
use super::{Service, tcp};
use crate::api::storages::StorageName;
use crate::client::{socket_dir, socket_path};
use crate::error::{Error, Result};
use crate::launch::{Down, Report};
use crate::{log, store_dir};

/// Threads that read and answer requests; the work is done on others.
const WORKERS: usize = 2;

/// Most operations at a time; more wait.
const OPERATIONS_MAX: usize = 64;

/// Brings the service up; the error is what a starter is told.
pub fn start(dir: &Path, listen: Option<&str>) -> std::result::Result<Running, Down> {
    let failed = |error: Error| Down::Failed(error.into());
    let found = parent::find().map_err(Error::io("find who started this service"));
    let (parent, mut inherited) = found.map_err(failed)?;
    log::init().and_then(|()| settle()).map_err(failed)?;
    let descriptors = Arc::new(Descriptors::claim().map_err(failed)?);
    let disk = descriptors.disk();
    let opened = match inherited.lock(&StorageName::local()) {
        Some(lock) => Store::reopen(dir, disk, lock),
        None => Store::open(dir, disk),
    };
    let store = opened.map_err(|error| match error {
        pageserver::Error::Locked { .. } => Down::Locked(Error::from(error).into()),
        error => failed(error.into()),
    })?;
    come_up(store, descriptors, listen, parent, inherited).map_err(failed)
}

fn come_up(
    store: Arc<Store>,
    descriptors: Arc<Descriptors>,
    listen: Option<&str>,
    parent: Parent,
    mut inherited: Inherited,
) -> Result<Running> {
    let dir = store.dir().to_path_buf();
    let pid = PidFile::write(dir.join(store_dir::PID))?;
    if let Some(warning) = store.warning() {
        tracing::warn!("{warning}");
    }
    let (http, tcp) = tcp::open(listen, &dir)?;
    let service = Arc::new(Service::new(
        store,
        descriptors,
        http,
        Arc::new(parent),
        &mut inherited,
    )?);
    service.recover(inherited)?;
    let running = Running {
        socket: Socket::bind(&dir)?,
        tcp,
        runtime: runtime()?,
        service,
        pid,
    };
    running.service.parent.tell_ready();
    tracing::info!(store = %dir.display(), version = env!("CARGO_PKG_VERSION"), "the service is up");
    Ok(running)
}

/// Makes the process one that can stay: it holds on to no directory, and its files are its owner's alone.
fn settle() -> Result<()> {
    umask(Mode::from_bits_truncate(0o077));
    #[cfg(target_os = "linux")]
    // The keeper starts it by a descriptor's number, which would be its name otherwise.
    nix::sys::prctl::set_name(c"zenith").map_err(Error::io("name the process"))?;
    give_memory_back();
    std::env::set_current_dir("/").map_err(Error::io("leave the current directory"))
}

/// Keeps big buffers in mappings of their own, which are empty until used and go back when freed. glibc would move
/// them into its arenas after the first one is freed, and there zero each of FUSE's 16 MiB buffers whole.
fn give_memory_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt takes two numbers; no other thread runs yet.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 256 * 1024);
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

fn runtime() -> Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(OPERATIONS_MAX)
        .enable_all()
        .build()
        .map_err(Error::io("start threads"))
}

/// Gets out of the starter's session, so that its terminal's signals don't reach the service, and lets go of what the
/// starter had open.
pub fn leave_session() {
    // It fails only for the leader of a session, who has left already.
    let _led = setsid().is_err();
    #[cfg(target_os = "linux")]
    // SAFETY: close_range takes numbers; nothing of ours is open yet. Without it (before Linux 5.9) files stay open.
    unsafe {
        libc::close_range(3, libc::c_uint::MAX, 0);
    }
}

/// Tells the starter how it went and lets go of its pipe.
pub fn tell(report: &Report) {
    let told = || -> io::Result<()> {
        writeln!(io::stdout(), "{}", serde_json::to_string(report)?)?;
        io::stdout().flush()
    };
    let told = told().and_then(|()| Ok(dup2_stdout(File::options().write(true).open("/dev/null")?)?));
    if let Err(error) = told {
        tracing::warn!("the starter didn't wait for an answer: {error}");
    }
}

/// The file with the process id. It stays locked until the process has let go of everything else.
pub struct PidFile {
    path: PathBuf,
    file: File,
}

impl PidFile {
    fn write(path: PathBuf) -> Result<PidFile> {
        let write = || {
            let mut file = File::options().create(true).truncate(false).write(true).open(&path)?;
            file.lock()?;
            file.set_len(0)?;
            writeln!(file, "{}", process::id())?;
            Ok::<File, io::Error>(file)
        };
        let file = write().map_err(Error::path("write", &path))?;
        Ok(PidFile { path, file })
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let gone = fs::remove_file(&self.path).and_then(|()| self.file.unlock());
        if let Err(error) = gone {
            tracing::warn!("{} stays behind: {error}", self.path.display());
        }
    }
}

/// The socket, for its owner only; it goes away with the service.
pub struct Socket {
    path: PathBuf,
    listener: UnixListener,
}

impl Socket {
    /// A socket that is there already is a killed predecessor's.
    fn bind(dir: &Path) -> Result<Socket> {
        let path = dir.join(store_dir::SOCKET);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::path("remove", &path)(error)),
            _ => Ok(()),
        }?;
        let bind = || {
            let listener = UnixListener::bind(socket_path(&socket_dir(dir)?))?;
            listener.set_nonblocking(true)?;
            Ok::<UnixListener, io::Error>(listener)
        };
        let listener = bind().map_err(Error::path("listen on", &path))?;
        Ok(Socket { path, listener })
    }

    pub fn listener(&self) -> io::Result<UnixListener> {
        self.listener.try_clone()
    }

    /// Lets nobody new find the service; who has found it already is still answered.
    pub fn hide(&self) {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!("{} stays behind: {error}", self.path.display());
            }
            _ => {}
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.hide();
    }
}
