//! A store: one directory with everything zenith keeps.
//!
//! ```text
//!   format      the format's version, one line
//!   lock        flock'ed by the one process that has the store open
//!   db/         RocksDB: catalog and namespaces
//!   layers/     a directory for each layer that is not packed
//!   packs/      a file for each that is
//!   reserve     space for the database on a full disk
//!   poisoned/   a name for each timeline whose head is poisoned
//!   lost/       layers with blocks that the database did not know when the store was opened
//! ```

mod format;
mod sweep;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File as StdFile;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard, Weak};

use nix::fcntl::Flock;
use rocksdb::WriteBatch;

use crate::aside::Aside;
use crate::catalog::{Catalog, Entry, LayerRecord, Origin, TimelineRecord};
use crate::db::Db;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::load::{self, Orphans};
use crate::names::{BranchName, SnapshotName};
use crate::namespace::ops::{leave_out, new_inode};
use crate::namespace::{Change, Namespace, codec};
use crate::pg::Purpose;
use crate::poison::{Marks, POISONED_DIR};
use crate::room::Room;
use crate::shared::Shared;
use crate::timeline::Timeline;
use crate::types::*;
use crate::view::View;
pub use format::FORMAT;
pub(crate) use format::{check_format, lock};
use format::{judge, lock_file};
pub(crate) use sweep::number_of_name;

pub(crate) const DB_DIR: &str = "db";
pub(crate) const LAYERS_DIR: &str = "layers";
pub(crate) const PACKS_DIR: &str = "packs";
pub(crate) const LOST_DIR: &str = "lost";

/// What a new layer takes at once: its directory, and its records in the database.
const LAYER_BYTES: u64 = 4 * BLOCK;

const SETTLE: &str = "sync what an earlier life of the store has written";

/// What a new branch starts from.
#[derive(Clone, Debug)]
pub enum Start {
    /// An empty directory.
    Empty,
    /// A branch as it is now.
    Branch(BranchName),
    Snapshot(SnapshotName),
}

/// Whether what a new branch starts from must stay for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bond {
    /// It does, under its name: a copy-on-write branch.
    Tied,
    /// It may go, and the branch keeps the blocks that it shares with it.
    Independent,
}

/// What is known of a branch.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct BranchInfo {
    pub name: BranchName,
    pub head: LayerId,
    /// The snapshot or branch it was made from.
    pub parent: Option<String>,
    pub created: Time,
}

pub struct Store {
    dir: PathBuf,
    pub(crate) shared: Arc<Shared>,
    /// Held through whatever changes which branches and snapshots there are, from the first check to the last sync.
    changing: Mutex<()>,
    catalog: Mutex<Catalog>,
    timelines: Mutex<HashMap<TimelineId, Weak<Timeline>>>,
    /// How many heads were loaded so far.
    loaded: AtomicU64,
    views: Mutex<HashMap<LayerId, Weak<View>>>,
    /// Bytes of sealed layers, as far as somebody has asked.
    sealed_bytes: Mutex<HashMap<LayerId, u64>>,
    /// Bytes of sealed layers that the ones above hide, likewise.
    hidden_bytes: Mutex<HashMap<(LayerId, LayerId), (u64, u64)>>,
    /// How often figures were forgotten.
    pub(crate) figures: AtomicU64,
    /// WAL to replay in sealed layers, likewise.
    wal_bytes: Mutex<HashMap<LayerId, u64>>,
    /// Shared by who needs the bodies of layers to stay as they are, alone for who moves files between them.
    pub(crate) bodies: RwLock<()>,
    aside: Mutex<Aside>,
    /// Sealed layers that are about to get a name, once for each.
    naming: Mutex<Vec<LayerId>>,
    /// Layers, each with the one above, of which on a full disk all was taken that nobody sees.
    emptied: Mutex<HashSet<(LayerId, LayerId)>>,
    warning: Option<String>,
    lock: Flock<StdFile>,
}

impl Store {
    /// Opens a store: takes its lock, checks its format, ends what a crash left half-made.
    pub fn open(dir: &Path, disk: Disk) -> Result<Arc<Store>> {
        check_format(dir)?;
        let lock = lock(dir)?;
        Store::open_locked(dir, disk, lock)
    }

    /// Opens a store with the lock that an earlier process took and that somebody has kept for it since: nobody else was let in.
    pub fn reopen(dir: &Path, disk: Disk, kept: OwnedFd) -> Result<Arc<Store>> {
        check_format(dir)?;
        let lock = lock_file(dir, kept.into())?;
        Store::open_locked(dir, disk, lock)
    }

