//! Whether a store is what it should be, and what can be done where it isn't.
//!
//! ```text
//!   database     log and manifest as far as they were synced, every record with its checksum
//!   catalog      who stands on whom, whose head, which names          (check/catalog.rs)
//!   layers       directories, backing files, namespaces, images       (check/layers.rs, check/tree.rs)
//!   blocks       every block of a sealed layer, when asked for it     (check/blocks.rs)
//! ```
//!
//! A check only reads. It works on an open store, and on a closed one that may be too damaged to open ([`Store::check`],
//! [`check_closed`]); on an open one each layer is looked at while nobody can change it, and heads in use are left
//! out. It finds [`Finding`]s; some have a [`Repair`], which is done only when asked for. A repair deletes nothing that can
//! hold somebody's data: that is put aside in `lost/`.

mod blocks;
mod catalog;
mod layers;
mod repair;
mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, MutexGuard};

use serde::{Deserialize, Serialize};

use crate::catalog::Catalog;
use crate::db::{CATALOG, Db, NAMESPACE, Suspect};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::layer::Layers;
use crate::names::Tag;
use crate::namespace::{Change, Namespace};
use crate::packs::Packs;
use crate::parts::Pace;
use crate::sealed::Sealed;
use crate::store::{DB_DIR, LAYERS_DIR, LOST_DIR, PACKS_DIR, Store, check_format, lock};
use crate::types::{LayerId, TimelineId};

/// What a check has found in one place.
#[derive(Clone, Debug)]
pub struct Finding {
    /// Where in the store: a layer, a branch, a part of the database.
    pub place: String,
    /// What is the matter, as a sentence.
    pub what: String,
    pub severity: Severity,
    pub repair: Option<Repair>,
    pub repaired: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// To be known, and nothing wrong: what was left out, what lies in `lost/`.
    Note,
    /// Left by a crash; takes space, and nobody finds it.
    Leftover,
    /// Something that was kept is not there any more, or not as it was.
    Damage,
}

/// What can be done about a finding.
#[derive(Clone, Debug)]
pub enum Repair {
    /// Put a file or a directory of the store aside in `lost/`.
    PutAside(PathBuf),
    /// Remove what nobody has written anything to.
    Remove(PathBuf),
    /// Go back to what the database's log has before the damage; the log is kept in `lost/`.
    CutLog,
    /// Drop the name of a snapshot whose layer is gone.
    DropSnapshot(TimelineId, Tag),
    /// Drop a layer's image: it is made of what the layers changed, and can be made again.
    DropImage(LayerId),
    /// Delete what the database has of a layer that does not exist.
    DropRecords(LayerId),
    /// Make a change in the namespace of a head.
    Change(LayerId, Box<Change>),
}

impl fmt::Display for Repair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Repair::PutAside(path) => write!(f, "put {} aside in {LOST_DIR}/", path.display()),
            Repair::Remove(path) => write!(f, "remove {}", path.display()),
            Repair::CutLog => write!(
                f,
                "put the log aside in {LOST_DIR}/ and open the store as it was before the damage: newer changes of names, branches and \
                 snapshots are LOST"
            ),
            Repair::DropSnapshot(..) => f.write_str("drop the snapshot's name"),
            Repair::DropImage(_) => f.write_str("drop the image: it is made again when it is needed"),
            Repair::DropRecords(_) => f.write_str("delete the records"),
            Repair::Change(_, change) => match **change {
                Change::DropName(..) => f.write_str("drop the name"),
                _ => f.write_str("set the count of links right"),
            },
        }
    }
}

impl Finding {
    fn new(severity: Severity, place: impl Into<String>, what: impl Into<String>) -> Finding {
        Finding {
            place: place.into(),
            what: what.into(),
            severity,
            repair: None,
            repaired: false,
        }
    }

    fn damage(place: impl Into<String>, what: impl Into<String>) -> Finding {
        Finding::new(Severity::Damage, place, what)
    }

    fn repair(self, repair: Repair) -> Finding {
        Finding {
            repair: Some(repair),
            ..self
        }
    }
}

/// Hears what is looked at next.
pub type Progress<'a> = &'a mut dyn FnMut(&str);

