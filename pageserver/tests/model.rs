//! The store against a plain in-memory model: random histories of writes, cuts, holes, renames, unlinks, snapshots,
//! clones, rollbacks and reopenings, after each of which every branch and snapshot must read as the model's.
//!
//! One store serves many seeds, each on branches of its own. `ZENITH_MODEL_SEEDS=N` runs N of them (short: 200),
//! `ZENITH_MODEL_SEED=S` only that one, which is what a failure prints.

#[path = "support/random.rs"]
mod random;
#[path = "model/tree.rs"]
mod tree;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::Arc;

use nix::errno::Errno;
use pageserver::*;
use random::Random;
use tree::Tree;

const STEPS: usize = 150;
const BRANCHES_MAX: usize = 3;
const SIZE_MAX: u64 = 80 * 1024;
const NAMES: [&str; 6] = ["a", "b", "c", "pg_wal", "e", "base"];
const NOW: Time = Time {
    secs: 1_700_000_000,
    nanos: 5,
};

/// An offset below `max`, often on the edge of a block, or next to it.
fn offset(random: &mut Random, max: u64) -> u64 {
    match random.below(4) {
        0 => random.below(max),
        1 => random.below(max / BLOCK) * BLOCK + 1,
        2 => (random.below(max / BLOCK) + 1) * BLOCK - 1,
        _ => random.below(max / BLOCK) * BLOCK,
    }
}

fn pick<T: Copy>(random: &mut Random, items: &[T]) -> T {
    *random.pick(items).expect("something to pick from")
}

struct Branch {
    name: BranchName,
    tree: Tree,
    timeline: Option<Arc<Timeline>>,
    orphans: Vec<Ino>,
    snapshots: BTreeMap<SnapshotName, Tree>,
}

struct World {
    dir: PathBuf,
    store: Option<Arc<Store>>,
    branches: Vec<Branch>,
    random: Random,
    seed: u64,
    made: usize,
}

fn open(dir: &std::path::Path) -> Arc<Store> {
    let disk = Disk::new().with_open_files_max(12);
    Store::open(dir, disk).expect("open the store")
}

impl World {
    fn store(&self) -> &Arc<Store> {
        self.store.as_ref().expect("an open store")
    }

    fn new_name(&mut self) -> BranchName {
        self.made += 1;
        format!("s{}-{}", self.seed, self.made).parse().expect("a valid name")
    }

    fn add_branch(&mut self, start: &Start, tree: Tree) {
        let name = self.new_name();
        let made = self.store().create_branch(&name, start, (0, 0), NOW);
        made.expect("make a branch");
        self.branches.push(Branch {
            name,
            tree,
            timeline: None,
            orphans: Vec::new(),
            snapshots: BTreeMap::new(),
        });
    }

    fn step(&mut self) {
        let at = self.random.below(self.branches.len() as u64) as usize;
        match self.random.below(100) {
            0..=29 => self.write(at),
            30..=39 => self.truncate(at),
            40..=45 => self.fallocate(at),
            46..=49 => self.copy(at),
            50..=59 => self.create(at),
            60..=64 => self.remove(at),
            65..=72 => self.rename(at),
            73..=75 => self.link(at),
            76..=78 => self.forget(at),
            79..=81 => self.sync(at),
            82..=87 => self.snapshot(at),
            88..=89 => self.upkeep(),
            90..=91 => self.clone_branch(at),
            92..=93 => self.checkout(at),
            94..=95 => self.destroy_snapshot(at),
            96..=97 => self.reopen(),
            _ => self.check(at),
        }
    }

    fn timeline(&mut self, at: usize) -> Arc<Timeline> {
        let store = self.store().clone();
        let branch = &mut self.branches[at];
        let load = || store.timeline(&branch.name).expect("load a timeline");
        branch.timeline.get_or_insert_with(load).clone()
    }

