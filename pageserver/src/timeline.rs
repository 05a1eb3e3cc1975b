//! One line of history with exactly one writable head.
//!
//! ```text
//!   write   ── epoch shared ──> head's backing file                      (in the kernel's hands, then answered)
//!   rename  ── epoch shared ──> database ──> namespace in memory         (in the kernel's hands, then answered)
//!   fsync   ── no epoch ──────> sync of the file's backing files, of the database's log
//!   seal    ── epoch alone ───> swap heads; sync the sealed layer with the epoch free again
//! ```
//!
//! Locks, in the order in which they are taken: epoch, closing (never waited for), a file's content, a shard of the table of files, namespace. A file's content
//! and the namespace are never waited for with the other held, except by a seal, when nobody changes either.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard};

use nix::errno::Errno;
use rocksdb::WriteBatch;

use crate::answers;
use crate::error::{Error, FsResult, Result};
use crate::file::File;
use crate::layer::Layer;
use crate::load::LoadedHead;
use crate::names::BranchName;
use crate::namespace::ops::{self, Outcome, Place};
use crate::namespace::{Change, Inode, Namespace, PartRef, codec};
use crate::shared::Shared;
use crate::sync_point::is_disk_failure;
use crate::types::*;
use crate::view::View;
use crate::write::Target;

const COPY_CHUNK: usize = 256 * 1024;

pub struct Timeline {
    pub(crate) id: TimelineId,
    name: BranchName,
    shared: Arc<Shared>,
    view: View,
    /// The epoch lock.
    head: RwLock<Head>,
    /// Sealed layers that are not known to be durable.
    sealing: Mutex<Vec<Arc<Layer>>>,
    /// A write or a sync failed: nothing is durable any more until the timeline is loaded again.
    poisoned: AtomicBool,
    /// What the store had lost when this was loaded.
    losses: u64,
}

/// What a change of names was about, as its result tells.
trait Subject {
    fn ino(&self) -> Ino;
}

impl Subject for Attr {
    fn ino(&self) -> Ino {
        self.ino
    }
}

/// Nothing needs to be told of what was replaced.
impl Subject for Option<Attr> {
    fn ino(&self) -> Ino {
        Ino(0)
    }
}

impl Subject for () {
    fn ino(&self) -> Ino {
        Ino(0)
    }
}

struct Head {
    layer: Arc<Layer>,
    /// The parent's namespace.
    below: Namespace,
    /// Anything at all was changed since the last seal.
    changed: AtomicBool,
    /// Files that differ from what the namespace says.
    touched: Mutex<HashMap<Ino, Arc<File>>>,
    /// Held by who closes files. The namespace is told what files have become by one at a time, so that it ends with what they became last: by who
    /// holds this, or the epoch alone.
    closing: Mutex<()>,
}

impl Head {
    fn touch(&self, file: &Arc<File>) {
        if !file.touched.swap(true, Ordering::AcqRel) {
            self.changed.store(true, Ordering::Release);
            self.touched().insert(file.ino, file.clone());
        }
    }

    fn touched(&self) -> MutexGuard<'_, HashMap<Ino, Arc<File>>> {
        self.touched.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn target(&self, ino: Ino) -> Target<'_> {
        Target {
            ino,
            layer: &self.layer,
        }
    }
}

impl Timeline {
    pub(crate) fn new(
        id: TimelineId,
        name: BranchName,
        shared: Arc<Shared>,
        layer: LayerId,
        loaded: LoadedHead,
        poisoned: bool,
    ) -> Timeline {
        let layer = shared.layers.open(layer);
        Timeline {
            id,
            name,
            losses: shared.losses(),
            view: View::head(&shared, layer.clone(), loaded.ns),
            shared,
            head: RwLock::new(Head {
                layer,
                below: loaded.below,
                changed: AtomicBool::new(loaded.changed),
                touched: Mutex::default(),
                closing: Mutex::default(),
            }),
            sealing: Mutex::default(),
            poisoned: AtomicBool::new(poisoned),
        }
    }

    pub fn view(&self) -> &View {
        &self.view
    }

    /// The timeline's human name.
    pub fn branch(&self) -> BranchName {
        self.name.clone()
    }

