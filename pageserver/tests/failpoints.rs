//! The process is killed between two steps of an operation on the store, at every point that has a name and at every
//! call that changes the disk, in histories that chance has made; some of them are killed again while the store is being
//! opened. What is there after that is the state before the operation or the one after it, and nothing of a layer is
//! left over.
//!
//! The process is this test's own program, started again for each kill with what it is to do in its environment.
//! Two histories of each operation in the short form, 20 with `ZENITH_FAULTS=all`.

#[path = "faults/life.rs"]
mod life;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use life::{Life, Step, Template, World, branch_of, differences};
use pageserver::*;

const KILLED: i32 = 77;
const HISTORIES: u64 = 2;
const HISTORIES_LONG: u64 = 20;

/// Deep enough for a load to leave an image.
const MANY_LAYERS: usize = 33;

const OPERATIONS: [&str; 13] = [
    "seal",
    "seal again",
    "checkout",
    "clone",
    "destroy a snapshot",
    "destroy a branch",
    "tidy",
    "load",
    "image",
    "checksums",
    "flatten",
    "merge",
    "pack",
];

const LOOKS: [Call; 9] = [
    Call::Open,
    Call::Read,
    Call::Advise,
    Call::Floor,
    Call::Seek,
    Call::Map,
    Call::Stat,
    Call::List,
    Call::Space,
];

/// Ends the process at the n-th point after it was armed. Its name goes to standard output.
struct Killer {
    armed: AtomicBool,
    left: AtomicUsize,
}

impl Killer {
    fn count(&self, point: &str) {
        if self.armed.load(Ordering::Relaxed) && self.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            println!("killed at {point}");
            // SAFETY: ends the process without running anything of it, as a kill does.
            unsafe { libc::_exit(KILLED) };
        }
    }
}

impl Hook for Killer {
    fn before(&self, call: Call) -> io::Result<()> {
        // Before a call that changes nothing is where the last one was that did.
        if !LOOKS.contains(&call) {
            self.count(&format!("{call:?}"));
        }
        Ok(())
    }

    fn at(&self, point: &'static str) {
        self.count(point);
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len() as u64) as usize]
    }
}

/// A history, the last step of which is the operation.
struct History {
    steps: Vec<Step>,
    world: World,
    random: Random,
    made: usize,
}

impl History {
    fn of(operation: &str, seed: u64) -> History {
        let mut history = History {
            steps: Vec::new(),
            world: World::default(),
            random: Random(seed),
            made: 0,
        };
        history.push(Step::Branch("main"));
        history.push(Step::Create("main", "a"));
        history.push(Step::Snapshot("main@base"));
        for _ in 0..10 + history.random.below(20) {
            history.push_any();
        }
        history.push_operation(operation);
        history
    }

    /// Adds a step where it can be done.
    fn push(&mut self, step: Step) {
        if let Some(world) = self.world.after(&step) {
            self.world = world;
            self.steps.push(step);
        }
    }

    fn push_any(&mut self) {
        let branch = self.random.pick(&["main", "dev"]);
        let (file, other) = (self.random.pick(&["a", "b", "c"]), self.random.pick(&["a", "b", "c"]));
        let (offset, len) = (self.random.below(30_000) as usize, 1 + self.random.below(9000) as usize);
        let step = match self.random.below(10) {
            0 => Step::Clone("dev", "main@base"),
            1 => Step::Create(branch, file),
            2..=5 => Step::Write(branch, file, offset, len, self.random.below(9) as u8),
            6 => Step::Resize(branch, file, offset),
            7 if file != other => Step::Rename(branch, file, other),
            8 => Step::Unlink(branch, file),
            9 => Step::Snapshot(self.new_tag(branch)),
            _ => Step::Sync(branch, file),
        };
        self.push(step);
    }

