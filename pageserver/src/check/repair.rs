//! Doing what findings offer.
//!
//! Files go first and the database after them, each repair by itself: one that fails leaves the others and is told. What is
//! put aside keeps its name in `lost/`, with a number behind it.

use std::fs;
use std::path::{Path, PathBuf};

use rocksdb::WriteBatch;

use super::{Finding, Repair};
use crate::catalog::{Catalog, Entry};
use crate::db::Db;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::namespace::codec;
use crate::store::{DB_DIR, LOST_DIR, Store, number_of_name};
use crate::types::LayerId;

impl Store {
    /// Repairs what can be on an open store. Heads in use were left out by the check, which began when so many had been loaded.
    pub(super) fn repair(&self, findings: &mut [Finding], loaded: u64) -> Result<()> {
        let _changing = self.changing();
        let mut catalog = self.catalog();
        for finding in findings {
            finding.repaired = match &finding.repair {
                Some(Repair::CutLog) | None => false,
                Some(repair) if !self.still_fits(&catalog, repair, loaded) => false,
                Some(repair) => {
                    do_one(self.dir(), &self.shared.disk, &self.shared.db, &mut catalog, repair)?;
                    true
                }
            };
        }
        self.sync_db()
    }

    /// Whether what was found, which can be hours ago, can't have become something else.
    fn still_fits(&self, catalog: &Catalog, repair: &Repair, loaded: u64) -> bool {
        let is_used = |layer| catalog.plain_bodies().any(|body| body == layer);
        let was_loaded = || self.loaded() != loaded;
        let layer_of = |path: &Path| path.file_name().and_then(number_of_name).map(LayerId);
        match repair {
            Repair::Change(..) => !was_loaded(),
            Repair::DropRecords(layer) => !catalog.bodies().any(|(body, _)| body == *layer),
            Repair::PutAside(path) | Repair::Remove(path) => match (layer_of(path), path.parent().and_then(layer_of)) {
                (_, Some(layer)) => !(is_used(layer) && was_loaded()),
                (Some(layer), None) => !is_used(layer),
                (None, None) => true,
            },
            Repair::CutLog | Repair::DropSnapshot(..) | Repair::DropImage(_) => true,
        }
    }
}

/// Repairs what can be on a store that nobody has open.
pub fn closed(dir: &Path, disk: &Disk, findings: &mut [Finding]) -> Result<()> {
    if findings.iter().all(|finding| finding.repair.is_none()) {
        return Ok(());
    }
    let is_cut = |finding: &Finding| matches!(finding.repair, Some(Repair::CutLog));
    if findings.iter().any(is_cut) {
        put_log_aside(dir, disk)?;
    }
    let db = Db::open(&dir.join(DB_DIR), false, None)?;
    let mut catalog = Catalog::read(&db, |_| Ok(()))?;
    for finding in findings {
        if let Some(repair) = &finding.repair {
            do_one(dir, disk, &db, &mut catalog, repair)?;
            finding.repaired = true;
        }
    }
    db.sync().map_err(Error::io("sync the store's database"))
}

fn do_one(dir: &Path, disk: &Disk, db: &Db, catalog: &mut Catalog, repair: &Repair) -> Result<()> {
    let mut batch = WriteBatch::default();
    match repair {
        Repair::PutAside(path) => return put_aside(dir, disk, path),
        Repair::Remove(path) if path.is_dir() => {
            // Only an empty one: something may have come into it since it was found.
            return fs::remove_dir(path).map_err(Error::io(format!("remove {}", path.display())));
        }
        Repair::Remove(path) => {
            return disk
                .remove(path)
                .map_err(Error::io(format!("remove {}", path.display())));
        }
        // Done before the database was opened.
        Repair::CutLog => return Ok(()),
        Repair::DropSnapshot(timeline, tag) => {
            return catalog.commit(db, batch, vec![Entry::Snapshot(*timeline, tag.clone(), None)]);
        }
        Repair::DropImage(layer) => {
            codec::delete_image(db, &mut batch, catalog.body(*layer)?);
            let mut record = catalog.layer(*layer)?.clone();
            record.has_image = false;
            return catalog.commit(db, batch, vec![Entry::Layer(*layer, Some(record))]);
        }
        Repair::DropRecords(layer) => codec::delete_layer(db, &mut batch, *layer),
        Repair::Change(layer, change) => codec::put_change(db, &mut batch, *layer, change),
    }
    db.write(batch)
}

/// Moves something of the store to `lost/`.
pub fn put_aside(dir: &Path, disk: &Disk, path: &Path) -> Result<()> {
    let aside = free_name(dir, disk, path)?;
    let failed = format!("put {} aside", path.display());
    let moved = disk.rename(path, &aside).and_then(|()| {
        disk.sync_dir(&dir.join(LOST_DIR))?;
        disk.sync_dir(path.parent().unwrap_or(dir))
    });
    moved.map_err(Error::io(failed))
}

/// A name in `lost/` that nothing has yet: that of the layer before that of the file.
fn free_name(dir: &Path, disk: &Disk, path: &Path) -> Result<PathBuf> {
    let lost = dir.join(LOST_DIR);
    disk.make_dir(&lost)
        .map_err(Error::io(format!("make {}", lost.display())))?;
    let within = path.strip_prefix(dir).unwrap_or(path);
    let words: Vec<_> = within.iter().map(|word| word.to_string_lossy()).collect();
    let name = words.join("-");
    let names = (0_u64..).map(|n| lost.join(format!("{name}.{n}")));
    let mut free = names.filter(|path| path.symlink_metadata().is_err());
    // There are more numbers than files.
    Ok(free.next().unwrap_or(lost))
}

/// Copies the database's logs to `lost/` and forgets what they should have been, so that the next open takes the damage for
/// their end.
fn put_log_aside(dir: &Path, disk: &Disk) -> Result<()> {
    let db = dir.join(DB_DIR);
    let copy = |name: &std::ffi::OsStr| -> Result<()> {
        let path = db.join(name);
        let aside = free_name(dir, disk, &path)?;
        let copied = fs::copy(&path, &aside).and_then(|_| fs::File::open(&aside)?.sync_all());
        copied.map_err(Error::io(format!("put {} aside", path.display())))
    };
    let names = disk.list(&db).map_err(Error::io(format!("list {}", db.display())))?;
    for name in names.iter().filter(|name| name.to_string_lossy().ends_with(".log")) {
        copy(name)?;
    }
    disk.sync_dir(&dir.join(LOST_DIR))
        .map_err(Error::io(format!("sync {}", dir.join(LOST_DIR).display())))?;
    Db::cut_logs(&db).map_err(Error::io("forget what the database's log was"))
}
