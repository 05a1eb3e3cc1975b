//! The README's tour does what it shows, output and all: its console sessions are run line by line, each in a directory with
//! a store of its own, and what they print is compared with what the README says. What differs from one machine and run to the
//! next (ports, sizes, times, places) is left out on both sides.
//!
//! `ZENITH_GOLDEN=write` writes what was seen into the README instead, to be read before it is committed.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs, process};

use regex::Regex;

const ZENITH: &str = env!("CARGO_BIN_EXE_zenith");
const README: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
const FENCE: &str = "```console\n";

/// The directory that the README's user works in.
const PROJECT: &str = "/home/me/project";

/// Where the session runs: Postgres' own user must get there, and a store must not lie on a tmpfs.
struct Project {
    dir: PathBuf,
    store: PathBuf,
}

impl Project {
    fn new() -> Project {
        let name = format!("zenith-tour-{}", process::id());
        let (dir, store) = (
            env::temp_dir().join(&name),
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(name),
        );
        fs::create_dir_all(&dir).expect("a directory");
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o711)).expect("others may pass");
        Project { dir, store }
    }

    /// A line as a user types it, with the program first on the path; both outputs, as a terminal mixes them.
    fn run(&self, line: &str) -> String {
        let programs = Path::new(ZENITH).parent().expect("a directory").display();
        let path = env::var("PATH").unwrap_or_default();
        let output = Command::new("bash")
            .args(["-c", &format!("exec 2>&1\n{line}")])
            .current_dir(&self.dir)
            .env("PATH", format!("{programs}:{path}"))
            .env("ZENITH_DIR", &self.store)
            .env_remove("ZENITH_LOG")
            .stdin(Stdio::null())
            .output()
            .expect("bash runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        self.run("for pg in $(ls); do zenith pg stop -m immediate $pg; done; zenith stop --force");
        for dir in [&self.dir, &self.store] {
            fs::remove_dir_all(dir).unwrap_or_else(|error| eprintln!("{} stays: {error}", dir.display()));
        }
    }
}

/// A command of a session, and what the README says it prints.
struct Shown {
    line: String,
    prints: String,
}

/// The console sessions of the README, one after the other.
fn sessions(readme: &str) -> Vec<Vec<Shown>> {
    let blocks = readme.split(FENCE).skip(1);
    blocks
        .map(|block| shown(block.split("```").next().unwrap_or(block)))
        .collect()
}

fn shown(session: &str) -> Vec<Shown> {
    let mut all: Vec<Shown> = Vec::new();
    for line in session.lines() {
        match (line.strip_prefix("$ "), all.last_mut()) {
            (Some(command), _) => all.push(Shown {
                line: command.into(),
                prints: String::new(),
            }),
            (None, Some(last)) => last.prints.push_str(&format!("{line}\n")),
            (None, None) => panic!("a session begins with a command, not with {line:?}"),
        }
    }
    all
}

/// What is the same on every machine.
fn essence(text: &str) -> String {
    let rules = [
        (r"(?m)^WARNING.*\n", ""),
        (r"\d+(\.\d+)? [KMGT]?i?B\b", "SIZE"),
        (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "TIME"),
        (r"(port |port=|localhost:)\d+", "PORT"),
        (r"pid \d+", "PID"),
        (r"\b[0-9A-F]+/[0-9A-F]{6,8}\b", "LSN"),
        (r"(host|user)=\S+", "$1"),
        (r"runs as \S+", "runs as"),
        (r"PostgreSQL \d+|postgres +\d+|\b\d\d running", "POSTGRES"),
        (r"(?m)^programs .*$", "programs"),
        (r"(?m)^log .*$", "log"),
        (r" +", " "),
        (r"(?m) +$", ""),
    ];
    rules.iter().fold(text.to_owned(), |text, (find, put)| {
        let rule = Regex::new(find).expect("a regular expression");
        rule.replace_all(&text, *put).into_owned()
    })
}

#[test]
fn the_readmes_tour_does_what_it_shows() {
    let readme = fs::read_to_string(README).expect("the README");
    let mut seen_readme = readme.clone();
    for session in sessions(&readme) {
        let project = Project::new();
        let place = project.dir.to_str().expect("UTF-8").to_owned();
        let store = project.store.to_str().expect("UTF-8").to_owned();
        let mut now = String::new();
        for Shown { line, prints } in &session {
            let seen = project.run(line);
            let seen = seen
                .replace(&store, &format!("{PROJECT}/.zenith"))
                .replace(&place, PROJECT);
            if env::var_os("ZENITH_GOLDEN").is_some_and(|golden| golden == "write") {
                now.push_str(&format!("$ {line}\n{seen}"));
                continue;
            }
            assert_eq!(essence(&seen), essence(prints), "$ {line}\nprinted\n{seen}");
        }
        if !now.is_empty() {
            let old = session
                .iter()
                .map(|Shown { line, prints }| format!("$ {line}\n{prints}"));
            seen_readme = seen_readme.replacen(&old.collect::<String>(), &now, 1);
        }
    }
    if seen_readme != readme {
        fs::write(README, seen_readme).expect("written");
    }
}
