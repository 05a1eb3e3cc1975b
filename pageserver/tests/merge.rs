//! Snapshots of a history and of a tree of branches go in random order, while their layers are merged: what can be seen never changes,
//! neither through views that are loaded then nor through those that were open before, and every block is what was sealed.
//!
//! `ZENITH_MERGES=N` destroys N snapshots (short: 150), `ZENITH_SEED=S` makes the same choices.

#[path = "support/random.rs"]
mod random;
#[path = "support/store.rs"]
mod store;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, Weak};

use pageserver::*;
use random::Random;
use store::Scratch;

const FILES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

/// The longest file, in bytes.
const LENGTH: u64 = 1_300_000;

const DESTROYED: u64 = 150;

/// What a view shows: of each file its attributes and its bytes.
type Seen = BTreeMap<String, (Attr, Vec<u8>)>;

/// Asks for the store's size in the middle of merges, when it is about to change.
#[derive(Default)]
struct Asks(Mutex<Weak<Store>>);

impl Hook for Asks {
    fn before(&self, _call: Call) -> std::io::Result<()> {
        Ok(())
    }

    fn at(&self, point: &'static str) {
        let store = self.0.lock().expect("no panic").upgrade();
        if let (Some(store), "merge: committed" | "merge: about to remove") = (store, point) {
            store.bytes().expect("told");
        }
    }
}

struct World {
    asks: Arc<Asks>,
    store: Option<Arc<Store>>,
    random: Random,
    clock: i64,
    branches: BTreeMap<BranchName, Arc<Timeline>>,
    snapshots: BTreeMap<SnapshotName, Seen>,
    /// Opened some time ago.
    open: BTreeMap<SnapshotName, Arc<View>>,
    made: u64,
    destroyed: u64,
    /// Layers are packed, too.
    packs: bool,
    /// Goes last.
    scratch: Scratch,
}

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).map_or(otherwise, |text| text.parse().expect("a number"))
}

fn seen(view: &View) -> Seen {
    let entries = view.readdir(Ino::ROOT, 0, usize::MAX).expect("a root");
    let file = |entry: DirEntry| {
        let attr = view.getattr(entry.ino).expect("an inode");
        let mut bytes = vec![0; attr.size as usize];
        assert_eq!(view.read(entry.ino, 0, &mut bytes).expect("readable"), bytes.len());
        (entry.name.to_string_lossy().into_owned(), (attr, bytes))
    };
    entries.into_iter().map(file).collect()
}

impl World {
    fn new(name: &str) -> World {
        let seed = number("ZENITH_SEED", 1);
        let mut world = World {
            scratch: Scratch::new(&format!("merge-{name}")),
            asks: Arc::default(),
            store: None,
            random: Random::new(seed),
            clock: 1_700_000_000,
            branches: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            open: BTreeMap::new(),
            made: 0,
            destroyed: 0,
            packs: false,
        };
        world.reopen();
        world.add_branch(&Start::Empty);
        world
    }

    fn store(&self) -> Arc<Store> {
        self.store.clone().expect("an open store")
    }

    fn now(&mut self) -> Time {
        self.clock += 1;
        Time {
            secs: self.clock,
            nanos: 5,
        }
    }

    fn reopen(&mut self) {
        let names: Vec<BranchName> = std::mem::take(&mut self.branches).into_keys().collect();
        self.open.clear();
        self.store = None;
        let disk = Disk::new().with_open_files_max(40).with_hook(self.asks.clone());
        let store = self.scratch.open(disk);
        *self.asks.0.lock().expect("no panic") = Arc::downgrade(&store);
        self.store = Some(store);
        for name in names {
            let timeline = self.store().timeline(&name).expect("loads");
            self.branches.insert(name, timeline);
        }
    }

    fn add_branch(&mut self, start: &Start) {
        self.made += 1;
        let name: BranchName = format!("b{}", self.made).parse().expect("a name");
        let now = self.now();
        let store = self.store();
        let made = store.create_bound_branch(&name, start, Bond::Independent, (0, 0), now);
        made.expect("a branch");
        self.branches
            .insert(name.clone(), store.timeline(&name).expect("loads"));
    }

    fn a_branch(&mut self) -> (BranchName, Arc<Timeline>) {
        let at = self.random.below(self.branches.len() as u64) as usize;
        let (name, timeline) = self.branches.iter().nth(at).expect("a branch");
        (name.clone(), timeline.clone())
    }

