use std::fs;
use std::path::PathBuf;

use clap::CommandFactory;
use clap_mangen::{Man as Page, generate_to};

use super::{Cli, Context};
use crate::error::{Error, Result};
use crate::output;

/// Print zenith's manual page, or write one page for each command
#[derive(clap::Args)]
#[command(after_help = "Examples:
  zenith man | man -l -
  zenith man ~/.local/share/man/man1            # then: man zenith-pg-create")]
pub struct Man {
    /// Write the pages here; the directory is made when it is missing
    dir: Option<PathBuf>,
}

impl Man {
    pub fn run(self, context: &Context) -> Result<()> {
        let Some(dir) = self.dir else {
            return print();
        };
        fs::create_dir_all(&dir).map_err(Error::path("make", &dir))?;
        generate_to(Cli::command(), &dir).map_err(Error::path("write the pages in", &dir))?;
        context.done(&format!("the manual is in {}", dir.display()))
    }
}

fn print() -> Result<()> {
    let mut page = Vec::new();
    Page::new(Cli::command().disable_help_subcommand(true))
        .render(&mut page)
        .map_err(Error::io("make the page"))?;
    let page = String::from_utf8(page).map_err(|error| Error::failure(error.to_string()))?;
    output::raw(&page).map(drop)
}
