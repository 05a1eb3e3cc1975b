//! "Durable up to here", with concurrent syncs sharing one flush.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, TryLockError};

/// Counts the changes made to something and up to which of them it is durable.
///
/// A change is counted *after* it was handed to the backing filesystem and *before* it is acknowledged; so whatever was
/// acknowledged before a sync began is covered by the count that the sync starts from. A flush that failed once
/// fails for good: the kernel reports a lost write only once, a second flush would lie.
#[derive(Default)]
pub struct SyncPoint {
    changes: AtomicU64,
    durable: AtomicU64,
    failed: AtomicBool,
    flushing: Mutex<()>,
}

impl SyncPoint {
    /// Notes a change that has been made.
    pub fn changed(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// Everything noted so far.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    pub fn is_durable(&self) -> bool {
        self.is_durable_up_to(self.changes())
    }

    /// Whether everything is durable that was noted when [`SyncPoint::changes`] told `count`.
    pub fn is_durable_up_to(&self, count: u64) -> bool {
        self.durable.load(Ordering::Acquire) >= count && !self.failed.load(Ordering::Acquire)
    }

    /// Whether a flush is under way.
    pub fn is_flushing(&self) -> bool {
        matches!(self.flushing.try_lock(), Err(TryLockError::WouldBlock))
    }

    /// Returns once everything noted before the call is durable, by `flush` or by somebody else's flush.
    pub fn sync(&self, flush: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        self.sync_unless_lost(flush, is_disk_failure)
    }

    /// As [`SyncPoint::sync`], for a flush that can tell by its error whether bytes were `lost`.
    pub fn sync_unless_lost(
        &self,
        flush: impl FnOnce() -> io::Result<()>,
        lost: impl FnOnce(&io::Error) -> bool,
    ) -> io::Result<()> {
        let goal = self.changes();
        self.check()?;
        if self.durable.load(Ordering::Acquire) >= goal {
            return Ok(());
        }
        let _flushing = self.flushing.lock().unwrap_or_else(|e| e.into_inner());
        self.check()?;
        if self.durable.load(Ordering::Acquire) >= goal {
            return Ok(());
        }
        let covered = self.changes();
        match flush() {
            Ok(()) => self.durable_up_to(covered),
            Err(e) => {
                self.failed.fetch_or(lost(&e), Ordering::AcqRel);
                return Err(e);
            }
        }
        Ok(())
    }

    /// Notes that a wider flush, begun when [`SyncPoint::changes`] told `count`, has succeeded.
    pub fn durable_up_to(&self, count: u64) {
        self.durable.fetch_max(count, Ordering::AcqRel);
    }

    fn check(&self) -> io::Result<()> {
        if self.failed.load(Ordering::Acquire) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        Ok(())
    }
}

/// Whether an error can mean that written bytes were lost; not where the process merely ran out of descriptors before it began, nor where
/// something sealed is not what it was.
pub fn is_disk_failure(error: &io::Error) -> bool {
    let is_damage = error.kind() == io::ErrorKind::InvalidData;
    !is_damage && !matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// Whether the platform can't do it at all.
pub fn is_unsupported(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EOPNOTSUPP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sync_with_nothing_to_do_flushes_nothing() {
        let point = SyncPoint::default();
        point.sync(|| panic!("flushed")).expect("nothing to do");
        point.changed();
        point.sync(|| Ok(())).expect("flushed");
        point.sync(|| panic!("flushed again")).expect("nothing to do");
    }

    #[test]
    fn a_change_during_a_flush_is_not_covered_by_it() {
        let point = SyncPoint::default();
        point.changed();
        point
            .sync(|| {
                point.changed();
                Ok(())
            })
            .expect("flushed");
        assert!(!point.is_durable());
    }

    #[test]
    fn a_flush_that_never_began_may_be_tried_again() {
        let point = SyncPoint::default();
        point.changed();
        assert!(point.sync(|| Err(io::Error::from_raw_os_error(libc::EMFILE))).is_err());
        assert!(!point.is_durable());
        point.sync(|| Ok(())).expect("tried again");
        assert!(point.is_durable());
    }

    #[test]
    fn a_failed_flush_is_never_retried_into_success() {
        let point = SyncPoint::default();
        point.changed();
        assert!(point.sync(|| Err(io::ErrorKind::Other.into())).is_err());
        assert!(point.sync(|| Ok(())).is_err());
    }
}
