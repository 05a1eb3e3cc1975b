//! The n-th call to the disk fails, for every n: with EIO and with ENOSPC, alone, with the next one, and from then on.
//!
//! A scripted life of a store is run once to count its calls, then over and over with another of them failing. Each
//! step is acknowledged or refused; what the store shows after that, and once more after it was opened anew on a
//! mended disk, is what the model of acknowledged steps allows.
//!
//! Every eighth call in the short form, every call with `ZENITH_FAULTS=all`; `ZENITH_FAULTS=N` only the n-th.

#[path = "faults/life.rs"]
mod life;

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use life::{Life, Step, Template, World, differences};
use pageserver::*;

const STRIDE: usize = 8;

const FOR_GOOD: usize = usize::MAX;
const FAULTS: [(i32, usize); 6] = [
    (libc::EIO, 1),
    (libc::ENOSPC, 1),
    (libc::EIO, 2),
    (libc::ENOSPC, 2),
    (libc::EIO, FOR_GOOD),
    (libc::ENOSPC, FOR_GOOD),
];

/// Fails the n-th call and those that follow, so many times; of one kind, or of all.
struct Fault {
    only: Option<Call>,
    n: usize,
    errno: i32,
    times: usize,
    mended: AtomicBool,
    calls: AtomicUsize,
}

impl Fault {
    fn new(n: usize, errno: i32, times: usize) -> Fault {
        Fault {
            only: None,
            n,
            errno,
            times,
            mended: AtomicBool::new(false),
            calls: AtomicUsize::new(0),
        }
    }
}

impl Fault {
    /// Whether no call will fail any more.
    fn is_over(&self) -> bool {
        self.calls.load(Ordering::Relaxed) >= self.n.saturating_add(self.times - 1)
    }
}

impl Hook for Fault {
    fn before(&self, call: Call) -> io::Result<()> {
        if self.mended.load(Ordering::Relaxed) || self.only.is_some_and(|only| only != call) {
            return Ok(());
        }
        let n = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        match n >= self.n && n - self.n < self.times {
            true => Err(io::Error::from_raw_os_error(self.errno)),
            false => Ok(()),
        }
    }
}

/// A life in which everything happens that a store does: files that are new, inherited from one layer and from two,
/// cut and grown again, replaced and gone; heads sealed, cloned, replaced, destroyed.
fn script() -> Vec<Step> {
    use Step::*;
    vec![
        Branch("main"),
        Create("main", "a"),
        Write("main", "a", 0, 20_000, 1),
        Sync("main", "a"),
        Create("main", "b"),
        Write("main", "b", 100, 5000, 2),
        Snapshot("main@one"),
        Write("main", "a", 4096, 4096, 3),
        Write("main", "a", 9000, 300, 4),
        Write("main", "a", 19_900, 9000, 5),
        Sync("main", "a"),
        Resize("main", "b", 3000),
        Resize("main", "b", 9000),
        Sync("main", "b"),
        Snapshot("main@two"),
        Resize("main", "a", 6000),
        Write("main", "a", 12_000, 100, 6),
        Create("main", "c"),
        Write("main", "c", 0, 8192, 7),
        Rename("main", "c", "b"),
        Sync("main", "b"),
        Clone("dev", "main@one"),
        Write("dev", "a", 0, 8192, 8),
        Unlink("dev", "b"),
        Sync("dev", "a"),
        Snapshot("dev@three"),
        Tidy,
        Upkeep,
        Pack,
        Checkout("main@one"),
        Write("main", "a", 8192, 100, 9),
        Create("main", "d"),
        Write("main", "d", 0, 4096, 10),
        Unlink("main", "d"),
        Tidy,
        Sync("main", "a"),
        DestroySnapshot("main@two"),
        Close("dev"),
        Reopen,
        Write("main", "a", 0, 10, 11),
        Sync("main", "a"),
        Unlink("main", "a"),
        DestroyBranch("dev"),
        Snapshot("main@four"),
        DestroySnapshot("main@HEAD{0}"),
        Tidy,
        Create("main", "e"),
        Write("main", "e", 0, 30_000, 12),
        Snapshot("main@five"),
        Write("main", "e", 9000, 9000, 13),
        Resize("main", "e", 25_000),
        Create("main", "f"),
        Write("main", "f", 0, 3000, 14),
        Snapshot("main@six"),
        DestroySnapshot("main@five"),
        Upkeep,
        Write("main", "e", 12_000, 100, 15),
        Unlink("main", "f"),
        Snapshot("main@seven"),
        DestroySnapshot("main@six"),
        Pack,
        Write("main", "e", 100, 9000, 16),
        Snapshot("main@eight"),
        DestroySnapshot("main@seven"),
        Pack,
        Reopen,
    ]
}

