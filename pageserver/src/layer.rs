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

use crate::disk::{Disk, DiskFile, Stat};
use crate::error::{Error, Result};
use crate::sums::Sums;
use crate::sync_point::SyncPoint;
use crate::types::{BLOCK, Ino, LayerId};

/// Above so many files one sync of the whole filesystem is cheaper than one for each.
const SYNC_ONE_BY_ONE_MAX: usize = 64;

pub const HALF_MADE: &str = ".new";

/// Where the layers of a store lie, and what is known of their blocks. Cheap to clone.
#[derive(Clone)]
pub struct Layers {
    pub disk: Disk,
    pub dir: PathBuf,
    /// None where only names and sizes are looked at.
    pub sums: Option<Arc<Sums>>,
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
            sums: self.sums.clone(),
            summed: AtomicU64::new(0),
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
    sums: Option<Arc<Sums>>,
    /// When it was last looked up whether the layer has checksums ([`Sums::changes`]) times two, plus one if it has.
    summed: AtomicU64,
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
    data: SyncPoint,
    listed: AtomicBool,
}

/// What a layer's directory tells about one file.
pub struct Found {
    pub ino: Ino,
    pub stat: Stat,
    pub floor: Option<u64>,
}

impl Layer {
    /// The checksums of its blocks, if it has them yet.
    fn sums(&self) -> Option<&Sums> {
        let sums = self.sums.as_deref()?;
        let (known, now) = (self.summed.load(Ordering::Relaxed), sums.changes());
        let is_summed = match known / 2 == now {
            true => known % 2 == 1,
            false => {
                let is_summed = sums.has(self.id);
                self.summed.store(now * 2 + u64::from(is_summed), Ordering::Relaxed);
                is_summed
            }
        };
        is_summed.then_some(sums)
    }

