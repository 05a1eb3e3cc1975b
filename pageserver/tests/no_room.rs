//! On a disk that is full the upkeep gives space back all the same, flattens nothing, and leaves nothing behind.

#[path = "support/random.rs"]
mod random;
#[path = "support/store.rs"]
mod store;

use std::io;
use std::sync::{Arc, Mutex};

use pageserver::*;
use random::Random;
use store::Scratch;

const LAYERS: u64 = 70;
const PAGE: usize = 8192;
const PAGES: u64 = 256;
const MIB: u64 = 1 << 20;
const NOW: Time = Time {
    secs: 1_700_000_000,
    nanos: 5,
};

/// A disk that is said to have so much left: its reserve is 64 MiB, half of that a file.
#[derive(Default)]
struct Disks {
    available: Mutex<Option<u64>>,
    /// Calls that fail for lack of room, after so many of them.
    writes: Mutex<Option<usize>>,
    /// Calls that fail.
    failing: Mutex<Option<Call>>,
}

impl Hook for Disks {
    fn before(&self, call: Call) -> io::Result<()> {
        if *self.failing.lock().expect("unpoisoned") == Some(call) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let mut writes = self.writes.lock().expect("unpoisoned");
        match (&mut *writes, call) {
            (Some(0), Call::Write) => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
            (Some(left), Call::Write) => {
                *left -= 1;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn space(&self, space: Space) -> Space {
        let available = *self.available.lock().expect("unpoisoned");
        available.map_or(space, |available| Space {
            available,
            total: 3200 * MIB,
            ..space
        })
    }
}

impl Disks {
    fn leave(&self, available: Option<u64>) {
        *self.available.lock().expect("unpoisoned") = available;
    }
}

struct World {
    disks: Arc<Disks>,
    store: Arc<Store>,
    /// What both files were in each snapshot.
    models: Vec<[Vec<u8>; 2]>,
    scratch: Scratch,
}

fn tag(nth: u64) -> SnapshotName {
    format!("main@n{nth}").parse().expect("a name")
}

impl World {
    /// One file is written before each snapshot, the other one before some.
    fn new(name: &str) -> World {
        let scratch = Scratch::new(name);
        let disks = Arc::new(Disks::default());
        disks.leave(Some(400 * MIB));
        let store = scratch.open(Disk::new().with_hook(disks.clone()));
        let main: BranchName = "main".parse().expect("a name");
        store
            .create_branch(&main, &Start::Empty, (0, 0), NOW)
            .expect("a branch");
        let timeline = store.timeline(&main).expect("loads");
        let inos = ["file", "other"].map(|name| store::file(&timeline, name, NOW));
        let mut model = [vec![1; PAGES as usize * PAGE], vec![2; PAGES as usize * PAGE]];
        for (ino, model) in inos.iter().zip(&model) {
            timeline.write(*ino, 0, model, Some(NOW)).expect("written");
        }
        let (mut random, mut models) = (Random::new(9), Vec::new());
        for nth in 0..LAYERS {
            for (which, ino) in inos.iter().enumerate() {
                let pages = match (which, nth) {
                    (0, _) | (1, 10..30) => 20,
                    // In the layer below the first that is flattened.
                    (1, 62) => 1,
                    _ => 0,
                };
                for _ in 0..pages {
                    let at = random.below(PAGES) as usize * PAGE;
                    model[which][at..at + PAGE].fill(3 + nth as u8);
                    let page = &model[which][at..at + PAGE];
                    timeline.write(*ino, at as u64, page, Some(NOW)).expect("written");
                }
            }
            if let 62 | 63 = nth {
                // One that is in few layers is not copied, and has to be when these are merged.
                let (few, at) = (store::file(&timeline, "few", NOW), (nth - 62) * PAGE as u64);
                timeline.write(few, at, &[1; PAGE], Some(NOW)).expect("written");
            }
            store.create_snapshot(&tag(nth), Keep::default(), NOW).expect("taken");
            models.push(model.clone());
        }
        World {
            disks,
            store,
            models,
            scratch,
        }
    }

    fn tend(&self) -> Result<()> {
        while self.store.tend(&Tending::default(), &mut |_| true)? {}
        Ok(())
    }

    fn compare(&self, nths: &[u64]) {
        for nth in nths {
            let view = self.store.snapshot_view(&tag(*nth)).expect("loads");
            for (name, model) in ["file", "other"].iter().zip(&self.models[*nth as usize]) {
                let ino = view.lookup(Ino::ROOT, std::ffi::OsStr::new(name)).expect("there").ino;
                let mut bytes = vec![0; model.len()];
                assert_eq!(view.read(ino, 0, &mut bytes), Ok(bytes.len()));
                assert!(bytes == *model, "{name} of snapshot {nth}");
            }
        }
    }

    fn is_sound(&self) {
        let checks = Checks {
            blocks_from: Some(LayerId(0)),
            ..Checks::default()
        };
        let findings = self.store.check(checks, &mut |_| {}).expect("checked");
        let damage = findings.iter().find(|finding| finding.severity == Severity::Damage);
        assert!(damage.is_none(), "{damage:?}");
    }

    fn destroy_all_but(&self, stays: u64) {
        for nth in (0..LAYERS).filter(|nth| *nth != stays) {
            self.store.destroy_snapshot(&tag(nth)).expect("destroyed");
        }
    }

    fn reopen(mut self) -> World {
        drop(self.store);
        self.store = self.scratch.open(Disk::new());
        self
    }
}

/// What is left free of the reserve is enough for merging.
#[test]
fn space_comes_back_on_a_full_disk() {
    let world = World::new("no-room");
    world.disks.leave(Some(24 * MIB));
    let before = world.store.bytes().expect("counted");
    world.destroy_all_but(40);
    world.tend().expect("upkeep");
    let after = world.store.bytes().expect("counted");
    assert!(after * 3 < before, "{before} bytes before, {after} after");
    world.compare(&[40]);
    world.is_sound();
}

/// Where nothing at all is left, what a layer hides of the one below is given back first; the rest is done when there is room.
#[test]
fn space_comes_back_where_nothing_is_left() {
    let world = World::new("no-room-at-all");
    world.tend_sums();
    world.disks.leave(Some(0));
    world.take_the_rest();
    let before = world.store.bytes().expect("counted");
    world.destroy_all_but(40);
    let error = world.tend().expect_err("no room");
    assert!(error.to_string().contains("no space"), "{error}");
    let emptied = world.store.bytes().expect("counted");
    world.compare(&[40]);
    world.is_sound();
    world.disks.leave(None);
    world.tend().expect("upkeep");
    let after = world.store.bytes().expect("counted");
    assert!(
        emptied + MIB / 2 < before && after + 10 * MIB < emptied,
        "{before} bytes before, {emptied} emptied, {after} after"
    );
    world.compare(&[40]);
    world.is_sound();
    let world = world.reopen();
    world.compare(&[40]);
    world.is_sound();
}

/// A branch that was in use before the copies came reads the blocks where they were.
#[test]
fn what_flattening_has_copied_is_not_taken_from_who_reads_it() {
    let world = World::new("no-room-after-flattening");
    let timeline = world.store.timeline(&"main".parse().expect("a name")).expect("loads");
    let read = || {
        let (ino, model) = (store::file(&timeline, "other", NOW), &world.models[69][1]);
        let mut bytes = vec![0; model.len()];
        assert_eq!(timeline.view().read(ino, 0, &mut bytes), Ok(bytes.len()));
        assert!(bytes == *model);
    };
    read();
    world.tend().expect("upkeep");
    assert_eq!(world.unknown_files(), 1, "the other file was copied");
    world.disks.leave(Some(0));
    world.take_the_rest();
    world.destroy_all_but(69);
    world.tend().expect_err("no room");
    read();
}

/// Flattens on a disk that takes so many writes more; nothing changes by that.
fn flatten_with_room_for(world: World, writes: usize) {
    *world.disks.writes.lock().expect("unpoisoned") = Some(writes);
    world.tend().expect("upkeep");
    *world.disks.writes.lock().expect("unpoisoned") = None;
    world.compare(&[0, 40, 62, 63, 69]);
    world.is_sound();
    let world = world.reopen();
    world.compare(&[0, 40, 62, 63, 69]);
    world.is_sound();
}

/// Whichever write finds no room while a layer is flattened, nothing is left of it.
#[test]
fn a_disk_that_gets_full_ends_flattening() {
    for allowed in [0, 1, 2, 4, 7] {
        let world = World::new("no-room-to-flatten");
        world.tend_sums();
        flatten_with_room_for(world, allowed);
    }
}

/// An attempt that fails behind its last file is made again, and finds the disk full: what the first one has done stays.
#[test]
fn what_was_copied_before_stays() {
    let world = World::new("copied-before");
    world.tend_sums();
    *world.disks.failing.lock().expect("unpoisoned") = Some(Call::List);
    world.tend().expect_err("an error of the disk");
    *world.disks.failing.lock().expect("unpoisoned") = None;
    assert_eq!(world.unknown_files(), 1, "the other file was copied");
    flatten_with_room_for(world, 0);
}

/// A file that was begun, and is none any more that is worth it, goes.
#[test]
fn what_was_begun_and_is_left_goes() {
    let world = World::new("begun");
    world.tend_sums();
    let mut pieces = 0;
    // Ended when the first chunk of a file that the layer had nothing of was copied: the other one's has come before.
    while world.unknown_files() == 0 {
        pieces += 1;
        let mut left = pieces;
        let mut pace = |_| {
            left -= 1;
            left > 0
        };
        world.store.tend(&Tending::default(), &mut pace).expect("upkeep");
        assert!(pieces < 200, "no file is begun");
    }
    let rare = Tending {
        flatten_every: 1000,
        ..Tending::default()
    };
    while world.store.tend(&rare, &mut |_| true).expect("upkeep") {}
    assert_eq!(world.unknown_files(), 0);
    let world = world.reopen();
    world.compare(&[0, 40, 63, 69]);
    world.is_sound();
}

impl World {
    fn tend_sums(&self) {
        let rare = Tending {
            flatten_every: usize::MAX,
            ..Tending::default()
        };
        while self.store.tend(&rare, &mut |_| true).expect("upkeep") {}
    }

    /// What was granted to guests before is used up.
    fn take_the_rest(&self) {
        let timeline = self.store.timeline(&"main".parse().expect("a name")).expect("loads");
        let ino = store::file(&timeline, "rest", NOW);
        let page = [7; PAGE];
        let mut offsets = (0..10_000).map(|page| page * PAGE as u64);
        assert!(offsets.any(|offset| timeline.write(ino, offset, &page, Some(NOW)).is_err()));
    }

    /// Files of the layer that is flattened first which it had nothing of.
    fn unknown_files(&self) -> usize {
        let top = self.store.snapshot(&tag(63)).expect("there").layer;
        let dir = self.scratch.dir.join(format!("layers/{top}"));
        std::fs::read_dir(dir).expect("listed").count() - 2
    }
}