    fn head(&self) -> RwLockReadGuard<'_, Head> {
        self.head.read().unwrap_or_else(|e| e.into_inner())
    }

    // Names and attributes

    /// Makes a change of the namespace: worked out, written to the database, applied.
    fn mutate<T: Subject>(
        &self,
        request: &Request,
        op: impl FnOnce(&Namespace) -> FsResult<Outcome<T>>,
    ) -> FsResult<T> {
        let head = self.head();
        let mut ns = self.view.ns_mut();
        let Outcome { changes, result } = op(&ns)?;
        if changes.is_empty() {
            return Ok(result);
        }
        let mut batch = WriteBatch::default();
        codec::put_changes(&self.shared.db, &mut batch, head.layer.id, &head.below, &changes);
        answers::put(&self.shared.db, &mut batch, self.id, request, result.ino());
        self.shared.db.write(batch).map_err(|e| self.db_failed(&e))?;
        answers::kept(request);
        changes.into_iter().for_each(|change| ns.apply(change));
        head.changed.store(true, Ordering::Release);
        Ok(result)
    }

    /// What a request that comes again was about, when its change has been made: it must not be made twice.
    pub fn answer(&self, request: &Request) -> FsResult<Option<Ino>> {
        answers::get(&self.shared.db, self.id, request).map_err(|e| self.db_failed(&e))
    }

    /// Forgets the results of requests: those of the mount that begins or ends can't come again.
    pub fn forget_answers(&self) -> Result<()> {
        let mut batch = WriteBatch::default();
        match answers::delete_all(&self.shared.db, &mut batch, self.id)? {
            true => self.shared.db.write(batch),
            false => Ok(()),
        }
    }

    pub fn create<'r>(
        &self,
        parent: Ino,
        name: &OsStr,
        node: NewNode,
        request: impl Into<Request<'r>>,
    ) -> FsResult<Attr> {
        let request = request.into();
        self.take_room_for_name(parent)?;
        let ino = self.shared.new_ino().map_err(|e| self.db_failed(&e))?;
        self.mutate(&request, |ns| {
            ops::create(ns, Place { parent, name }, ino, node, request.now)
        })
    }

    pub fn link<'r>(&self, ino: Ino, parent: Ino, name: &OsStr, request: impl Into<Request<'r>>) -> FsResult<Attr> {
        let request = request.into();
        self.take_room_for_name(parent)?;
        let attr = self.mutate(&request, |ns| ops::link(ns, ino, Place { parent, name }, request.now))?;
        Ok(self.view.current(attr))
    }

    /// Only names that come ask for room. Those that go or move pass on a full disk too, out of the reserve.
    fn take_room_for_name(&self, parent: Ino) -> FsResult<()> {
        let taken = self.shared.room.take(BLOCK);
        taken.map_err(|e| self.failed("make a name in", parent, &e))
    }

    /// Returns the inode that lost a name; without any it lives on until [`Timeline::forget`].
    pub fn unlink<'r>(&self, parent: Ino, name: &OsStr, request: impl Into<Request<'r>>) -> FsResult<Attr> {
        let request = request.into();
        self.mutate(&request, |ns| ops::unlink(ns, Place { parent, name }, request.now))
    }

    /// Returns the directory that is gone.
    pub fn rmdir<'r>(&self, parent: Ino, name: &OsStr, request: impl Into<Request<'r>>) -> FsResult<Attr> {
        let request = request.into();
        self.mutate(&request, |ns| ops::rmdir(ns, Place { parent, name }, request.now))
    }

    /// Returns the inode that was replaced, if any.
    pub fn rename<'r>(
        &self,
        parent: Ino,
        name: &OsStr,
        new_parent: Ino,
        new_name: &OsStr,
        how: Rename,
        request: impl Into<Request<'r>>,
    ) -> FsResult<Option<Attr>> {
        let request = request.into();
        let to = Place {
            parent: new_parent,
            name: new_name,
        };
        self.mutate(&request, |ns| {
            ops::rename(ns, Place { parent, name }, to, how, request.now)
        })
    }

    pub fn setattr(&self, ino: Ino, set: SetAttr, now: Time) -> FsResult<Attr> {
        if let Some(size) = set.size {
            checked_end(size, 0)?;
            self.resize(ino, |_| size, now)?;
        }
        let in_record = set.mode.is_some() || set.uid.is_some() || set.gid.is_some() || set.atime.is_some();
        let in_blocks = match set.mtime {
            Some(mtime) => self.set_mtime_of_blocks(ino, mtime, now)?,
            None => true,
        };
        if in_record || !in_blocks {
            self.mutate(&now.into(), |ns| ops::set_attr(ns, ino, &set, now))?;
        }
        self.view.getattr(ino)
    }

    /// Sets the time of modification of a file in use; true when it has blocks in the head, whose backing file keeps it.
    fn set_mtime_of_blocks(&self, ino: Ino, mtime: Time, now: Time) -> FsResult<bool> {
        if self.view.getattr(ino)?.kind != Kind::File {
            return Ok(false);
        }
        let head = self.head();
        let file = self.view.file(ino)?;
        let content = file.peek();
        let backing = content.head(head.layer.id);
        if let Some(backing) = backing {
            let set = backing.file().and_then(|f| backing.disk().set_mtime(&f, mtime));
            set.map_err(|e| self.failed("set the time of", ino, &e))?;
        }
        *file.times() = crate::file::FileTimes { mtime, ctime: now };
        head.touch(&file);
        Ok(backing.is_some())
    }

    // Blocks

    /// Writes all of `data`, growing the file where it must. `now` is `None` where the kernel keeps the times.
    pub fn write(&self, ino: Ino, offset: u64, data: &[u8], now: Option<Time>) -> FsResult<usize> {
        let end = checked_end(offset, data.len() as u64)?;
        let file = self.file(ino)?;
        let head = self.head();
        self.write_blocks(&head, &file, offset..end, data).map_err(|e| {
            let errno = self.failed("write", ino, &e);
            // Whoever wrote it was answered long ago, and the kernel tells of its loss once: no later sync may be taken for true.
            if now.is_none() && !matches!(errno, Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG) {
                self.poison();
            }
            errno
        })?;
        file.modified(now);
        if now.is_some() {
            head.touch(&file);
        }
        Ok(data.len())
    }

    fn write_blocks(&self, head: &Head, file: &Arc<File>, bytes: std::ops::Range<u64>, data: &[u8]) -> io::Result<()> {
        let room = self.shared.room.take(data.len() as u64);
        let content = file.shared()?;
        if content.can_overwrite(head.layer.id, bytes.clone()) {
            if let Err(full) = room
                && !content.is_in_place(bytes.clone())?
            {
                return Err(full);
            }
            return content.overwrite(data, bytes.start);
        }
        drop(content);
        room?;
        let mut content = file.alone()?;
        head.touch(file);
        content.write(head.target(file.ino), data, bytes.start)
    }

    /// Has the disk start on bytes that were written, without waiting for it, so that a sync or a seal that comes
    /// later waits for less.
    pub fn write_out(&self, ino: Ino, offset: u64, len: u64) -> FsResult<()> {
        let end = checked_end(offset, len)?;
        let Some(file) = self.view.files.get(ino) else {
            return Ok(());
        };
        let newest = file.peek().parts.last().map(|part| part.backing.clone());
        let started = newest.map_or(Ok(()), |backing| backing.start_sync(offset..end));
        started.map_err(|e| self.failed("write out", ino, &e))
    }

    /// Gives the file the size that is `wanted` instead of the one it has.
    fn resize(&self, ino: Ino, wanted: impl FnOnce(u64) -> u64, now: Time) -> FsResult<()> {
        let file = self.file(ino)?;
        let head = self.head();
        let resized = file.alone().and_then(|mut content| {
            let size = wanted(content.size);
            head.touch(&file);
            content.set_size(head.target(ino), size)
        });
        resized.map_err(|e| self.failed("resize", ino, &e))?;
        file.modified(Some(now));
        Ok(())
    }

    pub fn fallocate(&self, ino: Ino, how: Fallocate, offset: u64, len: u64, now: Time) -> FsResult<()> {
        let end = checked_end(offset, len)?;
        match how {
            Fallocate::Extend | Fallocate::KeepSize => self.check_room(len)?,
            Fallocate::PunchHole | Fallocate::ZeroRange { .. } => self.zero(ino, offset..end, now)?,
        }
        let grows = matches!(how, Fallocate::Extend | Fallocate::ZeroRange { keep_size: false });
        if grows && end > self.view.getattr(ino)?.size {
            // A write beside this may have made it longer meanwhile.
            self.resize(ino, |size| size.max(end), now)?;
        }
        Ok(())
    }

    /// Nothing is set aside, for blocks that are allocated but unwritten could not be told from holes after a power cut.
    fn check_room(&self, len: u64) -> FsResult<()> {
        match self.view.space()?.available {
            available if available < len => Err(Errno::ENOSPC),
            _ => Ok(()),
        }
    }

    fn zero(&self, ino: Ino, bytes: std::ops::Range<u64>, now: Time) -> FsResult<()> {
        let file = self.file(ino)?;
        let head = self.head();
        let zeroed = file.alone().and_then(|mut content| {
            head.touch(&file);
            if content.parts.len() > 1 {
                self.shared
                    .room
                    .take(content.size.min(bytes.end).saturating_sub(bytes.start))?;
            }
            content.zero(head.target(ino), bytes)
        });
        zeroed.map_err(|e| self.failed("punch", ino, &e))?;
        file.modified(Some(now));
        Ok(())
    }

    /// Copies bytes between files; returns how many, fewer only at the end of the source.
    pub fn copy_range(
        &self,
        from: Ino,
        from_offset: u64,
        to: Ino,
        to_offset: u64,
        len: u64,
        now: Time,
    ) -> FsResult<usize> {
        checked_end(from_offset, len)?;
        checked_end(to_offset, len)?;
        let mut buf = vec![0; COPY_CHUNK.min(len as usize)];
        let mut done = 0;
        while done < len {
            let want = buf.len().min((len - done) as usize);
            let got = self.view.read(from, from_offset + done, &mut buf[..want])?;
            if got == 0 {
                break;
            }
            self.write(to, to_offset + done, &buf[..got], Some(now))?;
            done += got as u64;
        }
        Ok(done as usize)
    }

    /// The regular file behind an inode number; makes room among the open files first.
    fn file(&self, ino: Ino) -> FsResult<Arc<File>> {
        if self.shared.disk.has_too_many_unsynced() {
            self.close_some();
        }
        self.view.file(ino)
    }

    /// Closes files that were not used for a while; those with unsynced bytes are synced for it. Who finds somebody at it goes on.
    fn close_some(&self) {
        let head = self.head();
        let Ok(_closing) = head.closing.try_lock() else {
            return;
        };
        self.fold(&head);
        self.view.close_idle();
        if self.shared.disk.is_crowded() && !self.is_poisoned() {
            if let Err(e) = self.sync_layer(&head.layer) {
                self.failed("sync before closing", Ino::ROOT, &e);
                self.poison_after(&e);
            }
            self.view.close_idle();
        }
        self.shared.disk.has_synced_and_closed();
    }

    // Durability

    /// Makes a file's bytes, and every change of names and attributes so far, durable. Free when they are.
    pub fn fsync(&self, ino: Ino) -> FsResult<()> {
        if self.is_poisoned() {
            return Err(Errno::EIO);
        }
        let data = self.view.files.get(ino).map_or(Ok(()), |file| file.sync());
        self.shared.settle().and(data).map_err(|e| {
            self.poison_after(&e);
            self.failed("sync", ino, &e)
        })?;
        // Somebody else's sync may have heard of the loss.
        if self.is_poisoned() {
            return Err(Errno::EIO);
        }
        self.sync_db().map_err(|e| self.db_failed(&e))
    }

    fn sync_db(&self) -> Result<()> {
        self.shared.db.sync().map_err(Error::io("sync the store's database"))
    }

    /// Makes everything durable, as an unmount does.
    pub fn sync_all(&self) -> Result<()> {
        self.sync_sealed()?;
        let layer = self.head().layer.clone();
        self.sync_layer(&layer).map_err(|e| self.sync_failed(&layer, e))?;
        self.check_poisoned()?;
        self.sync_db().inspect_err(|e| {
            self.db_failed(e);
        })?;
        self.shared.tidy();
        Ok(())
    }

    /// Makes the blocks of all sealed layers durable; what the database knows of them is for the caller to sync.
    pub(crate) fn sync_sealed(&self) -> Result<()> {
        self.check_poisoned()?;
        self.settle()?;
        let sealing = self.sealing().clone();
        for layer in &sealing {
            self.sync_layer(layer).map_err(|e| self.sync_failed(layer, e))?;
            self.sealing().retain(|other| other.id != layer.id);
        }
        // Somebody else's sync may have heard of a loss.
        self.check_poisoned()
    }

    fn sync_layer(&self, layer: &Layer) -> io::Result<()> {
        layer.sync(|| self.shared.sync_filesystem())
    }

    fn settle(&self) -> Result<()> {
        self.shared.settle().map_err(|e| {
            self.poison_after(&e);
            Error::io("sync what an earlier life of the store has written")(e)
        })?;
        self.check_poisoned()
    }

    /// Whether the next sync of anything has also to make durable what nobody knows of any more, which can take long.
    pub fn is_settled(&self) -> bool {
        self.shared.is_settled()
    }

    /// Whether a change of names would have to wait for the disk just now.
    pub fn holds_up_changes(&self) -> bool {
        self.shared.db.is_syncing()
    }

    fn sync_failed(&self, layer: &Layer, error: io::Error) -> Error {
        self.poison_after(&error);
        Error::io(format!("sync layer {}", layer.id))(error)
    }

    /// Whether a layer is still being made durable.
    pub(crate) fn is_sealing(&self, layer: LayerId) -> bool {
        self.sealing().iter().any(|sealing| sealing.id == layer)
    }

    fn sealing(&self) -> MutexGuard<'_, Vec<Arc<Layer>>> {
        self.sealing.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn is_poisoned(&self) -> bool {
        self.poisoned.load(Ordering::Acquire) || self.losses != self.shared.losses()
    }

    pub(crate) fn check_poisoned(&self) -> Result<()> {
        match self.is_poisoned() {
            true => Err(Error::Poisoned {
                branch: self.name.to_string(),
            }),
            false => Ok(()),
        }
    }

    /// Takes no sync for true any more, after an error that can mean that bytes were lost.
    fn poison_after(&self, error: &io::Error) {
        if is_disk_failure(error) {
            self.poison();
        }
    }

    fn poison(&self) {
        if !self.poisoned.swap(true, Ordering::AcqRel) {
            self.shared.poisoned.set(self.id);
            tracing::error!(branch = %self.name, "a write to disk failed: every sync fails until the branch is mounted anew");
        }
    }

    fn failed(&self, what: &str, ino: Ino, error: &io::Error) -> Errno {
        let errno = self.view.failed(what, ino, error);
        if errno == Errno::EIO {
            self.poison_after(error);
        }
        errno
    }

    /// Logs an error of the database. For lack of room it has lost nothing; after any other, what it has is not known.
    fn db_failed(&self, error: &Error) -> Errno {
        tracing::error!(branch = %self.name, %error, "the store's database failed");
        if error.is_full() {
            return Errno::ENOSPC;
        }
        self.poison();
        Errno::EIO
    }

    // Life and death

    /// The kernel holds the inode no longer: without a name it ends now.
    pub fn forget(&self, ino: Ino) {
        let Ok(inode) = self.view.ns().inode(ino).cloned() else {
            return;
        };
        if inode.nlink > 0 {
            return;
        }
        let layer = self.drop_inode(ino);
        self.view.files.remove(ino);
        if let Some(layer) = layer.filter(|_| inode.kind == Kind::File) {
            self.shared.doom(layer, ino);
        }
    }

    /// Ends an inode, if the database can; else it ends when the timeline is loaded again, and its blocks with it. Returns the head's layer, in
    /// which it may have blocks.
    fn drop_inode(&self, ino: Ino) -> Option<Arc<Layer>> {
        let head = self.head();
        head.touched().remove(&ino);
        let mut ns = self.view.ns_mut();
        if let Some(change) = ops::drop_orphan(&ns, ino) {
            let mut batch = WriteBatch::default();
            let changes = [change];
            codec::put_changes(&self.shared.db, &mut batch, head.layer.id, &head.below, &changes);
            if let Err(e) = self.shared.db.write(batch) {
                self.db_failed(&e);
                return None;
            }
            changes.into_iter().for_each(|change| ns.apply(change));
        }
        Some(head.layer.clone())
    }

    /// Whether nothing was changed since the last seal.
    pub(crate) fn is_unchanged(&self) -> bool {
        !self.head().changed.load(Ordering::Acquire)
    }

    /// Ends the head and puts `next` on top. `commit` makes that known to the database while no change is under way;
    /// what it returns is returned.
    /// The sealed layer, whose number is returned, is not durable yet: see [`Timeline::sync_sealed`].
    pub(crate) fn seal<T>(&self, next: Arc<Layer>, commit: impl FnOnce() -> Result<T>) -> Result<(LayerId, T)> {
        self.check_poisoned()?;
        let mut head = self.head.write().unwrap_or_else(|e| e.into_inner());
        self.fold(&head);
        let committed = commit()?;
        self.shared.disk.at("seal: committed");
        let frozen = self.view.ns().clone();
        self.shared.keep_namespace(head.layer.id, frozen.clone());
        self.view.put_on_top(next.clone());
        let sealed = std::mem::replace(
            &mut *head,
            Head {
                layer: next,
                below: frozen,
                changed: AtomicBool::new(false),
                touched: Mutex::default(),
                closing: Mutex::default(),
            },
        );
        let id = sealed.layer.id;
        self.sealing().push(sealed.layer);
        Ok((id, committed))
    }

    /// Tells the namespace what touched files have become. See [`Head::closing`].
    fn fold(&self, head: &Head) {
        let touched = std::mem::take(&mut *head.touched());
        if touched.is_empty() {
            return;
        }
        let folded: Vec<_> = touched
            .values()
            .map(|file| {
                file.touched.store(false, Ordering::Release);
                (file.ino, FileState::of(file))
            })
            .collect();
        self.shared.disk.at("fold: collected");
        let mut ns = self.view.ns_mut();
        for (ino, state) in folded {
            if let Ok(inode) = ns.inode(ino) {
                let inode = state.into_inode(inode);
                ns.apply(Change::SetInode(ino, inode));
            }
        }
    }
}

