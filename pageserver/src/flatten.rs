//! Flattening: a file that was written between many snapshots costs a read no more than one that was not.
//!
//! Each layer that has a name of its own stays, and a file that is written all the time has blocks in each: as many backing files to keep open, as
//! many records to ask for its checksums. So of so many layers that stay, one upon the other, a *window*, the newest gets those blocks,
//! too, that its files show of the ones below it in the window:
//!
//! ```text
//!   before    base <── … <── a <── b <── … <── top <── …        a file of 64 parts
//!   after     base <── … <── a <── b <── … <── top <── …        top's part answers for what the other 63 did
//! ```
//!
//! Nobody can tell: a block that a layer inherits may be added to it at any time, since whoever sees it there has seen the same below. So what an
//! interruption leaves is as good as what was there before, and is done once more; while it goes on the layer is marked, since its files
//! need not be what was kept of them. What is copied is verified first. In all at most what was written since the window's beginning is
//! written twice; when the names in the window go, merging finds the copies hidden and gives their space back.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use rocksdb::WriteBatch;

use crate::block_map::HOLE;
use crate::catalog::{Catalog, Entry, Flat, LayerRecord};
use crate::disk::Wait;
use crate::error::{Error, Result};
use crate::file::{Content, File};
use crate::layer::{Backing, Found, Layer};
use crate::load;
use crate::namespace::{Inode, Namespace, codec};
use crate::parts::{self, Kept, Pace};
use crate::sealed::Form;
use crate::store::Store;
use crate::sums::{self, CHUNK, CHUNK_BLOCKS, Chunk};
use crate::types::{BLOCK, Ino, Kind, LayerId};

/// A file is worth it when the blocks that it shows are spread over as large a part of a window's layers.
const SPREAD_MIN: usize = 4;

/// Such a part of the disk must be free, since copies take room from those who write.
const PLENTY: u64 = 10;

/// A layer that is flattened.
struct Flattening<'a> {
    store: &'a Store,
    top: LayerId,
    layer: Arc<Layer>,
    /// The bodies below it in its window.
    window: BTreeSet<LayerId>,
    ns: Namespace,
    /// The files that it has.
    kept: BTreeMap<Ino, Kept>,
}

impl Drop for Flattening<'_> {
    fn drop(&mut self) {
        // What was written was synced, or is written once more.
        self.layer.let_go();
    }
}

/// A file of it.
struct Spread<'a> {
    ino: Ino,
    inode: &'a Inode,
    file: File,
    /// The blocks to be copied, by chunk.
    inherited: BTreeMap<u64, Vec<u64>>,
}

impl Store {
    /// Flattens the oldest layer with a window of `every` layers, while the disk has plenty of room. False when there is none, or
    /// `pace` has ended it.
    pub(crate) fn flatten_next(&self, every: usize, pace: Pace) -> Result<bool> {
        let chosen = self.catalog().to_be_flattened(every, |id| self.aside().has(id));
        let Some((top, window)) = chosen else {
            return Ok(false);
        };
        let is_begun = |record: &LayerRecord| record.flat == Flat::Begun;
        let (space, is_begun) = (self.space()?, self.catalog().layer(top).is_ok_and(is_begun));
        if space.available < space.total / PLENTY && !is_begun {
            return Ok(false);
        }
        let flattened = self.flatten(top, window, every, pace);
        self.tended(top, "a layer is not flattened", flattened)
    }

