//! What commands print: tables and sentences for people, JSON or YAML for programs.
//!
//! Answers go to stdout, and all else to stderr: errors, warnings, progress, what `--verbose` tells.

mod layer;
pub mod style;
mod table;

use std::fmt::Display;
use std::io::{self, Write};

use anstyle::Style;
use bytesize::ByteSize;
use serde::Serialize;

use crate::api::branches::{Branch, CheckedOut};
use crate::api::check::{Checked, Finding, Severity};
use crate::api::mounts::Mount;
use crate::api::pgs::{Acted, LogText, Pg, PgDetails};
use crate::api::schedules::Scheduled;
use crate::api::snapshots::{Postgres, Snapshot};
use crate::api::status::{Http, Status};
use crate::api::storages::Storage;
use crate::error::{Error, Result};
use crate::postgres::server;
use crate::time::human;
pub use layer::Dumped;
use style::styled;
use table::{Cell, table};

/// The form of an answer, and of an error.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, clap::ValueEnum)]
pub enum Format {
    /// Tables and sentences, for people
    #[default]
    Table,
    Json,
    Yaml,
}

/// An answer that people can read.
pub trait Show: Serialize {
    fn text(&self) -> String;

    /// What people must know beside it.
    fn warning(&self) -> Option<&str> {
        None
    }
}

/// Prints the answer in the form asked for.
pub fn print(answer: &impl Show, format: Format) -> Result<()> {
    let printed = match format {
        Format::Table => {
            warn(answer);
            write(anstream::stdout().lock(), &lines(&answer.text()))
        }
        Format::Json | Format::Yaml => raw(&lines(&machine_readable(answer, format)?)),
    };
    printed.map(drop)
}

/// Tells what people must know of the answer.
pub fn warn(answer: &impl Show) {
    if let Some(warning) = answer.warning() {
        note(&format!("{} {warning}", styled("WARNING:", style::WARNING)));
    }
}

/// As [`print()`], for what a command did and has nothing to show of.
pub fn done(sentence: &str, format: Format) -> Result<()> {
    let printed = match format {
        Format::Table => write(anstream::stdout().lock(), &lines(sentence)),
        Format::Json | Format::Yaml => raw("{}\n"),
    };
    printed.map(drop)
}

/// Prints a text as it is. Returns whether more is wanted.
pub fn raw(text: &str) -> Result<bool> {
    write(io::stdout().lock(), text)
}

/// A reader that has seen enough (`zenith branch | head -1`) is no error.
fn write(mut out: impl Write, text: &str) -> Result<bool> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Error::io("print")(error)),
    }
}

/// Tells people a line. Nobody reads it where it can't be written.
pub fn note(line: &str) {
    let _lost = writeln!(anstream::stderr(), "{line}").is_err();
}

/// What programs get of an error.
#[derive(Serialize)]
struct Told<'a> {
    error: &'a str,
    hint: Option<&'a str>,
    exit_code: i32,
}

/// Prints an error, for programs as one line of JSON or as YAML.
pub fn report(error: &Error, format: Format) {
    let told = Told {
        error: &error.message,
        hint: error.hint.as_deref(),
        exit_code: error.exit_code(),
    };
    let text = match format {
        Format::Table => Ok(for_people(error)),
        Format::Json => serde_json::to_string(&told).map_err(|error| unprintable(&error)),
        Format::Yaml => machine_readable(&told, format),
    };
    note(text.unwrap_or_else(|_| error.message.clone()).trim_end());
}

fn for_people(error: &Error) -> String {
    let told = format!("{} {}", styled("error:", style::ERROR), error.message);
    match &error.hint {
        Some(hint) => format!("{told}\n{} {hint}", styled("HINT:", style::HINT)),
        None => told,
    }
}

