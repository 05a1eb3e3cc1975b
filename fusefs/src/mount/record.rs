//! What a mount's next process has to know, in a piece of memory that outlives this one.
//!
//! ```text
//!   page 0   whose it is │ device │ begun │ requests being served, by thread │ requests that were, when a process crashed
//!   page 1   the kernel's greeting and the reply to it
//!   page 2…  the label: what is mounted where, in its owner's words
//! ```
//!
//! On Linux it is a memfd, which the [keeper](super::Keeper) holds beside the mount's device. What is in it is true at every
//! moment: each field is one store, and `begun` comes last. Elsewhere it is memory of this process only.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// The most threads that serve a mount.
pub const THREADS_MAX: usize = 16;

/// Length of a label at most, in bytes: a path and some words.
const LABEL_MAX: usize = 8 << 10;

const MAGIC: u64 = u64::from_le_bytes(*b"zenith-1");
const GREETING_MAX: usize = 2 << 10;

/// As it lies in memory. Only this machine reads it, so numbers are in its own order.
#[repr(C, align(4096))]
struct Page {
    magic: AtomicU64,
    device: AtomicU64,
    /// Set when everything below is there for good.
    begun: AtomicU32,
    serving: [AtomicU64; THREADS_MAX],
    suspects: [Suspect; THREADS_MAX],
    label: Bytes<LABEL_MAX>,
    init: Bytes<GREETING_MAX>,
    reply: Bytes<GREETING_MAX>,
}

/// A request that was being served when a process crashed, and how often.
#[repr(C)]
struct Suspect {
    number: AtomicU64,
    crashes: AtomicU64,
}

#[repr(C)]
struct Bytes<const MAX: usize> {
    len: AtomicU32,
    bytes: [AtomicU8; MAX],
}

pub struct Record {
    page: NonNull<Page>,
    memory: Option<OwnedFd>,
}

// SAFETY: everything in the page is atomic.
unsafe impl Send for Record {}
// SAFETY: as above.
unsafe impl Sync for Record {}

impl Record {
    /// A new one, with no greeting yet.
    pub fn new(label: &[u8]) -> io::Result<Record> {
        let memory = new_memory()?;
        if let Some(memory) = &memory {
            memory.set_len(size_of::<Page>() as u64)?;
        }
        let record = Record {
            page: map(memory.as_ref())?,
            memory: memory.map(OwnedFd::from),
        };
        record.page().label.set(label)?;
        record.page().magic.store(MAGIC, Ordering::Release);
        Ok(record)
    }

    /// The one that an earlier process has left.
    pub fn of(memory: OwnedFd) -> io::Result<Record> {
        let memory = File::from(memory);
        if memory.metadata()?.len() != size_of::<Page>() as u64 {
            return Err(foreign());
        }
        let record = Record {
            page: map(Some(&memory))?,
            memory: Some(memory.into()),
        };
        let page = record.page();
        let fits = page.label.fits() && page.init.fits() && page.reply.fits();
        match page.magic.load(Ordering::Acquire) == MAGIC && fits {
            true => Ok(record),
            false => Err(foreign()),
        }
    }

    /// What the keeper is to hold.
    pub fn memory(&self) -> Option<BorrowedFd<'_>> {
        self.memory.as_ref().map(AsFd::as_fd)
    }

    fn page(&self) -> &Page {
        // SAFETY: mapped for as long as the record lives, with the size and alignment of a page.
        unsafe { self.page.as_ref() }
    }

    /// Keeps how the kernel greeted and what it is answered.
    pub fn begin(&self, init: &[u8], reply: &[u8]) -> io::Result<()> {
        let page = self.page();
        page.init.set(init)?;
        page.reply.set(reply)?;
        page.begun.store(1, Ordering::Release);
        Ok(())
    }

    /// The kernel's greeting and the reply to it. None when the process died before: nobody has used the mount yet.
    pub fn greeting(&self) -> Option<(Vec<u8>, Vec<u8>)> {
        let page = self.page();
        let begun = page.begun.load(Ordering::Acquire) == 1;
        begun.then(|| (page.init.get(), page.reply.get()))
    }

    pub fn label(&self) -> Vec<u8> {
        self.page().label.get()
    }

    /// The number of the mount's device; none before it is known.
    pub fn device(&self) -> Option<u64> {
        Some(self.page().device.load(Ordering::Acquire)).filter(|device| *device != 0)
    }

    pub fn set_device(&self, device: u64) {
        self.page().device.store(device, Ordering::Release);
    }

    /// Notes a request in a place, 0 for none.
    pub fn note(&self, place: usize, request: u64) {
        self.serving(place).store(request, Ordering::Relaxed);
    }

    /// Where a thread notes the request that it is serving, 0 for none.
    pub fn serving(&self, thread: usize) -> &AtomicU64 {
        &self.page().serving[thread % THREADS_MAX]
    }

    /// For a process that takes over from one that died: what was being served then is suspected to be the reason, if it
    /// `crashed`.
    pub fn take_over(&self, crashed: bool) {
        let page = self.page();
        for serving in &page.serving {
            let number = serving.swap(0, Ordering::AcqRel);
            if crashed && number != 0 {
                page.suspect(number);
            }
        }
    }

    /// In how many crashes a request was being served.
    pub fn crashes(&self, number: u64) -> u64 {
        let found = self.page().suspects.iter().find(|suspect| suspect.is(number));
        found.map_or(0, |suspect| suspect.crashes.load(Ordering::Acquire))
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this size; nothing borrows it any more. It fails only for addresses that are not mapped.
        let _ = unsafe { munmap(self.page.cast(), size_of::<Page>()) };
    }
}

