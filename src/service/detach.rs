//! Mounts that nobody answers for.
//!
//! A service that is killed leaves its mounts behind: every access fails with ENOTCONN, and nothing can be mounted
//! in their place. Such a mount is taken out of the file tree at once, used or not; what used it has lost it anyway.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::unistd::geteuid;

use crate::error::{Error, Result};

/// Whether what is mounted there has lost its service.
pub fn is_dead(dir: &Path) -> bool {
    let error = fs::metadata(dir).err().and_then(|error| error.raw_os_error());
    error.map(Errno::from_raw) == Some(Errno::ENOTCONN)
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
        return umount2(dir, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).map_err(Error::path("unmount", dir));
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
