//! Calls that differ between platforms or concern a filesystem as a whole, and which filesystems are fit. Platform code.

use std::ffi::CStr;
#[cfg(target_os = "macos")]
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
#[cfg(target_os = "macos")]
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

#[cfg(target_os = "macos")]
use nix::errno::Errno;
#[cfg(target_os = "linux")]
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use crate::types::Space;

/// Sets an extended attribute.
#[cfg(target_os = "linux")]
pub fn set_xattr(file: &File, name: &CStr, value: &[u8]) -> io::Result<()> {
    // SAFETY: name is NUL-terminated, value points to value.len() readable bytes.
    let result = unsafe { libc::fsetxattr(file.as_raw_fd(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Sets an extended attribute.
#[cfg(target_os = "macos")]
pub fn set_xattr(file: &File, name: &CStr, value: &[u8]) -> io::Result<()> {
    // SAFETY: name is NUL-terminated, value points to value.len() readable bytes.
    let result = unsafe {
        libc::fsetxattr(
            file.as_raw_fd(),
            name.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            0,
            0,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Renames to a name that nothing has.
#[cfg(target_os = "linux")]
pub fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    Ok(renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE)?)
}

/// Renames to a name that nothing has.
#[cfg(target_os = "macos")]
pub fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    let [from, to] = [from, to].map(|path| CString::new(path.as_os_str().as_bytes()));
    // SAFETY: both paths are NUL-terminated.
    Errno::result(unsafe { libc::renamex_np(from?.as_ptr(), to?.as_ptr(), libc::RENAME_EXCL) })?;
    Ok(())
}

/// Reads what the page cache has at `offset`; [`io::ErrorKind::WouldBlock`] when that is nothing.
#[cfg(target_os = "linux")]
pub fn read_cached(file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    let part = libc::iovec {
        iov_base: buf.as_mut_ptr().cast(),
        iov_len: buf.len(),
    };
    // SAFETY: there is one part, and it points to buf.len() writable bytes.
    let read = unsafe { libc::preadv2(file.as_raw_fd(), &part, 1, offset as libc::off_t, libc::RWF_NOWAIT) };
    if let Ok(read) = usize::try_from(read) {
        return Ok(read);
    }
    match io::Error::last_os_error() {
        e if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINTR)) => Err(io::ErrorKind::WouldBlock.into()),
        e => Err(e),
    }
}

/// What is in memory can't be told.
#[cfg(not(target_os = "linux"))]
pub fn read_cached(_file: &File, _buf: &mut [u8], _offset: u64) -> io::Result<usize> {
    Err(io::ErrorKind::WouldBlock.into())
}

/// Reads an extended attribute into `buf`; its length, or `None` when there is none.
pub fn get_xattr(file: &File, name: &CStr, buf: &mut [u8]) -> io::Result<Option<usize>> {
    #[cfg(target_os = "linux")]
    const MISSING: i32 = libc::ENODATA;
    #[cfg(target_os = "macos")]
    const MISSING: i32 = libc::ENOATTR;

    // SAFETY: name is NUL-terminated, buf points to buf.len() writable bytes.
    let len = unsafe {
        #[cfg(target_os = "linux")]
        let len = libc::fgetxattr(file.as_raw_fd(), name.as_ptr(), buf.as_mut_ptr().cast(), buf.len());
        #[cfg(target_os = "macos")]
        let len = libc::fgetxattr(
            file.as_raw_fd(),
            name.as_ptr(),
            buf.as_mut_ptr().cast(),
            buf.len(),
            0,
            0,
        );
        len
    };
    if len >= 0 {
        return Ok(Some(len as usize));
    }
    match io::Error::last_os_error() {
        e if e.raw_os_error() == Some(MISSING) => Ok(None),
        e => Err(e),
    }
}

/// Makes the whole filesystem durable. Write-back errors since the last call are reported (Linux 5.8).
#[cfg(target_os = "linux")]
pub fn sync_all(file: &File) -> io::Result<()> {
    // SAFETY: syncfs takes no pointers.
    if unsafe { libc::syncfs(file.as_raw_fd()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Starts to write bytes of a file out, and does not wait.
#[cfg(target_os = "linux")]
pub fn start_sync(file: &File, bytes: Range<u64>) -> io::Result<()> {
    let offset = i64::try_from(bytes.start).unwrap_or(i64::MAX);
    // 0 is "to the end".
    let len = i64::try_from(bytes.end).map_or(0, |end| end - offset);
    // SAFETY: sync_file_range takes no pointers.
    if unsafe { libc::sync_file_range(file.as_raw_fd(), offset, len, libc::SYNC_FILE_RANGE_WRITE) } != 0 {
        let error = io::Error::last_os_error();
        // For lack of memory the kernel keeps the bytes, for the sync.
        return match error.raw_os_error() {
            Some(libc::ENOMEM) => Ok(()),
            _ => Err(error),
        };
    }
    Ok(())
}

/// The sync that follows does it all.
#[cfg(not(target_os = "linux"))]
pub fn start_sync(_file: &File, _bytes: Range<u64>) -> io::Result<()> {
    Ok(())
}

/// There is no syncfs here that reports errors: the caller syncs file by file.
#[cfg(not(target_os = "linux"))]
pub fn sync_all(_file: &File) -> io::Result<()> {
    Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
}

/// Has the filesystem set the first `len` bytes of a file aside.
#[cfg(target_os = "linux")]
pub fn allocate(file: &File, len: u64) -> io::Result<()> {
    let len = i64::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: fallocate takes no pointers.
    if unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, len) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Nothing sets space aside here: the reserve is only what is left free.
#[cfg(not(target_os = "linux"))]
pub fn allocate(_file: &File, _len: u64) -> io::Result<()> {
    Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
}

pub fn space(path: &Path) -> io::Result<Space> {
    let stat = nix::sys::statvfs::statvfs(path)?;
    let unit = stat.fragment_size() as u64;
    Ok(Space {
        total: stat.blocks() as u64 * unit,
        free: stat.blocks_free() as u64 * unit,
        available: stat.blocks_available() as u64 * unit,
        files: stat.files() as u64,
        files_free: stat.files_free() as u64,
    })
}

/// Whether a filesystem can hold a store.
#[derive(Debug, PartialEq, Eq)]
pub enum Fitness {
    Fit,
    /// It can, with a weaker promise that the user must know of.
    Weaker(String),
    Unfit {
        filesystem: String,
        why: String,
    },
}

/// Whether there is one journal over blocks that stay where they are when they are written again, as on ext4 and xfs. Then a file's size is durable
/// no later than a name that was given to it afterwards. The sync of a directory or of another file in it may have btrfs keep that a file
/// exists, and nothing else of it.
#[cfg(target_os = "linux")]
pub fn is_in_place(file: &File) -> io::Result<bool> {
    use nix::sys::statfs::{BTRFS_SUPER_MAGIC, fstatfs};
    Ok(fstatfs(file)?.filesystem_type() != BTRFS_SUPER_MAGIC)
}

/// Nothing is known here.
#[cfg(not(target_os = "linux"))]
pub fn is_in_place(_file: &File) -> io::Result<bool> {
    Ok(false)
}

fn unfit(filesystem: &str, why: &str) -> Fitness {
    Fitness::Unfit {
        filesystem: filesystem.into(),
        why: why.into(),
    }
}

/// Judges by name whether the filesystem under `path` is one whose holes survive a power cut as the store needs:
/// ext4 with data=ordered (or journal) and barriers, xfs, btrfs.
#[cfg(target_os = "linux")]
pub fn fitness(path: &Path) -> io::Result<Fitness> {
    use nix::sys::statfs::{BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, TMPFS_MAGIC, XFS_SUPER_MAGIC, statfs};
    Ok(match statfs(path)?.filesystem_type() {
        XFS_SUPER_MAGIC | BTRFS_SUPER_MAGIC => Fitness::Fit,
        EXT4_SUPER_MAGIC => match ext4_options(path)? {
            Some(options) => ext4_fitness(&options),
            None => unfit("ext4", "its mount options can't be read from /proc/fs/ext4"),
        },
        TMPFS_MAGIC => unfit("tmpfs", "it keeps nothing over a restart of the machine"),
        other => unfit(
            &format!("a filesystem of type {:#x}", other.0),
            "only ext4, xfs and btrfs are known to keep it safe",
        ),
    })
}

/// Judges an ext4 by the lines of `/proc/fs/ext4/DEVICE/options`. One without a journal shows no `data=` line.
#[cfg(target_os = "linux")]
fn ext4_fitness(options: &str) -> Fitness {
    let has = |option: &str| options.lines().any(|line| line.trim() == option);
    if has("data=writeback") {
        return unfit("ext4", "it is mounted with data=writeback");
    }
    if has("nobarrier") || has("barrier=0") {
        return unfit("ext4", "it is mounted without write barriers");
    }
    if !options.lines().any(|line| line.starts_with("data=")) {
        return Fitness::Weaker(
            "the store lies on an ext4 without a journal: a power cut can damage it, as it can any file there".into(),
        );
    }
    Fitness::Fit
}

/// The options in force of the ext4 that `path` lies on.
#[cfg(target_os = "linux")]
fn ext4_options(path: &Path) -> io::Result<Option<String>> {
    use nix::sys::stat::{major, minor};
    use std::os::unix::fs::MetadataExt;
    let dev = std::fs::metadata(path)?.dev();
    let device = format!("/sys/dev/block/{}:{}", major(dev), minor(dev));
    let Ok(target) = std::fs::read_link(device) else {
        return Ok(None);
    };
    let Some(name) = target.file_name() else {
        return Ok(None);
    };
    let options = Path::new("/proc/fs/ext4").join(name).join("options");
    Ok(std::fs::read_to_string(options).ok())
}

/// No filesystem is known by name here: the probe decides.
#[cfg(not(target_os = "linux"))]
pub fn fitness(_path: &Path) -> io::Result<Fitness> {
    Ok(Fitness::Fit)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn ext4_is_judged_by_its_options() {
        assert_eq!(ext4_fitness("rw\nbarrier\ndata=ordered\n"), Fitness::Fit);
        assert!(matches!(ext4_fitness("rw\nbarrier\n"), Fitness::Weaker(_)));
        for bad in ["barrier\ndata=writeback\n", "nobarrier\ndata=ordered\n"] {
            assert!(matches!(ext4_fitness(bad), Fitness::Unfit { .. }), "{bad}");
        }
    }
}
