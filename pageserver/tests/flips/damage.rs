//! What can happen to a file of a store, chosen by a seed.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use pageserver::Store;

use crate::random::Random;

/// The kinds of files that a store has.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Target {
    Format,
    Lock,
    Current,
    Manifest,
    Log,
    Table,
    Options,
    Identity,
    Mark,
    /// Backing files of sealed layers, their names, their floors.
    Sealed,
    SealedName,
    Floor,
    Head,
    HeadName,
    LayerName,
    Pack,
    PackName,
}

const TARGETS: [Target; 17] = [
    Target::Format,
    Target::Lock,
    Target::Current,
    Target::Manifest,
    Target::Log,
    Target::Table,
    Target::Options,
    Target::Identity,
    Target::Mark,
    Target::Sealed,
    Target::SealedName,
    Target::Floor,
    Target::Head,
    Target::HeadName,
    Target::LayerName,
    Target::Pack,
    Target::PackName,
];

/// A damage that was done.
#[derive(Debug)]
#[expect(dead_code, reason = "all of it is told when a case fails")]
pub struct Done {
    pub target: Target,
    seed: u64,
    path: PathBuf,
    what: String,
}

/// Damages one thing in the store; `None` where the chosen one can't be damaged in the chosen way.
pub fn damage(dir: &Path, seed: u64, random: &mut Random) -> Option<Done> {
    let target = TARGETS[(seed % TARGETS.len() as u64) as usize];
    let candidates = candidates(dir, target);
    let path = candidates
        .get(random.below(candidates.len().max(1) as u64) as usize)?
        .clone();
    let what = match target {
        Target::SealedName | Target::HeadName | Target::LayerName | Target::PackName => rename(&path, random)?,
        Target::Floor => flip_floor(&path, random),
        _ => change(&path, random)?,
    };
    Some(Done {
        target,
        seed,
        path,
        what,
    })
}

pub struct BackingFiles {
    pub sealed: Vec<PathBuf>,
    pub heads: Vec<PathBuf>,
}

/// The backing files of a store, in a fixed order.
pub fn backing_files(dir: &Path) -> BackingFiles {
    let heads: Vec<String> = fs::read_to_string(dir.join("../heads"))
        .map(|text| text.lines().map(String::from).collect())
        .unwrap_or_default();
    let mut files = BackingFiles {
        sealed: Vec::new(),
        heads: Vec::new(),
    };
    for layer in list(&dir.join("layers")) {
        let name = layer.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match heads.contains(&name) {
            true => files.heads.extend(list(&layer)),
            false => files.sealed.extend(list(&layer)),
        }
    }
    files
}

pub fn packs(dir: &Path) -> Vec<PathBuf> {
    list(&dir.join("packs"))
}

/// Writes down which layers are heads, for [`backing_files`].
pub fn note_heads(dir: &Path, store: &Store) {
    let heads: Vec<String> = store.branches().iter().map(|branch| branch.head.to_string()).collect();
    fs::write(dir.join("../heads"), heads.join("\n")).expect("write");
}

fn candidates(dir: &Path, target: Target) -> Vec<PathBuf> {
    let database = |accepts: &dyn Fn(&str) -> bool| {
        let mut files = list(&dir.join("db"));
        files.retain(|path| accepts(&path.file_name().unwrap_or_default().to_string_lossy()));
        files
    };
    let backings = backing_files(dir);
    match target {
        Target::Format => vec![dir.join("format")],
        Target::Lock => vec![dir.join("lock")],
        Target::Current => database(&|name| name == "CURRENT"),
        Target::Manifest => database(&|name| name.starts_with("MANIFEST")),
        Target::Log => database(&|name| name.ends_with(".log")),
        Target::Table => database(&|name| name.ends_with(".sst")),
        Target::Options => database(&|name| name.starts_with("OPTIONS")),
        Target::Identity => database(&|name| name == "IDENTITY"),
        Target::Mark => database(&|name| name == "SYNCED"),
        Target::Sealed | Target::SealedName => backings.sealed,
        Target::Head | Target::HeadName => backings.heads,
        Target::Floor => {
            let all = backings.sealed.into_iter().chain(backings.heads);
            all.filter(|path| floor(path).is_some()).collect()
        }
        Target::LayerName => list(&dir.join("layers")),
        Target::Pack | Target::PackName => packs(dir),
    }
}

