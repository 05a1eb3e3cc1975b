//! fuser's types as the file system's, and back.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, Generation, INodeNo, RenameFlags, TimeOrNow};
use nix::errno::Errno;
use pageserver::{Attr, BLOCK, Fallocate, FsResult, Kind, NewKind, Rename, Seek, Time};

use crate::fs::{Entry, Keep};

/// Inode numbers are never used again.
pub const GENERATION: Generation = Generation(0);

/// So long that nobody sees the end of it.
pub const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);

/// What kind of node a mode stands for.
const TYPE: u32 = 0o170000;
const FIFO: u32 = 0o010000;
const CHARACTER_DEVICE: u32 = 0o020000;
const BLOCK_DEVICE: u32 = 0o060000;
const REGULAR: u32 = 0o100000;
const SOCKET: u32 = 0o140000;

/// A `stat` block has 512 bytes, whatever the file system's are.
const STAT_BLOCK: u64 = 512;

pub fn errno(error: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(error as i32)
}

pub fn ttl(keep: Keep) -> Duration {
    match keep {
        Keep::Forever => FOREVER,
        Keep::Never => Duration::ZERO,
    }
}

pub fn file_attr(entry: &Entry) -> FsResult<FileAttr> {
    let attr = &entry.attr;
    Ok(FileAttr {
        ino: INodeNo(entry.node.id()?),
        size: attr.size,
        blocks: blocks(attr),
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: UNIX_EPOCH,
        kind: file_type(attr.kind),
        perm: attr.mode,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: 0,
        blksize: BLOCK as u32,
        flags: 0,
    })
}

/// What says "no such name, and you may remember that": an entry without a node.
pub fn absent() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: BLOCK as u32,
        flags: 0,
    }
}

/// The blocks the file would take without holes: which of them a layer holds is no property of the file.
fn blocks(attr: &Attr) -> u64 {
    match attr.kind {
        Kind::File => attr.size.div_ceil(BLOCK) * (BLOCK / STAT_BLOCK),
        _ => 0,
    }
}

pub fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Dir => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
    }
}

/// What mknod(2) is to make. Device nodes are refused as if the caller had no right to them.
pub fn new_kind(mode: u32) -> FsResult<NewKind> {
    match mode & TYPE {
        0 | REGULAR => Ok(NewKind::File),
        FIFO => Ok(NewKind::Fifo),
        SOCKET => Ok(NewKind::Socket),
        CHARACTER_DEVICE | BLOCK_DEVICE => Err(Errno::EPERM),
        _ => Err(Errno::EINVAL),
    }
}

#[cfg(target_os = "linux")]
pub fn rename(flags: RenameFlags) -> FsResult<Rename> {
    match flags {
        RenameFlags::RENAME_NOREPLACE => Ok(Rename::NoReplace),
        RenameFlags::RENAME_EXCHANGE => Ok(Rename::Exchange),
        flags if flags.is_empty() => Ok(Rename::Replace),
        _ => Err(Errno::EINVAL),
    }
}

#[cfg(not(target_os = "linux"))]
pub fn rename(flags: RenameFlags) -> FsResult<Rename> {
    if flags.is_empty() {
        Ok(Rename::Replace)
    } else {
        Err(Errno::EINVAL)
    }
}

#[cfg(target_os = "linux")]
pub fn fallocate(mode: i32) -> FsResult<Fallocate> {
    use libc::{FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE};
    const PUNCH: i32 = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    const ZERO_KEEP: i32 = FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE;
    match mode {
        0 => Ok(Fallocate::Extend),
        FALLOC_FL_KEEP_SIZE => Ok(Fallocate::KeepSize),
        PUNCH => Ok(Fallocate::PunchHole),
        FALLOC_FL_ZERO_RANGE => Ok(Fallocate::ZeroRange { keep_size: false }),
        ZERO_KEEP => Ok(Fallocate::ZeroRange { keep_size: true }),
        _ => Err(Errno::EOPNOTSUPP),
    }
}

#[cfg(not(target_os = "linux"))]
pub fn fallocate(_mode: i32) -> FsResult<Fallocate> {
    Err(Errno::EOPNOTSUPP)
}

pub fn seek(whence: i32) -> FsResult<Seek> {
    match whence {
        libc::SEEK_DATA => Ok(Seek::Data),
        libc::SEEK_HOLE => Ok(Seek::Hole),
        _ => Err(Errno::EINVAL),
    }
}

pub fn time_or_now(time: TimeOrNow, now: Time) -> Time {
    match time {
        TimeOrNow::SpecificTime(time) => received_time(time),
        TimeOrNow::Now => now,
    }
}

/// A time as fuser 0.18 hands it on. Before 1970 the kernel says seconds below zero and nanoseconds above them;
/// fuser counts both back from 1970, so that what it calls 1.2 s before stands for -1 s and +0.2 s.
pub fn received_time(time: SystemTime) -> Time {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => Time {
            secs: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            nanos: since.subsec_nanos(),
        },
        Err(before) => Time {
            secs: 0i64.saturating_sub_unsigned(before.duration().as_secs()),
            nanos: before.duration().subsec_nanos(),
        },
    }
}

/// A time as fuser 0.18 takes it, which is the moment itself.
fn system_time(time: Time) -> SystemTime {
    let seconds = Duration::from_secs(time.secs.unsigned_abs());
    let whole = if time.secs < 0 {
        UNIX_EPOCH.checked_sub(seconds)
    } else {
        UNIX_EPOCH.checked_add(seconds)
    };
    whole
        .and_then(|whole| whole.checked_add(Duration::from_nanos(time.nanos.into())))
        .unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What fuser makes of the kernel's seconds and nanoseconds.
    fn as_fuser_decodes(secs: i64, nanos: u32) -> SystemTime {
        if secs >= 0 {
            UNIX_EPOCH + Duration::new(secs as u64, nanos)
        } else {
            UNIX_EPOCH - Duration::new(secs.unsigned_abs(), nanos)
        }
    }

    #[test]
    fn times_arrive_as_the_kernel_sent_them() {
        for (secs, nanos) in [
            (0, 0),
            (5, 999_999_999),
            (-1, 0),
            (-1, 200_000_000),
            (-3_000_000_000, 1),
            (i64::MIN, 0),
        ] {
            let received = received_time(as_fuser_decodes(secs, nanos));
            assert_eq!(received, Time { secs, nanos });
        }
    }

    #[test]
    fn times_before_1970_are_the_moment_they_name() {
        let time = system_time(Time {
            secs: -2,
            nanos: 800_000_000,
        });
        assert_eq!(time, UNIX_EPOCH - Duration::new(1, 200_000_000));
        let oldest = system_time(Time {
            secs: i64::MIN,
            nanos: 0,
        });
        assert!(oldest < UNIX_EPOCH);
    }

    #[test]
    fn device_nodes_are_refused() {
        assert_eq!(new_kind(CHARACTER_DEVICE | 0o600), Err(Errno::EPERM));
        assert_eq!(new_kind(BLOCK_DEVICE | 0o600), Err(Errno::EPERM));
        assert_eq!(new_kind(FIFO | 0o600), Ok(NewKind::Fifo));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_whiteout_and_a_collapse_are_refused() {
        assert_eq!(rename(RenameFlags::RENAME_WHITEOUT), Err(Errno::EINVAL));
        assert_eq!(fallocate(libc::FALLOC_FL_COLLAPSE_RANGE), Err(Errno::EOPNOTSUPP));
    }
}
