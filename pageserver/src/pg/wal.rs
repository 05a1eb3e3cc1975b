//! How far the WAL in a data directory goes.
//!
//! A WAL page begins with `XLogPageHeaderData` (`src/include/access/xlog_internal.h`), which says which position the page is
//! for. Segments are recycled: what lies after the end of WAL is older pages under a new name, whose position is
//! another one. So the valid pages of a segment are a prefix of it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::ControlFile;
use crate::error::FsResult;
use crate::types::Ino;
use crate::view::View;

const WAL_DIR: &str = "pg_wal";

/// `XLOG_BLCKSZ` as everybody builds it.
const PAGE: u64 = 8192;

/// Where in a page's header its position stands.
const PAGE_ADDRESS: std::ops::Range<usize> = 8..16;

/// Sizes that `initdb --wal-segsize` allows.
const SEGMENT_SIZES: std::ops::RangeInclusive<u64> = 1 << 20..=1 << 30;

/// Bytes of WAL from where recovery starts to the end, to a page.
pub fn bytes_to_replay(view: &View, control: &ControlFile) -> FsResult<u64> {
    Ok(end_of_wal(view, control)?.saturating_sub(control.redo_lsn))
}

fn end_of_wal(view: &View, control: &ControlFile) -> FsResult<u64> {
    let mut end = control.redo_lsn;
    let Some(size) = segment_size(view) else {
        return Ok(end);
    };
    let mut number = control.redo_lsn / size;
    while let Some(segment) = resolve(view, &segment_name(control.wal_timeline, number, size)) {
        let start = number * size;
        let valid = valid_pages(view, segment, start, size / PAGE)?;
        end = end.max(start + valid * PAGE);
        if valid * PAGE < size {
            break;
        }
        number += 1;
    }
    Ok(end)
}

/// All segments of a cluster have one size.
fn segment_size(view: &View) -> Option<u64> {
    let is_segment = |name: &OsStr| name.len() == 24 && name.as_bytes().iter().all(u8::is_ascii_hexdigit);
    let first = {
        let ns = view.ns();
        let dir = ns.resolve(&[WAL_DIR]).ok()?;
        ns.names(dir, 0)
            .find(|(name, ..)| is_segment(name))
            .map(|(.., ino)| ino)?
    };
    let size = view.getattr(first).ok()?.size;
    (SEGMENT_SIZES.contains(&size) && size.is_power_of_two()).then_some(size)
}

/// `XLogFileName`.
fn segment_name(wal_timeline: u32, number: u64, size: u64) -> String {
    let per_log = (1 << 32) / size;
    format!("{wal_timeline:08X}{:08X}{:08X}", number / per_log, number % per_log)
}

fn resolve(view: &View, name: &str) -> Option<Ino> {
    view.ns().resolve(&[WAL_DIR, name]).ok()
}

/// How many pages from the segment's beginning on are what they should be.
fn valid_pages(view: &View, segment: Ino, start: u64, pages: u64) -> FsResult<u64> {
    let (mut valid, mut invalid) = (0, pages);
    while valid < invalid {
        let middle = valid.midpoint(invalid);
        match is_valid(view, segment, start, middle)? {
            true => valid = middle + 1,
            false => invalid = middle,
        }
    }
    Ok(valid)
}

fn is_valid(view: &View, segment: Ino, start: u64, page: u64) -> FsResult<bool> {
    let mut header = [0; PAGE_ADDRESS.end];
    let read = view.read(segment, page * PAGE, &mut header)?;
    let address = u64::from_ne_bytes(std::array::from_fn(|i| header[PAGE_ADDRESS.start + i]));
    Ok(read == header.len() && address == start + page * PAGE && header[..2] != [0, 0])
}

#[cfg(test)]
mod tests {
    use super::segment_name;

    #[test]
    fn segments_are_named_as_postgres_names_them() {
        assert_eq!(segment_name(1, 1, 16 << 20), "000000010000000000000001");
        assert_eq!(segment_name(2, 0x1FF, 16 << 20), "0000000200000001000000FF");
        assert_eq!(segment_name(1, 0x16, 1 << 30), "000000010000000500000002");
    }
}
