use serde::Serialize;

use super::Context;
use crate::error::Result;
use crate::output::{Format, Show};

/// Show the version of this program
///
/// With --output json or yaml also the format of the stores that it makes, and the version of the store's service if one
/// runs.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  zenith version
  zenith version -o json")]
pub struct Version {}

#[derive(Serialize)]
struct Versions {
    version: &'static str,
    store_format: u32,
    service: Option<String>,
}

impl Version {
    pub fn run(self, context: &Context) -> Result<()> {
        let service = match context.format() {
            Format::Table => None,
            // That there is no store or no service is an answer too.
            Format::Json | Format::Yaml => service_version(context).ok(),
        };
        context.print(&Versions {
            version: env!("CARGO_PKG_VERSION"),
            store_format: pageserver::FORMAT,
            service,
        })
    }
}

fn service_version(context: &Context) -> Result<String> {
    let status = context.observer_of(&context.store_dir()?)?.status()?;
    Ok(status.service.version)
}

impl Show for Versions {
    fn text(&self) -> String {
        format!("zenith {}", self.version)
    }
}
