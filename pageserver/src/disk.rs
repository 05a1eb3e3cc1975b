//! The only door to the backing filesystem.
//!
//! Everything the page store does to a file of a layer goes through a [`Disk`], one method per system call, so
//! that a test can count calls, fail the n-th one, or stop the world at it (see [`Hook`]). Nothing here retries and
//! nothing here decides what an error means. RocksDB keeps its own files and does not pass through here.

mod filesystem;
mod floor;
mod map;
pub mod probe;

use std::ffi::OsString;
use std::fs::{self, File, FileTimes, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use crate::types::{BLOCK, Seek, Space, Time};

/// What is about to be asked of the backing filesystem.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Call {
    Open,
    Create,
    Read,
    ReadCached,
    Advise,
    Write,
    SetLen,
    SetTimes,
    SetFloor,
    Floor,
    Punch,
    Seek,
    Map,
    Stat,
    StartSync,
    SyncData,
    SyncDir,
    SyncAll,
    Link,
    Rename,
    Remove,
    MakeDir,
    List,
    Space,
    SetAside,
}

/// Stands before every call: may count it, delay it, or fail it.
pub trait Hook: Send + Sync {
    fn before(&self, call: Call) -> io::Result<()>;

    /// Stands between two steps of an operation on the store: may end the process there.
    fn at(&self, _point: &'static str) {}

    /// May tell of less space than there is.
    fn space(&self, space: Space) -> Space {
        space
    }
}

/// A way to the backing filesystem. Cheap to clone.
#[derive(Clone)]
pub struct Disk {
    hook: Option<Arc<dyn Hook>>,
    open_files: Arc<OpenFiles>,
    tolerance: Arc<Tolerance>,
}

/// How many backing files are open.
struct OpenFiles {
    now: AtomicUsize,
    /// How many there should be at most.
    max: AtomicUsize,
}

/// How many more than there should be
#[derive(Default)]
struct Tolerance {
    /// may be open before it is tried again to close some,
    open: AtomicUsize,
    /// and before files are synced for it.
    unsynced: AtomicUsize,
}

/// Backing files kept open unless the caller allows for more: fits the usual limit of 1024 descriptors.
const OPEN_FILES_MAX: usize = 512;

/// An open backing file; counted, so that the store can stay below its limit of descriptors.
pub struct DiskFile {
    file: File,
    open_files: Arc<OpenFiles>,
}

impl Default for Disk {
    fn default() -> Disk {
        Disk::new()
    }
}

impl DiskFile {
    /// Has nothing be read ahead that was not asked for. That is advice, without which reads come to the same.
    pub fn expect_no_order(&self) {
        map::expect_no_order(&self.file);
    }
}

impl Drop for DiskFile {
    fn drop(&mut self) {
        self.open_files.now.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether a read may wait for the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wait {
    Yes,
    /// What is not in memory is [`io::ErrorKind::WouldBlock`].
    No,
}

/// What `stat` tells about a backing file.
#[derive(Clone, Copy, Debug)]
pub struct Stat {
    pub size: u64,
    pub mtime: Time,
    /// Bytes allocated.
    pub allocated: u64,
}

/// The extended attribute that keeps a backing file's floor.
const FLOOR_XATTR: &std::ffi::CStr = c"user.zenith.floor";

impl Disk {
    pub fn new() -> Disk {
        Disk {
            hook: None,
            open_files: Arc::new(OpenFiles {
                now: AtomicUsize::new(0),
                max: AtomicUsize::new(OPEN_FILES_MAX),
            }),
            tolerance: Arc::default(),
        }
    }

    /// Asks `hook` before every call.
    pub fn with_hook(mut self, hook: Arc<dyn Hook>) -> Disk {
        self.hook = Some(hook);
        self
    }

    /// Keeps about so many backing files open at most.
    pub fn with_open_files_max(self, max: usize) -> Disk {
        self.keep_open(max);
        self
    }

    /// The way to the files of another store; with those of this one there should be no more open.
    pub fn beside(&self) -> Disk {
        Disk {
            tolerance: Arc::default(),
            ..self.clone()
        }
    }

    /// Keeps about so many backing files open at most from now on, with all clones and those beside them together.
    pub fn keep_open(&self, max: usize) {
        self.open_files.max.store(max, Ordering::Relaxed);
    }

    /// How many there should be open at most.
    pub fn open_files_max(&self) -> usize {
        self.open_files.max.load(Ordering::Relaxed)
    }

    /// Whether more are open than there should be.
    pub fn is_crowded(&self) -> bool {
        self.open_files.now.load(Ordering::Relaxed) > self.open_files_max()
    }

    /// Whether one that is opened now may stay open when it was used, though it could be opened again: not where half as many again as
    /// there should be are open.
    pub fn may_keep_open(&self) -> bool {
        self.open_files.now.load(Ordering::Relaxed) < self.open_files_max() * 3 / 2
    }

    /// Whether files that are not needed should be closed.
    pub fn has_too_many_open(&self) -> bool {
        self.is_over(&self.tolerance.open)
    }

    /// Whether files should be synced, so that they can be closed.
    pub fn has_too_many_unsynced(&self) -> bool {
        self.is_over(&self.tolerance.unsynced)
    }

    fn is_over(&self, tolerated: &AtomicUsize) -> bool {
        self.open_files.now.load(Ordering::Relaxed) > self.open_files_max() + tolerated.load(Ordering::Relaxed)
    }

    /// Notes that what can be was closed, so that it is not tried with every request.
    pub fn has_closed(&self) {
        self.tolerance.open.store(self.tolerated(), Ordering::Relaxed);
    }

    /// Notes that what can be was synced and closed.
    pub fn has_synced_and_closed(&self) {
        self.has_closed();
        self.tolerance.unsynced.store(self.tolerated(), Ordering::Relaxed);
    }

    /// Forgets that there was little to close, so that it is tried again.
    pub fn forget_crowd(&self) {
        self.tolerance.open.fetch_min(self.well_tolerated(), Ordering::Relaxed);
        self.tolerance.unsynced.fetch_min(self.tolerated(), Ordering::Relaxed);
    }

    /// Until it is tried again an eighth of what there should be may be opened; where that has not helped before, only a little.
    fn tolerated(&self) -> usize {
        let (now, max) = (self.open_files.now.load(Ordering::Relaxed), self.open_files_max());
        let with = |more: usize| (now + more).saturating_sub(max);
        with(max / 8).min(self.well_tolerated()).max(with(max / 64))
    }

    /// Less than what closes sealed parts at once, see [`Disk::may_keep_open`].
    fn well_tolerated(&self) -> usize {
        self.open_files_max() * 3 / 8
    }

    fn before(&self, call: Call) -> io::Result<()> {
        match &self.hook {
            Some(hook) => hook.before(call),
            None => Ok(()),
        }
    }

    /// Says that an operation on the store has come to a point between two of its steps.
    pub fn at(&self, point: &'static str) {
        if let Some(hook) = &self.hook {
            hook.at(point);
        }
    }

    fn counted(&self, file: File) -> DiskFile {
        self.open_files.now.fetch_add(1, Ordering::Relaxed);
        DiskFile {
            file,
            open_files: self.open_files.clone(),
        }
    }

    /// Opens an existing file, to be written too when `write`.
    pub fn open(&self, path: &Path, write: bool) -> io::Result<DiskFile> {
        self.before(Call::Open)?;
        let file = OpenOptions::new().read(true).write(write).open(path)?;
        Ok(self.counted(file))
    }

    /// Opens an existing regular file for reading; anything else is damage, and not waited for.
    pub fn open_regular(&self, path: &Path) -> io::Result<DiskFile> {
        self.before(Call::Open)?;
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)?;
        match file.metadata()?.is_file() {
            true => Ok(self.counted(file)),
            false => Err(io::Error::new(io::ErrorKind::InvalidData, "it is no regular file")),
        }
    }

    /// Makes a new, empty file; one that is there already is an error.
    pub fn create(&self, path: &Path) -> io::Result<DiskFile> {
        self.before(Call::Create)?;
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        Ok(self.counted(file))
    }

    /// Reads until `buf` is full or the file ends; returns the bytes read.
    pub fn read_at(&self, file: &DiskFile, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            self.before(Call::Read)?;
            match file.file.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    /// As [`Disk::read_at`], if all of it is in memory; if not, the disk may have begun to read it when
    /// [`io::ErrorKind::WouldBlock`] comes.
    pub fn read_cached(&self, file: &DiskFile, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            self.before(Call::ReadCached)?;
            match filesystem::read_cached(&file.file, &mut buf[done..], offset + done as u64)? {
                0 => break,
                read => done += read,
            }
        }
        Ok(done)
    }

    /// Asks for the range to be read ahead.
    pub fn will_need(&self, file: &DiskFile, offset: u64, len: u64) -> io::Result<()> {
        self.before(Call::Advise)?;
        map::will_need(&file.file, offset, len)
    }

    /// Writes from the start of `data`; returns how much was written, with the error that stopped it.
    pub fn write_at(&self, file: &DiskFile, data: &[u8], offset: u64) -> (usize, io::Result<()>) {
        let mut done = 0;
        while done < data.len() {
            let step = self
                .before(Call::Write)
                .and_then(|()| file.file.write_at(&data[done..], offset + done as u64));
            match step {
                Ok(0) => return (done, Err(io::ErrorKind::WriteZero.into())),
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return (done, Err(e)),
            }
        }
        (done, Ok(()))
    }

    /// Sets the size; the file gets a hole when it grows.
    pub fn set_len(&self, file: &DiskFile, size: u64) -> io::Result<()> {
        self.before(Call::SetLen)?;
        file.file.set_len(size)
    }

    pub fn set_mtime(&self, file: &DiskFile, mtime: Time) -> io::Result<()> {
        self.before(Call::SetTimes)?;
        file.file.set_times(FileTimes::new().set_modified(system_time(mtime)?))
    }

    /// Keeps the file's floor beside it, in the same journal as its size.
    pub fn set_floor(&self, file: &DiskFile, floor: u64) -> io::Result<()> {
        self.before(Call::SetFloor)?;
        filesystem::set_xattr(&file.file, FLOOR_XATTR, floor::encode(floor).as_bytes())
    }

    /// The floor kept by [`Disk::set_floor`], if any.
    pub fn floor(&self, file: &DiskFile) -> io::Result<Option<u64>> {
        self.before(Call::Floor)?;
        let mut value = [0; 32];
        let Some(len) = filesystem::get_xattr(&file.file, FLOOR_XATTR, &mut value)? else {
            return Ok(None);
        };
        let floor = floor::decode(&value[..len]);
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "the floor is damaged");
        floor.map(Some).ok_or_else(damaged)
    }

