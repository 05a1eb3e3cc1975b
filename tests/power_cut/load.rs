//! What is recorded: a busy store, and beside it what was acknowledged.
//!
//! Postgres with a ledger, pgbench, tables that come and go, and checkpoints; snapshots and clones of it that come and
//! go; and a branch of plain files, `notes`, that is written, synced, forked and set back. Every operation notes what it
//! made of whom in the [`History`].

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::device::Kind;
use crate::disk::{Disk, Image};
use crate::history::History;
use crate::ledger::{Ledger, Report};
use crate::machine::{Machine, Place, digest, tree_digest};
use crate::mutants::Mutant;
use crate::random::Random;

const DISK_BYTES: u64 = 1 << 30;
const LEDGER_CLIENTS: i32 = 3;

/// Small segments and many checkpoints: WAL files are made, filled and recycled all the time.
const SETTINGS: [&str; 5] = [
    "max_wal_size=8MB",
    "min_wal_size=2MB",
    "checkpoint_timeout=30s",
    "shared_buffers=16MB",
    "autovacuum_naptime=3s",
];
const INITDB: [&str; 4] = ["--", "--auth-local=trust", "--no-locale", "--wal-segsize=1"];

/// A recorded load.
pub struct Run {
    pub kind: Kind,
    pub disk: Arc<Disk>,
    /// The positions of the load.
    pub begun: u64,
    pub ended: u64,
    pub history: History,
    pub ledger: Report,
}

/// Records a load on a new machine.
pub fn record(place: &Place, kind: Kind, mutant: Option<Mutant>, time: Duration) -> Result<Run, String> {
    let disk = Disk::new(&place.arena, Image::empty(DISK_BYTES), kind.sector());
    let machine = Machine::start(place, disk.clone(), kind, true, &[]).with_mutant(mutant);
    set_up(&machine)?;
    let history = History::default();
    let begun = machine.position();
    let recorded = Load::new(&machine, &history).record(time);
    let ledger = recorded.map_err(|error| format!("{error}\n{}", machine.logs()))?;
    let ended = machine.position();
    Ok(Run {
        kind,
        disk,
        begun,
        ended,
        history,
        ledger,
    })
}

fn set_up(machine: &Machine) -> Result<(), String> {
    machine.zenith(&["init", "--empty"])?;
    let settings = SETTINGS.iter().flat_map(|setting| ["-c", setting]);
    let more: Vec<&str> = settings.chain(INITDB).collect();
    machine.create_pg("pg", machine.port(), &more)?;
    machine.postgres("pgbench", machine.port(), &["-i", "-q", "-s", "1"])?;
    machine.mount("notes", "notes")?;
    Ok(())
}

/// All of the load.
struct Load<'a> {
    machine: &'a Machine<'a>,
    tables: Tables<'a>,
    copies: Copies<'a>,
    notes: Notes<'a>,
}

impl<'a> Load<'a> {
    fn new(machine: &'a Machine<'a>, history: &'a History) -> Load<'a> {
        let worker = |seed| Worker {
            machine,
            history,
            random: Random::new(seed),
        };
        Load {
            machine,
            tables: Tables {
                worker: worker(1),
                next: 0,
            },
            copies: Copies {
                worker: worker(2),
                next: 0,
                snapshots: vec![],
            },
            notes: Notes::new(worker(3)),
        }
    }

    /// Works, has all processes killed, and works on: what the first service left unsynced is the second's to sync.
    fn record(mut self, time: Duration) -> Result<Report, String> {
        let mut report = self.work(0..LEDGER_CLIENTS, time / 2)?;
        let late = self.notes.leave_unsynced().map_err(|error| format!("notes: {error}"))?;
        self.machine.kill();
        self.machine.zenith(&["start"])?;
        self.notes.sync(late).map_err(|error| format!("notes: {error}"))?;
        self.machine.zenith(&["pg", "start", "pg"])?;
        let more = self.work(LEDGER_CLIENTS..2 * LEDGER_CLIENTS, time / 2)?;
        report.acknowledged.extend(more.acknowledged);
        Ok(report)
    }

    /// Everything at once, for a while.
    fn work(&mut self, clients: Range<i32>, time: Duration) -> Result<Report, String> {
        let (machine, disk) = (self.machine, self.machine.disk.clone());
        let ledger = Ledger::open_for(&Machine::connection(machine.port()), clients, move || disk.position());
        let ledger = ledger.map_err(|error| error.to_string())?;
        let until = Instant::now() + time;
        let Load {
            tables, copies, notes, ..
        } = self;
        let worked = thread::scope(|scope| {
            let parts = [
                scope.spawn(move || bench(machine, time)),
                scope.spawn(move || tables.work(until)),
                scope.spawn(move || copies.work(until)),
                scope.spawn(move || notes.work(until)),
            ];
            let parts = parts.map(|part| part.join().expect("a part of the load that ends"));
            parts.into_iter().collect::<Result<(), String>>()
        });
        let report = ledger.close();
        worked?;
        match report.errors.first() {
            Some(refusal) => Err(format!("the ledger was refused: {}", refusal.error)),
            None => Ok(report),
        }
    }
}

fn bench(machine: &Machine, time: Duration) -> Result<(), String> {
    let seconds = time.as_secs().to_string();
    let arguments = ["-n", "-c", "2", "-j", "1", "-T", &seconds];
    machine.postgres("pgbench", machine.port(), &arguments).map(drop)
}

/// Somebody who does operations and notes them.
struct Worker<'a> {
    machine: &'a Machine<'a>,
    history: &'a History,
    random: Random,
}

