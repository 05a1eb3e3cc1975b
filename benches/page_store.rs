//! What a page of 8 KiB costs in the page store, without FUSE, beside the bare system call on the same filesystem.
//!
//! `cargo bench` runs it. All of it is in the page cache, and what is timed waits for no disk.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use pageserver::*;

const PAGE: usize = 8192;
const PAGES: u64 = 4096;
const LAYERS: u64 = 64;
const NOW: Time = Time { secs: 0, nanos: 0 };

/// The next of all pages, in an order that looks random (a linear congruential generator of full period).
fn after(page: u64) -> u64 {
    (page * 1229 + 1) % PAGES
}

/// All pages, each once.
fn pages() -> impl Iterator<Item = u64> {
    std::iter::successors(Some(0), |page| Some(after(*page))).take(PAGES as usize)
}

/// Goes with what is in it.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A branch with one file.
struct Branch {
    store: Arc<Store>,
    timeline: Arc<Timeline>,
    ino: Ino,
    snapshots: usize,
}

impl Branch {
    fn new(store: &Arc<Store>, name: &str) -> Branch {
        let name = name.parse().expect("a name");
        let made = store.create_branch(&name, &Start::Empty, (0, 0), NOW);
        made.expect("made");
        let timeline = store.timeline(&name).expect("loaded");
        let node = NewNode {
            kind: NewKind::File,
            mode: 0o600,
            uid: 0,
            gid: 0,
        };
        let made = timeline.create(Ino::ROOT, "file".as_ref(), node, NOW);
        let branch = Branch {
            store: store.clone(),
            ino: made.expect("made").ino,
            timeline,
            snapshots: 0,
        };
        pages().for_each(|page| branch.write(page));
        branch
    }

    /// As a database leaves it that has written all over between snapshots.
    fn over_layers(mut self) -> Branch {
        for layer in 1..LAYERS {
            self.take_snapshot();
            pages()
                .filter(|page| page % LAYERS == layer)
                .for_each(|page| self.write(page));
        }
        self
    }

    fn write(&self, page: u64) {
        let written = self.timeline.write(self.ino, page * PAGE as u64, &[1; PAGE], None);
        assert_eq!(written, Ok(PAGE));
    }

    fn read(&self, view: &View, page: u64, buf: &mut [u8]) {
        assert_eq!(view.read(self.ino, page * PAGE as u64, buf), Ok(PAGE));
    }

    fn take_snapshot(&mut self) -> SnapshotName {
        self.snapshots += 1;
        let name = format!("{}@{}", self.timeline.branch(), self.snapshots);
        let name = name.parse().expect("a name");
        self.store.create_snapshot(&name, Keep::default(), NOW).expect("taken");
        name
    }
}

fn page_store(criterion: &mut Criterion) {
    let scratch = Scratch(Path::new(env!("CARGO_TARGET_TMPDIR")).join("page-store"));
    let _ = fs::remove_dir_all(&scratch.0);
    Store::create(&scratch.0, Disk::new()).expect("a store");
    let store = Store::open(&scratch.0, Disk::new()).expect("opened");
    let plain = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(scratch.0.join("plain"));
    let plain = plain.expect("made");
    pages().for_each(|page| write_plain(&plain, page));
    let whole = Branch::new(&store, "whole");
    let layered = Branch::new(&store, "layered").over_layers();
    let mut sealed = Branch::new(&store, "sealed");
    let name = sealed.take_snapshot();
    while store.tend(&Tending::default(), &mut |_| true).expect("tended") {}
    let snapshot = store.snapshot_view(&name).expect("loaded");

    let mut buf = [0; PAGE];
    let mut page = 0;
    let mut next = || {
        page = after(page);
        page
    };
    let mut group = criterion.benchmark_group("read");
    group.bench_function("plain", |b| {
        b.iter(|| plain.read_exact_at(&mut buf, next() * PAGE as u64))
    });
    group.bench_function("a head's", |b| {
        b.iter(|| whole.read(whole.timeline.view(), next(), &mut buf))
    });
    group.bench_function("a head's of many layers", |b| {
        b.iter(|| layered.read(layered.timeline.view(), next(), &mut buf))
    });
    group.bench_function("a snapshot's, verified", |b| {
        b.iter(|| sealed.read(&snapshot, next(), &mut buf))
    });
    group.finish();

    let mut group = criterion.benchmark_group("write");
    group.bench_function("plain", |b| b.iter(|| write_plain(&plain, next())));
    group.bench_function("in place", |b| b.iter(|| whole.write(next())));
    group.bench_function("plain, into a hole", |b| {
        b.iter_custom(|times| by_file(times, &mut &plain, make_hole, |plain, page| write_plain(plain, page)));
    });
    group.bench_function("the first since a snapshot", |b| {
        b.iter_custom(|times| {
            by_file(
                times,
                &mut sealed,
                |branch| drop(branch.take_snapshot()),
                |branch, page| branch.write(page),
            )
        });
    });
    group.finish();
}

/// How long so many writes take, where something has to be done to a file before all its pages are written once more.
fn by_file<T>(times: u64, file: &mut T, prepare: impl Fn(&mut T), write: impl Fn(&T, u64)) -> Duration {
    let (mut left, mut took) = (times as usize, Duration::ZERO);
    while left > 0 {
        prepare(file);
        let begun = Instant::now();
        pages().take(left).for_each(|page| write(file, page));
        took += begun.elapsed();
        left = left.saturating_sub(PAGES as usize);
    }
    took
}

fn make_hole(file: &mut &File) {
    let made = file.set_len(0).and_then(|()| file.set_len(PAGES * PAGE as u64));
    made.expect("a hole");
}

fn write_plain(file: &File, page: u64) {
    file.write_all_at(&[1; PAGE], page * PAGE as u64).expect("written");
}

criterion_group!(benches, page_store);
criterion_main!(benches);
