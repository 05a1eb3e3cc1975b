//! A directory for one test, with a store named `store` in it. Whatever happens in the test, its service is killed by
//! its id, its mounts are taken away and the directory is removed.
//!
//! It lies below the build directory, since a store on a tmpfs is refused.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use std::{io, process, thread};

use nix::mount::{MntFlags, umount2};
use nix::unistd::{Pid, geteuid};

use crate::processes;

const ZENITH: &str = env!("CARGO_BIN_EXE_zenith");

/// How long anything may take to come about.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where a store can lie and the user that Postgres runs as can get to: root's home, and a build directory there, is often closed to others.
fn place() -> PathBuf {
    match geteuid().is_root() {
        true => "/var/tmp".into(),
        false => env!("CARGO_TARGET_TMPDIR").into(),
    }
}

pub struct Sandbox {
    dir: PathBuf,
    store: PathBuf,
}

impl Sandbox {
    /// Without a store. `name` tells the tests that run side by side apart.
    pub fn bare(name: &str) -> Sandbox {
        let dir = place().join(format!("zenith-{name}-{}", process::id()));
        fs::create_dir_all(&dir).expect("a directory for the test");
        let store = dir.join("store");
        Sandbox { dir, store }
    }

    /// The store is elsewhere in the directory.
    pub fn with_store(mut self, name: &str) -> Sandbox {
        self.store = self.dir.join(name);
        self
    }

    /// With an empty store.
    pub fn new(name: &str) -> Sandbox {
        let sandbox = Sandbox::bare(name);
        sandbox.ok(&["init", "--empty"]);
        sandbox
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub fn store(&self) -> &Path {
        &self.store
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(ZENITH);
        command.args(arguments);
        self.at_home(command)
    }

    /// A line of shell, in which `$0` is the program.
    pub fn shell(&self, line: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", line, ZENITH]);
        self.at_home(command)
    }

    fn at_home(&self, mut command: Command) -> Command {
        command.current_dir(&self.dir);
        command
            .env("ZENITH_DIR", self.store())
            .env("ZENITH_LISTEN", "none")
            .env_remove("ZENITH_LOG")
            .env_remove("ZENITH_PG_BIN");
        for colour in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE"] {
            command.env_remove(colour);
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("zenith runs")
    }

    pub fn spawn(&self, arguments: &[&str]) -> Child {
        self.command(arguments).spawn().expect("zenith runs")
    }

    /// What a command that must succeed printed.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "zenith {arguments:?}: {output:?}");
        text(&output.stdout)
    }

    /// What a program reads of a command that must succeed.
    pub fn json(&self, arguments: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.ok(&[arguments, &["--json"]].concat())).expect("JSON")
    }

    /// A command that must fail: with this exit code, one line that says why, and a hint.
    pub fn refused(&self, code: i32, arguments: &[&str], why: &str, hint: &str) {
        assert_refused(&self.run(arguments), code, why, hint);
    }

    /// One request as its bytes, and all of the answer.
    pub fn raw(&self, request: &str) -> String {
        let mut stream = UnixStream::connect(self.store().join("zenith.sock")).expect("the service listens");
        stream.write_all(request.as_bytes()).expect("the request is read");
        io::read_to_string(stream).expect("an answer")
    }

    pub fn pid(&self) -> Pid {
        let pid = self.json(&["status"])["service"]["pid"].as_i64().expect("a process id");
        Pid::from_raw(i32::try_from(pid).expect("a process id"))
    }

    /// Ends the service at once, as a crash would. Its keeper starts the next one.
    pub fn kill_service(&self) {
        processes::kill_service(self.store());
    }

    /// Ends the keeper and leaves the service.
    pub fn kill_keeper(&self) {
        processes::kill_keeper(self.store());
    }

    /// Ends the service and its keeper at once.
    pub fn kill_with_keeper(&self) {
        processes::kill_with_keeper(self.store());
    }

    /// Where a killed service had mounted the cluster it was making.
    pub fn unfinished(&self) -> Option<PathBuf> {
        let text = fs::read_to_string(self.store().join("state.json")).ok()?;
        let remembered: serde_json::Value = serde_json::from_str(&text).ok()?;
        Some(PathBuf::from(remembered["unfinished"][0]["dir"].as_str()?))
    }

    /// What is mounted below the test's directory, the latest first.
    pub fn mount_points(&self) -> Vec<PathBuf> {
        let info = fs::read_to_string("/proc/self/mountinfo").expect("the list of mounts");
        let dirs = info
            .lines()
            .filter_map(|line| line.split(' ').nth(4))
            .map(PathBuf::from);
        let mut ours: Vec<PathBuf> = dirs.filter(|dir| dir.starts_with(&self.dir)).collect();
        ours.reverse();
        ours
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.kill_with_keeper();
        for dir in self.unfinished().into_iter().chain(self.mount_points()) {
            if let Err(error) = detach(&dir) {
                eprintln!("{} stays mounted: {error}", dir.display());
                return;
            }
        }
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            eprintln!("{} stays: {error}", self.dir.display());
        }
    }
}

fn detach(dir: &Path) -> io::Result<()> {
    if geteuid().is_root() {
        return Ok(umount2(dir, MntFlags::MNT_DETACH)?);
    }
    Command::new("fusermount3")
        .args(["-u", "-z"])
        .arg(dir)
        .status()
        .map(drop)
}

pub fn assert_refused(output: &Output, code: i32, why: &str, hint: &str) {
    let said = text(&output.stderr);
    let lines: Vec<&str> = said.lines().collect();
    let [error, hinted] = lines.as_slice() else {
        panic!("not an error and its hint: {output:?}");
    };
    assert!(error.starts_with("error: ") && error.contains(why), "{said}");
    assert!(hinted.starts_with("HINT: ") && hinted.contains(hint), "{said}");
    assert_eq!(output.status.code(), Some(code), "{said}");
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Waits until something has come about.
pub fn until(what: &str, there: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !there() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// A snapshot is what a power cut would leave, so what is to be in it is synced first.
pub fn sync(file: &Path) {
    File::open(file).and_then(|file| file.sync_all()).expect("synced");
}