    fn a_file(&mut self, at: usize) -> Option<Ino> {
        let branch = &self.branches[at];
        let mut files = branch.tree.of_kind(Kind::File);
        files.extend(
            branch
                .orphans
                .iter()
                .filter(|ino| branch.tree.node(**ino).kind == Kind::File),
        );
        (!files.is_empty()).then(|| pick(&mut self.random, &files))
    }

    fn a_place(&mut self, at: usize) -> (Ino, &'static str) {
        let dirs = self.branches[at].tree.of_kind(Kind::Dir);
        (pick(&mut self.random, &dirs), pick(&mut self.random, &NAMES))
    }

    fn write(&mut self, at: usize) {
        let Some(ino) = self.a_file(at) else { return };
        let offset = offset(&mut self.random, SIZE_MAX);
        let len = match self.random.below(3) {
            0 => 1 + self.random.below(100),
            1 => 8192,
            _ => 1 + self.random.below(20_000),
        };
        let byte = self.random.below(5) as u8; // zeros are bytes too
        let data: Vec<u8> = (0..len).map(|i| if byte == 0 { 0 } else { byte ^ i as u8 }).collect();
        let written = self.timeline(at).write(ino, offset, &data, Some(NOW));
        assert_eq!(written, Ok(data.len()));
        self.branches[at].tree.write(ino, offset as usize, &data);
    }

    fn truncate(&mut self, at: usize) {
        let Some(ino) = self.a_file(at) else { return };
        let size = match self.random.below(5) {
            0 => 0,
            _ => offset(&mut self.random, SIZE_MAX),
        };
        let set = SetAttr {
            size: Some(size),
            ..SetAttr::default()
        };
        let attr = self.timeline(at).setattr(ino, set, NOW).expect("truncate");
        assert_eq!(attr.size, size);
        self.branches[at].tree.truncate(ino, size as usize);
    }

    fn fallocate(&mut self, at: usize) {
        let Some(ino) = self.a_file(at) else { return };
        let how = pick(
            &mut self.random,
            &[
                Fallocate::Extend,
                Fallocate::KeepSize,
                Fallocate::PunchHole,
                Fallocate::ZeroRange { keep_size: true },
                Fallocate::ZeroRange { keep_size: false },
            ],
        );
        let (offset, len) = (
            offset(&mut self.random, SIZE_MAX),
            1 + offset(&mut self.random, SIZE_MAX / 2),
        );
        let done = self.timeline(at).fallocate(ino, how, offset, len, NOW);
        assert_eq!(done, Ok(()));
        self.branches[at]
            .tree
            .fallocate(ino, how, offset as usize, len as usize);
    }

    fn copy(&mut self, at: usize) {
        let (Some(from), Some(to)) = (self.a_file(at), self.a_file(at)) else {
            return;
        };
        if from == to {
            return;
        }
        let (offset, to_offset) = (offset(&mut self.random, SIZE_MAX), offset(&mut self.random, SIZE_MAX));
        let data = &self.branches[at].tree.node(from).data;
        let len = (data.len() as u64).saturating_sub(offset).min(10_000);
        let bytes = data
            .get(offset as usize..(offset + len) as usize)
            .unwrap_or_default()
            .to_vec();
        let copied = self.timeline(at).copy_range(from, offset, to, to_offset, len, NOW);
        assert_eq!(copied, Ok(bytes.len()));
        if !bytes.is_empty() {
            self.branches[at].tree.write(to, to_offset as usize, &bytes);
        }
    }

    fn create(&mut self, at: usize) {
        let (dir, name) = self.a_place(at);
        let (kind, node, data) = match self.random.below(6) {
            0 => (Kind::Dir, NewKind::Dir, &b""[..]),
            1 => (Kind::Symlink, NewKind::Symlink("to/nowhere".into()), &b"to/nowhere"[..]),
            2 => (Kind::Fifo, NewKind::Fifo, &b""[..]),
            _ => (Kind::File, NewKind::File, &b""[..]),
        };
        let node = NewNode {
            kind: node,
            mode: 0o640,
            uid: 1,
            gid: 2,
        };
        let made = self
            .timeline(at)
            .create(dir, OsStr::new(name), node, NOW)
            .map(|attr| attr.ino);
        let expected = self.branches[at].tree.create(dir, name, kind, data, made.ok());
        assert_eq!(made.map(|_| ()), expected);
    }

