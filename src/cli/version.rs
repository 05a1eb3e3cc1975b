use serde::Serialize;

use super::Context;
use crate::error::Result;
use crate::output::Show;

/// Show the version of this program
#[derive(clap::Args)]
pub struct Version {}

#[derive(Serialize)]
struct Versions {
    version: &'static str,
}

impl Version {
    pub fn run(self, context: &Context) -> Result<()> {
        context.print(&Versions {
            version: env!("CARGO_PKG_VERSION"),
        })
    }
}

impl Show for Versions {
    fn text(&self) -> String {
        format!("zenith {}", self.version)
    }
}
