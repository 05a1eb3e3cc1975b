//! A machine that can lose its power: a directory with a recorded disk, a store on it, zenith, Postgres.
//!
//! ```text
//!   DIR/backing/disk     the disk, served by this process
//!   DIR/disk/            the filesystem on it, with the store in DIR/disk/store
//!   DIR/run/NAME         zenith's mounts
//! ```

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::Hasher;
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, Stdio};
use std::sync::{Arc, RwLock};

use crate::device::{Device, Kind};
use crate::disk::{Arena, Disk};
use crate::mutants::Mutant;
use crate::postgres::{programs, server_user};
use crate::service;

const ZENITH: &str = env!("CARGO_BIN_EXE_zenith");
const CLEAN_UP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/power_cut/clean-up.sh");
const MAJOR: u32 = 15;

/// The directory of a machine. Whatever is mounted or runs there is taken away when the test ends, however it ends.
pub struct Place {
    pub dir: PathBuf,
    pub arena: Arc<Arena>,
    /// Its pg's port; those that follow are its clones'.
    port: u16,
    _ports: TcpListener,
    janitor: Child,
}

/// How many ports a machine has; the last one is held as long as it lives, so that no other machine takes them.
const PORTS: u16 = 50;
const FIRST_PORT: u16 = 27_000;

fn ports() -> (u16, TcpListener) {
    let mut firsts = (FIRST_PORT..32_000).step_by(PORTS.into());
    let held = |first| Some((first, TcpListener::bind(("127.0.0.1", first + PORTS - 1)).ok()?));
    firsts.find_map(held).expect("free ports")
}

impl Place {
    pub fn new(name: &str) -> Place {
        let dir = std::env::temp_dir().join(format!("zenith-power-{name}-{}", process::id()));
        for part in ["backing", "disk", "run"] {
            fs::create_dir_all(dir.join(part)).expect("a directory for the machine");
            let mode = fs::Permissions::from_mode(0o711);
            fs::set_permissions(dir.join(part), mode.clone()).expect("others may pass");
            fs::set_permissions(&dir, mode).expect("others may pass");
        }
        // In a process group of its own, so that an interrupt from the terminal leaves it.
        let janitor = Command::new(CLEAN_UP)
            .arg(&dir)
            .arg("--at-end")
            .stdin(Stdio::piped())
            .process_group(0)
            .spawn();
        let arena = Arena::new(Path::new(env!("CARGO_TARGET_TMPDIR"))).expect("an arena");
        let (port, ports) = ports();
        Place {
            dir,
            arena,
            port,
            _ports: ports,
            janitor: janitor.expect("the janitor runs"),
        }
    }
}

impl Place {
    /// No machine finds sockets after it was switched on, and a process id says nothing of the time before.
    fn forget_sockets(&self) {
        for port in self.port..self.port + PORTS {
            let socket = format!("{SOCKETS}/.s.PGSQL.{port}");
            // Most of them were never there.
            let _ = (fs::remove_file(format!("{socket}.lock")), fs::remove_file(socket));
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.forget_sockets();
        drop(self.janitor.stdin.take());
        let ended = self.janitor.wait();
        if !ended.is_ok_and(|status| status.success()) {
            eprintln!("something of {} stays", self.dir.display());
        }
    }
}

/// A machine that has power.
pub struct Machine<'a> {
    place: &'a Place,
    pub disk: Arc<Disk>,
    mutant: Option<Mutant>,
    /// Held by commands, and alone by who kills the service: of an interrupted command nobody knows how far it came.
    commands: RwLock<()>,
    _device: Device,
}

