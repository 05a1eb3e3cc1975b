use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;
use jiff::Timestamp;
use nix::sys::signal::{SigHandler, Signal, signal};
use pageserver::{BranchName, SnapshotName, Tag};

use super::pg::psql_as;
use super::{Context, Destruction};
use crate::api::peeks::NewPeek;
use crate::api::schedules::{Rule, Schedule};
use crate::api::snapshots::{NewSnapshot, SnapshotChange};
use crate::error::{Error, Result};
use crate::postgres::programs;

/// Take, list and destroy snapshots
#[derive(clap::Args)]
#[command(after_help = "Examples:
  zenith snapshot create main@before
  zenith snapshot list main
  zenith snapshot schedule shop --every 1h --keep hourly:24,daily:7")]
pub struct Snapshot {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    Create(Create),
    List(List),
    Show(Show),
    Schedule(Plan),
    Rename(Rename),
    Protect(Protect),
    Psql(Psql),
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
/// A state that a checkout kept, as HEAD{0}, is so kept under a name of its own.
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

/// Look into a snapshot with psql
///
/// A temporary, read-only PostgreSQL runs on it as long as psql does; nothing of it stays.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  zenith snapshot psql pgdata1@before
  zenith snapshot psql pgdata1@before -- -c 'select count(*) from precious'")]
struct Psql {
    /// The snapshot
    #[arg(value_name = "NAME@TAG")]
    name: SnapshotName,
    /// The directory with PostgreSQL's programs [default: $ZENITH_PG_BIN, else what pg_config says, from PATH, or where
    /// packages put them]
    #[arg(long, value_name = "DIR")]
    pg_bin: Option<PathBuf>,
    /// Options for psql
    #[arg(last = true, value_name = "PSQL OPTION")]
    options: Vec<String>,
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

/// Have snapshots be taken, and go, by themselves
///
/// They are called auto- and the moment, in UTC. With --keep those that no rule keeps are destroyed; one that is protected, mounted or
/// started from stays. A branch has one schedule: another --every replaces it, with its --keep. Without a time it lists the schedules.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  zenith snapshot schedule shop --every 15m --keep hourly:24,daily:7,weekly:4
  zenith snapshot schedule
  zenith snapshot schedule shop --off")]
struct Plan {
    /// The branch or pg
    #[arg(value_name = "NAME")]
    branch: Option<BranchName>,
    /// How often: 1m, 15m, 1h, 1d
    #[arg(long, value_name = "TIME", value_parser = time_to_live, requires = "branch")]
    every: Option<Duration>,
    /// Which stay: the newest of each of the last so many hourly, daily, weekly, monthly or yearly periods, or the last:N [default: all]
    #[arg(long, value_name = "RULE,...", value_delimiter = ',', requires = "every")]
    keep: Vec<Rule>,
    /// End the schedule; its snapshots stay
    #[arg(long, requires = "branch", conflicts_with = "every")]
    off: bool,
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
            Action::Schedule(plan) => plan.run(context),
            Action::Rename(rename) => rename.run(context),
            Action::Protect(protect) => protect.run(context),
            Action::Psql(psql) => psql.run(context),
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
    let known = text.ends_with(['s', 'm', 'h', 'd', 'w']);
    match humantime::parse_duration(text) {
        Ok(time) if known && time >= Duration::from_secs(1) => Ok(time),
        _ => Err("a time is a number with s, m, h, d or w, as in 7d".into()),
    }
}

fn expiry(ttl: Duration) -> Result<Timestamp> {
    let at = Timestamp::now().checked_add(ttl);
    at.map_err(|_| Error::usage("no calendar goes that far").hint("give a shorter --ttl, or none"))
}

impl Plan {
    fn run(self, context: &Context) -> Result<()> {
        let client = context.client()?;
        match (self.branch, self.every, self.off) {
            (Some(branch), _, true) => {
                client.unset_schedule(&branch)?;
                context.done(&format!("{branch} has no schedule any more"))
            }
            (Some(branch), Some(every), false) => {
                let schedule = Schedule {
                    every: every.as_secs(),
                    keep: self.keep,
                };
                client.set_schedule(&branch, &schedule)?;
                context.done(&format!(
                    "snapshots of {branch} are taken every {}",
                    humantime::format_duration(every)
                ))
            }
            (branch, ..) => {
                let mut schedules = client.schedules()?;
                schedules.retain(|scheduled| branch.as_ref().is_none_or(|branch| scheduled.branch == *branch));
                context.print(&schedules)
            }
        }
    }
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

impl Psql {
    fn run(self, context: &Context) -> Result<()> {
        let new = NewPeek {
            pg_bins: programs::of_caller(self.pg_bin.as_deref())?,
        };
        let client = context.client()?;
        let (peek, held) = client.peek(&self.name, &new)?;
        let mut psql = psql_as(&peek.psql, &peek.user, &peek.socket_dir, peek.port)?;
        ignore_interrupts()?;
        let ended = psql.args(self.options).status().map_err(Error::path("run", &peek.psql));
        drop(held);
        match ended?.code() {
            Some(0) => Ok(()),
            code => Err(Error::failure(format!("psql ended with {}", code.unwrap_or(-1)))),
        }
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

/// An interrupt is psql's: it ends a query, not the session.
fn ignore_interrupts() -> Result<()> {
    // SAFETY: ignoring a signal installs no handler. psql sets its own.
    let ignored = unsafe { signal(Signal::SIGINT, SigHandler::SigIgn) };
    ignored.map(drop).map_err(Error::io("ignore interrupts"))
}
