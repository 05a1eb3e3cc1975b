//! RocksDB as the store uses it: two column families, one write-ahead log, one place that syncs it.
//!
//! `catalog` holds layers, timelines and snapshots (`catalog.rs`), `namespace` the names and inodes of every layer
//! (`namespace/codec.rs`). A write is in the kernel's hands when [`Db::write`] returns, so it survives the
//! death of the process; [`Db::sync`] makes it survive that of the machine, and notes how far (`db/mark.rs`), so that
//! damage to what was durable is never taken for the end of the log. A clean stop leaves no log to replay.
//!
//! When the disk is full RocksDB takes nothing more, and goes on by itself when it has found room: it looks every five
//! seconds, and then writes out anew all that it has in memory, so nothing was lost. Any other error of its log leaves
//! open what a restart will find there: nothing is believed then until the store is opened anew.

mod frames;
mod mark;

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock, RwLockReadGuard};

use rocksdb::{
    ColumnFamily, ColumnFamilyDescriptor, DBRecoveryMode, DEFAULT_COLUMN_FAMILY_NAME, FlushOptions, IteratorMode,
    LogLevel, Options, WriteBatch, WriteOptions, properties,
};

use crate::error::{Error, Result, is_full};
use crate::room::Room;
use crate::sync_point::{SyncPoint, is_disk_failure};
use frames::State;
use mark::Mark;
pub use mark::Suspect;

pub const CATALOG: &str = "catalog";
pub const NAMESPACE: &str = "namespace";

const WRITE_BUFFER_BYTES: usize = 4 << 20;
const OPEN_FILES_MAX: i32 = 64;

pub struct Db {
    rocks: rocksdb::DB,
    log: SyncPoint,
    /// `None` for one that is only read.
    mark: Option<Mark>,
    /// Shared by writes, held alone while the log's length is taken: a mark ends with a whole frame.
    writing: RwLock<()>,
    /// The store's, where one is open.
    room: Option<Arc<Room>>,
    /// The log failed, and not for lack of room.
    failed: AtomicBool,
}

impl Db {
    /// Opens the database in `dir`, making it when `create`. Refused, with everything left as it is, where something that
    /// was durable is gone. It writes, so a full disk's reserve may have to go.
    pub fn open(dir: &Path, create: bool, room: Option<Arc<Room>>) -> Result<Db> {
        if let Some(suspect) = Db::damage(dir)?.first() {
            let what = suspect.describe();
            return Err(Error::Damaged { what });
        }
        if let Some(room) = &room {
            room.balance();
        }
        let rocks = rocksdb::DB::open_cf_descriptors(&database_options(create), dir, families())?;
        let mark = Mark::open(dir).and_then(|mark| mark.note_all().map(|()| mark));
        Ok(Db {
            rocks,
            log: SyncPoint::default(),
            mark: Some(mark.map_err(Error::io(format!("sync {}", dir.display())))?),
            writing: RwLock::default(),
            room,
            failed: AtomicBool::new(false),
        })
    }

    /// Opens the database for reading. Nothing is changed, whatever state it is in.
    pub fn open_read_only(dir: &Path) -> Result<Db> {
        Ok(Db {
            rocks: read_only(dir)?,
            log: SyncPoint::default(),
            mark: None,
            writing: RwLock::default(),
            room: None,
            failed: AtomicBool::new(false),
        })
    }

    /// What was durable in the closed database in `dir` and is no longer what it was.
    pub fn damage(dir: &Path) -> Result<Vec<Suspect>> {
        let suspects = mark::suspects(dir).map_err(Error::io(format!("look at {}", dir.display())))?;
        if suspects.is_empty() || !suspects.iter().all(Suspect::lets_open) {
            return Ok(suspects);
        }
        // A log is gone for good once all of it is in tables.
        let needed_from = read_only(dir)?.property_int_value(properties::MIN_LOG_NUMBER_TO_KEEP)?;
        let is_needed = |suspect: &Suspect| suspect.log_number() >= needed_from;
        Ok(suspects.into_iter().filter(is_needed).collect())
    }

    /// Has the next open take damage of the closed database's logs for their end.
    pub fn cut_logs(dir: &Path) -> io::Result<()> {
        for suspect in mark::suspects(dir)? {
            if let (Some(_), State::Endless(at)) = (suspect.log_number(), suspect.state) {
                frames::end(&dir.join(&suspect.name), at)?;
            }
        }
        mark::forget(dir)
    }

    /// Adds a put to a batch.
    pub fn put(&self, batch: &mut WriteBatch, family: &str, key: &[u8], value: &[u8]) {
        batch.put_cf(self.family(family), key, value);
    }

    /// Adds a delete to a batch.
    pub fn delete(&self, batch: &mut WriteBatch, family: &str, key: &[u8]) {
        batch.delete_cf(self.family(family), key);
    }

    /// Adds the delete of every key in `[from, to)` to a batch.
    pub fn delete_range(&self, batch: &mut WriteBatch, family: &str, from: &[u8], to: &[u8]) {
        batch.delete_range_cf(self.family(family), from, to);
    }

    /// Asks the disk whether it has room, before something that must not be refused: see [`Room`].
    pub fn make_room(&self) {
        if let Some(room) = &self.room {
            room.balance();
        }
    }

    /// Writes a batch, all or nothing. It survives a kill of the process, not yet a power cut.
    pub fn write(&self, batch: WriteBatch) -> Result<()> {
        if let Some(room) = &self.room {
            room.for_database(batch.size_in_bytes());
        }
        let _writing = self.writing();
        self.log_write(batch, false)?;
        self.log.changed();
        Ok(())
    }

