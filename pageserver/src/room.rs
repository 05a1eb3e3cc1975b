//! Room on the disk: what files may still take, and what is kept back for the store itself.
//!
//! The last fiftieth of the filesystem is no guest's. Of that reserve what the database needs is a preallocated file,
//! `STORE/reserve`, which other programs can't fill either; the rest is merely not given away.
//!
//! ```text
//!   |............ files, ours and others' ............|  left free  |  STORE/reserve  |
//!                        room for files ends here ─────^             ^── given up when less is free than the database needs
//! ```
//!
//! What allocates takes its bytes from a grant first, a share of what was free when the disk was last asked; so a write
//! costs one subtraction and not a system call. The database, and with it destroying and forgetting, never asks for
//! leave: when it finds little free it removes the reserve file, which is made again when there is room.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use crate::disk::Disk;
use crate::types::Space;

pub const RESERVE_FILE: &str = "reserve";

/// The reserve's share of the filesystem, and its bounds. The least is what the database can need at once when it is
/// opened after a kill: a log of 16 MiB, written out once more as tables.
const SHARE: u64 = 50;
const RESERVE_MIN: u64 = 32 << 20;
const RESERVE_MAX: u64 = 512 << 20;

/// The most that the reserve file takes; half of the reserve where that is less.
const FILE_MAX: u64 = 32 << 20;

/// Files may take so much of what is left, and of the reserve, before the disk is asked again. The latter is what they can
/// overshoot by when another program fills the disk meanwhile.
const GRANT_SHARE: u64 = 8;

/// What the database may write before the disk is asked again.
const DATABASE_GRANT: i64 = 256 << 10;

pub struct Room {
    disk: Disk,
    dir: PathBuf,
    reserve: u64,
    /// How much of the reserve the file has.
    held: AtomicU64,
    files: AtomicI64,
    database: AtomicI64,
    asking: Mutex<()>,
    /// That the file can't be made was said.
    told: AtomicBool,
}

impl Room {
    /// Room under the store in `dir`.
    pub fn open(disk: Disk, dir: &Path) -> io::Result<Room> {
        let total = disk.space(dir)?.total;
        let held = disk.size(&dir.join(RESERVE_FILE))?;
        Ok(Room {
            disk,
            dir: dir.into(),
            reserve: (total / SHARE).clamp(RESERVE_MIN, RESERVE_MAX),
            held: AtomicU64::new(held),
            files: AtomicI64::new(0),
            database: AtomicI64::new(0),
            asking: Mutex::default(),
            told: AtomicBool::new(false),
        })
    }

    /// Space of the filesystem, less what of the reserve is still free.
    pub fn space(&self) -> io::Result<Space> {
        let space = self.disk.space(&self.dir)?;
        let left_free = self.reserve.saturating_sub(self.held.load(Ordering::Acquire));
        Ok(Space {
            free: space.free.saturating_sub(left_free),
            available: space.available.saturating_sub(left_free),
            ..space
        })
    }

    /// Takes room for bytes of files; ENOSPC when there is none.
    pub fn take(&self, bytes: u64) -> io::Result<()> {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        if self.files.fetch_sub(bytes, Ordering::AcqRel) >= bytes {
            return Ok(());
        }
        let _asking = self.asking();
        self.files.store(0, Ordering::Release);
        let left = self.space()?.available.min(i64::MAX as u64);
        if left < bytes as u64 {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        let grant = (left.min(self.reserve) / GRANT_SHARE).max(bytes as u64);
        self.files.store(grant as i64 - bytes, Ordering::Release);
        Ok(())
    }

    /// As [`Room::take`], for what gives back more than it takes: it may have what the reserve leaves free, except for so much that the
    /// database keeps the file.
    pub fn take_to_free(&self, bytes: u64) -> io::Result<()> {
        if self.take(bytes).is_ok() {
            return Ok(());
        }
        let left = self.disk.space(&self.dir)?.available;
        match left >= bytes.saturating_add(self.file_len() / 2) {
            true => Ok(()),
            false => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
        }
    }

    /// Sees to it that the database can write so many bytes, as far as the reserve allows.
    pub fn for_database(&self, bytes: usize) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        if self.database.fetch_sub(bytes, Ordering::AcqRel) < bytes {
            self.balance();
        }
    }

    /// Asks the disk for its space, and gives the reserve file up or makes it as that tells.
    pub fn balance(&self) {
        let _asking = self.asking();
        self.database.store(DATABASE_GRANT, Ordering::Release);
        match self.disk.space(&self.dir) {
            Ok(space) if space.available < self.file_len() / 2 => self.remove_file(),
            Ok(space) if space.available >= self.reserve => self.make_file(),
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "how much room the disk has can't be told"),
        }
    }

    /// Gives the reserve file's space to the database.
    pub fn give_up(&self) {
        let _asking = self.asking();
        self.remove_file();
    }

    fn remove_file(&self) {
        if self.held.load(Ordering::Acquire) == 0 {
            return;
        }
        match self.disk.remove(&self.dir.join(RESERVE_FILE)) {
            Ok(()) => {
                self.held.store(0, Ordering::Release);
                tracing::warn!("the disk is full: the reserve is given up, so that the store can go on; make space");
            }
            Err(error) => tracing::error!(%error, "the reserve can't be given up"),
        }
    }

    /// Makes the reserve file when it is not there and there is room for it.
    pub fn refill(&self) {
        if self.held.load(Ordering::Acquire) == 0 {
            self.balance();
        }
    }

    fn file_len(&self) -> u64 {
        (self.reserve / 2).min(FILE_MAX)
    }

    fn make_file(&self) {
        if self.held.load(Ordering::Acquire) > 0 {
            return;
        }
        let (path, len) = (self.dir.join(RESERVE_FILE), self.file_len());
        match self.disk.set_aside(&path, len) {
            Ok(()) => self.held.store(len, Ordering::Release),
            Err(error) => {
                if !self.told.swap(true, Ordering::AcqRel) {
                    tracing::warn!(%error, "the reserve can't be made");
                }
                // What there is of it keeps nobody out; the next attempt begins with it.
                let _ = self.disk.remove(&path);
            }
        }
    }

    fn asking(&self) -> MutexGuard<'_, ()> {
        self.asking.lock().unwrap_or_else(|e| e.into_inner())
    }
}
