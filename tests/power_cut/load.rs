//! What is recorded: a busy store, and beside it what was acknowledged.
//!
//! Postgres with a ledger, pgbench, tables that come and go, and checkpoints; snapshots and clones of it that come and
//! go; and a branch of plain files, `notes`, that is written, synced, forked and set back. Every operation notes what it
//! made of whom in the [`History`].

mod notes;

use std::ops::Range;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::device::Kind;
use crate::disk::{Disk, Image};
use crate::history::History;
use crate::ledger::{Ledger, Report};
use crate::machine::{Machine, Place};
use crate::mutants::Mutant;
use crate::random::Random;
use notes::Notes;

const DISK_BYTES: u64 = 1 << 30;
const LEDGER_CLIENTS: i32 = 3;
const KILLS_APART: Duration = Duration::from_secs(2);

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
    kills: Kills<'a>,
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
            kills: Kills { worker: worker(4) },
        }
    }

    /// Works, has all processes killed, and works on: what the first service left unsynced is the second's to sync.
    fn record(mut self, time: Duration) -> Result<Report, String> {
        let mut report = self.work(0..LEDGER_CLIENTS, time / 2)?;
        let late = self.notes.leave_unsynced().map_err(|error| format!("notes: {error}"))?;
        self.machine.kill();
        self.machine.zenith(&["start"])?;
        self.notes.sync(late).map_err(|error| format!("notes: {error}"))?;
        match self.machine.zenith(&["pg", "start", "pg"]) {
            // The service does it by itself.
            Err(error) if error.contains("is running already") => {}
            started => drop(started?),
        }
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
            tables,
            copies,
            notes,
            kills,
            ..
        } = self;
        let worked = thread::scope(|scope| {
            let parts = [
                scope.spawn(move || bench(machine, time)),
                scope.spawn(move || tables.work(until)),
                scope.spawn(move || copies.work(until)),
                scope.spawn(move || notes.work(until)),
                scope.spawn(move || kills.work(until)),
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

/// Services that die while their mounts are in use.
struct Kills<'a> {
    worker: Worker<'a>,
}

impl Kills<'_> {
    fn work(&mut self, until: Instant) -> Result<(), String> {
        while Instant::now() + KILLS_APART < until {
            thread::sleep(KILLS_APART);
            self.worker
                .operation("take-over", || self.worker.machine.kill_service())?;
        }
        Ok(())
    }
}

fn clone_port(port: u16, number: u16) -> u16 {
    port + 1 + number % 48
}
