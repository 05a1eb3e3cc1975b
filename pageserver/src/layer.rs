//! A layer on disk: a directory with one sparse backing file for every file it has blocks of.
//!
//! ```text
//!   layers/0000002a/1f     the blocks that were written to inode 0x1f during layer 0x2a, at their own offsets
//!   layers/0000002a/1f.new half-made, swept when the layer is loaded
//! ```
//!
//! Size, time of modification and floor of a file in a layer are those of its backing file, so they share the
//! backing filesystem's journal with the data. A backing file that inherits something appears under its name with
//! its size already set, since an empty one would cut the file off. It counts as durable only when its name is too.

mod backing;

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::disk::{Disk, DiskFile, Stat};
use crate::error::{Error, Result};
use crate::file_table::Tables;
use crate::sealed::{Form, Sealed};
use crate::sync_point::{SyncPoint, is_unsupported};
use crate::types::{Ino, LayerId};

pub use backing::Backing;

/// Above so many files one sync of the whole filesystem is cheaper than one for each.
const SYNC_ONE_BY_ONE_MAX: usize = 64;

pub const HALF_MADE: &str = ".new";

/// Where the layers of a store lie, and what is known of their blocks. Cheap to clone.
#[derive(Clone)]
pub struct Layers {
    pub disk: Disk,
    pub dir: PathBuf,
    pub sealed: Arc<Sealed>,
    /// The files in use of all views.
    pub tables: Arc<Tables>,
}

impl Layers {
    pub fn path(&self, id: LayerId) -> PathBuf {
        self.dir.join(id.to_string())
    }

    /// Makes a layer's directory, not yet durable.
    pub fn create(&self, id: LayerId) -> Result<Arc<Layer>> {
        let path = self.path(id);
        let made = self.disk.make_dir(&path);
        made.map_err(Error::io(format!("make {}", path.display())))?;
        let layer = self.open(id);
        layer.name.changed();
        Ok(layer)
    }

    /// A layer whose directory is there and durable.
    pub fn open(&self, id: LayerId) -> Arc<Layer> {
        Arc::new(Layer {
            id,
            disk: self.disk.clone(),
            path: self.path(id),
            sealed: self.sealed.clone(),
            form: AtomicU64::new(0),
            name: SyncPoint::default(),
            names: SyncPoint::default(),
            unsynced: Mutex::default(),
            syncing: Mutex::default(),
        })
    }
}

pub struct Layer {
    pub id: LayerId,
    disk: Disk,
    path: PathBuf,
    sealed: Arc<Sealed>,
    /// When the layer's form was last looked up ([`Sealed::changes`]) times four, plus 1 if it is plain, 2 if it is packed.
    form: AtomicU64,
    /// The directory's own name.
    name: SyncPoint,
    /// The names in it.
    names: SyncPoint,
    /// Backing files written since they were last synced (or a while before).
    unsynced: Mutex<HashMap<Ino, Arc<Backing>>>,
    /// Held through a sync of the layer: who comes meanwhile must not find nothing to do.
    syncing: Mutex<()>,
}

/// How the blocks of a layer are to be read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    /// They have no checksums: a head's, or those of a layer that was just sealed.
    Unverified,
    Plain,
    Packed,
}

impl Reading {
    fn of(form: u64) -> Reading {
        match form {
            0 => Reading::Unverified,
            1 => Reading::Plain,
            _ => Reading::Packed,
        }
    }
}

/// What a layer's directory tells about one file.
pub struct Found {
    pub ino: Ino,
    pub stat: Stat,
    pub floor: Option<u64>,
}

impl Layer {
    /// How its blocks are to be read.
    fn reading(&self) -> Reading {
        let (known, now) = (self.form.load(Ordering::Relaxed), self.sealed.changes());
        if known / 4 != now {
            let form = match self.sealed.form(self.id) {
                None => 0,
                Some(Form::Plain) => 1,
                Some(Form::Packed(_)) => 2,
            };
            self.form.store(now * 4 + form, Ordering::Relaxed);
            return Reading::of(form);
        }
        Reading::of(known % 4)
    }

