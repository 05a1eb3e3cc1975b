//! Why something can't be mounted or unmounted, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use thiserror::Error;

#[derive(Debug, Error)]
pub enum MountError {
    #[error("{path} does not exist")]
    Missing { path: PathBuf },
    #[error("{path} is not a directory")]
    NotADirectory { path: PathBuf },
    #[error("{path} is not empty")]
    NotEmpty { path: PathBuf },
    #[error("something is mounted on {path} already")]
    AlreadyMounted { path: PathBuf },
    #[error("the file system that was mounted on {path} is dead")]
    Dead { path: PathBuf },
    #[error("{path} can't be used as a mount point: {}", desc(.source))]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("FUSE can't be used here: {reason}")]
    NoFuse { reason: String },
    #[error("the program fusermount3 is missing")]
    NoFusermount,
    #[error("{path} could not be mounted: {reason}")]
    Refused { path: PathBuf, reason: String },
    #[error("the mount on {path} was lost: {}", desc(.source))]
    Lost { path: PathBuf, source: io::Error },
    #[error("{path} is in use")]
    Busy { path: PathBuf },
    #[error("{path} could not be unmounted: {reason}")]
    NotUnmounted { path: PathBuf, reason: String },
    #[error("something else has been mounted over {path}")]
    Covered { path: PathBuf },
    #[error("{path} was unmounted by somebody else while it was in use, and still is")]
    Detached { path: PathBuf },
    #[error("{path} is unmounted here, but something still holds the file system")]
    Held { path: PathBuf },
}

impl MountError {
    /// What the user can do about it, as one line.
    pub fn hint(&self) -> Option<String> {
        match self {
            MountError::Missing { path } => Some(format!("`mkdir {}` makes it", path.display())),
            MountError::NotADirectory { .. } | MountError::NotEmpty { .. } => {
                Some("give an empty directory to mount on".into())
            }
            MountError::AlreadyMounted { path } | MountError::Dead { path } => Some(format!(
                "unmount it first (`umount {}`), or give another directory",
                path.display()
            )),
            MountError::Unreadable { .. } => {
                Some("check the owner and mode of the directory and those above it".into())
            }
            MountError::NoFuse { .. } => Some(
                "load the kernel's module (`modprobe fuse`), and let the service open /dev/fuse (mode 0666)".into(),
            ),
            MountError::NoFusermount => Some("install the package fuse3, or run the service as root".into()),
            MountError::Refused { .. } => {
                Some("the service's user must own the directory, and in a container be allowed to mount".into())
            }
            MountError::NotUnmounted { .. } | MountError::Lost { .. } => None,
            MountError::Busy { path } => Some(format!("stop what uses it; `fuser -vm {}` lists it", path.display())),
            MountError::Covered { path } => Some(format!("`umount {}` takes that away", path.display())),
            MountError::Detached { .. } => {
                Some("end what still uses it (a PostgreSQL, an open file or shell), or `zenith stop --force`".into())
            }
            MountError::Held { .. } => {
                Some("look for containers or services with a mount namespace of their own".into())
            }
        }
    }

    pub(super) fn unreadable(path: &Path, source: io::Error) -> MountError {
        let path = path.to_owned();
        match source.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOENT) => MountError::Missing { path },
            Some(Errno::ENOTDIR) => MountError::NotADirectory { path },
            Some(Errno::ENOTCONN) => MountError::Dead { path },
            _ => MountError::Unreadable { path, source },
        }
    }

    pub(super) fn refused(path: &Path, reason: impl Into<String>) -> MountError {
        MountError::Refused {
            path: path.to_owned(),
            reason: reason.into(),
        }
    }

    pub(super) fn session(path: &Path, source: io::Error) -> MountError {
        MountError::refused(path, desc(&source))
    }

    #[cfg(target_os = "linux")]
    pub(super) fn lost(path: &Path, source: io::Error) -> MountError {
        MountError::Lost {
            path: path.to_owned(),
            source,
        }
    }

    pub(super) fn not_unmounted(path: &Path, reason: impl Into<String>) -> MountError {
        MountError::NotUnmounted {
            path: path.to_owned(),
            reason: reason.into(),
        }
    }
}

/// An [`io::Error`] without Rust's "(os error N)".
pub(super) fn desc(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(code) => Errno::from_raw(code).desc().to_lowercase(),
        None => error.to_string(),
    }
}
