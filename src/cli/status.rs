use std::path::PathBuf;

use serde::Serialize;

use super::Context;
use crate::error::{Kind, Result};
use crate::output::{Format, Show};

/// Show the store, its service and its mounts
///
/// Doesn't start the service: exits with 5 when none runs.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  zenith status
  zenith status -o json")]
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
        let status = context.observer_of(&dir)?.status();
        let for_programs = context.format() != Format::Table;
        if for_programs && status.as_ref().is_err_and(|error| error.kind == Kind::NoService) {
            let store = Store { dir };
            context.print(&NotRunning { store, service: None })?;
        }
        context.print(&status?)
    }
}

impl Show for NotRunning {
    fn text(&self) -> String {
        format!("{}: not running", self.store.dir.display())
    }
}
