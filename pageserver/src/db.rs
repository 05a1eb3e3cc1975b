//! RocksDB as the store uses it: two column families, one write-ahead log, one place that syncs it.
//!
//! `catalog` holds layers, timelines and snapshots (`catalog.rs`), `namespace` the names and inodes of every layer
//! (`namespace/codec.rs`). A write is in the kernel's hands when [`Db::write`] returns, so it survives the
//! death of the process; [`Db::sync`] makes it survive that of the machine, and notes how far (`db/mark.rs`), so that
//! damage to what was durable is never taken for the end of the log. A clean stop leaves no log to replay.

mod frames;
mod mark;

use std::io;
use std::path::Path;
use std::sync::{RwLock, RwLockReadGuard};

use rocksdb::{
    ColumnFamily, ColumnFamilyDescriptor, DBRecoveryMode, FlushOptions, IteratorMode, LogLevel, Options, WriteBatch,
    properties,
};

use crate::error::{Error, Result};
use crate::sync_point::SyncPoint;
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
}

impl Db {
    /// Opens the database in `dir`, making it when `create`. Refused, with everything left as it is, where something that
    /// was durable is gone.
    pub fn open(dir: &Path, create: bool) -> Result<Db> {
        if let Some(suspect) = Db::damage(dir)?.first() {
            let what = suspect.describe();
            return Err(Error::Damaged { what });
        }
        let rocks = rocksdb::DB::open_cf_descriptors(&database_options(create), dir, families())?;
        let mark = Mark::open(dir).and_then(|mark| mark.note_all().map(|()| mark));
        Ok(Db {
            rocks,
            log: SyncPoint::default(),
            mark: Some(mark.map_err(Error::io(format!("sync {}", dir.display())))?),
            writing: RwLock::default(),
        })
    }

    /// Opens the database for reading. Nothing is changed, whatever state it is in.
    pub fn open_read_only(dir: &Path) -> Result<Db> {
        Ok(Db {
            rocks: read_only(dir)?,
            log: SyncPoint::default(),
            mark: None,
            writing: RwLock::default(),
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

    /// Writes a batch, all or nothing. It survives a kill of the process, not yet a power cut.
    pub fn write(&self, batch: WriteBatch) -> Result<()> {
        let _writing = self.writing();
        self.rocks.write(batch)?;
        self.log.changed();
        Ok(())
    }

    /// Makes every write so far durable; free when nothing was written since the last time.
    pub fn sync(&self) -> io::Result<()> {
        self.log.sync(|| self.flush_log())
    }

    fn flush_log(&self) -> io::Result<()> {
        let lengths = self.mark.as_ref().map(|mark| {
            let _alone = self.writing.write().unwrap_or_else(|e| e.into_inner());
            mark.lengths()
        });
        self.rocks
            .flush_wal(true)
            .map_err(|e| io::Error::other(e.to_string()))?;
        match (&self.mark, lengths) {
            (Some(mark), Some(lengths)) => mark.note(lengths?),
            _ => Ok(()),
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

fn families() -> [ColumnFamilyDescriptor; 2] {
    [CATALOG, NAMESPACE].map(|name| ColumnFamilyDescriptor::new(name, family_options()))
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
            other => io::Error::other(other.to_string()),
        }
    }
}
