use std::time::Duration;

use clap::Subcommand;
use jiff::Timestamp;
use pageserver::{BranchName, SnapshotName, Tag};

use super::{Context, Destruction};
use crate::api::snapshots::{NewSnapshot, SnapshotChange};
use crate::error::{Error, Result};

/// Take, list and destroy snapshots
#[derive(clap::Args)]
#[command(after_help = "Examples:
  zenith snapshot create main@before
  zenith snapshot list main")]
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
#[command(after_help = "Examples:
  zenith snapshot create main@before
  zenith snapshot create shop@release --checkpoint --protect
  zenith snapshot create shop@nightly --ttl 7d")]
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
#[command(after_help = "Examples:
  zenith snapshot show main@before")]
struct Show {
    /// The snapshot
    #[arg(value_name = "NAME@TAG")]
    name: SnapshotName,
}

/// Give a snapshot another tag
///
/// A state that a checkout kept, as HEAD{n}, is so kept under a name of its own.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  zenith snapshot rename 'main@HEAD{0}' undone")]
struct Rename {
    /// The snapshot
    #[arg(value_name = "NAME@TAG")]
    name: SnapshotName,
    /// The new tag
    tag: Tag,
}

/// Protect a snapshot from being destroyed
#[derive(clap::Args)]
#[command(after_help = "Examples:
  zenith snapshot protect shop@release
  zenith snapshot protect shop@release --off")]
struct Protect {
    /// The snapshot
    #[arg(value_name = "NAME@TAG")]
    name: SnapshotName,
    /// Take the protection away
    #[arg(long)]
    off: bool,
}

/// List snapshots, oldest first
#[derive(clap::Args)]
#[command(after_help = "Examples:
  zenith snapshot list
  zenith snapshot list main -o json")]
struct List {
    /// Only those of this branch
    #[arg(value_name = "NAME")]
    branch: Option<BranchName>,
}

/// Destroy a snapshot
///
/// Refused while something depends on it.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  zenith snapshot destroy main@before
  zenith snapshot destroy main@before --dry-run # could it be?")]
struct Destroy {
    /// The snapshot
    #[arg(value_name = "NAME@TAG")]
    name: SnapshotName,
    #[command(flatten)]
    destruction: Destruction,
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
        context.outcome(&context.client()?.create_snapshot(&new)?)
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
        context.outcome(&context.client()?.change_snapshot(&self.name, &change)?)
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
        let name = &self.name;
        client.check_destroy_snapshot(name)?;
        let question = format!("Destroy the snapshot {name}?");
        if self
            .destruction
            .goes_on(context, &format!("destroy {name}"), &question)?
        {
            client.destroy_snapshot(name)?;
            context.done(&format!("{name} is destroyed"))?;
        }
        Ok(())
    }
}
