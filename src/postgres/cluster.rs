//! A data directory as a cluster: making one, reading its version, adding to its configuration.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::process::Output;

use super::programs::Programs;
use super::{Owner, is_locale, last_lines};
use crate::error::{Error, Result};

/// How much of what a failed initdb said is passed on.
const LAST_LINES: usize = 8;

const VERSION: &str = "PG_VERSION";
const CONFIGURATION: &str = "postgresql.conf";
const AUTO_CONFIGURATION: &str = "postgresql.auto.conf";
const STANDBY_SIGNAL: &str = "standby.signal";

/// What a new cluster's configuration gets where nothing else is said. WAL that finds no room in its buffers is written a page at a time, and each
/// of these writes is a request to the service: a large load is twice as fast with room for what comes between two rounds of the WAL writer.
const DEFAULTS: [(&str, &str); 1] = [("wal_buffers", "32MB")];

/// What initdb is to make.
pub struct NewCluster<'a> {
    pub programs: &'a Programs,
    pub dir: &'a Path,
    pub owner: Owner,
    pub options: &'a [String],
    pub locale: &'a BTreeMap<String, String>,
}

impl NewCluster<'_> {
    /// Runs initdb, with data checksums and without trust, and adds what a cluster on a mount should have; the caller's options come last and win.
    pub fn make(&self) -> Result<()> {
        self.initdb()?;
        let path = self.dir.join(CONFIGURATION);
        let configuration = fs::read(&path).map_err(Error::path("read", &path))?;
        let configuration = String::from_utf8_lossy(&configuration);
        let missing = DEFAULTS.into_iter().filter(|(name, _)| !is_set(&configuration, name));
        let settings: Vec<_> = missing
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        append(&path, "zenith's defaults", &settings)
    }

    fn initdb(&self) -> Result<()> {
        let mut command = self.owner.command(&self.programs.path("initdb"));
        command.envs(self.locale.iter().filter(|(name, _)| is_locale(name)));
        command.args(["--data-checksums", "--auth-local=peer", "--auth-host=scram-sha-256"]);
        command.args(self.options).arg("--pgdata").arg(self.dir);
        let output = command
            .output()
            .map_err(Error::path("run initdb from", &self.programs.dir))?;
        match output.status.success() {
            true => Ok(()),
            false => Err(initdb_failed(&output)),
        }
    }
}

fn initdb_failed(output: &Output) -> Error {
    let said = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    let last = last_lines(&String::from_utf8_lossy(&said), LAST_LINES);
    Error::failure(format!("initdb failed ({}):\n  {last}", output.status))
        .hint("nothing was kept of it; options after `--` go to initdb")
}

/// The major version of the cluster in a data directory.
pub fn major(dir: &Path) -> Result<u32> {
    let path = dir.join(VERSION);
    let text = fs::read_to_string(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Error::refused(format!("there is no PostgreSQL cluster in {}", dir.display()))
            .hint("fill the directory first (initdb, pg_basebackup, a copy of a data directory)"),
        _ => Error::path("read", &path)(error),
    })?;
    text.trim()
        .parse()
        .map_err(|_| Error::failure(format!("{} holds no version number", path.display())))
}

/// Adds settings to the end of postgresql.conf, where they win over those before.
pub fn configure(dir: &Path, settings: &[(String, String)]) -> Result<()> {
    append(&dir.join(CONFIGURATION), "added by zenith pg create", settings)
}

/// Makes a cluster a standby that follows the primary found with `conninfo`; ends when it is promoted.
pub fn follow(dir: &Path, owner: Owner, conninfo: &str) -> Result<()> {
    let settings = [("primary_conninfo".to_owned(), conninfo.to_owned())];
    append(
        &dir.join(AUTO_CONFIGURATION),
        "added by zenith pg start --replica",
        &settings,
    )?;
    let signal = dir.join(STANDBY_SIGNAL);
    let made = || {
        File::create(&signal)?.sync_all()?;
        nix::unistd::chown(&signal, Some(owner.uid), Some(owner.gid))?;
        File::open(dir)?.sync_all()
    };
    made().map_err(Error::path("make", &signal))
}

fn append(path: &Path, why: &str, settings: &[(String, String)]) -> Result<()> {
    if settings.is_empty() {
        return Ok(());
    }
    let lines: String = settings
        .iter()
        .map(|(name, value)| format!("{name} = '{}'\n", value.replace('\\', "\\\\").replace('\'', "''")))
        .collect();
    let written = || {
        let mut file = File::options().append(true).open(path)?;
        write!(file, "\n# {why}\n{lines}")?;
        file.sync_all()
    };
    written().map_err(Error::path("write", path))
}

/// Whether a configuration has a line that gives the setting a value.
fn is_set(configuration: &str, name: &str) -> bool {
    let mut lines = configuration.lines().map(str::trim_start);
    lines.any(|line| {
        let value = line.strip_prefix(name);
        value.is_some_and(|value| value.starts_with([' ', '\t', '=']))
    })
}

/// Settings that zenith gives on the command line, where they would win over the configuration.
const OURS: [&str; 2] = ["port", "unix_socket_directories"];

/// A setting as a user gives it, `name=value`.
pub fn setting(text: &str) -> std::result::Result<(String, String), String> {
    let (name, value) = text.split_once('=').unwrap_or((text, "\n"));
    check_setting(name, value)?;
    Ok((name.into(), value.into()))
}

/// A name is what Postgres takes for one: letters, digits, `_` and `.`. A value is one line.
pub fn check_setting(name: &str, value: &str) -> std::result::Result<(), String> {
    let mut bytes = name.bytes();
    let is_name = bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b"_.$".contains(&b));
    match is_name && !value.contains(['\n', '\r', '\0']) {
        true if OURS.iter().any(|ours| name.eq_ignore_ascii_case(ours)) => {
            Err(format!("{name} is given by zenith, and the port with --port"))
        }
        true => Ok(()),
        false => Err("a setting is NAME=VALUE, as in work_mem=64MB".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    #[test]
    fn what_stands_in_a_comment_is_not_set() {
        let configuration = "#wal_buffers = -1\nwal_buffers_of = 1\n  work_mem = 4MB\nport=1";
        assert!(!is_set(configuration, "wal_buffers"));
        assert!(is_set(configuration, "work_mem"));
        assert!(is_set(configuration, "port"));
    }

    #[test]
    fn a_failed_initdb_is_told_by_its_last_lines() {
        let output = Output {
            status: ExitStatus::from_raw(1 << 8),
            stdout: (0..20).map(|n| format!("step {n}\n")).collect::<String>().into(),
            stderr: b"initdb: error: no space\n".into(),
        };
        let message = initdb_failed(&output).message;
        assert!(message.ends_with("step 19\n  initdb: error: no space"), "{message}");
        assert!(!message.contains("step 12\n"), "{message}");
    }

    #[test]
    fn a_setting_can_add_no_line_of_its_own() {
        assert_eq!(setting("work_mem=64MB"), Ok(("work_mem".into(), "64MB".into())));
        assert_eq!(setting("a.b=it's=2"), Ok(("a.b".into(), "it's=2".into())));
        for bad in ["work_mem", "=1", "a b=1", "a=1\nb=2", "1a=2", "a'=1", "port=1"] {
            assert!(setting(bad).is_err(), "{bad}");
        }
    }
}
