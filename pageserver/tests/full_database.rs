//! A disk filled to its last byte by somebody else, the reserve included, while the database has to write.
//!
//! Nothing is lost and nothing is poisoned: changes and syncs are refused with ENOSPC for as long as that lasts, and
//! both are done again when there is room, by the same open store. On a loop device, which only root can make.

#[path = "../../tests/support/loop_disk.rs"]
mod loop_disk;

use std::ffi::OsStr;
use std::thread;
use std::time::{Duration, Instant};

use loop_disk::LoopDisk;
use nix::errno::Errno;
use pageserver::*;

const NOW: Time = Time {
    secs: 1_700_000_000,
    nanos: 0,
};

/// More than fill the database's log.
const RENAMES_MAX: usize = 200_000;

/// A file that is renamed from number to number; it has the last one that was acknowledged.
struct Moving<'a> {
    timeline: &'a Timeline,
    ino: Ino,
    number: usize,
}

impl Moving<'_> {
    fn step(&mut self) -> FsResult<()> {
        let (from, to) = (self.number.to_string(), (self.number + 1).to_string());
        let (from, to) = (OsStr::new(&from), OsStr::new(&to));
        self.timeline
            .rename(Ino::ROOT, from, Ino::ROOT, to, Rename::Replace, NOW)?;
        self.number += 1;
        Ok(())
    }

    fn until_full(&mut self) -> Errno {
        let refused = (0..RENAMES_MAX).find_map(|_| self.step().err());
        refused.expect("the log has an end")
    }
}

#[test]
fn a_database_without_any_room_refuses_and_goes_on_when_there_is_some() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: loop devices are root's");
        return;
    }
    let disk = LoopDisk::new("full-database", 256 << 20);
    let dir = disk.dir.join("store");
    Store::create(&dir, Disk::new()).expect("made");
    let store = Store::open(&dir, Disk::new()).expect("opened");
    let main: BranchName = "main".parse().expect("a name");
    store.create_branch(&main, &Start::Empty, (0, 0), NOW).expect("made");
    let timeline = store.timeline(&main).expect("loaded");
    let node = NewNode {
        kind: NewKind::File,
        mode: 0o600,
        uid: 0,
        gid: 0,
    };
    let ino = timeline
        .create(Ino::ROOT, OsStr::new("0"), node, NOW)
        .expect("made")
        .ino;
    let mut moving = Moving {
        timeline: &timeline,
        ino,
        number: 0,
    };
    for round in 0..3 {
        // Somebody has taken the reserve as well.
        let _ = std::fs::remove_file(dir.join("reserve"));
        let ballast = disk.fill(0);
        assert_eq!(moving.until_full(), Errno::ENOSPC);
        assert_eq!(
            timeline.fsync(moving.ino),
            Err(Errno::ENOSPC),
            "not durable, and not lost"
        );
        assert_eq!(moving.step(), Err(Errno::ENOSPC));
        std::fs::remove_file(ballast).expect("made space");
        let waited = Instant::now();
        while let Err(errno) = moving.step() {
            assert_eq!(errno, Errno::ENOSPC);
            assert!(
                waited.elapsed() < Duration::from_secs(30),
                "the database does not go on"
            );
            thread::sleep(Duration::from_millis(50));
        }
        println!(
            "round {round}: {} changes, again after {:.1?}",
            moving.number,
            waited.elapsed()
        );
        assert_eq!(timeline.fsync(moving.ino), Ok(()));
        let tag = format!("main@round-{round}").parse().expect("a name");
        store.create_snapshot(&tag, Keep::default(), NOW).expect("a snapshot");
    }
    let number = moving.number;
    drop((timeline, store));
    let store = Store::open(&dir, Disk::new()).expect("opened again");
    let timeline = store.timeline(&main).expect("loaded");
    let entries = timeline.view().readdir(Ino::ROOT, 0, 10).expect("listed");
    let names: Vec<_> = entries.iter().map(|entry| entry.name.to_string_lossy()).collect();
    assert_eq!(names, [number.to_string()]);
}
