//! The files of a view that are in use, by inode number. Sharded, so that requests for different files seldom meet.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::error::FsResult;
use crate::file::File;
use crate::types::Ino;

const SHARDS: usize = 16;

#[derive(Default)]
pub struct FileTable([Mutex<HashMap<Ino, Arc<File>>>; SHARDS]);

impl FileTable {
    fn shard(&self, ino: Ino) -> MutexGuard<'_, HashMap<Ino, Arc<File>>> {
        let shard = &self.0[ino.0 as usize % SHARDS];
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
        let shards = self.0.iter();
        let of_shard = |shard: &Mutex<HashMap<Ino, Arc<File>>>| {
            let shard = shard.lock().unwrap_or_else(|e| e.into_inner());
            shard.values().cloned().collect::<Vec<_>>()
        };
        shards.flat_map(of_shard).collect()
    }

    /// Drops clean files that were not used since the last call (second chance).
    pub fn evict(&self) {
        for shard in &self.0 {
            let mut shard = shard.lock().unwrap_or_else(|e| e.into_inner());
            shard.retain(|_, file| {
                file.recent.swap(false, Ordering::Relaxed) || Arc::strong_count(file) > 1 || !file.is_clean()
            });
        }
    }
}
