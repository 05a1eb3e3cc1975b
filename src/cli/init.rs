use std::fs;
use std::io;
use std::path::{self, Path, PathBuf};

use nix::sys::stat::{Mode, umask};
use pageserver::{BranchName, Disk, Store};
use serde::Serialize;

use super::Context;
use crate::api::branches::{Branch, NewBranch, NewCluster, Start};
use crate::api::status::Stop;
use crate::error::{Error, Result};
use crate::launch::{self, Watch};
use crate::output::Show;
use crate::postgres::programs;
use crate::{postgres, store_dir};

/// The branch of the first cluster.
const BRANCH: &str = "main";

/// Make a store, and a new PostgreSQL cluster on its branch main
///
/// The store is the directory given with --store or ZENITH_DIR, else .zenith in the current directory. The cluster
/// has data checksums and belongs to you, or to the user postgres when you are root.
#[derive(clap::Args)]
pub struct Init {
    /// Make the store only, without a branch
    #[arg(long, conflicts_with_all = ["pg_bin", "options"])]
    empty: bool,
    /// The directory with PostgreSQL's programs [default: $ZENITH_PG_BIN, else what pg_config says, else from PATH, else
    /// the newest in /usr/lib/postgresql]
    #[arg(long, value_name = "DIR")]
    pg_bin: Option<PathBuf>,
    /// Options for initdb
    #[arg(last = true, value_name = "INITDB OPTION")]
    options: Vec<String>,
}

#[derive(Serialize)]
struct Made {
    store: PathBuf,
    warning: Option<String>,
    branch: Option<Branch>,
}

impl Init {
    pub fn run(self, context: &Context) -> Result<()> {
        let dir = store_dir::for_init(context.store.as_deref());
        let dir = path::absolute(&dir).map_err(Error::path("find", &dir))?;
        context.print(&match self.empty {
            true => Made {
                warning: make_store(&dir)?,
                store: dir,
                branch: None,
            },
            false => self.make_cluster(dir)?,
        })
    }

    /// What fails after the store was made takes the store away again.
    fn make_cluster(self, dir: PathBuf) -> Result<Made> {
        let pg_bins = programs::of_caller(self.pg_bin.as_deref())?;
        let existed = dir.exists();
        let warning = make_store(&dir)?;
        let cluster = NewCluster {
            pg_bins,
            options: self.options,
            locale: postgres::caller_locale(),
        };
        let branch = put_cluster(&dir, cluster).map_err(|error| match remove_store(&dir, existed) {
            Ok(()) => error,
            Err(why) => error.hint(format!("the new store {} stays: {why}", dir.display())),
        })?;
        Ok(Made {
            store: dir,
            warning,
            branch: Some(branch),
        })
    }
}

/// What is in a store is its owner's alone. Returns what the user must know of the filesystem.
fn make_store(dir: &Path) -> Result<Option<String>> {
    umask(Mode::from_bits_truncate(0o077));
    Ok(Store::create(dir, Disk::new())?)
}

fn put_cluster(dir: &Path, cluster: NewCluster) -> Result<Branch> {
    let name: BranchName = BRANCH.parse()?;
    let start = Start::Cluster(cluster);
    launch::client(dir)?.create_branch(&NewBranch { name, start })
}

/// Takes away the store that this command has just made. A service that died over it is started once more, to take
/// away what it had mounted.
fn remove_store(dir: &Path, existed: bool) -> Result<()> {
    let client = launch::client(dir)?;
    if client.status().is_ok() {
        let watch = Watch::of(dir);
        client.stop(&Stop { force: true })?;
        watch.wait()?;
    }
    let emptied = fs::read_dir(dir).and_then(|mut entries| entries.try_for_each(|entry| remove(&entry?.path())));
    let removed = match existed {
        true => emptied,
        false => emptied.and_then(|()| fs::remove_dir(dir)),
    };
    removed.map_err(Error::path("remove", dir))
}

fn remove(path: &Path) -> io::Result<()> {
    match path.is_dir() {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    }
}

impl Show for Made {
    fn text(&self) -> String {
        let warning = self.warning.iter().map(|warning| format!("WARNING: {warning}\n"));
        warning.chain([self.what_was_made()]).collect()
    }
}

impl Made {
    fn what_was_made(&self) -> String {
        let store = self.store.display();
        match &self.branch {
            None => format!("made an empty store in {store}\nnext: zenith pg create"),
            Some(branch) => format!(
                "made a store in {store}\nwith a new PostgreSQL cluster on branch {}\nnext: zenith mount {} DIR --create",
                branch.name, branch.name
            ),
        }
    }
}
