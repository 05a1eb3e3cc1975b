//! A store in a directory of its own, and files in it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pageserver::*;

/// Goes with what is in it.
pub struct Scratch {
    pub dir: PathBuf,
}

impl Scratch {
    pub fn new(name: &str) -> Scratch {
        let unique = format!("{name}-{}-{:?}", std::process::id(), std::thread::current().id());
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(unique);
        let _ = std::fs::remove_dir_all(&dir);
        Store::create(&dir, Disk::new()).expect("a store");
        Scratch { dir }
    }

    pub fn open(&self, disk: Disk) -> Arc<Store> {
        Store::open(&self.dir, disk).expect("opens")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

pub fn a_file() -> NewNode {
    NewNode {
        kind: NewKind::File,
        mode: 0o600,
        uid: 1,
        gid: 1,
    }
}

/// A file at the root, made unless it is there.
pub fn file(timeline: &Timeline, name: &str, now: Time) -> Ino {
    let name = OsStr::new(name);
    match timeline.view().lookup(Ino::ROOT, name) {
        Ok(attr) => attr.ino,
        Err(_) => timeline.create(Ino::ROOT, name, a_file(), now).expect("made").ino,
    }
}
