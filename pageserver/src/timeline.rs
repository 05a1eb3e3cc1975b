//! One line of history with exactly one writable head.
//!
//! ```text
//!   write   ── epoch shared ──> head's backing file                      (in the kernel's hands, then answered)
//!   rename  ── epoch shared ──> database ──> namespace in memory         (in the kernel's hands, then answered)
//!   fsync   ── no epoch ──────> sync of the file's backing files, of the database's log
//!   seal    ── epoch alone ───> swap heads; sync the sealed layer with the epoch free again
//! ```
//!
//! Locks, in the order in which they are taken: closing (never waited for), epoch, a file's content, a shard of the table of files, namespace. A file's content
//! and the namespace are never waited for with the other held, except by a seal, when nobody changes either.

mod blocks;
mod durability;
mod names;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard};

use rocksdb::WriteBatch;

use crate::error::Result;
use crate::file::{File, FileTimes};
use crate::layer::Layer;
use crate::load::LoadedHead;
use crate::names::BranchName;
use crate::namespace::ops;
use crate::namespace::{Change, Inode, Namespace, PartRef, codec};
use crate::shared::Shared;
use crate::types::*;
use crate::view::View;
use crate::write::Target;

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
    /// Held by who closes files. The namespace is told what files have become by one at a time, so that it ends with what they became last: by who
    /// holds this, or the epoch alone.
    closing: Mutex<()>,
    /// How many files were touched when the upkeep last looked.
    touched_before: AtomicUsize,
    /// What the store had lost when this was loaded.
    losses: u64,
}

struct Head {
    layer: Arc<Layer>,
    /// The parent's namespace.
    below: Namespace,
    /// Anything at all was changed since the last seal.
    changed: AtomicBool,
    /// Files that differ from what the namespace says.
    touched: Mutex<HashMap<Ino, Arc<File>>>,
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
            }),
            sealing: Mutex::default(),
            poisoned: AtomicBool::new(poisoned),
            closing: Mutex::default(),
            touched_before: AtomicUsize::new(0),
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
            },
        );
        let id = sealed.layer.id;
        self.sealing().push(sealed.layer);
        Ok((id, committed))
    }

    /// Tells the namespace what touched files have become. See [`Timeline::closing`].
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
    times: FileTimes,
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

impl Drop for Timeline {
    /// Who held it may not have synced it: then the store does, with the next sync of whatever is in it.
    fn drop(&mut self) {
        if !self.view.is_all_durable() {
            self.shared.unsettle();
        }
        self.view.let_go();
    }
}
