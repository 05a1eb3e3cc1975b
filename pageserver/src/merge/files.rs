//! Merging layers that have backing files: these go to the body that stays.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;

use rocksdb::WriteBatch;

use super::{Both, Merger, Records, blocks, inherited};
use crate::catalog::Body;
use crate::disk::DiskFile;
use crate::error::{Error, Result};
use crate::layer::HALF_MADE;
use crate::namespace::codec;
use crate::parts::{self, Kept, Pace};
use crate::sealed::Form;
use crate::sums::{self, CHUNK, CHUNK_BLOCKS, Chunk};
use crate::types::{BLOCK, Ino, LayerId};

impl Merger<'_> {
    pub fn merge_files(&self, pace: Pace) -> Result<bool> {
        let mut records = BTreeMap::new();
        for ino in self.inos() {
            let Some(_alone) = self.store.layers_alone() else {
                return Ok(false);
            };
            if !self.store.is_pair(self.pair) {
                return Ok(true);
            }
            let Some(record) = self.file(ino, pace)? else {
                return Ok(false);
            };
            records.insert(ino, record);
        }
        self.store.at("merge: files done");
        self.end(&records)
    }

    /// Has everybody see one layer, and removes what is left of the body that ends.
    fn end(&self, records: &BTreeMap<Ino, Records>) -> Result<bool> {
        let (store, pair) = (self.store, self.pair);
        let Some(alone) = store.layers_alone() else {
            return Ok(false);
        };
        let dir = store.shared.layers.path(pair.stays);
        let synced = self.disk().sync_dir(&dir);
        synced.map_err(Error::io(format!("sync {}", dir.display())))?;
        if !self.commit(records, Form::Plain)? {
            return Ok(true);
        }
        let removed = self.remove(&[Body {
            id: pair.ends,
            form: Form::Plain,
        }]);
        drop(alone);
        self.finish(removed);
        Ok(true)
    }

    fn path(&self, body: LayerId, ino: Ino) -> PathBuf {
        self.store.shared.layers.path(body).join(ino.to_string())
    }

    /// Brings one file to where it is to be; `None` when `pace` has ended it.
    fn file(&self, ino: Ino, pace: Pace) -> Result<Option<Records>> {
        let failed = || {
            Error::io(format!(
                "merge the file {ino} of the layers {} and {}",
                self.pair.older, self.pair.newer
            ))
        };
        if !parts::is_file(&self.ns, ino) {
            // Nobody can reach it, and from the commit on no record would tell of it.
            let removed = self.disk().remove(&self.path(self.pair.stays, ino));
            return removed.map(|()| Some(Records::Drop)).map_err(failed());
        }
        let (body, kept) = match (self.older.get(&ino), self.newer.get(&ino)) {
            (Some(older), Some(newer)) => {
                let both = self.both(ino, *older, *newer)?;
                return self.mix(ino, &both, pace);
            }
            (Some(older), None) => (self.pair.older_body.id, self.as_in_newer(ino, *older)),
            (None, Some(newer)) => (self.pair.newer_body.id, *newer),
            (None, None) => return Ok(Some(Records::Drop)),
        };
        if body == self.pair.stays {
            return Ok(Some(Records::Stay(kept)));
        }
        self.name(body, ino).map_err(failed())?;
        Ok(Some(Records::Move(kept)).filter(|_| pace(0)))
    }

    /// Gives a backing file of one body the same name in the one that stays.
    fn name(&self, body: LayerId, ino: Ino) -> io::Result<()> {
        let (from, to) = (self.path(body, ino), self.path(self.pair.stays, ino));
        if from == to || self.disk().is_same(&from, &to)? {
            return Ok(());
        }
        let new = to.with_extension(&HALF_MADE[1..]);
        self.disk().remove(&new)?;
        self.disk().link(&from, &new)?;
        self.disk().rename(&new, &to)
    }

    /// A file that both layers have blocks of.
    fn mix(&self, ino: Ino, both: &Both, pace: Pace) -> Result<Option<Records>> {
        let failed = || Error::io(format!("merge the file {ino} into layer {}", self.pair.newer));
        let (older_body, newer_body) = (self.pair.older_body.id, self.pair.newer_body.id);
        let size = both.kept.size;
        let inherited: Vec<u64> = inherited(&both.older, &both.newer, both.limit).collect();
        let last = size / BLOCK;
        let ends_early = !size.is_multiple_of(BLOCK) && inherited.contains(&last);
        let copy = Copy {
            merger: self,
            ino,
            size,
        };
        let newer_blocks: Vec<u64> = blocks(&both.newer).map(|(block, _)| block).collect();
        let paths = [older_body, newer_body].map(|body| self.path(body, ino));
        let (base, copied) = if self.disk().is_same(&paths[0], &paths[1]).map_err(failed())? {
            // Done before this was interrupted.
            (self.pair.stays, Copied::All(None))
        } else if ends_early || inherited.len() <= newer_blocks.len() {
            let (older, newer) = (self.open(older_body, ino, false)?, self.open(newer_body, ino, true)?);
            (
                newer_body,
                copy.blocks((&older, &both.older), &newer, &inherited, pace)?,
            )
        } else {
            let (older, newer) = (self.open(older_body, ino, true)?, self.open(newer_body, ino, false)?);
            copy.uncover(&older, &both.older, both.limit)?;
            (
                older_body,
                copy.blocks((&newer, &both.newer), &older, &newer_blocks, pace)?,
            )
        };
        let Copied::All(tail) = copied else {
            return Ok(None);
        };
        let file = self.open(base, ino, true)?;
        self.settle(&file, &both.kept).map_err(failed())?;
        if let Some(sum) = tail.filter(|_| ends_early) {
            self.keep_last(ino, &both.newer, (last, sum))?;
        }
        self.name(base, ino).map_err(failed())?;
        Ok(Some(Records::Mix(both.kept, both.limit)))
    }

    /// Takes from the older layer's files what nobody sees of them, which needs no room; whether there was any.
    pub fn empty(&self) -> Result<bool> {
        let mut was_any = false;
        for (ino, older) in &self.older {
            let Some(_alone) = self.store.layers_alone() else {
                return Ok(was_any);
            };
            let Some(newer) = self.newer.get(ino).filter(|_| self.store.is_pair(self.pair)) else {
                continue;
            };
            let failed = || Error::io(format!("punch the file {ino} of layer {}", self.pair.older));
            let paths = [self.pair.older_body.id, self.pair.newer_body.id].map(|body| self.path(body, *ino));
            // One file of both has newer's blocks, too.
            if self.disk().is_same(&paths[0], &paths[1]).map_err(failed())? {
                continue;
            }
            let both = self.both(*ino, *older, *newer)?;
            let seen: BTreeSet<u64> = inherited(&both.older, &both.newer, both.limit).collect();
            // What flattening has copied is still read where it was by views that were there before.
            let newers: BTreeMap<u64, u32> = blocks(&both.newer).collect();
            let is_copied = |(block, sum): &(u64, u32)| newers.get(block) == Some(sum);
            let unseen = blocks(&both.older).filter(|block| !is_copied(block));
            let unseen: Vec<u64> = unseen
                .map(|(block, _)| block)
                .filter(|block| !seen.contains(block))
                .collect();
            let file = self.open(self.pair.older_body.id, *ino, true)?;
            self.punch(&file, &unseen).map_err(failed())?;
            was_any |= !unseen.is_empty();
        }
        Ok(was_any)
    }

    fn punch(&self, file: &DiskFile, blocks: &[u64]) -> io::Result<()> {
        let mut runs = blocks.chunk_by(|a, b| a + 1 == *b);
        runs.try_for_each(|run| self.disk().punch(file, run[0] * BLOCK, run.len() as u64 * BLOCK))
    }

    /// Keeps the checksum of a last block that ends earlier in newer than it did in older, as a block of newer, which has it now: before
    /// older's file becomes the same.
    fn keep_last(&self, ino: Ino, newers: &BTreeMap<u64, Chunk>, (last, sum): (u64, u32)) -> Result<()> {
        let shared = &self.store.shared;
        let number = last / CHUNK_BLOCKS;
        let mut chunk = Chunk::default();
        // The file's last block is the chunk's.
        for (block, sum) in newers.get(&number).iter().flat_map(|chunk| chunk.blocks()) {
            chunk.push(block, sum);
        }
        chunk.push(last % CHUNK_BLOCKS, sum);
        let (body, mut batch) = (self.pair.newer_body.id, WriteBatch::default());
        codec::put_sums(&shared.db, &mut batch, body, ino, number, &chunk);
        shared.sealed.reform(body, Form::Plain, || shared.db.write(batch))?;
        self.store.sync_db()
    }

    /// Makes a merged backing file what is kept of it, and durable.
    fn settle(&self, file: &DiskFile, kept: &Kept) -> io::Result<()> {
        if let Some(floor) = kept.floor {
            self.disk().set_floor(file, floor)?;
        }
        self.disk().set_mtime(file, kept.mtime)?;
        self.disk().sync_data(file)
    }

    fn open(&self, body: LayerId, ino: Ino, write: bool) -> Result<DiskFile> {
        let path = self.path(body, ino);
        let opened = self.disk().open(&path, write);
        opened.map_err(Error::io(format!("open {}", path.display())))
    }
}

