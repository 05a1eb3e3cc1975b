use std::env;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use clap::Subcommand;
use nix::unistd::{User, geteuid};
use pageserver::{BranchName, SnapshotName};

use super::mount::absolute;
use super::{Consent, Context, Destruction};
use crate::api::pgs::{Acted, Action, At, NewPg, Pg as Described};
use crate::api::storages::StorageName;
use crate::client::Client;
use crate::error::{Error, Result};
use crate::name::ViewName;
use crate::output::{self, Format};
use crate::postgres::server::StopMode;
use crate::postgres::{caller_locale, cluster, programs};

/// How often `logs --follow` looks for more.
const FOLLOW_PAUSE: Duration = Duration::from_millis(300);

/// Make, run and destroy PostgreSQL data directories
#[derive(clap::Args)]
#[command(after_help = "Examples:
  zenith pg create -n shop
  zenith pg list
  zenith pg psql shop")]
pub struct Pg {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Create(Create),
    List(List),
    Show(Show),
    Start(Start),
    Stop(Stop),
    Restart(Restart),
    Promote(Promote),
    Checkout(Checkout),
    Psql(Psql),
    Logs(Logs),
    Destroy(Destroy),
}

/// Make a pg: a data directory on a mount of its own, and a PostgreSQL on it
///
/// A new one gets a new cluster with data checksums. With --snapshot or --branch it is a copy, instant whatever the size:
/// independent of its source, or tied to it with --cow. As root, PostgreSQL runs as the user postgres, or as --user.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  zenith pg create                              # pgdata1, in ./pgdata1, started on a free port
  zenith pg create -n shop -c work_mem=64MB
  zenith pg create -n test --snapshot shop@before --cow
  zenith pg create -n main --branch main        # make the branch main a pg")]
pub struct Create {
    /// The pg's name [default: pgdata1, pgdata2, …]
    #[arg(short, long)]
    name: Option<BranchName>,
    /// Where a new cluster's data goes [default: local]
    #[arg(short, long)]
    storage: Option<StorageName>,
    /// Copy this snapshot
    #[arg(long, value_name = "NAME@TAG", conflicts_with = "branch")]
    snapshot: Option<SnapshotName>,
    /// Copy this branch or pg as it is now
    #[arg(long, value_name = "NAME")]
    branch: Option<BranchName>,
    /// Keep the copy tied to its source, which then can't be destroyed before it
    #[arg(long)]
    cow: bool,
    /// Don't start PostgreSQL
    #[arg(long)]
    no_start: bool,
    /// Where the data directory appears [default: ./NAME]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// The port [default: the first free one from 5432 on]
    #[arg(short, long, value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// A setting for postgresql.conf, as often as needed
    #[arg(short = 'c', value_name = "NAME=VALUE", value_parser = cluster::setting)]
    settings: Vec<(String, String)>,
    /// The major version of a new cluster
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(13..=18))]
    pg_version: Option<u32>,
    /// The directory with PostgreSQL's programs [default: $ZENITH_PG_BIN, else what pg_config says, from PATH, or where
    /// packages put them]
    #[arg(long, value_name = "DIR")]
    pg_bin: Option<PathBuf>,
    /// The user that runs PostgreSQL, for root only
    #[arg(long)]
    user: Option<String>,
    /// Options for initdb
    #[arg(last = true, value_name = "INITDB OPTION")]
    initdb: Vec<String>,
}

/// List the pgs
#[derive(clap::Args)]
#[command(after_help = "Examples:
  zenith pg list
  zenith pg list -o json")]
pub struct List {}

/// Show everything about a pg
#[derive(clap::Args)]
#[command(after_help = "Examples:
  zenith pg show pgdata1")]
pub struct Show {
    /// The pg
    name: BranchName,
}

/// Start a pg's PostgreSQL, or add a replica
#[derive(clap::Args)]
#[command(after_help = "Examples:
  zenith pg start pgdata1
  zenith pg start --replica pgdata1             # replica-1, a hot standby that shares the primary's data")]
pub struct Start {
    /// The pg
    name: BranchName,
    /// Add a streaming hot standby on a copy-on-write branch of the pg, and start that
    #[arg(long)]
    replica: bool,
    /// Where the replica's data directory appears [default: ./REPLICA]
    #[arg(long, requires = "replica")]
    dir: Option<PathBuf>,
}

