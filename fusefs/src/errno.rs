//! The store's errors as the kernel knows them.

use nix::errno::Errno;
use pageserver::Error;

/// The errno that comes nearest to a store error.
pub(crate) fn errno(error: &Error) -> Errno {
    match error {
        Error::BadName { .. } | Error::NoTag { .. } | Error::ReservedName { .. } => Errno::EINVAL,
        Error::NoBranch { .. } | Error::NoSnapshot { .. } => Errno::ENOENT,
        Error::BranchExists { .. } | Error::SnapshotExists { .. } => Errno::EEXIST,
        Error::Busy { .. } | Error::Needed { .. } => Errno::EBUSY,
        Error::Io { source, .. } => source.raw_os_error().map_or(Errno::EIO, Errno::from_raw),
        _ => Errno::EIO,
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn an_error_of_the_disk_keeps_its_number() {
        let full = Error::io("write")(io::Error::from_raw_os_error(libc::ENOSPC));
        assert_eq!(errno(&full), Errno::ENOSPC);
        let unknown = Error::io("write")(io::Error::other("no number"));
        assert_eq!(errno(&unknown), Errno::EIO);
    }

    #[test]
    fn a_snapshot_that_others_need_is_busy() {
        let needed = Error::Needed {
            name: "main@a".into(),
            dependents: vec!["dev".into()],
        };
        assert_eq!(errno(&needed), Errno::EBUSY);
    }
}
