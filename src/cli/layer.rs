use std::path::PathBuf;

use clap::Subcommand;
use pageserver::dump_pack;

use super::Context;
use crate::error::{Error, Result};
use crate::output::Dumped;

/// Look into the packs of compressed storages
#[derive(clap::Args)]
#[command(after_help = "Examples:
  zenith layer dump /mnt/fast/zenith/packs/0000002a")]
pub struct Layer {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Dump(Dump),
}

/// Show what is in a pack: the compressed form of a sealed layer
///
/// Reads all of it and compares it with its checksums. Needs no store and no service.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  zenith layer dump /mnt/fast/zenith/packs/0000002a
  zenith layer dump --frames /mnt/fast/zenith/packs/0000002a
  zenith layer dump /mnt/fast/zenith/packs/0000002a -o json")]
struct Dump {
    /// The pack: a file in the directory packs of a storage
    #[arg(value_name = "PACK")]
    path: PathBuf,
    /// Show each frame, too
    #[arg(long)]
    frames: bool,
}

impl Layer {
    pub fn run(self, context: &Context) -> Result<()> {
        let Verb::Dump(Dump { path, frames }) = self.verb;
        let pack = dump_pack(&path).map_err(unreadable)?;
        context.print(&Dumped { pack, frames })
    }
}

/// It may be anything that somebody has named.
fn unreadable(error: pageserver::Error) -> Error {
    let what = match error {
        pageserver::Error::Damaged { what } => what,
        other => other.to_string(),
    };
    Error::failure(what).hint("packs are the files in the directory packs of a compressed storage; `zenith check` tells what a damaged one is part of")
}
