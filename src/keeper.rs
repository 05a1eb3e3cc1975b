//! The keeper: the parent of the service, which holds what must outlive it.
//!
//! ```text
//!   zenith start ──> keeper ──fork──> service ──> mounts, REST, page store
//!                      │                 │
//!                      │<── FDSTORE ─────┘    a copy of each mount's /dev/fuse, of each store's lock
//!                      └─── LISTEN_FDS ──> the next service, as soon as this one is gone
//! ```
//!
//! A mount lives as long as a descriptor of its device is open. So when the service dies its mounts stay: who uses them waits, and the next
//! service goes on where the last one stopped. The keeper reads no request, opens no file of the store and knows nothing of what it
//! holds; it speaks systemd's own protocol ([`crate::service::parent`]), so that systemd can take its place.
//!
//! A service that ends by itself with success ends the keeper. One that dies is started again at once; one that keeps dying, after a
//! pause that grows. When it has not come up for a minute the keeper gives up: with its descriptors the mounts end, and whoever waits
//! for them gets an error instead of waiting forever. Linux only: elsewhere the service runs alone.

mod held;
mod notices;

use std::convert::Infallible;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fs, io, mem, thread};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, dup2_stdout, execve, fork, setsid};

use crate::error::{Error, Result};
use crate::service::{RESTART, parent};
use crate::store_dir;
use held::Held;
use notices::Notices;

/// The program that this is, also after its file has been replaced or deleted.
const THIS_PROGRAM: &str = "/proc/self/exe";

/// How long services may fail to come up before the keeper gives up.
const PATIENCE: Duration = Duration::from_secs(60);

/// A service that lived so long was well.
const WELL: Duration = Duration::from_secs(1);

/// How long a new program may take to come up after an upgrade, and how long it has to live until the one before is forgotten.
const TRIAL: Duration = Duration::from_secs(20);

/// So many may die young before there is a pause, which then doubles up to a most.
const DEATHS_AT_ONCE: u32 = 3;
const PAUSE: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// What poll(2) rounds a time down to.
const POLL_TICK: Duration = Duration::from_millis(1);

const WATCHED: [Signal; 4] = [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];

/// Would end the keeper, and mean nothing to it.
const UNHEARD: [Signal; 3] = [Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGALRM];

/// What the keeper starts.
pub struct Plan<'a> {
    pub store: &'a Path,
    pub listen: Option<&'a str>,
    /// In a terminal: the starter waits for the keeper's end, not for a report.
    pub foreground: bool,
}

/// Keeps a service until it ends; returns its exit code.
pub fn run(plan: &Plan) -> Result<i32> {
    let mut keeper = Keeper::new(plan).map_err(Error::io("keep the service"))?;
    keeper.run().map_err(Error::io("keep the service"))
}

struct Keeper {
    store: PathBuf,
    arguments: Vec<CString>,
    held: Held,
    notices: Notices,
    signals: SignalFd,
    /// The program that is the service; held open, so that it is the same after its file was replaced or deleted.
    program: OwnedFd,
    /// The program before an upgrade, until the new one has shown that it can serve.
    before: Option<OwnedFd>,
    /// What the next service is told of the last.
    crashed: bool,
}

/// How a service came to its end.
struct End {
    status: WaitStatus,
    was_ready: bool,
    /// Somebody has asked for it.
    was_asked_for: bool,
    lived: Duration,
    next_program: Option<PathBuf>,
}

impl End {
    /// Whether a program that was to be tried has shown that it is no service; one that somebody else has killed has shown nothing.
    fn is_failed_trial(&self) -> bool {
        let by_itself = is_crash(self.status) || exit_code(self.status).is_some_and(|code| code != 0);
        !self.was_ready || self.lived < TRIAL && by_itself
    }

    /// Of a service that was never there.
    fn of_none() -> End {
        End {
            status: WaitStatus::StillAlive,
            was_ready: false,
            was_asked_for: false,
            lived: Duration::ZERO,
            next_program: None,
        }
    }
}

