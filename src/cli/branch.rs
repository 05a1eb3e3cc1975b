use pageserver::BranchName;

use super::{Consent, Context};
use crate::api::branches::{NewBranch, Start};
use crate::error::Result;
use crate::name::ViewName;

/// The branch that a new one is forked from when no other is named.
const DEFAULT_START: &str = "main";

/// List branches, fork one, or delete one
///
/// Without NAME: list them. A new branch is a copy-on-write fork: instant, and nothing is copied, also when Postgres
/// runs on the branch it starts from.
#[derive(clap::Args)]
pub struct Branch {
    /// The branch to make or delete
    name: Option<BranchName>,
    /// The branch or snapshot it starts from
    #[arg(value_name = "START", default_value = DEFAULT_START, hide_default_value = false)]
    start: ViewName,
    /// Start with an empty directory instead
    #[arg(long, requires = "name", conflicts_with_all = ["start", "delete"])]
    empty: bool,
    /// Delete the branch and its snapshots
    #[arg(short, long, requires = "name", conflicts_with = "start")]
    delete: bool,
    #[command(flatten)]
    consent: Consent,
}

impl Branch {
    pub fn run(self, context: &Context) -> Result<()> {
        match (&self.name, self.delete) {
            (None, _) => context.print(&context.client()?.branches()?),
            (Some(name), true) => self.delete(name, context),
            (Some(name), false) => self.create(name, context),
        }
    }

    fn create(&self, name: &BranchName, context: &Context) -> Result<()> {
        let start = match self.empty {
            true => Start::Empty,
            false => Start::View(self.start.clone()),
        };
        let name = name.clone();
        context.print(&context.client()?.create_branch(&NewBranch { name, start })?)
    }

    fn delete(&self, name: &BranchName, context: &Context) -> Result<()> {
        let client = context.client()?;
        client.branch(name)?;
        self.consent
            .ask(&format!("Delete the branch {name} and its snapshots?"))?;
        client.destroy_branch(name)?;
        context.done(&format!("branch {name} is deleted"))
    }
}
