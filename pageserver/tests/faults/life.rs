//! A store's life as a list of steps, with a model that says after each what every branch and snapshot must hold.
//!
//! A step that is acknowledged has happened. One that failed has happened or not, and nothing between: the model takes
//! whichever of the two the store shows, and holds it to that.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pageserver::*;

/// Upkeep that flattens early.
fn tending(packing: Option<i32>) -> Tending {
    Tending {
        packing,
        flatten_every: 2,
    }
}

pub const NOW: Time = Time {
    secs: 1_700_000_000,
    nanos: 0,
};

pub type Tree = BTreeMap<String, Vec<u8>>;

/// What there is, by name: branches, and snapshots as `BRANCH@TAG`.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct World {
    pub branches: BTreeMap<String, Tree>,
    pub snapshots: BTreeMap<String, Tree>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(dead_code, reason = "tests take what they need")]
pub enum Step {
    Branch(&'static str),
    Clone(&'static str, &'static str),
    Create(&'static str, &'static str),
    Write(&'static str, &'static str, usize, usize, u8),
    Resize(&'static str, &'static str, usize),
    Unlink(&'static str, &'static str),
    /// Unlinks a file that stays open.
    Orphan(&'static str, &'static str),
    Rename(&'static str, &'static str, &'static str),
    Sync(&'static str, &'static str),
    Snapshot(&'static str),
    Checkout(&'static str),
    DestroySnapshot(&'static str),
    DestroyBranch(&'static str),
    Tidy,
    /// All that the store does for itself.
    Upkeep,
    /// The same in a compressed store.
    Pack,
    Close(&'static str),
    Reopen,
}

impl Step {
    /// The branch of a step on files.
    fn on_files_of(&self) -> Option<&'static str> {
        use Step::*;
        match self {
            Create(b, _) | Write(b, ..) | Resize(b, ..) | Unlink(b, _) | Orphan(b, _) | Rename(b, ..) | Sync(b, _) => {
                Some(b)
            }
            _ => None,
        }
    }
}

impl World {
    fn file(&mut self, branch: &str, name: &str) -> Option<&mut Vec<u8>> {
        self.branches.get_mut(branch)?.get_mut(name)
    }

    /// What a step makes of it; `None` where it can't be done.
    pub fn after(&self, step: &Step) -> Option<World> {
        let mut new = self.clone();
        match *step {
            Step::Branch(b) => new_entry(&mut new.branches, b, Tree::new())?,
            Step::Clone(b, snapshot) => new_entry(&mut new.branches, b, self.snapshots.get(snapshot)?.clone())?,
            Step::Create(b, f) => new_entry(new.branches.get_mut(b)?, f, Vec::new())?,
            Step::Write(b, f, offset, len, byte) => {
                let file = new.file(b, f)?;
                file.resize(file.len().max(offset + len), 0);
                file[offset..offset + len].fill(byte);
            }
            Step::Resize(b, f, size) => new.file(b, f)?.resize(size, 0),
            Step::Unlink(b, f) | Step::Orphan(b, f) => drop(new.branches.get_mut(b)?.remove(f)?),
            Step::Rename(b, from, to) => {
                let tree = new.branches.get_mut(b)?;
                let file = tree.remove(from)?;
                tree.insert(to.into(), file);
            }
            Step::Sync(b, f) => drop(new.file(b, f)?),
            Step::Snapshot(name) => {
                let tree = self.branches.get(branch_of(name))?.clone();
                new_entry(&mut new.snapshots, name, tree)?;
            }
            Step::Checkout(name) => new.check_out(name)?,
            Step::DestroySnapshot(name) => drop(new.snapshots.remove(name)?),
            Step::DestroyBranch(b) => {
                new.branches.remove(b)?;
                new.snapshots.retain(|name, _| branch_of(name) != b);
            }
            Step::Tidy | Step::Upkeep | Step::Pack | Step::Close(_) | Step::Reopen => {}
        }
        Some(new)
    }

    fn check_out(&mut self, name: &str) -> Option<()> {
        let target = self.snapshots.get(name)?.clone();
        let branch = branch_of(name);
        let kept = self.branches.insert(branch.into(), target)?;
        let n = (0..).find(|n| !self.snapshots.contains_key(&format!("{branch}@HEAD{{{n}}}")))?;
        self.snapshots.insert(format!("{branch}@HEAD{{{n}}}"), kept);
        Some(())
    }

    /// What a step that failed may leave beside the old and the new state: a file that has grown and reads as zeros there,
    /// when even taking the growth back failed.
    fn between(&self, step: &Step) -> Option<World> {
        let &Step::Write(b, f, offset, len, _) = step else {
            return None;
        };
        let mut grown = self.clone();
        let file = grown.file(b, f)?;
        file.resize(file.len().max(offset + len), 0);
        Some(grown)
    }
}

fn new_entry<T>(map: &mut BTreeMap<String, T>, name: &str, value: T) -> Option<()> {
    map.insert(name.into(), value).is_none().then_some(())
}

pub fn branch_of(snapshot: &str) -> &str {
    snapshot.split('@').next().unwrap_or(snapshot)
}

/// A store that lives, and what its model says.
pub struct Life {
    dir: PathBuf,
    disk: Disk,
    store: Option<Arc<Store>>,
    timelines: BTreeMap<String, Arc<Timeline>>,
    pub world: World,
    /// Branches that have been told of an error of the disk and not been closed since.
    poisoned: BTreeSet<String>,
}

impl Life {
    pub fn new(dir: &Path, disk: Disk, world: World) -> Life {
        Life {
            dir: dir.into(),
            disk,
            store: None,
            timelines: BTreeMap::new(),
            world,
            poisoned: BTreeSet::new(),
        }
    }

    pub fn open(&mut self) -> Result<()> {
        self.timelines.clear();
        self.poisoned.clear();
        self.store = None;
        self.store = Some(Store::open(&self.dir, self.disk.clone())?);
        Ok(())
    }

    fn store(&self) -> &Arc<Store> {
        self.store.as_ref().expect("an open store")
    }

    /// Takes a step; the model follows where it was acknowledged. One that was refused for what it asked is a mistake of
    /// the test.
    pub fn take(&mut self, step: &Step) -> std::result::Result<(), String> {
        let done = self.attempt(step);
        if let (Some(branch), Err(error)) = (step.on_files_of(), &done)
            && error == "EIO"
        {
            self.poisoned.insert(branch.into());
        }
        if done.is_ok() {
            if let Step::Sync(branch, _) = step {
                assert!(
                    !self.poisoned.contains(*branch),
                    "{step:?}: a sync of a poisoned head was believed"
                );
            }
            self.world = self
                .world
                .after(step)
                .unwrap_or_else(|| panic!("{step:?} can't have been done"));
        }
        done
    }

    #[allow(dead_code, reason = "tests take what they need")]
    /// After a step that failed: the store shows the old or the new state, and is held to it.
    pub fn settle(&mut self, step: &Step, error: &str, failed_more_than_once: bool) {
        if self.store.is_none() {
            self.open().expect("a mended store opens");
        }
        let seen = self.observe();
        let new = self.world.after(step);
        let between = self.world.between(step).filter(|_| failed_more_than_once);
        let may_be = [Some(self.world.clone()), new, between];
        let found = may_be.iter().flatten().any(|world| *world == seen);
        assert!(
            found,
            "{step:?} failed ({error}) and left {}",
            differences(&self.world, &seen)
        );
        self.world = seen;
    }

    fn attempt(&mut self, step: &Step) -> std::result::Result<(), String> {
        let store = self.store().clone();
        let branch = |name: &str| name.parse::<BranchName>().expect("a name");
        let snapshot = |name: &str| name.parse::<SnapshotName>().expect("a name");
        let told = |error: Error| format!("{error}");
        match *step {
            Step::Branch(b) => made(store.create_branch(&branch(b), &Start::Empty, (0, 0), NOW)),
            Step::Clone(b, s) => made(store.create_branch(&branch(b), &Start::Snapshot(snapshot(s)), (0, 0), NOW)),
            Step::Snapshot(s) => made(store.create_snapshot(&snapshot(s), Keep::default(), NOW)),
            Step::Checkout(s) => {
                self.close(branch_of(s));
                made(store.checkout(&snapshot(s), NOW))
            }
            Step::DestroySnapshot(s) => store.destroy_snapshot(&snapshot(s)).map_err(told),
            Step::DestroyBranch(b) => {
                self.close(b);
                store.destroy_branch(&branch(b)).map_err(told)
            }
            Step::Tidy => {
                store.tidy();
                Ok(())
            }
            Step::Upkeep => {
                while store.tend(&tending(None), &mut |_| true).map_err(told)? {}
                Ok(())
            }
            Step::Pack => {
                while store.tend(&tending(Some(3)), &mut |_| true).map_err(told)? {}
                Ok(())
            }
            Step::Close(b) => {
                self.close(b);
                Ok(())
            }
            Step::Reopen => {
                drop(store);
                self.open().map_err(told)
            }
            _ => self.on_files(step),
        }
    }

    fn close(&mut self, branch: &str) {
        self.timelines.remove(branch);
        self.poisoned.remove(branch);
    }

    fn timeline(&mut self, branch: &str) -> Result<Arc<Timeline>> {
        if let Some(timeline) = self.timelines.get(branch) {
            return Ok(timeline.clone());
        }
        let loaded = self.store().timeline(&branch.parse()?)?;
        self.timelines.insert(branch.into(), loaded.clone());
        Ok(loaded)
    }

    fn on_files(&mut self, step: &Step) -> std::result::Result<(), String> {
        let branch = step.on_files_of().expect("a step on files");
        let timeline = self.timeline(branch).map_err(|e| e.to_string())?;
        let ino = |name: &str| timeline.view().lookup(Ino::ROOT, OsStr::new(name)).map(|attr| attr.ino);
        let done = match *step {
            Step::Create(_, f) => timeline.create(Ino::ROOT, OsStr::new(f), a_file(), NOW).map(|_| ()),
            Step::Write(_, f, offset, len, byte) => ino(f).and_then(|ino| {
                timeline
                    .write(ino, offset as u64, &vec![byte; len], Some(NOW))
                    .map(|_| ())
            }),
            Step::Resize(_, f, size) => ino(f).and_then(|ino| timeline.setattr(ino, size_of(size), NOW).map(|_| ())),
            Step::Unlink(_, f) => timeline
                .unlink(Ino::ROOT, OsStr::new(f), NOW)
                .map(|gone| timeline.forget(gone.ino)),
            Step::Orphan(_, f) => timeline.unlink(Ino::ROOT, OsStr::new(f), NOW).map(|_| ()),
            Step::Rename(_, from, to) => {
                let (from, to) = (OsStr::new(from), OsStr::new(to));
                let renamed = timeline.rename(Ino::ROOT, from, Ino::ROOT, to, Rename::Replace, NOW);
                renamed.map(|gone| gone.into_iter().for_each(|gone| timeline.forget(gone.ino)))
            }
            Step::Sync(_, f) => ino(f).and_then(|ino| timeline.fsync(ino)),
            _ => unreachable!("a step on files"),
        };
        done.map_err(|errno| format!("{errno:?}"))
    }

    /// What the store shows, by reading all of it.
    pub fn observe(&self) -> World {
        let store = self.store();
        let mut seen = World::default();
        for branch in store.branches() {
            let timeline = store.timeline(&branch.name).expect("a branch that can be loaded");
            seen.branches.insert(branch.name.to_string(), tree(timeline.view()));
        }
        for snapshot in store.snapshots(None) {
            let view = store
                .snapshot_view(&snapshot.name)
                .expect("a snapshot that can be loaded");
            seen.snapshots.insert(snapshot.name.to_string(), tree(&view));
        }
        seen
    }

    /// Destroys everything: then nothing may be left of any layer.
    pub fn end(&mut self) {
        self.timelines.clear();
        let store = self.store();
        while !store.branches().is_empty() {
            let before = store.branches().len();
            for branch in store.branches() {
                match store.destroy_branch(&branch.name) {
                    Ok(()) | Err(Error::Needed { .. }) => {}
                    Err(error) => panic!("{}: {error}", branch.name),
                }
            }
            assert!(store.branches().len() < before, "branches that need each other");
        }
        self.open().expect("an empty store opens");
        let count = |dir| std::fs::read_dir(self.dir.join(dir)).map_or(0, Iterator::count);
        assert_eq!(count("layers"), 0, "layers are left over");
        assert_eq!(count("packs"), 0, "packs are left over");
        assert!(!self.dir.join("lost").exists(), "layers were put aside");
    }
}

/// Where two worlds differ, briefly.
pub fn differences(expected: &World, seen: &World) -> String {
    let trees = |world: &World| -> BTreeMap<String, Tree> {
        world
            .branches
            .clone()
            .into_iter()
            .chain(world.snapshots.clone())
            .collect()
    };
    let (expected, seen) = (trees(expected), trees(seen));
    let names: BTreeSet<&String> = expected.keys().chain(seen.keys()).collect();
    let differ = names.into_iter().filter(|name| expected.get(*name) != seen.get(*name));
    let told = differ.map(|name| {
        format!(
            "{name}: {} instead of {}",
            brief(seen.get(name)),
            brief(expected.get(name))
        )
    });
    told.collect::<Vec<_>>().join("; ")
}

/// Each file as runs of equal bytes.
fn brief(tree: Option<&Tree>) -> String {
    let Some(tree) = tree else { return "nothing".into() };
    let file = |(name, bytes): (&String, &Vec<u8>)| {
        let runs = bytes
            .chunk_by(|a, b| a == b)
            .map(|run| format!("{}x{}", run[0], run.len()));
        format!("{name}[{}]", runs.collect::<Vec<_>>().join(" "))
    };
    tree.iter().map(file).collect::<Vec<_>>().join(" ")
}

fn made<T>(result: Result<T>) -> std::result::Result<(), String> {
    result.map(|_| ()).map_err(|error| error.to_string())
}

fn a_file() -> NewNode {
    NewNode {
        kind: NewKind::File,
        mode: 0o600,
        uid: 0,
        gid: 0,
    }
}

fn size_of(size: usize) -> SetAttr {
    SetAttr {
        size: Some(size as u64),
        ..SetAttr::default()
    }
}

fn tree(view: &View) -> Tree {
    let entries = view.readdir(Ino::ROOT, 0, 1000).expect("listed");
    let read = |entry: DirEntry| {
        let size = view.getattr(entry.ino).expect("there").size as usize;
        let mut bytes = vec![0xEE; size];
        assert_eq!(view.read(entry.ino, 0, &mut bytes), Ok(size), "{:?}", entry.name);
        (entry.name.to_string_lossy().into_owned(), bytes)
    };
    entries.into_iter().map(read).collect()
}

/// A store in a directory of its own, made once and copied for each run: making one takes its time.
pub struct Template(PathBuf);

impl Template {
    pub fn new(test: &str) -> Template {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{test}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        Store::create(&dir.join("template"), Disk::new()).expect("make a store");
        Template(dir)
    }

    pub fn copy(&self, name: &str) -> PathBuf {
        let dir = self.0.join(name);
        let _ = std::fs::remove_dir_all(&dir);
        copy_dir(&self.0.join("template"), &dir);
        dir
    }
}

impl Drop for Template {
    /// What failed is worth a look.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir(to).expect("a new directory");
    for entry in std::fs::read_dir(from).expect("listed").flatten() {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        match from.is_dir() {
            true => copy_dir(&from, &to),
            false => drop(std::fs::copy(&from, &to).expect("copied")),
        }
    }
}
