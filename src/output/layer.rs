//! A pack as people read it.

use jiff::Timestamp;
use pageserver::{FileDump, PackDump, Time};
use serde::Serialize;

use super::table::{Cell, table};
use super::{Show, bytes};
use crate::time::human;

/// What `zenith layer dump` shows.
#[derive(Serialize)]
#[serde(transparent)]
pub struct Dumped {
    pub pack: PackDump,
    #[serde(skip)]
    pub frames: bool,
}

impl Show for Dumped {
    fn text(&self) -> String {
        let pack = &self.pack;
        let row = |file: &FileDump| {
            [
                file.ino.clone(),
                bytes(file.size),
                file.floor.map_or(String::new(), bytes),
                modified(file.mtime),
                bytes(file.data),
                bytes(file.packed),
                file.frames.len().to_string(),
            ]
            .map(Cell::from)
        };
        let files = table(
            ["INODE", "SIZE", "FLOOR", "MODIFIED", "DATA", "PACKED", "FRAMES"],
            pack.files.iter().map(row),
        );
        let data: u64 = pack.files.iter().map(|file| file.data).sum();
        let sum = format!(
            "pack version {}: {} files with {} of data in {}",
            pack.version,
            pack.files.len(),
            bytes(data),
            bytes(pack.bytes)
        );
        match self.frames {
            true => format!("{files}\n{}\n{sum}", frames(pack)),
            false => format!("{files}\n{sum}"),
        }
    }
}

/// Nothing where no calendar has such a day.
fn modified(time: Time) -> String {
    let time = Timestamp::new(time.secs, time.nanos as i32);
    time.map_or(String::new(), human)
}

fn frames(pack: &PackDump) -> String {
    let frames = pack
        .files
        .iter()
        .flat_map(|file| file.frames.iter().map(move |frame| (file, frame)));
    let rows = frames.map(|(file, frame)| {
        let runs = frame.blocks.iter().map(|(first, count)| format!("{first}+{count}"));
        [
            file.ino.clone(),
            frame.offset.to_string(),
            frame.bytes.to_string(),
            runs.collect::<Vec<_>>().join(" "),
        ]
        .map(Cell::from)
    });
    table(["INODE", "OFFSET", "BYTES", "BLOCKS"], rows)
}
