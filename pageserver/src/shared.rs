//! What all timelines of a store share: the disk, the database, the source of inode numbers, and the namespaces of
//! sealed layers that are still in memory.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use rocksdb::WriteBatch;

use crate::catalog::{Catalog, INO_KEY};
use crate::db::{CATALOG, Db};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::layer::{Layer, Layers};
use crate::namespace::Namespace;
use crate::packs::Packs;
use crate::poison::Marks;
use crate::room::Room;
use crate::sealed::Sealed;
use crate::store::{LAYERS_DIR, PACKS_DIR};
use crate::sync_point::{SyncPoint, is_disk_failure, is_unsupported};
use crate::types::{Ino, LayerId};

/// Inode numbers taken from the database at once.
const INO_LEASE: u64 = 4096;

/// Sealed namespaces kept in memory. They share all they have in common.
const NAMESPACES_MAX: usize = 256;

pub struct Shared {
    pub disk: Disk,
    pub db: Arc<Db>,
    pub room: Arc<Room>,
    pub poisoned: Marks,
    pub layers: Layers,
    pub sealed: Arc<Sealed>,
    /// Whether a block that is written again stays where it is on the disk.
    pub overwrites_in_place: bool,
    inos: Mutex<Lease>,
    namespaces: Mutex<VecDeque<(LayerId, Namespace)>>,
    doomed: Mutex<Vec<(Arc<Layer>, Ino)>>,
    /// Writes that were handed to the kernel and that no other sync point knows of any more.
    unsettled: SyncPoint,
    /// How often they turned out to be lost: see [`Shared::settle`].
    losses: AtomicU64,
    /// Open for as long as the store, or, when its lock is kept for it, longer than the process.
    watch: Mutex<File>,
}

/// Inode numbers from `next` up to `end` are ours to give.
struct Lease {
    next: u64,
    end: u64,
}

impl Shared {
    /// `dir` is the store's, `watch` a file of its filesystem.
    pub fn open(
        disk: Disk,
        db: Db,
        catalog: &Catalog,
        room: Arc<Room>,
        poisoned: Marks,
        dir: &Path,
        watch: File,
    ) -> Result<Shared> {
        let next = match db.get(CATALOG, INO_KEY)? {
            Some(value) => value.try_into().map(u64::from_le_bytes).map_err(|_| Error::Damaged {
                what: "the counter of inode numbers can't be read".into(),
            })?,
            None => Ino::FIRST.0,
        };
        let db = Arc::new(db);
        let packs = Packs::new(disk.clone(), dir.join(PACKS_DIR), catalog.packs());
        let sealed = Arc::new(Sealed::new(db.clone(), packs, catalog.forms()));
        for (older, newer) in catalog.merging() {
            sealed.begin_merge(older, newer);
        }
        let layers = Layers {
            disk: disk.clone(),
            dir: dir.join(LAYERS_DIR),
            sealed: sealed.clone(),
            tables: Arc::default(),
        };
        // A service that was killed knew which writes were not durable yet; this one doesn't.
        let unsettled = SyncPoint::default();
        unsettled.changed();
        let overwrites_in_place = disk.overwrites_in_place(&watch);
        Ok(Shared {
            overwrites_in_place: overwrites_in_place.map_err(Error::io("ask what the store lies on"))?,
            disk,
            db,
            room,
            poisoned,
            layers,
            sealed,
            inos: Mutex::new(Lease { next, end: next }),
            namespaces: Mutex::default(),
            doomed: Mutex::default(),
            unsettled,
            losses: AtomicU64::new(0),
            watch: Mutex::new(watch),
        })
    }

    /// Notes that a timeline was let go of with writes that are not known to be durable.
    pub fn unsettle(&self) {
        self.unsettled.changed();
    }

    pub fn is_settled(&self) -> bool {
        self.unsettled.is_durable()
    }

    /// Returns once writes are durable that no other sync point knows of. Free when there can't be any.
    pub fn settle(&self) -> io::Result<()> {
        let flush = || match self.sync_filesystem() {
            Err(e) if is_unsupported(&e) => self.sync_one_by_one().inspect_err(|e| self.poison_all_after(e)),
            synced => synced,
        };
        self.unsettled.sync_unless_lost(flush, |_| false)
    }

