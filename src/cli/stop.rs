use super::Context;
use crate::api::pgs::Action;
use crate::api::status;
use crate::client::Client;
use crate::error::{Kind, Result};
use crate::launch::Watch;
use crate::postgres::server::{Status as PgStatus, StopMode};

/// Stop the store's service
///
/// Unmounts everything first; the next start mounts it again. Refused while a mount is in use.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  zenith stop
  zenith stop --pgs                             # and the servers that run
  zenith stop --force                           # although a mount is in use")]
pub struct Stop {
    /// Stop although mounts are in use: for the programs that use them it is as if the disk were pulled. What they
    /// have synced is safe
    #[arg(long)]
    force: bool,
    /// Stop the pgs' servers first, ending their clients' sessions
    #[arg(long)]
    pgs: bool,
}

impl Stop {
    pub fn run(self, context: &Context) -> Result<()> {
        let dir = context.store_dir()?;
        let watch = Watch::of(&dir);
        let client = context.observer_of(&dir)?;
        if self.pgs {
            stop_pgs(&client, context)?;
        }
        match client.stop(&status::Stop { force: self.force }) {
            Err(error) if error.kind == Kind::NoService => return context.done("no service was running"),
            stopped => stopped?,
        }
        watch.wait()?;
        context.done("stopped")
    }
}

fn stop_pgs(client: &Client, context: &Context) -> Result<()> {
    let pgs = match client.pgs() {
        Err(error) if error.kind == Kind::NoService => return Ok(()),
        pgs => pgs?,
    };
    let mode = StopMode::Fast;
    for pg in pgs.iter().filter(|pg| pg.status != PgStatus::Stopped) {
        client.act(&pg.name, &Action::Stop { mode }, &mut context.progress())?;
    }
    Ok(())
}
