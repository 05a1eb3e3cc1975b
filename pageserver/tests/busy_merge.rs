//! Snapshots and branches go in random order while others are written, read and taken and while layers get their checksums, are packed and
//! merged: each reads at every moment as it did at first, each head as it was written, and each check is clean.
//!
//! `ZENITH_BUSY_MERGES=N` destroys N snapshots and branches (short: 60), `ZENITH_SEED=S` makes the same choices in the thread that does.

#[path = "support/random.rs"]
mod random;
#[path = "support/store.rs"]
mod store;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use pageserver::*;
use random::Random;
use store::Scratch;

const READERS: u64 = 2;
const WRITERS: u64 = 2;
const BRANCHES_MAX: usize = 20;
const SNAPSHOTS_MAX: usize = 40;
const SIZE_MAX: u64 = 2 << 20;
const NOW: Time = Time {
    secs: 1_700_000_000,
    nanos: 5,
};

type Tree = BTreeMap<Ino, Vec<u8>>;

struct World {
    store: Arc<Store>,
    branches: Mutex<Vec<(BranchName, Arc<Timeline>)>>,
    /// What each snapshot showed when it was taken.
    snapshots: Mutex<BTreeMap<SnapshotName, Arc<Tree>>>,
    is_over: AtomicBool,
    readings: AtomicU64,
    writes: AtomicU64,
}

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).map_or(otherwise, |text| text.parse().expect("a number"))
}

fn read(view: &View, ino: Ino) -> Vec<u8> {
    let mut bytes = vec![0; view.getattr(ino).expect("there").size as usize];
    let read = view.read(ino, 0, &mut bytes).expect("readable");
    bytes.truncate(read);
    bytes
}

fn tree(view: &View) -> Tree {
    let entries = view.readdir(Ino::ROOT, 0, usize::MAX).expect("a root");
    entries
        .into_iter()
        .map(|entry| (entry.ino, read(view, entry.ino)))
        .collect()
}

impl World {
    fn goes_on(&self) -> bool {
        !self.is_over.load(Ordering::Relaxed)
    }

    fn branch(&self, random: &mut Random) -> (BranchName, Arc<Timeline>) {
        let branches = self.branches.lock().expect("no panic");
        random.pick(&branches).expect("a branch").clone()
    }

    fn snapshot(&self, random: &mut Random) -> Option<(SnapshotName, Arc<Tree>)> {
        let snapshots = self.snapshots.lock().expect("no panic");
        let nth = random.below(snapshots.len().max(1) as u64) as usize;
        snapshots
            .iter()
            .nth(nth)
            .map(|(name, tree)| (name.clone(), tree.clone()))
    }

    fn add_branch(&self, name: &str, start: &Start) {
        let name: BranchName = name.parse().expect("a name");
        let made = self
            .store
            .create_bound_branch(&name, start, Bond::Independent, (0, 0), NOW);
        if let Err(error) = made {
            assert!(matches!(error, Error::NoSnapshot { .. }), "{error}");
            return;
        }
        let timeline = self.store.timeline(&name).expect("loads");
        self.branches.lock().expect("no panic").push((name, timeline));
    }

    /// Nobody else writes the file that a writer has in each branch, so what it wrote is what it reads.
    fn write(&self, writer: u64) {
        let mut random = Random::new(100 + writer);
        while self.goes_on() {
            let (_, timeline) = self.branch(&mut random);
            let ino = store::file(&timeline, &format!("w{writer}"), NOW);
            let mut model = read(timeline.view(), ino);
            for _ in 0..20 {
                let offset = random.below(SIZE_MAX) as usize;
                let bytes = vec![1 + random.below(255) as u8; 1 + random.below(30_000) as usize];
                if random.below(10) == 0 {
                    let set = SetAttr {
                        size: Some(offset as u64),
                        ..SetAttr::default()
                    };
                    timeline.setattr(ino, set, NOW).expect("resized");
                    model.resize(offset, 0);
                }
                timeline.write(ino, offset as u64, &bytes, Some(NOW)).expect("written");
                model.resize(model.len().max(offset + bytes.len()), 0);
                model[offset..offset + bytes.len()].copy_from_slice(&bytes);
                self.writes.fetch_add(1, Ordering::Relaxed);
            }
            assert!(read(timeline.view(), ino) == model, "a head");
        }
    }

