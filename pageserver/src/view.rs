//! A file tree that can be read: that of a sealed layer, or of a timeline's head.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

use nix::errno::Errno;

use crate::block_map;
use crate::bounded_log::BoundedLog;
use crate::disk::{Disk, Wait};
use crate::error::FsResult;
use crate::file::File;
use crate::file_table::FileTable;
use crate::layer::{Backing, Layer, Layers};
use crate::names::SnapshotName;
use crate::namespace::{Inode, Namespace};
use crate::room::Room;
use crate::shared::Shared;
use crate::types::{Attr, DirEntry, Ino, Kind, LayerId, Seek, Space};

static FAILURES: BoundedLog = BoundedLog::new();

pub struct View {
    disk: Disk,
    room: Arc<Room>,
    store: Layers,
    /// The layer on top; in a timeline's view it moves with every seal.
    top: AtomicU64,
    /// Whether the layer on top is a head.
    writable: bool,
    ns: RwLock<Namespace>,
    layers: Mutex<HashMap<LayerId, Arc<Layer>>>,
    pub(crate) files: Arc<FileTable>,
    /// Snapshots under whose names it was opened.
    names: Mutex<BTreeSet<SnapshotName>>,
}

impl View {
    /// The view of a sealed layer.
    pub(crate) fn sealed(shared: &Shared, layer: LayerId, ns: Namespace) -> View {
        View {
            disk: shared.disk.clone(),
            room: shared.room.clone(),
            store: shared.layers.clone(),
            top: AtomicU64::new(layer.0),
            writable: false,
            ns: RwLock::new(ns),
            layers: Mutex::default(),
            files: shared.layers.tables.add(),
            names: Mutex::default(),
        }
    }

    /// The view of a head.
    pub(crate) fn head(shared: &Shared, head: Arc<Layer>, ns: Namespace) -> View {
        let mut view = View::sealed(shared, head.id, ns);
        view.writable = true;
        view.put_on_top(head);
        view
    }

    /// Makes a new head the layer on top.
    pub(crate) fn put_on_top(&self, head: Arc<Layer>) {
        let mut layers = self.layers.lock().unwrap_or_else(|e| e.into_inner());
        self.files.set_head(head.id);
        self.top.store(head.id.0, Ordering::Release);
        // Those that no file has a part in and nobody syncs are opened again when one has.
        layers.retain(|_, layer| Arc::strong_count(layer) > 1);
        layers.insert(head.id, head);
    }

    /// Whether all that was written through it is known to be durable.
    pub(crate) fn is_all_durable(&self) -> bool {
        let layers = self.layers.lock().unwrap_or_else(|e| e.into_inner());
        layers.values().all(|layer| layer.is_durable())
    }

    /// Closes all files.
    pub(crate) fn let_go(&self) {
        let layers = self.layers.lock().unwrap_or_else(|e| e.into_inner());
        layers.values().for_each(|layer| layer.let_go());
    }

    /// Notes that somebody has it under a snapshot's name.
    pub(crate) fn open_as(&self, name: &SnapshotName) {
        let mut names = self.names.lock().unwrap_or_else(|e| e.into_inner());
        names.insert(name.clone());
    }

    pub(crate) fn is_open_as(&self, name: &SnapshotName) -> bool {
        self.names.lock().unwrap_or_else(|e| e.into_inner()).contains(name)
    }

    /// The layer on top.
    pub fn layer(&self) -> LayerId {
        LayerId(self.top.load(Ordering::Acquire))
    }