    fn flatten(&self, top: LayerId, window: Vec<LayerId>, every: usize, pace: Pace) -> Result<bool> {
        self.set_flat(top, Flat::Begun)?;
        self.at("flatten: marked");
        let (ns, body, window) = {
            let mut catalog = self.catalog();
            let window: Result<BTreeSet<LayerId>> = window.into_iter().map(|id| catalog.body(id)).collect();
            (
                load::sealed(&self.shared, &mut catalog, Some(top))?,
                catalog.body(top)?,
                window?,
            )
        };
        let flattening = Flattening {
            store: self,
            top,
            layer: self.shared.layers.open(body),
            window,
            ns,
            kept: parts::kept(&self.shared.db, body)?,
        };
        for (ino, inode) in flattening.ns.inodes().filter(|(_, inode)| inode.kind == Kind::File) {
            match flattening.file(ino, inode, every, pace) {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                Err(error) if error.is_full() => {
                    tracing::warn!(layer = %top, %error, "files stay spread over many layers");
                    break;
                }
                Err(error @ Error::Damaged { .. }) => {
                    tracing::error!(layer = %top, %ino, %error, "a file stays spread over many layers");
                }
                Err(error) => return Err(error),
            }
        }
        if !flattening.remove_unknown(pace)? {
            return Ok(false);
        }
        self.set_flat(top, Flat::Done)?;
        tracing::info!(layer = %top, "a layer is flattened");
        Ok(true)
    }

    fn set_flat(&self, top: LayerId, flat: Flat) -> Result<()> {
        let mut catalog = self.catalog();
        let mut record = catalog.layer(top)?.clone();
        record.flat = flat;
        let entries = vec![Entry::Layer(top, Some(record))];
        catalog.commit(&self.shared.db, WriteBatch::default(), entries)?;
        drop(catalog);
        self.sync_db()
    }
}

impl Catalog {
    /// The oldest layer with so many below it that stay and are not flattened, or the one that was begun with, and which they are.
    fn to_be_flattened(&self, every: usize, is_aside: impl Fn(LayerId) -> bool) -> Option<(LayerId, Vec<LayerId>)> {
        let heads: BTreeSet<LayerId> = self.timelines().map(|(_, record)| record.head).collect();
        let named: BTreeSet<LayerId> = self.snapshots().map(|(.., record)| record.layer).collect();
        let mut children: BTreeMap<LayerId, usize> = BTreeMap::new();
        for parent in self.layers().filter_map(|(_, record)| record.parent) {
            *children.entry(parent).or_default() += 1;
        }
        let stays = |id: LayerId| named.contains(&id) || children.get(&id).is_none_or(|count| *count > 1);
        let is_ready = |id: LayerId, record: &LayerRecord| {
            record.has_sums && record.pack.is_none() && !heads.contains(&id) && !self.is_changing(id)
        };
        // A child's number is greater than its parent's.
        let mut heights: BTreeMap<LayerId, usize> = BTreeMap::new();
        let mut chosen = None;
        for (id, record) in self.layers() {
            if record.flat == Flat::Begun && !is_aside(id) {
                return Some((id, self.window(id)));
            }
            let below = record.parent.and_then(|parent| heights.get(&parent)).copied();
            let height = match record.flat {
                Flat::Done => 0,
                _ => below.unwrap_or(0) + usize::from(stays(id)),
            };
            heights.insert(id, height);
            if chosen.is_none() && height >= every && stays(id) && is_ready(id, record) && !is_aside(id) {
                chosen = Some(id);
            }
        }
        chosen.map(|id| (id, self.window(id)))
    }

    /// The layers below one, down to the last that was flattened, without that.
    fn window(&self, top: LayerId) -> Vec<LayerId> {
        let below = |id: &LayerId| {
            let parent = self.layer(*id).ok()?.parent?;
            (self.layer(parent).ok()?.flat != Flat::Done).then_some(parent)
        };
        std::iter::successors(below(&top), below).collect()
    }
}

