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

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use crate::disk::{Disk, DiskFile, Stat, Wait};
use crate::error::{Error, Result};
use crate::file_table::Tables;
use crate::sealed::{Form, Sealed};
use crate::sync_point::{SyncPoint, is_unsupported};
use crate::types::{BLOCK, Ino, LayerId, Seek};

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

/// A backing file, opened when it is first needed.
pub struct Backing {
    layer: Arc<Layer>,
    ino: Ino,
    writable: bool,
    file: OnceLock<DiskFile>,
    is_scattered: AtomicBool,
    /// Used since it was last looked for one to close.
    recent: AtomicBool,
    data: SyncPoint,
    listed: AtomicBool,
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
        Arc::new(Backing {
            layer: self.clone(),
            ino,
            writable,
            file: OnceLock::new(),
            is_scattered: AtomicBool::new(false),
            recent: AtomicBool::new(false),
            data: SyncPoint::default(),
            listed: AtomicBool::new(false),
        })
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
        let backing = self.backing(ino, true);
        // Nobody else has seen this backing yet, so its cell is empty.
        let _ = backing.file.set(file);
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
            backings.iter().for_each(Backing::list);
        }
        synced
    }

    fn sync_backings(
        &self,
        backings: &[Arc<Backing>],
        sync_filesystem: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        for backing in backings {
            backing.listed.store(false, Ordering::Release);
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
        self.unsynced().values().all(|backing| backing.is_durable())
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

impl Backing {
    pub fn layer(&self) -> LayerId {
        self.layer.id
    }

    pub fn disk(&self) -> &Disk {
        &self.layer.disk
    }

    pub fn file(&self) -> io::Result<&DiskFile> {
        if !self.recent.load(Ordering::Relaxed) {
            self.recent.store(true, Ordering::Relaxed);
        }
        if let Some(file) = self.file.get() {
            return Ok(file);
        }
        let file = self.layer.open_now(self.ino, self.writable)?;
        let file = self.file.get_or_init(|| file);
        if self.is_scattered.load(Ordering::Acquire) {
            file.expect_no_order();
        }
        Ok(file)
    }

    /// Whether it is open, was not used since the last call, and loses nothing when it is closed.
    pub fn is_idle(&self) -> bool {
        self.file.get().is_some() && !self.recent.swap(false, Ordering::Relaxed) && self.is_durable()
    }

    /// Whether it is open, there is too much open, and it loses nothing when it is closed.
    pub fn is_spare(&self) -> bool {
        self.file.get().is_some() && self.disk().is_crowded() && self.is_durable()
    }

    /// The same file of a sealed layer, to be opened when it is next needed.
    pub fn closed(&self) -> Arc<Backing> {
        let backing = self.layer.backing(self.ino, false);
        backing
            .is_scattered
            .store(self.is_scattered.load(Ordering::Acquire), Ordering::Release);
        backing
    }

    /// Tells that the file has blocks here and there, over another one's. Where the kernel reads ahead in the mount's file this one is asked
    /// for what it has; what the kernel read ahead in it by itself would be holes.
    pub fn scattered(&self) {
        self.is_scattered.store(true, Ordering::Release);
        if let Some(file) = self.file.get() {
            file.expect_no_order();
        }
    }

    /// The size that the file has in the layer.
    pub fn size(&self) -> io::Result<u64> {
        let sealed = &self.layer.sealed;
        loop {
            let seen = sealed.changes();
            let size = match self.layer.reading() {
                Reading::Packed => sealed.packed_size(self.layer.id, self.ino),
                _ => self
                    .file()
                    .and_then(|file| self.disk().stat(file))
                    .map(|stat| stat.size),
            };
            match size {
                Err(_) if sealed.changes() != seen => {}
                size => return size,
            }
        }
    }

    /// Notes that bytes, size or floor were changed.
    pub fn changed(self: &Arc<Backing>) {
        self.data.changed();
        self.list();
    }

    /// Has the layer sync this file with the next of its syncs.
    fn list(self: &Arc<Backing>) {
        if !self.listed.swap(true, Ordering::AcqRel) {
            self.layer.unsynced().insert(self.ino, self.clone());
        }
    }

    /// Writes, and notes it; returns how much was written, with the error that stopped it.
    pub fn write_at(self: &Arc<Backing>, data: &[u8], offset: u64) -> (usize, io::Result<()>) {
        let file = match self.file() {
            Ok(file) => file,
            Err(e) => return (0, Err(e)),
        };
        let outcome = self.disk().write_at(file, data, offset);
        self.changed();
        outcome
    }

    /// Fills `buf` with what the layer has from `offset` on: zeros where it has nothing, and an error where that is not what was
    /// sealed.
    pub fn read(&self, buf: &mut [u8], offset: u64, wait: Wait) -> io::Result<()> {
        if self.layer.reading() == Reading::Unverified {
            return self.read_unverified(buf, offset, wait);
        }
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let (inside, left) = (at % BLOCK, buf.len() - done);
            if inside == 0 && left as u64 >= BLOCK {
                let whole = left - left % BLOCK as usize;
                self.read_blocks(&mut buf[done..done + whole], at, wait)?;
                done += whole;
            } else {
                let mut block = [0; BLOCK as usize];
                self.read_blocks(&mut block, at - inside, wait)?;
                let wanted = &block[inside as usize..];
                let len = wanted.len().min(left);
                buf[done..done + len].copy_from_slice(&wanted[..len]);
                done += len;
            }
        }
        Ok(())
    }

    /// Reads whole blocks of a layer that has checksums. What has failed while the layer got another form is tried again.
    fn read_blocks(&self, buf: &mut [u8], offset: u64, wait: Wait) -> io::Result<()> {
        let sealed = &self.layer.sealed;
        loop {
            let seen = sealed.changes();
            let read = match self.layer.reading() {
                Reading::Packed => sealed.read_packed(self.layer.id, self.ino, offset, buf, wait),
                _ => self.read_plain(buf, offset, wait).map(Some),
            };
            match read {
                Ok(Some(())) => return Ok(()),
                Err(e) if sealed.changes() == seen => return Err(e),
                _ => {}
            }
        }
    }

    fn read_plain(&self, buf: &mut [u8], offset: u64, wait: Wait) -> io::Result<()> {
        match self.read_and_verify(self.file()?, buf, offset, wait) {
            // One that was open before its layer was merged may have more behind the file's end than the one that has its blocks now.
            Err(e) if e.kind() == io::ErrorKind::InvalidData && self.layer.sealed.has_merged() => {
                self.read_and_verify(&self.layer.open_now(self.ino, false)?, buf, offset, wait)
            }
            read => read,
        }
    }

    fn read_and_verify(&self, file: &DiskFile, buf: &mut [u8], offset: u64, wait: Wait) -> io::Result<()> {
        let read = self.read_file(file, buf, offset, wait)?;
        buf[read..].fill(0);
        self.layer.sealed.verify(self.layer.id, self.ino, offset, buf)
    }

    fn read_file(&self, file: &DiskFile, buf: &mut [u8], offset: u64, wait: Wait) -> io::Result<usize> {
        match wait {
            Wait::Yes => self.disk().read_at(file, buf, offset),
            Wait::No => self.disk().read_cached(file, buf, offset),
        }
    }

    /// Only the last block may end early, and reads as zeros from there.
    fn read_unverified(&self, buf: &mut [u8], offset: u64, wait: Wait) -> io::Result<()> {
        let read = self.read_file(self.file()?, buf, offset, wait)?;
        let end = (offset + read as u64).next_multiple_of(BLOCK);
        if read < buf.len() && end < offset + buf.len() as u64 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("layer {}: a backing file is too short", self.layer.id),
            ));
        }
        buf[read..].fill(0);
        Ok(())
    }

    /// Calls `each` with every range of blocks that the layer has of the file, in order.
    pub fn each_range(&self, mut each: impl FnMut(Range<u64>)) -> io::Result<()> {
        while self.layer.reading() == Reading::Unverified {
            let ranges = self.disk().data_ranges(self.file()?)?;
            // A layer that has checksums by now may have been merged with another, and its file have more.
            if self.layer.reading() == Reading::Unverified {
                for bytes in ranges {
                    each(bytes.start / BLOCK..bytes.end.div_ceil(BLOCK));
                }
                return Ok(());
            }
        }
        Ok(self.layer.sealed.each_range(self.layer.id, self.ino, each)?)
    }

    /// The next data or hole of the layer's at or after `offset`; `None` when there is no data up to the end.
    pub fn seek(&self, offset: u64, whence: Seek) -> io::Result<Option<u64>> {
        while self.layer.reading() == Reading::Unverified {
            let found = self.disk().seek(self.file()?, offset, whence)?;
            if self.layer.reading() == Reading::Unverified {
                return Ok(found);
            }
        }
        // The end of the last range that goes on from `offset`, and the first that begins there or later.
        let (mut hole, mut data) = (offset, None);
        self.each_range(|blocks| {
            let (start, end) = (blocks.start * BLOCK, blocks.end * BLOCK);
            if start <= hole && end > hole {
                hole = end;
            }
            if end > offset && data.is_none() {
                data = Some(start.max(offset));
            }
        })?;
        Ok(match whence {
            Seek::Hole => Some(hole),
            Seek::Data => data,
        })
    }

    /// Asks for a range of bytes to be read ahead, where a file has them as they are.
    pub fn will_need(&self, bytes: Range<u64>) -> io::Result<()> {
        if self.layer.reading() == Reading::Packed {
            return Ok(());
        }
        self.disk()
            .will_need(self.file()?, bytes.start, bytes.end - bytes.start)
    }

    pub fn is_durable(&self) -> bool {
        self.data.is_durable()
    }

    /// Has the disk start on a range of bytes, so that a later sync waits for less.
    pub fn start_sync(&self, bytes: Range<u64>) -> io::Result<()> {
        self.disk().start_sync(self.file()?, bytes)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.data.sync(|| self.disk().sync_data(self.file()?))
    }

    /// Makes the file's bytes, size and name durable.
    pub fn sync(&self) -> io::Result<()> {
        self.sync_data()?;
        self.layer.sync_names()
    }
}
