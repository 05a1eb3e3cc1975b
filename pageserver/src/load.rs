//! How the namespace of a layer is found again.
//!
//! ```text
//!   nearest layer in memory, or with an image, or the root of all
//!     + what each younger layer changed, from the database
//!     + what each younger layer's backing files tell: which files have blocks there, their size, time and floor
//! ```
//!
//! Where that took more than a few layers, an image is left behind so that it does not take as many again.

use rocksdb::WriteBatch;

use crate::catalog::{Catalog, Entry};
use crate::error::{Error, Result};
use crate::layer::Found;
use crate::namespace::{Change, Inode, Namespace, PartRef, codec};
use crate::parts;
use crate::shared::Shared;
use crate::types::{Kind, LayerId};

/// Layers replayed above an image before another image is worth its space.
const IMAGE_EVERY: usize = 32;

/// A head's namespace, its parent's, and whether the head has changes of its own.
pub struct LoadedHead {
    pub ns: Namespace,
    pub below: Namespace,
    pub changed: bool,
}

/// The namespace of a sealed layer. `None` stands for what lies below a root layer: nothing.
pub fn sealed(shared: &Shared, catalog: &mut Catalog, layer: Option<LayerId>) -> Result<Namespace> {
    let mut pending = Vec::new();
    let (mut at, mut was_in_memory) = (layer, false);
    let mut ns = loop {
        let Some(id) = at else {
            break Namespace::default();
        };
        if let Some(ns) = shared.namespace(id) {
            was_in_memory = true;
            break ns;
        }
        let record = catalog.layer(id)?;
        if record.has_image {
            break codec::read_image(&shared.db, catalog.body(id)?)?;
        }
        pending.push(id);
        at = record.parent;
    };
    for id in pending.iter().rev() {
        replay(shared, catalog, *id, &mut ns)?;
        shared.keep_namespace(*id, ns.clone());
    }
    // What is in memory may tell of bodies as they were before they were merged.
    if let (Some(layer), true) = (layer, pending.len() >= IMAGE_EVERY && !was_in_memory) {
        match leave_image(shared, catalog, layer, &ns) {
            // It would only make the next load quicker.
            Err(error) if error.is_full() => tracing::warn!(%layer, %error, "no image is left behind"),
            left => left?,
        }
    }
    Ok(ns)
}

fn leave_image(shared: &Shared, catalog: &mut Catalog, layer: LayerId, ns: &Namespace) -> Result<()> {
    let mut batch = WriteBatch::default();
    codec::put_image(&shared.db, &mut batch, catalog.body(layer)?, ns);
    let mut record = catalog.layer(layer)?.clone();
    record.has_image = true;
    shared.disk.at("image: made");
    catalog.commit(&shared.db, batch, vec![Entry::Layer(layer, Some(record))])
}

/// Inodes without a name, when a head is loaded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Orphans {
    /// Nobody can reach them any more.
    End,
    /// A mount that outlived the process may hold them.
    Stay,
}

/// The namespace of a head.
pub fn head(shared: &Shared, catalog: &mut Catalog, layer: LayerId, orphans: Orphans) -> Result<LoadedHead> {
    let parent = catalog.layer(layer)?.parent;
    let below = sealed(shared, catalog, parent)?;
    let mut ns = below.clone();
    let (changes, found) = replay(shared, catalog, layer, &mut ns)?;
    if orphans == Orphans::End {
        end_orphans(shared, layer, &below, &mut ns)?;
    }
    sweep_blocks(shared, layer, &found, &ns)?;
    Ok(LoadedHead {
        ns,
        below,
        changed: changes > 0 || !found.is_empty(),
    })
}

/// Applies a layer's changes and files to its parent's namespace; returns how many changes there were, and the files. Refused
/// where a sealed layer's files are not what they were when it was sealed.
fn replay(shared: &Shared, catalog: &Catalog, id: LayerId, ns: &mut Namespace) -> Result<(usize, Vec<Found>)> {
    let body = catalog.body(id)?;
    let changes = codec::apply_changes(&shared.db, body, ns)?;
    let found = match catalog.layer(id)?.has_sums {
        true => sealed_files(shared, catalog, id, ns)?,
        false => shared.layers.open(body).scan()?,
    };
    apply_files(body, &found, ns);
    Ok((changes, found))
}

/// The files of a layer as they were kept. Its directory must have them, except while it is being merged; a pack tells of itself when it
/// is read.
fn sealed_files(shared: &Shared, catalog: &Catalog, id: LayerId, ns: &Namespace) -> Result<Vec<Found>> {
    let body = catalog.body(id)?;
    let kept = parts::kept(&shared.db, body)?;
    if catalog.layer(id)?.pack.is_none() && !catalog.is_changing(id) {
        let found = shared.layers.open(body).scan()?;
        if let Some(difference) = parts::differences(&kept, &found, ns).first() {
            let what = format!("layer {id}: {difference}");
            return Err(Error::Damaged { what });
        }
    }
    Ok(parts::found(&kept))
}

/// Gives the files of a namespace the blocks that a layer's backing files have of them.
pub fn apply_files(id: LayerId, found: &[Found], ns: &mut Namespace) {
    for file in found {
        if let Ok(inode) = ns.inode(file.ino) {
            let inode = with_blocks(inode, id, file);
            ns.apply(Change::SetInode(file.ino, inode));
        }
    }
}

/// The inode as the layer's backing file has it.
fn with_blocks(inode: &Inode, layer: LayerId, file: &Found) -> Inode {
    let mut inode = inode.clone();
    let floor = file.floor.unwrap_or(inode.size).min(file.stat.size);
    if floor == 0 {
        inode.parts.clear();
    }
    inode.parts.push_back(PartRef { layer, floor });
    inode.size = file.stat.size;
    inode.mtime = file.stat.mtime;
    inode.ctime = inode.ctime.max(file.stat.mtime);
    inode
}

/// Ends inodes without a name.
fn end_orphans(shared: &Shared, id: LayerId, below: &Namespace, ns: &mut Namespace) -> Result<()> {
    let orphans: Vec<Change> = ns
        .inodes()
        .filter(|(_, inode)| inode.nlink == 0)
        .map(|(ino, _)| Change::DropInode(ino))
        .collect();
    if !orphans.is_empty() {
        let mut batch = WriteBatch::default();
        codec::put_changes(&shared.db, &mut batch, id, below, &orphans);
        shared.db.write(batch)?;
        shared.disk.at("orphans: dropped");
        orphans.into_iter().for_each(|change| ns.apply(change));
    }
    Ok(())
}

/// Removes blocks without an inode.
fn sweep_blocks(shared: &Shared, id: LayerId, found: &[Found], ns: &Namespace) -> Result<()> {
    let layer = shared.layers.open(id);
    let has_blocks = |file: &Found| ns.inode(file.ino).is_ok_and(|inode| inode.kind == Kind::File);
    let gone: Vec<_> = found.iter().filter(|file| !has_blocks(file)).collect();
    if gone.is_empty() {
        return Ok(());
    }
    // After a power cut a name that came back must find its blocks.
    shared.db.sync().map_err(Error::io("sync the store's database"))?;
    for file in gone {
        tracing::info!(layer = %id, ino = %file.ino, "sweeping blocks of a file that is gone");
        layer
            .remove(file.ino)
            .map_err(Error::io(format!("remove a swept file of layer {id}")))?;
    }
    Ok(())
}
