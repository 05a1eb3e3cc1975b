//! What commands print: tables and sentences for people, `--json` for programs.

use std::io::{self, Write};

use bytesize::ByteSize;
use comfy_table::{Table, presets};
use serde::Serialize;

use crate::api::branches::{Branch, CheckedOut};
use crate::api::mounts::Mount;
use crate::api::snapshots::{Postgres, Snapshot};
use crate::api::status::Status;
use crate::error::{Error, Result};
use crate::time::human;

/// An answer that people can read.
pub trait Show: Serialize {
    fn text(&self) -> String;
}

/// Prints the answer in the form asked for.
pub fn print(answer: &impl Show, json: bool) -> Result<()> {
    let text = match json {
        true => serde_json::to_string_pretty(answer).map_err(|error| Error::failure(error.to_string()))?,
        false => answer.text(),
    };
    line(&text)
}

/// As [`print()`], for what a command did and has nothing to show of.
pub fn done(sentence: &str, json: bool) -> Result<()> {
    line(if json { "{}" } else { sentence })
}

/// A reader that has seen enough (`zenith branch | head -1`) is no error.
fn line(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{}", text.trim_end()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Error::io("print")(error)),
        _ => Ok(()),
    }
}

fn table<const N: usize>(header: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header).add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
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
                postgres.map_or(String::new(), state),
                postgres.map_or(String::new(), |postgres| postgres.redo_lsn.clone()),
            ]
        };
        table(["SNAPSHOT", "TAKEN", "POSTGRES", "REDO LSN"], self.iter().map(row))
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
            format!("branches  {}", self.branches),
            format!("snapshots {}", self.snapshots),
        ];
        lines.extend(self.store.warning.iter().map(|warning| format!("WARNING   {warning}")));
        lines.extend(self.mounts.iter().map(|mount| format!("mount     {}", mount.text())));
        lines.join("\n")
    }
}