    /// What [`Store::reopen`] takes: while a copy of it is open somewhere the store is locked.
    pub fn lock(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }

    fn open_locked(dir: &Path, disk: Disk, lock: Flock<StdFile>) -> Result<Arc<Store>> {
        let warning = judge(dir)?;
        let room = room(dir, &disk)?;
        let db = Db::open(&dir.join(DB_DIR), false, Some(room.clone()))?;
        let catalog = Catalog::load(&db)?;
        let poisoned = Marks {
            disk: disk.clone(),
            dir: dir.join(POISONED_DIR),
        };
        let watch = lock.try_clone().map_err(Error::io("watch the store's filesystem"))?;
        let shared = Shared::open(disk, db, &catalog, room, poisoned, dir, watch)?;
        let store = Store {
            dir: dir.into(),
            shared: Arc::new(shared),
            changing: Mutex::default(),
            catalog: Mutex::new(catalog),
            timelines: Mutex::default(),
            loaded: AtomicU64::new(0),
            views: Mutex::default(),
            sealed_bytes: Mutex::default(),
            hidden_bytes: Mutex::default(),
            figures: AtomicU64::new(0),
            wal_bytes: Mutex::default(),
            bodies: RwLock::default(),
            aside: Mutex::default(),
            naming: Mutex::default(),
            emptied: Mutex::default(),
            warning,
            lock,
        };
        store.sweep()?;
        store.shared.room.refill();
        Ok(Arc::new(store))
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Space of the filesystem under the store, without its reserve.
    pub fn space(&self) -> Result<Space> {
        let space = self.shared.room.space();
        space.map_err(Error::io(format!("look at {}", self.dir.display())))
    }

    /// What the user must know of the filesystem under the store.
    pub fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }

    /// Keeps timelines and snapshots as they are, also against those who hold a view for a moment: only who has this can tell what is in use.
    pub(crate) fn changing(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Keeps the bodies of layers as they are. Taken before the catalog.
    pub(crate) fn bodies(&self) -> RwLockReadGuard<'_, ()> {
        self.bodies.read().unwrap_or_else(|e| e.into_inner())
    }

    pub(crate) fn aside(&self) -> MutexGuard<'_, Aside> {
        self.aside.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Taken after the catalog.
    pub(crate) fn naming(&self) -> MutexGuard<'_, Vec<LayerId>> {
        self.naming.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub(crate) fn emptied(&self) -> MutexGuard<'_, HashSet<(LayerId, LayerId)>> {
        self.emptied.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub(crate) fn catalog(&self) -> MutexGuard<'_, Catalog> {
        self.catalog.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub(crate) fn sealed_bytes(&self) -> MutexGuard<'_, HashMap<LayerId, u64>> {
        self.sealed_bytes.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub(crate) fn hidden_bytes_known(&self) -> MutexGuard<'_, HashMap<(LayerId, LayerId), (u64, u64)>> {
        self.hidden_bytes.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub(crate) fn wal_bytes(&self) -> MutexGuard<'_, HashMap<LayerId, u64>> {
        self.wal_bytes.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// All branches, oldest first.
    pub fn branches(&self) -> Vec<BranchInfo> {
        let catalog = self.catalog();
        catalog
            .timelines()
            .map(|(_, record)| branch_info(&catalog, record))
            .collect()
    }

    pub fn branch(&self, name: &BranchName) -> Result<BranchInfo> {
        let catalog = self.catalog();
        let (_, record) = catalog.timeline(name)?;
        Ok(branch_info(&catalog, record))
    }

    /// Makes a branch that is tied to what it starts from; copies nothing. `owner` (uid, gid) gets the root directory of
    /// an empty one.
    pub fn create_branch(&self, name: &BranchName, start: &Start, owner: (u32, u32), now: Time) -> Result<BranchInfo> {
        self.create_bound_branch(name, start, Bond::Tied, owner, now)
    }

