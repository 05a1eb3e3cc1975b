//! The command line: one module per verb; the doc comment of its arguments is its help text.

mod branch;
mod checkout;
mod init;
mod mount;
mod pg;
mod progress;
mod snapshot;
mod start;
mod status;
mod stop;
mod storage;
mod umount;
mod version;

use std::error::Error as _;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::client::Client;
use crate::error::{EXIT_CODES, Error, Result};
use crate::output::{self, Format, Show};
use crate::{launch, store_dir};
use progress::Progress;

/// Git for PostgreSQL data directories: snapshots, rollbacks and copy-on-write branches as mounts
#[derive(Parser)]
#[command(name = "zenith", version, after_help = EXIT_CODES, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    context: Context,
    #[command(subcommand)]
    command: Command,
}

/// What holds for every command.
#[derive(Args)]
struct Context {
    /// The store [default: $ZENITH_DIR, else the nearest .zenith here or above, else ~/.zenith]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Everywhere")]
    store: Option<PathBuf>,
    /// What to print
    #[arg(short, long, global = true, value_enum, default_value_t, help_heading = "Everywhere")]
    output: Format,
    /// The same as --output json
    #[arg(long, global = true, help_heading = "Everywhere")]
    json: bool,
    /// Print nothing but what was asked for: no progress, no sentences about what was done
    #[arg(short, long, global = true, help_heading = "Everywhere")]
    quiet: bool,
}

#[derive(Subcommand)]
enum Command {
    Init(init::Init),
    Pg(pg::Pg),
    Mount(mount::Mount),
    Umount(umount::Umount),
    Branch(branch::Branch),
    Snapshot(snapshot::Snapshot),
    Checkout(checkout::Checkout),
    Storage(storage::Storage),
    Status(status::Status),
    Start(start::Start),
    Stop(stop::Stop),
    Version(version::Version),
}

impl Cli {
    pub fn run(self) -> Result<()> {
        let context = self.context;
        match self.command {
            Command::Init(verb) => verb.run(&context),
            Command::Pg(verb) => verb.run(&context),
            Command::Storage(verb) => verb.run(&context),
            Command::Mount(verb) => verb.run(&context),
            Command::Umount(verb) => verb.run(&context),
            Command::Branch(verb) => verb.run(&context),
            Command::Snapshot(verb) => verb.run(&context),
            Command::Checkout(verb) => verb.run(&context),
            Command::Status(verb) => verb.run(&context),
            Command::Start(verb) => verb.run(&context),
            Command::Stop(verb) => verb.run(&context),
            Command::Version(verb) => verb.run(&context),
        }
    }
}

/// Reads the arguments. A name that can't be is told in our own words; everything else is clap's to say.
pub fn parse() -> Result<Cli> {
    Cli::try_parse().map_err(|error| match error.source().and_then(|source| source.downcast_ref()) {
        Some(bad_name) => bad_name_error(bad_name),
        None => error.exit(),
    })
}

fn bad_name_error(error: &pageserver::Error) -> Error {
    let mut told = Error::usage(error.to_string());
    told.hint = error.hint();
    told
}

impl Context {
    fn store_dir(&self) -> Result<PathBuf> {
        store_dir::existing(self.store.as_deref())
    }

    /// The store's service, started when it isn't running.
    fn client(&self) -> Result<Client> {
        launch::client(&self.store_dir()?)
    }

    fn progress(&self) -> Progress {
        Progress::new(self.quiet)
    }

    fn print(&self, answer: &impl Show) -> Result<()> {
        output::print(answer, self.format())
    }

    fn done(&self, sentence: &str) -> Result<()> {
        match self.quiet {
            true => Ok(()),
            false => output::done(sentence, self.format()),
        }
    }

    fn format(&self) -> Format {
        if self.json { Format::Json } else { self.output }
    }
}

/// For commands that take something away.
#[derive(Args)]
struct Consent {
    /// Don't ask
    #[arg(short, long)]
    yes: bool,
}

impl Consent {
    /// Asks on a terminal; without one only `--yes` will do.
    fn ask(&self, question: &str) -> Result<()> {
        if self.yes {
            return Ok(());
        }
        if !io::stdin().is_terminal() {
            return Err(
                Error::refused(format!("not confirmed, and there is no terminal to ask on: {question}"))
                    .hint("add --yes"),
            );
        }
        write!(io::stderr(), "{question} [y/N] ").map_err(Error::io("ask"))?;
        let mut answer = String::new();
        io::stdin()
            .lock()
            .read_line(&mut answer)
            .map_err(Error::io("read the answer"))?;
        match answer.trim() {
            "y" | "Y" | "yes" => Ok(()),
            _ => Err(Error::refused("not confirmed, nothing was done")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_bad_name_is_told_in_our_own_words() {
        let error = Cli::try_parse_from(["zenith", "branch", "a/b"]).err().expect("refused");
        let source: &pageserver::Error = error.source().and_then(|source| source.downcast_ref()).expect("ours");
        assert!(bad_name_error(source).message.contains("\"a/b\" is not a valid name"));
    }
}
