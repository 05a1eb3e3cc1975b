//! What can go wrong with a store as a whole, named by what the caller does about it.
//!
//! File operations answer with an [`Errno`] instead, since that is what a kernel wants: see [`FsResult`].
//! Every error prints as one line; [`Error::hint`] says what to do.

use std::io;
use std::path::PathBuf;

use nix::errno::Errno;
use thiserror::Error;

use crate::names::known_names;

/// The result of a file operation inside a view.
pub type FsResult<T> = std::result::Result<T, Errno>;

/// The result of an operation on the store.
pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, Error)]
pub enum Error {
    #[error("{path} is not a zenith store")]
    NotAStore { path: PathBuf },
    #[error("{path} already holds a zenith store")]
    StoreExists { path: PathBuf },
    #[error("{path} is not empty")]
    NotEmpty { path: PathBuf },
    #[error("the store {path} is in use by another zenith service")]
    Locked { path: PathBuf },
    #[error("the store {path} has format {found}, and this zenith knows formats up to {known}")]
    NewerFormat { path: PathBuf, found: u32, known: u32 },
    #[error("{path} lies on {filesystem}, which can't hold a store: {why}")]
    UnsupportedFilesystem {
        path: PathBuf,
        filesystem: String,
        why: String,
    },
    #[error("{name:?} is not a valid name: {why}")]
    BadName { name: String, why: &'static str },
    #[error("{name:?} is no snapshot: a snapshot is named BRANCH@TAG")]
    NoTag { name: String },
    #[error("the name {name} is reserved")]
    ReservedName { name: String },
    #[error("no branch named {name}")]
    NoBranch { name: String, known: Vec<String> },
    #[error("a branch named {name} exists already")]
    BranchExists { name: String },
    #[error("no snapshot named {name}")]
    NoSnapshot { name: String, known: Vec<String> },
    #[error("a snapshot named {name} exists already")]
    SnapshotExists { name: String },
    #[error("{name} is in use")]
    Busy { name: String },
    #[error("{name} can't be destroyed: {}", needed_by(.dependents))]
    Needed { name: String, dependents: Vec<String> },
    #[error("{name} is protected")]
    Protected { name: String },
    #[error("the store is damaged: {what}")]
    Damaged { what: String },
    #[error("{branch}: an earlier write to disk failed, so nothing more is taken as durable")]
    Poisoned { branch: String },
    #[error("{what}: {}", reason(.source))]
    Io { what: String, source: io::Error },
    #[error("the store's database: {0}")]
    Db(rocksdb::Error),
}

const CHECK_HINT: &str = "keep the store as it is: `zenith check` tells what is hit, and what can be repaired";

impl Error {
    /// What the user can do about it, as one line.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::NotAStore { .. } => Some("`zenith init` makes one; --store or ZENITH_DIR names another".into()),
            Error::StoreExists { .. } => Some("use it as it is, or give another directory with --store".into()),
            Error::NotEmpty { .. } => Some("give an empty or a new directory".into()),
            Error::Locked { .. } => Some("`zenith status` shows the service, `zenith stop` ends it".into()),
            Error::NewerFormat { .. } => Some("use the zenith that wrote it, or a newer one".into()),
            Error::UnsupportedFilesystem { .. } => {
                Some("take a directory on ext4 (data=ordered), xfs or btrfs with blocks of 4 KiB; --store names one for the store".into())
            }
            Error::BadName { .. } => {
                Some("names are 1 to 63 characters of A-Z a-z 0-9 _ . - and start with neither '-' nor '.'".into())
            }
            Error::NoTag { .. } => Some("`zenith snapshot list` shows those that there are".into()),
            Error::ReservedName { .. } => Some("HEAD, HEAD{n} and CURRENT are zenith's own; take another name".into()),
            Error::NoBranch { name, known } => Some(known_names("branches", name, known)),
            Error::NoSnapshot { name, known } => Some(known_names("snapshots of that branch", name, known)),
            Error::BranchExists { .. } | Error::SnapshotExists { .. } => Some("take another name".into()),
            Error::Busy { .. } => Some("`zenith status` shows where it is mounted; unmount it first".into()),
            Error::Needed { dependents, .. } => dependents.first().map(|first| {
                format!("destroy {first} first: `zenith pg destroy` if it is a pg, else `zenith branch -d`")
            }),
            Error::Protected { .. } => Some("`zenith snapshot protect --off` takes the protection away".into()),
            Error::Damaged { .. } => Some(CHECK_HINT.into()),
            Error::Poisoned { .. } => {
                Some("look into the service's log, mend the disk, then unmount and mount the branch again".into())
            }
            Error::Io { source, .. } => io_hint(source),
            Error::Db(_) => Some(CHECK_HINT.into()),
        }
    }

    /// What is damaged, where that is all there is to say.
    pub(crate) fn damage(&self) -> String {
        match self {
            Error::Damaged { what } => what.clone(),
            other => other.to_string(),
        }
    }

    /// Whether there was no room on the disk, and nothing was lost.
    pub fn is_full(&self) -> bool {
        matches!(self, Error::Io { source, .. } if is_full(source))
    }

    /// Wraps an I/O error with what was being done: `.map_err(Error::io("open …"))`. One that was an error of the store stays what it was.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        let what = what.into();
        move |source| match source.downcast() {
            Ok(error) => error,
            Err(source) => Error::Io { what, source },
        }
    }
}

/// Whether an I/O error says that there is no room.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}

impl From<rocksdb::Error> for Error {
    /// RocksDB keeps an error's number only as the system's words for it.
    fn from(error: rocksdb::Error) -> Error {
        match error.as_ref().contains(Errno::ENOSPC.desc()) {
            true => Error::io("write to the store's database")(Errno::ENOSPC.into()),
            false => Error::Db(error),
        }
    }
}

/// An [`io::Error`] without Rust's "(os error N)".
fn reason(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(code) => Errno::from_raw(code).desc().to_lowercase(),
        None => error.to_string(),
    }
}

fn needed_by(dependents: &[String]) -> String {
    match dependents {
        [one] => format!("{one} depends on it"),
        many => format!("{} depend on it", many.join(", ")),
    }
}

fn io_hint(source: &io::Error) -> Option<String> {
    match Errno::from_raw(source.raw_os_error()?) {
        Errno::ENOSPC | Errno::EDQUOT => Some("the disk under the store is full: make space; nothing was lost".into()),
        Errno::EACCES | Errno::EPERM => Some("check the owner and mode of the path".into()),
        Errno::EIO => Some("the disk under the store reports errors: see the kernel's log".into()),
        _ => None,
    }
}