/// Copies blocks between the backing files of a file.
struct Copy<'a> {
    merger: &'a Merger<'a>,
    ino: Ino,
    /// The file's in the newer layer.
    size: u64,
}

enum Copied {
    /// And the checksum of the last block as it is now, if it ends early.
    All(Option<u32>),
    /// Until `pace` has ended it.
    Some,
}

impl Copy<'_> {
    /// Copies blocks, verified.
    fn blocks(
        &self,
        (from, sums): (&DiskFile, &BTreeMap<u64, Chunk>),
        to: &DiskFile,
        blocks: &[u64],
        pace: Pace,
    ) -> Result<Copied> {
        let failed = || {
            Error::io(format!(
                "copy the file {} into layer {}",
                self.ino, self.merger.pair.newer
            ))
        };
        let (mut buf, mut tail) = (vec![0; CHUNK as usize], None);
        for run in blocks
            .chunk_by(|a, b| a + 1 == *b)
            .flat_map(|run| run.chunks(CHUNK_BLOCKS as usize))
        {
            let buf = &mut buf[..run.len() * BLOCK as usize];
            let offset = run[0] * BLOCK;
            let read = self.merger.disk().read_at(from, buf, offset).map_err(failed())?;
            buf[read..].fill(0);
            for (block, bytes) in run.iter().zip(buf.chunks(BLOCK as usize)) {
                self.verify(sums, *block, bytes)?;
            }
            let len = (self.size.saturating_sub(offset)).min(buf.len() as u64) as usize;
            if len < buf.len() {
                buf[len..].fill(0);
                tail = buf.chunks(BLOCK as usize).next_back().map(sums::of);
            }
            let room = &self.merger.store.shared.room;
            room.take_to_free(len as u64).map_err(failed())?;
            let (_, written) = self.merger.disk().write_at(to, &buf[..len], offset);
            written.map_err(failed())?;
            if !pace(len as u64) {
                return Ok(Copied::Some);
            }
        }
        Ok(Copied::All(tail))
    }

    fn verify(&self, sums: &BTreeMap<u64, Chunk>, block: u64, bytes: &[u8]) -> Result<()> {
        let chunk = sums.get(&(block / CHUNK_BLOCKS));
        let sum = chunk.and_then(|chunk| chunk.sum(block % CHUNK_BLOCKS));
        match sums::difference(sum, bytes) {
            None => Ok(()),
            Some(difference) => Err(Error::Damaged {
                what: format!("block {block} of the file {} {difference}", self.ino),
            }),
        }
    }

    /// Takes from older's file what newer's blocks do not cover and nobody sees, and gives it newer's size.
    fn uncover(&self, older: &DiskFile, olders: &BTreeMap<u64, Chunk>, limit: u64) -> Result<()> {
        let failed = || Error::io(format!("cut the file {} of layer {}", self.ino, self.merger.pair.older));
        let unseen: Vec<u64> = blocks(olders)
            .map(|(block, _)| block)
            .filter(|block| *block >= limit)
            .collect();
        self.merger.punch(older, &unseen).map_err(failed())?;
        self.merger.disk().set_len(older, self.size).map_err(failed())
    }
}
