//! Starting the service for a command, and waiting until it has ended.
//!
//! What is started here is this program again as the keeper, in a session of its own, with its stderr in the store's log; the keeper starts
//! the service. That says once on its stdout how it came up ([`Report`]), which the starter passes on to its user. Of two started
//! at once the store's lock lets one in; the other's starter waits until the first answers.

use std::env;
use std::fs::{self, File, TryLockError};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::{Uid, User, geteuid};
use serde::{Deserialize, Serialize};

use crate::api::problem::Problem;
use crate::client::Client;
use crate::error::{Error, Result};
#[cfg(target_os = "linux")]
use crate::{keeper, log};
use crate::{service, store_dir};

/// How long a service may take to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often to look.
const PAUSE: Duration = Duration::from_millis(20);

/// A log longer than this, in bytes, is put aside at the next start.
const LOG_MAX: u64 = 8 << 20;

/// How a service came up: it answers requests, or why not.
pub type Report = std::result::Result<(), Down>;

/// Why a service didn't come up.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Down {
    /// Another process holds the store's lock.
    Locked(Problem),
    Failed(Problem),
}

impl From<Error> for Down {
    fn from(error: Error) -> Down {
        Down::Failed(error.into())
    }
}

impl From<Down> for Error {
    fn from((Down::Locked(problem) | Down::Failed(problem)): Down) -> Error {
        problem.into()
    }
}

/// The service of the store, started when a request finds none.
pub fn client(store: &Path) -> Result<Client> {
    client_listening(store, None)
}

/// As [`client`]; a service that is started listens there.
pub fn client_listening(store: &Path, listen: Option<String>) -> Result<Client> {
    Client::starting(store, Box::new(move |store| start(store, listen.as_deref())))
}

/// Starts the service. Where another one holds the store, that one is about to answer or to end.
fn start(store: &Path, listen: Option<&str>) -> Result<()> {
    check_owner(store)?;
    match spawn(store, listen)? {
        Ok(()) => Ok(()),
        Err(Down::Locked(_)) => {
            thread::sleep(PAUSE);
            Ok(())
        }
        Err(down) => Err(down.into()),
    }
}

/// A service of another user would leave files behind that the owner can't use.
pub fn check_owner(store: &Path) -> Result<()> {
    let owner = fs::metadata(store).map_err(Error::path("look at", store))?.uid();
    if owner == geteuid().as_raw() {
        return Ok(());
    }
    let name = User::from_uid(Uid::from_raw(owner)).ok().flatten();
    let name = name.map_or(owner.to_string(), |user| user.name);
    Err(
        Error::refused(format!("the store {} belongs to the user {name}", store.display()))
            .hint(format!("run zenith as {name}, or take another store with --store")),
    )
}

/// Keeps a service until it ends; returns its exit code. In the foreground a service manager that holds descriptors does it itself: the
/// service then runs in this process.
#[cfg(target_os = "linux")]
pub fn keep(store: &Path, listen: Option<&str>, foreground: bool) -> Result<i32> {
    if foreground && service::parent::is_expected() {
        return service::run(store, listen);
    }
    log::init()?;
    let plan = keeper::Plan {
        store,
        listen,
        foreground,
    };
    keeper::run(&plan)
}

/// The service runs alone.
#[cfg(not(target_os = "linux"))]
pub fn keep(store: &Path, listen: Option<&str>, foreground: bool) -> Result<i32> {
    match foreground {
        true => service::run(store, listen),
        false => service::run_kept(store, listen),
    }
}

fn spawn(store: &Path, listen: Option<&str>) -> Result<Report> {
    let program = env::current_exe().map_err(Error::io("find this program"))?;
    let child = Command::new(program)
        .arg("--store")
        .arg(store)
        .args(["start", "--spawned"])
        .args(listen.map(|listen| format!("--listen={listen}")))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log_file(store)?)
        .spawn();
    report_of(child.map_err(Error::io("start the service"))?, store)
}

fn report_of(mut child: Child, store: &Path) -> Result<Report> {
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        let read = BufReader::new(stdout).read_line(&mut line);
        read.map_err(Error::io("hear from the service"))?;
    }
    if let Ok(report) = serde_json::from_str(&line) {
        return Ok(report);
    }
    let status = child.wait().map_err(Error::io("wait for the service"))?;
    Err(Error::failure(format!("the service ended while it started ({status})"))
        .hint(format!("look into {}", store.join(store_dir::LOG).display())))
}

fn log_file(store: &Path) -> Result<File> {
    let path = store.join(store_dir::LOG);
    if fs::metadata(&path).is_ok_and(|log| log.len() > LOG_MAX) {
        fs::rename(&path, path.with_extension("log.1")).map_err(Error::path("put aside", &path))?;
    }
    let log = File::options().create(true).append(true).mode(0o600).open(&path);
    log.map_err(Error::path("open", &path))
}

/// A service as the process it is, to see it end.
pub struct Watch(Option<File>);

impl Watch {
    /// To be called while the service runs.
    pub fn of(store: &Path) -> Watch {
        Watch(File::open(store.join(store_dir::PID)).ok())
    }

    /// Waits until the process has let go of everything.
    pub fn wait(self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.lives() {
            if Instant::now() > deadline {
                return Err(Error::failure(
                    "the service is stopping, but hasn't ended after a minute",
                ));
            }
            thread::sleep(PAUSE);
        }
        Ok(())
    }

    fn lives(&self) -> bool {
        let lock = self.0.as_ref().map(File::try_lock_shared);
        matches!(lock, Some(Err(TryLockError::WouldBlock)))
    }
}
