//! Whether each layer has on disk and in the database what it should have.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use super::{Checker, Finding, Repair, Severity, Turn, tree};
use crate::catalog::Catalog;
use crate::layer::{Found, HALF_MADE, Layer};
use crate::load::apply_files;
use crate::namespace::{Namespace, codec};
use crate::parts;
use crate::store::{LOST_DIR, PACKS_DIR, number_of_name};
use crate::types::{FILE_SIZE_MAX, Ino, Kind, LayerId, PackId};

pub fn place(id: LayerId) -> String {
    format!("layer {id}")
}

impl Checker<'_> {
    /// Every layer has a directory or a pack, and every one of these is a layer's.
    pub(super) fn bodies(&mut self) {
        // A new layer's directory is made with the catalog's lock held.
        let catalog = self.live.map(|store| store.catalog());
        let known = catalog.as_deref().unwrap_or(&self.catalog);
        let listed = self.disk.list(&self.layers.dir);
        let names = match listed {
            Ok(names) => names,
            Err(error) => {
                drop(catalog);
                return self.found(Finding::damage("layers", format!("they can't be listed: {error}")));
            }
        };
        let mut missing: BTreeSet<LayerId> = known.plain_bodies().collect();
        let mut strangers = Vec::new();
        for name in names {
            let path = self.layers.dir.join(&name);
            match number_of_name(&name).map(LayerId) {
                Some(id) if missing.remove(&id) => {}
                Some(id) => strangers.push(unknown_layer(id, path, known.is_past(id.0))),
                None => strangers.push(foreign("layers", "layer", &path)),
            }
        }
        strangers.extend(self.strange_packs(known));
        drop(catalog);
        self.findings.extend(strangers);
        for id in missing {
            self.found(Finding::damage(
                place(id),
                "its directory is missing: all its blocks are gone",
            ));
        }
    }

    /// Packs that no layer has. One that is missing is told with its layer.
    fn strange_packs(&self, known: &Catalog) -> Vec<Finding> {
        let packs = &self.layers.sealed.packs;
        let names = match self.disk.list(packs.dir()) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return vec![Finding::damage(PACKS_DIR, format!("they can't be listed: {error}"))],
            Ok(names) => names,
        };
        let is_known = |id| known.layers().any(|(_, record)| record.pack == Some(PackId(id)));
        let stranger = |name: &OsString| {
            let path = packs.dir().join(name);
            match number_of_name(name) {
                Some(id) if is_known(id) => None,
                // What is being packed right now is known later.
                _ if self.live.is_some() => None,
                Some(_) => Some(
                    Finding::new(Severity::Leftover, PACKS_DIR, "a pack that no layer has")
                        .repair(Repair::PutAside(path)),
                ),
                None if name.to_string_lossy().ends_with(HALF_MADE) => Some(
                    Finding::new(Severity::Leftover, PACKS_DIR, "a pack that was never finished")
                        .repair(Repair::Remove(path)),
                ),
                None => Some(foreign(PACKS_DIR, "pack", &path)),
            }
        };
        names.iter().filter_map(stranger).collect()
    }

    pub(super) fn layer(&mut self, id: LayerId) {
        match self.turn(id) {
            Turn::Look(held) => {
                self.look(id);
                drop(held);
            }
            Turn::InUse(branch) => {
                let what = format!("the branch {branch} is in use: what was written since its last seal was left out");
                self.found(Finding::new(Severity::Note, place(id), what));
            }
            Turn::Gone => {}
        }
    }

    fn look(&mut self, id: LayerId) {
        let found = self.files(id);
        let replayed = self.replay(id, &found);
        let Some(ns) = self.image(id, replayed) else {
            return;
        };
        self.backing_files(id, &found, &ns);
        self.tree(id, &ns);
        self.namespaces.insert(id, ns);
    }

    /// The layer's backing files, or what its pack has; what can't be one is a finding.
    fn files(&mut self, id: LayerId) -> Vec<Found> {
        if let Some(pack) = self.catalog.layer(id).ok().and_then(|record| record.pack) {
            return match self.layers.sealed.packs.open_anew(pack) {
                Ok(pack) => parts::found(&pack.files().iter().map(|file| (file.ino, file.kept)).collect()),
                Err(error) => {
                    self.found(Finding::damage(place(id), error.damage()));
                    Vec::new()
                }
            };
        }
        let dir = self.layers.path(self.body(id));
        let Ok(names) = self.disk.list(&dir) else {
            // Told by what is there of directories.
            return Vec::new();
        };
        let layer = self.layers.open(self.body(id));
        let mut found = Vec::new();
        for name in names {
            let path = dir.join(&name);
            let name = name.to_string_lossy();
            if name.ends_with(HALF_MADE) {
                let finding = Finding::new(Severity::Leftover, place(id), format!("{name} was never finished"));
                self.found(finding.repair(Repair::Remove(path)));
                continue;
            }
            let Some(ino) = Ino::of_name(&name) else {
                let finding = Finding::new(Severity::Leftover, place(id), format!("{name} is no backing file"));
                self.found(finding.repair(Repair::PutAside(path)));
                continue;
            };
            match inspect(&layer, ino, &path) {
                Ok(file) => found.push(file),
                Err(what) => self.found(Finding::damage(place(id), what)),
            }
        }
        found
    }

    /// The layer's namespace by what it changed; `None` where that can't be told.
    fn replay(&mut self, id: LayerId, found: &[Found]) -> Option<Namespace> {
        let parent = self.catalog.layer(id).ok()?.parent;
        let mut ns = match parent {
            None => Namespace::default(),
            // What is wrong with the parent has been told.
            Some(parent) => self.namespaces.get(&parent)?.clone(),
        };
        let body = self.body(id);
        let kept = match self.catalog.layer(id).is_ok_and(|record| record.has_sums) {
            true => parts::kept(self.db, body).map(|kept| Some(parts::found(&kept))),
            false => Ok(None),
        };
        match codec::apply_changes(self.db, body, &mut ns).and(kept) {
            Ok(kept) => {
                apply_files(body, kept.as_deref().unwrap_or(found), &mut ns);
                Some(ns)
            }
            Err(error) => {
                self.found(Finding::damage(place(id), error.to_string()));
                None
            }
        }
    }

    /// The namespace as a load would find it: where there is an image, by the image, which must be what the replay tells.
    fn image(&mut self, id: LayerId, replayed: Option<Namespace>) -> Option<Namespace> {
        if !self.catalog.layer(id).is_ok_and(|record| record.has_image) {
            return replayed;
        }
        let what = match (codec::read_image(self.db, self.body(id)), &replayed) {
            (Ok(image), Some(ns)) if !is_same(&image, ns) => "its image is not what the layers changed".to_owned(),
            (Ok(image), _) => return Some(image),
            (Err(error), _) => error.to_string(),
        };
        let finding = Finding::damage(place(id), what);
        self.found(match replayed {
            Some(_) => finding.repair(Repair::DropImage(id)),
            None => finding,
        });
        replayed
    }

    fn backing_files(&mut self, id: LayerId, found: &[Found], ns: &Namespace) {
        if self.catalog.is_changing(id) {
            return;
        }
        let record = self.catalog.layer(id).ok().cloned();
        let is_packed = record.as_ref().is_some_and(|record| record.pack.is_some());
        if record.is_some_and(|record| record.has_sums) {
            let kept = parts::kept(self.db, self.body(id));
            let differences = match kept {
                // That nothing of the pack can be read has been told.
                Ok(_) if found.is_empty() && is_packed => Vec::new(),
                Ok(kept) => parts::differences(&kept, found, ns),
                Err(error) => vec![error.to_string()],
            };
            for what in differences {
                self.found(Finding::damage(place(id), what));
            }
        }
        for file in found.iter().filter(|_| !is_packed) {
            if !ns.inode(file.ino).is_ok_and(|inode| inode.kind == Kind::File) {
                let path = self.layers.path(self.body(id)).join(file.ino.to_string());
                let what = format!("the backing file {} is no file's: left over, or renamed", file.ino);
                let finding = Finding::new(Severity::Leftover, place(id), what);
                self.found(finding.repair(Repair::PutAside(path)));
            }
        }
    }

    /// What is wrong with the namespace and was right in the parent's.
    fn tree(&mut self, id: LayerId, ns: &Namespace) {
        let below: BTreeSet<LayerId> = self.below(id).into_iter().map(|id| self.body(id)).collect();
        let parent = self.catalog.layer(id).ok().and_then(|record| record.parent);
        let inherited = parent.and_then(|parent| self.namespaces.get(&parent));
        let inherited: BTreeSet<String> = inherited
            .map(|ns| {
                tree::problems(ns, |_| true)
                    .into_iter()
                    .map(|problem| problem.what)
                    .collect()
            })
            .unwrap_or_default();
        let is_head = self.catalog.timelines().any(|(_, record)| record.head == id);
        for problem in tree::problems(ns, |layer| below.contains(&layer)) {
            if inherited.contains(&problem.what) {
                continue;
            }
            let finding = Finding::damage(place(id), problem.what);
            self.found(match problem.mend.filter(|_| is_head) {
                Some(change) => finding.repair(Repair::Change(id, Box::new(change))),
                None => finding,
            });
        }
    }

    /// The layer and all that it stands on.
    pub(super) fn below(&self, id: LayerId) -> BTreeSet<LayerId> {
        let mut below = BTreeSet::new();
        let mut next = Some(id);
        while let Some(id) = next.filter(|id| below.insert(*id)) {
            next = self.catalog.layer(id).ok().and_then(|record| record.parent);
        }
        below
    }

    /// What was put aside.
    pub(super) fn lost(&mut self) {
        let lost = self.dir.join(LOST_DIR);
        let names = match self.disk.list(&lost) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
            names => names,
        };
        match names {
            Ok(names) => {
                for name in names {
                    let what = format!("{} was put aside", name.to_string_lossy());
                    self.found(Finding::new(Severity::Note, format!("{LOST_DIR}/"), what));
                }
            }
            Err(error) => self.found(Finding::damage(format!("{LOST_DIR}/"), error.to_string())),
        }
    }
}