/// When an operation was under way.
type Span = (u64, u64);

impl Worker<'_> {
    fn operation<T>(&self, name: &'static str, work: impl FnOnce() -> Result<T, String>) -> Result<(T, Span), String> {
        let begun = self.machine.position();
        let result = work()?;
        let done = self.machine.position();
        self.history.operation(name, begun, done);
        Ok((result, (begun, done)))
    }

    fn zenith(&self, name: &'static str, arguments: &[&str]) -> Result<Span, String> {
        let (_, span) = self.operation(name, || self.machine.zenith(arguments))?;
        Ok(span)
    }

    fn step(&self, subject: String, (begun, done): Span, state: Option<String>) {
        self.history.step(subject, begun, done, state);
    }

    fn take_snapshot(&self, branch: &str, tag: &str) -> Result<(), String> {
        let name = format!("{branch}@{tag}");
        let span = self.zenith("snapshot create", &["snapshot", "create", &name])?;
        let state = self.machine.snapshot_digest(branch, tag)?;
        self.step(format!("snapshot {name}"), span, Some(state));
        Ok(())
    }

    fn destroy_snapshot(&self, name: &str) -> Result<(), String> {
        let span = self.zenith("snapshot destroy", &["snapshot", "destroy", name, "--yes"])?;
        self.step(format!("snapshot {name}"), span, None);
        Ok(())
    }
}

/// Tables that come and go, and checkpoints, after which WAL brings nothing back.
struct Tables<'a> {
    worker: Worker<'a>,
    next: u32,
}

impl Tables<'_> {
    fn work(&mut self, until: Instant) -> Result<(), String> {
        while Instant::now() < until {
            self.make(self.next)?;
            self.worker
                .operation("checkpoint", || self.worker.machine.sql("CHECKPOINT"))?;
            if self.next >= 3 {
                self.drop(self.next - 3)?;
            }
            self.worker.machine.sql("VACUUM FULL pgbench_branches")?;
            self.worker.machine.sql("SELECT pg_switch_wal()")?;
            self.next += 1;
            thread::sleep(Duration::from_millis(300));
        }
        Ok(())
    }

    fn make(&self, number: u32) -> Result<(), String> {
        let rows = 100 + number % 7 * 50;
        let statement = format!(
            "CREATE TABLE t{number} AS SELECT g, repeat(md5(g::text), 20) FROM generate_series(1, {rows}) g; \
            CREATE UNIQUE INDEX ON t{number} (g)"
        );
        let (_, span) = self
            .worker
            .operation("create table", || self.worker.machine.sql(&statement))?;
        self.worker
            .step(format!("table t{number}"), span, Some(rows.to_string()));
        Ok(())
    }

    fn drop(&self, number: u32) -> Result<(), String> {
        let statement = format!("DROP TABLE t{number}");
        let (_, span) = self
            .worker
            .operation("drop table", || self.worker.machine.sql(&statement))?;
        self.worker.step(format!("table t{number}"), span, None);
        Ok(())
    }
}

/// Snapshots and clones of the busy pg.
struct Copies<'a> {
    worker: Worker<'a>,
    next: u16,
    snapshots: Vec<String>,
}

