//! A disk with a volatile cache, as a log of what was asked of it.
//!
//! ```text
//!   W W F W F W W W | W F W ...        W write, F flush, | the cut
//!   --------> durable
//!            -------> each of these: written, lost, or torn between sectors, in any order
//! ```
//!
//! What lies before the last flush before the cut is there. Of what came after it a random part is. A sector (512 bytes,
//! or 4 KiB) is old or new, never a mixture. Bytes lie in an [`Arena`], and an [`Image`] says for each sector where in it, so that
//! a cut copies a table and no bytes, and an image can itself be the base of another recorded disk.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::random::Random;

pub const SECTOR: usize = 512;

/// The bytes of all writes, one after the other, in a file that has no name any more.
pub struct Arena {
    file: File,
    sectors: AtomicU64,
}

impl Arena {
    pub fn new(dir: &Path) -> io::Result<Arc<Arena>> {
        let mut nameless = File::options();
        nameless.read(true).write(true).custom_flags(libc::O_TMPFILE);
        let file = nameless.open(dir)?;
        // The first sector stays unused: 0 is a sector that was never written.
        let sectors = AtomicU64::new(1);
        Ok(Arc::new(Arena { file, sectors }))
    }

    fn append(&self, data: &[u8]) -> io::Result<u32> {
        let at = self.sectors.fetch_add((data.len() / SECTOR) as u64, Ordering::Relaxed);
        self.file.write_all_at(data, at * SECTOR as u64)?;
        u32::try_from(at).map_err(io::Error::other)
    }

    fn read(&self, data: &mut [u8], at: u32) -> io::Result<()> {
        match at {
            0 => data.fill(0),
            _ => self.file.read_exact_at(data, u64::from(at) * SECTOR as u64)?,
        }
        Ok(())
    }

    pub fn mark(&self) -> u64 {
        self.sectors.load(Ordering::Relaxed)
    }

    /// Forgets what was written since the mark; no image may need it any more.
    pub fn forget_since(&self, mark: u64) -> io::Result<()> {
        self.sectors.store(mark, Ordering::Relaxed);
        self.file.set_len(mark * SECTOR as u64)
    }
}

/// Where in the arena the content of each sector lies.
#[derive(Clone)]
pub struct Image(Vec<u32>);

impl Image {
    pub fn empty(bytes: u64) -> Image {
        Image(vec![0; bytes as usize / SECTOR])
    }

    pub fn bytes(&self) -> u64 {
        (self.0.len() * SECTOR) as u64
    }

    fn put(&mut self, write: &Write, sectors: Range<u32>) {
        for sector in sectors {
            self.0[(write.sector + sector) as usize] = write.at + sector;
        }
    }

    /// A run of sectors, from the first on, that lie one after the other in the arena.
    fn run(&self, sectors: Range<usize>) -> usize {
        let (first, at) = (sectors.start, self.0[sectors.start]);
        let follows = |sector: &usize| match at {
            0 => self.0[*sector] == 0,
            _ => self.0[*sector] as usize == at as usize + (sector - first),
        };
        sectors.take_while(follows).count()
    }

    fn read(&self, arena: &Arena, mut data: &mut [u8], offset: u64) -> io::Result<()> {
        let mut sector = offset as usize / SECTOR;
        while !data.is_empty() {
            let run = self.run(sector..sector + data.len() / SECTOR);
            let (now, later) = data.split_at_mut(run * SECTOR);
            arena.read(now, self.0[sector])?;
            (data, sector) = (later, sector + run);
        }
        Ok(())
    }

    /// Writes the image to a sparse file, for somebody to look into.
    pub fn save(&self, arena: &Arena, path: &Path) -> io::Result<()> {
        let file = File::create(path)?;
        file.set_len(self.bytes())?;
        let mut sector = 0;
        while sector < self.0.len() {
            let run = self.run(sector..self.0.len().min(sector + 2048));
            if self.0[sector] != 0 {
                let mut data = vec![0; run * SECTOR];
                arena.read(&mut data, self.0[sector])?;
                file.write_all_at(&data, (sector * SECTOR) as u64)?;
            }
            sector += run;
        }
        Ok(())
    }
}

#[derive(Clone, Copy)]
struct Write {
    sector: u32,
    count: u32,
    /// Where in the arena.
    at: u32,
}

#[derive(Clone, Copy)]
enum Entry {
    Write(Write),
    Flush,
}

/// A disk at work: what it reads as, and everything that was asked of it since it was made.
pub struct Disk {
    arena: Arc<Arena>,
    base: Image,
    /// What is written at once or not at all, in units of [`SECTOR`].
    whole: u32,
    now: Mutex<Image>,
    log: Mutex<Vec<Entry>>,
}