    /// Changes files of a branch: a few large writes, many small ones, cuts, files that come and go.
    fn change(&mut self) {
        let (_, timeline) = self.a_branch();
        for _ in 0..1 + self.random.below(12) {
            let name = *self.random.pick(&FILES).expect("a name");
            let now = self.now();
            let ino = store::file(&timeline, name, now);
            let offset = self.random.below(LENGTH);
            match self.random.below(20) {
                0 => {
                    timeline.unlink(Ino::ROOT, OsStr::new(name), now).expect("unlinked");
                    timeline.forget(ino);
                }
                1..=3 => {
                    let set = SetAttr {
                        size: Some(offset),
                        ..SetAttr::default()
                    };
                    timeline.setattr(ino, set, now).expect("resized");
                }
                4..=5 => self.write(&timeline, ino, offset, LENGTH - offset, now),
                _ => {
                    let len = 1 + self.random.below(20_000);
                    self.write(&timeline, ino, offset, len, now);
                }
            }
        }
    }

    fn write(&mut self, timeline: &Timeline, ino: Ino, offset: u64, len: u64, now: Time) {
        let byte = 1 + self.random.below(255) as u8;
        timeline
            .write(ino, offset, &vec![byte; len as usize], Some(now))
            .expect("written");
    }

    fn snapshot(&mut self) {
        let (branch, timeline) = self.a_branch();
        self.made += 1;
        let name: SnapshotName = format!("{branch}@s{}", self.made).parse().expect("a name");
        let now = self.now();
        let store = self.store();
        store.create_snapshot(&name, Keep::default(), now).expect("taken");
        self.snapshots.insert(name, seen(timeline.view()));
    }

    fn snapshot_as(&mut self, branch: &BranchName, timeline: &Timeline, tag: &str) -> SnapshotName {
        let name: SnapshotName = format!("{branch}@{tag}").parse().expect("a name");
        let (store, now) = (self.store(), self.now());
        store.create_snapshot(&name, Keep::default(), now).expect("taken");
        self.snapshots.insert(name.clone(), seen(timeline.view()));
        name
    }

    fn upkeep(&self) -> Result<()> {
        while self.store().tend(&Tending::default(), &mut |_| true)? {}
        Ok(())
    }

    /// Changes a bit of a block in a layer, or changes it back. The oldest layer is the first.
    fn flip(&self, layer: usize, file: Ino, block: u64) {
        let layers = std::fs::read_dir(self.scratch.dir.join("layers")).expect("layers");
        let mut layers: Vec<_> = layers.flatten().map(|layer| layer.path()).collect();
        layers.sort();
        let path = layers[layer].join(file.to_string());
        let file = std::fs::File::options()
            .read(true)
            .write(true)
            .open(path)
            .expect("open");
        let mut byte = [0];
        file.read_exact_at(&mut byte, block * 4096).expect("read");
        file.write_all_at(&[byte[0] ^ 4], block * 4096).expect("written");
    }

    fn fork(&mut self) {
        if let Some(name) = self.a_snapshot() {
            self.add_branch(&Start::Snapshot(name));
        }
    }

    fn a_snapshot(&mut self) -> Option<SnapshotName> {
        let names: Vec<SnapshotName> = self.snapshots.keys().cloned().collect();
        self.random.pick(&names).cloned()
    }

    fn look(&mut self) {
        if let Some(name) = self.a_snapshot() {
            let view = self.store().snapshot_view(&name).expect("loads");
            self.open.insert(name, view);
        }
    }

    fn destroy(&mut self) {
        if let Some(name) = self.a_snapshot() {
            self.open.remove(&name);
            match self.store().destroy_snapshot(&name) {
                Ok(()) => {
                    self.snapshots.remove(&name);
                    self.destroyed += 1;
                }
                Err(Error::Busy { .. }) => {}
                Err(error) => panic!("{name}: {error}"),
            }
        }
    }

    /// Some of the packing and the merging; now and then it is interrupted.
    fn tend(&mut self) {
        let mut left = self.random.below(60);
        let tending = Tending {
            packing: (self.packs && self.random.below(3) > 0).then_some(1),
            flatten_every: 2 + self.random.below(6) as usize,
        };
        while self
            .store()
            .tend(&tending, &mut |_| {
                left = left.saturating_sub(1);
                left > 0
            })
            .expect("upkeep")
        {}
    }

