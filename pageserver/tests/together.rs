//! What two threads see of each other that do something at the same time.

#[path = "support/store.rs"]
mod store;

use std::io;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use nix::errno::Errno;
use pageserver::*;
use store::Scratch;

const NOW: Time = Time {
    secs: 1_700_000_000,
    nanos: 0,
};

/// Long enough for what waits for nobody.
const MOMENT: Duration = Duration::from_millis(200);

fn a_branch(scratch: &Scratch, disk: Disk) -> (Arc<Store>, Arc<Timeline>) {
    let store = scratch.open(disk);
    let main = "main".parse().expect("a name");
    let made = store.create_branch(&main, &Start::Empty, (0, 0), NOW);
    made.expect("make a branch");
    let timeline = store.timeline(&main).expect("load it");
    (store, timeline)
}

fn written(timeline: &Timeline, name: &str, len: usize) -> Ino {
    let ino = store::file(timeline, name, NOW);
    assert_eq!(timeline.write(ino, 0, &vec![1; len], None), Ok(len));
    ino
}

fn snapshot(store: &Store, tag: &str) -> Result<SnapshotInfo> {
    let name: SnapshotName = format!("main@{tag}").parse()?;
    store.create_snapshot(&name, Keep::default(), NOW)
}

/// Stops the first who comes to a place until it is let go on, and then fails it if it is told to.
struct Stall {
    place: Place,
    errno: Option<i32>,
    state: Mutex<Stalled>,
    changed: Condvar,
}

#[derive(PartialEq, Eq)]
enum Place {
    Before(Call),
    At(&'static str),
}

#[derive(Default, PartialEq, Eq, PartialOrd, Ord)]
enum Stalled {
    #[default]
    NotYet,
    Now,
    Over,
}

impl Stall {
    fn new(place: Place, errno: Option<i32>) -> Arc<Stall> {
        Arc::new(Stall {
            place,
            errno,
            state: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    fn reach(&self, state: Stalled) {
        *self.state.lock().expect("unpoisoned") = state;
        self.changed.notify_all();
    }

    fn wait_for(&self, state: &Stalled) {
        let reached = self.state.lock().expect("unpoisoned");
        let reached = self.changed.wait_while(reached, |now| *now < *state);
        drop(reached.expect("unpoisoned"));
    }

    fn come_to(&self, place: &Place) -> io::Result<()> {
        let first = *place == self.place && *self.state.lock().expect("unpoisoned") == Stalled::NotYet;
        if !first {
            return Ok(());
        }
        self.reach(Stalled::Now);
        self.wait_for(&Stalled::Over);
        self.errno
            .map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)))
    }
}

impl Hook for Stall {
    fn before(&self, call: Call) -> io::Result<()> {
        self.come_to(&Place::Before(call))
    }

