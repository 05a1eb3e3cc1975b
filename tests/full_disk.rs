//! A disk that is filled from outside, with a Postgres at work on it: whatever is free when the ballast has come, to the
//! last byte, no commit that was acknowledged is lost; the store lets go of snapshots and branches all the same, opens
//! after a kill, and goes on with no restart when the ballast is gone.
//!
//! A write that finds room for a part of it alone leaves the rest as it was; and a filesystem of smaller blocks than ours carries no store.
//!
//! The disk is a loop device with an ext4 of its own, so it needs root. Four levels of free space in the short form,
//! `ZENITH_FULL_DISK_LEVELS=20` for as many as that.

#[path = "support/loop_disk.rs"]
mod loop_disk;
#[path = "support/postgres.rs"]
mod postgres;
#[path = "support/service.rs"]
mod service;
#[path = "support/store.rs"]
mod store;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use loop_disk::LoopDisk;
use nix::unistd::geteuid;
use postgres::Cluster;
use store::Store;

/// Layers of earlier levels stay below the head, so it must hold what all of them have written.
const DISK_BYTES: u64 = 3 << 30;
/// Free space at the highest level. The lowest is the last byte.
const FREE_MAX: u64 = 120 << 20;
const INSERTS: u64 = 70;

/// Rows that are not compressed; a number tells which transaction they came with.
const ROWS: u64 = 1000;
const INSERT: &str = "INSERT INTO commits SELECT $N, repeat(md5(random()::text), 32) FROM generate_series(1, $ROWS)";

#[test]
fn a_full_disk_loses_no_commit_and_the_store_goes_on() {
    if !geteuid().is_root() {
        eprintln!("skipped: loop devices are root's");
        return;
    }
    let disk = LoopDisk::new("full", DISK_BYTES);
    let store = Store::within(&disk.dir, "store");
    let data = store.mount("main", "main", &[]);
    let cluster = Cluster::new(15, &data, &store.path("main.sock"));
    cluster.initdb();
    cluster.start();
    cluster.sql("ALTER SYSTEM SET max_wal_size = '64MB'");
    cluster.sql("ALTER SYSTEM SET restart_after_crash = on");
    cluster.sql("CREATE TABLE commits (n bigint, filler text)");
    let levels = levels();
    let mut acknowledged = Vec::new();
    for level in 0..levels {
        let free = FREE_MAX * level / (levels - 1).max(1);
        let mut round = Round {
            disk: &disk,
            store: &store,
            cluster: &cluster,
            first: level * INSERTS,
            acknowledged: &mut acknowledged,
        };
        round.run(level, free);
    }
    cluster.sql("DROP TABLE commits");
    cluster.check();
    cluster.stop();
}

/// Where a page cache finds no room for all of a page, the filesystem fills the rest of it with zeros, and that is on the disk then.
#[test]
fn a_write_that_finds_no_room_leaves_what_was_there() {
    if !geteuid().is_root() {
        eprintln!("skipped: loop devices are root's");
        return;
    }
    const PAGE: u64 = 4096;
    const PIECE: u64 = 256 << 10;
    const PIECES: u64 = 8;
    let disk = LoopDisk::new("no-room", 1 << 30);
    let store = Store::within(&disk.dir, "store");
    let path = store.mount("main", "main", &[]).join("file");
    fs::write(&path, vec![b'a'; (PIECES * PIECE) as usize]).expect("written");
    store.zenith(&["snapshot", "create", "main@before"]);
    let file = File::options().write(true).open(&path).expect("opens");
    for nth in (0..PIECES).step_by(2) {
        let ballast = disk.fill(60 << 10);
        let written = file.write_all_at(&[b'b'; PIECE as usize], nth * PIECE + PAGE);
        let synced = written.and_then(|()| file.sync_all());
        assert_eq!(synced.map_err(|e| e.raw_os_error()), Err(Some(libc::ENOSPC)));
        fs::remove_file(&ballast).expect("made space");
    }
    drop(file);
    store.zenith(&["umount", "../store-mounts/main"]);
    let path = store.mount("main", "main", &[]).join("file");
    let bytes = fs::read(&path).expect("read");
    assert_eq!(bytes.len() as u64, PIECES * PIECE);
    assert_eq!(bytes.iter().position(|byte| !b"ab".contains(byte)), None);
    assert!(bytes.contains(&b'b'), "no write has come to the disk");
}

