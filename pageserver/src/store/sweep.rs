//! What goes: layers that nothing needs any more, and what a crash has left.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io::ErrorKind;
use std::path::Path;

use rocksdb::WriteBatch;

use super::{LAYERS_DIR, LOST_DIR, PACKS_DIR, Store};
use crate::catalog::{Body, Catalog, Entry};
use crate::error::{Error, Result};
use crate::namespace::codec;
use crate::sealed::Form;
use crate::types::{LayerId, PackId};

impl Store {
    /// Deletes layers that nothing needs, the youngest first.
    pub(crate) fn collect(&self, catalog: &mut Catalog) -> Result<()> {
        loop {
            let unneeded = catalog.unneeded();
            if unneeded.is_empty() {
                return Ok(());
            }
            let mut batch = WriteBatch::default();
            let bodies = unneeded.iter().map(|id| catalog.body_and_form(*id));
            let bodies: Vec<Body> = bodies.collect::<Result<_>>()?;
            for body in &bodies {
                codec::delete_layer(&self.shared.db, &mut batch, body.id);
            }
            let entries = unneeded.iter().map(|id| Entry::Layer(*id, None)).collect();
            catalog.commit(&self.shared.db, batch, entries)?;
            self.at("collect: committed");
            // The blocks go only when the catalog can't come back with their layer.
            self.sync_db()?;
            for (id, body) in unneeded.into_iter().zip(bodies) {
                self.at("collect: about to remove");
                self.sealed_bytes().remove(&id);
                self.wal_bytes().remove(&id);
                self.shared.sealed.remove(body.id);
                self.remove_body(body)?;
            }
        }
    }

    /// Removes a body's blocks.
    pub(crate) fn remove_body(&self, body: Body) -> Result<()> {
        match body.form {
            Form::Plain => self.remove_layer_dir(body.id),
            Form::Packed(pack) => self.shared.sealed.packs.remove(pack),
        }
    }

    fn remove_layer_dir(&self, id: LayerId) -> Result<()> {
        let path = self.shared.layers.path(id);
        let removed = self.shared.disk.remove_dir(&path);
        removed.map_err(Error::io(format!("remove {}", path.display())))
    }

    /// Ends what a crash left half-made: layers without a record, records that nothing needs.
    pub(super) fn sweep(&self) -> Result<()> {
        let _bodies = self.bodies();
        let mut catalog = self.catalog();
        self.collect(&mut catalog)?;
        let plain: HashSet<LayerId> = catalog.plain_bodies().collect();
        for id in self.listed(LAYERS_DIR)?.into_iter().map(LayerId) {
            if !plain.contains(&id) {
                self.at("sweep: about to remove");
                self.sweep_layer(id, catalog.is_past(id.0))?;
            }
        }
        self.sweep_packs(&catalog)
    }

    /// The numbers that things in a directory of the store have as their names.
    fn listed(&self, dir: &str) -> Result<Vec<u64>> {
        let names = match self.shared.disk.list(&self.dir.join(dir)) {
            Err(e) if e.kind() == ErrorKind::NotFound => Vec::new(),
            names => names.map_err(Error::io(format!("list the {dir}")))?,
        };
        Ok(names.iter().filter_map(|name| number_of_name(name)).collect())
    }

    /// Removes half-made packs and those that no layer has; one that the database can't know yet is put aside.
    fn sweep_packs(&self, catalog: &Catalog) -> Result<()> {
        let packs = &self.shared.sealed.packs;
        packs.sweep().map_err(Error::io("sweep half-made packs"))?;
        let known: HashSet<PackId> = catalog.layers().filter_map(|(_, record)| record.pack).collect();
        for id in self.listed(PACKS_DIR)?.into_iter().map(PackId) {
            if known.contains(&id) {
                continue;
            }
            self.at("sweep: about to remove");
            match catalog.is_past(id.0) {
                true => packs.remove(id)?,
                false => self.put_aside(&packs.path(id), &format!("pack-{id}"))?,
            }
        }
        Ok(())
    }

    /// Removes a layer without a record that is destroyed or empty. One with blocks that the database does not know yet
    /// is put aside: after a power cut it holds writes that nobody synced, but a damaged database looks the same.
    fn sweep_layer(&self, id: LayerId, is_past: bool) -> Result<()> {
        let path = self.shared.layers.path(id);
        let names = self.shared.disk.list(&path);
        let is_empty = names.map_err(Error::io(format!("list {}", path.display())))?.is_empty();
        if is_past || is_empty {
            tracing::info!(layer = %id, "sweeping what is left of a layer");
            return self.remove_layer_dir(id);
        }
        self.put_aside(&path, &id.to_string())
    }

    fn put_aside(&self, path: &Path, name: &str) -> Result<()> {
        let lost = self.dir.join(LOST_DIR);
        self.shared
            .disk
            .make_dir(&lost)
            .map_err(Error::io("make the directory for what is lost"))?;
        let aside = (0..)
            .map(|n| lost.join(format!("{name}.{n}")))
            .find(|path| !path.exists());
        let aside = aside.unwrap_or(lost);
        tracing::error!(
            "the database does not know {}: it is put aside as {}",
            path.display(),
            aside.display()
        );
        let moved = self.shared.disk.rename(path, &aside);
        moved.map_err(Error::io(format!("put {} aside", path.display())))
    }
}

/// The number of the layer or the pack that has this name.
pub(crate) fn number_of_name(name: &OsStr) -> Option<u64> {
    let id = u64::from_str_radix(name.to_str()?, 16).ok()?;
    (name == LayerId(id).to_string().as_str()).then_some(id)
}
