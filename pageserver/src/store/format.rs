//! Making a store, and what tells that it is one: its format and its lock.
//!
//! The format file comes last and makes it a store. Until then a file of another name says that everything beside it was begun here, so
//! that the next attempt may sweep it.

use std::ffi::OsStr;
use std::fs::{self, File as StdFile, OpenOptions};
use std::io::Write;
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};

use super::{DB_DIR, LAYERS_DIR, Store, room};
use crate::db::Db;
use crate::disk::Disk;
use crate::disk::probe::{Fitness, PROBE_FILE, fitness, probe};
use crate::error::{Error, Result};
use crate::room::RESERVE_FILE;

/// The on-disk format that this code writes, and the newest that it reads.
pub const FORMAT: u32 = 1;

const FORMAT_FILE: &str = "format";
const LOCK_FILE: &str = "lock";

/// Becomes the format file; until then it says that everything beside it was begun by [`Store::create`].
const HALF_MADE: &str = "format.new";

impl Store {
    /// Makes a new store in `dir`, which is made too or must be empty. Refuses filesystems that can't hold one;
    /// returns what the user must know of one that can.
    pub fn create(dir: &Path, disk: Disk) -> Result<Option<String>> {
        let failed = |what: &str| format!("{what} {}", dir.display());
        let existed = dir.exists();
        disk.make_dir(dir).map_err(Error::io(failed("make")))?;
        refuse_filled(dir, &disk)?;
        // Two at once: one makes it, the other is told.
        let _lock = lock(dir)?;
        refuse_filled(dir, &disk)?;
        sweep_half_made(dir, &disk).map_err(Error::io(failed("sweep")))?;
        fill(dir, &disk).inspect_err(|_| {
            // Half a store is none; what can't be removed now is swept by the next one.
            let _ = disk.remove_dir(dir);
            if existed {
                let _ = disk.make_dir(dir);
            }
        })
    }
}

/// Refuses a directory that holds anything but a lock, or what a creation that was killed has left.
fn refuse_filled(dir: &Path, disk: &Disk) -> Result<()> {
    if dir.join(FORMAT_FILE).exists() {
        return Err(Error::StoreExists { path: dir.into() });
    }
    let names = disk.list(dir).map_err(Error::io(format!("list {}", dir.display())))?;
    let half_made = dir.join(HALF_MADE).exists();
    match names.iter().all(|name| name == LOCK_FILE || half_made && is_part(name)) {
        true => Ok(()),
        false => Err(Error::NotEmpty { path: dir.into() }),
    }
}

/// Whether [`fill`] makes something of that name.
fn is_part(name: &OsStr) -> bool {
    [HALF_MADE, PROBE_FILE, LAYERS_DIR, DB_DIR, RESERVE_FILE]
        .iter()
        .any(|part| name == *part)
}

fn sweep_half_made(dir: &Path, disk: &Disk) -> std::io::Result<()> {
    for name in disk.list(dir)?.iter().filter(|name| is_part(name)) {
        let path = dir.join(name);
        match path.is_dir() {
            true => disk.remove_dir(&path)?,
            false => disk.remove(&path)?,
        }
    }
    Ok(())
}

/// Makes the parts of a store; the format file comes last, and makes it one.
fn fill(dir: &Path, disk: &Disk) -> Result<Option<String>> {
    let warning = judge(dir)?;
    let half_made = dir.join(HALF_MADE);
    disk.create(&half_made)
        .map_err(Error::io(format!("make {}", half_made.display())))?;
    let probed = probe(disk, dir).map_err(Error::io(format!("probe {}", dir.display())))?;
    if let Some(why) = probed {
        return Err(Error::UnsupportedFilesystem {
            path: dir.into(),
            filesystem: "a filesystem".into(),
            why,
        });
    }
    let layers = dir.join(LAYERS_DIR);
    disk.make_dir(&layers)
        .map_err(Error::io(format!("make {}", layers.display())))?;
    Db::open(&dir.join(DB_DIR), true, Some(room(dir, disk)?))?
        .sync()
        .map_err(Error::io("sync the store's database"))?;
    write_format(dir, disk).map_err(Error::io(format!("write {}", dir.join(FORMAT_FILE).display())))?;
    Ok(warning)
}

/// Refuses a filesystem that can't hold a store; returns what the user must know of one that can.
pub(super) fn judge(dir: &Path) -> Result<Option<String>> {
    match fitness(dir).map_err(Error::io(format!("look at {}", dir.display())))? {
        Fitness::Fit => Ok(None),
        Fitness::Weaker(warning) => Ok(Some(warning)),
        Fitness::Unfit { filesystem, why } => Err(Error::UnsupportedFilesystem {
            path: dir.into(),
            filesystem,
            why,
        }),
    }
}

fn write_format(dir: &Path, disk: &Disk) -> std::io::Result<()> {
    let half_made = dir.join(HALF_MADE);
    let mut file = StdFile::create(&half_made)?;
    writeln!(file, "{FORMAT}")?;
    file.sync_all()?;
    disk.rename(&half_made, &dir.join(FORMAT_FILE))?;
    disk.sync_dir(dir)
}

pub(crate) fn check_format(dir: &Path) -> Result<()> {
    let path = dir.join(FORMAT_FILE);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::NotAStore { path: dir.into() });
        }
        Err(e) => return Err(Error::io(format!("read {}", path.display()))(e)),
    };
    match text.trim().parse() {
        Ok(found) if found > FORMAT => Err(Error::NewerFormat {
            path: dir.into(),
            found,
            known: FORMAT,
        }),
        Ok(_) => Ok(()),
        Err(_) => Err(Error::Damaged {
            what: format!("{} holds no version number", path.display()),
        }),
    }
}

pub(crate) fn lock(dir: &Path) -> Result<Flock<StdFile>> {
    let path = dir.join(LOCK_FILE);
    let opened = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    lock_file(dir, opened.map_err(Error::io(format!("open {}", path.display())))?)
}

pub(super) fn lock_file(dir: &Path, file: StdFile) -> Result<Flock<StdFile>> {
    let path = dir.join(LOCK_FILE);
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => Error::Locked { path: dir.into() },
        other => Error::io(format!("lock {}", path.display()))(other.into()),
    })
}