impl Keeper {
    fn new(plan: &Plan) -> io::Result<Keeper> {
        raise_open_files()?;
        let mut watched = SigSet::empty();
        watched.extend(WATCHED);
        watched.thread_block()?;
        UNHEARD.into_iter().collect::<SigSet>().thread_block()?;
        if plan.foreground {
            dup2_stdout(null()?)?;
        }
        Ok(Keeper {
            store: plan.store.into(),
            arguments: arguments(plan)?,
            held: Held::default(),
            notices: Notices::listen()?,
            signals: SignalFd::with_flags(&watched, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?,
            program: opened(Path::new(THIS_PROGRAM))?,
            before: None,
            crashed: false,
        })
    }

    fn run(&mut self) -> io::Result<i32> {
        let mut ever_ready = false;
        let (mut died_young, mut down_since) = (0, Instant::now());
        loop {
            let end = self.serve_once(ever_ready)?;
            ever_ready |= end.was_ready;
            let (code, failed) = (exit_code(end.status), end.is_failed_trial());
            match (&end.next_program, self.before.take_if(|_| failed || end.lived >= TRIAL)) {
                (Some(program), _) if code == Some(RESTART) => self.before = self.change_program(program),
                (_, Some(before)) if failed => {
                    tracing::error!("the new program {}: the one before goes on", described(end.status));
                    self.program = before;
                    down_since = Instant::now();
                }
                _ => match code {
                    Some(code) if code == 0 || !ever_ready => return Ok(code),
                    _ if end.was_asked_for && end.lived < WELL => return Ok(gave_up("was told to end")),
                    _ => {
                        tracing::error!("the service {}: the next one takes over", described(end.status));
                        self.crashed = is_crash(end.status);
                    }
                },
            }
            died_young = if end.lived >= WELL { 0 } else { died_young + 1 };
            match end.was_ready {
                true => down_since = Instant::now(),
                false if !store_dir::is_store(&self.store) => return Ok(gave_up("has no store any more")),
                false if down_since.elapsed() > PATIENCE => return Ok(gave_up("has not come up for a minute")),
                false => {}
            }
            thread::sleep(pause(died_young));
        }
    }

    /// From its start to its end. A machine that has no process left to give is one on which it didn't come up, once one has.
    fn serve_once(&mut self, ever_ready: bool) -> io::Result<End> {
        let service = match self.start() {
            Err(error) if ever_ready => {
                tracing::error!("no service can be started: {error}");
                return Ok(End::of_none());
            }
            started => started?,
        };
        // Only the first service has somebody who waits for its report.
        dup2_stdout(null()?)?;
        self.watch(service)
    }

    /// Returns the program before. One that can't be opened changes nothing.
    fn change_program(&mut self, program: &Path) -> Option<OwnedFd> {
        match opened(program) {
            Ok(opened) => Some(mem::replace(&mut self.program, opened)),
            Err(error) => {
                tracing::error!(
                    "{} can't be run ({error}): the program before goes on",
                    program.display()
                );
                None
            }
        }
    }

    /// Starts a service with all that is held.
    fn start(&mut self) -> io::Result<Pid> {
        let environment = self.environment()?;
        // SAFETY: this process has one thread, so its copy is as good as itself.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => Ok(child),
            ForkResult::Child => {
                let Err(error) = self.become_service(&environment);
                eprintln!("error: the service can't be started: {error}");
                // SAFETY: only ends this process, which shares its buffers with nobody.
                unsafe { libc::_exit(1) }
            }
        }
    }

    /// In the child. It has a session of its own, so that a terminal's signals reach it through the keeper only.
    fn become_service(&mut self, environment: &[CString]) -> io::Result<Infallible> {
        setsid()?;
        SigSet::all().thread_unblock()?;
        let program = self.held.put_in_place(&self.program)?;
        let program = CString::new(format!("/proc/self/fd/{}", program.as_raw_fd()))?;
        Ok(execve(&program, &self.arguments, environment)?)
    }

    /// This process's environment, and how to reach the keeper and what it holds.
    fn environment(&self) -> io::Result<Vec<CString>> {
        let mut variables: Vec<CString> = std::env::vars_os()
            .map(|(name, value)| CString::new([name.as_bytes(), b"=", value.as_bytes()].concat()))
            .collect::<std::result::Result<_, _>>()?;
        let reserved = ["NOTIFY_SOCKET=", "LISTEN_", "ZENITH_CRASHED="];
        variables.retain(|variable| {
            !reserved
                .iter()
                .any(|name| variable.to_bytes().starts_with(name.as_bytes()))
        });
        variables.push(CString::new(format!("NOTIFY_SOCKET={}", self.notices.address()))?);
        variables.push(CString::new(format!("LISTEN_FDS={}", self.held.len()))?);
        variables.push(CString::new(format!("LISTEN_FDNAMES={}", self.held.names()))?);
        if self.crashed {
            variables.push(CString::new(format!("{}=1", parent::CRASHED))?);
        }
        Ok(variables)
    }

