use std::path::PathBuf;
use std::time::{Duration, Instant};
use std::{env, fs, thread};

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
            program: program.clone(),
            force: self.force,
        })?;
        let after = next(&client, &before)?.service;
        let found = fs::canonicalize(&program).map_err(Error::path("find", &program))?;
        if after.program != found {
            return Err(Error::failure(format!(
                "{} is not the service: {} ({}) goes on",
                program.display(),
                after.program.display(),
                after.version
            ))
            .hint(
                "service.log in the store says why it did not come up; a service manager starts what it is told to",
            ));
        }
        let (old, new) = (before.service.version, after.version);
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