impl Flattening<'_> {
    /// Copies what a file inherits from the window, if it is spread over it; false when `pace` has ended it.
    fn file(&self, ino: Ino, inode: &Inode, every: usize, pace: Pace) -> Result<bool> {
        let sealed = &self.store.shared.sealed;
        let parts = inode.parts.iter().map(|part| sealed.body(part.layer));
        let spread_min = (every / SPREAD_MIN).max(1);
        if parts.filter(|body| self.window.contains(body)).count() < spread_min {
            return Ok(true);
        }
        let layers = &self.store.shared.layers;
        let file = File::new(ino, inode, |id| layers.open(sealed.body(id)).backing(ino, false));
        let failed = || Error::io(format!("read the file {ino} of layer {}", self.top));
        // The namespace may not know yet what an earlier attempt has given the layer.
        let own = sealed.chunks(self.layer.id, ino)?;
        let inherited = {
            let content = file.shared().map_err(failed())?;
            self.inherited(&content, &own, spread_min)
        };
        if inherited.is_empty() {
            return Ok(true);
        }
        let spread = Spread {
            ino,
            inode,
            file,
            inherited,
        };
        self.take_in(&spread, pace)
    }

    /// The blocks that the window answers for, by chunk, if they are in so many of its layers. The file's oldest part has what was never
    /// written since, and stays as it is; a last block that ends early stays where it is, too.
    fn inherited(&self, content: &Content, own: &BTreeMap<u64, Chunk>, spread_min: usize) -> BTreeMap<u64, Vec<u64>> {
        let is_own = |block: u64| {
            let chunk = own.get(&(block / CHUNK_BLOCKS));
            chunk.is_some_and(|chunk| chunk.sum(block % CHUNK_BLOCKS).is_some())
        };
        let is_in_window: Vec<bool> = content
            .parts
            .iter()
            .enumerate()
            .map(|(slot, part)| slot > 0 && self.window.contains(&part.backing.layer()))
            .collect();
        let (mut inherited, mut slots) = (BTreeMap::<u64, Vec<u64>>::new(), BTreeSet::new());
        for block in 0..content.size / BLOCK {
            let slot = content.slot(block);
            if slot != HOLE && is_in_window[usize::from(slot)] && !is_own(block) {
                slots.insert(slot);
                let chunk = inherited.entry(block / CHUNK_BLOCKS).or_default();
                chunk.push(block % CHUNK_BLOCKS);
            }
        }
        match slots.len() >= spread_min {
            true => inherited,
            false => BTreeMap::new(),
        }
    }

    /// Makes the inherited blocks the layer's own, and tells everybody.
    fn take_in(&self, spread: &Spread, pace: Pace) -> Result<bool> {
        let (store, ino) = (self.store, spread.ino);
        let content = spread.file.peek();
        let is_new = !self.kept.contains_key(&ino);
        let failed = || Error::io(format!("copy the file {ino} into layer {}", self.top));
        let mut chunks = BTreeMap::new();
        let mut to = None;
        for (number, blocks) in &spread.inherited {
            let Some(_alone) = store.wait_for_layers(pace) else {
                return Ok(false);
            };
            store.catalog().layer(self.top)?;
            let to = match &to {
                Some(to) => to,
                None if is_new => to.insert(self.create(ino, content.size).map_err(failed())?),
                None => to.insert(self.layer.backing(ino, true)),
            };
            let sums = match self.copy(&content, to, *number, blocks) {
                Ok(sums) => sums,
                Err(error) => {
                    self.take_back(to, &spread.inherited).map_err(failed())?;
                    return Err(error);
                }
            };
            chunks.insert(*number, self.with_own(ino, *number, sums)?);
            if !pace(blocks.len() as u64 * BLOCK) {
                return Ok(false);
            }
        }
        let Some(alone) = store.wait_for_layers(pace) else {
            return Ok(false);
        };
        if let Some(to) = &to {
            let file = to.file().map_err(failed())?;
            let synced = to.disk().set_mtime(&file, spread.inode.mtime).and_then(|()| to.sync());
            synced.map_err(failed())?;
        }
        store.at("flatten: file copied");
        let kept = is_new.then(|| self.layer.inspect(ino)).transpose().map_err(failed())?;
        self.commit(spread, &chunks, kept.as_ref())?;
        drop((alone, content));
        store.forget_bytes(&[self.top]);
        store.adopt(ino, self.layer.id, &spread.inherited);
        Ok(true)
    }

    /// The backing file of a file that the layer has nothing of. What a copy that was broken off has left is nobody's.
    fn create(&self, ino: Ino, size: u64) -> io::Result<Arc<Backing>> {
        self.layer.remove(ino)?;
        self.layer.create_sized_backing(ino, size)
    }

    /// Copies blocks of a chunk, verified; returns their checksums.
    fn copy(&self, content: &Content, to: &Arc<Backing>, number: u64, blocks: &[u64]) -> Result<Vec<(u64, u32)>> {
        let failed = || Error::io(format!("copy chunk {number} of a file into layer {}", self.top));
        let (mut buf, mut sums) = (vec![0; CHUNK as usize], Vec::new());
        for run in blocks.chunk_by(|a, b| a + 1 == *b) {
            let bytes = &mut buf[..run.len() * BLOCK as usize];
            let offset = number * CHUNK + run[0] * BLOCK;
            content.read(offset, bytes, Wait::Yes).map_err(failed())?;
            self.store.shared.room.take(bytes.len() as u64).map_err(failed())?;
            to.write_at(bytes, offset).1.map_err(failed())?;
            let blocks = run.iter().copied().zip(bytes.chunks(BLOCK as usize));
            sums.extend(blocks.map(|(block, bytes)| (block, sums::of(bytes))));
        }
        Ok(sums)
    }

    /// Gives the space of copies that nobody knows back.
    fn take_back(&self, to: &Backing, inherited: &BTreeMap<u64, Vec<u64>>) -> io::Result<()> {
        for (number, blocks) in inherited {
            for run in blocks.chunk_by(|a, b| a + 1 == *b) {
                let offset = number * CHUNK + run[0] * BLOCK;
                to.disk().punch(&*to.file()?, offset, run.len() as u64 * BLOCK)?;
            }
        }
        Ok(())
    }

    /// The layer's checksums of a chunk, with those of the blocks that were added.
    fn with_own(&self, ino: Ino, number: u64, added: Vec<(u64, u32)>) -> Result<Chunk> {
        let own = codec::read_sums(&self.store.shared.db, self.layer.id, ino, number)?.unwrap_or_default();
        let mut all: BTreeMap<u64, u32> = own.blocks().collect();
        all.extend(added);
        let mut chunk = Chunk::default();
        all.into_iter().for_each(|(block, sum)| chunk.push(block, sum));
        Ok(chunk)
    }

    /// Removes files that the layer did not have and that were not finished, now or by an earlier attempt: nobody knows them. False when
    /// `pace` has ended it.
    fn remove_unknown(&self, pace: Pace) -> Result<bool> {
        let Some(_alone) = self.store.wait_for_layers(pace) else {
            return Ok(false);
        };
        self.store.catalog().layer(self.top)?;
        let kept = parts::kept(&self.store.shared.db, self.layer.id)?;
        for found in self.layer.scan()? {
            if !kept.contains_key(&found.ino) {
                let removed = self.layer.remove(found.ino);
                removed.map_err(Error::io(format!(
                    "remove the file {} of layer {}",
                    found.ino, self.top
                )))?;
            }
        }
        let dir = self.store.shared.layers.path(self.layer.id);
        let synced = self.store.shared.disk.sync_dir(&dir);
        synced.map_err(Error::io(format!("sync {}", dir.display())))?;
        Ok(true)
    }

    fn commit(&self, spread: &Spread, chunks: &BTreeMap<u64, Chunk>, new: Option<&Found>) -> Result<()> {
        let (store, body) = (self.store, self.layer.id);
        let mut batch = WriteBatch::default();
        for (number, chunk) in chunks {
            codec::put_sums(&store.shared.db, &mut batch, body, spread.ino, *number, chunk);
        }
        if let Some(found) = new {
            codec::put_part(
                &store.shared.db,
                &mut batch,
                body,
                spread.ino,
                &Kept::of(found).encode(),
            );
        }
        let catalog = store.catalog();
        catalog.layer(self.top)?;
        let commit = || store.shared.db.write(batch);
        store.shared.sealed.reform(body, Form::Plain, commit)
    }
}
