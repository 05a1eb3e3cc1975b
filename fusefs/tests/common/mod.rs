//! A scratch store with one branch, and a mount of it, as the tests of this crate need them.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use fusefs::{Fs, Keeping, Mount, Options, Snapshots};
use nix::errno::Errno;
use nix::unistd::{getegid, geteuid};
use pageserver::{
    BranchName, Disk, Error, Keep, LayerId, SnapshotInfo, SnapshotName, Start, Store, Tag, Time, Timeline, View,
};

/// A moment that no clock shows.
pub const NOW: Time = Time { secs: 1000, nanos: 5 };

/// A store in the build directory with the branch `main`. Whatever uses it must be declared after it.
pub struct Scratch {
    pub store: Arc<Store>,
    dir: ScratchDir,
}

/// Goes away after the store in it.
struct ScratchDir(PathBuf);

impl Drop for ScratchDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Scratch {
    /// The branch's root belongs to `owner`.
    pub fn new(test: &str, owner: (u32, u32)) -> Scratch {
        Scratch::on(Disk::new(), test, owner)
    }

    pub fn on(disk: Disk, test: &str, owner: (u32, u32)) -> Scratch {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fusefs-{test}"));
        let _ = fs::remove_dir_all(&dir);
        Store::create(&dir, Disk::new()).expect("a new store");
        let dir = ScratchDir(dir);
        let store = Store::open(&dir.0, disk).expect("the store opens");
        store
            .create_branch(&main(), &Start::Empty, owner, NOW)
            .expect("a new branch");
        Scratch { store, dir }
    }

    /// Closes the store and opens it again.
    pub fn reopen(self) -> Scratch {
        let dir = self.dir;
        drop(self.store);
        let store = Store::open(&dir.0, Disk::new()).expect("the store opens again");
        Scratch { store, dir }
    }

    /// Closes the store and leaves it to the caller.
    pub fn keep(self) -> PathBuf {
        let path = self.dir.0.clone();
        std::mem::forget(self.dir);
        path
    }

    pub fn timeline(&self) -> Arc<Timeline> {
        self.store.timeline(&main()).expect("the branch exists")
    }

    pub fn head(&self) -> Fs {
        Fs::of_branch(self.timeline(), Box::new(Hidden(self.store.clone())))
    }

    /// The head as a process has it that takes a mount over.
    pub fn resumed_head(&self) -> Fs {
        let timeline = self.store.resumed_timeline(&main()).expect("the branch exists");
        Fs::of_branch(timeline, Box::new(Hidden(self.store.clone())))
    }

    pub fn take(&self, tag: &str) -> SnapshotInfo {
        self.store
            .create_snapshot(&snapshot(tag), Keep::default(), NOW)
            .expect("a snapshot")
    }
}

/// A mount for one test. The mount point lies where every user can get to.
pub struct Mounted {
    pub mount: Mount,
    ended: mpsc::Receiver<()>,
    pub dir: PathBuf,
}

impl Mounted {
    pub fn new(test: &str, served: Fs) -> Mounted {
        let dir = std::env::temp_dir().join(format!("zenith-{test}-{}", std::process::id()));
        fs::create_dir(&dir).expect("a mount point");
        let (end, ended) = mpsc::channel();
        let on_end = move || {
            let _ = end.send(());
        };
        let mount = Mount::new(served, &dir, &Options::new(test), Keeping::none(), on_end);
        let mount = mount.unwrap_or_else(|error| panic!("{error}; {:?}", error.hint()));
        Mounted { mount, ended, dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).expect(name);
        path
    }

    pub fn tag(&self, tag: &str) -> PathBuf {
        self.path(".zenith/snapshot").join(tag)
    }

    pub fn has_ended(&self) -> bool {
        self.ended.recv_timeout(Duration::from_secs(5)).is_ok()
    }
}

impl Drop for Mounted {
    /// Nothing is left behind, also of a test that failed.
    fn drop(&mut self) {
        if self.mount.unmount().is_err() {
            let _ = Command::new("umount").arg("-l").arg(&self.dir).status();
        }
        let _ = fs::remove_dir(&self.dir);
    }
}

pub fn owner() -> (u32, u32) {
    (geteuid().as_raw(), getegid().as_raw())
}

pub fn errno<T>(result: io::Result<T>) -> Option<Errno> {
    result.err().and_then(|error| error.raw_os_error()).map(Errno::from_raw)
}

pub fn hidden(store: &Arc<Store>) -> Box<dyn Snapshots> {
    Box::new(Hidden(store.clone()))
}

pub fn main() -> BranchName {
    "main".parse().expect("a good name")
}

pub fn snapshot(tag: &str) -> SnapshotName {
    format!("main@{tag}").parse().expect("a good name")
}

pub fn os(name: &str) -> &OsStr {
    OsStr::new(name)
}

/// The snapshots of `main`.
struct Hidden(Arc<Store>);

impl Snapshots for Hidden {
    fn list(&self) -> Vec<SnapshotInfo> {
        self.0.snapshots(Some(&main()))
    }

    fn find(&self, tag: &Tag) -> Option<LayerId> {
        self.0.find_snapshot(&snapshot(tag.as_str()))
    }

    fn has(&self, layer: LayerId) -> bool {
        self.0.is_snapshot_of(&main(), layer)
    }

    fn view(&self, layer: LayerId) -> Result<Arc<View>, Error> {
        self.0.sealed_view(layer)
    }

    fn take(&self, tag: &Tag, now: Time) -> Result<SnapshotInfo, Error> {
        self.0.create_snapshot(&snapshot(tag.as_str()), Keep::default(), now)
    }

    fn destroy(&self, tag: &Tag) -> Result<(), Error> {
        self.0.destroy_snapshot(&snapshot(tag.as_str()))
    }
}
