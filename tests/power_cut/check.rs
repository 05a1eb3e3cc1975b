//! The morning after: a machine gets its power back, and all that was promised must be there.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::disk::{Disk, Image};
use crate::history::{Allowed, compare};
use crate::ledger;
use crate::load::Run;
use crate::machine::{Machine, Place, digest, tree_digest};
use crate::random::Random;

/// Each transaction of pgbench adds the same number in four tables.
const BALANCED: &str = "SELECT a.sum = b.sum AND b.sum = t.sum AND t.sum = h.sum FROM \
    (SELECT sum(abalance) FROM pgbench_accounts) a, (SELECT sum(bbalance) FROM pgbench_branches) b, \
    (SELECT sum(tbalance) FROM pgbench_tellers) t, (SELECT coalesce(sum(delta), 0) AS sum FROM pgbench_history) h";

const TABLES: &str = "SELECT relname FROM pg_class WHERE relname ~ '^t[0-9]+$' AND relkind = 'r'";

/// How many of the pg's snapshots are read whole after a cut.
const SNAPSHOTS_READ: usize = 1;

/// A cut that was survived.
pub struct Survived {
    /// The disk, which recorded the recovery.
    pub disk: Arc<Disk>,
    /// Its position when everything had been looked at.
    pub position: u64,
    /// From the command that starts the service until the server answered.
    pub recovery: Duration,
}

/// Gives the power back to a machine whose disk holds `image`, what a cut at `position` of the run left, and looks at
/// everything.
pub fn survive(place: &Place, run: &Run, image: Image, position: u64, random: &mut Random) -> Result<Survived, String> {
    let disk = Disk::new(&place.arena, image, run.kind.sector());
    let named = ["pg ", "branch "].map(|prefix| run.history.allowed(prefix, position).into_keys());
    let always = ["pg".to_owned(), "notes".to_owned()];
    let places: Vec<String> = always.into_iter().chain(named.into_iter().flatten()).collect();
    let machine = Machine::start(place, disk.clone(), run.kind, false, &places);
    let morning = Morning {
        machine: &machine,
        run,
        position,
    };
    let begun = Instant::now();
    let looked = morning.come_up().map(|()| begun.elapsed());
    let looked = looked.and_then(|recovery| morning.look_at_all(random).map(|()| recovery));
    let recovery = looked.map_err(|error| format!("{error}\n{}", machine.logs()))?;
    let position = machine.position();
    Ok(Survived {
        disk,
        position,
        recovery,
    })
}

struct Morning<'a> {
    machine: &'a Machine<'a>,
    run: &'a Run,
    position: u64,
}