    /// Holds a view for a while: through it, too, nothing may change.
    fn read(&self, reader: u64) {
        let mut random = Random::new(200 + reader);
        while self.goes_on() {
            let Some((name, then)) = self.snapshot(&mut random) else {
                continue;
            };
            // It may be gone by now.
            let Ok(view) = self.store.snapshot_view(&name) else {
                continue;
            };
            for _ in 0..3 {
                assert!(tree(&view) == *then, "{name}");
                self.readings.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn tend(&self) {
        let mut random = Random::new(300);
        while self.goes_on() {
            let tending = Tending {
                packing: (random.below(2) == 0).then_some(1),
                flatten_every: 2 + random.below(10) as usize,
            };
            let mut left = 1 + random.below(200);
            let mut pace = |_| {
                left -= 1;
                left > 0 && self.goes_on()
            };
            if !self.store.tend(&tending, &mut pace).expect("upkeep") {
                thread::yield_now();
            }
        }
    }

    fn take(&self, nth: u64, random: &mut Random) {
        let (branch, _) = self.branch(random);
        let name: SnapshotName = format!("{branch}@s{nth}").parse().expect("a name");
        self.store.create_snapshot(&name, Keep::default(), NOW).expect("taken");
        let seen = tree(&self.store.snapshot_view(&name).expect("loads"));
        self.snapshots.lock().expect("no panic").insert(name, Arc::new(seen));
    }

    /// Ends a snapshot, or now and then a branch with all of its own; false when somebody looks at it just now.
    fn destroy(&self, random: &mut Random) -> bool {
        if random.below(12) == 0 {
            return self.destroy_branch(random);
        }
        let Some((name, tree)) = self.snapshot(random) else {
            return false;
        };
        self.snapshots.lock().expect("no panic").remove(&name);
        match self.store.destroy_snapshot(&name) {
            Ok(()) => true,
            Err(Error::Busy { .. }) => {
                self.snapshots.lock().expect("no panic").insert(name, tree);
                false
            }
            Err(error) => panic!("{name}: {error}"),
        }
    }

    fn destroy_branch(&self, random: &mut Random) -> bool {
        let mut branches = self.branches.lock().expect("no panic");
        if branches.len() < 3 {
            return false;
        }
        let nth = random.below(branches.len() as u64) as usize;
        let (name, timeline) = branches.swap_remove(nth);
        drop(timeline);
        match self.store.destroy_branch(&name) {
            Ok(()) => {
                let mut snapshots = self.snapshots.lock().expect("no panic");
                snapshots.retain(|snapshot, _| snapshot.branch != name);
                true
            }
            // A writer has it, or a reader one of its snapshots.
            Err(Error::Busy { .. }) => {
                let timeline = self.store.timeline(&name).expect("loads");
                branches.push((name, timeline));
                false
            }
            Err(error) => panic!("{name}: {error}"),
        }
    }

    fn is_sound(&self) {
        let checks = Checks {
            blocks_from: Some(LayerId(0)),
            ..Checks::default()
        };
        let findings = self.store.check(checks, &mut |_| {}).expect("checked");
        let bad = findings.iter().find(|finding| finding.severity == Severity::Damage);
        assert!(bad.is_none(), "{bad:?}");
    }

    fn direct(&self, wanted: u64) {
        let (mut random, mut nth, mut destroyed) = (Random::new(number("ZENITH_SEED", 1)), 0, 0);
        while destroyed < wanted {
            nth += 1;
            let snapshots = self.snapshots.lock().expect("no panic").len();
            let branches = self.branches.lock().expect("no panic").len();
            match random.below(10) {
                0..=4 if snapshots < SNAPSHOTS_MAX => self.take(nth, &mut random),
                5 if branches < BRANCHES_MAX => {
                    if let Some((name, _)) = self.snapshot(&mut random) {
                        self.add_branch(&format!("b{nth}"), &Start::Snapshot(name));
                    }
                }
                _ if self.destroy(&mut random) => {
                    destroyed += 1;
                    self.is_sound();
                }
                _ => {}
            }
        }
    }
}

/// Ends the others also when one of them has panicked.
struct Over<'a>(&'a World);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::Relaxed);
    }
}

#[test]
fn nothing_changes_under_who_reads_and_writes() {
    let scratch = Scratch::new("busy-merge");
    let world = World {
        store: scratch.open(Disk::new().with_open_files_max(200)),
        branches: Mutex::default(),
        snapshots: Mutex::default(),
        is_over: AtomicBool::new(false),
        readings: AtomicU64::new(0),
        writes: AtomicU64::new(0),
    };
    world.add_branch("main", &Start::Empty);
    thread::scope(|scope| {
        let world = &world;
        let run = |work: Box<dyn FnOnce() + Send>| {
            scope.spawn(move || {
                let _over = Over(world);
                work();
            });
        };
        (0..READERS).for_each(|reader| run(Box::new(move || world.read(reader))));
        (0..WRITERS).for_each(|writer| run(Box::new(move || world.write(writer))));
        run(Box::new(|| world.tend()));
        let _over = Over(world);
        world.direct(number("ZENITH_BUSY_MERGES", 60));
    });
    let (readings, writes) = (world.readings.into_inner(), world.writes.into_inner());
    println!("{readings} readings of snapshots, {writes} writes");
    assert!(readings > 0 && writes > 0);
}
