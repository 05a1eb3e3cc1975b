use std::time::Duration;

use clap::Subcommand;
use jiff::Timestamp;
use pageserver::{BranchName, SnapshotName, Tag};

use super::{Consent, Context};
use crate::api::snapshots::{NewSnapshot, SnapshotChange};
use crate::error::{Error, Result};

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
    Show(Show),
    Rename(Rename),
    Protect(Protect),
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
    /// Have the pg's PostgreSQL write a checkpoint first: views of the snapshot then start without replay
    #[arg(long)]
    checkpoint: bool,
    /// Refuse to destroy it until `snapshot protect --off`
    #[arg(long)]
    protect: bool,
    /// Destroy it after this time: 30m, 12h, 7d, 2w
    #[arg(long, value_name = "TIME", value_parser = time_to_live)]
    ttl: Option<Duration>,
}

/// Show one snapshot
#[derive(clap::Args)]
struct Show {
    #[arg(value_name = "NAME@TAG")]
    name: SnapshotName,
}

/// Give a snapshot another tag
///
/// A state that a checkout kept, as HEAD{n}, is so kept under a name of its own.
#[derive(clap::Args)]
struct Rename {
    #[arg(value_name = "NAME@TAG")]
    name: SnapshotName,
    /// The new tag
    tag: Tag,
}

/// Protect a snapshot from being destroyed
#[derive(clap::Args)]
struct Protect {
    #[arg(value_name = "NAME@TAG")]
    name: SnapshotName,
    /// Take the protection away
    #[arg(long)]
    off: bool,
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
    /// Only say what would be destroyed
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    consent: Consent,
}

impl Snapshot {
    pub fn run(self, context: &Context) -> Result<()> {
        match self.action {
            Action::Create(create) => create.run(context),
            Action::List(list) => list.run(context),
            Action::Show(show) => context.print(&vec![context.client()?.snapshot(&show.name)?]),
            Action::Rename(rename) => rename.run(context),
            Action::Protect(protect) => protect.run(context),
            Action::Destroy(destroy) => destroy.run(context),
        }
    }
}

impl Create {
    fn run(self, context: &Context) -> Result<()> {
        let new = NewSnapshot {
            name: self.name,
            checkpoint: self.checkpoint,
            protected: self.protect,
            expires: self.ttl.map(expiry).transpose()?,
        };
        context.print(&context.client()?.create_snapshot(&new)?)
    }
}

impl List {
    fn run(self, context: &Context) -> Result<()> {
        context.print(&context.client()?.snapshots(self.branch.as_ref())?)
    }
}

/// A length of time as people write it, from a minute on.
fn time_to_live(text: &str) -> std::result::Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(time) if time >= Duration::from_secs(1) => Ok(time),
        _ => Err("a time is a number with s, m, h, d or w, as in 7d".into()),
    }
}

fn expiry(ttl: Duration) -> Result<Timestamp> {
    let at = Timestamp::now().checked_add(ttl);
    at.map_err(|_| Error::usage("no calendar goes that far").hint("give a shorter --ttl, or none"))
}

impl Rename {
    fn run(self, context: &Context) -> Result<()> {
        let change = SnapshotChange {
            tag: Some(self.tag),
            ..SnapshotChange::default()
        };
        context.print(&context.client()?.change_snapshot(&self.name, &change)?)
    }
}

impl Protect {
    fn run(self, context: &Context) -> Result<()> {
        let change = SnapshotChange {
            protected: Some(!self.off),
            ..SnapshotChange::default()
        };
        context.client()?.change_snapshot(&self.name, &change)?;
        let now = if self.off { "no longer" } else { "now" };
        context.done(&format!("{} is {now} protected", self.name))
    }
}

impl Destroy {
    fn run(self, context: &Context) -> Result<()> {
        let client = context.client()?;
        client.snapshot(&self.name)?;
        if self.dry_run {
            return context.done(&format!("would destroy {}", self.name));
        }
        self.consent.ask(&format!("Destroy the snapshot {}?", self.name))?;
        client.destroy_snapshot(&self.name)?;
        context.done(&format!("{} is destroyed", self.name))
    }
}
