use pageserver::BranchName;

use super::{Context, Destruction};
use crate::api::branches::{NewBranch, Start};
use crate::api::storages::StorageName;
use crate::error::{Error, Result};
use crate::name::ViewName;

/// The branch that a new one is forked from when no other is named.
const DEFAULT_START: &str = "main";

/// List branches, fork one, or delete one
///
/// Without NAME: list them. A new branch is a copy-on-write fork: instant, and nothing is copied, also when Postgres
/// runs on the branch it starts from.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  zenith branch                                 # list them
  zenith branch test                            # fork main
  zenith branch test shop@before                # fork a snapshot
  zenith branch fresh --empty
  zenith branch fresh --empty --storage fast
  zenith branch -d test")]
pub struct Branch {
    /// The branch to make or delete
    name: Option<BranchName>,
    /// The branch or snapshot it starts from
    #[arg(value_name = "START", default_value = DEFAULT_START, hide_default_value = false)]
    start: ViewName,
    /// Start with an empty directory instead
    #[arg(long, requires = "name", conflicts_with_all = ["start", "delete"])]
    empty: bool,
    /// Put an empty branch into this storage [default: local]
    #[arg(short, long, requires = "empty")]
    storage: Option<StorageName>,
    /// Delete the branch and its snapshots
    #[arg(short, long, requires = "name", conflicts_with = "start")]
    delete: bool,
    #[command(flatten)]
    destruction: Destruction,
}

impl Branch {
    pub fn run(self, context: &Context) -> Result<()> {
        match (&self.name, self.delete) {
            (None, _) => context.print(&context.client()?.branches()?),
            (Some(name), true) => self.delete(name, context),
            (Some(_), false) if self.destruction.dry_run => {
                Err(Error::usage("--dry-run is for deleting a branch").hint("add -d, or leave it out"))
            }
            (Some(name), false) => self.create(name, context),
        }
    }

    fn create(&self, name: &BranchName, context: &Context) -> Result<()> {
        let start = match self.empty {
            true => Start::Empty,
            false => Start::View(self.start.clone()),
        };
        let new = NewBranch {
            name: name.clone(),
            start,
            storage: self.storage.clone(),
        };
        context.outcome(&context.client()?.create_branch(&new)?)
    }

    fn delete(&self, name: &BranchName, context: &Context) -> Result<()> {
        let client = context.client()?;
        client.check_destroy_branch(name)?;
        let question = format!("Delete the branch {name} and its snapshots?");
        if self
            .destruction
            .goes_on(context, &format!("delete the branch {name}"), &question)?
        {
            client.destroy_branch(name)?;
            context.done(&format!("branch {name} is deleted"))?;
        }
        Ok(())
    }
}