    /// Opens a backing file, of the layer that this one was merged with if it was.
    fn open_now(&self, ino: Ino, write: bool) -> io::Result<DiskFile> {
        loop {
            let body = self.sealed.body(self.id);
            let path = self.path.with_file_name(body.to_string()).join(ino.to_string());
            match self.disk.open(&path, write) {
                Err(e) if e.kind() == io::ErrorKind::NotFound && self.sealed.body(self.id) != body => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    let what = format!("layer {body}: the backing file {ino} is missing");
                    return Err(Error::Damaged { what }.into());
                }
                opened => return opened,
            }
        }
    }

    fn file_path(&self, ino: Ino) -> PathBuf {
        self.path.join(ino.to_string())
    }

    /// The backing file of a file that the layer has blocks of.
    pub fn backing(self: &Arc<Layer>, ino: Ino, writable: bool) -> Arc<Backing> {
        Arc::new(Backing::new(self.clone(), ino, writable))
    }

    /// Makes the backing file of a file with nothing to inherit.
    pub fn create_backing(self: &Arc<Layer>, ino: Ino) -> io::Result<Arc<Backing>> {
        let file = self.disk.create(&self.file_path(ino)).map_err(not_over_blocks)?;
        Ok(self.made(ino, file))
    }

    /// Makes the backing file of a file that inherits blocks; it is not to be seen before it has its size.
    pub fn create_sized_backing(self: &Arc<Layer>, ino: Ino, size: u64) -> io::Result<Arc<Backing>> {
        let half_made = self.path.join(format!("{ino}{HALF_MADE}"));
        let file = match self.disk.create(&half_made) {
            // Left by an attempt that failed, on a disk that could not even take it back.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                self.disk.remove(&half_made)?;
                self.disk.create(&half_made)?
            }
            created => created?,
        };
        let shown = self
            .disk
            .set_len(&file, size)
            .and_then(|()| self.disk.order_before_rename(&file))
            .and_then(|()| self.disk.rename_new(&half_made, &self.file_path(ino)));
        if let Err(e) = shown {
            self.disk.remove(&half_made)?;
            return Err(not_over_blocks(e));
        }
        let backing = self.made(ino, file);
        backing.scattered();
        Ok(backing)
    }

    fn made(self: &Arc<Layer>, ino: Ino, file: DiskFile) -> Arc<Backing> {
        self.names.changed();
        let backing = Arc::new(Backing::made(self.clone(), ino, file, self.names.changes()));
        backing.changed();
        backing
    }

    /// Removes a file's blocks; nobody will sync them any more.
    pub fn remove(&self, ino: Ino) -> io::Result<()> {
        self.unsynced().remove(&ino);
        self.disk.remove(&self.file_path(ino))
    }

    /// Every file the layer has blocks of. Sweeps half-made ones.
    pub fn scan(&self) -> Result<Vec<Found>> {
        let failed = |what: &str| format!("{what} {}", self.path.display());
        let mut found = Vec::new();
        for name in self.disk.list(&self.path).map_err(Error::io(failed("list")))? {
            let name = name.to_string_lossy();
            if name.ends_with(HALF_MADE) {
                let path = self.path.join(&*name);
                self.disk.remove(&path).map_err(Error::io(failed("sweep")))?;
                continue;
            }
            let Some(ino) = Ino::of_name(&name) else {
                tracing::warn!(layer = %self.id, "{name} is not ours; it is left alone");
                continue;
            };
            match self.inspect(ino) {
                // An unlinked file's, which was removed since it was listed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                inspected => found.push(inspected.map_err(Error::io(failed("read")))?),
            }
        }
        Ok(found)
    }

    /// The backing file of a file, for reading.
    pub fn open_file(&self, ino: Ino) -> io::Result<DiskFile> {
        self.disk.open(&self.file_path(ino), false)
    }

    /// What the backing file of a file tells.
    pub fn inspect(&self, ino: Ino) -> io::Result<Found> {
        let file = self.open_file(ino)?;
        Ok(Found {
            ino,
            stat: self.disk.stat(&file)?,
            floor: self.disk.floor(&file)?,
        })
    }

    /// Makes the names of the layer's files durable.
    pub fn sync_names(&self) -> io::Result<()> {
        self.names.sync(|| self.disk.sync_dir(&self.path))?;
        let layers = self.path.parent().unwrap_or(&self.path);
        self.name.sync(|| self.disk.sync_dir(layers))
    }

    /// Makes everything written to the layer so far durable. `sync_filesystem` makes all of the filesystem so.
    pub fn sync(&self, sync_filesystem: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let _syncing = self.syncing.lock().unwrap_or_else(|e| e.into_inner());
        let taken = std::mem::take(&mut *self.unsynced());
        let backings: Vec<Arc<Backing>> = taken.into_values().collect();
        let synced = self
            .sync_backings(&backings, sync_filesystem)
            .and_then(|()| self.sync_names());
        if synced.is_err() {
            // One that is durable may have been let go of meanwhile, and have another in its place.
            let unsynced = backings.iter().filter(|backing| !backing.data.is_durable());
            unsynced.for_each(Backing::list);
        }
        synced
    }

    fn sync_backings(
        &self,
        backings: &[Arc<Backing>],
        sync_filesystem: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        for backing in backings {
            // Who changes one from here on lists it again; a change before is seen below. A mere store could be made after that look.
            backing.listed.swap(false, Ordering::AcqRel);
        }
        let unsynced: Vec<_> = backings.iter().filter(|backing| !backing.data.is_durable()).collect();
        match unsynced.len() {
            0 | 1 => {}
            2..=SYNC_ONE_BY_ONE_MAX => unsynced
                .iter()
                .try_for_each(|backing| backing.start_sync(0..u64::MAX))?,
            _ => sync_all(&unsynced, sync_filesystem)?,
        }
        unsynced.iter().try_for_each(|backing| backing.sync_data())
    }

    /// Whether everything written to the layer so far is known to be durable.
    pub fn is_durable(&self) -> bool {
        self.has_durable_names() && self.unsynced().values().all(|backing| backing.data.is_durable())
    }

    fn has_durable_names(&self) -> bool {
        self.has_durable_names_up_to(self.names.changes())
    }

    /// Whether the names are durable that it had when `names` told so many changes, and its own.
    fn has_durable_names_up_to(&self, count: u64) -> bool {
        self.names.is_durable_up_to(count) && self.name.is_durable()
    }

    /// Closes the files that are still to be synced. Each of them holds the layer.
    pub fn let_go(&self) {
        let unsynced = std::mem::take(&mut *self.unsynced());
        drop(unsynced);
    }

    fn unsynced(&self) -> MutexGuard<'_, HashMap<Ino, Arc<Backing>>> {
        self.unsynced.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// A file that has blocks which nobody knows of is damage: they are not to be lost by the next ones.
fn not_over_blocks(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::AlreadyExists => io::Error::new(
            io::ErrorKind::InvalidData,
            "it has blocks there that it does not know of",
        ),
        _ => error,
    }
}

/// Makes many files durable with the whole filesystem, where that is possible.
fn sync_all(backings: &[&Arc<Backing>], sync_filesystem: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let counts: Vec<u64> = backings.iter().map(|backing| backing.data.changes()).collect();
    match sync_filesystem() {
        Err(e) if is_unsupported(&e) => return Ok(()),
        other => other?,
    }
    let synced = backings.iter().zip(counts);
    synced.for_each(|(backing, count)| backing.data.durable_up_to(count));
    Ok(())
}