    /// Makes the range a hole; the size stays.
    pub fn punch(&self, file: &DiskFile, offset: u64, len: u64) -> io::Result<()> {
        self.before(Call::Punch)?;
        map::punch(&file.file, offset, len)
    }

    /// The next data or hole at or after `offset`; `None` when there is no data up to the end.
    pub fn seek(&self, file: &DiskFile, offset: u64, whence: Seek) -> io::Result<Option<u64>> {
        self.before(Call::Seek)?;
        map::seek(&file.file, offset, whence)
    }

    /// The ranges of bytes that hold data, in order, as the filesystem will have them after a power cut.
    fn data_ranges(&self, file: &DiskFile) -> io::Result<Vec<Range<u64>>> {
        self.before(Call::Map)?;
        map::data_ranges(&file.file)
    }

    /// The ranges of blocks that hold data, in order and apart.
    pub fn data_blocks(&self, file: &DiskFile) -> io::Result<Vec<Range<u64>>> {
        Ok(whole_blocks(self.data_ranges(file)?))
    }

    pub fn stat(&self, file: &DiskFile) -> io::Result<Stat> {
        self.before(Call::Stat)?;
        let meta = file.file.metadata()?;
        Ok(Stat {
            size: meta.len(),
            mtime: Time {
                secs: meta.mtime(),
                nanos: meta.mtime_nsec() as u32,
            },
            allocated: meta.blocks() * 512,
        })
    }

