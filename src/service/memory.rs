//! What the service remembers over its end, in one small file of the store.
//!
//! A change is published whole: a new file is written and synced, renamed over the old one, and the directory
//! synced. So a crash leaves the old or the new state, and what was reported done is there after a power cut. Only then
//! does the change show in memory. One that is reported failed is taken back from the disk, too: the next service would find it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use pageserver::BranchName;
use serde::{Deserialize, Serialize};

use crate::api::schedules::Schedule;
use crate::api::storages::{Options, StorageName};
use crate::error::{Error, Result};
use crate::name::ViewName;
use crate::postgres::server::StopMode;
use crate::service::mounts::log_failure;

#[derive(Clone, Default, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// To be there whenever the service runs.
    pub mounts: Vec<Place>,
    /// Data directories that are being made or taken away: to be taken away when they are found at a start.
    pub unfinished: Vec<Unfinished>,
    pub pgs: BTreeMap<BranchName, PgRecord>,
    /// Of branches.
    #[serde(default)]
    pub schedules: BTreeMap<BranchName, Schedule>,
    /// Storages beside `local`.
    pub storages: BTreeMap<StorageName, StorageRecord>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    pub view: ViewName,
    pub dir: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unfinished {
    pub branch: BranchName,
    /// Only there it goes: another storage that is attached meanwhile can have a branch of that name.
    #[serde(default = "StorageName::local")]
    pub storage: StorageName,
    /// Where it is mounted meanwhile.
    pub dir: PathBuf,
    /// The directory was made for it, and goes with it.
    pub made_dir: bool,
}

/// A pg has the name of its branch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PgRecord {
    /// Where the data directory is mounted.
    pub dir: PathBuf,
    pub port: u16,
    pub socket_dir: PathBuf,
    /// The owner of the data directory, whom Postgres runs as.
    pub user: String,
    pub storage: StorageName,
    /// The directory with Postgres' programs.
    pub pg_bin: PathBuf,
    /// The pg that it follows as a standby.
    pub follows: Option<BranchName>,
    /// How its server is being stopped by something that will start it again: the next service does where this one is killed.
    #[serde(default)]
    pub restarting: Option<StopMode>,
    pub created: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageRecord {
    pub path: PathBuf,
    pub options: Options,
}

/// The file, and what stands in it.
pub struct Memory {
    file: PathBuf,
    now: Mutex<Remembered>,
}

impl Memory {
    /// What was published last; nothing in a new store.
    pub fn load(file: &Path) -> Result<Memory> {
        Ok(Memory {
            now: Mutex::new(Remembered::load(file)?),
            file: file.into(),
        })
    }

    pub fn get(&self) -> MutexGuard<'_, Remembered> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes a change: on disk first, so that a failure changes nothing.
    pub fn change(&self, edit: impl FnOnce(&mut Remembered)) -> Result<()> {
        let mut now = self.get();
        let mut next = now.clone();
        edit(&mut next);
        if next == *now {
            return Ok(());
        }
        let dir = self.file.parent().unwrap_or(Path::new("/"));
        // Before anything changes: there may be no descriptor left.
        let opened = File::open(dir).map_err(Error::path("open", dir))?;
        next.put(&self.file)?;
        if let Err(error) = opened.sync_all() {
            log_failure("take a change back that may not last", now.put(&self.file));
            return Err(Error::path("sync", dir)(error));
        }
        *now = next;
        Ok(())
    }
}

impl Remembered {
    fn load(path: &Path) -> Result<Remembered> {
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Remembered::default()),
            Err(error) => return Err(Error::path("read", path)(error)),
        };
        parse(&text).map_err(|why| {
            Error::failure(format!("{} is damaged: {why}", path.display()))
                .hint("it lists mounts, pgs and storages, no data: move it away, then mount and create them again")
        })
    }

    /// In place of what stands there, which a power cut can bring back until the directory is synced.
    fn put(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).map_err(|error| Error::failure(error.to_string()))?;
        replace(path, with_checksum(&text).as_bytes()).map_err(Error::path("write", path))
    }
}

/// What stands before the checksum, which is the last field.
const BEFORE_CHECKSUM: &str = ",\n  \"crc32c\": ";

/// Adds the checksum of all that stands before it. A flipped bit in a path would be another path.
fn with_checksum(json: &str) -> String {
    let fields = json.trim_end_matches("\n}");
    let crc = crc32c::crc32c(fields.as_bytes());
    format!("{fields}{BEFORE_CHECKSUM}\"{crc:08x}\"\n}}\n")
}

/// Reads what is whole. A file without a checksum is an earlier version's.
fn parse(text: &[u8]) -> std::result::Result<Remembered, String> {
    let text = str::from_utf8(text).map_err(|error| error.to_string())?;
    if let Some((fields, crc)) = text.rsplit_once(BEFORE_CHECKSUM)
        && crc.trim_end() != format!("\"{:08x}\"\n}}", crc32c::crc32c(fields.as_bytes()))
    {
        return Err("its checksum is of something else; take the line with it out if you have changed the file".into());
    }
    serde_json::from_str(text).map_err(|error| error.to_string())
}

fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    file.write_all(text)?;
    file.sync_all()?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_comes_back_whole_or_not_at_all() {
        let place = |view: &str, dir: &str| Place {
            view: view.parse().expect("a view"),
            dir: dir.into(),
        };
        let remembered = Remembered {
            mounts: vec![place("main", "/mnt/a"), place("main@s", "/mnt/b")],
            ..Remembered::default()
        };
        let text = with_checksum(&serde_json::to_string_pretty(&remembered).expect("JSON"));
        assert_eq!(parse(text.as_bytes()), Ok(remembered.clone()));
        for bit in 0..text.len() * 8 {
            let mut flipped = text.clone().into_bytes();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(
                parse(&flipped).is_ok_and(|read| read == remembered) || parse(&flipped).is_err(),
                "bit {bit}"
            );
        }
        for end in 0..text.trim_end().len() {
            assert!(parse(&text.as_bytes()[..end]).is_err(), "cut to {end} bytes");
        }
    }
}
