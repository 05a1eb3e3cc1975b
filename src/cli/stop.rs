use super::Context;
use crate::api::status;
use crate::error::{Kind, Result};
use crate::launch::Watch;

/// Stop the store's service
///
/// Unmounts everything first; the next start mounts it again. Refused while a mount is in use.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  zenith stop
  zenith stop --force                           # although a mount is in use")]
pub struct Stop {
    /// Stop although mounts are in use: for the programs that use them it is as if the disk were pulled. What they
    /// have synced is safe
    #[arg(long)]
    force: bool,
}

impl Stop {
    pub fn run(self, context: &Context) -> Result<()> {
        let dir = context.store_dir()?;
        let watch = Watch::of(&dir);
        match context.observer_of(&dir)?.stop(&status::Stop { force: self.force }) {
            Err(error) if error.kind == Kind::NoService => return context.done("no service was running"),
            stopped => stopped?,
        }
        watch.wait()?;
        context.done("stopped")
    }
}