/// Runs the script with a fault; returns how many calls it took, and how many steps were refused.
fn run(dir: &Path, fault: Fault) -> (usize, usize) {
    let fault = Arc::new(fault);
    let disk = Disk::new().with_hook(fault.clone());
    let mut life = Life::new(dir, disk, World::default());
    fault.mended.store(true, Ordering::Relaxed);
    life.open().expect("a new store opens");
    fault.mended.store(false, Ordering::Relaxed);
    let mut refused = 0;
    for step in script() {
        // What an earlier failure took from under it is left out.
        if life.world.after(&step).is_none() {
            continue;
        }
        let over = fault.is_over();
        if let Err(error) = life.take(&step) {
            refused += 1;
            assert!(
                !over || is_of_poison(&step, &error),
                "{step:?} on a mended disk: {error}"
            );
            fault.mended.store(true, Ordering::Relaxed);
            life.settle(&step, &error, fault.times > 1);
            fault.mended.store(false, Ordering::Relaxed);
        }
    }
    fault.mended.store(true, Ordering::Relaxed);
    check_reopened(&mut life);
    life.end();
    (fault.calls.load(Ordering::Relaxed), refused)
}

/// What may still fail when nothing of the disk does: syncs and seals of a head that is poisoned, and a growth that has to
/// sync a file's last block first.
fn is_of_poison(step: &Step, error: &str) -> bool {
    match step {
        Step::Sync(..) | Step::Write(..) | Step::Resize(..) => error == "EIO",
        _ => error.contains("an earlier write to disk failed"),
    }
}

/// What the store showed, and what it shows when it was opened anew.
fn check_reopened(life: &mut Life) {
    let seen = life.observe();
    assert!(seen == life.world, "before: {}", differences(&life.world, &seen));
    life.open().expect("a mended store opens");
    let seen = life.observe();
    assert!(seen == life.world, "reopened: {}", differences(&life.world, &seen));
}

/// The calls that are to fail, out of so many.
fn chosen(calls: usize) -> Vec<usize> {
    match std::env::var("ZENITH_FAULTS").as_deref() {
        Ok("all") => (1..=calls).collect(),
        Ok(n) => vec![n.parse().expect("ZENITH_FAULTS is a number or `all`")],
        Err(_) => (1..=calls).step_by(STRIDE).collect(),
    }
}

#[test]
fn whichever_call_fails_each_step_has_happened_or_not() {
    let template = Template::new("nth-call");
    let (calls, refused) = run(&template.copy("counted"), Fault::new(usize::MAX, 0, 1));
    assert_eq!(refused, 0, "nothing failed");
    let (mut runs, mut refusals) = (0, 0);
    for n in chosen(calls) {
        for (errno, times) in FAULTS {
            eprintln!("call {n} of {calls}: errno {errno}, {times} times");
            refusals += run(&template.copy("store"), Fault::new(n, errno, times)).1;
            runs += 1;
        }
    }
    println!("{calls} calls, {runs} runs, {refusals} refused steps");
}

/// Of the thousands of calls that look at a filesystem only the first and the last of each kind.
#[test]
fn whichever_call_fails_a_store_is_made_or_can_be_made_again() {
    let counts = Arc::new(Counts::default());
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("nth-create-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    Store::create(&dir, Disk::new().with_hook(counts.clone())).expect("made");
    for (call, count) in counts.0.lock().expect("unpoisoned").iter() {
        let faults = [(1, 1), (*count, 1), (1, FOR_GOOD)];
        for (n, times) in faults {
            std::fs::remove_dir_all(&dir).expect("removed");
            // One that is for good keeps what was made from being taken away.
            let fault: Arc<dyn Hook> = match times {
                FOR_GOOD => Arc::new(EverSince(*call, AtomicBool::new(false))),
                _ => Arc::new(Fault {
                    only: Some(*call),
                    ..Fault::new(n, libc::EIO, times)
                }),
            };
            let made = Store::create(&dir, Disk::new().with_hook(fault));
            if made.is_err() {
                let again = Store::create(&dir, Disk::new());
                assert!(
                    matches!(again, Ok(_) | Err(Error::StoreExists { .. })),
                    "after {call:?} {n}: {again:?}"
                );
            }
            Store::open(&dir, Disk::new()).expect("what was made opens");
        }
    }
    std::fs::remove_dir_all(&dir).expect("removed");
}

/// Counts calls of each kind.
#[derive(Default)]
struct Counts(Mutex<HashMap<Call, usize>>);

impl Hook for Counts {
    fn before(&self, call: Call) -> io::Result<()> {
        *self.0.lock().expect("unpoisoned").entry(call).or_default() += 1;
        Ok(())
    }
}

/// From the first call of a kind on, every call fails.
struct EverSince(Call, AtomicBool);

impl Hook for EverSince {
    fn before(&self, call: Call) -> io::Result<()> {
        if call == self.0 {
            self.1.store(true, Ordering::Relaxed);
        }
        match self.1.load(Ordering::Relaxed) {
            true => Err(io::Error::from_raw_os_error(libc::EIO)),
            false => Ok(()),
        }
    }
}