    /// What lost its last name is kept open for a while, or not.
    fn orphan(&mut self, at: usize, ino: Ino) {
        if self.branches[at].tree.node(ino).nlink > 0 {
            return;
        }
        if self.random.below(2) == 0 {
            self.branches[at].orphans.push(ino);
        } else {
            self.timeline(at).forget(ino);
            self.branches[at].tree.0.remove(&ino);
        }
    }

    fn remove(&mut self, at: usize) {
        let (dir, name) = self.a_place(at);
        let timeline = self.timeline(at);
        let tree = &mut self.branches[at].tree;
        let (real, expected) = match self.random.below(2) {
            0 => (timeline.unlink(dir, OsStr::new(name), NOW), tree.unlink(dir, name)),
            _ => (timeline.rmdir(dir, OsStr::new(name), NOW), tree.rmdir(dir, name)),
        };
        assert_eq!(real.map(|attr| attr.ino), expected);
        if let Ok(ino) = expected {
            self.orphan(at, ino);
        }
    }

    fn rename(&mut self, at: usize) {
        let (from, to) = (self.a_place(at), self.a_place(at));
        let how = pick(
            &mut self.random,
            &[Rename::Replace, Rename::Replace, Rename::NoReplace, Rename::Exchange],
        );
        let timeline = self.timeline(at);
        let real = timeline.rename(from.0, OsStr::new(from.1), to.0, OsStr::new(to.1), how, NOW);
        let expected = self.branches[at].tree.rename(from, to, how);
        assert_eq!(real.map(|gone| gone.map(|attr| attr.ino)), expected);
        if let Ok(Some(ino)) = expected {
            self.orphan(at, ino);
        }
    }

    fn link(&mut self, at: usize) {
        let Some(ino) = self.a_file(at) else { return };
        let (dir, name) = self.a_place(at);
        if self.branches[at].orphans.contains(&ino) {
            return;
        }
        let real = self.timeline(at).link(ino, dir, OsStr::new(name), NOW);
        let expected = self.branches[at].tree.link(ino, dir, name);
        assert_eq!(real.map(|_| ()), expected);
    }

    fn forget(&mut self, at: usize) {
        let timeline = self.timeline(at);
        let branch = &mut self.branches[at];
        for ino in branch.orphans.drain(..) {
            timeline.forget(ino);
            branch.tree.0.remove(&ino);
            assert_eq!(timeline.view().getattr(ino), Err(Errno::ENOENT));
        }
    }

    fn sync(&mut self, at: usize) {
        if let Some(ino) = self.a_file(at) {
            assert_eq!(self.timeline(at).fsync(ino), Ok(()));
        }
    }

    fn snapshot(&mut self, at: usize) {
        self.made += 1;
        let name: SnapshotName = format!("{}@t{}", self.branches[at].name, self.made)
            .parse()
            .expect("a valid name");
        self.store()
            .create_snapshot(&name, Keep::default(), NOW)
            .expect("take a snapshot");
        let branch = &mut self.branches[at];
        branch.snapshots.insert(name, reachable(&branch.tree));
    }

    fn clone_branch(&mut self, at: usize) {
        if self.branches.len() == BRANCHES_MAX {
            return;
        }
        let names: Vec<_> = self.branches[at].snapshots.keys().cloned().collect();
        if names.is_empty() || self.random.below(2) == 0 {
            let start = Start::Branch(self.branches[at].name.clone());
            let tree = reachable(&self.branches[at].tree);
            self.add_branch(&start, tree);
        } else {
            let name = names[self.random.below(names.len() as u64) as usize].clone();
            let tree = self.branches[at].snapshots[&name].clone();
            self.add_branch(&Start::Snapshot(name), tree);
        }
    }

