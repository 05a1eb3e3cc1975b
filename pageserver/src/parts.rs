//! What the backing files of a sealed layer were when it was sealed: their sizes, their floors, their blocks.
//!
//! While a layer is a head its backing files alone say what they are: they change with every write, and no write touches the
//! database. A sealed one is never written again. So when nobody waits, the store reads it once ([`Store::tend`]), and the database
//! keeps what was found: the size and the floor of each file, and the checksums of its blocks ([`crate::sums`]). What is gone, cut short,
//! under another name or of other bytes later is then damage, and not something shorter or older.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::iter::Peekable;

use rocksdb::WriteBatch;

use crate::catalog::{Catalog, Entry};
use crate::db::Db;
use crate::disk::{DiskFile, Stat};
use crate::error::{Error, Result};
use crate::fields::Fields;
use crate::layer::{Found, Layer};
use crate::load;
use crate::namespace::{Namespace, codec};
use crate::store::Store;
use crate::sums::{self, CHUNK, CHUNK_BLOCKS, Chunk};
use crate::types::{BLOCK, Ino, Kind, LayerId, Time};

/// What is kept of a backing file of a sealed layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kept {
    pub size: u64,
    pub floor: Option<u64>,
    pub mtime: Time,
}

/// Of zstd's levels the one at which packs are merged in a store that packs nothing any more.
const LEVEL: i32 = 3;

/// Stands for a floor that is not kept.
const NO_FLOOR: u64 = u64::MAX;

impl Kept {
    pub fn of(file: &Found) -> Kept {
        Kept {
            size: file.stat.size,
            floor: file.floor,
            mtime: file.stat.mtime,
        }
    }

    /// Bytes of a record.
    pub const LEN: usize = 28;

    /// Size, floor, seconds and nanoseconds of the time of modification, little-endian.
    pub fn encode(&self) -> Vec<u8> {
        let numbers = [self.size, self.floor.unwrap_or(NO_FLOOR), self.mtime.secs as u64];
        let mut record: Vec<u8> = numbers.into_iter().flat_map(u64::to_le_bytes).collect();
        record.extend(self.mtime.nanos.to_le_bytes());
        record
    }

    pub fn decode(record: &[u8]) -> Option<Kept> {
        let mut fields = Fields(record);
        let kept = Kept {
            size: fields.u64()?,
            floor: Some(fields.u64()?).filter(|floor| *floor != NO_FLOOR),
            mtime: fields.time()?,
        };
        fields.0.is_empty().then_some(kept)
    }
}

/// What is kept of all files of a sealed layer.
pub fn kept(db: &Db, body: LayerId) -> Result<BTreeMap<Ino, Kept>> {
    let mut kept = BTreeMap::new();
    codec::read_parts(db, body, |ino, record| {
        kept.insert(ino, record);
    })?;
    Ok(kept)
}

/// What the upkeep of a store does beside checksums and merging.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tending {
    /// The level of zstd's at which sealed layers are packed, if they are.
    pub packing: Option<i32>,
    /// So many layers that stay, one upon the other, have the newest of them get what its files inherit from the others.
    pub flatten_every: usize,
}

impl Default for Tending {
    fn default() -> Tending {
        Tending {
            packing: None,
            flatten_every: 64,
        }
    }
}

/// Hears how many bytes were read for something that nobody waits for, and may take its time before more are. False ends the work; it
/// begins anew later.
pub type Pace<'a> = &'a mut dyn FnMut(u64) -> bool;

impl Store {
    /// Does one piece of what nobody waits for: checksums of what was sealed, then flattening, packing and merging. False when there is
    /// nothing to do, or `pace` has ended it. An error ends the round: what failed is tried again with the next call.
    pub fn tend(&self, tending: &Tending, pace: Pace) -> Result<bool> {
        let done = self.tend_one(tending, pace);
        match done {
            Ok(true) => Ok(true),
            done => match self.aside().end_round() {
                Some(why) => done.and(Err(why)),
                None => done,
            },
        }
    }

    fn tend_one(&self, tending: &Tending, pace: Pace) -> Result<bool> {
        self.close_files();
        if self.sum_next(pace)? {
            return Ok(true);
        }
        let flattened = self.flatten_next(tending.flatten_every, pace);
        if let Ok(true) = flattened {
            return Ok(true);
        }
        let packed = tending.packing.map_or(Ok(false), |level| self.pack_next(level, pace));
        if let Ok(true) = packed {
            return Ok(true);
        }
        // Merging makes room, also where there is none for the others.
        match self.merge_next(tending.packing.unwrap_or(LEVEL), pace)? {
            true => Ok(true),
            false => flattened.and(packed),
        }
    }

