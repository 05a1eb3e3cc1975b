use std::env;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use super::Context;
use crate::api::status::{Status, Upgrade as Asked};
use crate::client::Client;
use crate::error::{Error, Result};

/// How long the next service may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(10);

/// Replace the running service by this program
///
/// Mounts and the servers on them stay: they wait a moment while the next service takes over. Below a service manager that is what it
/// starts, so put the new program in its place first.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  zenith upgrade                                # after a new version was installed
  /opt/zenith-new/zenith upgrade
  zenith upgrade --program /opt/zenith-new/zenith")]
pub struct Upgrade {
    /// The program that is to be the service [default: this one]
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// Although somebody looks into a snapshot: that ends
    #[arg(long)]
    force: bool,
}

impl Upgrade {
    pub fn run(self, context: &Context) -> Result<()> {
        let client = context.observer_of(&context.store_dir()?)?;
        let before = client.status()?;
        let program = match self.program {
            Some(program) => std::path::absolute(&program).map_err(Error::path("find", &program))?,
            None => env::current_exe().map_err(Error::io("find this program"))?,
        };
        client.upgrade(&Asked {
            program,
            force: self.force,
        })?;
        let after = next(&client, &before)?;
        let (old, new) = (before.service.version, after.service.version);
        context.done(&format!("the service {new} took over from {old}"))
    }
}

/// The status of the service after the one that was asked before.
fn next(client: &Client, before: &Status) -> Result<Status> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match client.status() {
            Ok(status) if status.service.pid != before.service.pid => return Ok(status),
            _ if Instant::now() < deadline => thread::sleep(PAUSE),
            _ => {
                return Err(Error::failure("the next service has not come up within a minute")
                    .hint("look into service.log in the store"));
            }
        }
    }
}