    fn checkout(&mut self, at: usize) {
        let names: Vec<_> = self.branches[at].snapshots.keys().cloned().collect();
        if names.is_empty() {
            return;
        }
        let name = names[self.random.below(names.len() as u64) as usize].clone();
        if self.branches[at].timeline.is_some() {
            let refused = self.store().checkout(&name, NOW);
            assert!(matches!(refused, Err(Error::Busy { .. })), "{refused:?}");
        }
        self.close(at);
        let kept = self.store().checkout(&name, NOW).expect("check out");
        let branch = &mut self.branches[at];
        let old = std::mem::replace(&mut branch.tree, branch.snapshots[&name].clone());
        branch.snapshots.insert(kept, old);
    }

    fn destroy_snapshot(&mut self, at: usize) {
        let names: Vec<_> = self.branches[at].snapshots.keys().cloned().collect();
        if names.is_empty() {
            return;
        }
        let name = names[self.random.below(names.len() as u64) as usize].clone();
        match self.store().destroy_snapshot(&name) {
            Ok(()) => drop(self.branches[at].snapshots.remove(&name)),
            Err(e) => assert!(matches!(e, Error::Needed { .. }), "{e:?}"),
        }
    }

    /// Unmounts: what was only held open is gone.
    fn close(&mut self, at: usize) {
        let branch = &mut self.branches[at];
        branch.timeline = None;
        branch.orphans.clear();
        branch.tree = reachable(&branch.tree);
    }

    fn reopen(&mut self) {
        (0..self.branches.len()).for_each(|at| self.close(at));
        self.store = None;
        self.store = Some(open(&self.dir));
    }

    /// Some of what the store does for itself, or all of it.
    fn upkeep(&mut self) {
        let pieces = 1 + self.random.below(20);
        let tending = Tending {
            packing: (self.random.below(2) == 0).then_some(1),
            flatten_every: 1 + self.random.below(5) as usize,
        };
        for _ in 0..pieces {
            if !self.store().tend(&tending, &mut |_| true).expect("upkeep") {
                break;
            }
        }
    }

    /// The store's own check finds no damage, whether heads are in use or not.
    fn is_sound(&self) {
        let all = Checks {
            blocks_from: Some(LayerId(0)),
            ..Checks::default()
        };
        let findings = self.store().check(all, &mut |_| {}).expect("checked");
        let damage = findings.iter().find(|finding| finding.severity == Severity::Damage);
        assert!(damage.is_none(), "{damage:?}");
    }

    fn check(&mut self, at: usize) {
        let timeline = self.timeline(at);
        compare(timeline.view(), &self.branches[at].tree, "head");
        for ino in &self.branches[at].orphans {
            compare_node(timeline.view(), &self.branches[at].tree, *ino, "an orphan");
        }
    }

    fn check_all(&mut self) {
        for at in 0..self.branches.len() {
            self.check(at);
            for (name, tree) in &self.branches[at].snapshots {
                let view = self.store().snapshot_view(name).expect("a view of a snapshot");
                compare(&view, tree, &name.to_string());
            }
        }
    }
}

/// The tree without what only an open file holds.
fn reachable(tree: &Tree) -> Tree {
    let linked = tree.0.iter().filter(|(_, node)| node.nlink > 0);
    Tree(linked.map(|(ino, node)| (*ino, node.clone())).collect())
}

fn compare(view: &View, tree: &Tree, what: &str) {
    for ino in reachable(tree).0.keys() {
        compare_node(view, tree, *ino, what);
    }
}

fn compare_node(view: &View, tree: &Tree, ino: Ino, what: &str) {
    let node = tree.node(ino);
    let attr = view.getattr(ino).unwrap_or_else(|e| panic!("{what}: inode {ino}: {e}"));
    assert_eq!((attr.kind, attr.nlink), (node.kind, node.nlink), "{what}: inode {ino}");
    match node.kind {
        Kind::Dir => compare_dir(view, tree, ino, what),
        Kind::Symlink => assert_eq!(view.readlink(ino).expect("readlink").as_encoded_bytes(), node.data),
        Kind::File => compare_bytes(view, ino, &node.data, what),
        _ => {}
    }
}

