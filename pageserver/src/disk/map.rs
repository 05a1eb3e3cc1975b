//! Which bytes of a sparse file hold data: the filesystem's own answer. Platform code.
//!
//! On Linux that is FIEMAP (`Documentation/filesystems/fiemap.rst`) with `FIEMAP_FLAG_SYNC`, so that delayed
//! allocations are counted and what it tells is what a power cut leaves. Extents that are allocated but unwritten
//! read as zeros and were never written by us: they are not data. Elsewhere it is `SEEK_DATA` after a sync.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

use crate::types::Seek;

/// The next data or hole at or after `offset`; `None` past the last data or the end.
pub fn seek(file: &File, offset: u64, whence: Seek) -> io::Result<Option<u64>> {
    let whence = match whence {
        Seek::Data => libc::SEEK_DATA,
        Seek::Hole => libc::SEEK_HOLE,
    };
    // SAFETY: lseek takes no pointers.
    let found = unsafe { libc::lseek(file.as_raw_fd(), offset as libc::off_t, whence) };
    if found >= 0 {
        return Ok(Some(found as u64));
    }
    match io::Error::last_os_error() {
        e if e.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        e => Err(e),
    }
}

#[cfg(target_os = "linux")]
pub use linux::{data_ranges, expect_no_order, punch, will_need};

#[cfg(target_os = "linux")]
mod linux {
    use super::*;

    const FS_IOC_FIEMAP: libc::Ioctl = 0xC020_660B_u32 as libc::Ioctl;
    const FLAG_SYNC: u32 = 1;
    const EXTENT_LAST: u32 = 1;
    const EXTENT_UNWRITTEN: u32 = 0x800;
    const EXTENTS_PER_CALL: usize = 512;

    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    struct Extent {
        logical: u64,
        physical: u64,
        length: u64,
        reserved64: [u64; 2],
        flags: u32,
        reserved: [u32; 3],
    }

    #[repr(C)]
    struct Fiemap {
        start: u64,
        length: u64,
        flags: u32,
        mapped_extents: u32,
        extent_count: u32,
        reserved: u32,
        extents: [Extent; EXTENTS_PER_CALL],
    }

    pub fn data_ranges(file: &File) -> io::Result<Vec<Range<u64>>> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        let mut request = Box::new(Fiemap {
            start: 0,
            length: u64::MAX,
            flags: FLAG_SYNC,
            mapped_extents: 0,
            extent_count: EXTENTS_PER_CALL as u32,
            reserved: 0,
            extents: [Extent::default(); EXTENTS_PER_CALL],
        });
        loop {
            let extents = next_extents(file, &mut request)?;
            for extent in extents.iter().filter(|e| e.flags & EXTENT_UNWRITTEN == 0) {
                push(&mut ranges, extent.logical..extent.logical + extent.length);
            }
            match extents.last() {
                Some(last) if last.flags & EXTENT_LAST == 0 => {
                    let start = last.logical + last.length;
                    request.start = start;
                    request.length = u64::MAX - start;
                    request.flags = 0; // synced by the first call
                }
                _ => return Ok(ranges),
            }
        }
    }

    fn next_extents<'a>(file: &File, request: &'a mut Fiemap) -> io::Result<&'a [Extent]> {
        // SAFETY: the request is a `struct fiemap` with room for `extent_count` extents behind it.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP, &raw mut *request) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(&request.extents[..request.mapped_extents as usize])
    }

    fn push(ranges: &mut Vec<Range<u64>>, next: Range<u64>) {
        match ranges.last_mut() {
            Some(last) if last.end == next.start => last.end = next.end,
            _ => ranges.push(next),
        }
    }

    pub fn punch(file: &File, offset: u64, len: u64) -> io::Result<()> {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: fallocate takes no pointers.
        let result = unsafe { libc::fallocate(file.as_raw_fd(), mode, offset as i64, len as i64) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    pub fn will_need(file: &File, offset: u64, len: u64) -> io::Result<()> {
        match advise(file, offset, len, libc::POSIX_FADV_WILLNEED) {
            0 => Ok(()),
            code => Err(io::Error::from_raw_os_error(code)),
        }
    }

    pub fn expect_no_order(file: &File) {
        advise(file, 0, 0, libc::POSIX_FADV_RANDOM);
    }

    fn advise(file: &File, offset: u64, len: u64, advice: libc::c_int) -> libc::c_int {
        // SAFETY: posix_fadvise takes no pointers.
        unsafe { libc::posix_fadvise(file.as_raw_fd(), offset as i64, len as i64, advice) }
    }
}

#[cfg(not(target_os = "linux"))]
pub use portable::{data_ranges, expect_no_order, punch, will_need};

#[cfg(not(target_os = "linux"))]
mod portable {
    use super::*;

    pub fn data_ranges(file: &File) -> io::Result<Vec<Range<u64>>> {
        file.sync_data()?;
        let mut ranges = Vec::new();
        let mut offset = 0;
        while let Some(start) = seek(file, offset, Seek::Data)? {
            let end = match seek(file, start, Seek::Hole)? {
                Some(end) => end,
                None => file.metadata()?.len(),
            };
            ranges.push(start..end);
            offset = end;
        }
        Ok(ranges)
    }

    pub fn punch(_file: &File, _offset: u64, _len: u64) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
    }

    pub fn will_need(_file: &File, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    pub fn expect_no_order(_file: &File) {}
}
