//! Golden scripts: plain commands on a store and what they show, one claim a file in `golden/`.
//!
//! A line of a script is a command; what it prints stands below it, behind "  ". `ZENITH_GOLDEN=write` writes the
//! output that the store gives today into the files: read the difference before keeping it.
//!
//! `layers` prints what lies on disk: each layer that has files, each file with size, floor and data, in blocks of 4 KiB.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pageserver::*;

const NOW: Time = Time {
    secs: 1_700_000_000,
    nanos: 0,
};

struct Shell {
    dir: PathBuf,
    store: Option<Arc<Store>>,
    mounted: BTreeMap<String, Arc<Timeline>>,
}

type Output = std::result::Result<String, String>;

impl Shell {
    fn new(name: &str) -> Shell {
        let unique = format!("golden-{name}-{}", std::process::id());
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(unique);
        let _ = std::fs::remove_dir_all(&dir);
        Store::create(&dir, Disk::new()).expect("make a store");
        let store = Store::open(&dir, Disk::new()).expect("open the store");
        Shell {
            dir,
            store: Some(store),
            mounted: BTreeMap::new(),
        }
    }

    fn store(&self) -> &Arc<Store> {
        self.store.as_ref().expect("an open store")
    }

    fn run(&mut self, line: &str) -> String {
        let words: Vec<&str> = line.split_whitespace().collect();
        self.command(&words).unwrap_or_else(|error| format!("error: {error}\n"))
    }

    fn command(&mut self, words: &[&str]) -> Output {
        match words {
            ["branch", name] => self.branch(name, Start::Empty),
            ["branch", name, start] if start.contains('@') => self.branch(name, Start::Snapshot(parsed(start)?)),
            ["branch", name, start] => self.branch(name, Start::Branch(parsed(start)?)),
            ["copy", name, start] => {
                let start = Start::Snapshot(parsed(start)?);
                let made = self
                    .store()
                    .create_bound_branch(&parsed(name)?, &start, Bond::Independent, (0, 0), NOW);
                shown(made.map(|_| ()))
            }
            ["rename", name, tag] => shown(self.store().rename_snapshot(&parsed(name)?, &parsed(tag)?).map(|_| ())),
            ["protect", name, on] => {
                let kept = self.store().keep_snapshot(&parsed(name)?, Some(*on == "on"), None);
                shown(kept.map(|_| ()))
            }
            ["parents"] => Ok(self.parents()),
            ["branch-d", name] => shown(self.store().destroy_branch(&parsed(name)?)),
            ["snapshot", name] => shown(
                self.store()
                    .create_snapshot(&parsed(name)?, Keep::default(), NOW)
                    .map(|_| ()),
            ),
            ["snapshot-d", name] => shown(self.store().destroy_snapshot(&parsed(name)?)),
            ["checkout", name] => self.checkout(name),
            ["umount", name] => Ok(self.mounted.remove(*name).map_or("not mounted\n", |_| "").into()),
            ["reopen"] => self.reopen(),
            ["create", name, path] => self.create(name, path, NewKind::File),
            ["mkdir", name, path] => self.create(name, path, NewKind::Dir),
            ["write", name, path, offset, len, byte] => self.write(name, path, (number(offset)?, number(len)?), byte),
            ["cut", name, path, size] => self.cut(name, path, number(size)?),
            ["punch", name, path, offset, len] => self.punch(name, path, number(offset)?, number(len)?),
            ["rm", name, path] => self.rm(name, path),
            ["read", view, path] => self.read(view, path),
            ["ls", view, path] => self.ls(view, path),
            ["layers"] => self.layers(),
            _ => Err(format!("unknown command {words:?}")),
        }
    }

    fn branch(&self, name: &str, start: Start) -> Output {
        shown(
            self.store()
                .create_branch(&parsed(name)?, &start, (0, 0), NOW)
                .map(|_| ()),
        )
    }

    fn parents(&self) -> String {
        let branches = self.store().branches();
        let lines = branches.iter().map(|branch| {
            let parent = branch.parent.as_deref().unwrap_or("nothing");
            format!("{} from {parent}\n", branch.name)
        });
        lines.collect()
    }

