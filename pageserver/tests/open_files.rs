//! How many backing files are open: no more than may be, however many parts a file has.

#[path = "support/store.rs"]
mod store;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use nix::errno::Errno;
use pageserver::*;
use store::Scratch;

const NOW: Time = Time {
    secs: 1_700_000_000,
    nanos: 0,
};

const BLOCKS: usize = 100;
const BLOCK: usize = 4096;
const MAX: usize = 16;

/// What may be open on top: what the next request opens before it is looked again, and what is written.
const MORE: usize = 4;

/// How many files are open below a directory.
fn open_below(dir: &Path) -> usize {
    let open = std::fs::read_dir("/proc/self/fd").expect("listed").flatten();
    let targets = open.filter_map(|fd| std::fs::read_link(fd.path()).ok());
    targets.filter(|target| target.starts_with(dir)).count()
}

struct World {
    scratch: Scratch,
    store: Arc<Store>,
    timeline: Arc<Timeline>,
    ino: Ino,
}

/// A file whose blocks were written in a layer each.
fn a_file_of_many_parts(name: &str) -> World {
    a_file_on(Scratch::new(name), Disk::new())
}

fn a_file_on(scratch: Scratch, disk: Disk) -> World {
    let store = scratch.open(disk.with_open_files_max(MAX));
    let timeline = head(&store, "main");
    let ino = store::file(&timeline, "file", NOW);
    assert_eq!(timeline.write(ino, 0, &[255; BLOCKS * BLOCK], None), Ok(BLOCKS * BLOCK));
    World {
        scratch,
        store,
        timeline,
        ino,
    }
}

impl World {
    fn take(&self, tag: usize) {
        let name = format!("main@{tag}").parse().expect("a name");
        self.store.create_snapshot(&name, Keep::default(), NOW).expect("taken");
    }

    fn rewrite(&self, block: usize) {
        let at = (block * BLOCK) as u64;
        let written = self.timeline.write(self.ino, at, &[block as u8; BLOCK], None);
        assert_eq!(written, Ok(BLOCK));
    }

    fn open(&self) -> usize {
        open_below(&self.scratch.dir.join("layers"))
    }

    fn check(&self, view: &View, rewritten: usize) {
        let mut bytes = vec![0; BLOCKS * BLOCK];
        assert_eq!(view.read(self.ino, 0, &mut bytes), Ok(bytes.len()));
        for (number, block) in bytes.chunks(BLOCK).enumerate() {
            let expected = if number < rewritten { number as u8 } else { 255 };
            assert!(block.iter().all(|byte| *byte == expected), "block {number}");
        }
    }
}

#[test]
fn a_file_that_is_written_in_each_of_many_layers_keeps_few_files_open() {
    let world = a_file_of_many_parts("open-written");
    for block in 0..BLOCKS {
        world.take(block);
        world.rewrite(block);
        assert!(world.open() <= MAX + MORE, "{} after {block}", world.open());
    }
    world.check(world.timeline.view(), BLOCKS);
    world.timeline.fsync(world.ino).expect("synced");
}

#[test]
fn reading_a_file_of_many_parts_closes_what_it_has_read_before() {
    let world = a_file_of_many_parts("open-read");
    for block in 0..BLOCKS {
        world.take(block);
        world.rewrite(block);
    }
    world.take(BLOCKS);
    let name = format!("main@{BLOCKS}").parse().expect("a name");
    let view = world.store.snapshot_view(&name).expect("loaded");
    let mut block = [0; BLOCK];
    for number in (0..BLOCKS).cycle().take(3 * BLOCKS) {
        let read = view.read(world.ino, (number * BLOCK) as u64, &mut block);
        assert_eq!((read, block[0]), (Ok(BLOCK), number as u8));
    }
    assert!(world.open() <= MAX + MORE, "{}", world.open());
    world.check(&view, BLOCKS);
}

#[test]
fn the_upkeep_closes_what_branches_have_open_that_nobody_uses() {
    let world = a_file_of_many_parts("open-idle");
    for block in 0..BLOCKS {
        world.take(block);
        world.rewrite(block);
    }
    world.check(world.timeline.view(), BLOCKS);
    assert!(world.open() > MAX + MORE, "{}", world.open());
    // None of the layers is flattened or merged.
    let tending = Tending {
        flatten_every: usize::MAX,
        ..Tending::default()
    };
    while world.store.tend(&tending, &mut |_| true).expect("tended") {}
    assert!(world.open() <= MAX + MORE, "{}", world.open());
    world.check(world.timeline.view(), BLOCKS);
}

#[test]
fn views_that_nobody_reads_any_more_keep_nothing_open_that_another_one_needs() {
    let world = a_file_of_many_parts("open-views");
    let mut views = Vec::new();
    for block in 0..BLOCKS {
        world.take(block);
        let name = format!("main@{block}").parse().expect("a name");
        let view = world.store.snapshot_view(&name).expect("loaded");
        world.check(&view, block);
        views.push(view);
        world.rewrite(block);
    }
    world.take(BLOCKS);
    assert!(world.open() <= MAX + MORE, "{}", world.open());
    for (rewritten, view) in views.iter().enumerate() {
        world.check(view, rewritten);
    }
}

/// Looks with each read how many files are open.
struct Most {
    layers: PathBuf,
    seen: AtomicUsize,
}

impl Hook for Most {
    fn before(&self, call: Call) -> io::Result<()> {
        if call == Call::Read {
            self.seen.fetch_max(open_below(&self.layers), Ordering::Relaxed);
        }
        Ok(())
    }
}