    /// Opens a backing file, of the layer that this one was merged with if it was.
    fn open_now(&self, ino: Ino, write: bool) -> io::Result<DiskFile> {
        let Some(sums) = &self.sums else {
            return self.disk.open(&self.file_path(ino), write);
        };
        loop {
            let body = sums.body(self.id);
            let path = self.path.with_file_name(body.to_string()).join(ino.to_string());
            match self.disk.open(&path, write) {
                Err(e) if e.kind() == io::ErrorKind::NotFound && sums.body(self.id) != body => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    let what = format!("layer {body}: the backing file {ino} is missing");
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        Error::Damaged { what }.to_string(),
                    ));
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
            data: SyncPoint::default(),
            listed: AtomicBool::new(false),
        })
    }

    /// Makes the backing file of a file with nothing to inherit.
    pub fn create_backing(self: &Arc<Layer>, ino: Ino) -> io::Result<Arc<Backing>> {
        let file = self.disk.create(&self.file_path(ino))?;
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
            .and_then(|()| self.disk.rename(&half_made, &self.file_path(ino)));
        if let Err(e) = shown {
            self.disk.remove(&half_made)?;
            return Err(e);
        }
        Ok(self.made(ino, file))
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
            let ino = u64::from_str_radix(&name, 16).map_err(|_| Error::Damaged {
                what: format!("{} holds a foreign file {name}", self.path.display()),
            })?;
            match self.inspect(Ino(ino)) {
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

    /// Makes everything written to the layer so far durable.
    pub fn sync(&self) -> io::Result<()> {
        let _syncing = self.syncing.lock().unwrap_or_else(|e| e.into_inner());
        let taken = std::mem::take(&mut *self.unsynced());
        let backings: Vec<Arc<Backing>> = taken.into_values().collect();
        let synced = self.sync_backings(&backings).and_then(|()| self.sync_names());
        if synced.is_err() {
            backings.iter().for_each(Backing::list);
        }
        synced
    }

    fn sync_backings(&self, backings: &[Arc<Backing>]) -> io::Result<()> {
        for backing in backings {
            backing.listed.store(false, Ordering::Release);
        }
        let unsynced: Vec<_> = backings.iter().filter(|backing| !backing.data.is_durable()).collect();
        match unsynced.len() {
            0 | 1 => {}
            2..=SYNC_ONE_BY_ONE_MAX => unsynced
                .iter()
                .try_for_each(|backing| backing.start_sync(0..u64::MAX))?,
            _ => self.sync_all(&unsynced)?,
        }
        unsynced.iter().try_for_each(|backing| backing.sync_data())
    }

    /// Syncs the whole filesystem, where that is possible.
    fn sync_all(&self, backings: &[&Arc<Backing>]) -> io::Result<()> {
        let counts: Vec<u64> = backings.iter().map(|backing| backing.data.changes()).collect();
        match self.disk.sync_all(&self.path) {
            Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(()),
            other => other?,
        }
        let synced = backings.iter().zip(counts);
        synced.for_each(|(backing, count)| backing.data.durable_up_to(count));
        Ok(())
    }

    /// Closes the files that are still to be synced; whether there were any. Each of them holds the layer.
    pub fn let_go(&self) -> bool {
        let unsynced = std::mem::take(&mut *self.unsynced());
        unsynced.values().any(|backing| !backing.is_durable())
    }

    fn unsynced(&self) -> MutexGuard<'_, HashMap<Ino, Arc<Backing>>> {
        self.unsynced.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Backing {
    pub fn layer(&self) -> LayerId {
        self.layer.id
    }

    pub fn disk(&self) -> &Disk {
        &self.layer.disk
    }

    pub fn file(&self) -> io::Result<&DiskFile> {
        if let Some(file) = self.file.get() {
            return Ok(file);
        }
        let file = self.layer.open_now(self.ino, self.writable)?;
        Ok(self.file.get_or_init(|| file))
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
    pub fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let Some(sums) = self.layer.sums() else {
            return self.read_unverified(buf, offset);
        };
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let (inside, left) = (at % BLOCK, buf.len() - done);
            if inside == 0 && left as u64 >= BLOCK {
                let whole = left - left % BLOCK as usize;
                self.read_blocks(sums, &mut buf[done..done + whole], at)?;
                done += whole;
            } else {
                let mut block = [0; BLOCK as usize];
                self.read_blocks(sums, &mut block, at - inside)?;
                let wanted = &block[inside as usize..];
                let len = wanted.len().min(left);
                buf[done..done + len].copy_from_slice(&wanted[..len]);
                done += len;
            }
        }
        Ok(())
    }

    /// Only the last block may end early, and reads as zeros from there.
    fn read_unverified(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let read = self.disk().read_at(self.file()?, buf, offset)?;
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

    fn read_blocks(&self, sums: &Sums, buf: &mut [u8], offset: u64) -> io::Result<()> {
        match self.read_and_verify(self.file()?, sums, buf, offset) {
            // One that was open before its layer was merged may have more behind the file's end than the one that has its blocks now.
            Err(e) if e.kind() == io::ErrorKind::InvalidData && sums.has_merged() => {
                self.read_and_verify(&self.layer.open_now(self.ino, false)?, sums, buf, offset)
            }
            read => read,
        }
    }

    fn read_and_verify(&self, file: &DiskFile, sums: &Sums, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let read = self.disk().read_at(file, buf, offset)?;
        buf[read..].fill(0);
        sums.verify(self.layer.id, self.ino, offset, buf)
    }

    /// Calls `each` with every range of blocks that the layer has of the file.
    pub fn each_range(&self, mut each: impl FnMut(Range<u64>)) -> io::Result<()> {
        if let Some(sums) = self.layer.sums() {
            let each_block = sums.each_block(self.layer.id, self.ino, |block| each(block..block + 1));
            return Ok(each_block?);
        }
        for bytes in self.disk().data_ranges(self.file()?)? {
            each(bytes.start / BLOCK..bytes.end.div_ceil(BLOCK));
        }
        Ok(())
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
