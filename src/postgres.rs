//! Postgres' programs: where they are, as whom they run, and initdb.
//!
//! Postgres refuses to run as root. A service of root therefore runs it as the user `postgres`, any other service
//! as its own user. Programs get an argument array and a small environment, never a shell.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use nix::unistd::{User, getegid, geteuid};

use crate::error::{Error, Result};

/// The user that a cluster made by root belongs to.
const USER: &str = "postgres";

/// Where Debian and Ubuntu keep one directory per major version.
const DEBIAN: &str = "/usr/lib/postgresql";

/// How much of what a failed initdb said is passed on.
const LAST_LINES: usize = 8;

/// The directory with initdb: the one named, else `$ZENITH_PG_BIN`, else what `pg_config` says, else on `$PATH`,
/// else Debian's newest.
pub fn find_bin(flag: Option<&Path>) -> Result<PathBuf> {
    let variable = env::var_os("ZENITH_PG_BIN").filter(|dir| !dir.is_empty());
    if let Some(dir) = flag.map(Path::to_path_buf).or(variable.map(PathBuf::from)) {
        return with_initdb(&dir).ok_or_else(|| {
            Error::not_found(format!("there is no initdb in {}", dir.display()))
                .hint("--pg-bin (or ZENITH_PG_BIN) is the directory with initdb, postgres and pg_ctl")
        });
    }
    let mut places = pg_config().into_iter().chain(on_path()).chain(debian());
    places.find_map(|dir| with_initdb(&dir)).ok_or_else(|| {
        Error::not_found("PostgreSQL's initdb was not found")
            .hint("install PostgreSQL's server, name its programs with --pg-bin DIR, or use `zenith init --empty`")
    })
}

/// The directory, absolute, if initdb is there.
fn with_initdb(dir: &Path) -> Option<PathBuf> {
    let dir = fs::canonicalize(dir).ok()?;
    dir.join("initdb").is_file().then_some(dir)
}

fn pg_config() -> Option<PathBuf> {
    let output = Command::new("pg_config")
        .arg("--bindir")
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let dir = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| dir.trim().into())
}

fn on_path() -> Vec<PathBuf> {
    env::var_os("PATH").map_or(Vec::new(), |path| env::split_paths(&path).collect())
}

/// Newest first.
fn debian() -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(DEBIAN) else {
        return Vec::new();
    };
    let major = |name: &str| name.parse::<u32>().ok();
    let mut versions: Vec<u32> = entries
        .flatten()
        .filter_map(|entry| major(entry.file_name().to_str()?))
        .collect();
    versions.sort_unstable_by(|a, b| b.cmp(a));
    versions
        .iter()
        .map(|version| Path::new(DEBIAN).join(version.to_string()).join("bin"))
        .collect()
}

/// What of the caller's environment initdb may see: it writes language and time zone into the configuration.
pub fn caller_locale() -> BTreeMap<String, String> {
    env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| is_locale(name))
        .collect()
}

fn is_locale(name: &str) -> bool {
    name == "LANG" || name == "TZ" || name.starts_with("LC_")
}

/// User and group of the root directory of a new, empty branch: whoever will run Postgres on it.
pub fn owner() -> (u32, u32) {
    let own = (geteuid().as_raw(), getegid().as_raw());
    match server_user() {
        Ok(Some(user)) => (user.uid.as_raw(), user.gid.as_raw()),
        _ => own,
    }
}

/// The user Postgres must run as when it isn't the service's own.
fn server_user() -> Result<Option<User>> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    match User::from_name(USER).map_err(Error::io("look up the user postgres"))? {
        Some(user) => Ok(Some(user)),
        None => Err(
            Error::not_found(format!("there is no user {USER}, and Postgres refuses to run as root"))
                .hint("install PostgreSQL's server package, or run zenith as an ordinary user"),
        ),
    }
}

/// What initdb is to make.
pub struct Cluster<'a> {
    pub pg_bin: &'a Path,
    pub dir: &'a Path,
    pub options: &'a [String],
    pub locale: &'a BTreeMap<String, String>,
}

impl Cluster<'_> {
    /// Runs initdb, with data checksums and without trust; the caller's options come last and win.
    pub fn initdb(&self) -> Result<()> {
        let mut command = self.command("initdb")?;
        command.args(["--data-checksums", "--auth-local=peer", "--auth-host=scram-sha-256"]);
        command.args(self.options).arg("--pgdata").arg(self.dir);
        let output = command.output().map_err(Error::path("run initdb from", self.pg_bin))?;
        match output.status.success() {
            true => Ok(()),
            false => Err(initdb_failed(&output)),
        }
    }

    /// The program as the right user. `Command::uid` drops root's supplementary groups as well.
    fn command(&self, program: &str) -> Result<Command> {
        let mut command = Command::new(self.pg_bin.join(program));
        command.env_clear().current_dir("/").stdin(Stdio::null());
        command.env("PATH", "/usr/local/bin:/usr/bin:/bin");
        command.envs(self.locale.iter().filter(|(name, _)| is_locale(name)));
        if let Some(user) = server_user()? {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        Ok(command)
    }
}

fn initdb_failed(output: &Output) -> Error {
    let said = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    let said = String::from_utf8_lossy(&said);
    let lines: Vec<&str> = said
        .lines()
        .map(str::trim_end)
        .filter(|line| !line.is_empty())
        .collect();
    let last = &lines[lines.len().saturating_sub(LAST_LINES)..];
    Error::failure(format!("initdb failed ({}):\n  {}", output.status, last.join("\n  ")))
        .hint("nothing was kept of it; options after `--` go to initdb")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

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
    fn only_language_and_time_zone_reach_initdb() {
        assert!(is_locale("LC_ALL") && is_locale("LANG") && is_locale("TZ"));
        assert!(!is_locale("LD_PRELOAD") && !is_locale("PGDATA"));
    }
}
