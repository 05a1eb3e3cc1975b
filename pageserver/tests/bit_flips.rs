//! Bit flips: a closed store with one thing damaged (a bit, a sector of zeros, an end cut off, a name) is checked, opened and read
//! through all its views. What was damaged is told by an error or by the check, or nothing of it can be seen. Never may it
//! panic, hang, or show other names, sizes or attributes as if they were right.
//!
//! **Limits.** The backing files of a head, which nothing has sealed, are taken with the bytes and the size that they have. Both are
//! counted and printed. Postgres' page checksums see the first.
//!
//! `ZENITH_FLIPS=N` runs N cases (short: 120), `ZENITH_FLIP=S` only the one with that seed, which is what a failure prints.
//! `ZENITH_SEALED_FLIPS=N` is for the bits of sealed blocks alone (short: 1000), `ZENITH_PACKED_FLIPS=N` for those of packs (short: 300).

#[path = "flips/damage.rs"]
mod damage;
#[path = "support/random.rs"]
mod random;
#[path = "flips/store.rs"]
mod store;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use damage::{Done, Target};
use nix::errno::Errno;
use pageserver::{Checks, Disk, Finding, Ino, LayerId, Severity, Store, View, check_closed, dump_pack};
use random::Random;
use store::{Contents, Scratch};

/// Longest that a case may take.
const PATIENCE: Duration = Duration::from_secs(60);

const CASES: u64 = 120;

/// What became of a damage.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Outcome {
    /// Opening or reading gave an error.
    Refused,
    /// All could be read, and the check tells of it.
    Found,
    Harmless,
    /// Other bytes within a head's backing file: the limit.
    OtherBytes,
    /// A head's file of another size: the limit.
    OtherSize,
}

/// What a case has shown.
struct Seen {
    findings: Vec<String>,
    read: Result<Contents, String>,
}

#[test]
fn whatever_is_damaged_is_told_or_harmless() {
    let scratch = Scratch::new("flips");
    let stores = store::make(&scratch);
    let both = [&stores.closed, &stores.killed];
    let first = number("ZENITH_FLIP").unwrap_or(1);
    let last = first + number("ZENITH_FLIP").map_or(number("ZENITH_FLIPS").unwrap_or(CASES), |_| 1);
    let mut outcomes: BTreeMap<(Target, Outcome), u64> = BTreeMap::new();
    for seed in first..last {
        let mut random = Random::new(seed);
        let made = random.pick(&both).expect("two stores");
        let copy = scratch.copy(&made.dir);
        if let Some(done) = damage::damage(&copy, seed, &mut random) {
            note(&scratch, &format!("ZENITH_FLIP={seed}: {done:?}"));
            let outcome = judge(&made.contents, look(&copy), &done);
            *outcomes.entry((done.target, outcome)).or_default() += 1;
        }
    }
    print(&outcomes);
    if number("ZENITH_FLIP").is_none() {
        let is_harmless = |outcome: &Outcome| *outcome == Outcome::Harmless;
        assert!(
            outcomes.keys().any(|(_, outcome)| !is_harmless(outcome)),
            "nothing was found"
        );
    }
}

/// For who looks after a process that RocksDB has ended.
fn note(scratch: &Scratch, case: &str) {
    std::fs::write(scratch.dir.join("last-case"), case).expect("write");
}

fn print(outcomes: &BTreeMap<(Target, Outcome), u64>) {
    let mut told = std::io::stderr();
    for ((target, outcome), count) in outcomes {
        writeln!(told, "bit flips: {target:?}: {outcome:?} {count}").expect("printed");
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().and_then(|value| value.parse().ok())
}

/// Checks, opens and reads a store, in a thread that may neither panic nor hang.
fn look(dir: &Path) -> Seen {
    let (sender, receiver) = mpsc::channel();
    let path = dir.to_path_buf();
    let looking = thread::spawn(move || {
        let seen = Seen {
            findings: findings(&path),
            read: read(&path),
        };
        sender.send(seen).expect("heard");
    });
    let seen = receiver.recv_timeout(PATIENCE);
    let case = || std::fs::read_to_string(dir.with_file_name("last-case")).unwrap_or_default();
    if matches!(seen, Err(mpsc::RecvTimeoutError::Timeout)) {
        panic!("{}: it hangs", case());
    }
    assert!(looking.join().is_ok(), "{}: it panics", case());
    seen.expect("sent")
}

fn findings(dir: &Path) -> Vec<String> {
    match check_closed(dir, &Disk::new(), all_blocks(), &mut |_| {}) {
        Ok(findings) => findings
            .iter()
            .filter(|f| f.severity > Severity::Note)
            .map(told)
            .collect(),
        Err(error) => vec![error.to_string()],
    }
}

fn all_blocks() -> Checks<'static> {
    Checks {
        blocks_from: Some(LayerId(0)),
        ..Checks::default()
    }
}