fn machine_readable(answer: &impl Serialize, format: Format) -> Result<String> {
    match format {
        Format::Yaml => serde_saphyr::to_string(answer).map_err(|error| unprintable(&error)),
        Format::Json | Format::Table => serde_json::to_string_pretty(answer).map_err(|error| unprintable(&error)),
    }
}

fn unprintable(error: &dyn Display) -> Error {
    Error::failure(format!("the answer can't be printed: {error}"))
}

/// With one newline at the end.
fn lines(text: &str) -> String {
    format!("{}\n", text.trim_end())
}

impl Show for Vec<Branch> {
    fn text(&self) -> String {
        if self.is_empty() {
            return "no branches yet: `zenith branch NAME --empty` makes one".into();
        }
        let row = |branch: &Branch| {
            [
                branch.name.to_string(),
                branch.parent.clone().unwrap_or_default(),
                branch.snapshots.to_string(),
                human(branch.created),
                branch
                    .mounted
                    .as_ref()
                    .map_or(String::new(), |dir| dir.display().to_string()),
            ]
            .map(Cell::from)
        };
        table(
            ["BRANCH", "FROM", "SNAPSHOTS", "CREATED", "MOUNTED ON"],
            self.iter().map(row),
        )
    }
}

impl Show for Branch {
    fn text(&self) -> String {
        match &self.parent {
            Some(parent) => format!("branch {} starts at {parent}", self.name),
            None => format!("branch {} is empty", self.name),
        }
    }
}

impl Show for Vec<Snapshot> {
    fn text(&self) -> String {
        if self.is_empty() {
            return "no snapshots yet: `zenith snapshot create NAME@TAG` takes one".into();
        }
        let row = |snapshot: &Snapshot| {
            let postgres = snapshot.postgres.as_ref();
            [
                snapshot.name.to_string(),
                human(snapshot.created),
                snapshot.used.map_or(String::new(), bytes),
                snapshot.total.map_or(String::new(), bytes),
                postgres.map_or(String::new(), state),
                postgres.map_or(String::new(), |postgres| postgres.redo_lsn.clone()),
                snapshot
                    .wal_to_replay
                    .filter(|_| postgres.is_some())
                    .map_or(String::new(), bytes),
                stays(snapshot),
            ]
            .map(Cell::from)
        };
        table(
            [
                "SNAPSHOT", "TAKEN", "USED", "TOTAL", "POSTGRES", "REDO LSN", "REPLAY", "STAYS",
            ],
            self.iter().map(row),
        )
    }
}

impl Show for Vec<Scheduled> {
    fn text(&self) -> String {
        if self.is_empty() {
            return "no schedules yet: `zenith snapshot schedule NAME --every 1h` makes one".into();
        }
        let row = |scheduled: &Scheduled| {
            let rules: Vec<String> = scheduled.schedule.keep.iter().map(ToString::to_string).collect();
            let keep = if rules.is_empty() {
                "all".into()
            } else {
                rules.join(",")
            };
            [
                scheduled.branch.to_string(),
                humantime::format_duration(scheduled.schedule.every()).to_string(),
                keep,
                scheduled.snapshots.to_string(),
                scheduled.last.map(human).unwrap_or_default(),
            ]
            .map(Cell::from)
        };
        table(["BRANCH", "EVERY", "KEEP", "SNAPSHOTS", "LAST"], self.iter().map(row))
    }
}

/// How long a snapshot is kept.
fn stays(snapshot: &Snapshot) -> String {
    match (snapshot.protected, snapshot.expires) {
        (true, _) => "protected".into(),
        (false, Some(at)) => format!("until {}", human(at)),
        (false, None) => String::new(),
    }
}

fn state(postgres: &Postgres) -> String {
    let state = if postgres.running { "running" } else { "shut down" };
    format!("{} {state}", postgres.version)
}

impl Show for Snapshot {
    fn text(&self) -> String {
        format!("snapshot {}", self.name)
    }
}

