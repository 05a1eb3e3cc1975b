//! A mount over a disk that fails, is slow or hangs.

#![cfg(target_os = "linux")]

#[allow(dead_code)]
mod common;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use common::{Mounted, Scratch, errno, owner};
use nix::errno::Errno;
use nix::libc;
use pageserver::{Call, Disk, Hook};

/// A file of WAL.
const SEGMENT: &str = "pg_wal/segment";

/// Counts calls of some kinds, and fails them once it is told to.
struct FailingDisk {
    calls: &'static [Call],
    times: AtomicUsize,
    fails: AtomicBool,
}

impl FailingDisk {
    fn new(calls: &'static [Call]) -> Arc<FailingDisk> {
        Arc::new(FailingDisk {
            calls,
            times: AtomicUsize::new(0),
            fails: AtomicBool::new(false),
        })
    }
}

impl Hook for FailingDisk {
    fn before(&self, call: Call) -> io::Result<()> {
        if !self.calls.contains(&call) {
            return Ok(());
        }
        self.times.fetch_add(1, Ordering::Relaxed);
        match self.fails.load(Ordering::Relaxed) {
            true => Err(Errno::EIO.into()),
            false => Ok(()),
        }
    }
}

fn mounted_on(disk: Arc<dyn Hook>, test: &str) -> (Scratch, Mounted) {
    let scratch = Scratch::on(Disk::new().with_hook(disk), &format!("disk-{test}"), owner());
    let mounted = Mounted::new(test, scratch.head());
    fs::create_dir(mounted.path("pg_wal")).expect("made");
    (scratch, mounted)
}

fn open(mounted: &Mounted, name: &str, flags: i32) -> File {
    let mut options = File::options();
    options.write(true).create(true).truncate(false).custom_flags(flags);
    options.open(mounted.path(name)).expect("opened")
}

#[test]
fn a_synchronous_write_is_durable_or_fails() {
    for name in ["pg_wal/segment", "table"] {
        let disk = FailingDisk::new(&[Call::SyncData, Call::SyncAll]);
        let (_scratch, mounted) = mounted_on(disk.clone(), "synchronous");
        let (synchronous, lazy) = (open(&mounted, name, libc::O_DSYNC), open(&mounted, name, 0));
        synchronous.write_all_at(b"1", 0).expect("written");
        disk.fails.store(true, Ordering::Relaxed);
        lazy.write_all_at(b"2", 0).expect("nobody asked for a sync");
        assert_eq!(errno(synchronous.write_all_at(b"3", 0)), Some(Errno::EIO), "{name}");
    }
}

#[test]
fn the_disk_begins_with_wal_when_it_is_written() {
    let disk = FailingDisk::new(&[Call::StartSync]);
    let (_scratch, mounted) = mounted_on(disk.clone(), "begun");
    open(&mounted, SEGMENT, 0).write_all_at(&[1; 8192], 0).expect("written");
    assert_eq!(disk.times.load(Ordering::Relaxed), 1);
    let synchronous = open(&mounted, SEGMENT, libc::O_DSYNC);
    synchronous.write_all_at(&[2; 8192], 0).expect("written");
    assert_eq!(disk.times.load(Ordering::Relaxed), 1, "it is durable");
}

#[test]
fn a_disk_that_cannot_begin_fails_the_write_and_later_syncs() {
    let disk = FailingDisk::new(&[Call::StartSync]);
    let (_scratch, mounted) = mounted_on(disk.clone(), "begins-not");
    disk.fails.store(true, Ordering::Relaxed);
    let segment = open(&mounted, SEGMENT, 0);
    assert_eq!(errno(segment.write_all_at(&[1; 8192], 0)), Some(Errno::EIO));
    assert_eq!(
        errno(segment.sync_data()),
        Some(Errno::EIO),
        "what was given up is not known"
    );
}

/// Holds calls of a kind up until it is told to let them go on, or nobody can tell it any more.
struct SlowDisk {
    call: Call,
    is_asked: AtomicBool,
    is_under_way: AtomicBool,
    may_go_on: AtomicBool,
}

impl SlowDisk {
    fn new(call: Call) -> Arc<SlowDisk> {
        Arc::new(SlowDisk {
            call,
            is_asked: AtomicBool::new(false),
            is_under_way: AtomicBool::new(false),
            may_go_on: AtomicBool::new(false),
        })
    }
}

impl Hook for SlowDisk {
    fn before(&self, call: Call) -> io::Result<()> {
        if call == self.call && self.is_asked.load(Ordering::Acquire) {
            self.is_under_way.store(true, Ordering::Release);
            comes_true(&self.may_go_on);
            self.is_under_way.store(false, Ordering::Release);
        }
        Ok(())
    }
}

/// Whether it does within some seconds.
fn comes_true(condition: &AtomicBool) -> bool {
    let patience = (0..500).find(|_| {
        thread::sleep(Duration::from_millis(10));
        condition.load(Ordering::Acquire)
    });
    patience.is_some()
}

/// Writes pages of WAL, and syncs each.
fn commit(wal: &File, times: u64) {
    for page in 0..times {
        wal.write_all_at(&[2; 8192], page * 8192).expect("written");
        wal.sync_data().expect("synced");
    }
}

#[test]
fn a_request_that_takes_long_keeps_no_other_waiting() {
    let disk = SlowDisk::new(Call::SetLen);
    let (_scratch, mounted) = mounted_on(disk.clone(), "slow");
    let wal = open(&mounted, SEGMENT, 0);
    let table = File::create(mounted.path("table")).expect("made");
    table.write_all_at(&[1; 16384], 0).expect("written");
    table.sync_all().expect("synced");
    // All threads of the mount have served something then.
    commit(&wal, 50);
    disk.is_asked.store(true, Ordering::Release);
    thread::scope(|scope| {
        let truncation = scope.spawn(|| table.set_len(8192));
        assert!(comes_true(&disk.is_under_way));
        commit(&wal, 50);
        assert!(disk.is_under_way.load(Ordering::Acquire), "the writes waited for it");
        disk.may_go_on.store(true, Ordering::Release);
        truncation.join().expect("no panic").expect("cut off");
    });
    commit(&wal, 50);
}

#[test]
fn a_disk_that_hangs_in_a_commit_holds_up_what_needs_no_disk_for_a_moment_only() {
    let disk = SlowDisk::new(Call::SyncData);
    let (_scratch, mounted) = mounted_on(disk.clone(), "hangs");
    let wal = open(&mounted, SEGMENT, 0);
    commit(&wal, 50);
    wal.write_all_at(&[3; 8192], 0).expect("written");
    disk.is_asked.store(true, Ordering::Release);
    thread::scope(|scope| {
        let syncing = scope.spawn(|| wal.sync_data());
        assert!(comes_true(&disk.is_under_way));
        assert!(!mounted.path("nobody-has-asked-for-this").exists());
        assert!(disk.is_under_way.load(Ordering::Acquire), "the question waited for it");
        disk.may_go_on.store(true, Ordering::Release);
        syncing.join().expect("no panic").expect("synced");
    });
}