    /// What can be seen is what was there, through views old and new.
    fn compare(&self) {
        for (name, then) in &self.snapshots {
            let view = self.store().snapshot_view(name).expect("loads");
            same(&seen(&view), then, &format!("{name}"));
        }
        for (name, view) in &self.open {
            same(&seen(view), &self.snapshots[name], &format!("{name}, opened before"));
        }
    }

    /// What the store tells of its size is what is on the disk.
    fn size(&self) {
        let bytes = |dir: &str| {
            let entries = std::fs::read_dir(self.scratch.dir.join(dir))
                .into_iter()
                .flatten()
                .flatten();
            let blocks = |path: &std::path::Path| path.metadata().expect("stat").blocks() * 512;
            let files = entries.map(|entry| match entry.path() {
                dir if dir.is_dir() => dir
                    .read_dir()
                    .expect("listed")
                    .flatten()
                    .map(|file| blocks(&file.path()))
                    .sum(),
                file => blocks(&file),
            });
            files.sum::<u64>()
        };
        let (told, found) = (self.store().bytes().expect("told"), bytes("layers") + bytes("packs"));
        // The disk may still be finding places for what a head has.
        assert!(told.abs_diff(found) <= 64 << 10, "{told} bytes instead of {found}");
    }

    /// Nothing worse than that is found.
    fn check(&self, worst: Severity) {
        self.store().tidy();
        let checks = Checks {
            blocks_from: Some(LayerId(0)),
            ..Checks::default()
        };
        let findings = self.store().check(checks, &mut |_| {}).expect("checked");
        let bad = findings.iter().find(|finding| finding.severity > worst);
        assert!(bad.is_none(), "{bad:?}");
    }
}

fn same(now: &Seen, then: &Seen, what: &str) {
    assert!(
        now.keys().eq(then.keys()),
        "{what}: {:?} instead of {:?}",
        now.keys(),
        then.keys()
    );
    for (name, (attr, bytes)) in now {
        let (attr_then, bytes_then) = &then[name];
        assert_eq!((attr.ino, attr.size), (attr_then.ino, attr_then.size), "{what}: {name}");
        let differs = bytes.iter().zip(bytes_then).position(|(a, b)| a != b);
        assert_eq!(differs, None, "{what}: {name} differs there");
    }
}

#[test]
fn no_view_changes_when_others_go() {
    let mut world = World::new("views");
    live(&mut world, number("ZENITH_MERGES", DESTROYED));
    let upkeep = |store: &Store| while store.tend(&Tending::default(), &mut |_| true).expect("upkeep") {};
    upkeep(&world.store());
    world.size();
    while let Some(name) = world.a_snapshot() {
        let store = world.store();
        let (before, told) = (
            store.bytes().expect("told"),
            store.snapshot_bytes(&name).expect("told").alone,
        );
        store.destroy_snapshot(&name).expect("destroyed");
        upkeep(&store);
        let freed = before as i64 - store.bytes().expect("told") as i64;
        // Lists of extents come and go, too.
        assert!(
            freed.abs_diff(told as i64) <= 64 << 10,
            "{name}: {told} bytes were told, and {freed} came back"
        );
        world.snapshots.remove(&name);
        world.compare();
    }
    world.check(Severity::Note);
}

#[test]
fn no_view_changes_when_layers_are_packed() {
    let mut world = World::new("packs");
    world.packs = true;
    live(&mut world, number("ZENITH_MERGES", DESTROYED) / 2);
    while world
        .store()
        .tend(
            &Tending {
                packing: Some(1),
                ..Tending::default()
            },
            &mut |_| true,
        )
        .expect("upkeep")
    {}
    assert_eq!(world.store().unpacked(), 0);
    world.size();
    world.compare();
    world.reopen();
    world.compare();
    world.check(Severity::Note);
}

