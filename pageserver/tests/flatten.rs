//! A file that is written between many snapshots is found in a few layers, reads as it did through views old and new, and costs nothing any
//! more when the snapshots have gone.

#[path = "support/random.rs"]
mod random;
#[path = "support/store.rs"]
mod store;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use pageserver::*;
use random::Random;
use store::Scratch;

const LAYERS: u64 = 130;
const PAGE: usize = 8192;
const PAGES: u64 = 200;
const NOW: Time = Time {
    secs: 1_700_000_000,
    nanos: 5,
};

/// Counts how many files are opened.
#[derive(Default)]
struct Opens(AtomicUsize);

impl Hook for Opens {
    fn before(&self, call: Call) -> io::Result<()> {
        self.0.fetch_add(usize::from(call == Call::Open), Ordering::Relaxed);
        Ok(())
    }
}

fn read(view: &View, ino: Ino) -> Vec<u8> {
    let mut bytes = vec![0; view.getattr(ino).expect("there").size as usize];
    assert_eq!(view.read(ino, 0, &mut bytes), Ok(bytes.len()));
    bytes
}

fn tag(nth: u64) -> SnapshotName {
    format!("main@n{nth}").parse().expect("a name")
}

/// A store with a snapshot after each of many writes.
struct World {
    scratch: Scratch,
    store: Arc<Store>,
    timeline: Arc<Timeline>,
    ino: Ino,
    /// What the file was in each snapshot.
    models: Vec<Vec<u8>>,
}

impl World {
    fn new(name: &str) -> World {
        let scratch = Scratch::new(name);
        let store = scratch.open(Disk::new());
        let main: BranchName = "main".parse().expect("a name");
        store
            .create_branch(&main, &Start::Empty, (0, 0), NOW)
            .expect("a branch");
        let timeline = store.timeline(&main).expect("loads");
        let ino = store::file(&timeline, "file", NOW);
        let (mut random, mut models) = (Random::new(7), Vec::new());
        let mut model = vec![1; PAGES as usize * PAGE];
        timeline.write(ino, 0, &model, Some(NOW)).expect("written");
        for nth in 0..LAYERS {
            let at = random.below(PAGES) as usize * PAGE;
            model[at..at + PAGE].fill(2 + nth as u8);
            timeline
                .write(ino, at as u64, &model[at..at + PAGE], Some(NOW))
                .expect("written");
            if nth % 50 == 30 {
                let size = PAGES - 1 - random.below(20);
                resize(&timeline, ino, size * PAGE as u64 + 100);
                resize(&timeline, ino, PAGES * PAGE as u64);
                model[size as usize * PAGE + 100..].fill(0);
            }
            store.create_snapshot(&tag(nth), Keep::default(), NOW).expect("taken");
            models.push(model.clone());
        }
        World {
            scratch,
            store,
            timeline,
            ino,
            models,
        }
    }

    fn tend(&self) {
        while self.store.tend(&Tending::default(), &mut |_| true).expect("upkeep") {}
    }

    fn compare(&self, nths: impl Iterator<Item = u64>) {
        for nth in nths {
            let view = self.store.snapshot_view(&tag(nth)).expect("loads");
            assert!(read(&view, self.ino) == self.models[nth as usize], "snapshot {nth}");
        }
        assert!(
            Some(&read(self.timeline.view(), self.ino)) == self.models.last(),
            "the head"
        );
    }

    fn reopen(self, disk: Disk) -> World {
        let World {
            scratch,
            store,
            timeline,
            ino,
            models,
        } = self;
        drop((timeline, store));
        let store = scratch.open(disk);
        let timeline = store.timeline(&"main".parse().expect("a name")).expect("loads");
        World {
            scratch,
            store,
            timeline,
            ino,
            models,
        }
    }

    /// How many files are opened to read the newest snapshot.
    fn opens(self) -> (World, usize) {
        let opens = Arc::new(Opens::default());
        let world = self.reopen(Disk::new().with_hook(opens.clone()));
        let view = world.store.snapshot_view(&tag(LAYERS - 1)).expect("loads");
        let before = opens.0.load(Ordering::Relaxed);
        assert!(Some(&read(&view, world.ino)) == world.models.last());
        let opened = opens.0.load(Ordering::Relaxed) - before;
        drop(view);
        (world.reopen(Disk::new()), opened)
    }

