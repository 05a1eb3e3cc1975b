//! How much of RocksDB's log and manifest is known to be durable.
//!
//! RocksDB ends the replay of its log at the first frame that is not sound: after a power cut that is where the writing
//! stopped. A damaged frame in the middle looks the same to it, and what stood behind is dropped, the log with
//! it. So each sync notes how long the files were that it made durable:
//!
//! ```text
//!   db/SYNCED    000012.log 48211          below it every frame must be there and sound: else that is damage
//!                MANIFEST-000011 612
//!                crc32c 5d0e1f2a
//! ```
//!
//! The mark is written *after* the sync that it tells of, so it never claims too much, and is itself not synced: what a
//! power cut leaves of it is an older mark, or one that can't be read. Those claim less, and nothing that is not so.
//! A log that is missing was either not needed any more or is damage; the manifest tells which.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use super::frames::{self, State};

const MARK_FILE: &str = "SYNCED";
const MANIFEST: &str = "MANIFEST-";

/// Written as one sector, so that it is never half of two.
const MARK_LEN: usize = 512;

/// Files of RocksDB by name, and their lengths.
pub type Lengths = BTreeMap<String, u64>;

pub struct Mark {
    dir: PathBuf,
    file: File,
    noted: Mutex<Lengths>,
}

/// A file that is not what it was when it was synced.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Suspect {
    pub name: String,
    pub state: State,
}

impl Suspect {
    /// The number of a log, as RocksDB counts them.
    pub fn log_number(&self) -> Option<u64> {
        self.name.strip_suffix(".log")?.parse().ok()
    }

    /// Whether the database can be opened in spite of it, if only for reading.
    pub fn lets_open(&self) -> bool {
        self.log_number().is_some() && !matches!(self.state, State::Endless(_))
    }

    pub fn describe(&self) -> String {
        let name = &self.name;
        match self.state {
            State::Sound => format!("db/{name} is sound"),
            State::Missing => format!("db/{name} is missing"),
            State::Short(len) => format!("db/{name} ends early, after {len} bytes"),
            State::Damaged(at) | State::Endless(at) => format!("db/{name} is damaged at byte {at}"),
        }
    }
}

impl Mark {
    /// The mark of an open database, not yet claiming anything.
    pub fn open(dir: &Path) -> io::Result<Mark> {
        let path = dir.join(MARK_FILE);
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        Ok(Mark {
            dir: dir.into(),
            file,
            noted: Mutex::default(),
        })
    }

    /// The lengths of log and manifest as they are, to be noted when they are durable.
    pub fn lengths(&self) -> io::Result<Lengths> {
        lengths(&self.dir)
    }

    /// Notes lengths of logs that a sync has made durable meanwhile. The manifest is synced here where it has changed.
    pub fn note(&self, lengths: Lengths) -> io::Result<()> {
        self.note_synced(lengths, |name| name.starts_with(MANIFEST))
    }

    /// Makes log and manifest durable as they are and notes that, durably.
    pub fn note_all(&self) -> io::Result<()> {
        self.note_synced(self.lengths()?, |_| true)?;
        self.file.sync_data()
    }

    fn note_synced(&self, mut lengths: Lengths, is_to_sync: impl Fn(&str) -> bool) -> io::Result<()> {
        let mut noted = self.noted();
        for (name, len) in lengths.iter_mut().filter(|(name, _)| is_to_sync(name)) {
            if noted.get(name) != Some(len) {
                *len = self.sync(name)?;
            }
        }
        lengths.retain(|_, len| *len > 0);
        if *noted != lengths {
            // Without a mark that is new, damage is told less well; what was synced is durable all the same.
            match self.file.write_all_at(&encode(&lengths), 0) {
                Ok(()) => *noted = lengths,
                Err(error) => tracing::warn!(%error, "how far the database's log is durable can't be noted"),
            }
        }
        Ok(())
    }

