//! What commands ask before they take something away.

use std::io::{self, BufRead, IsTerminal, Write};

use clap::Args;

use super::Context;
use crate::error::{Error, Result};

/// For commands that take something away.
#[derive(Args)]
pub struct Consent {
    /// Don't ask
    #[arg(short, long)]
    yes: bool,
}

/// For commands that can be tried without doing anything.
#[derive(Args)]
pub struct Destruction {
    /// Only say what would be done, or, with the same exit code, that it would be refused
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    consent: Consent,
}

impl Destruction {
    /// Whether to go on, now that nothing stands against it.
    pub fn goes_on(&self, context: &Context, what: &str, question: &str) -> Result<bool> {
        match self.dry_run {
            true => context.done(&format!("would {what}"))?,
            false => self.consent.ask(question)?,
        }
        Ok(!self.dry_run)
    }
}

impl Consent {
    /// Asks on a terminal; without one only `--yes` will do.
    pub fn ask(&self, question: &str) -> Result<()> {
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
