//! Which store a command means, and the names of the service's own files in it.
//!
//! The store is `--store DIR`, else `$ZENITH_DIR`, else the nearest `.zenith` in the current directory or above,
//! else `~/.zenith`. A mount has a hidden `.zenith` of its own (its snapshots); it lies on FUSE, where no store
//! can be, and is passed over.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::sys::statfs::{FUSE_SUPER_MAGIC, statfs};

use crate::error::{Error, Result};

/// The directory that holds a store when none is named.
const DIR_NAME: &str = ".zenith";

/// The service's socket. Its full path may be longer than a socket address: see [`crate::client::socket_path`].
pub const SOCKET: &str = "zenith.sock";

/// What makes a directory a store.
const FORMAT: &str = "format";

/// Locked by whoever has the store; holds the directory of the store whose service that is.
pub const LOCK: &str = "lock";

/// What the service logs when it isn't in the foreground.
pub const LOG: &str = "service.log";

/// Holds the service's process id, and a lock for as long as it lives.
pub const PID: &str = "service.pid";

/// What the service remembers: mounts that a start establishes again, pgs, storages.
pub const STATE: &str = "state.json";

/// The secret that requests on TCP carry.
pub const TOKEN: &str = "api.token";

/// The logs of the pgs' servers.
pub const PG_LOGS: &str = "pgs";

/// Writes down the store whose service has this one, unless it stands there.
pub fn note_holder(store: &Path, of: &Path) -> io::Result<()> {
    let (lock, of) = (store.join(LOCK), of.as_os_str().as_bytes());
    match fs::read(&lock)? == of {
        true => Ok(()),
        false => fs::write(&lock, of),
    }
}

/// The other store whose service has this one as a storage. What stands in the lock alone does not say so: a copy of a store has the same.
pub fn holder(store: &Path) -> Option<PathBuf> {
    let of = PathBuf::from(OsString::from_vec(fs::read(store.join(LOCK)).ok()?));
    let state: serde_json::Value = serde_json::from_slice(&fs::read(of.join(STATE)).ok()?).ok()?;
    let mut paths = state["storages"]
        .as_object()?
        .values()
        .filter_map(|storage| storage["path"].as_str());
    let is_this = |path| fs::canonicalize(path).is_ok_and(|path| path == store);
    (paths.any(is_this) && is_held(store) && is_held(&of)).then_some(of)
}

/// Whether somebody has the store, a service or the keeper of one.
pub fn is_held(store: &Path) -> bool {
    let lock = File::open(store.join(LOCK));
    lock.is_ok_and(|lock| matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

/// Whether there is a store, as far as can be seen.
pub fn is_store(dir: &Path) -> bool {
    dir.join(FORMAT).exists()
}

/// The store a command works on, as an absolute path without symbolic links.
pub fn existing(flag: Option<&Path>) -> Result<PathBuf> {
    let dir = match named(flag) {
        Some(dir) => dir,
        None => nearest()?,
    };
    let missing =
        |what: String| Error::not_found(what).hint("`zenith init` makes one; --store or ZENITH_DIR names another");
    let dir = fs::canonicalize(&dir).map_err(|_| missing(format!("there is no store at {}", dir.display())))?;
    // Seen before anything of ours is put there. Where it can't be seen the service will say why.
    match dir.join(FORMAT).try_exists() {
        Ok(false) => Err(missing(format!("{} is not a zenith store", dir.display()))),
        _ => Ok(dir),
    }
}

/// Where `zenith init` makes a store: as named, else `.zenith` in the current directory.
pub fn for_init(flag: Option<&Path>) -> PathBuf {
    named(flag).unwrap_or_else(|| PathBuf::from(DIR_NAME))
}

fn named(flag: Option<&Path>) -> Option<PathBuf> {
    let variable: Option<OsString> = env::var_os("ZENITH_DIR").filter(|dir| !dir.is_empty());
    flag.map(Path::to_path_buf).or(variable.map(PathBuf::from))
}

fn nearest() -> Result<PathBuf> {
    let here = env::current_dir().map_err(Error::io("find the current directory"))?;
    let above = here
        .ancestors()
        .map(|dir| dir.join(DIR_NAME))
        .find(|dir| can_be_store(dir));
    let home = || {
        env::home_dir()
            .map(|home| home.join(DIR_NAME))
            .filter(|dir| can_be_store(dir))
    };
    above.or_else(home).ok_or_else(|| {
        Error::not_found(format!(
            "there is no store here: no {DIR_NAME} in {} or above, nor in ~",
            here.display()
        ))
        .hint("`zenith init` makes one here; --store or ZENITH_DIR names one")
    })
}

fn can_be_store(dir: &Path) -> bool {
    dir.is_dir() && statfs(dir).is_ok_and(|fs| fs.filesystem_type() != FUSE_SUPER_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storage_is_told_from_a_copy_of_a_store() {
        let dir = env::temp_dir().join(format!("zenith-holder-{}", std::process::id()));
        let stores = ["main", "storage", "copy"].map(|name| dir.join(name));
        let [main, storage, copy] = &stores;
        let locks = stores.each_ref().map(|store| {
            fs::create_dir_all(store).expect("made");
            let lock = File::create(store.join(LOCK)).expect("made");
            note_holder(store, main).expect("written");
            lock
        });
        let state = serde_json::json!({"storages": {"fast": {"path": storage}}});
        fs::write(main.join(STATE), state.to_string()).expect("written");
        assert_eq!(holder(storage), None, "nobody has it");
        for lock in &locks {
            lock.lock().expect("locked");
        }
        assert_eq!(holder(storage).as_ref(), Some(main));
        assert_eq!([holder(main), holder(copy)], [None, None]);
        fs::remove_dir_all(&dir).expect("removed");
    }
}