    /// As [`Store::create_branch`], tied or not.
    pub fn create_bound_branch(
        &self,
        name: &BranchName,
        start: &Start,
        bond: Bond,
        owner: (u32, u32),
        now: Time,
    ) -> Result<BranchInfo> {
        let _changing = self.changing();
        if self.branch(name).is_ok() {
            return Err(Error::BranchExists { name: name.to_string() });
        }
        self.take_room()?;
        let (mut base, mut _naming) = (None, None);
        match start {
            Start::Empty => {}
            Start::Branch(from) => {
                let (record, naming) = self.seal_branch(from, now)?;
                (base, _naming) = (Some(record.layer), Some(naming));
            }
            Start::Snapshot(from) => base = Some(self.catalog().snapshot(from)?.layer),
        }
        let mut catalog = self.catalog();
        let origin = match (start, bond) {
            (Start::Empty, _) | (_, Bond::Independent) => None,
            (Start::Branch(from), Bond::Tied) => Some((from, None)),
            (Start::Snapshot(from), Bond::Tied) => Some((&from.branch, Some(from.tag.clone()))),
        };
        let origin = match origin {
            Some((from, tag)) => Some(Origin {
                timeline: catalog.timeline(from)?.0,
                tag,
            }),
            None => None,
        };
        let (head, batch) = self.new_head(&mut catalog, base, Purpose::Clone, owner, now)?;
        let id = TimelineId(catalog.next_number());
        let record = TimelineRecord {
            name: name.clone(),
            head,
            origin,
            created: now,
            replaced: 0,
        };
        let info = branch_info(&catalog, &record);
        let entries = vec![
            Entry::Layer(head, Some(LayerRecord::new(base, id))),
            Entry::Timeline(id, Some(record)),
        ];
        self.at("branch: head made");
        catalog.commit(&self.shared.db, batch, entries)?;
        drop(catalog);
        self.at("branch: committed");
        self.sync_db()?;
        self.at("branch: synced");
        Ok(info)
    }

    /// A new branch asks for room, so that the reserve is left to what goes, and to snapshots of what is there.
    fn take_room(&self) -> Result<()> {
        self.shared.room.take(LAYER_BYTES).map_err(Error::io("make a branch"))
    }

    /// Makes an empty head on a sealed layer, or one with an empty directory on nothing.
    /// The batch holds what the head changes from the start.
    pub(crate) fn new_head(
        &self,
        catalog: &mut Catalog,
        base: Option<LayerId>,
        purpose: Purpose,
        owner: (u32, u32),
        now: Time,
    ) -> Result<(LayerId, WriteBatch)> {
        let below = load::sealed(&self.shared, catalog, base)?;
        let changes = match base {
            Some(_) => leave_out(&below, purpose),
            None => vec![root_dir(owner, now)?],
        };
        let id = LayerId(catalog.next_number());
        let layer = self.shared.layers.create(id)?;
        self.at("head: layer made");
        layer.sync_names().map_err(Error::io("make a layer durable"))?;
        let mut batch = WriteBatch::default();
        codec::put_changes(&self.shared.db, &mut batch, id, &below, &changes);
        Ok((id, batch))
    }

    /// Ends a branch. Refused while it is in use, or while other branches start from its snapshots.
    pub fn destroy_branch(&self, name: &BranchName) -> Result<()> {
        let (_changing, _bodies) = (self.changing(), self.bodies());
        let mut catalog = self.catalog();
        let (id, _) = catalog.timeline(name)?;
        if self.is_open(id) {
            return Err(Error::Busy { name: name.to_string() });
        }
        self.refuse_destroying_branch(&catalog, name)?;
        self.unpoison(id)?;
        let mut entries = vec![Entry::Timeline(id, None)];
        let own = catalog.snapshots().filter(|(timeline, ..)| *timeline == id);
        entries.extend(own.map(|(_, tag, _)| Entry::Snapshot(id, tag.clone(), None)));
        catalog.commit(&self.shared.db, WriteBatch::default(), entries)?;
        self.at("destroy: committed");
        self.collect(&mut catalog)?;
        drop(catalog);
        self.sync_db()
    }

    /// Why a branch can't be destroyed as things are, if so; that it may be mounted is left aside.
    pub fn check_branch_destroyable(&self, name: &BranchName) -> Result<()> {
        let _changing = self.changing();
        self.refuse_destroying_branch(&self.catalog(), name)
    }

    fn refuse_destroying_branch(&self, catalog: &Catalog, name: &BranchName) -> Result<()> {
        let (id, _) = catalog.timeline(name)?;
        refuse_origin(catalog, name.to_string(), |origin| origin.timeline == id)?;
        for (_, tag, record) in catalog.snapshots().filter(|(timeline, ..)| *timeline == id) {
            let name = SnapshotName {
                branch: name.clone(),
                tag: tag.clone(),
            };
            if record.protected {
                return Err(Error::Protected { name: name.to_string() });
            }
            let mut others = catalog.snapshots().filter(|(timeline, ..)| *timeline != id);
            self.refuse_looked_at(
                &name,
                record.layer,
                others.any(|(.., other)| other.layer == record.layer),
            )?;
        }
        Ok(())
    }

