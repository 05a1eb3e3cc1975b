use clap::Subcommand;

use super::{Context, Destruction};
use crate::api::storages::{NewStorage, Options, StorageKind, StorageName};
use crate::client::Client;
use crate::error::Result;

/// Attach, list and detach storages: where data lives
#[derive(clap::Args)]
#[command(after_help = "Examples:
  zenith storage list
  zenith storage attach -t native -c path=/mnt/fast/zenith -n fast")]
pub struct Storage {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Attach(Attach),
    List(List),
    Show(Show),
    Detach(Detach),
}

/// Attach a storage, made new when nothing is there; again, to give it other options
#[derive(clap::Args)]
#[command(after_help = "Examples:
  zenith storage attach -t native -c path=/mnt/fast/zenith -n fast
  zenith pg create -s fast
  zenith storage attach -c path=/mnt/archive -c compression=zstd:9 -n archive   # what snapshots hold is compressed")]
struct Attach {
    /// What holds the data
    #[arg(short = 't', long = "type", value_enum, default_value_t = StorageKind::Native)]
    kind: StorageKind,
    /// An option, as often as needed: path=DIRECTORY; compression=none or zstd[:LEVEL], a level from 1 to 22, 3 if none is given
    #[arg(short = 'c', value_name = "KEY=VALUE", value_parser = option)]
    options: Vec<(String, String)>,
    /// The storage's name
    #[arg(short, long)]
    name: StorageName,
}

/// List the storages
#[derive(clap::Args)]
#[command(after_help = "Examples:
  zenith storage list")]
struct List {}

/// Show one storage
#[derive(clap::Args)]
#[command(after_help = "Examples:
  zenith storage show fast")]
struct Show {
    /// The storage
    name: StorageName,
}

/// Let go of a storage; what is in it stays there
///
/// Refused while a pg lies in it, running or not, or something of it is mounted.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  zenith storage detach fast
  zenith storage detach fast --dry-run          # could it be?")]
struct Detach {
    /// The storage
    name: StorageName,
    #[command(flatten)]
    destruction: Destruction,
}

impl Storage {
    pub fn run(self, context: &Context) -> Result<()> {
        let client = context.client()?;
        match self.verb {
            Verb::Attach(Attach { kind, options, name }) => {
                let options = Options::new(options);
                context.outcome(&client.attach_storage(&name, &NewStorage { kind, options })?)
            }
            Verb::List(_) => context.print(&client.storages()?),
            Verb::Show(Show { name }) => context.print(&vec![client.storage(&name)?]),
            Verb::Detach(verb) => verb.run(&client, context),
        }
    }
}

impl Detach {
    fn run(self, client: &Client, context: &Context) -> Result<()> {
        let name = &self.name;
        client.check_detach_storage(name)?;
        let question = format!("Detach the storage {name}?");
        if self
            .destruction
            .goes_on(context, &format!("detach {name}"), &question)?
        {
            client.detach_storage(name)?;
            context.done(&format!("{name} is detached; its data stays where it is"))?;
        }
        Ok(())
    }
}

fn option(text: &str) -> std::result::Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.into(), value.into())),
        _ => Err("an option is KEY=VALUE, as in path=/mnt/fast".into()),
    }
}
