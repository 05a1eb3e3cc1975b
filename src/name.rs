//! What can be mounted, as people name it: `branch` for its live head, `branch@tag` for a snapshot.

use std::fmt;
use std::str::FromStr;

use pageserver::{BranchName, Error, SnapshotName, Start};
use serde::{Deserialize, Serialize};

/// The name of a view.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ViewName {
    Head(BranchName),
    Snapshot(SnapshotName),
}

impl ViewName {
    pub fn branch(&self) -> &BranchName {
        match self {
            ViewName::Head(branch) => branch,
            ViewName::Snapshot(snapshot) => &snapshot.branch,
        }
    }

    /// Where a branch forked from this view starts.
    pub fn start(self) -> Start {
        match self {
            ViewName::Head(branch) => Start::Branch(branch),
            ViewName::Snapshot(snapshot) => Start::Snapshot(snapshot),
        }
    }
}

impl FromStr for ViewName {
    type Err = Error;

    fn from_str(name: &str) -> Result<ViewName, Error> {
        match name.contains('@') {
            true => name.parse().map(ViewName::Snapshot),
            false => name.parse().map(ViewName::Head),
        }
    }
}

impl TryFrom<String> for ViewName {
    type Error = Error;

    fn try_from(name: String) -> Result<ViewName, Error> {
        name.parse()
    }
}

impl From<ViewName> for String {
    fn from(name: ViewName) -> String {
        name.to_string()
    }
}

impl fmt::Display for ViewName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ViewName::Head(branch) => branch.fmt(f),
            ViewName::Snapshot(snapshot) => snapshot.fmt(f),
        }
    }
}