    fn at(&self, point: &'static str) {
        self.come_to(&Place::At(point)).expect("a point does not fail");
    }
}

/// Does something, and once more while the first is stalled; whether the second came back before that was over.
fn one_beside_another<T: Send>(stall: &Stall, action: impl Fn(usize) -> T + Sync) -> (bool, [T; 2]) {
    std::thread::scope(|scope| {
        let first = scope.spawn(|| action(0));
        stall.wait_for(&Stalled::Now);
        let second = scope.spawn(|| action(1));
        std::thread::sleep(MOMENT);
        let early = second.is_finished();
        stall.reach(Stalled::Over);
        (early, [first, second].map(|done| done.join().expect("no panic")))
    })
}

/// Takes two snapshots of one unsynced layer, the second while the first is being synced; whether the second came back
/// before that was over.
fn two_snapshots(test: &str, tags: [&str; 2]) -> (bool, [Result<SnapshotInfo>; 2]) {
    let scratch = Scratch::new(test);
    let stall = Stall::new(Place::Before(Call::SyncData), None);
    let (store, timeline) = a_branch(&scratch, Disk::new().with_hook(stall.clone()));
    written(&timeline, "a", 8192);
    one_beside_another(&stall, |nth| snapshot(&store, tags[nth]))
}

#[test]
fn a_snapshot_is_not_told_before_the_sync_that_another_one_began_is_over() {
    let (early, taken) = two_snapshots("two-names", ["one", "two"]);
    assert!(!early);
    assert!(taken.iter().all(Result::is_ok), "{taken:?}");
}

#[test]
fn of_two_snapshots_with_one_name_one_is_refused() {
    let (_, taken) = two_snapshots("one-name", ["same", "same"]);
    let refused = taken
        .iter()
        .filter(|taken| matches!(taken, Err(Error::SnapshotExists { .. })));
    assert_eq!(refused.count(), 1, "{taken:?}");
}

/// Syncs two heads after a killed service has left writes behind, the second one while these are being made durable; whether the second came back before
/// that was over.
fn two_syncs(test: &str, errno: Option<i32>) -> (bool, [FsResult<()>; 2]) {
    let scratch = Scratch::new(test);
    let names: [BranchName; 2] = ["one", "two"].map(|name| name.parse().expect("a name"));
    let store = scratch.open(Disk::new());
    for name in &names {
        store.create_branch(name, &Start::Empty, (0, 0), NOW).expect("made");
    }
    drop(store);
    let stall = Stall::new(Place::Before(Call::SyncAll), errno);
    let store = scratch.open(Disk::new().with_hook(stall.clone()));
    let heads = names.map(|name| store.timeline(&name).expect("loaded"));
    one_beside_another(&stall, |nth| heads[nth].fsync(Ino::ROOT))
}

#[test]
fn a_sync_waits_for_the_one_that_makes_durable_what_a_killed_service_has_written() {
    let (early, synced) = two_syncs("settle-together", None);
    assert!(!early);
    assert_eq!(synced, [Ok(()), Ok(())]);
}

#[test]
fn a_sync_that_waited_for_one_that_heard_of_a_loss_fails_too() {
    let (_, synced) = two_syncs("settle-lost", Some(libc::EIO));
    assert_eq!(synced, [Err(Errno::EIO), Err(Errno::EIO)]);
}

/// Files are closed to make room for others by who needs it, one thread beside another: the namespace must end with what they became last.
#[test]
fn of_two_that_close_files_none_takes_back_what_the_other_has_told() {
    let scratch = Scratch::new("close-together");
    let stall = Stall::new(Place::At("fold: collected"), None);
    let disk = Disk::new().with_open_files_max(0).with_hook(stall.clone());
    let (store, timeline) = a_branch(&scratch, disk);
    let file = written(&timeline, "file", 8192);
    std::thread::scope(|scope| {
        let first = scope.spawn(|| written(&timeline, "first", 1));
        stall.wait_for(&Stalled::Now);
        assert_eq!(timeline.write(file, 8192, &[2; 8192], None), Ok(8192));
        // With one more open it is time to close some again.
        written(&timeline, "more", 1);
        let second = scope.spawn(|| written(&timeline, "second", 1));
        std::thread::sleep(MOMENT);
        stall.reach(Stalled::Over);
        for closed in [first, second] {
            closed.join().expect("no panic");
        }
    });
    let name = snapshot(&store, "s").expect("taken").name;
    let view = store.snapshot_view(&name).expect("loaded");
    assert_eq!(view.getattr(file).expect("there").size, 16384);
    assert_eq!(timeline.view().getattr(file).expect("there").size, 16384);
}

/// A store with few files open at most, and somebody who syncs them to close some, and is stalled there.
fn closing(test: &str, place: Place, errno: Option<i32>, beside: impl FnOnce(&Store, &Timeline, Ino, &Stall)) {
    let scratch = Scratch::new(test);
    let stall = Stall::new(place, errno);
    stall.reach(Stalled::Over);
    let (store, timeline) = a_branch(&scratch, Disk::new().with_open_files_max(0).with_hook(stall.clone()));
    timeline
        .fsync(Ino::ROOT)
        .expect("nothing is left of an earlier service");
    let file = written(&timeline, "file", 4096);
    stall.reach(Stalled::NotYet);
    std::thread::scope(|scope| {
        scope.spawn(|| written(&timeline, "first", 1));
        stall.wait_for(&Stalled::Now);
        beside(&store, &timeline, file, &stall);
        stall.reach(Stalled::Over);
    });
}

#[test]
fn who_syncs_files_to_close_them_holds_up_no_snapshot_and_nobody_who_writes() {
    closing(
        "close-slowly",
        Place::Before(Call::SyncData),
        None,
        |store, timeline, file, stall| {
            std::thread::scope(|scope| {
                let taken = scope.spawn(|| snapshot(store, "s").map(drop));
                std::thread::sleep(MOMENT);
                let other = scope.spawn(|| timeline.write(file, 0, &[2; 4096], None));
                std::thread::sleep(MOMENT);
                let early = other.is_finished();
                stall.reach(Stalled::Over);
                taken.join().expect("no panic").expect("taken");
                assert_eq!(other.join().expect("no panic"), Ok(4096));
                assert!(early);
            });
        },
    );
}

#[test]
fn a_file_that_was_let_go_of_beside_a_sync_that_failed_is_synced_by_the_next() {
    closing(
        "close-failed",
        Place::Before(Call::SyncDir),
        Some(libc::EMFILE),
        |store, timeline, file, stall| {
            for name in ["second", "third", "fourth"] {
                written(timeline, name, 1);
            }
            assert_eq!(timeline.write(file, 0, &[2; 4096], None), Ok(4096));
            stall.reach(Stalled::Over);
            std::thread::sleep(MOMENT);
            snapshot(store, "s").expect("taken");
            assert!(timeline.view().is_durable(file));
        },
    );
}

#[test]
fn allocating_beside_writes_cuts_nothing_off() {
    const STEPS: u64 = 64;
    let scratch = Scratch::new("allocate");
    let (_store, timeline) = a_branch(&scratch, Disk::new());
    for round in 0..200 {
        let file = written(&timeline, &format!("file-{round}"), 1);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for step in 0..STEPS {
                    assert_eq!(timeline.write(file, step * 4096, &[7; 4096], None), Ok(4096));
                }
            });
            for step in 0..STEPS {
                let allocated = timeline.fallocate(file, Fallocate::Extend, 0, step * 4096 + 1, NOW);
                allocated.expect("allocated");
            }
        });
        let mut bytes = vec![0; (STEPS * 4096) as usize];
        assert_eq!(timeline.view().read(file, 0, &mut bytes), Ok(bytes.len()));
        assert!(bytes.iter().all(|byte| *byte == 7), "round {round}");
    }
}