impl Morning<'_> {
    fn allowed(&self, prefix: &str) -> BTreeMap<String, Allowed> {
        self.run.history.allowed(prefix, self.position)
    }

    fn come_up(&self) -> Result<(), String> {
        self.machine.zenith(&["start"])?;
        let status = self.machine.json(&["status"])?;
        let mounts = status["mounts"].as_array().into_iter().flatten();
        for mount in mounts {
            if !mount["error"].is_null() {
                return Err(format!("a mount is missing: {mount}"));
            }
        }
        self.machine.zenith(&["pg", "start", "pg"])?;
        Ok(())
    }

    fn look_at_all(&self, random: &mut Random) -> Result<(), String> {
        self.ledger()?;
        self.tables()?;
        self.snapshots(random)?;
        self.files()?;
        self.forks()?;
        self.clones(random)?;
        self.checksums()
    }

    /// Every commit that was acknowledged before the cut is there.
    fn ledger(&self) -> Result<(), String> {
        self.commits_up_to(self.position, self.machine.port())
    }

    fn commits_up_to(&self, position: u64, port: u16) -> Result<(), String> {
        let acknowledged = self.run.ledger.up_to(position);
        let lost = ledger::lost(&Machine::connection(port), &acknowledged).map_err(|error| error.to_string())?;
        match lost.first() {
            None => Ok(()),
            Some(first) => Err(format!(
                "{} of {} acknowledged commits are lost, the first is {first:?}",
                lost.len(),
                acknowledged.len()
            )),
        }
    }

    fn tables(&self) -> Result<(), String> {
        let tables = self.machine.sql(TABLES)?;
        let counts = tables
            .lines()
            .map(|table| format!("SELECT '{table}', count(*) FROM {table}"));
        let counts: Vec<String> = counts.collect();
        let counted = self.machine.sql(&counts.join(" UNION ALL "))?;
        let seen = counted.lines().filter_map(|line| line.split_once('|'));
        let seen = seen.map(|(table, rows)| (table.to_owned(), rows.to_owned()));
        compare("table", &self.allowed("table "), &seen.collect())?;
        match self.machine.sql(BALANCED)?.as_str() {
            "t" => Ok(()),
            other => Err(format!("pgbench's books are not balanced: {other}")),
        }
    }

    /// Those that must be there are, those that must not are not, and some of them are what they were.
    fn snapshots(&self, random: &mut Random) -> Result<(), String> {
        let allowed = self.allowed("snapshot ");
        let listed = self.machine.names(&["snapshot", "list"])?;
        for (name, allowed) in &allowed {
            if !listed.contains(name) {
                allowed.check(&format!("snapshot {name}"), &None)?;
            }
        }
        let (mut of_pg, of_notes): (Vec<&String>, Vec<&String>) =
            listed.iter().partition(|name| name.starts_with("pg@"));
        random.shuffle(&mut of_pg);
        of_pg.truncate(SNAPSHOTS_READ);
        for name in of_pg.into_iter().chain(of_notes) {
            let Some(allowed) = allowed.get(name) else {
                return Err(format!("snapshot {name} is there, and never was"));
            };
            let (branch, tag) = name.split_once('@').unwrap_or((name, ""));
            let seen = self.machine.snapshot_digest(branch, tag)?;
            allowed.check(&format!("snapshot {name}"), &Some(seen))?;
        }
        Ok(())
    }

    fn files(&self) -> Result<(), String> {
        let seen = file_digests(&self.machine.mountpoint("notes")).map_err(|error| format!("notes: {error}"))?;
        compare("file", &self.allowed("file "), &seen)
    }

    fn forks(&self) -> Result<(), String> {
        let mut seen = BTreeMap::new();
        let branches = self.machine.json(&["branch"])?;
        for branch in branches.as_array().into_iter().flatten() {
            let fork = branch["name"].as_str().filter(|name| name.starts_with("fork"));
            let Some(fork) = fork else { continue };
            // One that was looked at when the recovery was cut is mounted still.
            if branch["mounted"].is_null() {
                self.machine.mount(fork, fork)?;
            }
            seen.insert(fork.to_owned(), tree_digest(&self.machine.mountpoint(fork))?);
        }
        compare("branch", &self.allowed("branch "), &seen)
    }

    /// The clones of the pg; one of them is started, and has what was acknowledged before it was asked for.
    fn clones(&self, random: &mut Random) -> Result<(), String> {
        let pgs = self.machine.names(&["pg", "list"])?;
        let clones: Vec<&String> = pgs.iter().filter(|name| *name != "pg").collect();
        let seen = clones.iter().filter_map(|name| {
            let state = self.run.history.last_state(&format!("pg {name}"))?;
            Some(((*name).clone(), state))
        });
        compare("pg", &self.allowed("pg "), &seen.collect())?;
        let mut branches = self.machine.names(&["branch"])?;
        branches.retain(|name| name.starts_with('c'));
        if branches.len() != clones.len() || !clones.iter().all(|name| branches.contains(name)) {
            return Err(format!("the lists differ: pgs {clones:?}, branches {branches:?}"));
        }
        match random.pick(&clones) {
            Some(name) => self.clone(name),
            None => Ok(()),
        }
    }

    fn clone(&self, name: &str) -> Result<(), String> {
        let list = self.machine.json(&["pg", "list"])?;
        let mut items = list.as_array().into_iter().flatten();
        let port = items.find(|pg| pg["name"] == name).and_then(|pg| pg["port"].as_u64());
        let port = port
            .and_then(|port| u16::try_from(port).ok())
            .ok_or("a pg without a port")?;
        let asked_for = self.run.history.last_state(&format!("pg {name}"));
        let asked_for = asked_for.and_then(|position| position.parse().ok());
        let asked_for: u64 = asked_for.ok_or_else(|| format!("{name} was never made"))?;
        self.machine.zenith(&["pg", "start", name])?;
        self.commits_up_to(asked_for, port)?;
        self.machine.zenith(&["pg", "stop", name])?;
        Ok(())
    }

    /// Postgres' own checks of everything.
    fn checksums(&self) -> Result<(), String> {
        let amcheck = ["--install-missing", "--heapallindexed", "--parent-check"];
        self.machine.postgres("pg_amcheck", self.machine.port(), &amcheck)?;
        self.machine.zenith(&["pg", "stop", "pg"])?;
        let dir = self.machine.mountpoint("pg");
        let arguments = ["--check", "--pgdata", dir.to_str().expect("UTF-8")];
        self.machine.postgres("pg_checksums", self.machine.port(), &arguments)?;
        Ok(())
    }
}

/// Each file's digest, except of those that were not renamed yet.
fn file_digests(dir: &Path) -> std::io::Result<BTreeMap<String, String>> {
    let mut seen = BTreeMap::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.ends_with(".new") {
            seen.insert(name, digest(&fs::read(entry.path())?));
        }
    }
    Ok(seen)
}