    /// Refuses to take away the name of a layer that somebody looks at: where it `has_others`, too, only if it was opened under this one.
    pub(crate) fn refuse_looked_at(&self, name: &SnapshotName, layer: LayerId, has_others: bool) -> Result<()> {
        let views = self.views.lock().unwrap_or_else(|e| e.into_inner());
        let view = views.get(&layer).and_then(Weak::upgrade);
        match view.is_some_and(|view| !has_others || view.is_open_as(name)) {
            true => Err(Error::Busy { name: name.to_string() }),
            false => Ok(()),
        }
    }

    /// The branch's timeline, loaded when nobody holds it. One that was poisoned starts anew with that.
    pub fn timeline(&self, name: &BranchName) -> Result<Arc<Timeline>> {
        self.timeline_with(name, Orphans::End, |id| self.unpoison(id).map(|()| false))
    }

    /// The timeline of a branch whose mount has outlived the process that served it: files without a name stay, as the mount may
    /// hold them, and what was poisoned stays poisoned.
    pub fn resumed_timeline(&self, name: &BranchName) -> Result<Arc<Timeline>> {
        self.timeline_with(name, Orphans::Stay, |id| Ok(self.shared.poisoned.is_set(id)))
    }

    fn unpoison(&self, id: TimelineId) -> Result<()> {
        let cleared = self.shared.poisoned.clear(id);
        cleared.map_err(Error::io("take the mark of a poisoned branch away"))
    }

    /// `is_poisoned` tells, of one that is not in memory, how it starts.
    fn timeline_with(
        &self,
        name: &BranchName,
        orphans: Orphans,
        is_poisoned: impl FnOnce(TimelineId) -> Result<bool>,
    ) -> Result<Arc<Timeline>> {
        let mut catalog = self.catalog();
        let (id, record) = catalog.timeline(name)?;
        let head = record.head;
        let mut timelines = self.timelines.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(timeline) = timelines.get(&id).and_then(Weak::upgrade) {
            return Ok(timeline);
        }
        self.loaded.fetch_add(1, Ordering::AcqRel);
        let loaded = load::head(&self.shared, &mut catalog, head, orphans)?;
        let poisoned = is_poisoned(id)?;
        let timeline = Timeline::new(id, name.clone(), self.shared.clone(), head, loaded, poisoned);
        let timeline = Arc::new(timeline);
        timelines.retain(|_, timeline| timeline.strong_count() > 0);
        timelines.insert(id, Arc::downgrade(&timeline));
        Ok(timeline)
    }

    /// Whether somebody deleted the store, or the lock that keeps others out of it, under us.
    pub fn is_deleted(&self) -> bool {
        self.lock.metadata().is_ok_and(|lock| lock.nlink() == 0)
    }

    /// Frees what files that are gone have left, and makes the reserve again; to be called every now and then.
    pub fn tidy(&self) {
        self.shared.tidy();
        self.shared.room.refill();
    }

    pub(crate) fn loaded(&self) -> u64 {
        self.loaded.load(Ordering::Acquire)
    }

    pub(crate) fn is_open(&self, id: TimelineId) -> bool {
        let timelines = self.timelines.lock().unwrap_or_else(|e| e.into_inner());
        timelines.get(&id).is_some_and(|timeline| timeline.strong_count() > 0)
    }

    /// Whether a layer is still being made durable.
    pub(crate) fn is_sealing(&self, layer: LayerId) -> bool {
        let timelines = self.timelines.lock().unwrap_or_else(|e| e.into_inner());
        let mut loaded = timelines.values().filter_map(Weak::upgrade);
        loaded.any(|timeline| timeline.is_sealing(layer))
    }

    /// The timelines that somebody has or had. One that is upgraded is in use for as long.
    pub(crate) fn known_timelines(&self) -> Vec<Weak<Timeline>> {
        let timelines = self.timelines.lock().unwrap_or_else(|e| e.into_inner());
        timelines.values().cloned().collect()
    }

    /// Has all views let go of the files that some bodies had; they are opened again where they are now.
    pub(crate) fn renew(&self, bodies: &[LayerId]) {
        self.each_view(|view| view.renew(bodies));
    }

    /// Has all views find blocks of a file in a body that they have found below it so far.
    pub(crate) fn adopt(&self, ino: Ino, body: LayerId, blocks: &BTreeMap<u64, Vec<u64>>) {
        self.each_view(|view| view.adopt(ino, body, blocks));
    }