#[test]
fn what_was_put_to_use_since_a_check_found_it_is_not_repaired() {
    let scratch = Scratch::new("repair");
    let (store, _timeline) = a_branch(&scratch, Disk::new());
    let layers = scratch.dir.join("layers");
    let names = std::fs::read_dir(&layers).expect("layers").flatten();
    let last = names.map(|layer| layer.file_name()).max().expect("a layer");
    let last = u64::from_str_radix(&last.to_string_lossy(), 16).expect("a number");
    let unused = (last + 1..last + 5).map(|number| layers.join(LayerId(number).to_string()));
    unused.for_each(|layer| std::fs::create_dir(layer).expect("made"));
    let other: BranchName = "other".parse().expect("a name");
    let checks = Checks {
        repair: true,
        ..Checks::default()
    };
    let findings = store.check(checks, &mut |doing| {
        if doing.ends_with("layers") {
            let made = store.create_branch(&other, &Start::Empty, (0, 0), NOW);
            made.expect("make a branch");
        }
    });
    let found = findings.expect("checked");
    assert_eq!(
        found.iter().filter(|found| found.repair.is_some()).count(),
        4,
        "{found:?}"
    );
    assert_eq!(found.iter().filter(|found| found.repaired).count(), 3, "{found:?}");
    written(&store.timeline(&other).expect("loaded"), "file", 8192);
}