    /// Makes everything on the store's filesystem durable.
    ///
    /// The descriptor that is synced is as old as the store's lock, so it also learns of writes that failed while a process lived which
    /// has died since. The kernel tells it of them once: from then on they count as a loss, which every timeline that was loaded
    /// before it has to take for its own. One that is loaded later begins with what is there then. So this is done by one at a time: who
    /// gets no error finds the loss that another one was told of.
    pub fn sync_filesystem(&self) -> io::Result<()> {
        let watch = self.watch.lock().unwrap_or_else(|e| e.into_inner());
        let synced = self.disk.sync_filesystem(&watch);
        synced.inspect_err(|e| self.poison_all_after(e))
    }

    fn poison_all_after(&self, error: &io::Error) {
        if is_disk_failure(error) && !is_unsupported(error) {
            self.poison_all();
        }
    }

    /// Any timeline can have lost something. The kernel won't tell the next process, so all are marked; who mounts one anew takes
    /// its mark away.
    fn poison_all(&self) {
        self.losses.fetch_add(1, Ordering::AcqRel);
        match Catalog::load(&self.db) {
            Ok(catalog) => catalog.timelines().for_each(|(id, _)| self.poisoned.set(id)),
            Err(error) => tracing::error!(%error, "which heads are poisoned can't be noted"),
        }
    }

    /// Grows when writes have turned out to be lost and nobody can tell whose they were.
    pub fn losses(&self) -> u64 {
        self.losses.load(Ordering::Acquire)
    }

    fn sync_one_by_one(&self) -> io::Result<()> {
        for layer in self.disk.list(&self.layers.dir)? {
            let layer = self.layers.dir.join(layer);
            for name in self.disk.list(&layer)? {
                self.disk.sync_data(&self.disk.open(&layer.join(name), false)?)?;
            }
            self.disk.sync_dir(&layer)?;
        }
        self.disk.sync_dir(&self.layers.dir)
    }

    /// An inode number that was never given before.
    pub fn new_ino(&self) -> Result<Ino> {
        let mut lease = self.inos.lock().unwrap_or_else(|e| e.into_inner());
        if lease.next == lease.end {
            let end = lease.end + INO_LEASE;
            let mut batch = WriteBatch::default();
            self.db.put(&mut batch, CATALOG, INO_KEY, &end.to_le_bytes());
            self.db.write(batch)?;
            lease.end = end;
        }
        lease.next += 1;
        Ok(Ino(lease.next - 1))
    }

    /// A sealed layer's namespace, if it is in memory.
    pub fn namespace(&self, layer: LayerId) -> Option<Namespace> {
        let namespaces = self.namespaces.lock().unwrap_or_else(|e| e.into_inner());
        let found = namespaces.iter().find(|(id, _)| *id == layer);
        found.map(|(_, ns)| ns.clone())
    }

    /// Keeps a sealed layer's namespace in memory for a while.
    pub fn keep_namespace(&self, layer: LayerId, ns: Namespace) {
        let mut namespaces = self.namespaces.lock().unwrap_or_else(|e| e.into_inner());
        namespaces.retain(|(id, _)| *id != layer);
        if namespaces.len() == NAMESPACES_MAX {
            namespaces.pop_front();
        }
        namespaces.push_back((layer, ns));
    }

    /// Has the blocks of a file that is gone removed, with the next [`Shared::tidy`]: the kernel's FORGET must not wait for a disk.
    pub fn doom(&self, layer: Arc<Layer>, ino: Ino) {
        self.doomed().push((layer, ino));
    }

    /// Removes the blocks of files that are gone. Not before it is durable that they are gone: after a power cut a name
    /// that came back must find its blocks.
    pub fn tidy(&self) {
        let doomed = std::mem::take(&mut *self.doomed());
        if doomed.is_empty() {
            return;
        }
        if let Err(error) = self.db.sync() {
            tracing::error!(%error, "the database can't be synced: the blocks of {} files that are gone stay", doomed.len());
            self.doomed().extend(doomed);
            return;
        }
        for (layer, ino) in doomed {
            self.disk.at("tidy: about to remove");
            if let Err(error) = layer.remove(ino) {
                tracing::error!(layer = %layer.id, %ino, %error, "the blocks of a file that is gone can't be removed");
            }
        }
    }

    fn doomed(&self) -> MutexGuard<'_, Vec<(Arc<Layer>, Ino)>> {
        self.doomed.lock().unwrap_or_else(|e| e.into_inner())
    }
}
