//! Packing: the blocks of a sealed layer go from backing files into a pack.
//!
//! The pack is written beside the layer's files, from blocks that were compared with their checksums, and made durable. Then one record of the
//! database says that the layer has it, and the files go. What a crash leaves is the files, or the pack, or both and one of
//! them swept; nobody who reads the layer can tell.

use std::io::{self, Write};
use std::path::PathBuf;

use rocksdb::WriteBatch;

use crate::catalog::{Body, Catalog, Entry};
use crate::disk::{DiskFile, Wait};
use crate::error::{Error, Result};
use crate::layer::{Backing, HALF_MADE};
use crate::namespace::codec;
use crate::pack::Writer;
use crate::parts::{self, Kept, Pace};
use crate::sealed::Form;
use crate::store::Store;
use crate::sums::{CHUNK, CHUNK_BLOCKS, Chunk};
use crate::types::{BLOCK, Ino, LayerId, PackId};

/// Written before the disk is asked to begin with it.
const WRITE: usize = 1 << 20;

impl Store {
    /// Packs the oldest sealed layer that has backing files. False when there is none, or `pace` has ended it.
    pub(crate) fn pack_next(&self, level: i32, pace: Pace) -> Result<bool> {
        let chosen = self.catalog().unpacked().find(|(id, _)| !self.aside().has(*id));
        let Some((id, body)) = chosen else {
            return Ok(false);
        };
        let packed = self.pack(id, body, level, pace);
        self.tended(id, "a layer is not packed", packed)
    }

    /// How many sealed layers are not packed.
    pub fn unpacked(&self) -> usize {
        let catalog = self.catalog();
        catalog.unsummed().count() + catalog.unpacked().count()
    }

    fn pack(&self, id: LayerId, body: LayerId, level: i32, pace: Pace) -> Result<bool> {
        let mut pack = NewPack::begin(self, level, false)?;
        let layer = self.shared.layers.open(body);
        for (ino, kept) in parts::kept(&self.shared.db, body)? {
            pack.begin_file(ino, kept);
            let backing = layer.backing(ino, false);
            for (number, chunk) in self.shared.sealed.chunks(body, ino)? {
                pack.add_chunk(number, &[(&backing, &chunk)], kept.size)?;
                if !pace(chunk.blocks().count() as u64 * BLOCK) {
                    return Ok(false);
                }
            }
            pack.end_file()?;
        }
        let pack = pack.finish()?;
        self.at("pack: made");
        let Some(alone) = self.wait_for_layers(pace) else {
            return self.shared.sealed.packs.remove(pack).map(|()| false);
        };
        let mut catalog = self.catalog();
        let Ok(record) = catalog.layer(id) else {
            return self.shared.sealed.packs.remove(pack).map(|()| true);
        };
        let mut record = record.clone();
        record.pack = Some(pack);
        record.pack_sum = self.shared.sealed.packs.sum(pack);
        let mut batch = WriteBatch::default();
        codec::delete_sums(&self.shared.db, &mut batch, body);
        let entries = vec![Entry::Layer(id, Some(record))];
        let commit = || catalog.commit(&self.shared.db, batch, entries);
        if let Err(error) = self.shared.sealed.reform(body, Form::Packed(pack), commit) {
            self.remove_unused(pack, Some(&error))?;
            return Err(error);
        }
        drop(catalog);
        self.at("pack: committed");
        self.forget_bytes(&[id]);
        // What the database may come back with must find its blocks.
        self.sync_db()?;
        self.at("pack: about to remove");
        self.remove_body(Body {
            id: body,
            form: Form::Plain,
        })?;
        drop(alone);
        self.renew(&[body]);
        tracing::info!(layer = %id, %pack, "a layer is packed");
        Ok(true)
    }

    /// Removes a pack that the database was not told of. After an error other than a full disk nobody knows whether it was: then the pack stays until the
    /// store is opened anew.
    pub(crate) fn remove_unused(&self, pack: PackId, error: Option<&Error>) -> Result<()> {
        match error.is_none_or(Error::is_full) {
            true => self.shared.sealed.packs.remove(pack),
            false => Ok(()),
        }
    }
}

impl Catalog {
    /// The sealed layers that have checksums and no pack, with their bodies, oldest first. Those that are being merged have to become one first.
    fn unpacked(&self) -> impl Iterator<Item = (LayerId, LayerId)> {
        self.layers()
            .filter(|(id, record)| record.has_sums && record.pack.is_none() && !self.is_changing(*id))
            .map(|(id, record)| (id, record.body.unwrap_or(id)))
    }
}

/// A pack that is being written. Nobody knows it yet; unless it is finished, it goes.
pub struct NewPack<'a> {
    store: &'a Store,
    id: PackId,
    half_made: PathBuf,
    writer: Option<Writer<PackSink<'a>>>,
    buf: Vec<u8>,
}

impl Drop for NewPack<'_> {
    fn drop(&mut self) {
        if self.writer.take().is_some()
            && let Err(error) = self.store.shared.disk.remove(&self.half_made)
        {
            tracing::warn!(%error, "{} can't be removed before the store is opened again", self.half_made.display());
        }
    }
}