impl Show for Vec<Pg> {
    fn text(&self) -> String {
        if self.is_empty() {
            return "no pgs yet: `zenith pg create` makes one".into();
        }
        let row = |pg: &Pg| {
            [
                role(pg).into(),
                pg.name.to_string().into(),
                bytes(pg.used).into(),
                pg.storage.to_string().into(),
                endpoint(pg).into(),
                Cell::styled(standing(pg), standing_style(pg)),
            ]
        };
        table(
            ["ROLE", "PGDATA", "USED", "STORAGE", "ENDPOINT", "STATUS"],
            self.iter().map(row),
        )
    }
}

fn role(pg: &Pg) -> String {
    match &pg.follows {
        Some(primary) => format!("replica of {primary}"),
        None => "primary".into(),
    }
}

fn endpoint(pg: &Pg) -> String {
    format!("localhost:{}", pg.port)
}

fn standing(pg: &Pg) -> String {
    let status = match pg.status {
        server::Status::Stopped => "stopped",
        server::Status::Starting => "starting",
        server::Status::Running => "running",
        server::Status::Stopping => "stopping",
    };
    match (&pg.error, pg.mounted) {
        (Some(error), _) => format!("broken: {error}"),
        (None, true) => status.into(),
        (None, false) => "not mounted".into(),
    }
}

fn standing_style(pg: &Pg) -> Style {
    match (&pg.error, pg.status) {
        (Some(_), _) => style::BROKEN,
        (None, server::Status::Running) => style::RUNNING,
        (None, _) => Style::new(),
    }
}

impl Show for Pg {
    fn text(&self) -> String {
        let dir = self.dir.display();
        match self.status {
            server::Status::Running => format!(
                "{} is running on port {}, its data is in {dir}\nnext: zenith pg psql {}",
                self.name, self.port, self.name
            ),
            _ => format!("{} is {}, its data is in {dir}", self.name, standing(self)),
        }
    }
}

impl Show for Acted {
    fn text(&self) -> String {
        match (&self.kept, self.pg.status) {
            (Some(kept), _) => format!(
                "{} is set back; `zenith pg checkout '{kept}'` goes forward again",
                self.pg.name
            ),
            (None, server::Status::Running) => format!("{} is running on port {}", self.pg.name, self.pg.port),
            (None, _) => format!("{} is {}", self.pg.name, standing(&self.pg)),
        }
    }

    fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }
}

impl Show for PgDetails {
    fn text(&self) -> String {
        let pg = &self.pg;
        let names = |names: Vec<String>| match names.is_empty() {
            true => "none".into(),
            false => names.join(", "),
        };
        let wal_timeline = self
            .wal_timeline
            .map_or(String::new(), |number| format!(", WAL timeline {number}"));
        let server = pg.pid.map_or(String::new(), |pid| format!(", pid {pid}"));
        let parent = pg.parent.clone().unwrap_or_else(|| "none".into());
        [
            format!("pg         {} ({})", pg.name, role(pg)),
            format!("status     {}{server}", styled(&standing(pg), standing_style(pg))),
            format!("data       {}", pg.dir.display()),
            format!("storage    {}, {} used", pg.storage, bytes(pg.used)),
            format!("parent     {parent}"),
            format!("postgres   {}, runs as {}", self.version, pg.user),
            format!("programs   {}", self.pg_bin.display()),
            format!(
                "redo LSN   {}{wal_timeline}",
                self.redo_lsn.clone().unwrap_or_else(|| "unknown".into())
            ),
            format!("conninfo   {}", self.conninfo),
            format!(
                "snapshots  {}",
                names(self.snapshots.iter().map(ToString::to_string).collect())
            ),
            format!(
                "replicas   {}",
                names(self.replicas.iter().map(ToString::to_string).collect())
            ),
            format!("pitr areas {}", names(Vec::new())),
            format!("log        {}", self.log.display()),
        ]
        .join("\n")
    }
}