    fn each_view(&self, each: impl Fn(&View)) {
        // Nobody finds a branch or a snapshot in use over this.
        let _changing = self.changing();
        let timelines: Vec<Arc<Timeline>> = self.known_timelines().iter().filter_map(Weak::upgrade).collect();
        let views: Vec<Arc<View>> = {
            let views = self.views.lock().unwrap_or_else(|e| e.into_inner());
            views.values().filter_map(Weak::upgrade).collect()
        };
        let heads = timelines.iter().map(|timeline| timeline.view());
        let sealed = views.iter().map(|view| &**view);
        heads.chain(sealed).for_each(each);
    }

    /// The tree of a snapshot's layer, read-only. One that lost its name has none: it may be merged with the next at any time.
    pub fn sealed_view(&self, layer: LayerId) -> Result<Arc<View>> {
        let mut catalog = self.catalog();
        let is_named = catalog.snapshots().any(|(.., record)| record.layer == layer);
        match is_named {
            true => self.view_of(&mut catalog, layer),
            false => Err(Error::NoSnapshot {
                name: format!("of layer {layer}"),
                known: Vec::new(),
            }),
        }
    }

    /// `catalog` has a name for the layer.
    pub(crate) fn view_of(&self, catalog: &mut Catalog, layer: LayerId) -> Result<Arc<View>> {
        let mut views = self.views.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(view) = views.get(&layer).and_then(Weak::upgrade) {
            return Ok(view);
        }
        let ns: Namespace = load::sealed(&self.shared, catalog, Some(layer))?;
        let view = View::sealed(&self.shared, layer, ns);
        let view = Arc::new(view);
        views.retain(|_, view| view.strong_count() > 0);
        views.insert(layer, Arc::downgrade(&view));
        Ok(view)
    }

    /// Makes durable what an earlier life of the store has written; whatever is to be durable waits for that.
    pub fn settle(&self) -> Result<()> {
        self.shared.settle().map_err(Error::io(SETTLE))
    }

    /// See [`crate::Hook::at`].
    pub(crate) fn at(&self, point: &'static str) {
        self.shared.disk.at(point);
    }

    pub(crate) fn sync_db(&self) -> Result<()> {
        self.settle()?;
        self.shared.db.sync().map_err(Error::io("sync the store's database"))
    }
}

/// A sealed layer that is about to get a name: it is not merged with the one above before it has.
pub(crate) struct Naming<'a> {
    store: &'a Store,
    layer: LayerId,
}

impl<'a> Naming<'a> {
    /// To be called with the catalog.
    pub fn begin(store: &'a Store, layer: LayerId) -> Naming<'a> {
        store.naming().push(layer);
        Naming { store, layer }
    }
}

impl Drop for Naming<'_> {
    fn drop(&mut self) {
        let mut naming = self.store.naming();
        if let Some(nth) = naming.iter().position(|layer| *layer == self.layer) {
            naming.swap_remove(nth);
        }
    }
}

fn branch_info(catalog: &Catalog, record: &TimelineRecord) -> BranchInfo {
    BranchInfo {
        name: record.name.clone(),
        head: record.head,
        parent: record.origin.as_ref().and_then(|origin| catalog.origin_name(origin)),
        created: record.created,
    }
}

/// Refuses to end what branches come from.
pub(crate) fn refuse_origin(catalog: &Catalog, name: String, is_it: impl Fn(&Origin) -> bool) -> Result<()> {
    let dependents: Vec<String> = catalog
        .timelines()
        .filter(|(_, record)| record.origin.as_ref().is_some_and(&is_it))
        .map(|(_, record)| format!("branch {}", record.name))
        .collect();
    match dependents.is_empty() {
        true => Ok(()),
        false => Err(Error::Needed { name, dependents }),
    }
}

fn root_dir((uid, gid): (u32, u32), now: Time) -> Result<Change> {
    let node = NewNode {
        kind: NewKind::Dir,
        mode: 0o700,
        uid,
        gid,
    };
    let inode = new_inode(node, Ino::ROOT, now).map_err(|e| Error::io("make the root directory")(e.into()))?;
    Ok(Change::SetInode(Ino::ROOT, inode))
}

fn room(dir: &Path, disk: &Disk) -> Result<Arc<Room>> {
    let room = Room::open(disk.clone(), dir).map_err(Error::io(format!("look at {}", dir.display())))?;
    Ok(Arc::new(room))
}
