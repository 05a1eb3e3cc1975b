use std::path::PathBuf;

use serde::Serialize;

use super::Context;
use crate::client::Client;
use crate::error::{Kind, Result};
use crate::output::{self, Format, Show};

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
        let status = Client::new(&dir)?.status();
        if context.format() == Format::Json && status.as_ref().is_err_and(|error| error.kind == Kind::NoService) {
            let store = Store { dir };
            output::print(&NotRunning { store, service: None }, Format::Json)?;
        }
        context.print(&status?)
    }
}

impl Show for NotRunning {
    fn text(&self) -> String {
        format!("{}: not running", self.store.dir.display())
    }
}
