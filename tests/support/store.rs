//! A store of a test's own, with its service and its mounts; all of it goes when the test ends, however it ends.
//!
//! The store lies below the build directory, since a store on a tmpfs is refused. Its mounts lie in the temporary
//! directory, where a Postgres that runs as another user can reach them.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::{env, fs, process};

const ZENITH: &str = env!("CARGO_BIN_EXE_zenith");

pub struct Store {
    dir: PathBuf,
    mounts: PathBuf,
}

#[allow(dead_code, reason = "tests take what they need")]
impl Store {
    /// `name` tells the stores of tests that run side by side apart.
    pub fn new(name: &str) -> Store {
        let unique = format!("zenith-test-{name}-{}", process::id());
        let mounts = env::temp_dir().join(&unique);
        fs::create_dir(&mounts).expect("a directory for the mounts");
        fs::set_permissions(&mounts, fs::Permissions::from_mode(0o711)).expect("others may pass");
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(unique);
        Store::made(dir, mounts)
    }

    /// A store in a directory below one of the caller's.
    pub fn within(parent: &Path, name: &str) -> Store {
        let mounts = parent.join(format!("{name}-mounts"));
        fs::create_dir(&mounts).expect("a directory for the mounts");
        fs::set_permissions(&mounts, fs::Permissions::from_mode(0o711)).expect("others may pass");
        Store::made(parent.join(name), mounts)
    }

    fn made(dir: PathBuf, mounts: PathBuf) -> Store {
        let store = Store { dir, mounts };
        store.zenith(&["init", "--empty"]);
        store
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(ZENITH);
        command.env("ZENITH_DIR", &self.dir).args(arguments);
        command.current_dir(&self.mounts).stdin(Stdio::null());
        command
    }

    /// A command that may fail.
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("zenith runs")
    }

    pub fn spawn(&self, arguments: &[&str]) -> Child {
        let mut command = self.command(arguments);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().expect("zenith runs")
    }

    /// What a command that must succeed prints as JSON.
    pub fn json(&self, arguments: &[&str]) -> serde_json::Value {
        let output = self.run(&[arguments, &["-o", "json"]].concat());
        assert!(output.status.success(), "zenith {arguments:?}: {output:?}");
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn stop_pgs(&self) {
        let output = self.run(&["pg", "list", "-o", "json"]);
        let pgs: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        for pg in pgs.as_array().into_iter().flatten() {
            if let (Some(name), Some(_)) = (pg["name"].as_str(), pg["pid"].as_i64()) {
                self.run(&["pg", "stop", "-m", "immediate", name]);
            }
        }
    }

    pub fn zenith(&self, arguments: &[&str]) {
        let output = self.command(arguments).output().expect("zenith runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "zenith {arguments:?}: {}\n{said}",
            output.status
        );
    }

    /// Mounts a view in a directory named `name`.
    pub fn mount(&self, view: &str, name: &str, more: &[&str]) -> PathBuf {
        let dir = self.path(name);
        let arguments = ["mount", view, dir.to_str().expect("UTF-8"), "--create"];
        self.zenith(&[&arguments, more].concat());
        dir
    }

    /// A place beside the mounts.
    pub fn path(&self, name: &str) -> PathBuf {
        self.mounts.join(name)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.stop_pgs();
        let stopped = self
            .command(&["stop", "--force"])
            .status()
            .is_ok_and(|status| status.success());
        // A directory that is still a mount must not be emptied: what is in it may be worth a look.
        if stopped {
            for dir in [&self.mounts, &self.dir] {
                fs::remove_dir_all(dir).unwrap_or_else(|error| eprintln!("{} stays: {error}", dir.display()));
            }
        }
    }
}