impl<'a> NewPack<'a> {
    /// `frees` is whether more will be free when it is finished than is now.
    pub fn begin(store: &'a Store, level: i32, frees: bool) -> Result<NewPack<'a>> {
        let shared = &store.shared;
        let packs = &shared.sealed.packs;
        let made = shared.disk.make_dir(packs.dir());
        made.map_err(Error::io(format!("make {}", packs.dir().display())))?;
        let id = {
            let mut catalog = store.catalog();
            let id = PackId(catalog.next_number());
            catalog.commit(&shared.db, WriteBatch::default(), Vec::new())?;
            id
        };
        // A pack whose number the database never gave would be taken for one that it has forgotten.
        store.sync_db()?;
        let half_made = packs.path(id).with_extension(&HALF_MADE[1..]);
        let failed = || Error::io(format!("make {}", half_made.display()));
        let file = shared.disk.create(&half_made).map_err(failed())?;
        let sink = PackSink {
            store,
            file,
            at: 0,
            buf: Vec::with_capacity(WRITE),
            frees,
        };
        let writer = Writer::new(sink, level).map_err(failed())?;
        Ok(NewPack {
            store,
            id,
            half_made,
            writer: Some(writer),
            buf: Vec::with_capacity(CHUNK as usize),
        })
    }

    pub fn begin_file(&mut self, ino: Ino, kept: Kept) {
        if let Some(writer) = &mut self.writer {
            writer.begin_file(ino, kept);
        }
    }

    /// Adds a chunk of the file: the blocks of one layer or of several, where the first that has a block answers for it; as far as the
    /// file's `size`.
    pub fn add_chunk(&mut self, number: u64, from: &[(&Backing, &Chunk)], size: u64) -> Result<()> {
        let failed = || Error::io(format!("pack chunk {number} of a file"));
        let mut blocks: Vec<(u64, usize)> = Vec::new();
        for (nth, (_, chunk)) in from.iter().enumerate() {
            for (block, _) in chunk.blocks() {
                if let Err(at) = blocks.binary_search_by_key(&block, |(block, _)| *block) {
                    blocks.insert(at, (block, nth));
                }
            }
        }
        let first = number * CHUNK_BLOCKS;
        let buf = &mut self.buf;
        buf.resize(blocks.len() * BLOCK as usize, 0);
        let mut done = 0;
        for run in blocks.chunk_by(|(a, from), (b, of)| a + 1 == *b && from == of) {
            let len = run.len() * BLOCK as usize;
            let (offset, to) = ((first + run[0].0) * BLOCK, &mut buf[done..done + len]);
            from[run[0].1].0.read(to, offset, Wait::Yes).map_err(failed())?;
            let inside = size.saturating_sub(offset).min(len as u64);
            to[inside as usize..].fill(0);
            done += len;
        }
        let blocks: Vec<u64> = blocks.into_iter().map(|(block, _)| block).collect();
        match &mut self.writer {
            Some(writer) if !blocks.is_empty() => writer.add_chunk(number, &blocks, buf).map_err(failed()),
            _ => Ok(()),
        }
    }

    pub fn end_file(&mut self) -> Result<()> {
        let ended = self.writer.as_mut().map_or(Ok(()), Writer::end_file);
        ended.map_err(Error::io(format!("write {}", self.half_made.display())))
    }

    /// Makes the pack durable, under its name.
    pub fn finish(mut self) -> Result<PackId> {
        let shared = &self.store.shared;
        let packs = &shared.sealed.packs;
        let path = packs.path(self.id);
        let finished = self.writer.take().map(|writer| {
            let (sink, sum) = writer.finish()?;
            packs.add(self.id, sum);
            shared.disk.sync_data(&sink.file)?;
            shared.disk.rename(&self.half_made, &path)?;
            shared.disk.sync_dir(packs.dir())?;
            // The directory may be new, too.
            shared.disk.sync_dir(self.store.dir())
        });
        match finished.unwrap_or(Ok(())) {
            Ok(()) => Ok(self.id),
            Err(error) => {
                let removed = [&self.half_made, &path].map(|path| shared.disk.remove(path));
                if let Some(error) = removed.into_iter().find_map(io::Result::err) {
                    tracing::warn!(%error, "{} can't be removed before the store is opened again", path.display());
                }
                Err(Error::io(format!("write {}", path.display()))(error))
            }
        }
    }
}

/// Where a new pack's bytes go: to its file, a piece at a time, on which the disk begins at once.
struct PackSink<'a> {
    store: &'a Store,
    file: DiskFile,
    at: u64,
    buf: Vec<u8>,
    /// More will be free when the pack is finished than is now.
    frees: bool,
}

impl Write for PackSink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buf.extend(bytes);
        if self.buf.len() >= WRITE {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let shared = &self.store.shared;
        let len = self.buf.len() as u64;
        match self.frees {
            true => shared.room.take_to_free(len)?,
            false => shared.room.take(len)?,
        }
        shared.disk.write_at(&self.file, &self.buf, self.at).1?;
        shared.disk.start_sync(&self.file, self.at..self.at + len)?;
        self.at += len;
        self.buf.clear();
        Ok(())
    }
}
