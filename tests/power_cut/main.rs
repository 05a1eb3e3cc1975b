//! A power cut at any moment of anything leaves the old or the new state, and every commit that Postgres acknowledged.
//!
//! A load is recorded once: a store on a filesystem on a disk that this process serves, with everything that was asked
//! of the disk in order ([`disk`], [`device`]), and what was acknowledged beside it ([`load`], [`history`]). Then the
//! power is cut at many positions of the log, at random, inside of named operations and just after them: the disk is what was flushed,
//! and a random part of the rest; the machine comes up again, and everything is looked at ([`check`]). Its recovery
//! is recorded as well, and some are cut in turn. Last, zenith without one of its syncs ([`mutants`]) must be caught:
//! or else the harness sees nothing. docs/testing.md says what it can't see.
//!
//! `ZENITH_POWER_CUTS` is the number of cuts (30), `ZENITH_POWER_SEED` repeats the choices of a run, though what
//! is recorded is never twice the same.

mod check;
mod device;
mod disk;
mod history;
#[allow(dead_code, reason = "tests take what they need")]
#[path = "../support/ledger.rs"]
mod ledger;
mod load;
mod machine;
mod mutants;
#[allow(dead_code, reason = "tests take what they need")]
#[path = "../support/postgres.rs"]
mod postgres;
#[path = "../../pageserver/tests/support/random.rs"]
mod random;
#[allow(dead_code, reason = "tests take what they need")]
#[path = "../support/service.rs"]
mod service;

use std::collections::BTreeMap;
use std::env;
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, SystemTime};

use check::{Survived, survive};
use device::Kind;
use disk::Image;
use load::Run;
use machine::Place;
use mutants::Mutant;
use random::Random;

/// Cuts of one recorded load.
const CUTS_OF_A_RUN: u64 = 60;

/// Where the turns of cuts begin is chosen below it: a short run, too, has any operation in its turn.
const FIRST_TURNS: u64 = 1000;

/// One in so many recoveries is cut in turn.
const RECOVERIES_CUT: u64 = 4;

/// So many cuts must be enough to catch a mutant.
const CUTS_OF_A_MUTANT: u64 = 80;

#[test]
fn ext4_survives_power_cuts() {
    survives(Kind::Ext4, cuts() * 2 / 3);
}

#[test]
fn xfs_survives_power_cuts() {
    survives(Kind::Xfs, cuts() / 6);
}

#[test]
fn btrfs_survives_power_cuts() {
    survives(Kind::Btrfs, cuts() / 6);
}

#[test]
fn a_missing_sync_of_data_is_seen() {
    is_caught(Mutant::Data, Kind::Ext4);
}

#[test]
fn a_missing_sync_of_the_databases_log_is_seen() {
    is_caught(Mutant::Log, Kind::Ext4);
}

#[test]
fn a_missing_sync_of_what_a_killed_service_wrote_is_seen() {
    is_caught(Mutant::Settling, Kind::Btrfs);
}

/// ext4 and xfs write the name of a file with the file, and what came before with what came after: only btrfs shows it.
#[test]
fn a_missing_sync_of_names_is_seen() {
    is_caught(Mutant::Names, Kind::Btrfs);
}

fn cuts() -> u64 {
    number("ZENITH_POWER_CUTS").unwrap_or(30)
}

fn seed() -> u64 {
    number("ZENITH_POWER_SEED").unwrap_or_else(|| {
        let now = SystemTime::UNIX_EPOCH.elapsed();
        now.map_or(1, |now| now.as_millis() as u64 % 1_000_000)
    })
}

fn number(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable} is no number: {text}")),
    )
}

/// Says something that is to be seen of a test that passes, too.
fn say(text: &str) {
    // Nobody listens: then there is nobody to tell.
    let _ = writeln!(io::stderr(), "{text}");
}

/// What a test of power cuts needs that not every machine has; says so where it is missing.
fn can_be_tried() -> bool {
    let can = nix::unistd::geteuid().is_root() && Path::new("/dev/loop-control").exists();
    if !can {
        say("SKIPPED: no power cuts without root and loop devices");
    }
    can
}

fn survives(kind: Kind, cuts: u64) {
    if !can_be_tried() {
        return;
    }
    let seed = seed();
    let mut random = Random::new(seed);
    let mut tally = Tally::default();
    let mut left = cuts;
    while left > 0 {
        let place = Place::new(&format!("{kind:?}-{left}"));
        let run = record(&place, kind, None);
        let now = left.min(CUTS_OF_A_RUN);
        let mut cuts = Cuts {
            place: &place,
            run: &run,
            random: &mut random,
            tally: &mut tally,
        };
        let first = cuts.random.below(FIRST_TURNS);
        (first..first + now).for_each(|number| cuts.cut(number));
        left -= now;
    }
    say(&format!("{kind:?}, seed {seed}: {tally}"));
    assert!(tally.findings.is_empty(), "{}", tally.findings.join("\n\n"));
}