impl Page {
    /// Counts a crash against a request. Where all places are taken the one with the fewest crashes goes.
    fn suspect(&self, number: u64) {
        let known = self.suspects.iter().find(|suspect| suspect.is(number));
        let place = known.or_else(|| {
            self.suspects
                .iter()
                .min_by_key(|suspect| suspect.crashes.load(Ordering::Acquire))
        });
        let Some(place) = place else { return };
        if known.is_none() {
            place.crashes.store(0, Ordering::Release);
            place.number.store(number, Ordering::Release);
        }
        place.crashes.fetch_add(1, Ordering::AcqRel);
    }
}

impl Suspect {
    fn is(&self, number: u64) -> bool {
        self.number.load(Ordering::Acquire) == number
    }
}

impl<const MAX: usize> Bytes<MAX> {
    fn set(&self, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() > MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        for (place, byte) in self.bytes.iter().zip(bytes) {
            place.store(*byte, Ordering::Relaxed);
        }
        self.len.store(bytes.len() as u32, Ordering::Release);
        Ok(())
    }

    fn get(&self) -> Vec<u8> {
        let len = self.len.load(Ordering::Acquire) as usize;
        let bytes = self.bytes.iter().take(len);
        bytes.map(|byte| byte.load(Ordering::Relaxed)).collect()
    }

    fn fits(&self) -> bool {
        self.len.load(Ordering::Acquire) as usize <= MAX
    }
}

fn foreign() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "another version of zenith kept this mount")
}

#[cfg(target_os = "linux")]
fn new_memory() -> io::Result<Option<File>> {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    Ok(Some(memfd_create(c"zenith-mount", MFdFlags::MFD_CLOEXEC)?.into()))
}

/// No process could be handed it.
#[cfg(not(target_os = "linux"))]
fn new_memory() -> io::Result<Option<File>> {
    Ok(None)
}

fn map(memory: Option<&File>) -> io::Result<NonNull<Page>> {
    let len = NonZeroUsize::new(size_of::<Page>()).ok_or(io::ErrorKind::InvalidInput)?;
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping where the kernel likes; zeros are valid for each field.
    let mapped = unsafe {
        match memory {
            Some(memory) => mmap(None, len, access, MapFlags::MAP_SHARED, memory, 0),
            None => nix::sys::mman::mmap_anonymous(None, len, access, MapFlags::MAP_PRIVATE),
        }
    };
    Ok(mapped?.cast())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn the_next_process_finds_what_was_kept() {
        let record = Record::new(b"here").expect("made");
        assert_eq!(record.greeting(), None);
        record.begin(b"hello", b"hi").expect("kept");
        record.set_device(7);
        let copy = record.memory().expect("a memfd").try_clone_to_owned().expect("copied");
        drop(record);
        let record = Record::of(copy).expect("found");
        assert_eq!(record.label(), b"here");
        assert_eq!(record.greeting(), Some((b"hello".to_vec(), b"hi".to_vec())));
        assert_eq!(record.device(), Some(7));
    }

    #[test]
    fn only_what_was_served_when_a_process_crashed_is_suspected() {
        let record = Record::new(b"").expect("made");
        for crashed in [true, false, true] {
            record.serving(1).store(42, Ordering::Release);
            record.take_over(crashed);
        }
        assert_eq!((record.crashes(42), record.crashes(43)), (2, 0));
    }

    #[test]
    fn there_is_room_for_the_worst_of_many_suspects() {
        let record = Record::new(b"").expect("made");
        for round in 0..100 {
            record.serving(0).store(42, Ordering::Release);
            record.serving(1).store(1000 + round, Ordering::Release);
            record.take_over(true);
        }
        assert_eq!(record.crashes(42), 100);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn foreign_memory_is_refused() {
        let memory = new_memory().expect("made").expect("a memfd");
        assert!(Record::of(memory.try_clone().expect("copied").into()).is_err());
        memory.set_len(size_of::<Page>() as u64).expect("grown");
        assert!(Record::of(memory.into()).is_err());
    }

    #[test]
    fn a_label_that_is_too_long_is_refused() {
        assert!(Record::new(&[b'x'; LABEL_MAX + 1]).is_err());
    }
}
