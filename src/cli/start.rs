use super::Context;
use crate::error::Result;
use crate::{launch, service};

/// Start the store's service
///
/// Mounts that were there when it stopped are established again. Other commands start the service by themselves.
#[derive(clap::Args)]
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
        let status = launch::connect_or_start(&dir)?.status()?;
        context.print(&status)
    }
}
