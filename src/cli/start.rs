use super::Context;
use crate::api::mounts::Mount;
use crate::api::status::Http;
use crate::error::{Error, Result};
use crate::{launch, service};

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
    /// Where to listen for HTTP besides the socket in the store: an address of this machine alone, or none
    /// [default: $ZENITH_LISTEN, else 127.0.0.1:3000]
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<String>,
    /// Started by another command: tell it on stdout how it went
    #[arg(long, hide = true, conflicts_with = "foreground")]
    spawned: bool,
}

impl Start {
    pub fn run(self, context: &Context) -> Result<()> {
        let dir = context.store_dir()?;
        if self.spawned {
            return service::run_spawned(&dir, self.listen.as_deref());
        }
        service::asked_to_listen(self.listen.as_deref())?;
        if self.foreground {
            return service::run(&dir, self.listen.as_deref());
        }
        let client = launch::client_listening(&dir, self.listen.clone())?;
        let status = context.verbosely(client).status()?;
        refuse_elsewhere(self.listen, &status.http)?;
        context.outcome(&status)?;
        refuse_missing(&status.mounts)
    }
}

/// A service that runs already stays where it is.
fn refuse_elsewhere(asked: Option<String>, http: &Http) -> Result<()> {
    match asked.is_none_or(|asked| asked == http.listen) {
        true => Ok(()),
        false => Err(
            Error::refused(format!("the service runs already, told to listen on {}", http.listen))
                .hint("`zenith stop` first"),
        ),
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