fn list(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).expect("list").flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// A flipped bit, a sector of zeros, or an end cut off.
fn change(path: &Path, random: &mut Random) -> Option<String> {
    let len = fs::metadata(path).ok().map(|meta| meta.len()).filter(|len| *len > 0)?;
    let at = random.below(len);
    let file = File::options().read(true).write(true).open(path).expect("open");
    let mtime = file.metadata().and_then(|meta| meta.modified()).expect("a time");
    let what = match random.below(4) {
        0 => {
            file.set_len(at).expect("cut");
            format!("cut to {at} of {len} bytes")
        }
        1 => {
            let sector = at - at % 512;
            let end = (sector + 512).min(len);
            file.write_all_at(&vec![0; (end - sector) as usize], sector)
                .expect("write");
            format!("zeros in {sector}..{end}")
        }
        _ => {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).expect("read");
            let bit = random.below(8);
            file.write_all_at(&[byte[0] ^ 1 << bit], at).expect("write");
            format!("bit {bit} of byte {at}")
        }
    };
    // A disk that fails tells no time.
    file.set_modified(mtime).expect("set the time");
    Some(what)
}

fn rename(path: &Path, random: &mut Random) -> Option<String> {
    let mut name = path.file_name()?.as_bytes().to_vec();
    let at = random.below(name.len() as u64) as usize;
    name[at] ^= 1 << random.below(8);
    let name = OsStr::from_bytes(&name);
    let renamed = path.with_file_name(name);
    let is_possible =
        !name.as_bytes().contains(&b'/') && !name.as_bytes().contains(&0) && name != "." && !renamed.exists();
    if !is_possible {
        return None;
    }
    fs::rename(path, &renamed).expect("rename");
    Some(format!("renamed to {name:?}"))
}

const FLOOR: &std::ffi::CStr = c"user.zenith.floor";

fn floor(path: &Path) -> Option<Vec<u8>> {
    let file = File::open(path).expect("open");
    let mut value = vec![0; 64];
    // SAFETY: the name is NUL-terminated, the buffer is as long as said.
    let len = unsafe { libc::fgetxattr(file.as_raw_fd(), FLOOR.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    value.truncate(usize::try_from(len).ok()?);
    Some(value)
}

fn flip_floor(path: &Path, random: &mut Random) -> String {
    let mut value = floor(path).expect("a floor");
    let (at, bit) = (random.below(value.len() as u64) as usize, random.below(8));
    value[at] ^= 1 << bit;
    let file = File::options().write(true).open(path).expect("open");
    // SAFETY: the name is NUL-terminated, the value is as long as said.
    let set = unsafe { libc::fsetxattr(file.as_raw_fd(), FLOOR.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    assert_eq!(set, 0, "set the floor");
    format!("floor {:?}", String::from_utf8_lossy(&value))
}

/// A bit of the data in a backing file; none where it has no data.
pub fn data_bit(path: &Path, random: &mut Random) -> Option<u64> {
    let file = File::open(path).expect("open");
    let len = file.metadata().expect("stat").len();
    let from = random.below(len.max(1)) as i64;
    // SAFETY: lseek takes numbers.
    let seek = |offset, whence| unsafe { libc::lseek(file.as_raw_fd(), offset, whence) };
    let at = match seek(from, libc::SEEK_DATA) {
        -1 => seek(0, libc::SEEK_DATA),
        at => at,
    };
    (at >= 0 && (at as u64) < len).then(|| at as u64 * 8 + random.below(8))
}

/// Flips a bit, or back.
pub fn flip(path: &Path, bit: u64) {
    let file = File::options().read(true).write(true).open(path).expect("open");
    let mut byte = [0];
    file.read_exact_at(&mut byte, bit / 8).expect("read");
    byte[0] ^= 1 << (bit % 8);
    file.write_all_at(&byte, bit / 8).expect("write");
}