fn told(finding: &Finding) -> String {
    format!("{}: {}", finding.place, finding.what)
}

fn read(dir: &Path) -> Result<Contents, String> {
    let store = Store::open(dir, Disk::new()).map_err(|error| error.to_string())?;
    store::read(&store)
}

fn judge(before: &Contents, seen: Seen, done: &Done) -> Outcome {
    let contents = match seen.read {
        Err(error) => {
            assert!(!error.trim().is_empty() && !error.contains('\n'), "{done:?}: {error:?}");
            return Outcome::Refused;
        }
        Ok(contents) => contents,
    };
    if !seen.findings.is_empty() {
        return Outcome::Found;
    }
    if contents == *before {
        return Outcome::Harmless;
    }
    let same_but_bytes = store::without_bytes(&contents) == store::without_bytes(before);
    match (done.target, same_but_bytes) {
        (Target::Head, true) => Outcome::OtherBytes,
        (Target::Head | Target::HeadName, false) => Outcome::OtherSize,
        _ => panic!("{done:?}: silently different\n{}", store::difference(before, &contents)),
    }
}

/// A store is refused in one line that names what is damaged, and the hint names the check.
#[test]
fn a_damaged_log_is_refused_kept_and_cut_only_when_asked_for() {
    let scratch = Scratch::new("log");
    let stores = store::make(&scratch);
    let copy = scratch.copy(&stores.killed.dir);
    let log = newest_log(&copy);
    let bytes = std::fs::read(&log).expect("read");
    let mut damaged = bytes.clone();
    damaged[bytes.len() / 2] ^= 4;
    std::fs::write(&log, &damaged).expect("write");

    let error = Store::open(&copy, Disk::new()).err().expect("refused");
    let name = log.file_name().expect("a name").to_string_lossy().into_owned();
    assert!(error.to_string().contains(&name), "{error}");
    assert!(
        error.hint().is_some_and(|hint| hint.contains("zenith check")),
        "{error:?}"
    );
    assert_eq!(std::fs::read(&log).expect("still there"), damaged);

    let repair = Checks {
        repair: true,
        ..Checks::default()
    };
    let repaired = check_closed(&copy, &Disk::new(), repair, &mut |_| {}).expect("repaired");
    assert!(
        repaired
            .iter()
            .any(|finding| finding.repaired && finding.what.contains(&name)),
        "{repaired:?}"
    );
    let kept = std::fs::read_dir(copy.join("lost")).expect("lost/").flatten();
    let kept: Vec<PathBuf> = kept.map(|entry| entry.path()).collect();
    assert!(
        kept.iter()
            .any(|path| std::fs::read(path).is_ok_and(|kept| kept == damaged)),
        "{kept:?}"
    );
    let store = Store::open(&copy, Disk::new()).expect("opens again");
    store::read(&store).expect("can be read");
    assert_eq!(damage_found(&store), Vec::<String>::new());
}

/// What a power cut leaves behind what was synced is the end of the log, whatever it is.
#[test]
fn a_torn_end_that_nobody_synced_is_no_damage() {
    let scratch = Scratch::new("torn");
    let stores = store::make(&scratch);
    for tail in [
        &b"\0\0\0\0\0\0\0\0\0\0\0"[..],
        b"half a frame, or one that came out of order",
    ] {
        let copy = scratch.copy(&stores.killed.dir);
        let log = newest_log(&copy);
        let bytes = std::fs::read(&log).expect("read");
        std::fs::write(&log, [&bytes, tail].concat()).expect("write");
        let store = Store::open(&copy, Disk::new()).expect("opens");
        let contents = store::read(&store).expect("can be read");
        assert_eq!(store::difference(&stores.killed.contents, &contents), "");
    }
}