    /// Has the disk start to write out what was written in a range of bytes, and does not wait for it.
    pub fn start_sync(&self, file: &DiskFile, bytes: Range<u64>) -> io::Result<()> {
        self.before(Call::StartSync)?;
        filesystem::start_sync(&file.file, bytes)
    }

    /// Makes the file's bytes and size durable.
    pub fn sync_data(&self, file: &DiskFile) -> io::Result<()> {
        self.before(Call::SyncData)?;
        file.file.sync_data()
    }

    /// Makes the names in a directory durable.
    pub fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.before(Call::SyncDir)?;
        File::open(path)?.sync_all()
    }

    /// Makes everything on the filesystem of an open file durable; tells of every write that has failed since it was opened.
    pub fn sync_filesystem(&self, file: &File) -> io::Result<()> {
        self.before(Call::SyncAll)?;
        filesystem::sync_all(file)
    }

    /// Makes sure that the file, renamed next, is never found under its new name with an older size. One journal for both
    /// does so by itself; btrfs may keep the name and lose the size until the file is synced.
    pub fn order_before_rename(&self, file: &DiskFile) -> io::Result<()> {
        match filesystem::is_in_place(&file.file)? {
            true => Ok(()),
            false => self.sync_data(file),
        }
    }

    /// Whether a block that is written again stays where it is, on the filesystem of an open file.
    pub fn overwrites_in_place(&self, file: &File) -> io::Result<bool> {
        self.before(Call::Stat)?;
        filesystem::is_in_place(file)
    }