/// Branches are written and forked, snapshots come and go, until enough have gone.
fn live(world: &mut World, wanted: u64) {
    let mut heads: BTreeMap<BranchName, Seen> = BTreeMap::new();
    while world.destroyed < wanted {
        match world.random.below(100) {
            0..=34 => world.change(),
            35..=54 => world.snapshot(),
            55..=57 if world.branches.len() < 20 => world.fork(),
            58..=64 => world.look(),
            65..=79 => world.destroy(),
            80..=95 => {
                for (name, timeline) in &world.branches {
                    heads.insert(name.clone(), seen(timeline.view()));
                }
                world.tend();
                for (name, timeline) in &world.branches {
                    same(&seen(timeline.view()), &heads[name], &format!("the head of {name}"));
                }
                world.compare();
                world.size();
                world.check(Severity::Leftover);
            }
            96..=97 => world.reopen(),
            _ => world.compare(),
        }
    }
    world.reopen();
    world.compare();
    world.open.clear();
}

/// What a merge can't go on with stays as it is, is told, and can be read once it is what it was.
#[test]
fn damage_stops_a_merge_and_is_told_for_as_long_as_it_is_there() {
    let mut world = World::new("damage");
    let (branch, timeline) = world.a_branch();
    let now = world.now();
    let file = store::file(&timeline, "file", now);
    for (tag, blocks) in [("one", 400), ("two", 300), ("three", 1)] {
        let now = world.now();
        world.write(&timeline, file, 0, blocks * 4096, now);
        world.snapshot_as(&branch, &timeline, tag);
    }
    let found = |world: &World| {
        let checks = Checks {
            blocks_from: Some(LayerId(0)),
            ..Checks::default()
        };
        let findings = world.store().check(checks, &mut |_| {}).expect("checked");
        let damage = findings
            .into_iter()
            .filter(|finding| finding.severity == Severity::Damage);
        damage.map(|finding| finding.what).collect::<Vec<_>>()
    };
    world.upkeep().expect("upkeep");
    let flip = |world: &World| world.flip(0, file, 350);
    flip(&world);
    let told = vec![format!(
        "file: block 350 is not what was sealed; part of {branch}, {branch}@one, {branch}@three, {branch}@two"
    )];
    assert_eq!(found(&world), told);
    let one: SnapshotName = format!("{branch}@one").parse().expect("a name");
    world.store().destroy_snapshot(&one).expect("destroyed");
    world.snapshots.remove(&one);
    world.upkeep().expect_err("damage");
    assert!(
        world
            .store()
            .passed_over()
            .expect("told")
            .contains("not what was sealed")
    );
    world.upkeep().expect("upkeep");
    let told = vec![told[0].replace(&format!(" {one},"), "")];
    assert_eq!(found(&world), told);
    drop(timeline);
    world.reopen();
    world.upkeep().expect_err("damage");
    world.upkeep().expect("upkeep");
    assert_eq!(found(&world), told);
    flip(&world);
    world.reopen();
    world.upkeep().expect("upkeep");
    assert_eq!(found(&world), Vec::<String>::new());
    world.compare();
}

/// A layer that is half merged into the one on it shares files with that: nothing is merged into these.
#[test]
fn what_damage_has_left_half_merged_is_not_merged_with_what_is_below() {
    let mut world = World::new("half-merged");
    let (branch, timeline) = world.a_branch();
    let now = world.now();
    let [first, second] = ["first", "second"].map(|name| store::file(&timeline, name, now));
    let write = |world: &mut World, tag: &str, ranges: &[(Ino, std::ops::Range<u64>)]| {
        for (file, blocks) in ranges {
            let now = world.now();
            world.write(
                &timeline,
                *file,
                blocks.start * 4096,
                (blocks.end - blocks.start) * 4096,
                now,
            );
        }
        world.snapshot_as(&branch, &timeline, tag)
    };
    let below = write(&mut world, "below", &[(first, 0..6)]);
    let older = write(&mut world, "older", &[(first, 0..4), (second, 0..400)]);
    let newer = write(&mut world, "newer", &[(first, 4..9), (second, 0..300)]);
    drop(timeline);
    world.upkeep().expect("upkeep");
    world.flip(1, second, 350);
    world.store().destroy_snapshot(&older).expect("destroyed");
    world.upkeep().expect_err("damage");
    world.store().destroy_snapshot(&below).expect("destroyed");
    world.upkeep().expect("upkeep");
    world.flip(1, second, 350);
    for gone in [older, below] {
        world.snapshots.remove(&gone);
    }
    world.reopen();
    world.compare();
    world.upkeep().expect("upkeep");
    world.compare();
    assert!(world.snapshots.contains_key(&newer));
}
