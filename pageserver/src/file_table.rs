//! The files of a view that are in use, by inode number. Sharded, so that requests for different files seldom meet.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use crate::disk::Disk;
use crate::error::FsResult;
use crate::file::File;
use crate::types::{Ino, LayerId};

const SHARDS: usize = 16;

#[derive(Default)]
pub struct FileTable {
    shards: [Mutex<HashMap<Ino, Arc<File>>>; SHARDS],
    /// The layer that is a head; 0 where none is.
    head: AtomicU64,
}

/// The tables of all views of a store.
#[derive(Default)]
pub struct Tables {
    tables: Mutex<Vec<Weak<FileTable>>>,
    closing: Mutex<()>,
}

impl Tables {
    pub fn add(&self) -> Arc<FileTable> {
        let table = Arc::new(FileTable::default());
        let mut tables = self.tables.lock().unwrap_or_else(|e| e.into_inner());
        tables.retain(|table| table.strong_count() > 0);
        tables.push(Arc::downgrade(&table));
        table
    }

    /// Closes what was not used for a while: whole files, and of the others the sealed parts; where that is not enough, also parts that were used.
    /// False for who finds somebody at it.
    pub fn close_idle(&self, disk: &Disk) -> bool {
        let Ok(_closing) = self.closing.try_lock() else {
            return false;
        };
        let tables: Vec<Arc<FileTable>> = {
            let tables = self.tables.lock().unwrap_or_else(|e| e.into_inner());
            tables.iter().filter_map(Weak::upgrade).collect()
        };
        tables.iter().for_each(|table| table.evict());
        tables.iter().for_each(|table| table.close_parts());
        if disk.is_crowded() {
            tables.iter().for_each(|table| table.close_parts());
        }
        disk.has_closed();
        true
    }
}

impl FileTable {
    fn shard(&self, ino: Ino) -> MutexGuard<'_, HashMap<Ino, Arc<File>>> {
        let shard = &self.shards[ino.0 as usize % SHARDS];
        shard.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub fn get(&self, ino: Ino) -> Option<Arc<File>> {
        let file = self.shard(ino).get(&ino).cloned()?;
        file.recent.store(true, Ordering::Relaxed);
        Some(file)
    }

    /// The file, made by `load` when it is not in use yet.
    pub fn get_or_load(&self, ino: Ino, load: impl FnOnce() -> FsResult<File>) -> FsResult<Arc<File>> {
        let mut shard = self.shard(ino);
        if let Some(file) = shard.get(&ino) {
            return Ok(file.clone());
        }
        let file = Arc::new(load()?);
        shard.insert(ino, file.clone());
        Ok(file)
    }

    pub fn remove(&self, ino: Ino) {
        self.shard(ino).remove(&ino);
    }

    /// All files.
    pub fn all(&self) -> Vec<Arc<File>> {
        let shards = self.shards.iter();
        let of_shard = |shard: &Mutex<HashMap<Ino, Arc<File>>>| {
            let shard = shard.lock().unwrap_or_else(|e| e.into_inner());
            shard.values().cloned().collect::<Vec<_>>()
        };
        shards.flat_map(of_shard).collect()
    }

    /// Notes which layer is the head.
    pub fn set_head(&self, head: LayerId) {
        self.head.store(head.0, Ordering::Release);
    }

    fn close_parts(&self) {
        for file in self.all() {
            file.close_idle(|| LayerId(self.head.load(Ordering::Acquire)));
        }
    }

    /// Drops clean files that were not used since the last call (second chance).
    pub fn evict(&self) {
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(|e| e.into_inner());
            shard.retain(|_, file| {
                file.recent.swap(false, Ordering::Relaxed) || Arc::strong_count(file) > 1 || !file.is_clean()
            });
        }
    }
}