impl Show for LogText {
    fn text(&self) -> String {
        self.text.clone()
    }
}

impl Show for Vec<Storage> {
    fn text(&self) -> String {
        let row = |storage: &Storage| {
            [
                storage.name.to_string(),
                bytes(storage.used),
                storage.kind.clone(),
                storage.options.to_string(),
                match (&storage.error, &storage.upkeep_error) {
                    (Some(error), _) => format!("{} (broken: {error})", storage.path.display()),
                    (None, Some(error)) => format!("{} (its upkeep fails: {error})", storage.path.display()),
                    (None, None) => storage.path.display().to_string(),
                },
            ]
            .map(Cell::from)
        };
        table(["NAME", "USED", "TYPE", "OPTIONS", "PATH"], self.iter().map(row))
    }
}

impl Show for Storage {
    fn text(&self) -> String {
        format!("storage {} is attached: {}", self.name, self.path.display())
    }

    fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }
}

impl Show for Checked {
    fn text(&self) -> String {
        let mut lines: Vec<String> = self.findings.iter().map(found).collect();
        if self.sound {
            let is_mended = self.findings.iter().any(|finding| finding.repaired);
            lines.push(
                if is_mended {
                    "nothing else is damaged"
                } else {
                    "nothing is damaged"
                }
                .into(),
            );
        }
        lines.join("\n")
    }
}

fn found(finding: &Finding) -> String {
    let severity = match finding.severity {
        _ if finding.repaired => "repaired",
        Severity::Note => "note",
        Severity::Leftover => "leftover",
        Severity::Damage => "damage",
    };
    let told = format!("{severity}: {}: {}: {}", finding.storage, finding.place, finding.what);
    match &finding.repair {
        Some(repair) if finding.repaired => format!("{told} (done: {repair})"),
        Some(repair) => format!("{told} (--repair: {repair})"),
        None => told,
    }
}

fn bytes(count: u64) -> String {
    ByteSize(count).display().iec().to_string()
}

impl Show for CheckedOut {
    fn text(&self) -> String {
        let text = format!(
            "{} is at {}; the state before is kept as {}",
            self.at.branch, self.at, self.kept
        );
        match &self.mount {
            Some(mount) => format!("{text}\n{}", mount.text()),
            None => text,
        }
    }
}

impl Show for Mount {
    fn text(&self) -> String {
        let dir = self.dir.display();
        match (&self.error, self.writable) {
            (Some(error), _) => format!("{} is NOT mounted on {dir}: {error}", self.view),
            (None, true) if self.new_branch => format!("the new branch {} is mounted on {dir}", self.view),
            (None, true) => format!("{} is mounted on {dir}", self.view),
            (None, false) => format!("{} is mounted on {dir}, read-only", self.view),
        }
    }
}

fn http(http: &Http) -> String {
    match (&http.address, &http.error) {
        (Some(address), _) => format!("http://{address}"),
        (None, Some(error)) => format!("not available: {error}"),
        (None, None) => http.listen.clone(),
    }
}

impl Show for Status {
    fn text(&self) -> String {
        let service = &self.service;
        let process = format!(
            "running since {}, pid {}, version {}",
            human(service.started),
            service.pid,
            service.version
        );
        let free = format!(
            "{} available of {}",
            ByteSize(self.store.available).display().iec(),
            ByteSize(self.store.total).display().iec()
        );
        let mut lines = vec![
            format!("store     {}", self.store.dir.display()),
            format!("disk      {free}"),
            format!("service   {process}"),
            format!("http      {}", http(&self.http)),
            format!("branches  {}", self.branches),
            format!("snapshots {}", self.snapshots),
        ];
        let warnings = self.store.warning.iter().chain(&service.warning);
        lines.extend(warnings.map(|warning| format!("WARNING   {warning}")));
        lines.extend(self.mounts.iter().map(|mount| format!("mount     {}", mount.text())));
        lines.join("\n")
    }
}