    /// Gives a file a second name.
    pub fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.before(Call::Link)?;
        fs::hard_link(from, to)
    }

    /// Whether two names are of one file; one that is not there is not.
    pub fn is_same(&self, a: &Path, b: &Path) -> io::Result<bool> {
        self.before(Call::Stat)?;
        let meta = |path| match fs::metadata(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            meta => meta.map(Some),
        };
        let (a, b) = (meta(a)?, meta(b)?);
        Ok(a.zip(b).is_some_and(|(a, b)| (a.dev(), a.ino()) == (b.dev(), b.ino())))
    }

    pub fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.before(Call::Rename)?;
        fs::rename(from, to)
    }

    /// Renames to a name that nothing has; else [`io::ErrorKind::AlreadyExists`].
    pub fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.before(Call::Rename)?;
        filesystem::rename_new(from, to)
    }

    /// Removes a file; one that is not there is no error.
    pub fn remove(&self, path: &Path) -> io::Result<()> {
        self.before(Call::Remove)?;
        ignore_missing(fs::remove_file(path))
    }

    /// Removes a directory and what is in it; one that is not there is no error.
    pub fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.before(Call::Remove)?;
        ignore_missing(fs::remove_dir_all(path))
    }

    /// Makes a directory for its owner only; one that is there already is no error.
    pub fn make_dir(&self, path: &Path) -> io::Result<()> {
        self.before(Call::MakeDir)?;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
    }

    /// Bytes allocated to a file; none when it is not there.
    pub fn allocated(&self, path: &Path) -> io::Result<u64> {
        self.before(Call::Stat)?;
        match fs::metadata(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(0),
            meta => Ok(meta?.blocks() * 512),
        }
    }

    /// Bytes allocated to the files in a directory; none when it is not there.
    pub fn bytes_in(&self, path: &Path) -> io::Result<u64> {
        self.before(Call::List)?;
        let entries = match fs::read_dir(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(0),
            entries => entries?,
        };
        let mut bytes = 0;
        for entry in entries {
            match entry?.metadata() {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                meta => bytes += meta?.blocks() * 512,
            }
        }
        Ok(bytes)
    }

    /// The names in a directory, in no order.
    pub fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
        self.before(Call::List)?;
        fs::read_dir(path)?
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect()
    }

    pub fn space(&self, path: &Path) -> io::Result<Space> {
        self.before(Call::Space)?;
        let space = filesystem::space(path)?;
        Ok(self.hook.as_ref().map_or(space, |hook| hook.space(space)))
    }

    pub fn exists(&self, path: &Path) -> io::Result<bool> {
        self.before(Call::Stat)?;
        path.try_exists()
    }

    /// Makes a name for its own sake, unless it is there: a link to its directory, for that takes no descriptor and is found by
    /// [`Disk::exists`].
    pub fn mark(&self, path: &Path) -> io::Result<()> {
        self.before(Call::Create)?;
        match symlink(".", path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            marked => marked,
        }
    }

    /// The size of a file; none when it is not there.
    pub fn size(&self, path: &Path) -> io::Result<u64> {
        self.before(Call::Stat)?;
        match fs::metadata(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(0),
            meta => Ok(meta?.len()),
        }
    }

    /// Sets space aside as a file, which may be there in part.
    pub fn set_aside(&self, path: &Path, len: u64) -> io::Result<()> {
        self.before(Call::SetAside)?;
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
        filesystem::allocate(&file, len)
    }
}

/// The blocks that ranges of bytes touch; a filesystem with smaller ones has several in one.
fn whole_blocks(ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    let mut blocks: Vec<Range<u64>> = Vec::new();
    for bytes in ranges {
        let next = bytes.start / BLOCK..bytes.end.div_ceil(BLOCK);
        match blocks.last_mut() {
            Some(last) if last.end >= next.start => last.end = next.end,
            _ => blocks.push(next),
        }
    }
    blocks
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn system_time(time: Time) -> io::Result<SystemTime> {
    let whole = Duration::from_secs(time.secs.unsigned_abs());
    let base = if time.secs >= 0 {
        SystemTime::UNIX_EPOCH.checked_add(whole)
    } else {
        SystemTime::UNIX_EPOCH.checked_sub(whole)
    };
    base.and_then(|base| base.checked_add(Duration::from_nanos(time.nanos.into())))
        .ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_in_one_block_are_one() {
        let ranges = vec![0..1024, 2048..3072, 5000..8192, 8192..9000, 4 * BLOCK..5 * BLOCK];
        assert_eq!(whole_blocks(ranges), [0..3, 4..5]);
    }
}