fn record(place: &Place, kind: Kind, mutant: Option<Mutant>) -> Run {
    let seconds = if cuts() > CUTS_OF_A_RUN { 30 } else { 10 };
    let run = load::record(place, kind, mutant, Duration::from_secs(seconds));
    let run = run.unwrap_or_else(|error| panic!("the load, with power: {error}"));
    let figures = run.disk.figures(run.begun..run.ended);
    say(&format!(
        "{kind:?}{}: recorded {} commits and {} operations, {} writes ({} MiB) and {} flushes",
        mutant.map_or(String::new(), |mutant| format!(" without sync of {mutant:?}")),
        run.ledger.acknowledged.len(),
        run.history.operations(),
        figures.writes,
        figures.bytes >> 20,
        figures.flushes
    ));
    assert!(figures.flushes > 0, "the disk is asked to flush");
    run
}

/// What came of the cuts.
#[derive(Default)]
struct Tally {
    cuts: BTreeMap<String, u32>,
    recoveries: Vec<Duration>,
    findings: Vec<String>,
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let mut sorted = self.recoveries.clone();
        sorted.sort_unstable();
        let median = sorted.get(sorted.len() / 2).copied().unwrap_or_default();
        let worst = sorted.last().copied().unwrap_or_default();
        let cuts: u32 = self.cuts.values().sum();
        write!(f, "{cuts} cuts, {} findings; ", self.findings.len())?;
        write!(
            f,
            "up again after {median:.1?} (median), {worst:.1?} (worst); cut: {:?}",
            self.cuts
        )
    }
}

/// The cuts of one recorded load.
struct Cuts<'a> {
    place: &'a Place,
    run: &'a Run,
    random: &'a mut Random,
    tally: &'a mut Tally,
}

impl Cuts<'_> {
    /// Cuts, and sometimes again, in the recovery.
    fn cut(&mut self, number: u64) {
        let mark = self.place.arena.mark();
        let (what, position) = somewhere(self.run, number, self.random);
        let image = self.run.disk.cut(position, self.random);
        let survived = self.look_at(image, position, &what);
        if let Some(survived) = survived
            && number.is_multiple_of(RECOVERIES_CUT)
        {
            let moment = self.random.below(survived.position + 1);
            let image = survived.disk.cut(moment, self.random);
            self.look_at(image, position, "recovery");
        }
        self.place.arena.forget_since(mark).expect("the arena shrinks");
    }

    fn look_at(&mut self, image: Image, position: u64, what: &str) -> Option<Survived> {
        *self.tally.cuts.entry(what.to_owned()).or_default() += 1;
        match survive(self.place, self.run, image.clone(), position, self.random) {
            Ok(survived) => {
                self.tally.recoveries.push(survived.recovery);
                Some(survived)
            }
            Err(error) => {
                let kind = self.run.kind;
                let kept = self.keep(&image);
                let finding = format!("{kind:?}, cut at {position} ({what}): {error}\n{kept}");
                say(&finding);
                self.tally.findings.push(finding);
                None
            }
        }
    }

    /// Keeps the first image that something was found in.
    fn keep(&self, image: &Image) -> String {
        if !self.tally.findings.is_empty() {
            return String::new();
        }
        let name = format!("power-cut-{:?}.img", self.run.kind);
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        match image.save(&self.place.arena, &path) {
            Ok(()) => format!("the disk is kept as {}", path.display()),
            Err(error) => format!("the disk could not be kept: {error}"),
        }
    }
}

/// Where to cut, and what that is: anywhere, inside of an operation, or just after one, when nothing but its own syncs has made it durable.
fn somewhere(run: &Run, number: u64, random: &mut Random) -> (String, u64) {
    let anywhere = run.begun + random.below(run.ended - run.begun + 1);
    match (number % 3, run.history.some_operation(number / 3, random)) {
        (1, Some((name, begun, done))) => (name.into(), begun + random.below(done - begun + 1)),
        (2, Some((name, _, done))) => (format!("after {name}"), done),
        _ => ("at random".into(), anywhere),
    }
}

/// Runs zenith without one of its syncs, and cuts until something is lost.
fn is_caught(mutant: Mutant, kind: Kind) {
    if !can_be_tried() {
        return;
    }
    let mut random = Random::new(seed());
    let place = Place::new(&format!("{mutant:?}-{kind:?}"));
    let run = record(&place, kind, Some(mutant));
    let first = random.below(FIRST_TURNS);
    for number in 1..=CUTS_OF_A_MUTANT {
        let mark = place.arena.mark();
        let (what, position) = somewhere(&run, first + number, &mut random);
        let image = run.disk.cut(position, &mut random);
        if let Err(error) = survive(&place, &run, image, position, &mut random) {
            let loss = error.lines().next().unwrap_or_default();
            say(&format!(
                "{kind:?} without sync of {mutant:?}: caught by cut {number} ({what}): {loss}"
            ));
            return;
        }
        place.arena.forget_since(mark).expect("the arena shrinks");
    }
    panic!("{CUTS_OF_A_MUTANT} cuts of zenith without a sync ({mutant:?}) lost nothing: the harness can't see");
}
