//! Postgres' programs: where they are, as whom they run, and what they are run for.
//!
//! Postgres refuses to run as root. A service of root therefore runs it as the owner of the data directory, which is the
//! user `postgres` unless another one was named; any other service as its own user. Programs get an argument array
//! and a small environment, never a shell.

pub mod cluster;
pub mod programs;
pub mod server;

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::unistd::{Gid, Uid, User, getegid, geteuid};

use crate::error::{Error, Result};

/// The user that a cluster made by root belongs to when no other is named.
const USER: &str = "postgres";

/// User and group of a data directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Owner {
    pub uid: Uid,
    pub gid: Gid,
}

impl Owner {
    /// Who will run Postgres on a new data directory.
    pub fn of_new(named: Option<&str>) -> Result<Owner> {
        let own = Owner::own();
        match (named, own.uid.is_root()) {
            (None, false) => Ok(own),
            (named, true) => Ok(Owner::of_user(user(named.unwrap_or(USER))?)),
            (Some(named), false) => match user(named)? {
                user if user.uid == own.uid => Ok(own),
                _ => Err(
                    Error::refused(format!("only root can run Postgres as the user {named}"))
                        .hint("leave --user away, or run zenith as root"),
                ),
            },
        }
    }

    /// Who runs Postgres on a data directory that is there. Postgres refuses everybody but its owner.
    pub fn of_dir(dir: &Path) -> Result<Owner> {
        let meta = fs::metadata(dir).map_err(Error::path("look at", dir))?;
        let owner = Owner {
            uid: Uid::from_raw(meta.uid()),
            gid: Gid::from_raw(meta.gid()),
        };
        let refused = |why: &str| {
            let dir = dir.display();
            Err(
                Error::refused(format!("{dir} belongs to {}, {why}", owner.name())).hint(format!(
                    "give it to the user that is to run Postgres: `chown -R USER {dir}`"
                )),
            )
        };
        match (owner.uid.is_root(), geteuid()) {
            (true, _) => refused("and Postgres refuses to run as root"),
            (false, own) if own.is_root() || own == owner.uid => Ok(owner),
            _ => refused("and only root can run Postgres as somebody else"),
        }
    }

    /// The service's own user.
    pub fn own() -> Owner {
        Owner {
            uid: geteuid(),
            gid: getegid(),
        }
    }

    fn of_user(user: User) -> Owner {
        Owner {
            uid: user.uid,
            gid: user.gid,
        }
    }

    /// The user's name, or its number where it has none.
    pub fn name(&self) -> String {
        let user = User::from_uid(self.uid).ok().flatten();
        user.map_or(self.uid.to_string(), |user| user.name)
    }

    /// User and group of the root directory of a new, empty branch.
    pub fn ids(&self) -> (u32, u32) {
        (self.uid.as_raw(), self.gid.as_raw())
    }

    /// A program as this user. `Command::uid` drops root's supplementary groups as well.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env_clear().current_dir("/").stdin(Stdio::null());
        command
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("LC_MESSAGES", "C");
        if geteuid().is_root() {
            command.uid(self.uid.as_raw()).gid(self.gid.as_raw());
        }
        command
    }
}

fn user(name: &str) -> Result<User> {
    let found = User::from_name(name).map_err(Error::io(format!("look up the user {name}")))?;
    let user = found.ok_or_else(|| {
        Error::not_found(format!("there is no user {name}, and Postgres refuses to run as root"))
            .hint("install PostgreSQL's server package, name another user, or run zenith as an ordinary user")
    })?;
    match user.uid.is_root() {
        true => Err(Error::refused("Postgres refuses to run as root").hint("name another user with --user")),
        false => Ok(user),
    }
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

/// The end of what a failed program said, each line indented.
fn last_lines(said: &str, most: usize) -> String {
    let lines: Vec<&str> = said
        .lines()
        .map(str::trim_end)
        .filter(|line| !line.is_empty())
        .collect();
    lines[lines.len().saturating_sub(most)..].join("\n  ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_language_and_time_zone_reach_initdb() {
        assert!(is_locale("LC_ALL") && is_locale("LANG") && is_locale("TZ"));
        assert!(!is_locale("LD_PRELOAD") && !is_locale("PGDATA"));
    }

    #[test]
    fn of_what_a_program_said_the_end_is_told() {
        assert_eq!(last_lines("one\n\ntwo  \nthree\n", 2), "two\n  three");
    }
}
