//! The stores that are damaged, and all that can be read of one.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pageserver::*;

use super::damage::note_heads;

const NOW: Time = Time {
    secs: 1_700_000_000,
    nanos: 7,
};

/// Seals until a load leaves an image.
const SEALS: usize = 34;

/// Sealed layers that are packed.
const PACKED: usize = 8;

/// A directory that is gone afterwards.
pub struct Scratch {
    pub dir: PathBuf,
    copies: AtomicU64,
}

impl Scratch {
    pub fn new(name: &str) -> Scratch {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).expect("make a directory");
        Scratch {
            dir,
            copies: AtomicU64::new(0),
        }
    }

    /// A copy of a store; the one before it is gone.
    pub fn copy(&self, store: &Path) -> PathBuf {
        let number = self.copies.fetch_add(1, Ordering::Relaxed);
        let _ = std::fs::remove_dir_all(self.dir.join(format!("copy{}", number.wrapping_sub(1))));
        let copy = self.dir.join(format!("copy{number}"));
        let copied = Command::new("cp")
            .args(["-a", "--sparse=always"])
            .arg(store)
            .arg(&copy)
            .status();
        assert!(copied.expect("cp runs").success());
        copy
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// A store, and what is in it.
pub struct Made {
    pub dir: PathBuf,
    pub contents: Contents,
}

pub struct Stores {
    /// Stopped in order.
    pub closed: Made,
    /// As a kill left it, all of it synced: with a log to replay.
    pub killed: Made,
}

pub fn make(scratch: &Scratch) -> Stores {
    let dir = scratch.dir.join("live");
    Store::create(&dir, Disk::new()).expect("make a store");
    fill(&open(&dir));
    let store = open(&dir);
    change_more(&store);
    let killed = scratch.dir.join("killed");
    std::fs::rename(scratch.copy(&dir), &killed).expect("keep the copy");
    note_heads(&dir, &store);
    drop(store);
    Stores {
        closed: made(scratch, dir),
        killed: made(scratch, killed),
    }
}

/// What is in it tells a copy, since a store that is opened is no longer as it was.
fn made(scratch: &Scratch, dir: PathBuf) -> Made {
    let contents = read(&open(&scratch.copy(&dir))).expect("can be read");
    Made { dir, contents }
}

fn open(dir: &Path) -> Arc<Store> {
    Store::open(dir, Disk::new()).expect("open the store")
}

fn parsed<T: std::str::FromStr<Err = Error>>(name: &str) -> T {
    name.parse().expect("a name")
}

fn snapshot(store: &Store, name: &str) {
    let taken = store.create_snapshot(&parsed(name), Keep::default(), NOW);
    taken.expect("take a snapshot");
}

/// Files of all kinds, in several layers, on several branches.
fn fill(store: &Arc<Store>) {
    let main = parsed("main");
    store
        .create_branch(&main, &Start::Empty, (0, 0), NOW)
        .expect("make a branch");
    let timeline = store.timeline(&main).expect("load it");
    let dir = node(&timeline, Ino::ROOT, "dir", NewKind::Dir);
    let wal = node(&timeline, Ino::ROOT, "pg_wal", NewKind::Dir);
    node(&timeline, dir, "link", NewKind::Symlink("a/target".into()));
    node(&timeline, dir, "fifo", NewKind::Fifo);
    let files: Vec<Ino> = (0..6_u64)
        .map(|n| {
            file(
                &timeline,
                if n % 2 == 0 { dir } else { wal },
                &format!("file{n}"),
                5000 * (n + 1),
            )
        })
        .collect();
    timeline
        .link(files[0], Ino::ROOT, OsStr::new("hard"), NOW)
        .expect("link");
    snapshot(store, "main@one");
    cut_and_grow(&timeline, files[1]);
    write(&timeline, files[2], 4096, 4096);
    timeline.unlink(wal, OsStr::new("file3"), NOW).expect("unlink");
    snapshot(store, "main@two");
    let from = Start::Snapshot(parsed("main@one"));
    store
        .create_branch(&parsed("dev"), &from, (0, 0), NOW)
        .expect("make a branch");
    let dev = store.timeline(&parsed("dev")).expect("load it");
    write(&dev, files[2], 0, 100);
    file(&dev, dir, "new", 3000);
    for n in 0..SEALS {
        write(&timeline, files[4], n as u64 * 100, 50);
        snapshot(store, &format!("main@n{n}"));
    }
    write(&timeline, files[5], 10, 10);
    [&timeline, &dev]
        .into_iter()
        .for_each(|timeline| timeline.sync_all().expect("sync"));
    sum(store);
    for _ in 0..PACKED {
        assert!(
            store
                .tend(
                    &Tending {
                        packing: Some(3),
                        ..Tending::default()
                    },
                    &mut |_| true
                )
                .expect("packed")
        );
    }
}

/// Has all sealed blocks get their checksums.
pub fn sum(store: &Store) {
    while store.tend(&Tending::default(), &mut |_| true).expect("summed") {}
}

/// What only the log has when the store is killed.
fn change_more(store: &Arc<Store>) {
    store
        .snapshots(None)
        .iter()
        .for_each(|info| drop(store.snapshot_view(&info.name).expect("loads")));
    let timeline = store.timeline(&parsed("main")).expect("load it");
    let late = file(&timeline, Ino::ROOT, "late", 9000);
    snapshot(store, "main@late");
    cut_and_grow(&timeline, late);
    timeline
        .rename(
            Ino::ROOT,
            OsStr::new("hard"),
            Ino::ROOT,
            OsStr::new("harder"),
            Rename::Replace,
            NOW,
        )
        .expect("rename");
    timeline.sync_all().expect("sync");
    sum(store);
}

fn node(timeline: &Timeline, parent: Ino, name: &str, kind: NewKind) -> Ino {
    let node = NewNode {
        kind,
        mode: 0o700,
        uid: 3,
        gid: 4,
    };
    timeline
        .create(parent, OsStr::new(name), node, NOW)
        .expect("create")
        .ino
}

fn file(timeline: &Timeline, parent: Ino, name: &str, len: u64) -> Ino {
    let ino = node(timeline, parent, name, NewKind::File);
    write(timeline, ino, 0, len);
    ino
}

fn write(timeline: &Timeline, ino: Ino, offset: u64, len: u64) {
    let bytes: Vec<u8> = (offset..offset + len).map(|at| (at % 251 + 1) as u8).collect();
    timeline.write(ino, offset, &bytes, Some(NOW)).expect("write");
}

/// Leaves a floor.
fn cut_and_grow(timeline: &Timeline, ino: Ino) {
    for size in [2000, 7000] {
        let set = SetAttr {
            size: Some(size),
            ..SetAttr::default()
        };
        timeline.setattr(ino, set, NOW).expect("resize");
    }
}

/// All that a store shows: branches, snapshots, and every file through each of them.
#[derive(Clone, PartialEq, Default)]
pub struct Contents {
    names: Vec<String>,
    nodes: BTreeMap<PathBuf, (Attr, Vec<u8>)>,
}

pub fn read(store: &Arc<Store>) -> std::result::Result<Contents, String> {
    let mut contents = Contents::default();
    for branch in store.branches() {
        contents.names.push(format!("{branch:?}"));
        let timeline = store.timeline(&branch.name).map_err(|error| error.to_string())?;
        walk(
            timeline.view(),
            Ino::ROOT,
            &PathBuf::from(branch.name.to_string()),
            &mut contents,
        )?;
    }
    for snapshot in store.snapshots(None) {
        contents.names.push(format!("{snapshot:?}"));
        let view = store.snapshot_view(&snapshot.name).map_err(|error| error.to_string())?;
        walk(
            &view,
            Ino::ROOT,
            &PathBuf::from(snapshot.name.to_string()),
            &mut contents,
        )?;
    }
    Ok(contents)
}

fn walk(view: &View, ino: Ino, path: &Path, contents: &mut Contents) -> std::result::Result<(), String> {
    let told = |errno| format!("{}: {errno}", path.display());
    let attr = view.getattr(ino).map_err(told)?;
    let mut bytes = Vec::new();
    match attr.kind {
        Kind::File => {
            bytes.resize(attr.size.min(1 << 20) as usize, 0);
            view.read(ino, 0, &mut bytes).map_err(told)?;
        }
        Kind::Symlink => bytes = OsString::into_encoded_bytes(view.readlink(ino).map_err(told)?),
        Kind::Dir => {
            for entry in view.readdir(ino, 0, usize::MAX).map_err(told)? {
                walk(view, entry.ino, &path.join(entry.name), contents)?;
            }
        }
        Kind::Fifo | Kind::Socket => {}
    }
    contents.nodes.insert(path.into(), (attr, bytes));
    Ok(())
}

impl Contents {
    /// The bytes of a file as a branch or snapshot had it.
    pub fn file(&self, view: &str, ino: Ino) -> Vec<u8> {
        let mut nodes = self.nodes.iter().filter(|(path, _)| path.starts_with(view));
        let found = nodes.find(|(_, (attr, _))| attr.ino == ino);
        found.map(|(_, (_, bytes))| bytes.clone()).unwrap_or_default()
    }
}

pub fn without_bytes(contents: &Contents) -> Contents {
    let mut bare = contents.clone();
    bare.nodes.values_mut().for_each(|(_, bytes)| bytes.clear());
    bare
}

/// The first difference; empty where there is none.
pub fn difference(a: &Contents, b: &Contents) -> String {
    if a.names != b.names {
        return format!("{:?}\n{:?}", a.names, b.names);
    }
    let paths = a.nodes.keys().chain(b.nodes.keys());
    let mut different = paths.filter(|path| a.nodes.get(*path) != b.nodes.get(*path));
    let told = |contents: &Contents, path: &PathBuf| format!("{:?}", contents.nodes.get(path).map(|(attr, _)| *attr));
    match different.next() {
        Some(path) => format!("{}\n{}\n{}", path.display(), told(a, path), told(b, path)),
        None => String::new(),
    }
}
