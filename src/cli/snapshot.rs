use clap::Subcommand;
use pageserver::{BranchName, SnapshotName};

use super::{Consent, Context};
use crate::api::snapshots::NewSnapshot;
use crate::error::Result;

/// Take, list and destroy snapshots
#[derive(clap::Args)]
pub struct Snapshot {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    Create(Create),
    List(List),
    Destroy(Destroy),
}

/// Take a snapshot of a branch as it is now
///
/// Instant, also under a running Postgres: it is what a power cut at this moment would leave, and Postgres recovers
/// from that as from a crash.
#[derive(clap::Args)]
struct Create {
    /// The branch, and a tag that it doesn't have yet
    #[arg(value_name = "NAME@TAG")]
    name: SnapshotName,
}

/// List snapshots, oldest first
#[derive(clap::Args)]
struct List {
    /// Only those of this branch
    #[arg(value_name = "NAME")]
    branch: Option<BranchName>,
}

/// Destroy a snapshot
///
/// Refused while something depends on it.
#[derive(clap::Args)]
struct Destroy {
    /// The snapshot
    #[arg(value_name = "NAME@TAG")]
    name: SnapshotName,
    #[command(flatten)]
    consent: Consent,
}

impl Snapshot {
    pub fn run(self, context: &Context) -> Result<()> {
        match self.action {
            Action::Create(create) => create.run(context),
            Action::List(list) => list.run(context),
            Action::Destroy(destroy) => destroy.run(context),
        }
    }
}

impl Create {
    fn run(self, context: &Context) -> Result<()> {
        let new = NewSnapshot { name: self.name };
        context.print(&context.client()?.create_snapshot(&new)?)
    }
}

impl List {
    fn run(self, context: &Context) -> Result<()> {
        context.print(&context.client()?.snapshots(self.branch.as_ref())?)
    }
}

impl Destroy {
    fn run(self, context: &Context) -> Result<()> {
        let client = context.client()?;
        client.snapshot(&self.name)?;
        self.consent.ask(&format!("Destroy the snapshot {}?", self.name))?;
        client.destroy_snapshot(&self.name)?;
        context.done(&format!("{} is destroyed", self.name))
    }
}
