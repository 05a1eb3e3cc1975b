//! What is known of sealed layers: in which form their blocks lie, and the checksums of these.
//!
//! A layer's *body*, what it has on the disk and in the database, has the number of the layer it was made for. It has one of two forms:
//! backing files in a directory, or a pack. Merging ends one of two bodies, and packing changes a body's form; both while views are read that
//! were opened before. So who reads a sealed layer asks here first, and asks again when what it was told has changed meanwhile.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::db::Db;
use crate::disk::Wait;
use crate::error::{Error, Result};
use crate::namespace::codec;
use crate::packs::Packs;
use crate::sums::{self, CHUNK_BLOCKS, Chunk};
use crate::types::{BLOCK, Ino, LayerId, PackId};

/// Chunks whose checksums are kept in memory, about 1 KiB each.
const CACHED: usize = 8192;

/// How the blocks of a sealed layer lie on the disk, once they have checksums.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// As backing files; the checksums are in the database.
    Plain,
    /// In a pack, with the checksums.
    Packed(PackId),
}

/// A chunk of a file in a layer, and its checksums.
type Cached = ((LayerId, Ino, u64), Arc<Chunk>);

/// What has become of bodies.
#[derive(Default)]
struct State {
    forms: HashMap<LayerId, Form>,
    /// Those that have ended, each with the one that has what it had: see `merge.rs`.
    ended: HashMap<LayerId, LayerId>,
    /// Older ones that are being merged, each with the newer one.
    merging: HashMap<LayerId, LayerId>,
}

impl State {
    fn now(&self, layer: LayerId) -> LayerId {
        self.ended.get(&layer).copied().unwrap_or(layer)
    }
}

/// The sealed layers of a store.
pub struct Sealed {
    db: Arc<Db>,
    pub packs: Packs,
    state: RwLock<State>,
    /// Counts the changes of the state.
    changes: AtomicU64,
    /// Each chunk has one place here, which it shares with others.
    cache: Vec<Mutex<Option<Cached>>>,
}

impl Sealed {
    /// `forms` tells of the bodies that have checksums.
    pub fn new(db: Arc<Db>, packs: Packs, forms: impl Iterator<Item = (LayerId, Form)>) -> Sealed {
        let state = State {
            forms: forms.collect(),
            ..State::default()
        };
        Sealed {
            db,
            packs,
            state: RwLock::new(state),
            changes: AtomicU64::new(1),
            cache: (0..CACHED).map(|_| Mutex::default()).collect(),
        }
    }

    fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(|e| e.into_inner())
    }

    fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(|e| e.into_inner())
    }

    /// Changes whenever a layer has another form, or none any more.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// A layer's form; none while its blocks have no checksums.
    pub fn form(&self, layer: LayerId) -> Option<Form> {
        let state = self.state();
        state.forms.get(&state.now(layer)).copied()
    }

    /// The body's blocks have checksums from now on.
    pub fn add(&self, body: LayerId) {
        self.state_mut().forms.insert(body, Form::Plain);
        self.changes.fetch_add(1, Ordering::Release);
    }

    /// The body is gone.
    pub fn remove(&self, body: LayerId) {
        self.state_mut().forms.remove(&body);
        self.changes.fetch_add(1, Ordering::Release);
    }

    /// Changes a body's form. Nobody looks at checksums until `commit` has changed the database.
    pub fn reform(&self, body: LayerId, form: Form, commit: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut state = self.state_mut();
        commit()?;
        state.forms.insert(body, form);
        self.forget_chunks();
        self.changes.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// The body that has what this one had: itself, unless it was merged.
    pub fn body(&self, layer: LayerId) -> LayerId {
        self.state().now(layer)
    }

    /// Whether any body has ended since the store was opened.
    pub fn has_merged(&self) -> bool {
        !self.state().ended.is_empty()
    }

    /// Has one body have what another had, in the form that it has from now on. Nobody looks at checksums until `commit` has changed the
    /// database.
    pub fn merge(&self, ends: LayerId, stays: LayerId, form: Form, commit: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut state = self.state_mut();
        commit()?;
        state
            .ended
            .values_mut()
            .filter(|to| **to == ends)
            .for_each(|to| *to = stays);
        state.ended.insert(ends, stays);
        state.merging.retain(|older, _| ![ends, stays].contains(older));
        state.forms.remove(&ends);
        state.forms.insert(stays, form);
        self.forget_chunks();
        self.changes.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// The older body is going to be merged with the newer one.
    pub fn begin_merge(&self, older: LayerId, newer: LayerId) {
        self.state_mut().merging.insert(older, newer);
    }

    /// Has chunks be read anew.
    pub fn forget_chunks(&self) {
        for place in &self.cache {
            *place.lock().unwrap_or_else(|e| e.into_inner()) = None;
        }
    }

    /// A chunk's checksums.
    fn chunk(&self, state: &State, body: LayerId, ino: Ino, number: u64) -> Result<Arc<Chunk>> {
        let key = (body, ino, number);
        let spread = body.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ ino.0.wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
        let place = &self.cache[(spread.wrapping_add(number) as usize) % CACHED];
        if let Some((cached, chunk)) = &*place.lock().unwrap_or_else(|e| e.into_inner())
            && *cached == key
        {
            return Ok(chunk.clone());
        }
        let chunk = match state.forms.get(&body) {
            Some(Form::Packed(pack)) => self.packs.open(*pack)?.chunk(ino, number),
            _ => codec::read_sums(&self.db, body, ino, number),
        };
        let chunk = Arc::new(chunk.map_err(of_layer(body))?.unwrap_or_default());
        *place.lock().unwrap_or_else(|e| e.into_inner()) = Some((key, chunk.clone()));
        Ok(chunk)
    }

    /// The size of a file of a packed layer.
    pub fn packed_size(&self, layer: LayerId, ino: Ino) -> io::Result<u64> {
        let (body, form) = {
            let state = self.state();
            let body = state.now(layer);
            (body, state.forms.get(&body).copied())
        };
        let size = match form {
            Some(Form::Packed(id)) => self.packs.open(id)?.size(ino),
            _ => None,
        };
        size.ok_or_else(|| {
            let what = format!("layer {body}: its pack has no file {ino}");
            Error::Damaged { what }.into()
        })
    }

    /// Calls `each` with every chunk that a body has of a file, in order.
    pub fn each_chunk(&self, body: LayerId, ino: Ino, each: impl FnMut(u64, Chunk) -> Result<()>) -> Result<()> {
        self.each_chunk_of(&self.state(), body, ino, each)
    }

    fn each_chunk_of(
        &self,
        state: &State,
        body: LayerId,
        ino: Ino,
        each: impl FnMut(u64, Chunk) -> Result<()>,
    ) -> Result<()> {
        match state.forms.get(&body) {
            Some(Form::Packed(pack)) => self.packs.open(*pack)?.each_chunk(ino, each).map_err(of_layer(body)),
            _ => codec::each_sums(&self.db, body, ino, each),
        }
    }

    /// Whether a body has a block of a file.
    pub fn has_block(&self, body: LayerId, ino: Ino, block: u64) -> Result<bool> {
        let chunk = self.chunk(&self.state(), body, ino, block / CHUNK_BLOCKS)?;
        Ok(chunk.sum(block % CHUNK_BLOCKS).is_some())
    }

    /// All chunks that a body has of a file.
    pub fn chunks(&self, body: LayerId, ino: Ino) -> Result<BTreeMap<u64, Chunk>> {
        let mut chunks = BTreeMap::new();
        self.each_chunk(body, ino, |number, chunk| {
            chunks.insert(number, chunk);
            Ok(())
        })?;
        Ok(chunks)
    }

    /// Calls `each` with every range of blocks that the layer has of a file, in order.
    pub fn each_range(&self, layer: LayerId, ino: Ino, mut each: impl FnMut(Range<u64>)) -> Result<()> {
        let state = self.state();
        self.each_chunk_of(&state, state.now(layer), ino, |number, chunk| {
            let first = number * CHUNK_BLOCKS;
            chunk.ranges(|range| each(first + range.start..first + range.end));
            Ok(())
        })
    }

    /// Compares what was read of whole blocks, from `offset` on, with their checksums.
    pub fn verify(&self, layer: LayerId, ino: Ino, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let state = self.state();
        let layer = state.now(layer);
        let mut chunk: Option<(u64, Arc<Chunk>)> = None;
        for (block, bytes) in (offset / BLOCK..).zip(bytes.chunks(BLOCK as usize)) {
            let number = block / CHUNK_BLOCKS;
            let sums = match &chunk {
                Some((have, sums)) if *have == number => sums,
                _ => &chunk.insert((number, self.chunk(&state, layer, ino, number)?)).1,
            };
            if let Some(difference) = sums::difference(sums.sum(block % CHUNK_BLOCKS), bytes) {
                // Its file may be the newer one's already, which ends earlier.
                if let Some(newer) = state.merging.get(&layer)
                    && self.chunk(&state, *newer, ino, number)?.sum(block % CHUNK_BLOCKS) == Some(sums::of(bytes))
                {
                    continue;
                }
                return Err(damaged(layer, ino, block, difference));
            }
        }
        Ok(())
    }

    /// Reads whole blocks from a packed layer, compared with their checksums: zeros where it has none. None when it is not packed.
    pub fn read_packed(
        &self,
        layer: LayerId,
        ino: Ino,
        offset: u64,
        buf: &mut [u8],
        wait: Wait,
    ) -> io::Result<Option<()>> {
        let first = offset / BLOCK;
        let mut blocks = (first..).zip(buf.chunks_mut(BLOCK as usize)).peekable();
        while let Some((block, _)) = blocks.peek() {
            let number = block / CHUNK_BLOCKS;
            // What is in a pack stays what it is, also when the layer has another meanwhile: so nobody waits for the disk here.
            let (body, id, chunk) = {
                let state = self.state();
                let body = state.now(layer);
                let Some(Form::Packed(id)) = state.forms.get(&body).copied() else {
                    return Ok(None);
                };
                (body, id, self.chunk(&state, body, ino, number)?)
            };
            let pack = self.packs.open(id)?;
            let mut read: Option<(u64, Arc<[u8]>)> = None;
            while let Some((block, to)) = blocks.next_if(|(block, _)| block / CHUNK_BLOCKS == number) {
                let Some((frame, len, inside)) = chunk.frame(block % CHUNK_BLOCKS) else {
                    to.fill(0);
                    continue;
                };
                let bytes = match &read {
                    Some((have, bytes)) if *have == frame.offset && frame.len > 0 => bytes,
                    _ => {
                        let bytes = self.packs.frame(id, &pack, frame, len, wait).map_err(of_layer(body))?;
                        let bytes = bytes.ok_or(io::ErrorKind::WouldBlock)?;
                        &read.insert((frame.offset, bytes)).1
                    }
                };
                let at = inside * BLOCK as usize;
                let bytes = bytes.get(at..at + BLOCK as usize).unwrap_or_default();
                match sums::difference(chunk.sum(block % CHUNK_BLOCKS), bytes) {
                    None => to.copy_from_slice(bytes),
                    Some(difference) => return Err(damaged(body, ino, block, difference)),
                }
            }
        }
        Ok(Some(()))
    }
}

/// Says of damage which layer it is in.
fn of_layer(body: LayerId) -> impl FnOnce(Error) -> Error {
    move |error| match error {
        Error::Damaged { what } => Error::Damaged {
            what: format!("layer {body}: {what}"),
        },
        other => other,
    }
}

/// The error of a read, of which the kernel gets EIO and the log the rest.
fn damaged(layer: LayerId, ino: Ino, block: u64, difference: &str) -> io::Error {
    let what = format!("layer {layer}: block {block} of the file {ino} {difference}");
    Error::Damaged { what }.into()
}