/// What a file has become, taken while nobody holds the namespace.
struct FileState {
    size: u64,
    times: crate::file::FileTimes,
    parts: Vec<PartRef>,
}

impl FileState {
    fn of(file: &File) -> FileState {
        let content = file.peek();
        FileState {
            size: content.size,
            times: *file.times(),
            parts: content
                .parts
                .iter()
                .map(|part| PartRef {
                    layer: part.backing.layer(),
                    floor: part.floor,
                })
                .collect(),
        }
    }

    fn into_inode(self, inode: &Inode) -> Inode {
        let mut inode = inode.clone();
        inode.size = self.size;
        inode.mtime = self.times.mtime;
        inode.ctime = inode.ctime.max(self.times.ctime);
        inode.parts = merged(inode.parts, &self.parts);
        inode
    }
}

/// The inode's parts brought up to the file's, sharing with older namespaces what has not changed.
fn merged(mut parts: imbl::Vector<PartRef>, now: &[PartRef]) -> imbl::Vector<PartRef> {
    let common = parts.iter().zip(now).take_while(|(a, b)| a == b).count();
    parts.truncate(common);
    parts.extend(now[common..].iter().copied());
    parts
}

/// The end of a range of bytes, where a file can reach so far.
fn checked_end(offset: u64, len: u64) -> FsResult<u64> {
    match offset.checked_add(len) {
        Some(end) if end <= FILE_SIZE_MAX => Ok(end),
        _ => Err(Errno::EFBIG),
    }
}

impl Drop for Timeline {
    /// Who held it may not have synced it: then the store does, with the next sync of whatever is in it.
    fn drop(&mut self) {
        if !self.view.is_all_durable() {
            self.shared.unsettle();
        }
        self.view.let_go();
    }
}
