use std::fs;
use std::path::{self, Path, PathBuf};

use pageserver::BranchName;

use super::Context;
use crate::api::mounts::NewMount;
use crate::error::{Error, Result};
use crate::name::ViewName;

/// Mount a branch, or a snapshot read-only
///
/// The directory must exist and be empty, and a branch can be mounted in one place at a time. The mount comes back
/// whenever the service starts, until `zenith umount`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  zenith mount main ./data --create
  zenith mount main@before ./then --create      # a snapshot, read-only
  zenith mount main@before ./copy --create --cow rescue")]
pub struct Mount {
    /// A branch, or one of its snapshots
    #[arg(value_name = "NAME[@TAG]")]
    view: ViewName,
    /// Where to mount it
    dir: PathBuf,
    /// Make the directory when it is missing, and so an empty branch of that name
    #[arg(long)]
    create: bool,
    /// Fork this new branch from NAME[@TAG], instantly and without copying, and mount the new one
    #[arg(long, value_name = "NEWBRANCH")]
    cow: Option<BranchName>,
}

impl Mount {
    pub fn run(self, context: &Context) -> Result<()> {
        let new = NewMount {
            view: self.view,
            dir: absolute(&self.dir)?,
            create: self.create,
            cow: self.cow,
        };
        context.outcome(&context.client()?.mount(&new)?)
    }
}

/// The directory as the service can find it. It may be missing, or be a mount whose service was killed, which can't
/// be looked at: then its parent must do.
pub fn absolute(dir: &Path) -> Result<PathBuf> {
    let found = match fs::canonicalize(dir) {
        Ok(found) => found,
        Err(_) => by_parent(dir)?,
    };
    match found.to_str() {
        Some(_) => Ok(found),
        None => Err(Error::usage(format!("the path {} is not UTF-8", found.display()))
            .hint("give a directory whose path is UTF-8")),
    }
}

fn by_parent(dir: &Path) -> Result<PathBuf> {
    let whole = path::absolute(dir).map_err(Error::path("find", dir))?;
    let (Some(parent), Some(name)) = (whole.parent(), whole.file_name()) else {
        return Err(Error::usage(format!("{} can't be mounted on", dir.display())).hint("name a directory"));
    };
    let missing = || {
        Error::not_found(format!("{} does not exist", parent.display()))
            .hint("make it first, or name another directory")
    };
    Ok(fs::canonicalize(parent).map_err(|_| missing())?.join(name))
}