impl Machine<'_> {
    /// Gives a machine power; its disk is formatted first when `format`. `names` are the places of its mounts.
    pub fn start<'a>(place: &'a Place, disk: Arc<Disk>, kind: Kind, format: bool, names: &[String]) -> Machine<'a> {
        let run = place.dir.join("run");
        for entry in fs::read_dir(&run).expect("the places of mounts").flatten() {
            fs::remove_dir(entry.path()).expect("nothing was written beside a mount");
        }
        for name in names {
            fs::create_dir(run.join(name)).expect("a place for a mount");
        }
        place.forget_sockets();
        Machine {
            _device: Device::mount(&disk, kind, &place.dir, format),
            place,
            disk,
            mutant: None,
            commands: RwLock::default(),
        }
    }

    pub fn with_mutant(mut self, mutant: Option<Mutant>) -> Self {
        self.mutant = mutant;
        self
    }

    pub fn store(&self) -> PathBuf {
        self.place.dir.join("disk/store")
    }

    /// Where a view of that name is mounted.
    pub fn mountpoint(&self, name: &str) -> PathBuf {
        self.place.dir.join("run").join(name)
    }

    pub fn port(&self) -> u16 {
        self.place.port
    }

    pub fn position(&self) -> u64 {
        self.disk.position()
    }

    fn command(&self, program: &Path) -> Command {
        // Nothing that is asked of zenith or Postgres here takes so long.
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", "120"]).arg(program);
        command.current_dir(self.place.dir.join("run")).stdin(Stdio::null());
        command.env("LC_ALL", "C").env("ZENITH_LISTEN", "none");
        command.env("ZENITH_DIR", self.store());
        command
    }

    /// What a command of zenith prints, or how it failed.
    pub fn zenith(&self, arguments: &[&str]) -> Result<String, String> {
        let _unhurt = self.commands.read();
        let mut command = self.command(Path::new(ZENITH));
        if let Some(mutant) = &self.mutant {
            mutant.arm(&mut command, &self.store());
        }
        output(command.args(arguments)).map_err(|error| format!("zenith {}: {error}", arguments.join(" ")))
    }

    pub fn json(&self, arguments: &[&str]) -> Result<serde_json::Value, String> {
        let text = self.zenith(&[arguments, &["-o", "json"]].concat())?;
        serde_json::from_str(&text).map_err(|error| error.to_string())
    }

    /// The names in a list that zenith prints.
    pub fn names(&self, arguments: &[&str]) -> Result<Vec<String>, String> {
        let list = self.json(arguments)?;
        let items = list.as_array().into_iter().flatten();
        Ok(items
            .filter_map(|item| Some(item["name"].as_str()?.to_owned()))
            .collect())
    }

    /// A program of Postgres, connected to a server.
    pub fn postgres(&self, program: &str, port: u16, arguments: &[&str]) -> Result<String, String> {
        let mut command = self.command(&programs(MAJOR).join(program));
        if let Some(user) = server_user() {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        command.env("PGHOST", SOCKETS).env("PGPORT", port.to_string());
        command.env("PGUSER", "postgres").env("PGDATABASE", "postgres");
        output(command.args(arguments)).map_err(|error| format!("{program} {}: {error}", arguments.join(" ")))
    }

    pub fn sql(&self, statement: &str) -> Result<String, String> {
        self.postgres(
            "psql",
            self.port(),
            &["-XqAt", "-v", "ON_ERROR_STOP=1", "-c", statement],
        )
    }

    /// How clients reach a server.
    pub fn connection(port: u16) -> String {
        format!("host={SOCKETS} port={port} user=postgres dbname=postgres connect_timeout=20")
    }

    /// Has a new pg made, or a copy.
    pub fn create_pg(&self, name: &str, port: u16, more: &[&str]) -> Result<String, String> {
        let dir = self.mountpoint(name);
        let programs = programs(MAJOR);
        let (dir, programs) = (dir.to_str().expect("UTF-8"), programs.to_str().expect("UTF-8"));
        let port = port.to_string();
        let arguments = [
            "pg", "create", "-n", name, "--dir", dir, "-p", &port, "--pg-bin", programs,
        ];
        self.zenith(&[&arguments, more].concat())
    }

    pub fn mount(&self, view: &str, name: &str) -> Result<PathBuf, String> {
        let dir = self.mountpoint(name);
        self.zenith(&["mount", view, dir.to_str().expect("UTF-8"), "--create"])?;
        Ok(dir)
    }

    /// A number that says everything of a mounted snapshot's tree.
    pub fn snapshot_digest(&self, name: &str, tag: &str) -> Result<String, String> {
        tree_digest(&self.mountpoint(name).join(".zenith/snapshot").join(tag))
    }

    /// Ends the service alone while its mounts are in use; returns when the next one answers.
    pub fn kill_service(&self) -> Result<(), String> {
        let alone = self.commands.write();
        service::kill_service(&self.store());
        drop(alone);
        self.zenith(&["status"]).map(drop)
    }

    /// Ends all processes at once, as crashes would. The kernel keeps what they wrote.
    pub fn kill(&self) {
        let killed = Command::new(CLEAN_UP).arg(&self.place.dir).arg("--kill").status();
        assert!(killed.is_ok_and(|status| status.success()), "they can be killed");
    }

    /// The last lines of the service's log and of the server's.
    pub fn logs(&self) -> String {
        let server = fs::read_dir(self.store().join("pgs")).into_iter().flatten().flatten();
        let logs = server
            .map(|entry| entry.path())
            .chain([self.store().join("service.log")]);
        logs.map(|path| format!("--- {}\n{}", path.display(), last_lines(&path)))
            .collect()
    }
}

impl Drop for Machine<'_> {
    /// The power goes: no process ends by itself.
    fn drop(&mut self) {
        let output = Command::new(CLEAN_UP).arg(&self.place.dir).output();
        match output {
            Ok(output) if output.status.success() => {}
            other => eprintln!("the machine does not end: {other:?}"),
        }
    }
}

/// Where zenith's pgs listen.
const SOCKETS: &str = "/var/run/postgresql";

const LAST_LINES: usize = 12;

fn last_lines(path: &Path) -> String {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LAST_LINES)..].join("\n") + "\n"
}

fn output(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        false => Err(format!(
            "{}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        )),
    }
}

/// A number that says everything of a tree: names, kinds, sizes, bytes.
pub fn tree_digest(dir: &Path) -> Result<String, String> {
    let mut hasher = DefaultHasher::new();
    add_tree(&mut hasher, dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    Ok(format!("{:016x}", hasher.finish()))
}

pub fn digest(bytes: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    format!("{} bytes {:016x}", bytes.len(), hasher.finish())
}

fn add_tree(hasher: &mut DefaultHasher, dir: &Path) -> io::Result<()> {
    let mut entries = fs::read_dir(dir)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(|entry| entry.file_name());
    for entry in entries {
        hasher.write(entry.file_name().as_encoded_bytes());
        match entry.file_type()?.is_dir() {
            true => add_tree(hasher, &entry.path())?,
            false => {
                let bytes = fs::read(entry.path())?;
                hasher.write_usize(bytes.len());
                hasher.write(&bytes);
            }
        }
    }
    hasher.write_u8(b'/');
    Ok(())
}