    fn checkout(&self, name: &str) -> Output {
        let kept = self.store().checkout(&parsed(name)?, NOW).map_err(|e| e.to_string())?;
        Ok(format!("the old state is {kept}\n"))
    }

    fn reopen(&mut self) -> Output {
        self.mounted.clear();
        self.store = None;
        self.store = Some(Store::open(&self.dir, Disk::new()).map_err(|e| e.to_string())?);
        Ok(String::new())
    }

    fn timeline(&mut self, name: &str) -> std::result::Result<Arc<Timeline>, String> {
        if let Some(timeline) = self.mounted.get(name) {
            return Ok(timeline.clone());
        }
        let timeline = self.store().timeline(&parsed(name)?).map_err(|e| e.to_string())?;
        self.mounted.insert(name.into(), timeline.clone());
        Ok(timeline)
    }

    fn create(&mut self, name: &str, path: &str, kind: NewKind) -> Output {
        let timeline = self.timeline(name)?;
        let (parent, leaf) = parent(timeline.view(), path)?;
        let node = NewNode {
            kind,
            mode: 0o600,
            uid: 0,
            gid: 0,
        };
        shown(timeline.create(parent, OsStr::new(leaf), node, NOW).map(|_| ()))
    }

    fn write(&mut self, name: &str, path: &str, (offset, len): (u64, u64), byte: &str) -> Output {
        let timeline = self.timeline(name)?;
        let ino = resolve(timeline.view(), path)?;
        let data = vec![byte.as_bytes()[0]; len as usize];
        shown(timeline.write(ino, offset, &data, Some(NOW)).map(|_| ()))
    }

    fn cut(&mut self, name: &str, path: &str, size: u64) -> Output {
        let timeline = self.timeline(name)?;
        let ino = resolve(timeline.view(), path)?;
        let set = SetAttr {
            size: Some(size),
            ..SetAttr::default()
        };
        shown(timeline.setattr(ino, set, NOW).map(|_| ()))
    }

    fn punch(&mut self, name: &str, path: &str, offset: u64, len: u64) -> Output {
        let timeline = self.timeline(name)?;
        let ino = resolve(timeline.view(), path)?;
        shown(timeline.fallocate(ino, Fallocate::PunchHole, offset, len, NOW))
    }

    fn rm(&mut self, name: &str, path: &str) -> Output {
        let timeline = self.timeline(name)?;
        let (parent, leaf) = parent(timeline.view(), path)?;
        let gone = timeline.unlink(parent, OsStr::new(leaf), NOW);
        timeline.forget(gone.map_err(|e| e.to_string())?.ino);
        self.store().tidy();
        Ok(String::new())
    }

    fn with_view(&mut self, name: &str, show: impl FnOnce(&View) -> Output) -> Output {
        if name.contains('@') {
            let view = self.store().snapshot_view(&parsed(name)?).map_err(|e| e.to_string())?;
            show(&view)
        } else {
            show(self.timeline(name)?.view())
        }
    }

    fn read(&mut self, name: &str, path: &str) -> Output {
        self.with_view(name, |view| {
            let ino = resolve(view, path)?;
            let mut data = vec![0; view.getattr(ino).map_err(|e| e.to_string())?.size as usize];
            view.read(ino, 0, &mut data).map_err(|e| e.to_string())?;
            Ok(run_lengths(&data))
        })
    }

    fn ls(&mut self, name: &str, path: &str) -> Output {
        self.with_view(name, |view| {
            let dir = resolve(view, path)?;
            let entries = view.readdir(dir, 0, 1000).map_err(|e| e.to_string())?;
            let mut names: Vec<String> = entries
                .into_iter()
                .map(|e| e.name.to_string_lossy().into_owned())
                .collect();
            names.sort();
            Ok(format!("{}\n", names.join(" ")))
        })
    }

