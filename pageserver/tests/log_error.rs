//! The database's log can't be written, for another reason than a full disk: then nobody knows what a restart will find,
//! and nothing is believed until the store is opened anew.
//!
//! RocksDB writes its files itself, so the error is the kernel's: a limit on the size of files, which is the whole process's;
//! therefore this test has a program of its own.

use std::ffi::OsStr;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigHandler, Signal, signal};
use pageserver::*;

const NOW: Time = Time {
    secs: 1_700_000_000,
    nanos: 0,
};

/// More than the files have, less than the log.
const LIMIT: u64 = 64 << 10;

fn create(timeline: &Timeline, name: &str) -> FsResult<Ino> {
    let node = NewNode {
        kind: NewKind::File,
        mode: 0o600,
        uid: 0,
        gid: 0,
    };
    let made = timeline.create(Ino::ROOT, OsStr::new(name), node, NOW);
    made.map(|attr| attr.ino)
}

fn limit_files(bytes: u64) {
    let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE).expect("a limit");
    setrlimit(Resource::RLIMIT_FSIZE, bytes.min(hard), hard).expect("limited");
}

#[test]
fn after_an_error_of_the_log_no_sync_is_believed_until_the_store_is_opened_anew() {
    // SAFETY: no handler runs; writes over the limit then fail with EFBIG.
    unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) }.expect("ignored");
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("log-error-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    Store::create(&dir, Disk::new()).expect("made");
    let store = Store::open(&dir, Disk::new()).expect("opened");
    let names = ["main", "other"].map(|name| name.parse::<BranchName>().expect("a name"));
    let [main, other] = names.each_ref().map(|name| {
        store.create_branch(name, &Start::Empty, (0, 0), NOW).expect("made");
        store.timeline(name).expect("loaded")
    });
    let untouched = create(&other, "untouched").expect("made");
    for i in 0..1000 {
        create(&main, &format!("file-{i}")).expect("made");
    }
    other.fsync(untouched).expect("synced");
    limit_files(LIMIT);
    assert_eq!(create(&main, "refused"), Err(Errno::EIO));
    assert_eq!(other.write(untouched, 0, &[1; 4096], None), Ok(4096));
    assert_eq!(other.fsync(untouched), Err(Errno::EIO), "whatever branch it is");
    limit_files(u64::MAX);
    assert_eq!(
        create(&main, "refused again"),
        Err(Errno::EIO),
        "never retried into success"
    );
    assert_eq!(other.fsync(untouched), Err(Errno::EIO));
    let snapshot = "other@s".parse().expect("a name");
    assert!(store.create_snapshot(&snapshot, Keep::default(), NOW).is_err());
    assert!(store.destroy_branch(&names[0]).is_err());
    drop((main, other, store));
    let store = Store::open(&dir, Disk::new()).expect("opened anew");
    let [main, other] = names.each_ref().map(|name| store.timeline(name).expect("loaded"));
    assert_eq!(main.view().readdir(Ino::ROOT, 0, 2000).expect("listed").len(), 1000);
    assert_eq!(other.fsync(untouched), Ok(()));
    create(&main, "accepted").expect("made");
    drop((main, other, store));
    std::fs::remove_dir_all(&dir).expect("removed");
}