fn is_same(a: &Namespace, b: &Namespace) -> bool {
    a.inodes().eq(b.inodes()) && a.all_names().eq(b.all_names())
}

/// A backing file; or what is wrong with it.
fn inspect(layer: &Layer, ino: Ino, path: &Path) -> std::result::Result<Found, String> {
    let is_file = fs::symlink_metadata(path).map(|meta| meta.is_file());
    match is_file.and_then(|is_file| {
        if is_file {
            layer.inspect(ino).map(Some)
        } else {
            Ok(None)
        }
    }) {
        Ok(None) => Err(format!("the backing file {ino} is no regular file")),
        Ok(Some(file)) if file.stat.size > FILE_SIZE_MAX => Err(format!("the backing file {ino} is too large")),
        // A floor above the end is one that a later cut has lowered.
        Ok(Some(file)) => Ok(file),
        Err(error) => Err(format!("the backing file {ino}: {error}")),
    }
}

/// A layer's directory that the catalog does not know.
fn unknown_layer(id: LayerId, path: PathBuf, is_past: bool) -> Finding {
    let is_empty = fs::read_dir(&path).is_ok_and(|mut entries| entries.next().is_none());
    let (severity, what, repair) = match (is_empty, is_past) {
        (true, _) => (Severity::Leftover, "it was never used", Repair::Remove(path)),
        (false, true) => (
            Severity::Leftover,
            "it was destroyed and its blocks are still there",
            Repair::PutAside(path),
        ),
        (false, false) => (
            Severity::Damage,
            "it has blocks, and the catalog does not know it",
            Repair::PutAside(path),
        ),
    };
    Finding::new(severity, place(id), what).repair(repair)
}

fn foreign(place: &str, kind: &str, path: &Path) -> Finding {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Finding::damage(place, format!("{name} is no {kind}")).repair(Repair::PutAside(path.into()))
}
