//! Finding Postgres' programs, of any version or of the one that a data directory needs.
//!
//! A directory counts when it has a server in it, and the server is asked which version it is.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::{Error, Result};

/// Where packages put one directory per major version, each with `bin` in it: Debian, Red Hat, Homebrew.
const PACKAGES: [(&str, &str); 4] = [
    ("/usr/lib/postgresql", ""),
    ("/usr", "pgsql-"),
    ("/opt/homebrew/opt", "postgresql@"),
    ("/usr/local/opt", "postgresql@"),
];

/// The major versions that zenith is made for.
pub const MAJORS: std::ops::RangeInclusive<u32> = 13..=18;

/// A directory with Postgres' programs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Programs {
    pub dir: PathBuf,
    pub major: u32,
}

impl Programs {
    /// What is in a directory, if it is a server.
    fn in_dir(dir: &Path) -> Option<Programs> {
        let dir = fs::canonicalize(dir).ok()?;
        let output = Command::new(dir.join("postgres"))
            .arg("--version")
            .stderr(Stdio::null())
            .output()
            .ok()?;
        let major = major_of(std::str::from_utf8(&output.stdout).ok()?)?;
        Some(Programs { dir, major })
    }

    pub fn path(&self, program: &str) -> PathBuf {
        self.dir.join(program)
    }
}

/// The psql beside a server, or, where a package has none, whichever is on the path: all of them speak to all servers.
pub fn psql(dir: &Path) -> PathBuf {
    let beside = dir.join("psql");
    match beside.is_file() {
        true => beside,
        false => "psql".into(),
    }
}

/// From `postgres (PostgreSQL) 15.18 (Debian …)`, `18beta1` or a bare `15`.
fn major_of(version: &str) -> Option<u32> {
    let number = version
        .split_whitespace()
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    let digits: String = number.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// Where the caller of a command has programs: the directory it names (with a flag or `$ZENITH_PG_BIN`), else
/// `pg_config`'s and those on `$PATH`. A named directory must have them.
pub fn of_caller(flag: Option<&Path>) -> Result<Vec<PathBuf>> {
    let variable = env::var_os("ZENITH_PG_BIN").filter(|dir| !dir.is_empty());
    let Some(named) = flag.map(Path::to_path_buf).or(variable.map(PathBuf::from)) else {
        return Ok(pg_config().into_iter().chain(on_path()).collect());
    };
    match Programs::in_dir(&named) {
        Some(programs) => Ok(vec![programs.dir]),
        None => Err(
            Error::not_found(format!("there is no PostgreSQL server in {}", named.display()))
                .hint("--pg-bin (or ZENITH_PG_BIN) is the directory with postgres, initdb and pg_ctl"),
        ),
    }
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

/// Those of the directories on `$PATH` that have a server.
fn on_path() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .filter(|dir| dir.is_absolute() && dir.join("postgres").is_file())
        .collect()
}

/// What packages have put on this machine, the newest major first.
fn installed() -> Vec<PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = PACKAGES
        .iter()
        .flat_map(|(dir, prefix)| packaged(dir, prefix))
        .collect();
    found.sort_by(|a, b| b.cmp(a));
    found.into_iter().map(|(_, dir)| dir).collect()
}

fn packaged(dir: &str, prefix: &str) -> Vec<(u32, PathBuf)> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    let major = |name: &str| name.strip_prefix(prefix)?.parse().ok();
    let versions = entries.flatten().filter_map(|entry| {
        let major = major(entry.file_name().to_str()?)?;
        Some((major, entry.path().join("bin")))
    });
    versions.collect()
}

/// Programs of the wanted major, or of any that zenith knows: from the caller's directories first.
pub fn find(of_caller: &[PathBuf], wanted: Option<u32>) -> Result<Programs> {
    let dirs = of_caller.iter().cloned().chain(installed());
    let mut seen: Vec<Programs> = Vec::new();
    for dir in dirs {
        let Some(programs) = Programs::in_dir(&dir) else {
            continue;
        };
        if wanted.map_or(MAJORS.contains(&programs.major), |wanted| programs.major == wanted) {
            return Ok(programs);
        }
        if !seen.contains(&programs) {
            seen.push(programs);
        }
    }
    Err(none_found(wanted, &seen))
}

fn none_found(wanted: Option<u32>, seen: &[Programs]) -> Error {
    let what = wanted.map_or("PostgreSQL".into(), |wanted| format!("PostgreSQL {wanted}"));
    let found: Vec<String> = seen
        .iter()
        .map(|programs| format!("{} in {}", programs.major, programs.dir.display()))
        .collect();
    let found = match found.is_empty() {
        true => String::new(),
        false => format!(" (there is {})", found.join(", ")),
    };
    Error::not_found(format!("{what} was not found on this machine{found}"))
        .hint("install its server package, or name the directory of its programs with --pg-bin")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_is_read_from_what_the_server_says() {
        assert_eq!(
            major_of("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)"),
            Some(15)
        );
        assert_eq!(major_of("postgres (PostgreSQL) 18beta1"), Some(18));
        assert_eq!(major_of("13\n"), Some(13));
        assert_eq!(major_of("no number"), None);
    }

    #[test]
    fn what_is_missing_is_told_with_what_is_there() {
        let seen = [Programs {
            dir: "/usr/lib/postgresql/15/bin".into(),
            major: 15,
        }];
        let error = none_found(Some(14), &seen);
        assert!(
            error.message.contains("PostgreSQL 14 was not found"),
            "{}",
            error.message
        );
        assert!(
            error.message.contains("15 in /usr/lib/postgresql/15/bin"),
            "{}",
            error.message
        );
    }
}