/// What a check is to do.
#[derive(Default)]
pub struct Checks<'a> {
    /// Read all sealed blocks, too, from this layer on (they come in order of their numbers).
    pub blocks_from: Option<LayerId>,
    /// Hears of what is read for that; may take its time.
    pub pace: Option<Pace<'a>>,
    /// Do what can be done about what is found.
    pub repair: bool,
}

/// A store being checked. Everything is read through here, so that it is the same for an open and for a closed one.
struct Checker<'a> {
    dir: &'a Path,
    disk: &'a Disk,
    db: &'a Db,
    layers: Layers,
    /// The catalog as it was when the check began.
    catalog: Catalog,
    /// The store, when it is open.
    live: Option<&'a Store>,
    /// Namespaces of the layers seen so far. They share what they have in common.
    namespaces: BTreeMap<LayerId, Namespace>,
    findings: Vec<Finding>,
}

/// Keeps a layer as it is while it is looked at.
struct Held<'a> {
    _changing: MutexGuard<'a, ()>,
    _catalog: MutexGuard<'a, Catalog>,
}

/// What to do with a layer.
enum Turn<'a> {
    Look(Option<Held<'a>>),
    /// It is the head of this branch, which somebody uses.
    InUse(String),
    /// It was destroyed meanwhile.
    Gone,
}

impl Store {
    /// Checks the store while it is in use.
    pub fn check(&self, checks: Checks, progress: Progress) -> Result<Vec<Finding>> {
        let repair = checks.repair;
        // Nothing is merged meanwhile.
        let _bodies = self.bodies();
        let loaded = self.loaded();
        let catalog = self.catalog().clone();
        let checker = Checker {
            dir: self.dir(),
            disk: &self.shared.disk,
            db: &self.shared.db,
            layers: self.shared.layers.clone(),
            catalog,
            live: Some(self),
            namespaces: BTreeMap::new(),
            findings: Vec::new(),
        };
        let mut findings = checker.run(checks, progress);
        if repair {
            self.repair(&mut findings, loaded)?;
        }
        Ok(findings)
    }
}

/// Walks a tree in every way that there is; fuzzed.
#[cfg(fuzzing)]
pub fn look_at(ns: &Namespace) {
    tree::problems(ns, |_| false);
    for (ino, inode) in ns.inodes() {
        inode.attr(ino);
        if let Ok(entries) = ns.entries(ino, 0, usize::MAX) {
            entries
                .iter()
                .for_each(|entry| drop(ns.lookup(ino, &entry.name).is_ok()));
        }
    }
}

/// Checks a store that nobody has open, whether it can be opened or not.
pub fn check_closed(dir: &Path, disk: &Disk, checks: Checks, progress: Progress) -> Result<Vec<Finding>> {
    let repair = checks.repair;
    let found = match check_format(dir) {
        Err(Error::Damaged { what }) => vec![Finding::damage("format", what)],
        other => other.map(|()| Vec::new())?,
    };
    let _lock = lock(dir)?;
    progress("looking at the database's log");
    let mut findings = found;
    let (damage, lets_open) = log_damage(dir)?;
    findings.extend(damage);
    if lets_open {
        findings.extend(match Db::open_read_only(&dir.join(DB_DIR)) {
            Ok(db) => check_database(dir, disk, &Arc::new(db), checks, progress),
            Err(error) => vec![Finding::damage("db", format!("it can't be opened: {error}"))],
        });
    } else {
        let what = "the database was not opened: nothing else was looked at";
        findings.push(Finding::new(Severity::Note, "db", what));
    }
    if repair {
        repair::closed(dir, disk, &mut findings)?;
    }
    Ok(findings)
}

/// What was synced and is damaged, and whether the database can be opened all the same. One repair is for all of it: what
/// RocksDB replays ends at the first damage.
fn log_damage(dir: &Path) -> Result<(Vec<Finding>, bool)> {
    let suspects = match Db::damage(&dir.join(DB_DIR)) {
        Err(Error::Db(error)) => return Ok((vec![Finding::damage("db", error.to_string())], false)),
        suspects => suspects?,
    };
    let all_logs = suspects.iter().all(|suspect| suspect.log_number().is_some());
    let finding = |suspect: &Suspect| {
        let finding = Finding::damage("db", suspect.describe());
        if all_logs {
            finding.repair(Repair::CutLog)
        } else {
            finding
        }
    };
    let lets_open = suspects.iter().all(Suspect::lets_open);
    Ok((suspects.iter().map(finding).collect(), lets_open))
}