    /// Closes what nobody uses, where too much is open. What a head has is closed by who writes there; on some branches nobody does.
    fn close_files(&self) {
        let disk = &self.shared.disk;
        disk.forget_crowd();
        if !disk.is_crowded() {
            return;
        }
        for timeline in self.known_timelines() {
            // Nobody finds the branch in use over this.
            let _changing = self.changing();
            if let Some(timeline) = timeline.upgrade() {
                timeline.make_closable();
            }
        }
        if disk.has_too_many_open() {
            self.shared.layers.tables.close_idle(disk);
        }
    }

    /// What is wrong with a layer that the upkeep passes over for as long as the store is open.
    pub fn passed_over(&self) -> Option<String> {
        let (catalog, aside) = (self.catalog(), self.aside());
        let mut damaged = aside.damaged().filter(|(id, _)| catalog.layer(*id).is_ok());
        damaged.next().map(|(id, what)| format!("layer {id}: {what}"))
    }

    /// What became of a piece of upkeep for a layer: where it failed for another reason than a full disk the layer is passed over, so that the rest
    /// is done.
    pub(crate) fn tended(&self, id: LayerId, what: &str, done: Result<bool>) -> Result<bool> {
        match done {
            // It was destroyed meanwhile.
            Err(_) if self.catalog().layer(id).is_err() => Ok(true),
            Err(error) if !error.is_full() => {
                tracing::error!(layer = %id, %error, "{what}");
                self.aside().put(id, error);
                Ok(true)
            }
            done => done,
        }
    }

    /// Keeps what the oldest sealed layer holds of which that is not known yet.
    fn sum_next(&self, pace: Pace) -> Result<bool> {
        let (id, ns) = {
            let mut catalog = self.catalog();
            // What is still being made durable needs its files where they are.
            let is_next = |id: &LayerId| !self.is_sealing(*id) && !self.aside().has(*id);
            let Some(id) = catalog.unsummed().find(is_next) else {
                return Ok(false);
            };
            (id, load::sealed(&self.shared, &mut catalog, Some(id)))
        };
        let summed = ns.and_then(|ns| self.sum_files(id, &ns, pace));
        self.tended(id, "a layer gets no checksums", summed)
    }

    /// How many sealed layers wait for their checksums.
    pub fn unsummed(&self) -> usize {
        self.catalog().unsummed().count()
    }

    fn sum_files(&self, id: LayerId, ns: &Namespace, pace: Pace) -> Result<bool> {
        let layer = self.shared.layers.open(id);
        let (files, left): (Vec<Found>, Vec<Found>) = layer.scan()?.into_iter().partition(|file| is_file(ns, file.ino));
        self.remove_left(&layer, &left)?;
        for file in files {
            if !self.sum_file(&layer, &file, pace)? {
                return Ok(false);
            }
        }
        self.at("sums: made");
        let mut catalog = self.catalog();
        let mut record = catalog.layer(id)?.clone();
        record.has_sums = true;
        let entries = vec![Entry::Layer(id, Some(record))];
        catalog.commit(&self.shared.db, WriteBatch::default(), entries)?;
        self.shared.sealed.add(id);
        Ok(true)
    }

    /// Removes the blocks of files that were gone when the layer was sealed, and that nobody has removed since.
    fn remove_left(&self, layer: &Layer, left: &[Found]) -> Result<()> {
        if left.is_empty() {
            return Ok(());
        }
        self.sync_db()?;
        for file in left {
            let removed = layer.remove(file.ino);
            removed.map_err(Error::io(format!("remove the file {} of layer {}", file.ino, layer.id)))?;
        }
        Ok(())
    }

    fn sum_file(&self, layer: &Layer, found: &Found, pace: Pace) -> Result<bool> {
        let failed = || Error::io(format!("read the file {} of layer {}", found.ino, layer.id));
        let disk = &self.shared.disk;
        let file = layer.open_file(found.ino).map_err(failed())?;
        // What is taken for damage later must not be what a power cut has left.
        disk.sync_data(&file).map_err(failed())?;
        let mut reader = Reader {
            store: self,
            file: &file,
            buf: vec![0; CHUNK as usize],
        };
        let ranges = disk.data_blocks(&file).map_err(failed())?;
        let mut blocks = ranges.into_iter().flatten().peekable();
        while let Some((number, blocks)) = next_chunk(&mut blocks) {
            let (chunk, bytes) = reader.sum(number, &blocks).map_err(failed())?;
            let write =
                |db: &Db, batch: &mut WriteBatch| codec::put_sums(db, batch, layer.id, found.ino, number, &chunk);
            self.write_of(layer.id, write)?;
            if !pace(bytes) {
                return Ok(false);
            }
        }
        let write = |db: &Db, batch: &mut WriteBatch| {
            codec::put_part(db, batch, layer.id, found.ino, &Kept::of(found).encode())
        };
        self.write_of(layer.id, write)?;
        Ok(true)
    }