    /// Syncs a file that may be written to meanwhile; returns how much of it is now durable in whole frames. One that is gone
    /// was not needed any more.
    fn sync(&self, name: &str) -> io::Result<u64> {
        let path = self.dir.join(name);
        let synced = fs::read(&path).and_then(|bytes| {
            File::open(&path)?.sync_data()?;
            Ok(frames::sound_len(&bytes) as u64)
        });
        match synced {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(0),
            synced => synced,
        }
    }

    fn noted(&self) -> MutexGuard<'_, Lengths> {
        self.noted.lock().unwrap_or_else(|e| e.into_inner())
    }
}

fn lengths(dir: &Path) -> io::Result<Lengths> {
    let mut lengths = Lengths::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let is_ours = |name: &&str| name.ends_with(".log") || name.starts_with(MANIFEST);
        let Some(name) = name.to_str().filter(is_ours) else {
            continue;
        };
        match entry.metadata() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            metadata => drop(lengths.insert(name.into(), metadata?.len())),
        }
    }
    Ok(lengths)
}

fn encode(lengths: &Lengths) -> Vec<u8> {
    let mut text = String::new();
    for (name, len) in lengths {
        let _infallible = writeln!(text, "{name} {len}").is_ok();
    }
    let _infallible = writeln!(text, "crc32c {:08x}", crc32c::crc32c(text.as_bytes())).is_ok();
    let mut bytes = text.into_bytes();
    let padded = bytes.len().next_multiple_of(MARK_LEN);
    bytes.resize(padded, b'\n');
    bytes
}

/// `None` for a mark that a power cut has torn.
fn decode(bytes: &[u8]) -> Option<Lengths> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (lines, crc) = text.split_once("crc32c ")?;
    let crc = u32::from_str_radix(crc.get(..8)?, 16).ok()?;
    let parse = |line: &str| {
        let (name, len) = line.split_once(' ')?;
        Some((name.into(), len.parse().ok()?))
    };
    (crc == crc32c::crc32c(lines.as_bytes())).then(|| lines.lines().map(parse).collect())?
}

/// What of a closed database is no longer what was synced. Logs that RocksDB did not need any more can be among them.
pub fn suspects(dir: &Path) -> io::Result<Vec<Suspect>> {
    let marked = match fs::read(dir.join(MARK_FILE)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Lengths::new(),
        bytes => decode(&bytes?).unwrap_or_default(),
    };
    let there = match lengths(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Lengths::new(),
        there => there?.into_keys().map(|name| (name, 0)).collect(),
    };
    let current = current_manifest(dir)?;
    let mut suspects = Vec::new();
    for (name, len) in there.into_iter().chain(marked).collect::<Lengths>() {
        // Numbers are written with leading zeros, so names sort as they were made.
        let is_replaced = name.starts_with(MANIFEST) && name < current;
        let state = frames::examine(&dir.join(&name), len)?;
        if state != State::Sound && !is_replaced {
            suspects.push(Suspect { name, state });
        }
    }
    Ok(suspects)
}

/// Forgets what was synced.
pub fn forget(dir: &Path) -> io::Result<()> {
    fs::remove_file(dir.join(MARK_FILE))?;
    File::open(dir)?.sync_all()
}

/// The manifest that RocksDB would open; empty where that can't be told, and RocksDB won't open.
fn current_manifest(dir: &Path) -> io::Result<String> {
    match fs::read(dir.join("CURRENT")) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        bytes => Ok(String::from_utf8_lossy(&bytes?).trim().into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_comes_back_as_it_was_and_a_damaged_one_claims_nothing() {
        let lengths: Lengths = [("000012.log".into(), 48_211), ("MANIFEST-000011".into(), 612)].into();
        let bytes = encode(&lengths);
        assert_eq!(bytes.len(), MARK_LEN);
        assert_eq!(decode(&bytes), Some(lengths.clone()));
        let used = bytes.iter().rposition(|byte| *byte != b'\n').expect("not empty");
        for bit in 0..used * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            // The digits of the checksum read the same in both cases.
            assert!(decode(&flipped).is_none_or(|read| read == lengths), "bit {bit}");
        }
        assert_eq!(decode(&[]), None);
    }
}