    fn damage(&self) -> Vec<String> {
        let checks = Checks {
            blocks_from: Some(LayerId(0)),
            ..Checks::default()
        };
        let findings = self.store.check(checks, &mut |_| {}).expect("checked");
        let damage = findings
            .into_iter()
            .filter(|finding| finding.severity == Severity::Damage);
        damage
            .map(|finding| format!("{}: {}", finding.place, finding.what))
            .collect()
    }
}

fn resize(timeline: &Timeline, ino: Ino, size: u64) {
    let set = SetAttr {
        size: Some(size),
        ..SetAttr::default()
    };
    timeline.setattr(ino, set, NOW).expect("resized");
}

#[test]
fn a_file_in_many_layers_is_found_in_a_few() {
    let (world, spread) = World::new("flatten").opens();
    assert!(spread > 60, "{spread} files are opened");
    let views: Vec<_> = (0..LAYERS)
        .step_by(9)
        .map(|nth| (nth, world.store.snapshot_view(&tag(nth)).expect("loads")))
        .collect();
    let look = |when: &str| {
        for (nth, view) in &views {
            assert!(
                read(view, world.ino) == world.models[*nth as usize],
                "snapshot {nth}, {when}"
            );
        }
    };
    look("before");
    world.tend();
    look("after");
    world.compare(0..LAYERS);
    drop(views);
    let (world, flat) = world.opens();
    // The oldest part, one for each of two windows, and those above the last.
    assert!(flat <= 6, "{flat} files are opened");
    world.compare(0..LAYERS);
    assert_eq!(world.damage(), Vec::<String>::new());
}

#[test]
fn it_can_end_anywhere_and_is_done_once_more() {
    let mut world = World::new("flatten-ends");
    let (mut random, mut pieces) = (Random::new(3), 0);
    loop {
        let mut left = random.below(40);
        let mut pace = |_| {
            left = left.saturating_sub(1);
            left > 0
        };
        while world.store.tend(&Tending::default(), &mut pace).expect("upkeep") {}
        pieces += 1;
        world.compare([3, 62, 63, 64, 100, 127, 128].into_iter());
        if left > 0 {
            break;
        }
        if pieces % 3 == 0 {
            world = world.reopen(Disk::new());
        }
    }
    assert!(pieces > 5, "it ended {pieces} times");
    let (world, flat) = world.opens();
    assert!(flat <= 6, "{flat} files are opened");
    assert_eq!(world.damage(), Vec::<String>::new());
}

#[test]
fn copies_go_with_the_snapshots() {
    let world = World::new("flatten-goes");
    world.tend();
    let spread = world.store.bytes().expect("counted");
    for nth in 0..LAYERS - 1 {
        world.store.destroy_snapshot(&tag(nth)).expect("destroyed");
    }
    world.tend();
    world.compare([LAYERS - 1].into_iter());
    let whole = PAGES * PAGE as u64;
    let left = world.store.bytes().expect("counted");
    assert!(spread > whole * 3 / 2, "{spread} bytes");
    assert!(left < whole + whole / 20, "{left} bytes");
    assert_eq!(world.damage(), Vec::<String>::new());
}

#[test]
fn damage_is_not_copied() {
    let world = World::new("flatten-damage");
    let sums = |store: &Store| while store.unsummed() > 0 && store.tend(&rare(), &mut |_| true).expect("upkeep") {};
    sums(&world.store);
    // A block of the layer of the 60th snapshot, which is the newest to have it in that of the 63rd.
    let layer = world.store.snapshot(&tag(60)).expect("there").layer;
    let path = world.scratch.dir.join(format!("layers/{layer}/{}", world.ino));
    let file = File::options().read(true).write(true).open(path).expect("opens");
    let mut bytes = vec![0; PAGES as usize * PAGE];
    file.read_exact_at(&mut bytes, 0).expect("read");
    let at = bytes.iter().position(|byte| *byte == 62).expect("its block");
    file.write_all_at(&[0], at as u64).expect("written");
    world.tend();
    let view = world.store.snapshot_view(&tag(63)).expect("loads");
    let mut page = [0; PAGE];
    assert_eq!(view.read(world.ino, at as u64, &mut page), Err(nix::errno::Errno::EIO));
    let damage = world.damage();
    assert!(
        damage.iter().all(|found| found.contains(&layer.to_string())) && !damage.is_empty(),
        "{damage:?}"
    );
    for nth in [10, 59] {
        let view = world.store.snapshot_view(&tag(nth)).expect("loads");
        assert!(read(&view, world.ino) == world.models[nth as usize], "snapshot {nth}");
    }
}

fn rare() -> Tending {
    Tending {
        flatten_every: usize::MAX,
        ..Tending::default()
    }
}
