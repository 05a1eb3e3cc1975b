//! Whether each sealed block is what it was: reads all of them.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use super::{Checker, Finding, layers};
use crate::disk::DiskFile;
use crate::error::{Error, Result};
use crate::layer::Layer;
use crate::merge;
use crate::namespace::Namespace;
use crate::pack::{FRAME_BLOCKS, Pack};
use crate::packs::PackFile;
use crate::parts::{self, Kept, Pace};
use crate::sums::{self, CHUNK, CHUNK_BLOCKS, Chunk};
use crate::types::{BLOCK, Ino, LayerId};

/// Most branches and snapshots that are named of those that stand on a layer.
const NAMES_MAX: usize = 5;

impl Checker<'_> {
    /// Reads all blocks of a layer that have checksums and that somebody can read. Nobody has to wait meanwhile; a layer that was destroyed in
    /// between is none.
    pub(super) fn blocks(&mut self, id: LayerId, pace: Pace) {
        let pack = match self.catalog.layer(id) {
            Ok(record) if record.has_sums => record.pack,
            _ => return,
        };
        let place = match pack {
            Some(pack) => format!("{}, packs/{pack}", layers::place(id)),
            None => layers::place(id),
        };
        // One that can't be used was found when its files were looked for.
        if pack.is_some_and(|pack| self.layers.sealed.packs.open_anew(pack).is_err()) {
            return;
        }
        let body = self.body(id);
        let kept = match parts::kept(self.db, body) {
            Ok(kept) => kept,
            Err(error) => return self.found(Finding::damage(place, error.to_string())),
        };
        let layer = self.layers.open(body);
        let mut damaged = Vec::new();
        for (ino, kept) in kept {
            match self.damaged_blocks(id, &layer, ino, &kept, pace) {
                Ok(blocks) if blocks.is_empty() => {}
                Ok(blocks) => {
                    let users = self.users_of(id, ino, &blocks);
                    damaged.push((ino, format!("{}; {users}", told(&blocks))));
                }
                Err(error) => damaged.push((ino, format!("it can't be read: {error}"))),
            }
        }
        let is_there = self.live.is_none_or(|store| store.catalog().layer(id).is_ok());
        for (ino, what) in damaged.into_iter().filter(|_| is_there) {
            let what = format!("{}: {what}", self.path_of(id, ino));
            self.found(Finding::damage(&*place, what));
        }
    }

    fn damaged_blocks(&self, id: LayerId, layer: &Layer, ino: Ino, kept: &Kept, pace: Pace) -> Result<Vec<u64>> {
        let chunks = self.layers.sealed.chunks(layer.id, ino)?;
        let chunks = match self.merging_above(id) {
            Some(newer) => self.seen_through(newer, ino, kept, chunks)?,
            None => chunks,
        };
        if chunks.is_empty() {
            return Ok(Vec::new());
        }
        let failed = || Error::io(format!("the backing file {ino}"));
        let source = match self.catalog.layer(id)?.pack {
            Some(pack) => Blocks::Packed(self.layers.sealed.packs.open(pack)?),
            None => Blocks::Plain(layer.open_file(ino).map_err(failed())?),
        };
        let (mut damaged, mut buf) = (Vec::new(), vec![0; CHUNK as usize]);
        for (number, chunk) in chunks {
            let bytes = match &source {
                Blocks::Plain(file) => self
                    .compare(file, number, &chunk, &mut buf, &mut damaged)
                    .map_err(failed())?,
                Blocks::Packed(pack) => compare_packed(pack, number, &chunk, &mut damaged)?,
            };
            // There is nothing to end: who asked for it has to wait for it.
            let _asked_to_end = pace(bytes);
        }
        Ok(damaged)
    }

    /// The layer that this one is being merged with, if it is.
    fn merging_above(&self, id: LayerId) -> Option<LayerId> {
        self.catalog.layer(id).ok().filter(|record| record.merging)?;
        let mut layers = self.catalog.layers();
        layers
            .find(|(_, record)| record.parent == Some(id))
            .map(|(above, _)| above)
    }

    /// Of the blocks of a layer that is being merged those that the layer above does not have: the others need not be what they were.
    fn seen_through(
        &self,
        newer: LayerId,
        ino: Ino,
        kept: &Kept,
        chunks: BTreeMap<u64, Chunk>,
    ) -> Result<BTreeMap<u64, Chunk>> {
        if !self.namespaces.get(&newer).is_some_and(|ns| parts::is_file(ns, ino)) {
            return Ok(BTreeMap::new());
        }
        let body = self.body(newer);
        let Some(above) = parts::kept(self.db, body)?.get(&ino).copied() else {
            return Ok(chunks);
        };
        let limit = merge::floor_above(kept, &above).div_ceil(BLOCK);
        let above = self.layers.sealed.chunks(body, ino)?;
        let mut seen: BTreeMap<u64, Chunk> = BTreeMap::new();
        for block in merge::inherited(&chunks, &above, limit) {
            let (number, inside) = (block / CHUNK_BLOCKS, block % CHUNK_BLOCKS);
            if let Some(sum) = chunks.get(&number).and_then(|chunk| chunk.sum(inside)) {
                seen.entry(number).or_default().push(inside, sum);
            }
        }
        Ok(seen)
    }

    /// Returns how many bytes were read.
    fn compare(
        &self,
        file: &DiskFile,
        number: u64,
        chunk: &Chunk,
        buf: &mut [u8],
        damaged: &mut Vec<u64>,
    ) -> io::Result<u64> {
        let blocks: Vec<(u64, u32)> = chunk.blocks().collect();
        for run in blocks.chunk_by(|(a, _), (b, _)| a + 1 == *b) {
            let buf = &mut buf[..run.len() * BLOCK as usize];
            let read = self.disk.read_at(file, buf, number * CHUNK + run[0].0 * BLOCK)?;
            buf[read..].fill(0);
            for ((block, sum), bytes) in run.iter().zip(buf.chunks(BLOCK as usize)) {
                if sums::difference(Some(*sum), bytes).is_some() {
                    damaged.push(number * CHUNK_BLOCKS + block);
                }
            }
        }
        Ok(blocks.len() as u64 * BLOCK)
    }

    /// A file as people know it: its path in the layer's tree.
    fn path_of(&self, id: LayerId, ino: Ino) -> String {
        let path = self.namespaces.get(&id).and_then(|ns| path(ns, ino));
        path.unwrap_or_else(|| format!("the file {ino}"))
    }

    /// Who can come across damaged blocks of a file in a layer.
    fn users_of(&self, id: LayerId, ino: Ino, blocks: &[u64]) -> String {
        let sees = |top| self.below(top).contains(&id) && blocks.iter().any(|block| self.sees(top, id, ino, *block));
        let branch = |of| self.catalog.timelines().find(|(timeline, _)| *timeline == of);
        let snapshots = self.catalog.snapshots().filter(|(.., record)| sees(record.layer));
        let snapshots = snapshots.filter_map(|(of, tag, _)| Some(format!("{}@{tag}", branch(of)?.1.name)));
        let heads = self.catalog.timelines().filter(|(_, record)| sees(record.head));
        let mut names: Vec<String> = heads
            .map(|(_, record)| record.name.to_string())
            .chain(snapshots)
            .collect();
        let more = names.len().saturating_sub(NAMES_MAX);
        names.truncate(NAMES_MAX);
        match (names.is_empty(), more) {
            (true, _) => "nobody reads it".into(),
            (_, 0) => format!("part of {}", names.join(", ")),
            (_, more) => format!("part of {} and {more} more", names.join(", ")),
        }
    }

    /// Whether a view of the layer `top` shows a block of the layer `id` below it, as far as checksums tell what lies in between: of a head, which
    /// has none, it is taken to show it.
    fn sees(&self, top: LayerId, id: LayerId, ino: Ino, block: u64) -> bool {
        let mut at = top;
        while at != id {
            let Ok(record) = self.catalog.layer(at) else {
                return false;
            };
            if self.namespaces.get(&at).is_some_and(|ns| !parts::is_file(ns, ino)) {
                return false;
            }
            let body = self.body(at);
            let kept = parts::kept(self.db, body).ok().filter(|_| record.has_sums);
            if let Some(kept) = kept.and_then(|kept| kept.get(&ino).copied()) {
                let is_cut_off = kept.floor.unwrap_or(kept.size).min(kept.size) <= block * BLOCK;
                let has_it = self.layers.sealed.has_block(body, ino, block);
                if is_cut_off || has_it.unwrap_or(false) {
                    return false;
                }
            }
            match record.parent {
                Some(parent) => at = parent,
                None => return false,
            }
        }
        true
    }
}

