//! A Postgres server on a data directory: start, stop, promote, and how it stands.
//!
//! Servers are started with pg_ctl and outlive the service. How one stands is read from its `postmaster.pid`
//! (`src/include/utils/pidfile.h`), as pg_ctl itself does. Port and socket directory are given on the command line, where
//! they win over the configuration, which a copy has from the server it was copied from.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{AccessFlags, Pid, access, geteuid};
use serde::{Deserialize, Serialize};

use super::Owner;
use super::last_lines;
use super::programs::{self, Programs};
use crate::error::{Error, Result};

/// The first port that is tried.
const FIRST_PORT: u16 = 5432;

/// How long a start may take (recovery included), and a stop (its checkpoint included), in seconds.
const PATIENCE: &str = "3600";

/// How long a server may take to end that has lost its data directory.
const ORPHAN_PATIENCE: Duration = Duration::from_secs(10);
const ORPHAN_PAUSE: Duration = Duration::from_millis(20);

/// How much of a failed server's log is passed on.
const LAST_LINES: usize = 10;

/// A log longer than this, in bytes, is put aside at the next start.
const LOG_MAX: u64 = 16 << 20;

/// Where clients of Debian's and of other packages look for sockets.
const SOCKET_DIRS: [&str; 2] = ["/var/run/postgresql", "/tmp"];

/// How a server stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = ServerStatus)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    Stopped,
    Starting,
    Running,
    Stopping,
}

/// How to stop a server: wait for its clients, end them, or as if the power went.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize, clap::ValueEnum, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum StopMode {
    /// Wait until all clients have gone
    Smart,
    /// End the clients' sessions
    #[default]
    Fast,
    /// At once, with recovery at the next start
    Immediate,
}

/// A server as it is to run.
pub struct Server<'a> {
    pub programs: &'a Programs,
    pub dir: &'a Path,
    pub owner: Owner,
    pub port: u16,
    pub socket_dir: &'a Path,
    pub log: &'a Path,
    /// Settings beside port and sockets, plain words only: pg_ctl hands them to a shell.
    pub settings: &'a [&'a str],
}

/// What `postmaster.pid` says: who runs, and how far it is.
struct Postmaster {
    pid: Pid,
    status: Status,
}

impl Server<'_> {
    /// Returns when the server takes connections. One that fails is told with the end of its log.
    pub fn start(&self) -> Result<()> {
        let log = open_log(self.log)?;
        let before = log.metadata().map_err(Error::path("look at", self.log))?.len();
        let mut options = format!("-p {} -k {}", self.port, self.socket_dir.display());
        for setting in self.settings {
            options.push_str(&format!(" -c {setting}"));
        }
        let both = || Ok::<_, io::Error>((log.try_clone()?, log.try_clone()?));
        let (stdout, stderr) = both().map_err(Error::path("open", self.log))?;
        let status = self
            .pg_ctl("start")
            .args(["-w", "-t", PATIENCE, "-o", &options])
            .stdout(stdout)
            .stderr(stderr)
            .status();
        match status
            .map_err(Error::path("run pg_ctl from", &self.programs.dir))?
            .success()
        {
            true => Ok(()),
            false => Err(self.told(before)),
        }
    }

    /// How libpq finds the server.
    pub fn conninfo(&self) -> String {
        conninfo(self.socket_dir, self.port, &self.owner.name(), "dbname=postgres")
    }

    fn told(&self, before: u64) -> Error {
        let said = read_from(self.log, before).unwrap_or_default();
        let said: String = said
            .lines()
            .filter(|line| !is_pg_ctl_noise(line))
            .map(|line| format!("{line}\n"))
            .collect();
        let what = format!("PostgreSQL did not start on {}", self.dir.display());
        Error::failure(format!("{what}:\n  {}", last_lines(&said, LAST_LINES)))
            .hint(format!("the whole log is {}", self.log.display()))
    }

    pub fn promote(&self) -> Result<()> {
        self.run(self.pg_ctl("promote").args(["-w", "-t", PATIENCE]))
    }

    fn pg_ctl(&self, action: &str) -> Command {
        pg_ctl(self.programs, self.owner, self.dir, action)
    }

    fn run(&self, command: &mut Command) -> Result<()> {
        run_pg_ctl(command, self.programs)
    }
}