    fn new_tag(&mut self, branch: &str) -> &'static str {
        self.made += 1;
        format!("{branch}@t{}", self.made).leak()
    }

    fn push_operation(&mut self, operation: &str) {
        self.push(Step::Create("main", "last"));
        self.push(Step::Write("main", "last", 0, 5000, 200));
        match operation {
            "seal" => self.push(Step::Snapshot("main@new")),
            "seal again" => {
                self.push(Step::Snapshot("main@once"));
                self.push(Step::Snapshot("main@new"));
            }
            "checkout" => self.push(Step::Checkout("main@base")),
            "clone" => self.push(Step::Clone("new", "main@base")),
            "destroy a snapshot" => {
                self.push(Step::Snapshot("main@below"));
                self.push(Step::Write("main", "last", 0, 100, 201));
                self.push(Step::Checkout("main@base"));
                self.push(Step::DestroySnapshot("main@HEAD{0}"));
            }
            "destroy a branch" => {
                self.push(Step::Clone("going", "main@base"));
                self.push(Step::Write("going", "a", 0, 100, 1));
                self.push(Step::Snapshot("going@x"));
                self.push(Step::Write("going", "a", 0, 100, 2));
                self.push(Step::DestroyBranch("going"));
            }
            "tidy" => {
                self.push(Step::Unlink("main", "last"));
                self.push(Step::Tidy);
            }
            "load" => {
                self.push(Step::Orphan("main", "last"));
                self.push(Step::Close("main"));
                self.push(Step::Create("main", "after"));
            }
            "image" => {
                for layer in 0..MANY_LAYERS {
                    self.push(Step::Write("main", "last", layer * 100, 100, layer as u8));
                    let tag = self.new_tag("main");
                    self.push(Step::Snapshot(tag));
                }
                let last = format!("main@t{}", self.made).leak();
                self.push(Step::Reopen);
                self.push(Step::Clone("new", last));
            }
            "checksums" => {
                self.push(Step::Snapshot("main@new"));
                self.push(Step::Upkeep);
            }
            "flatten" => {
                self.push_layers();
                self.push(Step::Upkeep);
            }
            "merge" => {
                self.push_mergeable();
                self.push(Step::Upkeep);
            }
            "pack" => {
                self.push_mergeable();
                self.push(Step::Pack);
            }
            _ => unreachable!("an operation"),
        }
    }

    /// As [`History::push_layers`], and then only the first and the last keep their names.
    fn push_mergeable(&mut self) {
        let names = self.push_layers();
        for name in &names[..names.len() - 1] {
            self.push(Step::DestroySnapshot(name));
        }
    }

    /// Layers in which files were written, cut, replaced and removed, each with a name.
    fn push_layers(&mut self) -> Vec<&'static str> {
        self.push(Step::Create("main", "cut"));
        self.push(Step::Write("main", "cut", 0, 60_000, 1));
        self.push(Step::Create("main", "gone"));
        self.push(Step::Write("main", "gone", 0, 9000, 2));
        self.push(Step::Snapshot("main@first"));
        let mut names = Vec::new();
        for nth in 0..4_u8 {
            self.push(Step::Write("main", "last", usize::from(nth) * 5000, 9000, 10 + nth));
            self.push(Step::Write("main", "cut", usize::from(nth) * 3000, 100, 20 + nth));
            self.push(Step::Resize("main", "cut", 50_000 - usize::from(nth) * 1000));
            match nth {
                1 => self.push(Step::Unlink("main", "gone")),
                2 => self.push(Step::Create("main", "gone")),
                _ => self.push(Step::Write("main", "a", usize::from(nth) * 4096, 8192, 30 + nth)),
            }
            let name = self.new_tag("main");
            self.push(Step::Snapshot(name));
            names.push(name);
        }
        names
    }

    /// What there may be after a kill in the last step.
    fn before_and_after(&self) -> [World; 2] {
        let before = self.steps[..self.steps.len() - 1].iter();
        let before = before.fold(World::default(), |world, step| {
            world.after(step).expect("a step that can be done")
        });
        [before, self.world.clone()]
    }
}

/// What a child does: a history up to its last step, armed for that one, or only opening the store, armed.
fn start_child(dir: &Path, task: &str, kill_at: usize) -> Option<String> {
    let output = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "child", "--ignored", "--nocapture", "--test-threads=1"])
        .env("ZENITH_CHILD_DIR", dir)
        .env("ZENITH_CHILD_TASK", task)
        .env("ZENITH_CHILD_KILL", kill_at.to_string())
        .output()
        .expect("the child runs");
    let said = String::from_utf8_lossy(&output.stdout);
    match output.status.code() {
        Some(0) => None,
        Some(KILLED) => {
            let point = said
                .lines()
                .find_map(|line| line.split_once("killed at "))
                .map(|(_, point)| point.to_owned());
            Some(point.expect("a point"))
        }
        _ => panic!("{task}, killed at {kill_at}: {output:?}"),
    }
}

