//! What the upkeep of a store does among those who use it: what it must not take from them, and what it must not be kept from.

#[path = "support/store.rs"]
mod store;

use std::ffi::OsStr;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::thread;
use std::time::Duration;

use pageserver::*;
use store::Scratch;

const MIB: usize = 1 << 20;

fn at(secs: i64) -> Time {
    Time { secs, nanos: 5 }
}

fn snapshot(tag: &str) -> SnapshotName {
    format!("main@{tag}").parse().expect("a name")
}

fn main() -> BranchName {
    "main".parse().expect("a name")
}

/// A store with the branch `main`.
struct World {
    store: Arc<Store>,
    timeline: Arc<Timeline>,
    scratch: Scratch,
}

impl World {
    fn new(name: &str, disk: Disk) -> World {
        let scratch = Scratch::new(&format!("upkeep-{name}"));
        let store = scratch.open(disk);
        store
            .create_branch(&main(), &Start::Empty, (0, 0), at(1))
            .expect("a branch");
        let timeline = store.timeline(&main()).expect("loads");
        World {
            store,
            timeline,
            scratch,
        }
    }

    fn write(&self, name: &str, byte: u8, len: usize) -> Ino {
        let ino = store::file(&self.timeline, name, at(2));
        self.timeline
            .write(ino, 0, &vec![byte; len], Some(at(2)))
            .expect("written");
        ino
    }

    fn take(&self, tag: &str) -> LayerId {
        let taken = self.store.create_snapshot(&snapshot(tag), Keep::default(), at(3));
        taken.expect("taken").layer
    }

    fn first_byte(&self, tag: &str, name: &str) -> u8 {
        let view = self.store.snapshot_view(&snapshot(tag)).expect("loads");
        let ino = view.lookup(Ino::ROOT, OsStr::new(name)).expect("there").ino;
        let mut byte = [0];
        view.read(ino, 0, &mut byte).expect("readable");
        byte[0]
    }

    fn tend(&self) -> Result<()> {
        tend(&self.store, &Tending::default())
    }

    fn reopen(self) -> World {
        let scratch = self.scratch;
        drop((self.timeline, self.store));
        let store = scratch.open(Disk::new());
        let timeline = store.timeline(&main()).expect("loads");
        World {
            store,
            timeline,
            scratch,
        }
    }

    /// The backing files of an inode in all layers.
    fn backing_files(&self, ino: Ino) -> Vec<PathBuf> {
        let layers = std::fs::read_dir(self.scratch.dir.join("layers")).expect("layers");
        let paths = layers.map(|layer| layer.expect("listed").path().join(ino.to_string()));
        paths.filter(|path| path.exists()).collect()
    }
}

fn tend(store: &Store, tending: &Tending) -> Result<()> {
    while store.tend(tending, &mut |_| true)? {}
    Ok(())
}

/// Fails the first call that asks which blocks a file has.
#[derive(Default)]
struct FailsOnce(AtomicBool);

impl Hook for FailsOnce {
    fn before(&self, call: Call) -> io::Result<()> {
        match call == Call::Map && !self.0.swap(true, Ordering::Relaxed) {
            true => Err(io::Error::from_raw_os_error(libc::EIO)),
            false => Ok(()),
        }
    }
}

/// That is told, the others are taken care of, and then it is tried again.
#[test]
fn a_layer_that_cannot_be_read_stops_nothing_else() {
    let world = World::new("aside", Disk::new().with_hook(Arc::new(FailsOnce::default())));
    for tag in ["a", "b", "c", "d"] {
        world.write("file", tag.as_bytes()[0], 8192);
        world.take(tag);
    }
    world.store.destroy_snapshot(&snapshot("b")).expect("destroyed");
    let error = world.tend().expect_err("an error of the disk");
    assert!(error.to_string().contains("i/o error"), "{error}");
    assert_eq!((world.store.unsummed(), world.store.unmerged()), (1, 0));
    world.tend().expect("upkeep");
    assert_eq!(world.store.unsummed(), 0);
    assert_eq!(world.first_byte("c", "file"), b'c');
}

/// Two snapshots with nothing written between them.
#[test]
fn one_of_two_names_of_a_layer_can_go_while_it_is_looked_at_under_the_other() {
    let world = World::new("names", Disk::new());
    world.write("file", 1, 8192);
    assert_eq!(world.take("a"), world.take("b"));
    let view = world.store.snapshot_view(&snapshot("a")).expect("loads");
    let destroy = |tag| world.store.destroy_snapshot(&snapshot(tag));
    assert!(matches!(destroy("a"), Err(Error::Busy { .. })));
    destroy("b").expect("nobody has it under this name");
    assert!(matches!(destroy("a"), Err(Error::Busy { .. })));
    drop(view);
    destroy("a").expect("destroyed");
}

