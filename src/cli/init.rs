use std::fs;
use std::io;
use std::os::unix::fs::symlink;
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
#[command(after_help = "Examples:
  zenith init                                   # in ./.zenith
  zenith init --empty                           # only the store
  zenith init --storage_dest=/mnt/fast/zenith   # there, with a link to it in ./.zenith
  zenith init -- --encoding=UTF8                # options for initdb")]
pub struct Init {
    /// Make the store only, without a branch
    #[arg(long, conflicts_with_all = ["pg_bin", "options"])]
    empty: bool,
    /// Make the store in this directory, perhaps on another disk, and a symbolic link to it where it would have been
    #[arg(long = "storage_dest", visible_alias = "storage-dest", value_name = "PREFIX")]
    storage_dest: Option<PathBuf>,
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
        let place = absolute(&store_dir::for_init(context.store.as_deref()))?;
        let made = match self.storage_dest.as_deref().map(absolute).transpose()? {
            None => self.make(place, context)?,
            Some(dir) => linked(&place, &dir, || self.make(dir.clone(), context))?,
        };
        context.outcome(&made)
    }

    fn make(self, dir: PathBuf, context: &Context) -> Result<Made> {
        match self.empty {
            true => Ok(Made {
                warning: make_store(&dir)?,
                store: dir,
                branch: None,
            }),
            false => self.make_cluster(dir, context),
        }
    }

    /// What fails after the store was made takes the store away again.
    fn make_cluster(self, dir: PathBuf, context: &Context) -> Result<Made> {
        let pg_bins = programs::of_caller(self.pg_bin.as_deref())?;
        let existed = dir.exists();
        let warning = make_store(&dir)?;
        let cluster = NewCluster {
            pg_bins,
            options: self.options,
            locale: postgres::caller_locale(),
        };
        let branch = put_cluster(&dir, cluster, context).map_err(|error| match remove_store(&dir, existed) {
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

fn absolute(dir: &Path) -> Result<PathBuf> {
    path::absolute(dir).map_err(Error::path("find", dir))
}

/// Makes a store that is found by way of a symbolic link. The link comes first, so that nobody else takes its place.
fn linked(link: &Path, store: &Path, make: impl FnOnce() -> Result<Made>) -> Result<Made> {
    symlink(store, link).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => Error::refused(format!("{} exists already", link.display()))
            .hint("use what is there, or run init in another directory"),
        _ => Error::path("make", link)(error),
    })?;
    make().map_err(|error| match fs::remove_file(link) {
        Ok(()) => error,
        Err(why) => error.hint(format!("the link {} stays: {why}", link.display())),
    })
}

/// What is in a store is its owner's alone. Returns what the user must know of the filesystem.
fn make_store(dir: &Path) -> Result<Option<String>> {
    umask(Mode::from_bits_truncate(0o077));
    Ok(Store::create(dir, Disk::new())?)
}

fn put_cluster(dir: &Path, cluster: NewCluster, context: &Context) -> Result<Branch> {
    let name: BranchName = BRANCH.parse()?;
    let start = Start::Cluster(cluster);
    context.client_of(dir)?.create_branch(&NewBranch {
        name,
        start,
        storage: None,
    })
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
    fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }

    fn text(&self) -> String {
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
