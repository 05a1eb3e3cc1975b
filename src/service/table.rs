//! Which view is mounted where: in memory for the service, on disk for the next start.
//!
//! An entry is reserved, on disk too, before anything is mounted, and forgotten after it was unmounted. So a crash
//! in between leaves either nothing or a mount that the next start finishes. A view's head can be mounted in one
//! place only: two mounts would each have the kernel keep pages that the other doesn't know to be stale.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fusefs::Mount;
use pageserver::{BranchName, LayerId};

use super::descriptors::Descriptors;
use super::detach::is_dead;
use super::memory::{Memory, Place};
use crate::api::mounts as api;
use crate::error::{Error, Result};
use crate::name::ViewName;

pub struct Table {
    memory: Arc<Memory>,
    descriptors: Arc<Descriptors>,
    entries: Mutex<Vec<Entry>>,
}

struct Entry {
    place: Place,
    state: State,
}

/// How it stands with a remembered mount.
enum State {
    /// Somebody is mounting or unmounting it.
    Changing,
    Mounted(Mount),
    /// It should be there, but isn't: why.
    Missing(String),
}

impl Table {
    /// What the last service remembered; nothing is mounted yet.
    pub fn new(memory: Arc<Memory>, descriptors: Arc<Descriptors>) -> Table {
        let entries: Vec<Entry> = memory.get().mounts.iter().cloned().map(Entry::changing).collect();
        descriptors.set_mounts(entries.len());
        Table {
            memory,
            descriptors,
            entries: Mutex::new(entries),
        }
    }

    /// Takes a place for a mount that is about to be made, also from one that is missing.
    pub fn reserve(&self, place: &Place) -> Result<()> {
        let mut entries = self.entries();
        check_free(&entries, place)?;
        let others = entries.iter().filter(|entry| !entry.excludes(place)).count();
        self.descriptors.check_mount(others)?;
        self.change(&mut entries, |entry| !entry.excludes(place), Some(place))
    }

    /// What became of a mount that was changing.
    pub fn settle(&self, dir: &Path, mounted: std::result::Result<Mount, String>) {
        if let Some(entry) = at(&mut self.entries(), dir) {
            entry.state = mounted.map_or_else(State::Missing, State::Mounted);
        }
    }

    /// Hands out the mount to be unmounted. None when it is remembered, but isn't there.
    pub fn take(&self, dir: &Path) -> Result<Option<Mount>> {
        let mut entries = self.entries();
        let entry = at(&mut entries, dir).ok_or_else(|| nothing_mounted(dir))?;
        match std::mem::replace(&mut entry.state, State::Changing) {
            State::Mounted(mount) => Ok(Some(mount)),
            State::Missing(_) => Ok(None),
            State::Changing => Err(
                Error::refused(format!("{} is being mounted or unmounted", dir.display()))
                    .hint("try again in a moment"),
            ),
        }
    }

    pub fn forget(&self, dir: &Path) -> Result<()> {
        self.keep(|entry| entry.place.dir != dir)
    }

    /// For a branch that is no more.
    pub fn forget_branch(&self, branch: &BranchName) -> Result<()> {
        self.keep(|entry| entry.place.view.branch() != branch)
    }

    /// Forgets the mounts that somebody else has unmounted. One that died is not forgotten: it is missing.
    pub fn forget_ended(&self) -> Result<()> {
        for entry in self.entries().iter_mut() {
            if entry.has_ended() && is_dead(&entry.place.dir) {
                entry.state = State::Missing("it broke down; the log says why".into());
            }
        }
        self.keep(|entry| !entry.has_ended())
    }

    fn keep(&self, wanted: impl Fn(&Entry) -> bool) -> Result<()> {
        let mut entries = self.entries();
        match entries.iter().all(&wanted) {
            true => Ok(()),
            false => self.change(&mut entries, wanted, None),
        }
    }

    /// Keeps the wanted entries and adds one that is changing: on disk first, so that a failure changes nothing.
    fn change(&self, entries: &mut Vec<Entry>, wanted: impl Fn(&Entry) -> bool, new: Option<&Place>) -> Result<()> {
        let kept = entries.iter().filter(|entry| wanted(entry)).map(|entry| &entry.place);
        let mounts = kept.chain(new).cloned().collect();
        self.memory.change(|remembered| remembered.mounts = mounts)?;
        entries.retain(wanted);
        entries.extend(new.cloned().map(Entry::changing));
        self.descriptors.set_mounts(entries.len());
        Ok(())
    }

    /// What is, or should be, mounted on the directory.
    pub fn view_at(&self, dir: &Path) -> Result<ViewName> {
        let mut entries = self.entries();
        let entry = at(&mut entries, dir).ok_or_else(|| nothing_mounted(dir))?;
        Ok(entry.place.view.clone())
    }

