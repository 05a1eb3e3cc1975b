//! The packs of a store, and what is kept of them in memory.
//!
//! ```text
//!   packs/0000002a       a pack, complete and durable
//!   packs/0000002a.new   half-made, swept when the store is opened
//! ```
//!
//! A pack has a number of its own: merging puts another pack in the place of one, and both are there for a moment. A frame that was read is
//! kept for a while, since its neighbours are asked for next.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::disk::{Disk, DiskFile, Wait};
use crate::error::{Error, Result};
use crate::layer::HALF_MADE;
use crate::pack::{Frame, Pack, Source};
use crate::types::PackId;

/// Packs kept open at most; where fewer files may be open, a quarter of these.
const OPEN_MAX: usize = 128;

/// Frames kept in memory, 128 KiB each at most.
const FRAMES: usize = 256;

/// A frame's place in a store.
type FrameKey = (PackId, u64);

type CachedFrame = Mutex<Option<(FrameKey, Arc<[u8]>)>>;

pub struct Packs {
    disk: Disk,
    dir: PathBuf,
    opened: Mutex<Opened>,
    /// The checksum that each pack of a layer ends with: it is the one that was written for it.
    known: Mutex<HashMap<PackId, u32>>,
    /// Each frame has one place here, which it shares with others.
    frames: Vec<CachedFrame>,
}

#[derive(Default)]
struct Opened {
    packs: HashMap<PackId, (Arc<Pack<PackFile>>, u64)>,
    /// Counts uses, so that the one that was not used for the longest time can be closed.
    uses: u64,
}

pub struct PackFile {
    disk: Disk,
    file: DiskFile,
}

impl PackFile {
    pub fn new(disk: Disk, file: DiskFile) -> PackFile {
        PackFile { disk, file }
    }
}

impl Source for PackFile {
    fn size(&self) -> io::Result<u64> {
        self.disk.stat(&self.file).map(|stat| stat.size)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.disk.read_at(&self.file, buf, offset)
    }
}

impl Packs {
    /// `known` tells of each pack the checksum that it ends with.
    pub fn new(disk: Disk, dir: PathBuf, known: impl Iterator<Item = (PackId, u32)>) -> Packs {
        Packs {
            known: Mutex::new(known.collect()),
            disk,
            dir,
            opened: Mutex::default(),
            frames: (0..FRAMES).map(|_| CachedFrame::default()).collect(),
        }
    }

    pub fn dir(&self) -> &PathBuf {
        &self.dir
    }

    pub fn path(&self, id: PackId) -> PathBuf {
        self.dir.join(id.to_string())
    }

    /// Bytes that a pack takes on the disk.
    pub fn bytes(&self, id: PackId) -> Result<u64> {
        let path = self.path(id);
        let bytes = self.disk.allocated(&path);
        bytes.map_err(Error::io(format!("look at {}", path.display())))
    }

    pub fn open(&self, id: PackId) -> Result<Arc<Pack<PackFile>>> {
        if let Some(pack) = self.opened().get(id) {
            return Ok(pack);
        }
        let pack = Arc::new(self.open_anew(id)?);
        let max = OPEN_MAX.min(self.disk.open_files_max() / 4);
        self.opened().keep(id, pack.clone(), max);
        // One that was removed meanwhile would keep its space for as long as it is open.
        let path = self.path(id);
        let is_there = self.disk.exists(&path);
        if !is_there.map_err(Error::io(format!("look at {}", path.display())))? {
            self.opened().packs.remove(&id);
        }
        Ok(pack)
    }

    /// As it is under its name now, also where it is open already.
    pub fn open_anew(&self, id: PackId) -> Result<Pack<PackFile>> {
        let path = self.path(id);
        let file = match self.disk.open_regular(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let what = format!("the pack {id} is missing");
                return Err(Error::Damaged { what });
            }
            file => file.map_err(Error::io(format!("open {}", path.display())))?,
        };
        let pack = Pack::open(PackFile::new(self.disk.clone(), file), format!("the pack {id}"))?;
        if self.known().get(&id).is_some_and(|sum| *sum != pack.sum()) {
            let what = format!("the pack {id} is another one");
            return Err(Error::Damaged { what });
        }
        Ok(pack)
    }

    /// A pack was made.
    pub fn add(&self, id: PackId, sum: u32) {
        self.known().insert(id, sum);
    }

    /// The checksum that a pack ends with.
    pub fn sum(&self, id: PackId) -> Option<u32> {
        self.known().get(&id).copied()
    }

    fn known(&self) -> MutexGuard<'_, HashMap<PackId, u32>> {
        self.known.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn opened(&self) -> MutexGuard<'_, Opened> {
        self.opened.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// A frame's bytes; none when they are not in memory and nobody may wait for them.
    pub fn frame(
        &self,
        id: PackId,
        pack: &Pack<PackFile>,
        frame: Frame,
        blocks: usize,
        wait: Wait,
    ) -> Result<Option<Arc<[u8]>>> {
        if frame.len == 0 {
            return Ok(Some(pack.frame(frame, blocks)?.into()));
        }
        let key = (id, frame.offset);
        let spread = id.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ frame.offset.wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
        let place = &self.frames[(spread >> 32) as usize % FRAMES];
        if let Some((cached, bytes)) = &*place.lock().unwrap_or_else(|e| e.into_inner())
            && *cached == key
        {
            return Ok(Some(bytes.clone()));
        }
        if wait == Wait::No {
            return Ok(None);
        }
        let bytes: Arc<[u8]> = pack.frame(frame, blocks)?.into();
        *place.lock().unwrap_or_else(|e| e.into_inner()) = Some((key, bytes.clone()));
        Ok(Some(bytes))
    }

    /// Removes packs that were never finished.
    pub fn sweep(&self) -> io::Result<()> {
        let names = match self.disk.list(&self.dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            names => names?,
        };
        let mut half_made = names.iter().filter(|name| name.to_string_lossy().ends_with(HALF_MADE));
        half_made.try_for_each(|name| self.disk.remove(&self.dir.join(name)))
    }

    /// Removes a pack that nobody needs any more. Who reads it goes on.
    pub fn remove(&self, id: PackId) -> Result<()> {
        self.opened().packs.remove(&id);
        self.known().remove(&id);
        let path = self.path(id);
        let removed = self.disk.remove(&path);
        removed.map_err(Error::io(format!("remove {}", path.display())))
    }
}

impl Opened {
    fn get(&mut self, id: PackId) -> Option<Arc<Pack<PackFile>>> {
        self.uses += 1;
        let (pack, used) = self.packs.get_mut(&id)?;
        *used = self.uses;
        Some(pack.clone())
    }

    /// Keeps a pack, with so many others at most.
    fn keep(&mut self, id: PackId, pack: Arc<Pack<PackFile>>, max: usize) {
        while self.packs.len() >= max.max(1)
            && let Some(oldest) = self.packs.iter().min_by_key(|(_, (_, used))| *used)
        {
            let oldest = *oldest.0;
            self.packs.remove(&oldest);
        }
        self.packs.insert(id, (pack, self.uses));
    }
}