#[test]
#[ignore = "what the other test starts"]
fn child() {
    let told = |name: &str| std::env::var(name).expect("started by the other test");
    let (dir, task) = (told("ZENITH_CHILD_DIR"), told("ZENITH_CHILD_TASK"));
    let killer = Arc::new(Killer {
        armed: AtomicBool::new(task == "open"),
        left: AtomicUsize::new(told("ZENITH_CHILD_KILL").parse().expect("a number")),
    });
    let disk = Disk::new().with_hook(killer.clone());
    let mut life = Life::new(Path::new(&dir), disk, World::default());
    life.open().expect("the store opens");
    let Some((operation, seed)) = task.split_once('/') else {
        return;
    };
    let history = History::of(operation, seed.parse().expect("a number"));
    let (last, steps) = history.steps.split_last().expect("steps");
    for step in steps {
        life.take(step).unwrap_or_else(|error| panic!("{step:?}: {error}"));
    }
    killer.armed.store(true, Ordering::Relaxed);
    life.take(last).unwrap_or_else(|error| panic!("{last:?}: {error}"));
}

#[test]
fn a_kill_at_any_point_leaves_the_old_or_the_new_state_and_nothing_else() {
    let template = Template::new("failpoints");
    let histories = match std::env::var("ZENITH_FAULTS").as_deref() {
        Ok("all") => HISTORIES_LONG,
        _ => HISTORIES,
    };
    let mut points: BTreeMap<String, usize> = BTreeMap::new();
    for operation in OPERATIONS {
        let mut kills = 0;
        for seed in 0..histories {
            kills += kill_everywhere(&template, operation, seed, &mut points);
        }
        println!("{operation}: {kills} kills");
    }
    println!("{points:?}");
    let named: BTreeSet<&str> = points
        .keys()
        .map(String::as_str)
        .filter(|point| point.contains(": "))
        .collect();
    assert_eq!(named, NAMED_POINTS.into(), "every named point is killed at");
}

const NAMED_POINTS: [&str; 29] = [
    "branch: committed",
    "branch: head made",
    "branch: synced",
    "checkout: committed",
    "collect: about to remove",
    "collect: committed",
    "destroy: committed",
    "flatten: file copied",
    "flatten: marked",
    "fold: collected",
    "head: layer made",
    "image: made",
    "merge: about to remove",
    "merge: committed",
    "merge: files done",
    "merge: marked",
    "merge: pack made",
    "names: committed",
    "orphans: dropped",
    "pack: about to remove",
    "pack: committed",
    "pack: made",
    "seal: committed",
    "seal: heads swapped",
    "seal: layer made",
    "seal: synced",
    "sums: made",
    "sweep: about to remove",
    "tidy: about to remove",
];

/// Kills one history's operation at its first point, at its second, and so on; returns how often.
fn kill_everywhere(template: &Template, operation: &str, seed: u64, points: &mut BTreeMap<String, usize>) -> usize {
    let history = History::of(operation, seed);
    for kill_at in 1.. {
        let dir = template.copy("store");
        let task = format!("{operation}/{seed}");
        let Some(point) = start_child(&dir, &task, kill_at) else {
            return kill_at - 1;
        };
        // Every other time the next life is killed too, at one of its first points.
        let again = match kill_at % 2 {
            0 => start_child(&dir, "open", 1 + (kill_at / 2 + seed as usize) % 12),
            _ => None,
        };
        let what = format!("{task} killed at {kill_at} ({point}), then at {again:?}");
        check(&dir, &history, &what);
        for point in again.into_iter().chain([point]) {
            *points.entry(point).or_default() += 1;
        }
    }
    unreachable!("an operation without end")
}

fn check(dir: &Path, history: &History, what: &str) {
    let [before, after] = history.before_and_after();
    let mut life = Life::new(dir, Disk::new(), before.clone());
    life.open().unwrap_or_else(|error| panic!("{what}: {error}"));
    let seen = life.observe();
    assert!(
        seen == before || seen == after,
        "{what}: against before: {}; against after: {}",
        differences(&before, &seen),
        differences(&after, &seen)
    );
    life.world = seen;
    goes_on(&mut life, what);
    life.end();
}

/// The store can be used as if nothing had been.
fn goes_on(life: &mut Life, what: &str) {
    let branches: Vec<String> = life.world.branches.keys().cloned().collect();
    for branch in branches {
        let branch: &'static str = branch.leak();
        let snapshot: &'static str = format!("{branch}@later").leak();
        assert_eq!(branch_of(snapshot), branch);
        for step in [
            Step::Create(branch, "later"),
            Step::Write(branch, "later", 0, 9000, 1),
            Step::Sync(branch, "later"),
            Step::Snapshot(snapshot),
        ] {
            life.take(&step)
                .unwrap_or_else(|error| panic!("{what}: then {step:?}: {error}"));
        }
    }
    life.take(&Step::Upkeep)
        .unwrap_or_else(|error| panic!("{what}: then upkeep: {error}"));
    let seen = life.observe();
    assert!(seen == life.world, "{what}: later: {}", differences(&life.world, &seen));
}