fn compare_dir(view: &View, tree: &Tree, dir: Ino, what: &str) {
    let mut listed = BTreeMap::new();
    let mut cookie = 0;
    loop {
        let page = view.readdir(dir, cookie, 2).expect("readdir");
        let Some(last) = page.last() else { break };
        cookie = last.cookie;
        listed.extend(
            page.into_iter()
                .map(|entry| (entry.name.into_string().expect("UTF-8"), entry.ino)),
        );
    }
    assert_eq!(listed, tree.node(dir).children, "{what}: directory {dir}");
}

fn compare_bytes(view: &View, ino: Ino, data: &[u8], what: &str) {
    let mut buf = vec![0xEE; data.len() + 100];
    let len = view
        .read(ino, 0, &mut buf)
        .unwrap_or_else(|e| panic!("{what}: read {ino}: {e}"));
    assert_eq!(len, data.len(), "{what}: size of {ino}");
    if let Some(at) = (0..len).find(|at| buf[*at] != data[*at]) {
        panic!(
            "{what}: inode {ino} differs at byte {at} of {len}: {} instead of {}",
            buf[at], data[at]
        );
    }
    let at_once = view.read_at_once(ino, 0, &mut buf);
    if at_once
        .unwrap_or_else(|e| panic!("{what}: read {ino} at once: {e}"))
        .is_some()
    {
        assert!(
            buf[..len] == *data,
            "{what}: inode {ino} differs when it is read at once"
        );
    }
    compare_holes(view, ino, data, what);
}

/// Whatever `lseek` calls a hole must be zeros.
fn compare_holes(view: &View, ino: Ino, data: &[u8], what: &str) {
    let mut at = 0;
    while at < data.len() as u64 {
        let start = view.seek(ino, at, Seek::Data).unwrap_or(data.len() as u64);
        assert!(start >= at);
        let hole = &data[at as usize..start as usize];
        assert!(
            hole.iter().all(|byte| *byte == 0),
            "{what}: data of {ino} in a hole at {at}"
        );
        at = view.seek(ino, start, Seek::Hole).unwrap_or(data.len() as u64);
        assert!(at > start || start == data.len() as u64);
    }
}

fn run(dir: &std::path::Path, seed: u64) {
    let mut world = World {
        dir: dir.into(),
        store: Some(open(dir)),
        branches: Vec::new(),
        random: Random::new(seed),
        seed,
        made: 0,
    };
    world.add_branch(&Start::Empty, Tree::default());
    for _ in 0..STEPS {
        world.step();
    }
    world.check_all();
    world.is_sound();
    world.reopen();
    world.is_sound();
    world.check_all();
    clean_up(&mut world);
}

/// Ends the seed's branches, which must leave no layer behind.
fn clean_up(world: &mut World) {
    (0..world.branches.len()).for_each(|at| world.close(at));
    let mut names: Vec<_> = world.branches.drain(..).map(|branch| branch.name).collect();
    while !names.is_empty() {
        let before = names.len();
        let store = world.store().clone();
        names.retain(|name| store.destroy_branch(name).is_err());
        assert!(names.len() < before, "branches that can't be destroyed: {names:?}");
    }
    let left = std::fs::read_dir(world.dir.join("layers"))
        .expect("list layers")
        .count();
    assert_eq!(left, 0, "layers left behind");
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().expect("a number"))
}

#[test]
fn every_history_reads_as_the_model_says() {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("model-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    Store::create(&dir, Disk::new()).expect("make a store");
    let seeds = match from_environment("ZENITH_MODEL_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..from_environment("ZENITH_MODEL_SEEDS").unwrap_or(200),
    };
    for seed in seeds {
        let result = std::panic::catch_unwind(|| run(&dir, seed));
        if let Err(panic) = result {
            eprintln!("to see it again: ZENITH_MODEL_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
    std::fs::remove_dir_all(&dir).expect("clean up");
}
