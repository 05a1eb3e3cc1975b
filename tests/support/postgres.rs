//! Stock Postgres servers for tests: programs of one major version, and a cluster on a directory.
//!
//! Postgres refuses to run as root, so for root everything here runs as the user `postgres`.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;
use std::{env, fs, thread};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, chown, geteuid};

/// Where `scripts/test` puts the majors that Debian doesn't have.
const CACHE: &str = "/var/cache/zenith";

pub struct Cluster {
    programs: PathBuf,
    data: PathBuf,
    sockets: PathBuf,
}

impl Cluster {
    pub fn new(major: u32, data: &Path, sockets: &Path) -> Cluster {
        fs::create_dir(sockets).expect("a directory for the socket");
        if let Some(user) = server_user() {
            chown(sockets, Some(user.uid), Some(user.gid)).expect("the socket's directory is the server's");
        }
        let programs = programs(major);
        let (data, sockets) = (data.to_path_buf(), sockets.to_path_buf());
        Cluster {
            programs,
            data,
            sockets,
        }
    }

    pub fn initdb(&self) {
        self.run(
            "initdb",
            &[
                "--data-checksums",
                "--auth=trust",
                "--no-locale",
                "--encoding=UTF8",
                "--pgdata",
                self.data(),
            ],
        );
    }

    pub fn start(&self) {
        let options = format!(
            "-c listen_addresses='' -c unix_socket_directories={}",
            self.sockets.display()
        );
        let log = self.sockets.join("server.log");
        let log = log.to_str().expect("UTF-8");
        self.run(
            "pg_ctl",
            &[
                "start",
                "-w",
                "-t",
                "120",
                "-s",
                "-l",
                log,
                "-o",
                &options,
                "-D",
                self.data(),
            ],
        );
    }

    pub fn stop(&self) {
        self.run(
            "pg_ctl",
            &["stop", "-w", "-t", "120", "-s", "-m", "fast", "-D", self.data()],
        );
    }

    #[allow(dead_code, reason = "tests take what they need")]
    pub fn is_running(&self) -> bool {
        !self.processes().is_empty()
    }

    /// The first column of the first row.
    pub fn sql(&self, statement: &str) -> String {
        self.run(
            "psql",
            &[
                "-XqAt",
                "-v",
                "ON_ERROR_STOP=1",
                "-h",
                self.sockets(),
                "-d",
                "postgres",
                "-c",
                statement,
            ],
        )
    }

    /// Postgres' own checks of everything: a stopped server's checksums, then a running one's tables and indexes.
    pub fn check(&self) {
        self.stop();
        self.run("pg_checksums", &["--check", "--pgdata", self.data()]);
        self.start();
        self.run(
            "pg_amcheck",
            &[
                "--install-missing",
                "--heapallindexed",
                "--parent-check",
                "-h",
                self.sockets(),
                "-d",
                "postgres",
            ],
        );
    }

    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = self
            .command(program)
            .args(arguments)
            .output()
            .expect("the program runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{program}: {}\n{said}\n{}",
            output.status,
            self.server_log()
        );
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Starts a program beside the test; its output is there when it is waited for.
    pub fn spawn(&self, program: &str, arguments: &[&str]) -> Running {
        let mut command = self.command(program);
        let child = command
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let child = child.expect("the program starts");
        Running(thread::spawn(move || {
            child.wait_with_output().expect("the program ends")
        }))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command
            .env("LC_ALL", "C")
            .env("PGHOST", &self.sockets)
            .env("PGDATABASE", "postgres");
        command.current_dir("/").stdin(Stdio::null());
        if let Some(user) = server_user() {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw()).env("HOME", "/");
        }
        command
    }

    /// Ends every process of the server at once, as a crash would: the postmaster first, so that it starts no more.
    pub fn kill_9(&self) {
        let file = fs::read_to_string(self.data.join("postmaster.pid")).expect("the server runs");
        let pid = file.lines().next().and_then(|line| line.parse().ok());
        let postmaster = Pid::from_raw(pid.expect("a process id"));
        kill(postmaster, Signal::SIGKILL).expect("the postmaster is there");
        let mut left = self.processes();
        while !left.is_empty() {
            for pid in left {
                // One that is gone already is what is wanted.
                let _ = kill(pid, Signal::SIGKILL);
            }
            thread::sleep(Duration::from_millis(20));
            left = self.processes();
        }
        // Until init has taken note of its death, a new server takes the old one to be there still.
        while kill(postmaster, None).is_ok() {
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// All processes of the server: their working directory is its data directory. That of a process which hangs on a
    /// dead mount can't be asked for, so only those of a server are.
    fn processes(&self) -> Vec<Pid> {
        let entries = fs::read_dir("/proc").expect("there is a /proc").flatten();
        let servers =
            entries.filter(|entry| fs::read(entry.path().join("comm")).is_ok_and(|name| name == b"postgres\n"));
        let ours = servers.filter(|entry| fs::read_link(entry.path().join("cwd")).is_ok_and(|dir| dir == self.data));
        ours.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .map(Pid::from_raw)
            .collect()
    }

    fn server_log(&self) -> String {
        fs::read_to_string(self.sockets.join("server.log")).unwrap_or_default()
    }

    fn data(&self) -> &str {
        self.data.to_str().expect("UTF-8")
    }

    fn sockets(&self) -> &str {
        self.sockets.to_str().expect("UTF-8")
    }
}

impl Drop for Cluster {
    /// A server that a failed test leaves behind would keep its mount busy.
    fn drop(&mut self) {
        if !self.processes().is_empty() {
            self.kill_9();
        }
    }
}

pub struct Running(thread::JoinHandle<Output>);

impl Running {
    pub fn wait(self) -> Output {
        self.0.join().expect("the program ends")
    }
}

/// The user that servers run as, where that is not the test's own.
pub fn server_user() -> Option<User> {
    let user = || {
        User::from_name("postgres")
            .expect("users can be looked up")
            .expect("there is a user postgres")
    };
    geteuid().is_root().then(user)
}

/// Where the programs of a major version are: Debian's, else what scripts/test fetched.
pub fn programs(major: u32) -> PathBuf {
    let cache = env::var_os("ZENITH_TEST_POSTGRES").map_or(CACHE.into(), PathBuf::from);
    let debian = PathBuf::from(format!("/usr/lib/postgresql/{major}/bin"));
    let fetched = cache.join(format!("postgres-{major}/bin"));
    let found = [debian, fetched].into_iter().find(|dir| dir.join("postgres").is_file());
    found.unwrap_or_else(|| panic!("no Postgres {major} on this machine: scripts/test installs it"))
}
