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
    /// Started by the keeper
    #[arg(long, hide = true, conflicts_with_all = ["foreground", "spawned"])]
    kept: bool,
}

impl Start {
    pub fn run(self, context: &Context) -> Result<()> {
        let dir = context.store_dir()?;
        let listen = self.listen.as_deref();
        match (self.spawned, self.kept) {
            (true, _) => {
                service::leave_session();
                let kept = launch::keep(&dir, listen, false);
                return end(kept.inspect_err(|error| service::tell(&Err(error.clone().into())))?);
            }
            (_, true) => return end(service::run_kept(&dir, listen)?),
            _ => drop(service::asked_to_listen(listen)?),
        }
        if self.foreground {
            return end(launch::keep(&dir, listen, true)?);
        }
        let client = launch::client_listening(&dir, self.listen.clone())?;
        let status = context.verbosely(client).status()?;
        refuse_elsewhere(self.listen, &status.http)?;
        context.outcome(&status)?;
        refuse_missing(&status.mounts)
    }
}

/// Ends the process as the service that it was, or kept, has ended.
fn end(code: i32) -> Result<()> {
    match code {
        0 => Ok(()),
        // SAFETY: it only ends the process. Everything that the service had is closed or somebody else's by now.
        code => unsafe { libc::_exit(code) },
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