    pub(crate) fn ns(&self) -> RwLockReadGuard<'_, Namespace> {
        self.ns.read().unwrap_or_else(|e| e.into_inner())
    }

    pub(crate) fn ns_mut(&self) -> RwLockWriteGuard<'_, Namespace> {
        self.ns.write().unwrap_or_else(|e| e.into_inner())
    }

    pub fn lookup(&self, parent: Ino, name: &OsStr) -> FsResult<Attr> {
        let ino = self.ns().lookup(parent, name)?;
        self.getattr(ino)
    }

    pub fn getattr(&self, ino: Ino) -> FsResult<Attr> {
        let attr = self.ns().inode(ino)?.attr(ino);
        Ok(self.current(attr))
    }

    /// The attributes with size and times as the file in use has them.
    pub(crate) fn current(&self, mut attr: Attr) -> Attr {
        if attr.kind == Kind::File
            && let Some(file) = self.files.get(attr.ino)
        {
            attr.size = file.peek().size;
            let times = file.times();
            attr.mtime = times.mtime;
            attr.ctime = attr.ctime.max(times.ctime);
        }
        attr
    }

    pub fn readlink(&self, ino: Ino) -> FsResult<OsString> {
        let ns = self.ns();
        let target = ns.inode(ino)?.target.as_deref().ok_or(Errno::EINVAL)?;
        Ok(target.to_owned())
    }

    /// Up to `max` entries of a directory after `cookie` (0 = from the start), without "." and "..".
    pub fn readdir(&self, dir: Ino, cookie: u64, max: usize) -> FsResult<Vec<DirEntry>> {
        self.ns().entries(dir, cookie, max)
    }

    /// The directory above a directory; the root's is itself.
    pub fn parent(&self, dir: Ino) -> FsResult<Ino> {
        Ok(self.ns().dir(dir)?.parent)
    }

    /// Whether a file is Postgres WAL: it lies in a directory named `pg_wal`.
    pub fn is_wal(&self, ino: Ino) -> bool {
        let ns = self.ns();
        ns.inode(ino)
            .and_then(|inode| ns.inode(inode.parent))
            .is_ok_and(|dir| dir.wal_dir)
    }

    /// Whether the blocks of a file are durable, as far as this view knows: then a sync has next to nothing to do.
    pub fn is_durable(&self, ino: Ino) -> bool {
        self.files.get(ino).is_none_or(|file| file.is_durable())
    }

    /// Fills `buf` from `offset`; fewer bytes only at the end of the file. Returns the bytes read.
    pub fn read(&self, ino: Ino, offset: u64, buf: &mut [u8]) -> FsResult<usize> {
        let file = self.file(ino)?;
        let read = file.shared().and_then(|content| content.read(offset, buf, Wait::Yes));
        read.map_err(|e| self.failed("read", ino, &e))
    }

    /// As [`View::read`], if that need not wait for the disk; if not, the disk may have begun to read.
    pub fn read_at_once(&self, ino: Ino, offset: u64, buf: &mut [u8]) -> FsResult<Option<usize>> {
        if self.disk.has_too_many_open() {
            return Ok(None);
        }
        let Some(file) = self.files.get(ino) else {
            return Ok(None);
        };
        let Some(content) = file.at_once() else {
            return Ok(None);
        };
        match content.read(offset, buf, Wait::No) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
            read => read.map(Some).map_err(|e| self.failed("read", ino, &e)),
        }
    }

    /// The next data or hole at or after `offset`, as lseek(2) has it: ENXIO past the end or the last data.
    pub fn seek(&self, ino: Ino, offset: u64, whence: Seek) -> FsResult<u64> {
        let file = self.file(ino)?;
        let content = file.shared().map_err(|e| self.failed("map", ino, &e))?;
        if offset >= content.size {
            return Err(Errno::ENXIO);
        }
        let found = content.seek(offset, whence);
        found.map_err(|e| self.failed("seek", ino, &e))?.ok_or(Errno::ENXIO)
    }

    /// Space and files of the filesystem that the store lies on, without the store's reserve.
    pub fn space(&self) -> FsResult<Space> {
        let space = self.room.space();
        space.map_err(|e| self.failed("statfs", Ino::ROOT, &e))
    }

    /// The regular file behind an inode number.
    pub(crate) fn file(&self, ino: Ino) -> FsResult<Arc<File>> {
        if self.disk.has_too_many_open() {
            self.close_idle();
        }
        if let Some(file) = self.files.get(ino) {
            return Ok(file);
        }
        if block_map::are_too_many() {
            self.files.evict();
        }
        self.files.get_or_load(ino, || {
            let ns = self.ns();
            let inode = ns.inode(ino)?;
            match inode.kind {
                Kind::File => Ok(self.load(ino, inode)),
                Kind::Dir => Err(Errno::EISDIR),
                _ => Err(Errno::EINVAL),
            }
        })
    }

    /// Closes what was not used for a while, in all views of the store; false where somebody is at it.
    pub(crate) fn close_idle(&self) -> bool {
        self.store.tables.close_idle(&self.disk)
    }

    fn load(&self, ino: Ino, inode: &Inode) -> File {
        File::new(ino, inode, |layer| self.backing(layer, ino))
    }

    fn backing(&self, id: LayerId, ino: Ino) -> Arc<Backing> {
        let id = self.store.sealed.body(id);
        let mut layers = self.layers.lock().unwrap_or_else(|e| e.into_inner());
        let layer = layers.entry(id).or_insert_with(|| self.store.open(id));
        layer.backing(ino, self.writable && id == self.layer())
    }

    /// Lets go of the files that some bodies had.
    pub(crate) fn renew(&self, bodies: &[LayerId]) {
        for file in self.files.all() {
            file.renew(|layer| bodies.contains(&layer).then(|| self.backing(layer, file.ino)));
        }
    }

    /// Finds blocks of a file, by chunk, in a body that has them, too, now.
    pub(crate) fn adopt(&self, ino: Ino, body: LayerId, blocks: &BTreeMap<u64, Vec<u64>>) {
        if let Some(file) = self.files.get(ino) {
            file.adopt(body, blocks);
        }
    }

    /// Inodes without a name.
    pub fn orphans(&self) -> Vec<Ino> {
        let ns = self.ns();
        let orphans = ns.inodes().filter(|(_, inode)| inode.nlink == 0);
        orphans.map(|(ino, _)| ino).collect()
    }

    /// Logs an error of the disk and says what the caller of a file operation gets.
    pub(crate) fn failed(&self, what: &str, ino: Ino, error: &io::Error) -> Errno {
        let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
        let layer = self.layer();
        FAILURES.tell(|| match errno {
            Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG => {
                tracing::warn!(%layer, %ino, %error, "{what} failed: the disk is full");
            }
            _ => tracing::error!(%layer, %ino, %error, "{what} failed"),
        });
        match errno {
            // A sealed file that is gone is damage, not a missing name.
            Errno::ENOENT => Errno::EIO,
            other => other,
        }
    }
}
