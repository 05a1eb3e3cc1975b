//! The branch of plain files: what is done to it, one operation after the other, and what must then be in it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use super::Worker;
use crate::machine::{digest, tree_digest};

/// What the files of `notes` hold.
pub type Files = BTreeMap<String, Vec<u8>>;

/// The branch of plain files, and what must be in it.
pub struct Notes<'a> {
    worker: Worker<'a>,
    dir: PathBuf,
    files: Files,
    snapshots: Vec<(String, Files)>,
    forks: Vec<String>,
    /// How much of everything there was, for names that are new.
    count: u32,
    checkouts: u32,
}

const FILES: u64 = 12;
const LATE_FILES: u64 = 4;
const MAX_BYTES: u64 = 60_000;

impl<'a> Notes<'a> {
    pub fn new(worker: Worker<'a>) -> Notes<'a> {
        Notes {
            dir: worker.machine.mountpoint("notes"),
            worker,
            files: Files::new(),
            snapshots: vec![],
            forks: vec![],
            count: 0,
            checkouts: 0,
        }
    }

    pub fn work(&mut self, until: Instant) -> Result<(), String> {
        while Instant::now() < until {
            self.count += 1;
            match self.worker.random.below(100) {
                0..4 => self.snapshot()?,
                4..6 => self.fork()?,
                6 => self.checkout()?,
                _ => self.change().map_err(|error| format!("notes: {error}"))?,
            }
        }
        Ok(())
    }

    /// Files that are written and closed, and not synced; and the position before the first.
    pub fn leave_unsynced(&mut self) -> io::Result<(u64, Files)> {
        let begun = self.worker.machine.position();
        let names = (0..LATE_FILES).map(|number| format!("late{number}"));
        let late: Files = names.map(|name| (name, self.bytes(MAX_BYTES))).collect();
        for (name, bytes) in &late {
            fs::write(self.dir.join(name), bytes)?;
        }
        Ok((begun, late))
    }

    pub fn sync(&mut self, (begun, late): (u64, Files)) -> io::Result<()> {
        for name in late.keys() {
            File::open(self.dir.join(name))?.sync_all()?;
        }
        File::open(&self.dir)?.sync_all()?;
        for (name, bytes) in late {
            self.noted("file left by a killed service", &name, begun, Some(&bytes), true);
            self.files.insert(name, bytes);
        }
        Ok(())
    }

    /// One synced change of one file.
    fn change(&mut self) -> io::Result<()> {
        let name = format!("f{}", self.worker.random.below(FILES));
        match self.worker.random.below(10) {
            0..4 => self.replace(name),
            4..6 => self.remove(&name),
            6..8 => self.write_within(&name),
            _ => self.resize(&name),
        }
    }

    /// A new file, synced, and renamed over the old one.
    fn replace(&mut self, name: String) -> io::Result<()> {
        let len = 1 + self.worker.random.below(MAX_BYTES);
        let bytes = self.bytes(len);
        let begun = self.worker.machine.position();
        let new = self.dir.join(format!("{name}.new"));
        fs::write(&new, &bytes)?;
        File::open(&new)?.sync_all()?;
        fs::rename(&new, self.dir.join(&name))?;
        File::open(&self.dir)?.sync_all()?;
        self.noted("file replaced", &name, begun, Some(&bytes), false);
        self.files.insert(name, bytes);
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        if self.files.remove(name).is_some() {
            let begun = self.worker.machine.position();
            fs::remove_file(self.dir.join(name))?;
            File::open(&self.dir)?.sync_all()?;
            self.noted("file removed", name, begun, None, false);
        }
        Ok(())
    }

    fn write_within(&mut self, name: &str) -> io::Result<()> {
        let patch = self.bytes(5000);
        let at = self.worker.random.below(MAX_BYTES) as usize;
        self.change_in_place(name, |file, bytes| {
            file.write_all_at(&patch, at as u64)?;
            bytes.resize(bytes.len().max(at + patch.len()), 0);
            bytes[at..at + patch.len()].copy_from_slice(&patch);
            Ok(())
        })
    }

    fn resize(&mut self, name: &str) -> io::Result<()> {
        let len = self.worker.random.below(MAX_BYTES);
        self.change_in_place(name, |file, bytes| {
            bytes.resize(len as usize, 0);
            file.set_len(len)
        })
    }

    fn change_in_place(
        &mut self,
        name: &str,
        change: impl FnOnce(&File, &mut Vec<u8>) -> io::Result<()>,
    ) -> io::Result<()> {
        let Some(mut bytes) = self.files.get(name).cloned() else {
            return Ok(());
        };
        let begun = self.worker.machine.position();
        let file = File::options().write(true).open(self.dir.join(name))?;
        change(&file, &mut bytes)?;
        file.sync_all()?;
        self.noted("file changed", name, begun, Some(&bytes), true);
        self.files.insert(name.to_owned(), bytes);
        Ok(())
    }

    fn noted(&self, what: &'static str, name: &str, begun: u64, bytes: Option<&[u8]>, in_place: bool) {
        let done = self.worker.machine.position();
        let history = self.worker.history;
        history.operation(what, begun, done);
        let (subject, state) = (format!("file {name}"), bytes.map(digest));
        match in_place {
            true => history.step_in_place(subject, begun, done, state),
            false => history.step(subject, begun, done, state),
        }
    }

    fn snapshot(&mut self) -> Result<(), String> {
        let tag = format!("n{}", self.count);
        self.worker.take_snapshot("notes", &tag)?;
        self.snapshots.push((tag, self.files.clone()));
        if self.snapshots.len() > 4 {
            let (tag, _) = self.snapshots.remove(self.worker.random.below(4) as usize);
            self.worker.destroy_snapshot(&format!("notes@{tag}"))?;
        }
        Ok(())
    }

    fn fork(&mut self) -> Result<(), String> {
        let name = format!("fork{}", self.count);
        let state = tree_digest(&self.dir)?;
        let span = self.worker.zenith("branch create", &["branch", &name, "notes"])?;
        self.worker.step(format!("branch {name}"), span, Some(state));
        self.forks.push(name);
        if self.forks.len() > 2 {
            let oldest = self.forks.remove(0);
            let span = self
                .worker
                .zenith("branch destroy", &["branch", "-d", &oldest, "--yes"])?;
            self.worker.step(format!("branch {oldest}"), span, None);
        }
        Ok(())
    }

    /// Back to a snapshot: every file becomes what it was.
    fn checkout(&mut self) -> Result<(), String> {
        let Some((tag, files)) = self.worker.random.pick(&self.snapshots).cloned() else {
            return Ok(());
        };
        let to = format!("notes@{tag}");
        let (_, span) = self.worker.operation("checkout", || self.check_out_when_free(&to))?;
        for name in self.files.keys().chain(files.keys()) {
            let state = files.get(name).map(|bytes| digest(bytes));
            self.worker.step(format!("file {name}"), span, state);
        }
        let kept = format!("HEAD{{{}}}", self.checkouts);
        let state = self.worker.machine.snapshot_digest("notes", &kept)?;
        self.worker.step(format!("snapshot notes@{kept}"), span, Some(state));
        self.checkouts += 1;
        self.files = files;
        Ok(())
    }

    /// A child of another thread holds a file of the mount for a moment, between its fork and its program.
    fn check_out_when_free(&self, to: &str) -> Result<String, String> {
        let mut tries = 0;
        loop {
            match self.worker.machine.zenith(&["checkout", to, "--yes"]) {
                Err(error) if error.contains("in use") && tries < 20 => tries += 1,
                done => return done,
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn bytes(&mut self, len: u64) -> Vec<u8> {
        let seed = self.worker.random.below(1 << 40);
        let words = (0..len / 8 + 1).map(|word| seed.wrapping_mul(word + 1));
        let mut bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        bytes.truncate(len as usize);
        bytes
    }
}
