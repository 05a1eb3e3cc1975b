//! The command line: one module per verb; the doc comment of its arguments is its help text.

mod branch;
mod check;
mod checkout;
mod completion;
mod consent;
mod early;
mod init;
mod layer;
mod man;
mod mount;
mod pg;
mod progress;
mod snapshot;
mod start;
mod status;
mod stop;
mod storage;
mod umount;
mod upgrade;
mod version;

use std::env;
use std::error::Error as _;
use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::{Args, ColorChoice, Parser, Subcommand};

use crate::client::Client;
use crate::error::{EXIT_CODES, Error, Result};
use crate::output::{self, Format, Show, style};
use crate::{launch, store_dir};
use consent::{Consent, Destruction};
use early::Early;
use progress::Progress;

/// Git for PostgreSQL data directories: snapshots, rollbacks and copy-on-write branches as mounts
#[derive(Parser)]
#[command(name = "zenith", version, after_help = after_help(), max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    context: Context,
    #[command(subcommand)]
    command: Command,
}

fn after_help() -> String {
    format!("{EXAMPLES}\n\n{EXIT_CODES}")
}

const EXAMPLES: &str = "\
Examples:
  zenith init --empty                           # a store in ./.zenith
  zenith pg create -n shop                      # a PostgreSQL in ./shop, started
  zenith snapshot create shop@before
  zenith pg checkout shop@before                # set it back
  zenith pg list -o json";

/// What holds for every command.
#[derive(Args)]
struct Context {
    /// The store [default: $ZENITH_DIR, else the nearest .zenith here or above, else ~/.zenith]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Everywhere")]
    store: Option<PathBuf>,
    /// What to print, errors included
    #[arg(short, long, global = true, value_enum, default_value_t, help_heading = "Everywhere")]
    output: Format,
    /// The same as --output json
    #[arg(long, global = true, help_heading = "Everywhere")]
    json: bool,
    /// Print nothing but what was asked for: no progress, no sentences about what was done
    #[arg(short, long, global = true, help_heading = "Everywhere")]
    quiet: bool,
    /// Tell each request to the service on stderr, with its status and time
    #[arg(short, long, global = true, help_heading = "Everywhere")]
    verbose: bool,
    /// Colours: auto is on terminals, unless NO_COLOR or CLICOLOR=0 is set
    #[arg(
        long,
        global = true,
        value_name = "WHEN",
        value_enum,
        default_value_t,
        help_heading = "Everywhere"
    )]
    color: ColorChoice,
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
    Check(check::Check),
    Layer(layer::Layer),
    Status(status::Status),
    Start(start::Start),
    Stop(stop::Stop),
    Upgrade(upgrade::Upgrade),
    Version(version::Version),
    Completion(completion::Completion),
    Man(man::Man),
}

/// Does what the arguments say; returns what to exit with.
pub fn run() -> i32 {
    let early = Early::of(env::args_os().skip(1));
    style::choose(early.color);
    let (format, done) = match parse(early.format) {
        Ok(cli) => (cli.context.format(), cli.run()),
        Err(error) => (early.format, Err(error)),
    };
    match done {
        Ok(()) => 0,
        Err(error) => {
            output::report(&error, format);
            error.exit_code()
        }
    }
}

impl Cli {
    fn run(self) -> Result<()> {
        let context = self.context;
        style::choose(context.color);
        match self.command {
            Command::Init(verb) => verb.run(&context),
            Command::Pg(verb) => verb.run(&context),
            Command::Storage(verb) => verb.run(&context),
            Command::Mount(verb) => verb.run(&context),
            Command::Umount(verb) => verb.run(&context),
            Command::Branch(verb) => verb.run(&context),
            Command::Snapshot(verb) => verb.run(&context),
            Command::Checkout(verb) => verb.run(&context),
            Command::Check(verb) => verb.run(&context),
            Command::Layer(verb) => verb.run(&context),
            Command::Status(verb) => verb.run(&context),
            Command::Start(verb) => verb.run(&context),
            Command::Stop(verb) => verb.run(&context),
            Command::Upgrade(verb) => verb.run(&context),
            Command::Version(verb) => verb.run(&context),
            Command::Completion(verb) => verb.run(),
            Command::Man(verb) => verb.run(&context),
        }
    }
}

