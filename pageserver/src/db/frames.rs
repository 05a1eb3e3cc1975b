//! The frames that RocksDB writes its log and its manifest in, as far as their checksums go.
//!
//! ```text
//!   block of 32 KiB   crc32c (4) | length (2) | type (1) | bytes …      as often as it fits, zeros to the block's end
//! ```
//!
//! The checksum covers the type and the bytes and is rotated and moved ("masked"); numbers are little-endian. RocksDB takes a frame
//! that is not sound for the end of what was written, as a power cut leaves it. Whoever knows how much was durable
//! can tell the one from the other. And there are frames that RocksDB reads again and again without an end: those of
//! a recycled file, in one that is not. We recycle none. The format: `db/log_format.h` and `util/crc32c.h` of RocksDB.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

const BLOCK: usize = 32 * 1024;
const HEADER: usize = 7;
const MASK_DELTA: u32 = 0xa282_ead8;

/// What became of bytes that were durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    Sound,
    Missing,
    /// The file ends here.
    Short(u64),
    /// The frame here is not as it was written.
    Damaged(u64),
    /// As damaged, and RocksDB must not come by: it would never return.
    Endless(u64),
}

/// Looks at a file whose first `len` bytes, which end with a frame, were durable.
pub fn examine(path: &Path, len: u64) -> io::Result<State> {
    let bytes = match fs::read(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(State::Missing),
        bytes => bytes?,
    };
    let sound = sound_len(&bytes);
    Ok(match sound as u64 {
        at if is_endless(&bytes[sound..]) => State::Endless(at),
        _ if (bytes.len() as u64) < len => State::Short(bytes.len() as u64),
        at if at < len => State::Damaged(at),
        _ => State::Sound,
    })
}

/// Has what stands behind `at` be no frame of any kind.
pub fn end(path: &Path, at: u64) -> io::Result<()> {
    let file = fs::File::options().write(true).open(path)?;
    file.write_all_at(&[0; HEADER], at)?;
    file.sync_all()
}

/// Whether a frame that is not sound says that it is of a recycled file.
fn is_endless(frame: &[u8]) -> bool {
    matches!(frame.get(HEADER - 1), Some(5..=8 | 11 | 131))
}

/// How many bytes from the start are whole and sound frames.
pub fn sound_len(bytes: &[u8]) -> usize {
    let mut at = 0;
    while at < bytes.len() {
        let left_in_block = BLOCK - at % BLOCK;
        let next = match left_in_block < HEADER {
            true => Some(at + left_in_block),
            false => frame_end(&bytes[at..], left_in_block).map(|end| at + end),
        };
        match next {
            Some(next) if next <= bytes.len() => at = next,
            _ => return at,
        }
    }
    at
}

/// Where the frame at the start ends, if it is whole, sound and within its block.
fn frame_end(bytes: &[u8], left_in_block: usize) -> Option<usize> {
    let header = bytes.first_chunk::<HEADER>()?;
    let [c0, c1, c2, c3, l0, l1, _] = *header;
    let end = HEADER + usize::from(u16::from_le_bytes([l0, l1]));
    let checked = bytes.get(HEADER - 1..end).filter(|_| end <= left_in_block)?;
    let crc = crc32c::crc32c(checked).rotate_right(15).wrapping_add(MASK_DELTA);
    (crc == u32::from_le_bytes([c0, c1, c2, c3])).then_some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(payload: &[u8]) -> Vec<u8> {
        let checked = [&[1], payload].concat();
        let crc = crc32c::crc32c(&checked).rotate_right(15).wrapping_add(MASK_DELTA);
        let len = (payload.len() as u16).to_le_bytes();
        [&crc.to_le_bytes()[..], &len, &checked].concat()
    }

    #[test]
    fn frames_are_sound_over_the_ends_of_blocks() {
        let long = frame(&vec![7; BLOCK - HEADER - 3]);
        let log = [long, vec![0; 3], frame(b"next block"), frame(b"")].concat();
        assert_eq!(sound_len(&log), log.len());
    }

    /// RocksDB 11.8 never returns from such a file (`Reader::ReadPhysicalRecord` takes nothing from its buffer).
    #[test]
    fn a_frame_that_rocksdb_never_gets_past_is_told_wherever_it_is() {
        let path = std::env::temp_dir().join(format!("zenith-frames-{}", std::process::id()));
        let mut log = [frame(b"first"), frame(b"second")].concat();
        let second = frame(b"first").len();
        log[second + 6] ^= 4;
        fs::write(&path, &log).expect("written");
        let states = [0, second, log.len()].map(|len| examine(&path, len as u64).expect("read"));
        assert_eq!(states, [State::Endless(second as u64); 3]);
        end(&path, second as u64).expect("ended");
        assert_eq!(examine(&path, second as u64).expect("read"), State::Sound);
        fs::remove_file(&path).expect("removed");
    }

    #[test]
    fn every_flipped_bit_is_seen_and_so_is_a_frame_that_ends_early() {
        let (first, second) = (frame(b"first"), frame(b"second"));
        let log = [first.clone(), second].concat();
        for bit in 0..log.len() * 8 {
            let mut flipped = log.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let hit = if bit / 8 < first.len() { 0 } else { first.len() };
            assert_eq!(sound_len(&flipped), hit, "bit {bit}");
        }
        assert_eq!(sound_len(&log[..log.len() - 1]), first.len());
    }
}
