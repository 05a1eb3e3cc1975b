//! WAL after a snapshot: the blocks that follow a write come up with it, so that most of the writes to come are in place.

#[path = "support/store.rs"]
mod store;

use std::ffi::OsStr;
use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};

use nix::errno::Errno;
use nix::sys::statfs::{BTRFS_SUPER_MAGIC, statfs};
use pageserver::*;
use store::Scratch;

const PAGE: usize = 8192;
const PAGES: usize = 256;
const NOW: Time = Time {
    secs: 1_700_000_000,
    nanos: 5,
};

/// Counts writes, and fails calls of one kind after so many of them.
#[derive(Default)]
struct Door {
    writes: Mutex<usize>,
    failing: Mutex<Vec<Failing>>,
    available: Mutex<Option<u64>>,
    /// The next read says that it has come, and then waits.
    held: Mutex<Option<(SyncSender<()>, Receiver<()>)>>,
}

struct Failing {
    call: Call,
    after: usize,
    errno: i32,
    times: usize,
}

impl Hook for Door {
    fn before(&self, call: Call) -> io::Result<()> {
        if call == Call::Write {
            *self.writes.lock().expect("unpoisoned") += 1;
        }
        if call == Call::Read
            && let Some((says, waits)) = self.held.lock().expect("unpoisoned").take()
        {
            says.send(()).expect("somebody listens");
            waits.recv().expect("somebody tells");
        }
        let mut failing = self.failing.lock().expect("unpoisoned");
        match failing.iter_mut().find(|failing| failing.call == call) {
            Some(failing) if failing.after == 0 => {
                failing.times += 1;
                Err(io::Error::from_raw_os_error(failing.errno))
            }
            Some(failing) => {
                failing.after -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn space(&self, space: Space) -> Space {
        let available = *self.available.lock().expect("unpoisoned");
        available.map_or(space, |available| Space { available, ..space })
    }
}

/// A file of 2 MiB in a snapshot, and what the head has of it.
struct Segment {
    door: Arc<Door>,
    store: Arc<Store>,
    timeline: Arc<Timeline>,
    ino: Ino,
    model: Vec<u8>,
    scratch: Scratch,
}

/// Whether anything is copied: btrfs gives every write new blocks.
fn is_copied() -> bool {
    let kind = statfs(env!("CARGO_TARGET_TMPDIR")).expect("told").filesystem_type();
    if kind == BTRFS_SUPER_MAGIC {
        eprintln!("skipped: the build directory lies on btrfs");
    }
    kind != BTRFS_SUPER_MAGIC
}

fn before() -> Vec<u8> {
    (0..PAGES * PAGE).map(|at| (at / 512) as u8 | 1).collect()
}

impl Segment {
    fn new(name: &str, dir: &str) -> Segment {
        let scratch = Scratch::new(name);
        let door = Arc::new(Door::default());
        let store = scratch.open(Disk::new().with_hook(door.clone()));
        let main: BranchName = "main".parse().expect("a name");
        store
            .create_branch(&main, &Start::Empty, (0, 0), NOW)
            .expect("a branch");
        let timeline = store.timeline(&main).expect("loads");
        let new = NewNode {
            kind: NewKind::Dir,
            mode: 0o700,
            ..store::a_file()
        };
        let dir = timeline.create(Ino::ROOT, OsStr::new(dir), new, NOW).expect("made").ino;
        let ino = timeline
            .create(dir, OsStr::new("0001"), store::a_file(), NOW)
            .expect("made")
            .ino;
        let model = before();
        timeline.write(ino, 0, &model, Some(NOW)).expect("written");
        let segment = Segment {
            door,
            store,
            timeline,
            ino,
            model,
            scratch,
        };
        segment.snapshot("before");
        segment
    }

    fn snapshot(&self, tag: &str) {
        let name = format!("main@{tag}").parse().expect("a name");
        self.store.create_snapshot(&name, Keep::default(), NOW).expect("taken");
    }

    /// Writes pages; returns how many writes of the disk that took.
    fn write(&mut self, page: usize, pages: usize) -> FsResult<usize> {
        *self.door.writes.lock().expect("unpoisoned") = 0;
        let bytes = page * PAGE..(page + pages) * PAGE;
        let data = vec![page as u8; bytes.len()];
        self.timeline.write(self.ino, bytes.start as u64, &data, Some(NOW))?;
        self.model[bytes].copy_from_slice(&data);
        Ok(*self.door.writes.lock().expect("unpoisoned"))
    }

    /// Compares the file with the model, now and after the store was opened anew.
    fn compare(self) {
        let read = |view: &View| {
            let mut bytes = vec![0; PAGES * PAGE];
            assert_eq!(view.read(self.ino, 0, &mut bytes), Ok(bytes.len()));
            bytes
        };
        assert!(read(self.timeline.view()) == self.model);
        let name = "main@before".parse().expect("a name");
        assert!(read(&self.store.snapshot_view(&name).expect("loads")) == before());
        self.timeline.sync_all().expect("synced");
        drop((self.timeline, self.store));
        let store = self.scratch.open(Disk::new());
        let timeline = store.timeline(&"main".parse().expect("a name")).expect("loads");
        assert!(read(timeline.view()) == self.model);
        assert!(read(&store.snapshot_view(&name).expect("loads")) == before());
    }

    /// Writes a page while calls fail, each after so many; every one of them must be met.
    fn write_failing(&mut self, page: usize, calls: &[(Call, usize, i32)]) -> FsResult<usize> {
        let failing = calls.iter().map(|&(call, after, errno)| Failing {
            call,
            after,
            errno,
            times: 0,
        });
        *self.door.failing.lock().expect("unpoisoned") = failing.collect();
        let written = self.write(page, 1);
        let failed = std::mem::take(&mut *self.door.failing.lock().expect("unpoisoned"));
        assert!(failed.iter().all(|failing| failing.times > 0), "{calls:?}");
        written
    }

    fn fsync(&self) -> FsResult<()> {
        self.timeline.fsync(self.ino)
    }
}

#[test]
fn few_writes_of_wal_bring_up_what_follows() {
    if !is_copied() {
        return;
    }
    let mut segment = Segment::new("wal", "pg_wal");
    let copying: Vec<usize> = (0..PAGES).filter(|page| segment.write(*page, 1) == Ok(2)).collect();
    // From page 1 on, as much as there is before it, and 32 pages at most.
    assert_eq!(copying, [0, 1, 3, 7, 15, 31, 63, 95, 127, 159, 191, 223]);
    segment.snapshot("after");
    assert_eq!((segment.write(100, 1), segment.write(101, 1)), (Ok(2), Ok(2)));
    assert_eq!(segment.write(102, 1), Ok(1));
    segment.compare();
}

#[test]
fn other_files_get_only_what_is_written() {
    let mut segment = Segment::new("not-wal", "base");
    assert!((0..PAGES).all(|page| segment.write(page, 1) == Ok(1)));
    segment.compare();
}

#[test]
fn large_writes_of_wal_bring_nothing_up() {
    let mut segment = Segment::new("large", "pg_wal");
    assert!((0..PAGES).step_by(16).all(|page| segment.write(page, 16) == Ok(1)));
    segment.compare();
}

#[test]
fn what_the_head_has_already_stays() {
    let mut segment = Segment::new("stays", "pg_wal");
    for page in [20, 5, 33, 7] {
        segment.write(page, 1).expect("written");
    }
    for page in 0..40 {
        segment.write(page, 1).expect("written");
        let wanted = &segment.model[..64 * PAGE];
        let mut bytes = vec![0; wanted.len()];
        assert_eq!(
            segment.timeline.view().read(segment.ino, 0, &mut bytes),
            Ok(bytes.len())
        );
        assert!(bytes == wanted, "after page {page}");
    }
    segment.compare();
}

#[test]
fn wal_is_written_where_what_follows_finds_no_room_or_is_not_in_memory() {
    if !is_copied() {
        return;
    }
    for (call, after, errno) in [
        (Call::Write, 1, libc::ENOSPC),
        (Call::Write, 1, libc::EDQUOT),
        (Call::Write, 1, libc::ENOMEM),
        (Call::ReadCached, 0, libc::EAGAIN),
        (Call::ReadCached, 0, libc::EIO),
    ] {
        let mut segment = Segment::new("no-copy", "pg_wal");
        segment.write_failing(0, &[(call, after, errno)]).expect("written");
        assert_eq!(segment.fsync(), Ok(()));
        assert_eq!(segment.write(0, 1), Ok(2), "the next time it is copied");
        segment.compare();
    }
}

#[test]
fn what_is_not_in_memory_is_asked_for() {
    if !is_copied() {
        return;
    }
    let mut segment = Segment::new("cold", "pg_wal");
    let asked = [(Call::ReadCached, 0, libc::EAGAIN), (Call::Advise, 0, libc::EIO)];
    assert_eq!(segment.write_failing(0, &asked), Ok(1));
    segment.compare();
}

#[test]
fn a_disk_that_fails_with_what_follows_has_failed() {
    if !is_copied() {
        return;
    }
    let mut segment = Segment::new("eio", "pg_wal");
    assert_eq!(
        segment.write_failing(0, &[(Call::Write, 1, libc::EIO)]),
        Err(Errno::EIO)
    );
    assert_eq!(segment.fsync(), Err(Errno::EIO));
}

/// What has failed may have left zeros there.
#[test]
fn a_write_that_cannot_be_taken_back_is_a_failure_of_the_disk() {
    if !is_copied() {
        return;
    }
    for dir in ["pg_wal", "base"] {
        for nth in [0, 1].into_iter().take(if dir == "pg_wal" { 2 } else { 1 }) {
            let mut segment = Segment::new("take-back", dir);
            let failing = [(Call::Write, nth, libc::ENOSPC), (Call::Seek, 0, libc::ENOSPC)];
            assert_eq!(segment.write_failing(0, &failing), Err(Errno::EIO));
            assert_eq!(segment.fsync(), Err(Errno::EIO));
        }
        // The head has a part by then.
        let mut segment = Segment::new("take-back", dir);
        segment.write(0, 1).expect("written");
        let failing = [(Call::Write, 0, libc::ENOSPC), (Call::Seek, 0, libc::ENOSPC)];
        assert_eq!(segment.write_failing(8, &failing), Err(Errno::EIO));
        assert_eq!(segment.fsync(), Err(Errno::EIO));
    }
}

#[test]
fn who_reads_the_file_is_not_waited_for() {
    if !is_copied() {
        return;
    }
    let mut segment = Segment::new("reader", "pg_wal");
    segment.write(0, 1).expect("written");
    let (ino, timeline) = (segment.ino, segment.timeline.clone());
    let ((says, comes), (tells, waits)) = (sync_channel(0), sync_channel(0));
    *segment.door.held.lock().expect("unpoisoned") = Some((says, waits));
    let reader = std::thread::spawn(move || timeline.view().read(ino, 0, &mut [0; 16]));
    comes.recv().expect("it reads");
    assert_eq!(segment.write(1, 1), Ok(1), "nothing was copied");
    tells.send(()).expect("it waits");
    assert_eq!(reader.join().expect("no panic"), Ok(16));
    assert_eq!(segment.write(1, 1), Ok(2));
    segment.compare();
}

#[test]
fn what_follows_takes_no_room_that_is_not_there() {
    if !is_copied() {
        return;
    }
    let mut segment = Segment::new("room", "pg_wal");
    let leave = |left| *segment.door.available.lock().expect("unpoisoned") = Some(left);
    leave(1 << 40);
    let kept = (1 << 40) - segment.timeline.view().space().expect("told").available;
    leave(kept);
    let other = store::file(&segment.timeline, "other", NOW);
    let filled = (0..1000).find_map(|nth| segment.timeline.write(other, nth << 16, &[1; 1 << 16], Some(NOW)).err());
    assert_eq!(filled, Some(Errno::ENOSPC));
    leave(kept + 3 * PAGE as u64);
    let copying: Vec<usize> = (0..PAGES).filter(|page| segment.write(*page, 1) == Ok(2)).collect();
    // Before the last one there are three pages left.
    assert_eq!(copying, [0, 1, 252]);
    segment.compare();
}