/// There a power cut could leave a part of a block that was copied up.
#[test]
fn a_filesystem_of_smaller_blocks_is_refused() {
    if !geteuid().is_root() {
        eprintln!("skipped: loop devices are root's");
        return;
    }
    let disk = LoopDisk::with("small-blocks", 200 << 20, &["-b", "1024"]);
    let store = disk.dir.join("store");
    let init = Command::new(env!("CARGO_BIN_EXE_zenith"))
        .arg("--store")
        .arg(&store)
        .args(["init", "--empty"])
        .output();
    let init = init.expect("zenith runs");
    let said = String::from_utf8_lossy(&init.stderr);
    assert!(
        !init.status.success() && said.contains("its blocks are smaller than 4 KiB"),
        "{said}"
    );
    assert!(!store.exists(), "something is left");
}

fn levels() -> u64 {
    let levels = std::env::var("ZENITH_FULL_DISK_LEVELS").ok();
    levels.map_or(4, |levels| levels.parse().expect("ZENITH_FULL_DISK_LEVELS is a number"))
}

/// One level of free space.
struct Round<'a> {
    disk: &'a LoopDisk,
    store: &'a Store,
    cluster: &'a Cluster,
    first: u64,
    acknowledged: &'a mut Vec<u64>,
}

impl Round<'_> {
    fn run(&mut self, level: u64, free: u64) {
        self.store.zenith(&["snapshot", "create", "main@before"]);
        self.store.zenith(&["branch", "side", "main@before"]);
        let ballast = self.disk.fill(free);
        let said = self.insert_until_full();
        self.let_go();
        if level % 2 == 1 {
            self.kill_the_service();
        }
        let (left, kept) = (self.disk.available(), self.store.dir().join("reserve").exists());
        fs::remove_file(&ballast).expect("made space");
        let waited = self.recover();
        let commits = self.check();
        eprintln!(
            "level {level:>2}: {free:>10} bytes free, {commits:>3} commits acknowledged, {left:>10} left, reserve kept: {kept:<5}, again after {waited:.1?}; {said}",
        );
    }

    /// Commits until one is refused; returns what it was told.
    fn insert_until_full(&mut self) -> String {
        for n in self.first..self.first + INSERTS {
            let insert = INSERT.replace("$N", &n.to_string()).replace("$ROWS", &ROWS.to_string());
            let output = self.try_sql(&insert);
            if !output.status.success() {
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                return said.lines().next().unwrap_or_default().into();
            }
            self.acknowledged.push(n);
        }
        "never full".into()
    }

    /// A full disk gives back what nobody needs.
    fn let_go(&self) {
        self.store.zenith(&["branch", "-d", "side", "--yes"]);
        self.store.zenith(&["snapshot", "destroy", "main@before", "--yes"]);
    }

    /// The disk is full still when the store is opened again.
    fn kill_the_service(&self) {
        self.cluster.kill_9();
        service::kill_with_keeper(self.store.dir());
        self.store.zenith(&["snapshot", "list"]);
    }

    /// How long it took until a commit was acknowledged again.
    fn recover(&mut self) -> Duration {
        let start = Instant::now();
        // A server that has died starts itself again, unless it was killed or has given up.
        while self.cluster.is_running() && !self.try_sql("SELECT 1").status.success() {
            assert!(
                start.elapsed() < Duration::from_secs(60),
                "the server does not come back"
            );
            thread::sleep(Duration::from_millis(200));
        }
        if !self.cluster.is_running() {
            self.cluster.start();
        }
        let statement = "CREATE TABLE alive AS SELECT 1; DROP TABLE alive";
        while !self.try_sql(statement).status.success() {
            assert!(start.elapsed() < Duration::from_secs(60), "nothing goes on");
            thread::sleep(Duration::from_millis(200));
        }
        start.elapsed()
    }

    /// Every commit that was acknowledged is there, whole; returns how many those are. The next level starts with an empty table.
    fn check(&mut self) -> usize {
        let whole = format!("SELECT n FROM commits GROUP BY n HAVING count(*) = {ROWS}");
        let list = format!("SELECT coalesce(string_agg(n::text, ','), '') FROM ({whole}) whole");
        let there = self.cluster.sql(&list);
        let there: Vec<u64> = there.split(',').filter_map(|n| n.parse().ok()).collect();
        let lost: Vec<&u64> = self.acknowledged.iter().filter(|n| !there.contains(n)).collect();
        assert!(lost.is_empty(), "lost commits: {lost:?}");
        self.cluster.sql("TRUNCATE commits");
        self.cluster.sql("CHECKPOINT");
        std::mem::take(self.acknowledged).len()
    }

    fn try_sql(&self, statement: &str) -> Output {
        let arguments = ["-XqAt", "-v", "ON_ERROR_STOP=1", "-c", statement];
        self.cluster.spawn("psql", &arguments).wait()
    }
}