fn check_database(dir: &Path, disk: &Disk, db: &Arc<Db>, checks: Checks, progress: Progress) -> Vec<Finding> {
    let mut findings = Vec::new();
    let catalog = Catalog::read(db, |error| {
        findings.push(Finding::damage("catalog", error.to_string()));
        Ok(())
    });
    let catalog = catalog.unwrap_or_else(|error| {
        findings.push(Finding::damage("catalog", error.to_string()));
        Catalog::default()
    });
    let packs = Packs::new(disk.clone(), dir.join(PACKS_DIR), catalog.packs());
    let sealed = Sealed::new(db.clone(), packs, catalog.forms());
    let checker = Checker {
        dir,
        disk,
        db,
        layers: Layers {
            disk: disk.clone(),
            dir: dir.join(LAYERS_DIR),
            sealed: Arc::new(sealed),
            tables: Arc::default(),
        },
        catalog,
        live: None,
        namespaces: BTreeMap::new(),
        findings,
    };
    checker.run(checks, progress)
}

impl<'a> Checker<'a> {
    fn run(mut self, checks: Checks, progress: Progress) -> Vec<Finding> {
        progress("reading every record of the database");
        self.records();
        progress("looking at the catalog");
        let relations = catalog::problems(&self.catalog);
        self.findings.extend(relations);
        self.bodies();
        let layers: Vec<LayerId> = self.catalog.layers().map(|(id, _)| id).collect();
        progress(&format!("looking at {} layers", layers.len()));
        layers.iter().for_each(|id| self.layer(*id));
        self.all_blocks(&layers, checks, progress);
        self.lost();
        self.findings
    }

    fn all_blocks(&mut self, layers: &[LayerId], checks: Checks, progress: Progress) {
        let Some(from) = checks.blocks_from else {
            return;
        };
        let mut unpaced = |_| true;
        let pace = checks.pace.unwrap_or(&mut unpaced);
        if from > LayerId(0) && layers.iter().all(|id| *id < from) {
            let what = format!("no layer from {from} on: no block was read");
            self.found(Finding::new(Severity::Note, "blocks", what));
        }
        for (nth, id) in layers.iter().enumerate().filter(|(_, id)| **id >= from) {
            progress(&format!("reading layer {id}, {} of {}", nth + 1, layers.len()));
            self.blocks(*id, pace);
        }
    }

    fn found(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    /// Reads all of the database, which verifies its checksums.
    fn records(&mut self) {
        let mut strangers = BTreeMap::new();
        let bodies: BTreeSet<LayerId> = self.catalog.bodies().map(|(body, _)| body).collect();
        for family in [CATALOG, NAMESPACE] {
            let read = self.db.scan(family, b"", |key, _| {
                let layer = key.first_chunk().map(|id| LayerId(u64::from_be_bytes(*id)));
                if let Some(id) = layer.filter(|id| family == NAMESPACE && !bodies.contains(id)) {
                    *strangers.entry(id).or_insert(0) += 1;
                }
                Ok(())
            });
            if let Err(error) = read {
                self.found(Finding::damage(format!("db: {family}"), error.to_string()));
            }
        }
        for (id, count) in strangers {
            // Made since the check began?
            if self.catalog.is_past(id.0) {
                let what = format!("{count} records of a layer that does not exist");
                let finding = Finding::new(Severity::Leftover, layers::place(id), what);
                self.found(finding.repair(Repair::DropRecords(id)));
            }
        }
    }

    /// Whose directory and records a layer has.
    fn body(&self, id: LayerId) -> LayerId {
        self.catalog.body(id).unwrap_or(id)
    }

    /// Waits for a layer's turn; nobody changes it until what is returned is dropped.
    fn turn(&self, id: LayerId) -> Turn<'a> {
        let Some(store) = self.live else {
            return Turn::Look(None);
        };
        let held = Held {
            _changing: store.changing(),
            _catalog: store.catalog(),
        };
        if held._catalog.layer(id).is_err() {
            return Turn::Gone;
        }
        let head_of = held._catalog.timelines().find(|(_, record)| record.head == id);
        match head_of {
            Some((timeline, record)) if store.is_open(timeline) => Turn::InUse(record.name.to_string()),
            _ => Turn::Look(Some(held)),
        }
    }
}
