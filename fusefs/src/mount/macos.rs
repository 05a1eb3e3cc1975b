//! Mounting with macFUSE, whose own helper does it.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::{fs, io};

use fuser::{MountOption, Session, SessionACL};
use nix::unistd::geteuid;

use super::{Keeping, MountError, Options, Record, config};
use crate::fs::Fs;
use crate::fuse::Fuse;

/// Mounts `fs` and greets the kernel.
pub fn open(
    fs: Arc<Fs>,
    mountpoint: &Path,
    options: &Options,
    record: &Arc<Record>,
    _keeping: &Keeping,
) -> Result<Session<Fuse>, MountError> {
    let mut config = config(options);
    if !geteuid().is_root() {
        config.acl = SessionACL::Owner;
    }
    config.mount_options = vec![
        if fs.is_read_only() {
            MountOption::RO
        } else {
            MountOption::RW
        },
        MountOption::NoSuid,
        MountOption::NoDev,
        MountOption::DefaultPermissions,
        MountOption::FSName(format!("zenith:{}", options.source)),
    ];
    Fuse::new(fs, record.clone(), None)
        .and_then(|fuse| Session::new(fuse, mountpoint, &config))
        .map_err(|source| MountError::session(mountpoint, source))
}

/// Takes the mount away, unless somebody uses it.
pub fn detach(mountpoint: &Path) -> Result<(), MountError> {
    let output = Command::new("/sbin/umount").arg(mountpoint).output();
    let output = output.map_err(|source| MountError::session(mountpoint, source))?;
    let reason = String::from_utf8_lossy(&output.stderr);
    match reason.trim() {
        _ if output.status.success() => Ok(()),
        reason if reason.contains("Resource busy") => Err(MountError::Busy {
            path: mountpoint.to_owned(),
        }),
        reason => Err(MountError::not_unmounted(mountpoint, reason)),
    }
}

/// There is nothing to tune.
pub fn tune(_device: u64) {}

/// The number of the device whose file system is at `path`.
pub fn device(path: &Path) -> io::Result<u64> {
    fs::metadata(path).map(|metadata| metadata.dev())
}