/// The log that a mark speaks of may be gone because nothing needed it any more.
#[test]
fn a_log_that_is_missing_is_damage_only_where_it_was_needed() {
    let scratch = Scratch::new("missing");
    let stores = store::make(&scratch);
    let copy = scratch.copy(&stores.killed.dir);
    let mark = std::fs::read(copy.join("db/SYNCED")).expect("a mark");
    std::fs::remove_file(newest_log(&copy)).expect("removed");
    let error = Store::open(&copy, Disk::new()).err().expect("refused");
    assert!(error.to_string().contains("is missing"), "{error}");

    let copy = scratch.copy(&stores.killed.dir);
    drop(Store::open(&copy, Disk::new()).expect("opens, and needs the log no more"));
    std::fs::write(copy.join("db/SYNCED"), mark).expect("as if killed before the next mark");
    Store::open(&copy, Disk::new()).expect("opens again");
}

#[test]
fn a_sealed_file_that_is_gone_or_cut_is_told_by_loading_and_by_the_check() {
    let scratch = Scratch::new("sealed");
    let stores = store::make(&scratch);
    for cut in [None, Some(10)] {
        let copy = scratch.copy(&stores.closed.dir);
        let file = damage::backing_files(&copy)
            .sealed
            .into_iter()
            .find(|path| path.metadata().is_ok_and(|meta| meta.len() > 10));
        let file = file.expect("a sealed file");
        match cut {
            None => std::fs::remove_file(&file).expect("removed"),
            Some(len) => std::fs::File::options()
                .write(true)
                .open(&file)
                .and_then(|file| file.set_len(len))
                .expect("cut"),
        }
        let told = if cut.is_some() {
            "bytes instead of"
        } else {
            "is missing"
        };
        let refused = read(&copy).err().expect("refused");
        assert!(refused.contains("layer") && refused.contains(told), "{refused}");
        let findings = findings(&copy);
        assert!(findings.iter().any(|finding| finding.contains(told)), "{findings:?}");
    }
}

/// Reads see it, and so does the check, which names the file and who stands on it. Blocks that nobody reads change nothing.
#[test]
fn every_flipped_bit_of_a_sealed_block_is_an_error_of_the_read() {
    let scratch = Scratch::new("sums");
    let stores = store::make(&scratch);
    let dir = scratch.copy(&stores.closed.dir);
    let store = Store::open(&dir, Disk::new()).expect("opens");
    let sealed = damage::backing_files(&dir).sealed;
    let mut random = Random::new(number("ZENITH_FLIP").unwrap_or(1));
    let (mut refused, flips) = (0, number("ZENITH_SEALED_FLIPS").unwrap_or(1000));
    for nth in 0..flips {
        let path = random.pick(&sealed).expect("a sealed file");
        let Some(bit) = damage::data_bit(path, &mut random) else {
            continue;
        };
        damage::flip(path, bit);
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
        let ino = Ino(u64::from_str_radix(name, 16).expect("a number"));
        for snapshot in store.snapshots(None) {
            let view = store.snapshot_view(&snapshot.name).expect("loads");
            match whole(&view, ino) {
                Err(Errno::EIO) => refused += 1,
                Err(Errno::ENOENT) => {}
                Err(other) => panic!("{}: {other}", path.display()),
                Ok(bytes) => {
                    let before = stores.closed.contents.file(&snapshot.name.to_string(), ino);
                    assert!(
                        bytes == before,
                        "{}: bit {bit} read as if it were right",
                        path.display()
                    );
                }
            }
        }
        if nth % 100 == 0 {
            let findings = store.check(all_blocks(), &mut |_| {}).expect("checked");
            let of_it = |f: &&Finding| f.what.contains("is not what was sealed") && f.what.contains("part of ");
            assert_eq!(findings.iter().filter(of_it).count(), 1, "{findings:?}");
        }
        damage::flip(path, bit);
    }
    writeln!(
        std::io::stderr(),
        "sealed bits: {flips} flipped, {refused} reads refused, 0 wrong"
    )
    .expect("printed");
    assert!(refused >= flips / 2, "{refused}");
    assert_eq!(damage_found(&store), Vec::<String>::new());
}