/// Returns when the server has ended.
pub fn stop(programs: &Programs, owner: Owner, dir: &Path, mode: StopMode) -> Result<()> {
    let mode = match mode {
        StopMode::Smart => "smart",
        StopMode::Fast => "fast",
        StopMode::Immediate => "immediate",
    };
    let mut command = pg_ctl(programs, owner, dir, "stop");
    let stopped = run_pg_ctl(command.args(["-w", "-t", PATIENCE, "-m", mode]), programs);
    // One that was killed meanwhile is as stopped as it can be.
    match status(dir) {
        Status::Stopped => Ok(()),
        _ => stopped,
    }
}

/// Has a running server write a checkpoint, as its own user and so without a password.
pub fn checkpoint(pg_bin: &Path, owner: Owner, socket_dir: &Path, port: u16) -> Result<()> {
    let mut psql = owner.command(&programs::psql(pg_bin));
    psql.args([
        "-XqAt",
        "-d",
        "postgres",
        "-p",
        &port.to_string(),
        "-c",
        "CHECKPOINT",
        "-h",
    ]);
    let output = psql.arg(socket_dir).output().map_err(Error::io("run psql"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    match output.status.success() {
        true => Ok(()),
        false => Err(
            Error::failure(format!("no checkpoint: {}", last_lines(&said, LAST_LINES)))
                .hint("leave --checkpoint away: a view of the snapshot then replays WAL when it starts"),
        ),
    }
}

/// What libpq needs to find a server, with `more` of its `key=value` at the end.
pub fn conninfo(socket_dir: &Path, port: u16, user: &str, more: &str) -> String {
    let quoted = |value: &str| match value.bytes().all(|b| b.is_ascii_alphanumeric() || b"/_.-".contains(&b)) {
        true if !value.is_empty() => value.to_owned(),
        _ => format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'")),
    };
    let socket_dir = socket_dir.display().to_string();
    format!("host={} port={port} user={} {more}", quoted(&socket_dir), quoted(user))
}

fn pg_ctl(programs: &Programs, owner: Owner, dir: &Path, action: &str) -> Command {
    let mut command = owner.command(&programs.path("pg_ctl"));
    command.args([action, "-s", "-D"]).arg(dir);
    command
}

fn run_pg_ctl(command: &mut Command, programs: &Programs) -> Result<()> {
    let output = command
        .output()
        .map_err(Error::path("run pg_ctl from", &programs.dir))?;
    let said = String::from_utf8_lossy(&output.stderr);
    match output.status.success() {
        true => Ok(()),
        false => Err(Error::failure(format!(
            "pg_ctl failed: {}",
            last_lines(&said, LAST_LINES)
        ))),
    }
}

/// What pg_ctl itself adds to the log of a server that failed.
fn is_pg_ctl_noise(line: &str) -> bool {
    line.starts_with("pg_ctl: could not start server") || line.starts_with("Examine the log output")
}

/// Refuses a data directory that pg_ctl can't hand on as it is: it puts the path into a shell's double quotes.
pub fn check_path(dir: &Path) -> Result<()> {
    let taken_apart = |b: &u8| matches!(b, b'"' | b'$' | b'`' | b'\\') || b.is_ascii_control();
    match dir.as_os_str().as_bytes().iter().any(taken_apart) {
        true => Err(Error::usage(format!("pg_ctl can't start a server on {dir:?}"))
            .hint("give a path without \", $, `, \\ and control characters, with --dir")),
        false => Ok(()),
    }
}

/// How the server on a data directory stands. A file that a killed server left behind counts as stopped.
pub fn status(dir: &Path) -> Status {
    postmaster(dir).map_or(Status::Stopped, |postmaster| postmaster.status)
}

/// The server's process, if one runs on the data directory.
pub fn pid(dir: &Path) -> Option<i32> {
    postmaster(dir).map(|postmaster| postmaster.pid.as_raw())
}

fn postmaster(dir: &Path) -> Option<Postmaster> {
    let text = fs::read_to_string(dir.join("postmaster.pid")).ok()?;
    let postmaster = parse_pid_file(&text)?;
    let lives = kill(postmaster.pid, None).is_ok() && is_on(postmaster.pid, dir);
    lives.then_some(postmaster)
}

/// Whether a server that was started on the directory lives and works in what was mounted there before.
#[cfg(target_os = "linux")]
pub fn has_lost(dir: &Path) -> bool {
    let text = fs::read_to_string(dir.join("postmaster.pid")).ok();
    let postmaster = text.and_then(|text| parse_pid_file(&text));
    postmaster.is_some_and(|postmaster| is_started_on(postmaster.pid, dir) && !is_on(postmaster.pid, dir))
}

/// Whether a server on the directory has ended without having been stopped: it leaves its file.
pub fn has_ended_badly(dir: &Path) -> bool {
    status(dir) == Status::Stopped && dir.join("postmaster.pid").exists()
}

#[cfg(not(target_os = "linux"))]
pub fn has_lost(_: &Path) -> bool {
    false
}

/// Ends a server that a killed service has left behind: its mount is gone from under it, and it still holds the port and
/// the data directory's lock. It is known by its file and its arguments, and by not working in what is mounted there now.
#[cfg(target_os = "linux")]
pub fn end_orphan(dir: &Path) {
    let text = fs::read_to_string(dir.join("postmaster.pid")).ok();
    let Some(Postmaster { pid, .. }) = text.and_then(|text| parse_pid_file(&text)) else {
        return;
    };
    if is_on(pid, dir) {
        return;
    }
    for signal in [Signal::SIGQUIT, Signal::SIGKILL] {
        if is_started_on(pid, dir) {
            tracing::warn!("ending the server {pid}, which lost {}: {signal}", dir.display());
            // One that has just ended is what is wanted.
            let _gone = kill(pid, signal).is_err();
            wait_while(|| is_started_on(pid, dir));
        }
    }
    // A new server takes it to be there still until its parent has taken note.
    wait_while(|| is_ending(pid));
}

#[cfg(target_os = "linux")]
fn wait_while(so: impl Fn() -> bool) {
    let deadline = Instant::now() + ORPHAN_PATIENCE;
    while so() && Instant::now() < deadline {
        thread::sleep(ORPHAN_PAUSE);
    }
}

/// Whether the process has let go of its memory, as its arguments tell, and its number is still taken.
#[cfg(target_os = "linux")]
fn is_ending(pid: Pid) -> bool {
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|arguments| arguments.is_empty())
}

#[cfg(not(target_os = "linux"))]
pub fn end_orphan(_: &Path) {}

/// Whether the process is a server that was started on the directory.
#[cfg(target_os = "linux")]
fn is_started_on(pid: Pid, dir: &Path) -> bool {
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut arguments = arguments.split(|b| *b == 0);
    arguments.any(|argument| argument == b"-D") && arguments.next() == Some(dir.as_os_str().as_bytes())
}

/// The first line is the process, the eighth how far it is.
fn parse_pid_file(text: &str) -> Option<Postmaster> {
    let mut lines = text.lines();
    // A standalone backend writes its number negated.
    let pid: i32 = lines.next()?.trim().parse().ok()?;
    let status = match lines.nth(6).map_or("", str::trim) {
        "ready" | "standby" => Status::Running,
        "stopping" => Status::Stopping,
        _ => Status::Starting,
    };
    let pid = Pid::from_raw(pid.checked_abs()?);
    Some(Postmaster { pid, status })
}

/// Whether the process works in the directory; its number may be another one's by now.
#[cfg(target_os = "linux")]
fn is_on(pid: Pid, dir: &Path) -> bool {
    // One that has ended and wasn't waited for yet has none.
    let cwd = fs::read_link(format!("/proc/{pid}/cwd"));
    cwd.is_ok_and(|cwd| cwd == dir)
}

#[cfg(not(target_os = "linux"))]
fn is_on(_: Pid, _: &Path) -> bool {
    true
}

/// A port that nobody listens on and that is not in `taken`.
pub fn free_port(taken: &[u16]) -> Result<u16> {
    (FIRST_PORT..=u16::MAX)
        .filter(|port| !taken.contains(port))
        .find(|port| is_free(*port))
        .ok_or_else(|| Error::failure("there is no free port from 5432 on"))
}

/// Whether a start failed because somebody else was quicker to take the port. Two that start at once can each get half of it,
/// TCP or the socket's lock, and both fail: then the port is free again, and only what they said tells.
pub fn lost_port(port: u16, error: &Error) -> bool {
    let said = |text: &str| error.message.contains(text);
    !is_free(port) || said(&format!(".s.PGSQL.{port}.lock")) || said("Address already in use")
}

/// Postgres takes a port only when its socket file is free too.
fn is_free(port: u16) -> bool {
    let has_socket = |dir: &&str| Path::new(dir).join(format!(".s.PGSQL.{port}.lock")).exists();
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() && !SOCKET_DIRS.iter().any(has_socket)
}

/// Where a server's sockets go: where clients look for them, and the server may write.
pub fn socket_dir(owner: Owner) -> PathBuf {
    let debian = Path::new(SOCKET_DIRS[0]);
    match may_write(owner, debian) {
        true => debian.into(),
        false => SOCKET_DIRS[1].into(),
    }
}

/// Whether the directory is the user's own; as the user itself also whether it may write there.
fn may_write(owner: Owner, dir: &Path) -> bool {
    let own = Owner::of_dir(dir).is_ok_and(|of_dir| of_dir.uid == owner.uid);
    own || (geteuid() == owner.uid && access(dir, AccessFlags::W_OK).is_ok())
}

/// The server's log, written through the service's own descriptor: its place is nobody else's to write.
fn open_log(path: &Path) -> Result<File> {
    if fs::metadata(path).is_ok_and(|log| log.len() > LOG_MAX) {
        fs::rename(path, path.with_extension("log.1")).map_err(Error::path("put aside", path))?;
    }
    let log = File::options().create(true).append(true).mode(0o600).open(path);
    log.map_err(Error::path("open", path))
}

/// What was written to a file from a position on.
pub fn read_from(path: &Path, from: u64) -> io::Result<String> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_file_tells_who_runs_and_how_far_it_is() {
        let file = |status: &str| format!("42\n/data\n1700000000\n5432\n/tmp\nlocalhost\n  1 2\n{status}\n");
        for (word, status) in [
            ("ready   ", Status::Running),
            ("standby ", Status::Running),
            ("starting", Status::Starting),
            ("stopping", Status::Stopping),
        ] {
            let postmaster = parse_pid_file(&file(word)).expect("a pid file");
            assert_eq!((postmaster.pid.as_raw(), postmaster.status), (42, status));
        }
        assert!(parse_pid_file("").is_none() && parse_pid_file("x\n").is_none());
        assert_eq!(parse_pid_file("-7\n").expect("standalone").pid.as_raw(), 7);
    }

    #[test]
    fn a_free_port_is_one_that_nobody_has() {
        let first = free_port(&[]).expect("there is one");
        let held = TcpListener::bind((Ipv4Addr::LOCALHOST, first)).expect("free");
        let next = free_port(&[first + 1]).expect("there is another");
        assert!(next != first && next != first + 1);
        drop(held);
    }
}