/// Reads the arguments. A name that can't be is told in our own words; everything else is clap's to say, and to people
/// in clap's own way.
fn parse(format: Format) -> Result<Cli> {
    Cli::try_parse().map_err(|error| match bad_name(&error) {
        Some(bad_name) => bad_name,
        None if format == Format::Table || !error.use_stderr() => error.exit(),
        None => usage_error(&error),
    })
}

fn bad_name(error: &clap::Error) -> Option<Error> {
    let ours: &pageserver::Error = error.source()?.downcast_ref()?;
    let hint = ours.hint();
    Some(Error {
        hint,
        ..Error::usage(ours.to_string())
    })
}

/// What clap says: first what is wrong, then what would be right.
fn usage_error(error: &clap::Error) -> Error {
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return Error::usage("there is a command or an argument missing").hint("--help tells them");
    }
    let text = error.render().to_string();
    let mut paragraphs = text
        .split("\n\n")
        .map(|paragraph| paragraph.split_whitespace().collect::<Vec<_>>().join(" "));
    let wrong = paragraphs.next().unwrap_or_default();
    let right: Vec<String> = paragraphs.collect();
    Error::usage(wrong.trim_start_matches("error: ")).hint(right.join("; "))
}

impl Context {
    fn store_dir(&self) -> Result<PathBuf> {
        store_dir::existing(self.store.as_deref())
    }

    /// The store's service, started when it isn't running.
    fn client(&self) -> Result<Client> {
        self.client_of(&self.store_dir()?)
    }

    fn client_of(&self, store: &Path) -> Result<Client> {
        Ok(self.verbosely(launch::client(store)?))
    }

    fn verbosely(&self, client: Client) -> Client {
        client.verbose(self.verbose)
    }

    /// The store's service as it is, running or not.
    fn observer_of(&self, store: &Path) -> Result<Client> {
        Ok(Client::new(store)?.verbose(self.verbose))
    }

    /// Programs that read errors shall find nothing else beside them.
    fn progress(&self) -> Progress {
        Progress::new(self.quiet || self.format() != Format::Table)
    }

    /// Prints what was asked for.
    fn print(&self, answer: &impl Show) -> Result<()> {
        output::print(answer, self.format())
    }

    /// Prints what became of what was to be done.
    fn outcome(&self, answer: &impl Show) -> Result<()> {
        match self.is_silent() {
            true => output::warn(answer),
            false => self.print(answer)?,
        }
        Ok(())
    }

    fn done(&self, sentence: &str) -> Result<()> {
        match self.is_silent() {
            true => Ok(()),
            false => output::done(sentence, self.format()),
        }
    }

    /// Programs get an answer all the same.
    fn is_silent(&self) -> bool {
        self.quiet && self.format() == Format::Table
    }

    fn format(&self) -> Format {
        if self.json { Format::Json } else { self.output }
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
        let told = bad_name(&error).expect("ours");
        assert!(told.message.contains("\"a/b\" is not a valid name"));
    }

    #[test]
    fn every_command_has_examples_that_parse() {
        check_examples(&Cli::command());
    }

    fn check_examples(command: &clap::Command) {
        let name = command.get_name();
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let examples: Vec<&str> = match help.split_once("Examples:\n") {
            Some((_, rest)) => rest.lines().take_while(|line| !line.is_empty()).collect(),
            None => panic!("{name} has no examples"),
        };
        assert!(!examples.is_empty(), "{name}");
        for example in examples {
            let words = shlex::split(example).expect("words as a shell reads them");
            let arguments = words.iter().take_while(|word| *word != "|" && !word.starts_with('>'));
            if let Err(error) = Cli::try_parse_from(arguments) {
                panic!("{name}: {example}\n{error}");
            }
        }
        for verb in command.get_subcommands() {
            check_examples(verb);
        }
    }
}