/// Reading the pack tells, and who reads through the store finds the bytes that were there, or an error.
#[test]
fn every_flipped_bit_of_a_pack_is_told() {
    let scratch = Scratch::new("packs");
    let stores = store::make(&scratch);
    let dir = scratch.copy(&stores.closed.dir);
    let packs = damage::packs(&dir);
    let mut random = Random::new(number("ZENITH_FLIP").unwrap_or(1));
    let (mut refused, flips) = (0, number("ZENITH_PACKED_FLIPS").unwrap_or(300));
    for nth in 0..flips {
        let path = random.pick(&packs).expect("a pack");
        let bit = random.below(path.metadata().expect("stat").len() * 8);
        damage::flip(path, bit);
        let told = dump_pack(path).expect_err("damaged").to_string();
        assert!(told.contains("damaged"), "{told}");
        match read(&dir) {
            Err(_) => refused += 1,
            Ok(contents) => assert_eq!(store::difference(&stores.closed.contents, &contents), ""),
        }
        if nth % 50 == 0 {
            let findings = findings(&dir);
            let of_it = |f: &&String| f.contains("pack") || f.contains("not what was sealed");
            assert!(findings.iter().filter(of_it).count() > 0, "{findings:?}");
        }
        damage::flip(path, bit);
    }
    writeln!(
        std::io::stderr(),
        "packed bits: {flips} flipped, {flips} told, {refused} stores refused to be read, 0 wrong"
    )
    .expect("printed");
    assert!(refused >= flips / 2, "{refused}");
    let store = Store::open(&dir, Disk::new()).expect("opens");
    assert_eq!(damage_found(&store), Vec::<String>::new());
}

/// Each of them is sound by itself.
#[test]
fn a_pack_in_the_place_of_another_is_told_and_never_read() {
    let scratch = Scratch::new("swapped");
    let stores = store::make(&scratch);
    let copy = scratch.copy(&stores.closed.dir);
    let packs = damage::packs(&copy);
    let aside = copy.join("aside");
    std::fs::rename(&packs[0], &aside).expect("moved");
    std::fs::rename(&packs[1], &packs[0]).expect("moved");
    std::fs::rename(&aside, &packs[1]).expect("moved");
    read(&copy).err().expect("refused");
    let told = |findings: &[String], what: &str| findings.iter().filter(|finding| finding.contains(what)).count();
    assert!(told(&findings(&copy), "is another one") >= 2, "{:?}", findings(&copy));
}

/// Nobody waits for somebody to write to it.
#[test]
fn what_is_no_file_in_the_place_of_a_pack_is_told() {
    let scratch = Scratch::new("no-pack");
    let stores = store::make(&scratch);
    let copy = scratch.copy(&stores.closed.dir);
    let pack = damage::packs(&copy).remove(0);
    std::fs::remove_file(&pack).expect("removed");
    nix::unistd::mkfifo(&pack, nix::sys::stat::Mode::S_IRUSR).expect("a pipe");
    dump_pack(&pack).expect_err("no pack");
    let seen = look(&copy);
    assert!(seen.read.is_err());
    assert!(
        seen.findings.iter().any(|finding| finding.contains("no regular file")),
        "{:?}",
        seen.findings
    );
}

fn whole(view: &View, ino: Ino) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0; view.getattr(ino)?.size as usize];
    view.read(ino, 0, &mut bytes)?;
    Ok(bytes)
}

fn newest_log(dir: &Path) -> PathBuf {
    let logs = std::fs::read_dir(dir.join("db"))
        .expect("list")
        .flatten()
        .map(|entry| entry.path());
    let log = logs
        .filter(|path| path.extension().is_some_and(|ext| ext == "log"))
        .max();
    log.expect("a log")
}

fn damage_found(store: &Store) -> Vec<String> {
    let findings = store.check(Checks::default(), &mut |_| {}).expect("checked");
    findings
        .iter()
        .filter(|f| f.severity == Severity::Damage)
        .map(told)
        .collect()
}