    /// What is mounted on a directory that this one lies in.
    pub fn mount_around(&self, dir: &Path) -> Option<ViewName> {
        let entries = self.entries();
        let above = |entry: &&Entry| entry.place.dir != dir && dir.starts_with(&entry.place.dir);
        let around = entries.iter().filter(above).find(|entry| !entry.is_missing());
        around.map(|entry| entry.place.view.clone())
    }

    /// Where the branch's head is mounted, or about to be.
    pub fn head_of(&self, branch: &BranchName) -> Option<PathBuf> {
        let view = ViewName::Head(branch.clone());
        let entries = self.entries();
        let head = entries
            .iter()
            .find(|entry| entry.place.view == view && !entry.is_missing());
        head.map(|entry| entry.place.dir.clone())
    }

    /// Whether somebody has mounted something else over the mount.
    pub fn is_covered(&self, dir: &Path) -> bool {
        let mut entries = self.entries();
        matches!(at(&mut entries, dir).map(|entry| &entry.state), Some(State::Mounted(mount)) if mount.is_covered())
    }

    /// Refuses a mount that somebody else has covered or detached.
    pub fn check_standing(&self, dir: &Path) -> Result<()> {
        let mut entries = self.entries();
        match at(&mut entries, dir).map(|entry| &entry.state) {
            Some(State::Mounted(mount)) => Ok(mount.check_standing()?),
            _ => Ok(()),
        }
    }

    /// Has the branch's mount let go of a snapshot that somebody looked into.
    pub fn release_snapshot(&self, branch: &BranchName, layer: LayerId) {
        let view = ViewName::Head(branch.clone());
        for entry in self.entries().iter().filter(|entry| entry.place.view == view) {
            if let State::Mounted(mount) = &entry.state {
                mount.release_snapshot(layer);
            }
        }
    }

    pub fn places(&self) -> Vec<Place> {
        self.entries().iter().map(|entry| entry.place.clone()).collect()
    }

    /// Where something is mounted right now, in the order it was.
    pub fn mounted_dirs(&self) -> Vec<PathBuf> {
        let entries = self.entries();
        let mounted = entries.iter().filter(|entry| matches!(entry.state, State::Mounted(_)));
        mounted.map(|entry| entry.place.dir.clone()).collect()
    }

    pub fn list(&self) -> Vec<api::Mount> {
        self.entries().iter().map(described).collect()
    }

    fn entries(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn at<'a>(entries: &'a mut [Entry], dir: &Path) -> Option<&'a mut Entry> {
    entries.iter_mut().find(|entry| entry.place.dir == dir)
}

fn check_free(entries: &[Entry], wanted: &Place) -> Result<()> {
    let taken = entries
        .iter()
        .find(|entry| entry.excludes(wanted) && !entry.is_missing());
    let Some(Entry { place, .. }) = taken else {
        return Ok(());
    };
    let dir = place.dir.display();
    let hint = match (place.dir == wanted.dir, place.view == wanted.view) {
        (true, true) => format!("it is there already; `zenith umount {dir}` takes it away"),
        (true, false) => format!("`zenith umount {dir}` first, or take another directory"),
        (false, _) => format!("`zenith umount {dir}` first, or mount a copy with --cow NEWBRANCH"),
    };
    Err(Error::refused(format!("{} is mounted on {dir}", place.view)).hint(hint))
}

impl Entry {
    fn changing(place: Place) -> Entry {
        let state = State::Changing;
        Entry { place, state }
    }

    fn excludes(&self, other: &Place) -> bool {
        let same_head = matches!(other.view, ViewName::Head(_)) && self.place.view == other.view;
        same_head || self.place.dir == other.dir
    }

    fn is_missing(&self) -> bool {
        matches!(self.state, State::Missing(_))
    }

    fn has_ended(&self) -> bool {
        matches!(&self.state, State::Mounted(mount) if mount.has_ended())
    }
}

fn described(entry: &Entry) -> api::Mount {
    api::Mount {
        view: entry.place.view.clone(),
        dir: entry.place.dir.clone(),
        writable: matches!(entry.place.view, ViewName::Head(_)),
        new_branch: false,
        error: match &entry.state {
            State::Mounted(_) => None,
            State::Changing => Some("it is being mounted or unmounted".into()),
            State::Missing(why) => Some(why.clone()),
        },
    }
}

fn nothing_mounted(dir: &Path) -> Error {
    Error::not_found(format!("nothing of this store is mounted on {}", dir.display()))
        .hint("`zenith status` lists the mounts")
}
