use super::Context;
use crate::api::mounts::Mount;
use crate::error::{Error, Result};
use crate::service;

/// Start the store's service
///
/// Mounts that were there when it stopped are established again. Other commands start the service by themselves.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  zenith start
  zenith start --foreground                     # for a service manager")]
pub struct Start {
    /// Stay in the foreground and log to stderr; SIGTERM and SIGINT stop it
    #[arg(long)]
    foreground: bool,
    /// Started by another command: tell it on stdout how it went
    #[arg(long, hide = true, conflicts_with = "foreground")]
    spawned: bool,
}

impl Start {
    pub fn run(self, context: &Context) -> Result<()> {
        let dir = context.store_dir()?;
        if self.spawned {
            return service::run_spawned(&dir);
        }
        if self.foreground {
            return service::run(&dir);
        }
        let status = context.client_of(&dir)?.status()?;
        context.outcome(&status)?;
        refuse_missing(&status.mounts)
    }
}

/// Whoever starts the service relies on the mounts.
fn refuse_missing(mounts: &[Mount]) -> Result<()> {
    match mounts.iter().filter(|mount| mount.error.is_some()).count() {
        0 => Ok(()),
        missing => Err(Error::failure(format!(
            "the service runs, but {missing} of {} mounts did not come back",
            mounts.len()
        ))
        .hint("`zenith mount` mounts again once the cause is gone, `zenith umount DIR` forgets a mount")),
    }
}
