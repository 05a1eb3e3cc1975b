//! One lock for each branch that something is being done with.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pageserver::BranchName;

type Lock = Arc<Mutex<()>>;

/// Branches have no lock while nobody wants one. An operation takes at most one, so there is no order to keep.
#[derive(Default)]
pub struct BranchLocks {
    wanted: Mutex<HashMap<BranchName, Lock>>,
}

impl BranchLocks {
    /// Does the work while nobody else works on the branch.
    pub fn with<T>(&self, branch: &BranchName, work: impl FnOnce() -> T) -> T {
        let lock = self.wanted().entry(branch.clone()).or_default().clone();
        let held = lock.lock().unwrap_or_else(PoisonError::into_inner);
        let done = work();
        drop(held);
        self.tidy(branch, lock);
        done
    }

    /// Forgets a lock that nobody else waits for.
    fn tidy(&self, branch: &BranchName, lock: Lock) {
        let mut wanted = self.wanted();
        if Arc::strong_count(&lock) == 2 {
            wanted.remove(branch);
        }
    }

    fn wanted(&self) -> MutexGuard<'_, HashMap<BranchName, Lock>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    #[test]
    fn a_branch_is_worked_on_by_one_at_a_time_and_leaves_no_lock_behind() {
        let locks = BranchLocks::default();
        let branch: BranchName = "main".parse().expect("valid");
        let (inside, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let work = || {
            most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            thread::yield_now();
            inside.fetch_sub(1, Ordering::SeqCst);
        };
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..200).for_each(|_| locks.with(&branch, work)));
            }
        });
        assert_eq!(most.load(Ordering::SeqCst), 1);
        assert!(locks.wanted().is_empty());
    }
}
