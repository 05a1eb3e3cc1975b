use std::path::PathBuf;

use super::Context;
use super::mount::absolute;
use crate::error::Result;

/// Unmount a directory
///
/// The service forgets the mount: it won't come back at the next start. The branch stays.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  zenith umount ./data")]
pub struct Umount {
    /// Where it is mounted
    dir: PathBuf,
}

impl Umount {
    pub fn run(self, context: &Context) -> Result<()> {
        let dir = absolute(&self.dir)?;
        context.client()?.umount(&dir)?;
        context.done(&format!("{} is unmounted", dir.display()))
    }
}