    /// Writes records of a layer, unless it was destroyed: its records went with it.
    fn write_of(&self, id: LayerId, put: impl FnOnce(&Db, &mut WriteBatch)) -> Result<()> {
        let catalog = self.catalog();
        catalog.layer(id)?;
        let mut batch = WriteBatch::default();
        put(&self.shared.db, &mut batch);
        self.shared.db.write(batch)
    }
}

/// Reads chunks of a backing file.
struct Reader<'a> {
    store: &'a Store,
    file: &'a DiskFile,
    buf: Vec<u8>,
}

impl Reader<'_> {
    /// The checksums of the blocks of a chunk, and how many bytes were read for them.
    fn sum(&mut self, number: u64, blocks: &[u64]) -> io::Result<(Chunk, u64)> {
        let mut chunk = Chunk::default();
        for run in blocks.chunk_by(|a, b| a + 1 == *b) {
            let first = run[0];
            let buf = &mut self.buf[..run.len() * BLOCK as usize];
            let offset = number * CHUNK + first * BLOCK;
            let read = self.store.shared.disk.read_at(self.file, buf, offset)?;
            buf[read..].fill(0);
            for (block, bytes) in run.iter().zip(buf.chunks(BLOCK as usize)) {
                chunk.push(*block, sums::of(bytes));
            }
        }
        Ok((chunk, blocks.len() as u64 * BLOCK))
    }
}

/// The next chunk that has some of `blocks`, which come in order, and which blocks of the chunk they are.
fn next_chunk(blocks: &mut Peekable<impl Iterator<Item = u64>>) -> Option<(u64, Vec<u64>)> {
    let number = blocks.peek()? / CHUNK_BLOCKS;
    let mut inside = Vec::new();
    while let Some(block) = blocks.next_if(|block| block / CHUNK_BLOCKS == number) {
        inside.push(block % CHUNK_BLOCKS);
    }
    Some((number, inside))
}

impl Catalog {
    /// The sealed layers whose blocks have no checksums yet, oldest first.
    pub fn unsummed(&self) -> impl Iterator<Item = LayerId> {
        let heads: BTreeSet<LayerId> = self.timelines().map(|(_, record)| record.head).collect();
        self.layers()
            .filter(move |(id, record)| !record.has_sums && !heads.contains(id))
            .map(|(id, _)| id)
    }
}

/// What was kept, as a look into the layer's directory would tell it.
pub fn found(kept: &BTreeMap<Ino, Kept>) -> Vec<Found> {
    let found = |(ino, kept): (&Ino, &Kept)| Found {
        ino: *ino,
        stat: Stat {
            size: kept.size,
            mtime: kept.mtime,
            allocated: 0,
        },
        floor: kept.floor,
    };
    kept.iter().map(found).collect()
}

/// How the files found in a sealed layer differ from what was kept of them. Files that `ns`, the layer's own, does
/// not know are left over from unlinked ones.
pub fn differences(kept: &BTreeMap<Ino, Kept>, found: &[Found], ns: &Namespace) -> Vec<String> {
    let mut missing = kept.clone();
    let mut differences = Vec::new();
    for file in found {
        let now = Kept::of(file);
        match missing.remove(&file.ino) {
            Some(kept) if kept.size != now.size => {
                let (ino, now, then) = (file.ino, now.size, kept.size);
                differences.push(format!("the backing file {ino} has {now} bytes instead of {then}"));
            }
            Some(kept) if kept.floor != now.floor => {
                differences.push(format!(
                    "the floor of the backing file {} is another than it was",
                    file.ino
                ));
            }
            Some(_) => {}
            None if is_file(ns, file.ino) => {
                differences.push(format!(
                    "the backing file {} was not there when it was sealed",
                    file.ino
                ));
            }
            None => {}
        }
    }
    let missing = missing.keys().map(|ino| format!("the backing file {ino} is missing"));
    differences.extend(missing);
    differences
}

pub fn is_file(ns: &Namespace, ino: Ino) -> bool {
    ns.inode(ino).is_ok_and(|inode| inode.kind == Kind::File)
}
