//! What is written comes back, and whatever is changed in it is told.

use super::*;
use crate::error::{Error, Result};
use crate::parts::Kept;
use crate::sums::{self, CHUNK_BLOCKS, Chunk};
use crate::types::{BLOCK, Ino, Time};

/// Blocks by file and number, as bytes of which each is filled.
type Content = Vec<(Ino, Vec<(u64, u8)>)>;

fn kept(blocks: &[(u64, u8)]) -> Kept {
    Kept {
        size: blocks.last().map_or(0, |(block, _)| (block + 1) * BLOCK - 7),
        floor: None,
        mtime: Time { secs: 5, nanos: 6 },
    }
}

fn content() -> Content {
    let long = (0..600).map(|block| (block, (block % 251) as u8)).collect();
    vec![
        (Ino(16), vec![(0, 1), (1, 2), (40, 3)]),
        (Ino(17), Vec::new()),
        (Ino(30), long),
        (Ino(31), vec![(3, 0), (4, 0), (100_000, 9)]),
    ]
}

fn pack(content: &Content) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), 3).expect("begun");
    for (ino, blocks) in content {
        writer.begin_file(*ino, kept(blocks));
        for chunk in blocks.chunk_by(|(a, _), (b, _)| a / CHUNK_BLOCKS == b / CHUNK_BLOCKS) {
            let numbers: Vec<u64> = chunk.iter().map(|(block, _)| block % CHUNK_BLOCKS).collect();
            let bytes: Vec<u8> = chunk.iter().flat_map(|(_, byte)| [*byte; BLOCK as usize]).collect();
            writer
                .add_chunk(chunk[0].0 / CHUNK_BLOCKS, &numbers, &bytes)
                .expect("written");
        }
        writer.end_file().expect("ended");
    }
    let (bytes, sum) = writer.finish().expect("finished");
    assert_eq!(Pack::open(&bytes[..], "the pack".into()).expect("opens").sum(), sum);
    bytes
}

/// All that can be read of a pack.
fn unpack(bytes: &[u8]) -> Result<Content> {
    let pack = Pack::open(bytes, "the pack".into())?;
    let mut content = Vec::new();
    for file in pack.files() {
        let mut blocks = Vec::new();
        pack.each_chunk(file.ino, |number, chunk| read_chunk(&pack, number, &chunk, &mut blocks))?;
        assert_eq!(file.kept, kept(&blocks));
        content.push((file.ino, blocks));
    }
    Ok(content)
}

fn read_chunk(pack: &Pack<&[u8]>, number: u64, chunk: &Chunk, blocks: &mut Vec<(u64, u8)>) -> Result<()> {
    for (block, sum) in chunk.blocks() {
        let (frame, len, inside) = chunk.frame(block).expect("a frame");
        let bytes = pack.frame(frame, len)?;
        let bytes = &bytes[inside * BLOCK as usize..][..BLOCK as usize];
        if sums::of(bytes) != sum {
            let what = "another block".into();
            return Err(Error::Damaged { what });
        }
        blocks.push((number * CHUNK_BLOCKS + block, bytes[0]));
    }
    Ok(())
}

#[test]
fn what_is_written_comes_back() {
    assert_eq!(unpack(&pack(&content())).expect("read"), content());
    assert_eq!(unpack(&pack(&Vec::new())).expect("read"), Vec::new());
}

#[test]
fn a_chunk_is_found_by_its_number_and_no_other_is() {
    let bytes = pack(&content());
    let pack = Pack::open(&bytes[..], "the pack".into()).expect("opens");
    let long = pack.chunk(Ino(30), 2).expect("read").expect("there");
    assert_eq!(long.blocks().count(), 600 - 512);
    assert_eq!(long.frames().len(), 3);
    assert_eq!(pack.chunk(Ino(30), 3).expect("read"), None);
    assert_eq!(pack.chunk(Ino(18), 0).expect("read"), None);
}

#[test]
fn zeros_cost_nothing() {
    let zeros = vec![(Ino(16), (0..256).map(|block| (block, 0)).collect::<Vec<_>>())];
    let bytes = pack(&zeros);
    assert_eq!(unpack(&bytes).expect("read"), zeros);
    let record = 32 + 256 * 4 + 8 * 12;
    assert_eq!(bytes.len(), 16 + record + (48 + 10) + 40);
}

#[test]
fn every_changed_bit_is_told() {
    let small = content().into_iter().filter(|(ino, _)| *ino != Ino(30)).collect();
    let bytes = pack(&small);
    for byte in 0..bytes.len() {
        for bit in 0..8 {
            let mut damaged = bytes.clone();
            damaged[byte] ^= 1 << bit;
            let error = unpack(&damaged).expect_err("damaged");
            assert!(matches!(error, Error::Damaged { .. }), "{byte}.{bit}: {error}");
        }
    }
}

#[test]
fn a_pack_that_ends_early_or_late_is_none() {
    let bytes = pack(&content());
    for len in (0..bytes.len()).step_by(7) {
        unpack(&bytes[..len]).expect_err("cut");
    }
    unpack(&[&bytes[..], b"more"].concat()).expect_err("longer");
}

/// Numbers that are under a right checksum and make no sense.
#[test]
fn a_directory_that_lies_is_refused() {
    let bytes = pack(&content());
    let footer = bytes.len() - 40;
    let start = u64::from_le_bytes(bytes[footer..footer + 8].try_into().expect("eight")) as usize;
    // The first file's inode number, its records' place, their count, the first one's chunk.
    for (at, value) in [(0, 99), (36, 1 << 60), (36, 3), (44, 1 << 30), (48, u32::MAX.into())] {
        let mut lie = bytes.clone();
        let field = if at < 44 { 8 } else { 4 };
        lie[start + at..start + at + field].copy_from_slice(&u64::to_le_bytes(value)[..field]);
        let sum = crc32c::crc32c(&lie[start..footer]);
        lie[footer + 16..footer + 20].copy_from_slice(&sum.to_le_bytes());
        let sum = crc32c::crc32c(&lie[footer..footer + 28]);
        lie[footer + 28..footer + 32].copy_from_slice(&sum.to_le_bytes());
        unpack(&lie).expect_err("a lie");
    }
}
