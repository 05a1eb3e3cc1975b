//! What the service remembers over its end, in one small file of the store.
//!
//! A change is published whole: a new file is written and synced, renamed over the old one, and the directory
//! synced. So a crash leaves the old or the new state, and what was reported done is there after a power cut.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use pageserver::BranchName;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::name::ViewName;

#[derive(Clone, Default, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// To be there whenever the service runs.
    pub mounts: Vec<Place>,
    /// Clusters that initdb works on: to be undone when they are found at a start.
    pub unfinished: Vec<Unfinished>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    pub view: ViewName,
    pub dir: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unfinished {
    pub branch: BranchName,
    /// Where it is mounted meanwhile.
    pub dir: PathBuf,
}

impl Remembered {
    /// What was saved last; nothing in a new store.
    pub fn load(path: &Path) -> Result<Remembered> {
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Remembered::default()),
            Err(error) => return Err(Error::path("read", path)(error)),
        };
        serde_json::from_slice(&text).map_err(|error| {
            Error::failure(format!("{} is damaged: {error}", path.display()))
                .hint("it only lists what is mounted where: move it away and mount again")
        })
    }

    pub fn save(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_vec_pretty(self).map_err(|error| Error::failure(error.to_string()))?;
        publish(path, &text).map_err(Error::path("write", path))
    }
}

fn publish(path: &Path, text: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    file.write_all(text)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}
