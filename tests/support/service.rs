//! A store's service as processes: the service itself and the keeper behind it.

use std::fs::{self, File, TryLockError};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const PATIENCE: Duration = Duration::from_secs(20);

/// The service's process, whether or not it answers. A file without a lock on it is a dead one's.
pub fn pid(store: &Path) -> Option<Pid> {
    let path = store.join("service.pid");
    let lives = matches!(File::open(&path).ok()?.try_lock_shared(), Err(TryLockError::WouldBlock));
    let pid = fs::read_to_string(path).ok()?.trim().parse().ok()?;
    lives.then(|| Pid::from_raw(pid))
}

/// Ends the service at once, as a crash would; returns when it has ended. The keeper starts the next one.
#[allow(dead_code, reason = "tests take what they need")]
pub fn kill_service(store: &Path) -> Option<Pid> {
    let pid = pid(store)?;
    match kill(pid, Signal::SIGKILL) {
        // The next one has locked the file and has not written down yet who it is.
        Err(Errno::ESRCH) => return None,
        killed => killed.expect("it is ours"),
    }
    until("the service is gone", || kill(pid, None) == Err(Errno::ESRCH));
    Some(pid)
}

/// Ends the keeper and leaves the service.
#[allow(dead_code, reason = "tests take what they need")]
pub fn kill_keeper(store: &Path) {
    let keeper = pid(store).and_then(keeper_of).expect("a keeper");
    kill(keeper, Signal::SIGKILL).expect("it runs");
    until("the keeper is gone", || pid(store).and_then(keeper_of) != Some(keeper));
}

/// Ends the keeper and the service at once: their mounts are lost.
#[allow(dead_code, reason = "tests take what they need")]
pub fn kill_with_keeper(store: &Path) {
    let (Some(pid), Ok(file)) = (pid(store), File::open(store.join("service.pid"))) else {
        return;
    };
    // Whoever has ended already is as good as killed.
    if let Some(keeper) = keeper_of(pid) {
        let _ = kill(keeper, Signal::SIGKILL);
    }
    let _ = kill(pid, Signal::SIGKILL);
    until("the service has let go of everything", || {
        !matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
    });
}

/// None where somebody else than zenith stands behind the service.
fn keeper_of(service: Pid) -> Option<Pid> {
    let stat = fs::read_to_string(format!("/proc/{service}/stat")).ok()?;
    let parent: i32 = stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()?;
    let program = |pid: i32| fs::read_link(format!("/proc/{pid}/exe")).ok();
    (program(parent)? == program(service.as_raw())?).then(|| Pid::from_raw(parent))
}

fn until(what: &str, there: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !there() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(2));
    }
}
