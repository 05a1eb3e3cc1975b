//! What operations cost and what they do when the disk fails, seen at the door to the disk.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use nix::errno::Errno;
use pageserver::*;

const NOW: Time = Time {
    secs: 1_700_000_000,
    nanos: 0,
};

/// Counts calls, and fails those it is told to.
#[derive(Default)]
struct Door {
    calls: Mutex<HashMap<Call, usize>>,
    failing: Mutex<Option<(Call, i32)>>,
    /// What the disk is said to have left.
    available: Mutex<Option<u64>>,
}

impl Hook for Door {
    fn before(&self, call: Call) -> io::Result<()> {
        *self.calls.lock().expect("unpoisoned").entry(call).or_default() += 1;
        match *self.failing.lock().expect("unpoisoned") {
            Some((failing, errno)) if failing == call => Err(io::Error::from_raw_os_error(errno)),
            _ => Ok(()),
        }
    }

    fn space(&self, space: Space) -> Space {
        let available = *self.available.lock().expect("unpoisoned");
        available.map_or(space, |available| Space { available, ..space })
    }
}

fn a_file() -> NewNode {
    NewNode {
        kind: NewKind::File,
        mode: 0o600,
        uid: 0,
        gid: 0,
    }
}

struct Bench {
    dir: PathBuf,
    door: Arc<Door>,
    store: Arc<Store>,
    timeline: Arc<Timeline>,
}