#[test]
fn requests_that_read_many_parts_each_open_few_at_a_time() {
    const READERS: usize = 4;
    let scratch = Scratch::new("open-at-once");
    let most = Arc::new(Most {
        layers: scratch.dir.join("layers"),
        seen: AtomicUsize::new(0),
    });
    let world = a_file_on(scratch, Disk::new().with_hook(most.clone()));
    for block in 0..BLOCKS {
        world.take(block);
        world.rewrite(block);
    }
    std::thread::scope(|scope| {
        for _ in 0..READERS {
            scope.spawn(|| (0..3).for_each(|_| world.check(world.timeline.view(), BLOCKS)));
        }
    });
    let seen = most.seen.load(Ordering::Relaxed);
    assert!((MAX..=MAX + MAX / 2 + READERS + MORE).contains(&seen), "{seen}");
}

#[test]
fn the_upkeep_closes_what_heads_have_open_to_which_nobody_writes() {
    /// So many that who writes is let be for a while after it has closed what it can.
    const MAX: usize = 64;
    let scratch = Scratch::new("open-heads");
    let store = scratch.open(Disk::new().with_open_files_max(MAX));
    let heads: Vec<Arc<Timeline>> = (0..2 * MAX).map(|nth| head(&store, &format!("head-{nth}"))).collect();
    for head in &heads {
        let ino = store::file(head, "file", NOW);
        assert_eq!(head.write(ino, 0, &[1; BLOCK], None), Ok(BLOCK));
        head.fsync(ino).expect("synced");
    }
    // Who writes beside them closes his own.
    let busy = head(&store, "busy");
    for round in 0..4 {
        let ino = store::file(&busy, &format!("file-{round}"), NOW);
        // The second finds too much open, and leaves the upkeep nothing that it would see for itself.
        for _ in 0..2 {
            assert_eq!(busy.write(ino, 0, &[1; BLOCK], None), Ok(BLOCK));
        }
        while store.tend(&Tending::default(), &mut |_| true).expect("tended") {}
    }
    let open = open_below(&scratch.dir.join("layers"));
    assert!(open <= MAX + MORE, "{open}");
}

fn head(store: &Arc<Store>, name: &str) -> Arc<Timeline> {
    let name = name.parse().expect("a name");
    let made = store.create_branch(&name, &Start::Empty, (0, 0), NOW);
    made.expect("made");
    store.timeline(&name).expect("loaded")
}

#[test]
fn what_would_have_to_be_opened_is_not_read_at_once() {
    let world = a_file_of_many_parts("open-at-once");
    for block in 0..BLOCKS {
        world.take(block);
        world.rewrite(block);
    }
    let view = world.timeline.view();
    let mut buf = [0; BLOCK];
    let mut at_once = |block: usize| view.read_at_once(world.ino, (block * BLOCK) as u64, &mut buf);
    let answered: Vec<bool> = (0..BLOCKS)
        .map(|block| at_once(block).expect("no error").is_some())
        .collect();
    let open = world.open();
    assert!(
        answered.iter().filter(|answered| **answered).count() <= open,
        "{open}: {answered:?}"
    );
    assert!(answered[BLOCKS - 1]);
}

/// Has no descriptor left for one call, or for all of a kind.
struct NoneLeft {
    call: Call,
    once: bool,
    now: AtomicBool,
}

impl NoneLeft {
    fn of(call: Call, once: bool) -> Arc<NoneLeft> {
        Arc::new(NoneLeft {
            call,
            once,
            now: AtomicBool::new(false),
        })
    }
}

impl Hook for NoneLeft {
    fn before(&self, call: Call) -> io::Result<()> {
        match call == self.call && self.now.fetch_and(!self.once, Ordering::Relaxed) {
            true => Err(io::Error::from_raw_os_error(libc::EMFILE)),
            false => Ok(()),
        }
    }
}

/// What a sync says after a write for which no descriptor was left.
fn sync_after_a_refused_write(name: &str, now: Option<Time>) -> FsResult<()> {
    let scratch = Scratch::new(name);
    let hook = NoneLeft::of(Call::Write, true);
    let timeline = head(&scratch.open(Disk::new().with_hook(hook.clone())), "main");
    let ino = store::file(&timeline, "file", NOW);
    hook.now.store(true, Ordering::Relaxed);
    assert_eq!(timeline.write(ino, 0, &[1; BLOCK], now), Err(Errno::EMFILE));
    timeline.fsync(ino)
}

#[test]
fn a_collected_page_for_which_no_descriptor_was_left_fails_every_later_sync() {
    assert_eq!(sync_after_a_refused_write("refused-page", None), Err(Errno::EIO));
    assert_eq!(sync_after_a_refused_write("refused-write", Some(NOW)), Ok(()));
}

#[test]
fn a_file_whose_name_is_not_durable_is_not_let_go_of() {
    let scratch = Scratch::new("open-names");
    let hook = NoneLeft::of(Call::SyncDir, false);
    let store = scratch.open(Disk::new().with_open_files_max(0).with_hook(hook.clone()));
    let timeline = head(&store, "main");
    timeline
        .fsync(Ino::ROOT)
        .expect("nothing is left of an earlier service");
    hook.now.store(true, Ordering::Relaxed);
    let inos = ["first", "second", "third"].map(|name| {
        let ino = store::file(&timeline, name, NOW);
        assert_eq!(timeline.write(ino, 0, &[1; BLOCK], None), Ok(BLOCK));
        ino
    });
    for ino in inos {
        assert_eq!(timeline.fsync(ino), Err(Errno::EMFILE));
    }
    hook.now.store(false, Ordering::Relaxed);
    inos.into_iter().for_each(|ino| timeline.fsync(ino).expect("synced"));
}