impl Copies<'_> {
    fn work(&mut self, until: Instant) -> Result<(), String> {
        while Instant::now() < until {
            let number = self.next;
            self.snapshot(number)?;
            if number % 2 == 1 {
                self.clone(number)?;
            }
            if number % 4 == 1 && number > 1 {
                self.destroy_clone(number - 4)?;
            }
            self.next += 1;
            thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    }

    fn snapshot(&mut self, number: u16) -> Result<(), String> {
        let tag = format!("s{number}");
        self.worker.take_snapshot("pg", &tag)?;
        self.snapshots.push(format!("pg@{tag}"));
        if self.snapshots.len() > 3 {
            let oldest = self.snapshots.remove(self.worker.random.below(2) as usize);
            self.worker.destroy_snapshot(&oldest)?;
        }
        Ok(())
    }

    fn clone(&self, number: u16) -> Result<(), String> {
        let (name, port) = (format!("c{number}"), clone_port(self.worker.machine.port(), number));
        let more = ["--branch", "pg", "--cow", "--no-start"];
        let machine = self.worker.machine;
        let (_, span) = self
            .worker
            .operation("pg clone", || machine.create_pg(&name, port, &more))?;
        self.worker.step(format!("pg {name}"), span, Some(span.0.to_string()));
        Ok(())
    }

    fn destroy_clone(&self, number: u16) -> Result<(), String> {
        let name = format!("c{number}");
        let span = self.worker.zenith("pg destroy", &["pg", "destroy", &name, "--yes"])?;
        self.worker.step(format!("pg {name}"), span, None);
        Ok(())
    }
}

fn clone_port(port: u16, number: u16) -> u16 {
    port + 1 + number % 48
}

/// What the files of `notes` hold.
type Files = BTreeMap<String, Vec<u8>>;

/// The branch of plain files, and what must be in it.
struct Notes<'a> {
    worker: Worker<'a>,
    dir: PathBuf,
    files: Files,
    snapshots: Vec<(String, Files)>,
    forks: Vec<String>,
    /// How much of everything there was, for names that are new.
    count: u32,
    checkouts: u32,
}

const FILES: u64 = 12;
const LATE_FILES: u64 = 4;
const MAX_BYTES: u64 = 60_000;