    /// Makes every write so far durable; free when nothing was written since the last time. For lack of room (ENOSPC)
    /// it may be tried again; after any other error it fails for good.
    pub fn sync(&self) -> io::Result<()> {
        self.check()?;
        let flush = || self.flush_log();
        self.log.sync_unless_lost(flush, |error| !is_full(error))
    }

    /// Whether its log is being made durable: writes wait for that.
    pub fn is_syncing(&self) -> bool {
        self.log.is_flushing()
    }

    fn flush_log(&self) -> io::Result<()> {
        let lengths = self.mark.as_ref().map(|mark| {
            let _alone = self.writing.write().unwrap_or_else(|e| e.into_inner());
            mark.lengths()
        });
        self.log_write(WriteBatch::default(), true)?;
        match (&self.mark, lengths) {
            (Some(mark), Some(lengths)) => match lengths.and_then(|lengths| mark.note(lengths)) {
                // Out of descriptors: the log is durable all the same, and the older mark claims less.
                Err(error) if !is_disk_failure(&error) => {
                    tracing::warn!(%error, "how far the database's log is durable can't be noted");
                    Ok(())
                }
                noted => noted,
            },
            _ => Ok(()),
        }
    }

    /// A sync is an empty write too: in the queue of writes none can fail beside it. One that failed for lack of room
    /// would make RocksDB take a sync of the same log for a loss, after which it never goes on.
    fn log_write(&self, batch: WriteBatch, sync: bool) -> Result<()> {
        self.check()?;
        let mut options = WriteOptions::default();
        options.set_sync(sync);
        self.rocks
            .write_opt(batch, &options)
            .map_err(|error| self.write_failed(error.into()))
    }

    fn write_failed(&self, error: Error) -> Error {
        if let (true, Some(room)) = (error.is_full(), &self.room) {
            room.give_up();
        } else if !error.is_full() && !self.failed.swap(true, Ordering::AcqRel) {
            tracing::error!(%error, "the database can't be written: every sync fails until the store is opened anew");
        }
        error
    }

    /// What a restart finds of a write that failed is not known, so nothing may be built on either.
    fn check(&self) -> Result<()> {
        match self.failed.load(Ordering::Acquire) {
            true => Err(Error::io("write to the store's database")(
                io::Error::from_raw_os_error(libc::EIO),
            )),
            false => Ok(()),
        }
    }

    pub fn get(&self, family: &str, key: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.rocks.get_cf(self.family(family), key)?)
    }

    /// Calls `each` with every key that starts with `prefix` and its value, in order of the keys.
    pub fn scan(&self, family: &str, prefix: &[u8], mut each: impl FnMut(&[u8], &[u8]) -> Result<()>) -> Result<()> {
        let start = IteratorMode::From(prefix, rocksdb::Direction::Forward);
        for item in self.rocks.iterator_cf(self.family(family), start) {
            let (key, value) = item?;
            if !key.starts_with(prefix) {
                break;
            }
            each(&key, &value)?;
        }
        Ok(())
    }

    fn family(&self, name: &str) -> &ColumnFamily {
        // Both families were named when the database was opened, which fails without them.
        self.rocks.cf_handle(name).expect("an opened column family")
    }
}

impl Db {
    fn writing(&self) -> RwLockReadGuard<'_, ()> {
        self.writing.read().unwrap_or_else(|e| e.into_inner())
    }

    /// Brings what is in the log into tables, so that the next open has nothing to replay.
    fn empty_log(&self, mark: &Mark) -> Result<()> {
        let families = [CATALOG, NAMESPACE].map(|name| self.family(name));
        self.rocks.flush_cfs_opt(&families, &FlushOptions::default())?;
        mark.note_all().map_err(Error::io("sync the store's database"))
    }
}

impl Drop for Db {
    /// What can't be done here is done by the next open: the log has it all.
    fn drop(&mut self) {
        if let Some(mark) = self.mark.as_ref().filter(|_| self.log.changes() > 0)
            && let Err(error) = self.empty_log(mark)
        {
            tracing::warn!(%error, "the log of the store's database can't be emptied");
        }
        self.rocks.cancel_all_background_work(true);
    }
}

/// RocksDB has a family of its own too, whose buffers count when it asks itself whether there is room.
fn families() -> [ColumnFamilyDescriptor; 3] {
    [DEFAULT_COLUMN_FAMILY_NAME, CATALOG, NAMESPACE].map(|name| ColumnFamilyDescriptor::new(name, family_options()))
}

fn read_only(dir: &Path) -> Result<rocksdb::DB> {
    let options = database_options(false);
    Ok(rocksdb::DB::open_cf_descriptors_read_only(
        &options,
        dir,
        families(),
        false,
    )?)
}

fn database_options(create: bool) -> Options {
    let mut options = Options::default();
    options.create_if_missing(create);
    options.create_missing_column_families(create);
    options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    options.set_max_background_jobs(2);
    options.set_max_open_files(OPEN_FILES_MAX);
    options.set_max_total_wal_size(4 * WRITE_BUFFER_BYTES as u64);
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(1 << 20);
    options.set_log_level(LogLevel::Warn);
    options
}

fn family_options() -> Options {
    let mut options = Options::default();
    options.set_write_buffer_size(WRITE_BUFFER_BYTES);
    options.set_max_write_buffer_number(2);
    options
}

impl From<Error> for io::Error {
    fn from(error: Error) -> io::Error {
        match error {
            Error::Io { source, .. } => source,
            damaged @ Error::Damaged { .. } => io::Error::new(io::ErrorKind::InvalidData, damaged),
            other => io::Error::other(other),
        }
    }
}
