//! Whether each sealed block is what it was: reads all of them.

use std::io;

use super::{Checker, Finding, layers};
use crate::catalog::LayerRecord;
use crate::disk::DiskFile;
use crate::layer::Layer;
use crate::namespace::{Namespace, codec};
use crate::parts::Pace;
use crate::sums::{self, CHUNK, CHUNK_BLOCKS, Chunk};
use crate::types::{BLOCK, Ino, LayerId};

/// Most branches and snapshots that are named of those that stand on a layer.
const NAMES_MAX: usize = 5;

impl Checker<'_> {
    /// Reads all blocks of a layer that have checksums. Nobody has to wait meanwhile; a layer that was destroyed in between is none.
    pub(super) fn blocks(&mut self, id: LayerId, pace: Pace) {
        // Of a layer that is being merged the one above has all that anybody reads.
        let is_whole = |record: &LayerRecord| record.has_sums && !record.merging;
        if !self.catalog.layer(id).is_ok_and(is_whole) {
            return;
        }
        let layer = self.layers.open(self.body(id));
        let Ok(found) = layer.scan() else {
            // Told by what was found of its directory.
            return;
        };
        let mut damaged = Vec::new();
        for file in found {
            match self.damaged_blocks(&layer, file.ino, pace) {
                Ok(blocks) if blocks.is_empty() => {}
                Ok(blocks) => damaged.push((file.ino, told(&blocks))),
                Err(error) => damaged.push((file.ino, format!("it can't be read: {error}"))),
            }
        }
        let is_there = self.live.is_none_or(|store| store.catalog().layer(id).is_ok());
        for (ino, what) in damaged.into_iter().filter(|_| is_there) {
            let what = format!("{}: {what}; {}", self.path_of(id, ino), self.users_of(id));
            self.found(Finding::damage(layers::place(id), what));
        }
    }

    fn damaged_blocks(&self, layer: &Layer, ino: Ino, pace: Pace) -> io::Result<Vec<u64>> {
        let file = layer.open_file(ino)?;
        let (mut damaged, mut buf) = (Vec::new(), vec![0; CHUNK as usize]);
        let compared = codec::each_sums(self.db, layer.id, ino, |number, chunk| {
            let read = self.compare(&file, number, &chunk, &mut buf, &mut damaged);
            let read = read.map_err(crate::Error::io("read"))?;
            // There is nothing to end: who asked for it has to wait for it.
            let _asked_to_end = pace(read);
            Ok(())
        });
        compared.map_err(io::Error::from)?;
        Ok(damaged)
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

    /// Who can come across what is wrong with a layer.
    fn users_of(&self, id: LayerId) -> String {
        let stands_on_it = |top| self.below(top).contains(&id);
        let branch = |of| self.catalog.timelines().find(|(timeline, _)| *timeline == of);
        let snapshots = self
            .catalog
            .snapshots()
            .filter(|(.., record)| stands_on_it(record.layer));
        let snapshots = snapshots.filter_map(|(of, tag, _)| Some(format!("{}@{tag}", branch(of)?.1.name)));
        let heads = self.catalog.timelines().filter(|(_, record)| stands_on_it(record.head));
        let mut names: Vec<String> = heads
            .map(|(_, record)| record.name.to_string())
            .chain(snapshots)
            .collect();
        let more = names.len().saturating_sub(NAMES_MAX);
        names.truncate(NAMES_MAX);
        match more {
            0 => format!("part of {}", names.join(", ")),
            more => format!("part of {} and {more} more", names.join(", ")),
        }
    }
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
