//! Eight branches of one snapshot, a writer on each: no branch ever sees another's bytes.
//!
//! A file is cells of 512 bytes, so that most writes cover blocks in part. Every cell says who wrote it, where, and
//! when; a writer keeps in memory what each cell of its own branch must say, and compares all of it with the mount,
//! again and again and at last on a fresh mount, where nothing is left in the kernel's cache.

#[path = "support/store.rs"]
mod store;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;

use store::Store;

const BRANCHES: u64 = 8;
const CELL: usize = 512;
const CELLS: u64 = 4096;
const MAX_CELLS: u64 = 6144;
const ROUNDS: u64 = 6;
/// The round whose snapshot is looked at in the end.
const KEPT_ROUND: u64 = 2;
const WRITES: u64 = 400;
const FILES: [&str; 2] = ["one", "two"];

/// Who wrote a cell (0: nobody, it reads as zeros), which cell it is, and the how manieth write it was.
type Stamp = [u64; 3];
const UNWRITTEN: Stamp = [0, 0, 0];

#[test]
fn no_branch_sees_anothers_bytes() {
    let store = Store::new("branches");
    let mut main = Branch::new("main", store.mount("main", "main", &[]));
    main.round();
    main.sync_all();
    store.zenith(&["snapshot", "create", "main@base"]);
    let mut branches: Vec<Branch> = (1..=BRANCHES).map(|number| fork(&store, &main, number)).collect();
    branches.push(main);
    for (branch, snapshot) in write_all(&store, branches) {
        compare_on_a_fresh_mount(&store, &branch);
        let of_old = store.mount(
            &format!("{}@{KEPT_ROUND}", branch.name),
            &format!("old-{}", branch.name),
            &[],
        );
        compare_files(&of_old, &snapshot);
    }
}

/// The first two stand on the live branch, which is written to as well, the others on its snapshot.
fn fork(store: &Store, main: &Branch, number: u64) -> Branch {
    let start = if number <= 2 { "main" } else { "main@base" };
    let name = format!("b{number}");
    let dir = store.mount(start, &name, &["--cow", &name]);
    Branch {
        name,
        number,
        dir,
        files: main.files.clone(),
        random: Random(number),
        writes: 0,
    }
}

/// Each branch on a thread of its own. Returns it with what its snapshot of `KEPT_ROUND` must hold.
fn write_all(store: &Store, branches: Vec<Branch>) -> Vec<(Branch, Files)> {
    thread::scope(|scope| {
        let writers: Vec<_> = branches
            .into_iter()
            .map(|branch| scope.spawn(|| write_one(store, branch)))
            .collect();
        writers
            .into_iter()
            .map(|writer| writer.join().expect("a writer that is content"))
            .collect()
    })
}

fn write_one(store: &Store, mut branch: Branch) -> (Branch, Files) {
    let mut kept = Files::default();
    for round in 0..ROUNDS {
        branch.round();
        branch.compare();
        branch.sync_all();
        store.zenith(&["snapshot", "create", &format!("{}@{round}", branch.name)]);
        if round == KEPT_ROUND {
            kept = branch.files.clone();
        }
    }
    (branch, kept)
}

fn compare_on_a_fresh_mount(store: &Store, branch: &Branch) {
    store.zenith(&["umount", branch.dir.to_str().expect("UTF-8")]);
    store.mount(&branch.name, &branch.name, &[]);
    branch.compare();
}

/// What each of `FILES` must hold.
type Files = [Vec<Stamp>; FILES.len()];

/// A mounted branch, and its truth.
struct Branch {
    name: String,
    number: u64,
    dir: PathBuf,
    files: Files,
    random: Random,
    writes: u64,
}

impl Branch {
    fn new(name: &str, dir: PathBuf) -> Branch {
        let (name, number) = (name.to_owned(), BRANCHES + 1);
        Branch {
            name,
            number,
            dir,
            files: Files::default(),
            random: Random(number),
            writes: 0,
        }
    }

    fn round(&mut self) {
        for _ in 0..WRITES {
            match self.random.below(40) {
                0 => self.truncate(),
                _ => self.write(),
            }
        }
    }

    fn write(&mut self) {
        let file = self.any_file();
        let first = self.random.below(CELLS);
        let count = 1 + self.random.below(20);
        self.writes += 1;
        let stamps: Vec<Stamp> = (first..first + count)
            .map(|cell| [self.number, cell, self.writes])
            .collect();
        let bytes: Vec<u8> = stamps.iter().flat_map(cell_bytes).collect();
        self.open(file)
            .write_all_at(&bytes, first * CELL as u64)
            .expect("written");
        let model = &mut self.files[file];
        let (first, end) = (first as usize, (first + count) as usize);
        model.resize(model.len().max(end), UNWRITTEN);
        model[first..end].copy_from_slice(&stamps);
    }

    fn truncate(&mut self) {
        let file = self.any_file();
        let cells = self.random.below(MAX_CELLS);
        self.open(file).set_len(cells * CELL as u64).expect("truncated");
        self.files[file].resize(cells as usize, UNWRITTEN);
    }

    /// A snapshot holds what has reached the store: what the kernel still keeps dirty is not in it.
    fn sync_all(&self) {
        (0..FILES.len()).for_each(|file| self.open(file).sync_all().expect("synced"));
    }

    fn any_file(&mut self) -> usize {
        self.random.below(FILES.len() as u64) as usize
    }

    fn open(&self, file: usize) -> File {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        options.open(self.dir.join(FILES[file])).expect("opened")
    }

    fn compare(&self) {
        compare_files(&self.dir, &self.files);
    }
}

fn compare_files(dir: &Path, files: &Files) {
    for (file, model) in FILES.iter().zip(files) {
        compare(&dir.join(file), model);
    }
}

fn compare(path: &Path, model: &[Stamp]) {
    let bytes = fs::read(path).expect("read");
    assert_eq!(bytes.len(), model.len() * CELL, "{}: its size", path.display());
    for (cell, (found, expected)) in bytes.chunks(CELL).zip(model).enumerate() {
        let matches = found == cell_bytes(expected);
        assert!(
            matches,
            "{}: cell {cell} is {:?}, not {expected:?}",
            path.display(),
            stamp(found)
        );
    }
}

/// A cell is its stamp, over and over.
fn cell_bytes(stamp: &Stamp) -> Vec<u8> {
    let once: Vec<u8> = stamp.iter().flat_map(|number| number.to_le_bytes()).collect();
    once.into_iter().cycle().take(CELL).collect()
}

fn stamp(cell: &[u8]) -> Vec<u64> {
    cell.chunks_exact(8)
        .take(3)
        .map(|bytes| u64::from_le_bytes(bytes.try_into().expect("8 bytes")))
        .collect()
}

/// xorshift64: the same writes in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}