/// Where the blocks of a file are read from.
enum Blocks {
    Plain(DiskFile),
    Packed(Arc<Pack<PackFile>>),
}

/// As [`Checker::compare`]; of a frame that can't be read all blocks are damaged.
fn compare_packed(pack: &Pack<PackFile>, number: u64, chunk: &Chunk, damaged: &mut Vec<u64>) -> Result<u64> {
    let blocks: Vec<(u64, u32)> = chunk.blocks().collect();
    for (frame, blocks) in chunk.frames().iter().zip(blocks.chunks(FRAME_BLOCKS)) {
        let bytes = match pack.frame(*frame, blocks.len()) {
            Err(Error::Damaged { .. }) => None,
            bytes => Some(bytes?),
        };
        for (nth, (block, sum)) in blocks.iter().enumerate() {
            let from = nth * BLOCK as usize;
            let bytes = bytes.as_ref().map(|bytes| &bytes[from..from + BLOCK as usize]);
            if bytes.is_none_or(|bytes| sums::difference(Some(*sum), bytes).is_some()) {
                damaged.push(number * CHUNK_BLOCKS + block);
            }
        }
    }
    Ok(blocks.len() as u64 * BLOCK)
}

fn path(ns: &Namespace, ino: Ino) -> Option<String> {
    let parent = ns.inode(ino).ok()?.parent;
    let (name, ..) = ns.names(parent, 0).find(|(.., named)| *named == ino)?;
    let name = name.to_string_lossy();
    match parent {
        Ino::ROOT => Some(name.into_owned()),
        dir => Some(format!("{}/{name}", path(ns, dir)?)),
    }
}

fn told(blocks: &[u64]) -> String {
    match blocks {
        [one] => format!("block {one} is not what was sealed"),
        [first, ..] => format!("{} blocks are not what was sealed, the first is {first}", blocks.len()),
        [] => String::new(),
    }
}