impl Bench {
    fn new(name: &str) -> Bench {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("cost-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let door = Arc::new(Door::default());
        let disk = Disk::new().with_hook(door.clone());
        Store::create(&dir, Disk::new()).expect("make a store");
        let store = Store::open(&dir, disk).expect("open the store");
        let main = "main".parse().expect("a name");
        store
            .create_branch(&main, &Start::Empty, (0, 0), NOW)
            .expect("make a branch");
        let timeline = store.timeline(&main).expect("load it");
        Bench {
            dir,
            door,
            store,
            timeline,
        }
    }

    fn file(&self, name: &str, len: usize) -> Ino {
        let attr = self.timeline.create(Ino::ROOT, OsStr::new(name), a_file(), NOW);
        let ino = attr.expect("create").ino;
        if len > 0 {
            assert_eq!(self.timeline.write(ino, 0, &vec![1; len], None), Ok(len));
        }
        ino
    }

    fn snapshot(&self, tag: &str) -> Result<SnapshotInfo> {
        let name: SnapshotName = format!("main@{tag}").parse()?;
        self.store.create_snapshot(&name, Keep::default(), NOW)
    }

    /// The calls that `action` made.
    fn calls<T>(&self, action: impl FnOnce() -> T) -> (T, HashMap<Call, usize>) {
        self.door.calls.lock().expect("unpoisoned").clear();
        let result = action();
        (result, self.door.calls.lock().expect("unpoisoned").clone())
    }

    fn failing<T>(&self, call: Call, errno: i32, action: impl FnOnce() -> T) -> T {
        *self.door.failing.lock().expect("unpoisoned") = Some((call, errno));
        let result = action();
        *self.door.failing.lock().expect("unpoisoned") = None;
        result
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

#[test]
fn an_overwrite_in_the_head_is_one_write() {
    let bench = Bench::new("overwrite");
    let ino = bench.file("a", 65536);
    let (_, calls) = bench.calls(|| bench.timeline.write(ino, 8192, &[2; 8192], None));
    assert_eq!(calls, HashMap::from([(Call::Write, 1)]));
}

#[test]
fn a_read_of_one_layer_is_one_read() {
    let bench = Bench::new("read");
    let ino = bench.file("a", 65536);
    let mut buf = [0; 8192];
    let (_, calls) = bench.calls(|| bench.timeline.view().read(ino, 8192, &mut buf));
    assert_eq!(calls, HashMap::from([(Call::Read, 1)]));
    bench.snapshot("s").expect("snapshot");
    bench.timeline.write(ino, 0, &[3; 8192], None).expect("write");
    let (_, calls) = bench.calls(|| bench.timeline.view().read(ino, 8192, &mut buf));
    assert_eq!(calls, HashMap::from([(Call::Read, 1)]));
}

#[test]
fn a_read_of_what_is_in_memory_is_one_call_and_waits_for_nothing() {
    let bench = Bench::new("read-cached");
    let ino = bench.file("a", 65536);
    let mut buf = [0; 8192];
    let (read, calls) = bench.calls(|| bench.timeline.view().read_at_once(ino, 8192, &mut buf));
    assert_eq!((read, calls), (Ok(Some(8192)), HashMap::from([(Call::ReadCached, 1)])));
    assert_eq!(buf, [1; 8192]);
}

#[test]
fn a_read_of_what_is_not_in_memory_is_for_those_who_wait() {
    let bench = Bench::new("read-waits");
    let ino = bench.file("a", 65536);
    let mut buf = [0; 8192];
    let waits = bench.failing(Call::ReadCached, libc::EAGAIN, || {
        bench.timeline.view().read_at_once(ino, 0, &mut buf)
    });
    assert_eq!(waits, Ok(None));
    let failed = bench.failing(Call::ReadCached, libc::EIO, || {
        bench.timeline.view().read_at_once(ino, 0, &mut buf)
    });
    assert_eq!(failed, Err(Errno::EIO));

    bench.snapshot("s").expect("snapshot");
    bench.timeline.write(ino, 8192, &[2; 8192], None).expect("write");
    let sealed = bench.snapshot("t").expect("snapshot").layer;
    let view = bench.store.sealed_view(sealed).expect("view");
    let mut both = [0; 16384];
    assert_eq!(
        view.read_at_once(ino, 0, &mut both),
        Ok(None),
        "its map is not there yet"
    );
    assert_eq!(view.read(ino, 0, &mut both), Ok(16384));
    assert_eq!(view.read_at_once(ino, 0, &mut both), Ok(Some(16384)));
    assert_eq!(both, [[1; 8192], [2; 8192]].concat()[..]);
}

#[test]
fn a_sync_with_nothing_to_do_is_free() {
    let bench = Bench::new("sync");
    let ino = bench.file("a", 8192);
    bench.timeline.fsync(ino).expect("sync");
    let (_, calls) = bench.calls(|| bench.timeline.fsync(ino));
    assert_eq!(calls, HashMap::new());
    bench.timeline.write(ino, 0, &[2; 8192], None).expect("write");
    let (_, calls) = bench.calls(|| bench.timeline.fsync(ino));
    assert_eq!(calls, HashMap::from([(Call::SyncData, 1)]));
}

#[test]
fn writing_out_is_one_call_and_its_failure_is_the_writes() {
    let bench = Bench::new("write-out");
    let ino = bench.file("a", 8192);
    let (asked, calls) = bench.calls(|| bench.timeline.write_out(ino, 0, 8192));
    assert_eq!((asked, calls), (Ok(()), HashMap::from([(Call::StartSync, 1)])));
    let failed = bench.failing(Call::StartSync, libc::EUCLEAN, || {
        bench.timeline.write_out(ino, 0, 8192)
    });
    assert_eq!(failed, Err(Errno::EUCLEAN));
    assert_eq!(bench.timeline.fsync(ino), Err(Errno::EIO), "nothing says what was lost");
}

#[test]
fn a_snapshot_costs_the_same_whatever_the_number_of_files() {
    let cost = |files: usize| {
        let bench = Bench::new(&format!("files-{files}"));
        for i in 0..files {
            bench.file(&format!("f{i}"), 0);
        }
        let ino = bench.file("a", 8192);
        bench.snapshot("first").expect("snapshot");
        bench.timeline.write(ino, 0, &[2; 8192], None).expect("write");
        let (snapshot, calls) = bench.calls(|| bench.snapshot("second"));
        snapshot.expect("snapshot");
        calls
    };
    assert_eq!(cost(10), cost(3000));
}

#[test]
fn opening_and_reading_a_copy_writes_nothing() {
    let bench = Bench::new("copy");
    let ino = bench.file("a", 1 << 20);
    bench.snapshot("s").expect("snapshot");
    let (copy, start) = (
        "copy".parse().expect("a name"),
        Start::Snapshot("main@s".parse().expect("a name")),
    );
    bench.store.create_branch(&copy, &start, (0, 0), NOW).expect("branch");
    let (_, calls) = bench.calls(|| {
        let timeline = bench.store.timeline(&copy).expect("load");
        let mut buf = vec![0; 1 << 20];
        assert_eq!(timeline.view().read(ino, 0, &mut buf), Ok(1 << 20));
        timeline.fsync(ino).expect("sync");
    });
    for writing in [Call::Create, Call::Write, Call::SetLen, Call::SyncData, Call::SyncDir] {
        assert_eq!(calls.get(&writing), None, "{writing:?}");
    }
}

#[test]
fn a_failed_sync_is_never_taken_back() {
    let bench = Bench::new("poison");
    let ino = bench.file("a", 8192);
    let failed = bench.failing(Call::SyncData, libc::EIO, || bench.timeline.fsync(ino));
    assert_eq!(failed, Err(Errno::EIO));
    assert_eq!(bench.timeline.fsync(ino), Err(Errno::EIO));
    let other = bench.file("b", 8192);
    assert_eq!(bench.timeline.fsync(other), Err(Errno::EIO));
    assert!(matches!(bench.snapshot("s"), Err(Error::Poisoned { .. })));
}

/// Many files are synced with their whole filesystem: the kernel tells of a lost write once, and not whose it was.
#[test]
fn what_one_branch_hears_of_lost_writes_counts_for_all() {
    let bench = Bench::new("lost-by-another");
    let other: BranchName = "other".parse().expect("a name");
    let made = bench.store.create_branch(&other, &Start::Empty, (0, 0), NOW);
    made.expect("make a branch");
    let others = bench.store.timeline(&other).expect("load it");
    assert_eq!(others.fsync(Ino::ROOT), Ok(()));
    let mut mine = Ino::ROOT;
    for number in 0..100 {
        let name = format!("file-{number}");
        mine = bench.file(&name, 8192);
        let theirs = others
            .create(Ino::ROOT, OsStr::new(&name), a_file(), NOW)
            .expect("create")
            .ino;
        assert_eq!(others.write(theirs, 0, &[1; 8192], None), Ok(8192));
    }
    let name: SnapshotName = "other@s".parse().expect("a name");
    let taken = bench.failing(Call::SyncAll, libc::EIO, || {
        bench.store.create_snapshot(&name, Keep::default(), NOW)
    });
    taken.expect_err("the disk fails");
    bench.snapshot("s").expect_err("nobody knows whose writes were lost");
    assert_eq!(bench.timeline.fsync(mine), Err(Errno::EIO));
}

#[test]
fn a_new_head_is_not_told_before_its_directory_is_durable() {
    let bench = Bench::new("new-head");
    let ino = bench.file("a", 8192);
    bench.timeline.fsync(ino).expect("sync");
    let failed = bench.failing(Call::SyncDir, libc::EIO, || bench.snapshot("s"));
    assert!(matches!(failed, Err(Error::Io { .. })));
    bench
        .timeline
        .write(ino, 0, &[2; 8192], None)
        .expect("the old head goes on");
    bench.timeline.fsync(ino).expect("sync");
    bench.snapshot("s").expect("snapshot");
}

#[test]
fn running_out_of_descriptors_poisons_nothing() {
    let bench = Bench::new("descriptors");
    let ino = bench.file("a", 8192);
    let failed = bench.failing(Call::SyncData, libc::EMFILE, || bench.timeline.fsync(ino));
    assert_eq!(failed, Err(Errno::EMFILE));
    assert!(
        bench
            .failing(Call::SyncData, libc::EMFILE, || bench.timeline.sync_all())
            .is_err()
    );
    let (synced, calls) = bench.calls(|| bench.timeline.sync_all());
    synced.expect("sync");
    assert_eq!(calls.get(&Call::SyncData), Some(&1), "the file is still to be synced");
    assert_eq!(bench.timeline.fsync(ino), Ok(()));
}

#[test]
fn a_read_of_many_files_keeps_few_open() {
    let bench = Bench::new("many");
    let inos: Vec<Ino> = (0..1500).map(|i| bench.file(&format!("f{i}"), 100)).collect();
    let sealed = bench.snapshot("s").expect("snapshot").layer;
    let read_all = |view: &View| {
        for ino in &inos {
            assert_eq!(view.read(*ino, 0, &mut [0; 100]), Ok(100));
        }
    };
    read_all(&bench.store.sealed_view(sealed).expect("view"));
    read_all(bench.timeline.view());
    let open = std::fs::read_dir("/proc/self/fd").expect("list descriptors").count();
    assert!(open < 1000, "{open} descriptors are open");
}

#[test]
fn blocks_of_a_file_that_is_gone_go_when_that_is_durable() {
    let bench = Bench::new("gone");
    let ino = bench.file("a", 8192);
    bench.timeline.unlink(Ino::ROOT, OsStr::new("a"), NOW).expect("unlink");
    let (_, calls) = bench.calls(|| bench.timeline.forget(ino));
    assert_eq!(calls, HashMap::new());
    let (_, calls) = bench.calls(|| bench.store.tidy());
    assert_eq!(calls, HashMap::from([(Call::Remove, 1)]));
}

#[test]
fn a_full_disk_is_told_and_costs_nothing_that_was_there() {
    let bench = Bench::new("full");
    let ino = bench.file("a", 8192);
    let full = libc::ENOSPC;
    let grown = bench.failing(Call::Write, full, || bench.timeline.write(ino, 8192, &[9; 8192], None));
    assert_eq!(grown, Err(Errno::ENOSPC));
    assert_eq!(bench.timeline.view().getattr(ino).map(|attr| attr.size), Ok(8192));
    bench.snapshot("s").expect("snapshot");
    let first = bench.failing(Call::Create, full, || bench.timeline.write(ino, 0, &[9; 8192], None));
    assert_eq!(first, Err(Errno::ENOSPC));
    let mut buf = vec![0; 8192];
    assert_eq!(bench.timeline.view().read(ino, 0, &mut buf), Ok(8192));
    assert!(buf.iter().all(|byte| *byte == 1));
    assert_eq!(bench.timeline.write(ino, 0, &[9; 8192], None), Ok(8192));
    bench.timeline.fsync(ino).expect("room again: nothing is poisoned");
}

/// More than any reserve leaves free.
const MUCH: u64 = 2 << 30;

impl Bench {
    /// A disk that says it is full, which files learn when they have used up what they were granted.
    fn full(name: &str) -> (Bench, Ino, Ino) {
        let bench = Bench::new(name);
        let (written, sparse) = (bench.file("written", 65536), bench.file("sparse", 4096));
        let longer = SetAttr {
            size: Some(65536),
            ..SetAttr::default()
        };
        bench.timeline.setattr(sparse, longer, NOW).expect("grown");
        *bench.door.available.lock().expect("unpoisoned") = Some(0);
        let all = bench.timeline.fallocate(written, Fallocate::KeepSize, 0, 1, NOW);
        assert_eq!(all, Err(Errno::ENOSPC));
        bench.overwrite_until_asked(sparse);
        (bench, written, sparse)
    }

    /// Writes over a file's first block until what was granted is used up.
    fn overwrite_until_asked(&self, ino: Ino) {
        self.asked();
        while self.asked() == 0 {
            assert_eq!(self.timeline.write(ino, 0, &[1; 4096], None), Ok(4096));
        }
    }

    /// How often the disk was asked for its space since the last look.
    fn asked(&self) -> usize {
        let calls = std::mem::take(&mut *self.door.calls.lock().expect("unpoisoned"));
        calls.get(&Call::Space).copied().unwrap_or(0)
    }
}

#[test]
fn what_takes_room_is_refused_before_the_reserve_is_used() {
    let (bench, written, sparse) = Bench::full("reserve");
    let full = Err(Errno::ENOSPC);
    assert_eq!(bench.timeline.write(written, 65536, &[2; 4096], None), full, "growth");
    assert_eq!(bench.timeline.write(sparse, 8192, &[2; 4096], None), full, "a hole");
    let made = bench.timeline.create(Ino::ROOT, OsStr::new("more"), a_file(), NOW);
    assert_eq!(made.map(|_| 0), full, "a name");
    bench.snapshot("s").expect("a snapshot takes what is kept back");
    assert_eq!(
        bench.timeline.write(written, 0, &[2; 4096], None),
        full,
        "an inherited block"
    );
    assert_eq!(bench.timeline.fsync(written), Ok(()), "nothing was lost");
    *bench.door.available.lock().expect("unpoisoned") = Some(MUCH);
    assert_eq!(
        bench.timeline.write(written, 0, &[2; 4096], None),
        Ok(4096),
        "room again"
    );
}

#[test]
fn what_the_head_has_is_overwritten_on_a_full_disk_too_and_names_go() {
    let (bench, written, sparse) = Bench::full("in-place");
    assert_eq!(bench.timeline.write(written, 4096, &[3; 8192], None), Ok(8192));
    assert_eq!(bench.timeline.write(written, 5000, &[4; 10], None), Ok(10));
    bench
        .timeline
        .rename(
            Ino::ROOT,
            OsStr::new("sparse"),
            Ino::ROOT,
            OsStr::new("gone"),
            Rename::Replace,
            NOW,
        )
        .expect("renamed");
    bench
        .timeline
        .unlink(Ino::ROOT, OsStr::new("gone"), NOW)
        .expect("unlinked");
    bench.timeline.forget(sparse);
    *bench.door.available.lock().expect("unpoisoned") = Some(MUCH);
    bench.snapshot("s").expect("a snapshot");
    assert_eq!(bench.timeline.write(written, 0, &[5; 4096], None), Ok(4096));
    *bench.door.available.lock().expect("unpoisoned") = Some(0);
    bench.overwrite_until_asked(written);
}

#[test]
fn the_reserve_file_goes_when_the_database_needs_it_and_comes_back() {
    let bench = Bench::new("reserve-file");
    let reserve = bench.dir.join("reserve");
    let held = std::fs::metadata(&reserve).expect("a reserve").len();
    let space = bench.store.space().expect("space");
    let available = |bytes| *bench.door.available.lock().expect("unpoisoned") = Some(bytes);
    available(MUCH);
    let with_file = bench.store.space().expect("space").available;
    assert!(
        with_file < MUCH && space.total > with_file,
        "a part of the reserve is left free"
    );
    available(1 << 20);
    bench.snapshot("s").expect("a snapshot");
    assert!(!reserve.exists(), "given up");
    available(MUCH);
    assert_eq!(
        bench.store.space().expect("space").available,
        with_file - held,
        "it is kept free then"
    );
    bench.store.tidy();
    assert_eq!(std::fs::metadata(&reserve).expect("made again").len(), held);
}

#[test]
fn a_poisoned_head_outlives_the_service_and_not_a_mount_anew() {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("cost-poison-mark-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    Store::create(&dir, Disk::new()).expect("make a store");
    let door = Arc::new(Door::default());
    let open = || Store::open(&dir, Disk::new().with_hook(door.clone())).expect("opened");
    let main: BranchName = "main".parse().expect("a name");
    let store = open();
    store.create_branch(&main, &Start::Empty, (0, 0), NOW).expect("made");
    let timeline = store.timeline(&main).expect("loaded");
    let ino = timeline
        .create(Ino::ROOT, OsStr::new("a"), a_file(), NOW)
        .expect("made")
        .ino;
    assert_eq!(timeline.write(ino, 0, &[1; 4096], None), Ok(4096));
    *door.failing.lock().expect("unpoisoned") = Some((Call::SyncData, libc::EIO));
    assert_eq!(timeline.fsync(ino), Err(Errno::EIO));
    *door.failing.lock().expect("unpoisoned") = None;
    drop((timeline, store));
    let synced = |load: fn(&Store, &BranchName) -> Result<Arc<Timeline>>| {
        let store = open();
        load(&store, &main).expect("loaded").fsync(ino)
    };
    assert_eq!(synced(Store::resumed_timeline), Err(Errno::EIO), "taken over");
    assert_eq!(synced(Store::resumed_timeline), Err(Errno::EIO), "and again");
    assert_eq!(synced(Store::timeline), Ok(()), "mounted anew");
    assert_eq!(synced(Store::resumed_timeline), Ok(()), "the mark is gone");
    std::fs::remove_dir_all(&dir).expect("removed");
}

#[test]
fn a_failed_read_is_an_error_not_zeros() {
    let bench = Bench::new("read-error");
    let ino = bench.file("a", 8192);
    let mut buf = [0; 8192];
    let read = bench.failing(Call::Read, libc::EIO, || bench.timeline.view().read(ino, 0, &mut buf));
    assert_eq!(read, Err(Errno::EIO));
}

#[test]
fn a_sealed_layer_that_lost_a_file_or_its_end_is_an_error_not_zeros() {
    let bench = Bench::new("lost");
    let ino = bench.file("a", 65536);
    let sealed = bench.snapshot("s").expect("snapshot").layer;
    let backing = bench.dir.join("layers").join(sealed.to_string()).join(ino.to_string());
    let view = |store: &Store| store.sealed_view(sealed).expect("view").read(ino, 0, &mut [0; 65536]);
    std::fs::File::options()
        .write(true)
        .open(&backing)
        .and_then(|file| file.set_len(8192))
        .expect("cut the backing file");
    assert_eq!(view(&bench.store), Err(Errno::EIO));
    std::fs::remove_file(&backing).expect("remove the backing file");
    assert_eq!(view(&bench.store), Err(Errno::EIO));
}

#[test]
fn a_layer_that_the_database_does_not_know_is_put_aside_not_deleted() {
    let bench = Bench::new("unknown");
    let dir = bench.dir.clone();
    let unknown = dir.join("layers/000000ff");
    std::fs::create_dir(&unknown).expect("make a layer");
    std::fs::write(unknown.join("10"), "blocks").expect("fill it");
    std::fs::create_dir(dir.join("layers/000000fe")).expect("make an empty layer");
    let Bench { store, timeline, .. } = &bench;
    let (store, timeline) = (Arc::downgrade(store), Arc::downgrade(timeline));
    let dir_kept = dir.with_extension("kept");
    std::fs::rename(&dir, &dir_kept).expect("keep it from being cleaned up");
    drop(bench);
    assert!(store.upgrade().is_none() && timeline.upgrade().is_none());
    drop(Store::open(&dir_kept, Disk::new()).expect("open the store"));
    let aside = std::fs::read_to_string(dir_kept.join("lost/000000ff.0/10"));
    let left = std::fs::read_dir(dir_kept.join("layers")).expect("list").count();
    std::fs::remove_dir_all(&dir_kept).expect("clean up");
    assert_eq!(aside.expect("put aside"), "blocks");
    assert_eq!(left, 1);
}

/// How many files of the layers are open, be it that they have no name any more.
fn open_files(bench: &Bench) -> usize {
    let layers = bench.dir.join("layers");
    let fds = std::fs::read_dir("/proc/self/fd").expect("listed").flatten();
    let targets = fds.filter_map(|fd| std::fs::read_link(fd.path()).ok());
    targets.filter(|target| target.starts_with(&layers)).count()
}

#[test]
fn a_branch_that_is_let_go_of_leaves_no_file_open() {
    let bench = Bench::new("let-go");
    let dev = "dev".parse().expect("a name");
    bench.file("a", 8192);
    bench.snapshot("one").expect("taken");
    let before = open_files(&bench);
    let from = Start::Snapshot("main@one".parse().expect("a name"));
    bench.store.create_branch(&dev, &from, (0, 0), NOW).expect("made");
    let timeline = bench.store.timeline(&dev).expect("loaded");
    let ino = timeline.view().lookup(Ino::ROOT, OsStr::new("a")).expect("there").ino;
    assert_eq!(timeline.write(ino, 0, &[2; 4096], None), Ok(4096));
    assert!(open_files(&bench) > before);
    drop(timeline);
    assert_eq!(open_files(&bench), before);
    bench.store.destroy_branch(&dev).expect("destroyed");
}

fn syncs(calls: &HashMap<Call, usize>) -> usize {
    calls.get(&Call::SyncAll).copied().unwrap_or(0)
}

#[test]
fn what_was_written_and_let_go_of_is_durable_before_it_is_taken_for_that() {
    let mut bench = Bench::new("settle");
    let (main, other) = ("main".parse().expect("a name"), "other".parse().expect("a name"));
    bench.file("a", 8192);
    bench
        .store
        .create_branch(&other, &Start::Empty, (0, 0), NOW)
        .expect("made");
    bench.timeline = bench.store.timeline(&other).expect("loaded");
    let loaded = bench.store.timeline(&main).expect("loaded");
    let ino = loaded.view().lookup(Ino::ROOT, OsStr::new("a")).expect("there").ino;
    let (_, calls) = bench.calls(|| loaded.fsync(ino).expect("synced"));
    assert_eq!(syncs(&calls), 1, "nobody had synced it");
    assert_eq!(loaded.write(ino, 0, &[3; 8192], None), Ok(8192));
    loaded.sync_all().expect("synced");
    drop(loaded);
    let loaded = bench.store.timeline(&main).expect("loaded");
    let (_, calls) = bench.calls(|| loaded.fsync(ino).expect("synced"));
    assert_eq!(syncs(&calls), 0, "all of it is known to be durable");
}

#[test]
fn what_a_killed_service_has_written_is_made_durable_before_anything_is_taken_for_that() {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("cost-reopen-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    Store::create(&dir, Disk::new()).expect("make a store");
    let main = "main".parse().expect("a name");
    let store = Store::open(&dir, Disk::new()).expect("opened");
    store.create_branch(&main, &Start::Empty, (0, 0), NOW).expect("made");
    drop(store);
    let door = Arc::new(Door::default());
    let store = Store::open(&dir, Disk::new().with_hook(door.clone())).expect("opened");
    let timeline = store.timeline(&main).expect("loaded");
    *door.failing.lock().expect("unpoisoned") = Some((Call::SyncAll, libc::EIO));
    assert_eq!(timeline.fsync(Ino::ROOT), Err(Errno::EIO));
    *door.failing.lock().expect("unpoisoned") = None;
    assert_eq!(timeline.fsync(Ino::ROOT), Err(Errno::EIO), "what was lost stays lost");
    drop(timeline);
    let timeline = store.timeline(&main).expect("loaded");
    assert_eq!(timeline.fsync(Ino::ROOT), Ok(()), "it was loaded from what is there");
    drop((timeline, store));
    std::fs::remove_dir_all(&dir).expect("removed");
}
