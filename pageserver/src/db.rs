//! RocksDB as the store uses it: two column families, one write-ahead log, one place that syncs it.
//!
//! `catalog` holds layers, timelines and snapshots (`catalog.rs`), `namespace` the names and inodes of every layer
//! (`namespace/codec.rs`). A write is in the kernel's hands when [`Db::write`] returns, so it survives the
//! death of the process; [`Db::sync`] makes it survive that of the machine.
//!
//! When the disk is full RocksDB takes nothing more, and goes on by itself when it has found room: it looks every five
//! seconds, and then writes out anew all that it has in memory, so nothing was lost. Any other error of its log leaves
//! open what a restart will find there: nothing is believed then until the store is opened anew.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rocksdb::{
    ColumnFamily, ColumnFamilyDescriptor, DBRecoveryMode, DEFAULT_COLUMN_FAMILY_NAME, IteratorMode, LogLevel, Options,
    WriteBatch, WriteOptions,
};

use crate::error::{Error, Result, is_full};
use crate::room::Room;
use crate::sync_point::SyncPoint;

pub const CATALOG: &str = "catalog";
pub const NAMESPACE: &str = "namespace";

const WRITE_BUFFER_BYTES: usize = 4 << 20;
const OPEN_FILES_MAX: i32 = 64;

pub struct Db {
    rocks: rocksdb::DB,
    log: SyncPoint,
    room: Arc<Room>,
    /// The log failed, and not for lack of room.
    failed: AtomicBool,
}

impl Db {
    /// Opens the database in `dir`, making it when `create`. It writes, so a full disk's reserve may have to go.
    pub fn open(dir: &Path, create: bool, room: Arc<Room>) -> Result<Db> {
        room.balance();
        // RocksDB has a family of its own too, whose buffers count when it asks itself whether there is room.
        let families = [DEFAULT_COLUMN_FAMILY_NAME, CATALOG, NAMESPACE]
            .map(|name| ColumnFamilyDescriptor::new(name, family_options()));
        let rocks = rocksdb::DB::open_cf_descriptors(&database_options(create), dir, families)?;
        Ok(Db {
            rocks,
            log: SyncPoint::default(),
            room,
            failed: AtomicBool::new(false),
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

    /// Asks the disk whether it has room, before something that must not be refused: see [`Room`].
    pub fn make_room(&self) {
        self.room.balance();
    }

    /// Writes a batch, all or nothing. It survives a kill of the process, not yet a power cut.
    pub fn write(&self, batch: WriteBatch) -> Result<()> {
        self.room.for_database(batch.size_in_bytes());
        self.log_write(batch, false)?;
        self.log.changed();
        Ok(())
    }

    /// Makes every write so far durable; free when nothing was written since the last time. For lack of room (ENOSPC)
    /// it may be tried again; after any other error it fails for good.
    pub fn sync(&self) -> io::Result<()> {
        self.check()?;
        let flush = || Ok(self.log_write(WriteBatch::default(), true)?);
        self.log.sync_unless_lost(flush, |error| !is_full(error))
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
        if error.is_full() {
            self.room.give_up();
        } else if !self.failed.swap(true, Ordering::AcqRel) {
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