/// How much was asked of a disk.
#[derive(Default, Clone, Copy, Debug)]
pub struct Figures {
    pub writes: usize,
    pub flushes: usize,
    pub bytes: u64,
}

impl Disk {
    /// A disk that holds `base`; `sector` bytes are never torn.
    pub fn new(arena: &Arc<Arena>, base: Image, sector: usize) -> Arc<Disk> {
        Arc::new(Disk {
            arena: arena.clone(),
            whole: (sector / SECTOR) as u32,
            now: Mutex::new(base.clone()),
            base,
            log: Mutex::default(),
        })
    }

    pub fn bytes(&self) -> u64 {
        self.base.bytes()
    }

    pub fn read(&self, data: &mut [u8], offset: u64) -> io::Result<()> {
        lock(&self.now).read(&self.arena, data, offset)
    }

    pub fn write(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let write = Write {
            sector: (offset as usize / SECTOR) as u32,
            count: (data.len() / SECTOR) as u32,
            at: self.arena.append(data)?,
        };
        lock(&self.now).put(&write, 0..write.count);
        lock(&self.log).push(Entry::Write(write));
        Ok(())
    }

    pub fn flush(&self) {
        lock(&self.log).push(Entry::Flush);
    }

    /// How many writes and flushes there were: a moment in the disk's life, in which the power can be cut.
    pub fn position(&self) -> u64 {
        lock(&self.log).len() as u64
    }

    pub fn figures(&self, positions: Range<u64>) -> Figures {
        let mut figures = Figures::default();
        for entry in &lock(&self.log)[positions.start as usize..positions.end as usize] {
            match entry {
                Entry::Flush => figures.flushes += 1,
                Entry::Write(write) => {
                    figures.writes += 1;
                    figures.bytes += u64::from(write.count) * SECTOR as u64;
                }
            }
        }
        figures
    }

    /// What the disk holds when the power was cut at a position.
    pub fn cut(&self, position: u64, random: &mut Random) -> Image {
        let log = lock(&self.log);
        let before = &log[..position as usize];
        let flushed = before.iter().rposition(|entry| matches!(entry, Entry::Flush));
        let (durable, cached) = before.split_at(flushed.map_or(0, |flush| flush + 1));
        let mut image = self.base.clone();
        writes(durable).for_each(|write| image.put(write, 0..write.count));
        let mut cached: Vec<&Write> = writes(cached).collect();
        random.shuffle(&mut cached);
        let percent_kept = [0, 10, 50, 90, 100][random.below(5) as usize];
        for write in cached {
            self.keep_some(&mut image, write, percent_kept, random);
        }
        image
    }

    /// Keeps a write, loses it, or tears it: one sector is kept and the next is not.
    fn keep_some(&self, image: &mut Image, write: &Write, percent_kept: u64, random: &mut Random) {
        let is_torn = write.count > self.whole && random.below(8) == 0;
        match is_torn {
            true => (0..write.count)
                .step_by(self.whole as usize)
                .filter(|_| random.below(2) == 0)
                .for_each(|first| image.put(write, first..write.count.min(first + self.whole))),
            false if random.below(100) < percent_kept => image.put(write, 0..write.count),
            false => {}
        }
    }
}

fn writes(entries: &[Entry]) -> impl Iterator<Item = &Write> {
    entries.iter().filter_map(|entry| match entry {
        Entry::Write(write) => Some(write),
        Entry::Flush => None,
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_keeps_what_was_flushed_and_any_part_of_the_rest() {
        let arena = Arena::new(Path::new(env!("CARGO_TARGET_TMPDIR"))).expect("an arena");
        let disk = Disk::new(&arena, Image::empty(8 * SECTOR as u64), SECTOR);
        disk.write(&[1; 2 * SECTOR], 0).expect("written");
        disk.flush();
        disk.write(&[2; 2 * SECTOR], 0).expect("written");
        disk.write(&[3; SECTOR], 4 * SECTOR as u64).expect("written");
        let mut seen = std::collections::BTreeSet::new();
        let mut random = Random::new(1);
        for _ in 0..200 {
            let cut = Disk::new(&arena, disk.cut(4, &mut random), SECTOR);
            let mut data = [0; 8 * SECTOR];
            cut.read(&mut data, 0).expect("read");
            seen.insert([0, 1, 4].map(|sector| data[sector * SECTOR]));
        }
        assert_eq!(seen.len(), 8, "{seen:?}");
        assert!(
            seen.iter()
                .all(|[a, b, c]| [1, 2].contains(a) && [1, 2].contains(b) && [0, 3].contains(c))
        );
    }
}