/// Stop a pg's PostgreSQL
#[derive(clap::Args)]
#[command(after_help = "Examples:
  zenith pg stop pgdata1
  zenith pg stop pgdata1 -m immediate")]
pub struct Stop {
    /// The pg
    name: BranchName,
    /// How
    #[arg(short, long, value_enum, default_value_t)]
    mode: StopMode,
}

/// Stop a pg's PostgreSQL and start it again
#[derive(clap::Args)]
#[command(after_help = "Examples:
  zenith pg restart pgdata1")]
pub struct Restart {
    /// The pg
    name: BranchName,
    /// How to stop it
    #[arg(short, long, value_enum, default_value_t)]
    mode: StopMode,
}

/// Make a replica a pg of its own
#[derive(clap::Args)]
#[command(after_help = "Examples:
  zenith pg promote replica-1")]
pub struct Promote {
    /// The replica
    name: BranchName,
}

/// Set a pg back to one of its snapshots
///
/// Stops PostgreSQL, sets the data directory back, and starts it again. The state before is kept as NAME@HEAD{0}, the next time as NAME@HEAD{1}, and so on: checking
/// that out goes forward again.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  zenith pg checkout shop@before
  zenith pg checkout 'shop@HEAD{0}' --yes       # forward again")]
pub struct Checkout {
    /// The snapshot
    #[arg(value_name = "NAME@TAG")]
    to: SnapshotName,
    #[command(flatten)]
    consent: Consent,
}

/// Open psql on a pg
///
/// As root it runs as the user that runs the server, so that no password is needed.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  zenith pg psql pgdata1
  zenith pg psql pgdata1 -- -c 'select 1'
  zenith pg psql pgdata1 -- -d app                    # another database than postgres")]
pub struct Psql {
    /// The pg
    name: BranchName,
    /// Options for psql
    #[arg(last = true, value_name = "PSQL OPTION")]
    options: Vec<String>,
}

/// Show what a pg's PostgreSQL has logged
#[derive(clap::Args)]
#[command(after_help = "Examples:
  zenith pg logs pgdata1
  zenith pg logs pgdata1 --follow")]
pub struct Logs {
    /// The pg
    name: BranchName,
    /// Go on with what is logged from now on, until interrupted
    #[arg(short, long)]
    follow: bool,
}

/// Destroy a pg: its data directory, its branch and its snapshots
///
/// Refused while something depends on it.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  zenith pg destroy pgdata1
  zenith pg destroy pgdata1 --dry-run           # could it be?")]
pub struct Destroy {
    /// The pg
    name: BranchName,
    #[command(flatten)]
    destruction: Destruction,
}

impl Pg {
    pub fn run(self, context: &Context) -> Result<()> {
        match self.verb {
            Verb::Create(verb) => verb.run(context),
            Verb::List(_) => context.print(&context.client()?.pgs()?),
            Verb::Show(verb) => context.print(&context.client()?.pg(&verb.name)?),
            Verb::Start(verb) => verb.run(context),
            Verb::Stop(verb) => context.act(&verb.name, &Action::Stop { mode: verb.mode }),
            Verb::Restart(verb) => context.act(&verb.name, &Action::Restart { mode: verb.mode }),
            Verb::Promote(verb) => context.act(&verb.name, &Action::Promote),
            Verb::Checkout(verb) => verb.run(context),
            Verb::Psql(verb) => verb.run(context),
            Verb::Logs(verb) => verb.run(context),
            Verb::Destroy(verb) => verb.run(context),
        }
    }
}

impl Context {
    fn act(&self, name: &BranchName, action: &Action) -> Result<()> {
        let acted: Acted = self.client()?.act(name, action, &mut self.progress())?;
        self.outcome(&acted)
    }
}

impl Create {
    fn run(self, context: &Context) -> Result<()> {
        let from = match (self.snapshot, self.branch) {
            (Some(snapshot), _) => Some(ViewName::Snapshot(snapshot)),
            (None, Some(branch)) => Some(ViewName::Head(branch)),
            (None, None) if self.cow => {
                return Err(Error::usage("--cow needs something to share with").hint("add --snapshot or --branch"));
            }
            (None, None) => None,
        };
        let new = NewPg {
            from,
            cow: self.cow,
            at: place(self.dir.as_deref())?,
            storage: self.storage,
            port: self.port,
            settings: self.settings,
            start: !self.no_start,
            pg_bins: programs::of_caller(self.pg_bin.as_deref())?,
            pg_version: self.pg_version,
            user: self.user,
            initdb: self.initdb,
            locale: caller_locale(),
        };
        let made: Described = context
            .client()?
            .create_pg(self.name.as_ref(), &new, &mut context.progress())?;
        context.outcome(&made)
    }
}

