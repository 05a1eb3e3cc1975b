//! The format of packs stays what it is: one that was written once is read for good, and what is written today says the same of itself.
//!
//! `ZENITH_GOLDEN=write` writes `packs/pack-v1` and what `zenith layer dump` tells of it anew: only for a new version of the format.

#[path = "support/store.rs"]
mod store;

use std::path::{Path, PathBuf};

use pageserver::*;
use store::Scratch;

const NOW: Time = Time {
    secs: 1_700_000_000,
    nanos: 5,
};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/packs").join(name)
}

/// A layer with a file that was cut, one of zeros, one with holes, and one of several chunks; packed.
fn pack() -> PathBuf {
    let scratch = Scratch::new("pack");
    let store = scratch.open(Disk::new());
    let main: BranchName = "main".parse().expect("a name");
    store
        .create_branch(&main, &Start::Empty, (0, 0), NOW)
        .expect("a branch");
    let timeline = store.timeline(&main).expect("loads");
    let write = |name, offset, bytes: &[u8]| {
        let ino = store::file(&timeline, name, NOW);
        timeline.write(ino, offset, bytes, Some(NOW)).expect("written");
        ino
    };
    let cut = write("cut", 0, &[7; 50_000]);
    write("zeros", 0, &[0; 300_000]);
    write(
        "long",
        0,
        &(0..700_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>(),
    );
    store
        .create_snapshot(&"main@one".parse().expect("a name"), Keep::default(), NOW)
        .expect("taken");
    for size in [20_001, 40_000] {
        let set = SetAttr {
            size: Some(size),
            ..SetAttr::default()
        };
        timeline.setattr(cut, set, NOW).expect("resized");
    }
    write("holes", 3_000_000, b"far away");
    write("long", 1_000_000, b"in the middle");
    write("long", 2_000_000, &[1; 200_000]);
    store
        .create_snapshot(&"main@two".parse().expect("a name"), Keep::default(), NOW)
        .expect("taken");
    while store
        .tend(
            &Tending {
                packing: Some(3),
                ..Tending::default()
            },
            &mut |_| true,
        )
        .expect("upkeep")
    {}
    let packs = std::fs::read_dir(scratch.dir.join("packs")).expect("packs").flatten();
    let newest = packs.map(|entry| entry.path()).max().expect("a pack");
    let kept = scratch.dir.with_extension("pack");
    std::fs::copy(newest, &kept).expect("copied");
    kept
}

#[test]
fn a_pack_that_was_written_once_is_read_for_good() {
    let (pack_v1, told_v1) = (golden("pack-v1"), golden("pack-v1.json"));
    if std::env::var_os("ZENITH_GOLDEN").is_some() {
        let new = pack();
        let told = serde_json::to_string_pretty(&dump_pack(&new).expect("read")).expect("JSON");
        std::fs::write(&told_v1, told + "\n").expect("written");
        std::fs::rename(new, &pack_v1).expect("moved");
    }
    let told = std::fs::read_to_string(told_v1).expect("a golden file");
    let told: PackDump = serde_json::from_str(&told).expect("JSON");
    assert_eq!(dump_pack(&pack_v1).expect("read"), told);
}

/// Offsets and lengths are zstd's, which may get better at it; times are the disk's.
#[test]
fn what_is_packed_today_says_the_same() {
    let new = pack();
    let bare = |path: &Path| {
        let mut pack = dump_pack(path).expect("read");
        pack.bytes = 0;
        for file in &mut pack.files {
            (file.packed, file.mtime) = (0, NOW);
            file.frames.iter_mut().for_each(|frame| {
                frame.offset = 0;
                frame.bytes = frame.bytes.min(1);
            });
        }
        pack
    };
    assert_eq!(bare(&new), bare(&golden("pack-v1")));
    std::fs::remove_file(new).expect("removed");
}