/// Fails every call that removes something, once a merge is committed.
#[derive(Default)]
struct NoRemoving(AtomicBool);

impl Hook for NoRemoving {
    fn before(&self, call: Call) -> io::Result<()> {
        match call == Call::Remove && self.0.load(Ordering::Relaxed) {
            true => Err(io::Error::from_raw_os_error(libc::EIO)),
            false => Ok(()),
        }
    }

    fn at(&self, point: &'static str) {
        if point == "merge: committed" {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

/// A file that the newer layer has no more is gone before no record tells of it.
#[test]
fn a_merge_that_is_cut_off_leaves_no_file_behind() {
    let hook = Arc::new(NoRemoving::default());
    let world = World::new("dropped", Disk::new().with_hook(hook));
    world.write("large", 1, 4 * MIB);
    let gone = world.write("gone", 2, MIB);
    world.take("a");
    world
        .timeline
        .unlink(Ino::ROOT, OsStr::new("gone"), at(4))
        .expect("unlinked");
    world.timeline.forget(gone);
    world.take("b");
    world.store.destroy_snapshot(&snapshot("a")).expect("destroyed");
    world.tend().expect_err("nothing can be removed");
    let world = world.reopen();
    world.tend().expect("upkeep");
    assert_eq!(world.backing_files(gone), Vec::<PathBuf>::new());
    assert_eq!(world.first_byte("b", "large"), 1);
}

/// A time that was set in a layer that has no blocks of the file.
#[test]
fn a_merge_keeps_the_times_of_files() {
    for packing in [None, Some(1)] {
        for larger in ["below", "above"] {
            let world = World::new(&format!("times-{larger}-{}", packing.is_some()), Disk::new());
            let ino = world.write("file", 1, 8192);
            world.write("below", 1, if larger == "below" { MIB } else { 1 });
            world.take("a");
            let set = SetAttr {
                mtime: Some(at(77)),
                ..SetAttr::default()
            };
            world.timeline.setattr(ino, set, at(78)).expect("set");
            world.write("above", 1, if larger == "above" { MIB } else { 1 });
            world.take("b");
            world.store.destroy_snapshot(&snapshot("a")).expect("destroyed");
            let tending = Tending {
                packing,
                ..Tending::default()
            };
            tend(&world.store, &tending).expect("upkeep");
            assert_eq!(world.store.unmerged(), 0);
            let world = world.reopen();
            let view = world.store.snapshot_view(&snapshot("b")).expect("loads");
            assert_eq!(view.getattr(ino).expect("there").mtime, at(77), "{packing:?}, {larger}");
        }
    }
}

/// While the store reads a snapshot for itself, has somebody ask whether that and its branch can be destroyed.
#[derive(Default)]
struct Asking {
    store: Mutex<Weak<Store>>,
    asked: Mutex<Option<thread::JoinHandle<Result<()>>>>,
}

impl Hook for Asking {
    fn before(&self, call: Call) -> io::Result<()> {
        let store = self.store.lock().expect("no panic").upgrade();
        let Some(store) = store.filter(|_| matches!(call, Call::Read | Call::ReadCached)) else {
            return Ok(());
        };
        let mut asked = self.asked.lock().expect("no panic");
        if asked.is_none() {
            *asked = Some(thread::spawn(move || {
                store.check_snapshot_destroyable(&snapshot("a"))?;
                store.check_branch_destroyable(&main())
            }));
            thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    }
}

#[test]
fn a_snapshot_that_only_the_store_reads_is_not_in_use() {
    let asking = Arc::new(Asking::default());
    let world = World::new("asking", Disk::new().with_hook(asking.clone()));
    world.make_cluster();
    world.take("a");
    *asking.store.lock().expect("no panic") = Arc::downgrade(&world.store);
    world.store.wal_to_replay(&snapshot("a")).expect("read");
    let asked = asking.asked.lock().expect("no panic").take().expect("it was read");
    asked.join().expect("no panic").expect("nobody uses it");
}

/// Has no descriptor for a read.
#[derive(Default)]
struct NotRead(AtomicBool);

impl Hook for NotRead {
    fn before(&self, call: Call) -> io::Result<()> {
        match call == Call::Read && self.0.load(Ordering::Relaxed) {
            true => Err(io::Error::from_raw_os_error(libc::EMFILE)),
            false => Ok(()),
        }
    }
}

#[test]
fn a_snapshot_of_a_cluster_that_could_not_be_read_is_none_of_nothing() {
    let fails = Arc::new(NotRead::default());
    let world = World::new("not-read", Disk::new().with_hook(fails.clone()));
    world.make_cluster();
    let take = || world.store.create_snapshot(&snapshot("a"), Keep::default(), at(3));
    fails.0.store(true, Ordering::Relaxed);
    assert!(take().is_err());
    fails.0.store(false, Ordering::Relaxed);
    assert!(take().expect("taken").postgres.is_some());
    fails.0.store(true, Ordering::Relaxed);
    assert!(world.store.wal_to_replay(&snapshot("a")).is_err());
}

impl World {
    /// What tells of a cluster of PostgreSQL 13 in production, which has WAL to replay.
    fn make_cluster(&self) {
        self.write("PG_VERSION", b'9', 1);
        let global = NewNode {
            kind: NewKind::Dir,
            ..store::a_file()
        };
        let dir = self.timeline.create(Ino::ROOT, OsStr::new("global"), global, at(2));
        let control = OsStr::new("pg_control");
        let file = self
            .timeline
            .create(dir.expect("made").ino, control, store::a_file(), at(2));
        let mut head = [0; 64];
        head[8..12].copy_from_slice(&1300_u32.to_ne_bytes());
        head[16..20].copy_from_slice(&6_u32.to_ne_bytes());
        let written = self.timeline.write(file.expect("made").ino, 0, &head, Some(at(2)));
        written.expect("written");
    }
}

/// Between the seal of a layer and its name, has others take snapshots, and the upkeep do all it can.
#[derive(Default)]
struct Between {
    world: Mutex<Weak<Store>>,
    is_over: AtomicBool,
}

impl Hook for Between {
    fn before(&self, _call: Call) -> io::Result<()> {
        Ok(())
    }

    fn at(&self, point: &'static str) {
        let store = self.world.lock().expect("no panic").upgrade();
        let Some(store) = store.filter(|_| point == "seal: synced") else {
            return;
        };
        if self.is_over.swap(true, Ordering::Relaxed) {
            return;
        }
        let timeline = store.timeline(&main()).expect("loads");
        let ino = store::file(&timeline, "file", at(5));
        for tag in ["y", "z"] {
            timeline.write(ino, 0, tag.as_bytes(), Some(at(5))).expect("written");
            let taken = store.create_snapshot(&snapshot(tag), Keep::default(), at(6));
            taken.expect("taken");
        }
        tend(&store, &Tending::default()).expect("upkeep");
    }
}

#[test]
fn a_layer_that_is_about_to_be_named_is_not_merged() {
    let between = Arc::new(Between::default());
    let world = World::new("naming", Disk::new().with_hook(between.clone()));
    *between.world.lock().expect("no panic") = Arc::downgrade(&world.store);
    world.write("file", b'x', 8192);
    world.take("x");
    assert!(between.is_over.load(Ordering::Relaxed));
    let world = world.reopen();
    assert_eq!(["x", "y", "z"].map(|tag| world.first_byte(tag, "file")), *b"xyz");
}

/// Who has its number only may be too late: it is merged with the next at any time.
#[test]
fn a_layer_without_a_name_is_not_looked_at() {
    let world = World::new("nameless", Disk::new());
    world.write("file", 1, 8192);
    let layer = world.take("a");
    world.write("file", 2, 8192);
    world.take("b");
    drop(world.store.sealed_view(layer).expect("it has a name"));
    world.store.destroy_snapshot(&snapshot("a")).expect("destroyed");
    assert!(matches!(world.store.sealed_view(layer), Err(Error::NoSnapshot { .. })));
}

#[test]
fn a_snapshot_that_was_given_more_time_stays() {
    let world = World::new("expiry", Disk::new());
    let (store, name) = (&world.store, snapshot("a"));
    world.take("a");
    let keep = |protected, expires| store.keep_snapshot(&name, protected, expires).expect("kept");
    keep(None, Some(Some(at(100))));
    let info = keep(Some(true), None);
    assert_eq!((info.protected, info.expires), (true, Some(at(100))));
    let info = keep(Some(false), Some(Some(at(200))));
    assert_eq!((info.protected, info.expires), (false, Some(at(200))));
    assert!(!store.destroy_expired_snapshot(&name, at(150)).expect("asked"));
    keep(None, Some(None));
    assert!(!store.destroy_expired_snapshot(&name, at(300)).expect("asked"));
    keep(None, Some(Some(at(300))));
    assert!(store.destroy_expired_snapshot(&name, at(300)).expect("asked"));
    assert!(matches!(store.snapshot(&name), Err(Error::NoSnapshot { .. })));
}