/// The place named, else the pg's name in the current directory.
fn place(dir: Option<&Path>) -> Result<At> {
    match dir {
        Some(dir) => absolute(dir).map(At::Dir),
        None => absolute(&env::current_dir().map_err(Error::io("find the current directory"))?).map(At::In),
    }
}

impl Start {
    fn run(self, context: &Context) -> Result<()> {
        let action = Action::Start {
            is_replica: self.replica,
            at: match self.replica {
                true => place(self.dir.as_deref())?,
                false => At::default(),
            },
        };
        context.act(&self.name, &action)
    }
}

impl Checkout {
    fn run(self, context: &Context) -> Result<()> {
        let client = context.client()?;
        client.pg(&self.to.branch)?;
        client.snapshot(&self.to)?;
        self.consent
            .ask(&format!("Set {} back to {}?", self.to.branch, self.to))?;
        let tag = self.to.tag;
        context.act(&self.to.branch, &Action::Checkout { tag })
    }
}

impl Psql {
    fn run(self, context: &Context) -> Result<()> {
        let details = context.client()?.pg(&self.name)?;
        if details.pg.pid.is_none() {
            let name = &self.name;
            return Err(
                Error::refused(format!("{name} is not running")).hint(format!("`zenith pg start {name}` first"))
            );
        }
        let psql = programs::psql(&details.pg_bin);
        let pg = &details.pg;
        let mut command = psql_as(&psql, &pg.user, &pg.socket_dir, pg.port)?;
        // Only a failure comes back.
        let error = command.args(self.options).exec();
        Err(Error::path("run", &psql)(error))
    }
}

/// psql as the user that the server runs as, where that takes a change and is allowed. The server is told by psql's environment, so that a database
/// among its options is one of this server's.
pub fn psql_as(psql: &Path, user: &str, socket_dir: &Path, port: u16) -> Result<Command> {
    let mut command = Command::new(psql);
    command
        .env("PGHOST", socket_dir)
        .env("PGPORT", port.to_string())
        .env("PGUSER", user)
        .env("PGDATABASE", "postgres");
    // They would come before.
    for other in ["PGHOSTADDR", "PGSERVICE"] {
        command.env_remove(other);
    }
    let found = User::from_name(user).map_err(Error::io(format!("look up the user {user}")))?;
    if let (Some(user), true) = (found, geteuid().is_root()) {
        command
            .uid(user.uid.as_raw())
            .gid(user.gid.as_raw())
            .env("HOME", &user.dir)
            .env("USER", &user.name);
        // The current directory may be one that the user can't get to.
        command.current_dir("/");
    }
    Ok(command)
}

impl Logs {
    fn run(self, context: &Context) -> Result<()> {
        let client = context.client()?;
        if context.format() != Format::Table {
            return self.for_programs(&client, context);
        }
        let mut part = client.pg_log(&self.name, 0)?;
        while output::raw(&part.text)? && self.follow {
            thread::sleep(FOLLOW_PAUSE);
            part = client.pg_log(&self.name, part.next)?;
        }
        Ok(())
    }

    fn for_programs(&self, client: &Client, context: &Context) -> Result<()> {
        match self.follow {
            true => Err(Error::usage("--follow prints text, without end").hint("leave out --follow, or --output")),
            false => context.print(&client.pg_log(&self.name, 0)?),
        }
    }
}

impl Destroy {
    fn run(self, context: &Context) -> Result<()> {
        let client = context.client()?;
        let details = client.pg(&self.name)?;
        client.check_destroy_pg(&self.name)?;
        let (name, snapshots) = (&self.name, details.snapshots.len());
        let with = match snapshots {
            0 => String::new(),
            1 => " and its snapshot".into(),
            _ => format!(" and its {snapshots} snapshots"),
        };
        let question = format!("Destroy {name}{with}? Nothing of it can be brought back.");
        if self
            .destruction
            .goes_on(context, &format!("destroy {name}{with}"), &question)?
        {
            client.destroy_pg(name, &mut context.progress())?;
            context.done(&format!("{name} is destroyed"))?;
        }
        Ok(())
    }
}
