use std::path::PathBuf;

use serde::Serialize;

use super::Context;
use crate::client::Client;
use crate::error::{Error, Result};
use crate::output::{self, Show};

/// Show the store, its service and its mounts
///
/// Doesn't start the service: exits with 5 when none runs.
#[derive(clap::Args)]
pub struct Status {}

/// What programs get when no service runs.
#[derive(Serialize)]
struct NotRunning {
    store: Store,
    service: Option<()>,
}

#[derive(Serialize)]
struct Store {
    dir: PathBuf,
}

impl Status {
    pub fn run(self, context: &Context) -> Result<()> {
        let dir = context.store_dir()?;
        match Client::connect(&dir)? {
            Some(client) => context.print(&client.status()?),
            None => not_running(dir, context),
        }
    }
}

fn not_running(dir: PathBuf, context: &Context) -> Result<()> {
    let error = Error::no_service(format!("no service runs for the store {}", dir.display()))
        .hint("`zenith start` starts it, and so does every command that needs it");
    if context.json {
        let store = Store { dir };
        output::print(&NotRunning { store, service: None }, true)?;
    }
    Err(error)
}

impl Show for NotRunning {
    fn text(&self) -> String {
        format!("{}: not running", self.store.dir.display())
    }
}
