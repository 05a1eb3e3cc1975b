//! Mounts that nobody answers for.
//!
//! A service that is killed leaves its mounts behind: every access fails with ENOTCONN, and nothing can be mounted
//! in their place. Such a mount is taken out of the file tree at once, used or not; what used it has lost it anyway.

use std::path::Path;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sys::statfs::statfs;
use nix::unistd::geteuid;

use crate::error::{Error, Result};

/// Whether what is mounted there has lost its service. Of all questions the kernel passes this one on every time;
/// to stat(2) it answers from memory, long after the service has gone.
pub fn is_dead(dir: &Path) -> bool {
    statfs(dir).err() == Some(Errno::ENOTCONN)
}

/// Takes away a dead mount, if there is one.
pub fn clear(dir: &Path) -> Result<()> {
    if !is_dead(dir) {
        return Ok(());
    }
    tracing::info!("taking away the dead mount on {}", dir.display());
    tear_off(dir)
}

/// Takes a mount out of the file tree although it may be in use.
pub fn tear_off(dir: &Path) -> Result<()> {
    if geteuid().is_root() {
        return match umount2(dir, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            // No mount point: somebody else was quicker.
            Err(Errno::EINVAL) => Ok(()),
            torn => torn.map_err(Error::path("unmount", dir)),
        };
    }
    let status = Command::new("fusermount3")
        .args(["-u", "-z", "--"])
        .arg(dir)
        .stdin(Stdio::null())
        .status()
        .map_err(Error::path("unmount", dir))?;
    match status.success() {
        true => Ok(()),
        false => Err(Error::failure(format!(
            "unmount {}: fusermount3 failed ({status})",
            dir.display()
        ))),
    }
}
