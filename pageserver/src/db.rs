//! RocksDB as the store uses it: two column families, one write-ahead log, one place that syncs it.
//!
//! `catalog` holds layers, timelines and snapshots (`catalog.rs`), `namespace` the names and inodes of every layer
//! (`namespace/codec.rs`). A write is in the kernel's hands when [`Db::write`] returns, so it survives the
//! death of the process; [`Db::sync`] makes it survive that of the machine.

use std::io;
use std::path::Path;

use rocksdb::{ColumnFamily, ColumnFamilyDescriptor, DBRecoveryMode, IteratorMode, LogLevel, Options, WriteBatch};

use crate::error::{Error, Result};
use crate::sync_point::SyncPoint;

pub const CATALOG: &str = "catalog";
pub const NAMESPACE: &str = "namespace";

const WRITE_BUFFER_BYTES: usize = 4 << 20;
const OPEN_FILES_MAX: i32 = 64;

pub struct Db {
    rocks: rocksdb::DB,
    log: SyncPoint,
}

impl Db {
    /// Opens the database in `dir`, making it when `create`.
    pub fn open(dir: &Path, create: bool) -> Result<Db> {
        let families = [CATALOG, NAMESPACE].map(|name| ColumnFamilyDescriptor::new(name, family_options()));
        let rocks = rocksdb::DB::open_cf_descriptors(&database_options(create), dir, families)?;
        Ok(Db {
            rocks,
            log: SyncPoint::default(),
        })
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
        self.rocks.write(batch)?;
        self.log.changed();
        Ok(())
    }

    /// Makes every write so far durable; free when nothing was written since the last time.
    pub fn sync(&self) -> io::Result<()> {
        self.log
            .sync(|| self.rocks.flush_wal(true).map_err(|e| io::Error::other(e.to_string())))
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

impl Drop for Db {
    fn drop(&mut self) {
        self.rocks.cancel_all_background_work(true);
    }
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