impl<'a> Notes<'a> {
    fn new(worker: Worker<'a>) -> Notes<'a> {
        Notes {
            dir: worker.machine.mountpoint("notes"),
            worker,
            files: Files::new(),
            snapshots: vec![],
            forks: vec![],
            count: 0,
            checkouts: 0,
        }
    }

    fn work(&mut self, until: Instant) -> Result<(), String> {
        while Instant::now() < until {
            self.count += 1;
            match self.worker.random.below(100) {
                0..4 => self.snapshot()?,
                4..6 => self.fork()?,
                6 => self.checkout()?,
                _ => self.change().map_err(|error| format!("notes: {error}"))?,
            }
        }
        Ok(())
    }

    /// Files that are written and closed, and not synced; and the position before the first.
    fn leave_unsynced(&mut self) -> io::Result<(u64, Files)> {
        let begun = self.worker.machine.position();
        let names = (0..LATE_FILES).map(|number| format!("late{number}"));
        let late: Files = names.map(|name| (name, self.bytes(MAX_BYTES))).collect();
        for (name, bytes) in &late {
            fs::write(self.dir.join(name), bytes)?;
        }
        Ok((begun, late))
    }

    fn sync(&mut self, (begun, late): (u64, Files)) -> io::Result<()> {
        for name in late.keys() {
            File::open(self.dir.join(name))?.sync_all()?;
        }
        File::open(&self.dir)?.sync_all()?;
        for (name, bytes) in late {
            self.noted("file left by a killed service", &name, begun, Some(&bytes), true);
            self.files.insert(name, bytes);
        }
        Ok(())
    }

    /// One synced change of one file.
    fn change(&mut self) -> io::Result<()> {
        let name = format!("f{}", self.worker.random.below(FILES));
        match self.worker.random.below(10) {
            0..4 => self.replace(name),
            4..6 => self.remove(&name),
            6..8 => self.write_within(&name),
            _ => self.resize(&name),
        }
    }

    /// A new file, synced, and renamed over the old one.
    fn replace(&mut self, name: String) -> io::Result<()> {
        let len = 1 + self.worker.random.below(MAX_BYTES);
        let bytes = self.bytes(len);
        let begun = self.worker.machine.position();
        let new = self.dir.join(format!("{name}.new"));
        fs::write(&new, &bytes)?;
        File::open(&new)?.sync_all()?;
        fs::rename(&new, self.dir.join(&name))?;
        File::open(&self.dir)?.sync_all()?;
        self.noted("file replaced", &name, begun, Some(&bytes), false);
        self.files.insert(name, bytes);
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        if self.files.remove(name).is_some() {
            let begun = self.worker.machine.position();
            fs::remove_file(self.dir.join(name))?;
            File::open(&self.dir)?.sync_all()?;
            self.noted("file removed", name, begun, None, false);
        }
        Ok(())
    }

    fn write_within(&mut self, name: &str) -> io::Result<()> {
        let patch = self.bytes(5000);
        let at = self.worker.random.below(MAX_BYTES) as usize;
        self.change_in_place(name, |file, bytes| {
            file.write_all_at(&patch, at as u64)?;
            bytes.resize(bytes.len().max(at + patch.len()), 0);
            bytes[at..at + patch.len()].copy_from_slice(&patch);
            Ok(())
        })
    }

    fn resize(&mut self, name: &str) -> io::Result<()> {
        let len = self.worker.random.below(MAX_BYTES);
        self.change_in_place(name, |file, bytes| {
            bytes.resize(len as usize, 0);
            file.set_len(len)
        })
    }

    fn change_in_place(
        &mut self,
        name: &str,
        change: impl FnOnce(&File, &mut Vec<u8>) -> io::Result<()>,
    ) -> io::Result<()> {
        let Some(mut bytes) = self.files.get(name).cloned() else {
            return Ok(());
        };
        let begun = self.worker.machine.position();
        let file = File::options().write(true).open(self.dir.join(name))?;
        change(&file, &mut bytes)?;
        file.sync_all()?;
        self.noted("file changed", name, begun, Some(&bytes), true);
        self.files.insert(name.to_owned(), bytes);
        Ok(())
    }

    fn noted(&self, what: &'static str, name: &str, begun: u64, bytes: Option<&[u8]>, in_place: bool) {
        let done = self.worker.machine.position();
        let history = self.worker.history;
        history.operation(what, begun, done);
        let (subject, state) = (format!("file {name}"), bytes.map(digest));
        match in_place {
            true => history.step_in_place(subject, begun, done, state),
            false => history.step(subject, begun, done, state),
        }
    }

    fn snapshot(&mut self) -> Result<(), String> {
        let tag = format!("n{}", self.count);
        self.worker.take_snapshot("notes", &tag)?;
        self.snapshots.push((tag, self.files.clone()));
        if self.snapshots.len() > 4 {
            let (tag, _) = self.snapshots.remove(self.worker.random.below(4) as usize);
            self.worker.destroy_snapshot(&format!("notes@{tag}"))?;
        }
        Ok(())
    }

    fn fork(&mut self) -> Result<(), String> {
        let name = format!("fork{}", self.count);
        let state = tree_digest(&self.dir)?;
        let span = self.worker.zenith("branch create", &["branch", &name, "notes"])?;
        self.worker.step(format!("branch {name}"), span, Some(state));
        self.forks.push(name);
        if self.forks.len() > 2 {
            let oldest = self.forks.remove(0);
            let span = self
                .worker
                .zenith("branch destroy", &["branch", "-d", &oldest, "--yes"])?;
            self.worker.step(format!("branch {oldest}"), span, None);
        }
        Ok(())
    }

    /// Back to a snapshot: every file becomes what it was.
    fn checkout(&mut self) -> Result<(), String> {
        let Some((tag, files)) = self.worker.random.pick(&self.snapshots).cloned() else {
            return Ok(());
        };
        let span = self
            .worker
            .zenith("checkout", &["checkout", &format!("notes@{tag}"), "--yes"])?;
        for name in self.files.keys().chain(files.keys()) {
            let state = files.get(name).map(|bytes| digest(bytes));
            self.worker.step(format!("file {name}"), span, state);
        }
        let kept = format!("HEAD{{{}}}", self.checkouts);
        let state = self.worker.machine.snapshot_digest("notes", &kept)?;
        self.worker.step(format!("snapshot notes@{kept}"), span, Some(state));
        self.checkouts += 1;
        self.files = files;
        Ok(())
    }

    fn bytes(&mut self, len: u64) -> Vec<u8> {
        let seed = self.worker.random.below(1 << 40);
        let words = (0..len / 8 + 1).map(|word| seed.wrapping_mul(word + 1));
        let mut bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        bytes.truncate(len as usize);
        bytes
    }
}