    fn layers(&self) -> Output {
        let mut out = String::new();
        for layer in sorted_names(&self.dir.join("layers")) {
            let files = sorted_names(&layer);
            let _ = writeln!(out, "layer {}", name_of(&layer));
            for path in files {
                let _ = writeln!(out, "  {}", describe(&path));
            }
        }
        Ok(out)
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        self.mounted.clear();
        self.store = None;
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn parsed<T: std::str::FromStr<Err = Error>>(text: &str) -> std::result::Result<T, String> {
    text.parse().map_err(|e: Error| e.to_string())
}

fn number(text: &str) -> std::result::Result<u64, String> {
    text.parse().map_err(|_| format!("{text} is not a number"))
}

fn shown<E: std::fmt::Display>(result: std::result::Result<(), E>) -> Output {
    result.map(|()| String::new()).map_err(|e| e.to_string())
}

fn resolve(view: &View, path: &str) -> std::result::Result<Ino, String> {
    path.split('/')
        .filter(|name| !name.is_empty())
        .try_fold(Ino::ROOT, |dir, name| {
            view.lookup(dir, OsStr::new(name))
                .map(|attr| attr.ino)
                .map_err(|e| e.to_string())
        })
}

fn parent<'a>(view: &View, path: &'a str) -> std::result::Result<(Ino, &'a str), String> {
    let (dir, leaf) = path.rsplit_once('/').unwrap_or(("", path));
    Ok((resolve(view, dir)?, leaf))
}

/// `A*4096 0*100`; a zero byte shows as 0.
fn run_lengths(data: &[u8]) -> String {
    let runs = data.chunk_by(|a, b| a == b).map(|run| {
        let shown = if run[0] == 0 { '0' } else { run[0] as char };
        format!("{shown}*{}", run.len())
    });
    format!("{}\n", runs.collect::<Vec<_>>().join(" "))
}

fn sorted_names(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir)
        .expect("list")
        .map(|entry| entry.expect("entry").path());
    let mut paths: Vec<PathBuf> = entries.collect();
    paths.sort();
    paths
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn describe(path: &Path) -> String {
    let file = std::fs::File::open(path).expect("open a backing file");
    let size = file.metadata().expect("stat").len();
    let mut floor = [0u8; 32];
    // SAFETY: the name is NUL-terminated, the buffer is as long as said.
    let len = unsafe {
        libc::fgetxattr(
            file.as_raw_fd(),
            c"user.zenith.floor".as_ptr(),
            floor.as_mut_ptr().cast(),
            floor.len(),
        )
    };
    let digits =
        |floor: &[u8]| String::from_utf8_lossy(floor.split(|b| *b == b'-').next().unwrap_or_default()).into_owned();
    let floor = match usize::try_from(len) {
        Ok(len) => format!(" floor {}", digits(&floor[..len])),
        Err(_) => String::new(),
    };
    format!(
        "file {} size {size}{floor} blocks {:?}",
        name_of(path),
        data_blocks(&file, size)
    )
}

fn data_blocks(file: &std::fs::File, size: u64) -> Vec<u64> {
    file.sync_all().expect("sync");
    // SAFETY: lseek takes no pointers.
    let seek = |offset: u64, whence| unsafe { libc::lseek(file.as_raw_fd(), offset as i64, whence) };
    let has_data = |block: &u64| seek(block * BLOCK, libc::SEEK_DATA) == (block * BLOCK) as i64;
    (0..size.div_ceil(BLOCK)).filter(has_data).collect()
}

fn play(path: &Path) -> String {
    let script = std::fs::read_to_string(path).expect("read the script");
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let mut shell = Shell::new(&name);
    let mut out = String::new();
    for line in script.lines().filter(|line| !line.starts_with("  ")) {
        let _ = writeln!(out, "{line}");
        if !line.is_empty() && !line.starts_with('#') {
            let shown = shell.run(line);
            for line in shown.lines() {
                let _ = writeln!(out, "  {line}");
            }
        }
    }
    out
}

#[test]
fn golden_scripts_show_what_they_say() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let rewrite = std::env::var_os("ZENITH_GOLDEN").is_some_and(|value| value == "write");
    let scripts = sorted_names(&dir);
    assert!(!scripts.is_empty());
    for path in scripts {
        let out = play(&path);
        if rewrite {
            std::fs::write(&path, &out).expect("write the script");
        }
        let expected = std::fs::read_to_string(&path).expect("read the script");
        assert!(out == expected, "{}:\n{out}", path.display());
    }
}