    /// Takes what the service sends, and passes signals on to it, until it has ended with all its threads.
    fn watch(&mut self, service: Pid) -> io::Result<End> {
        let started = Instant::now();
        let (mut was_ready, mut was_asked_for, mut next_program) = (false, false, None);
        loop {
            let on_trial = self.before.is_some() && !was_ready;
            self.wait(on_trial.then(|| TRIAL.saturating_sub(started.elapsed())))?;
            if on_trial && started.elapsed() >= TRIAL {
                tracing::error!("the new program has not come up for {TRIAL:?}");
                kill(service, Signal::SIGKILL)?;
            }
            was_asked_for |= self.pass_signals_on(service)?;
            let status = waitpid(service, Some(WaitPidFlag::WNOHANG))?;
            // After it has ended, so that its last words are heard.
            let told = self.notices.read(service, &mut self.held)?;
            was_ready |= told.ready;
            next_program = told.program.or(next_program);
            if status != WaitStatus::StillAlive {
                let lived = started.elapsed();
                return Ok(End {
                    status,
                    was_ready,
                    was_asked_for,
                    lived,
                    next_program,
                });
            }
        }
    }

    /// Until there is something to look at, or for a while.
    fn wait(&self, longest: Option<Duration>) -> io::Result<()> {
        let longest = longest.map_or(PollTimeout::NONE, |longest| {
            PollTimeout::try_from(longest + POLL_TICK).unwrap_or(PollTimeout::MAX)
        });
        let mut sources = [
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.notices.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut sources, longest) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether there were any that ask for its end.
    fn pass_signals_on(&mut self, service: Pid) -> io::Result<bool> {
        let mut ask = false;
        while let Some(caught) = self.signals.read_signal()? {
            let signal = Signal::try_from(caught.ssi_signo as i32)?;
            if signal != Signal::SIGCHLD {
                ask |= signal != Signal::SIGHUP;
                // One that has just ended needs no signal.
                let _ended = kill(service, signal).is_err();
            }
        }
        Ok(ask)
    }
}

/// It holds two descriptors for each mount.
fn raise_open_files() -> io::Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, most, most)?)
}

fn arguments(plan: &Plan) -> io::Result<Vec<CString>> {
    let store = CString::new(plan.store.as_os_str().as_bytes())?;
    let mut arguments = vec![c"zenith".to_owned(), c"--store".to_owned(), store, c"start".to_owned()];
    arguments.push(c"--kept".to_owned());
    if let Some(listen) = plan.listen {
        arguments.push(CString::new(format!("--listen={listen}"))?);
    }
    Ok(arguments)
}

fn opened(program: &Path) -> io::Result<OwnedFd> {
    let file = fs::File::options()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open(program)?;
    Ok(file.into())
}

fn null() -> io::Result<fs::File> {
    fs::File::options().read(true).write(true).open("/dev/null")
}

fn exit_code(status: WaitStatus) -> Option<i32> {
    match status {
        WaitStatus::Exited(_, code) => Some(code),
        _ => None,
    }
}

/// Not an end that somebody else has given it, nor one of its own will.
fn is_crash(status: WaitStatus) -> bool {
    match status {
        WaitStatus::Signaled(_, signal, _) => ![Signal::SIGKILL, Signal::SIGTERM].contains(&signal),
        _ => false,
    }
}

fn described(status: WaitStatus) -> String {
    match status {
        WaitStatus::StillAlive => "was not started".into(),
        WaitStatus::Signaled(_, signal, _) => format!("was ended by {signal}"),
        WaitStatus::Exited(_, code) => format!("ended with the exit code {code}"),
        other => format!("ended ({other:?})"),
    }
}

fn gave_up(why: &str) -> i32 {
    tracing::error!("the service {why}: its mounts end, and with them what waits for them");
    1
}

fn pause(died_young: u32) -> Duration {
    match died_young.checked_sub(DEATHS_AT_ONCE) {
        None => Duration::ZERO,
        Some(more) => PAUSE.saturating_mul(1 << more.min(16)).min(PAUSE_MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_that_keeps_dying_is_started_ever_more_slowly() {
        let pauses: Vec<u128> = (0..6).map(|deaths| pause(deaths).as_millis()).collect();
        assert_eq!(pauses, [0, 0, 0, 10, 20, 40]);
        assert_eq!(pause(u32::MAX), PAUSE_MAX);
    }
}
