//! What every request has in common: which one is being served by which thread.
//!
//! It stands in the mount's [`Record`], so that the next process knows. A request that was being served each time when a process crashed
//! is answered EIO in the end, or else it would take down every process there will be.

use std::cell::{Cell, OnceCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use nix::errno::Errno;
use pageserver::FsResult;

use crate::clock;
use crate::mount::Record;

/// Set in the number of a request that the kernel has sent before.
const AGAIN: u64 = 1 << 63;

/// In so many crashes a request may have been served.
const CRASHES_MAX: u64 = 3;

thread_local! {
    /// A thread serves one mount all its life.
    static THREAD: Thread = const {
        Thread { place: Cell::new(None), changed: OnceCell::new() }
    };
}

struct Thread {
    /// Its place in the record.
    place: Cell<Option<usize>>,
    /// The last request by which it changed a name.
    changed: OnceCell<Rc<Cell<Option<u64>>>>,
}

/// The requests of a mount.
pub struct Requests {
    record: Arc<Record>,
    threads: AtomicUsize,
}

/// A request, for as long as it is being served.
pub struct Serving<'a> {
    number: u64,
    again: bool,
    place: &'a AtomicU64,
    changed: Rc<Cell<Option<u64>>>,
}

impl Requests {
    pub fn of(record: Arc<Record>) -> Requests {
        Requests {
            record,
            threads: AtomicUsize::new(0),
        }
    }

    /// EIO for a request that is not to be tried again.
    pub fn begin(&self, request: &fuser::Request) -> FsResult<Serving<'_>> {
        let id = request.unique().0;
        let (number, again) = (id & !AGAIN, id & AGAIN != 0);
        if again && self.record.crashes(number) >= CRASHES_MAX {
            tracing::error!(
                "request {number:x} was being served in {CRASHES_MAX} crashes: it is answered with an error"
            );
            return Err(Errno::EIO);
        }
        THREAD.with(|thread| {
            let place = self.record.serving(self.place(thread));
            place.store(number, Ordering::Relaxed);
            Ok(Serving {
                number,
                again,
                place,
                changed: thread.changed.get_or_init(Rc::default).clone(),
            })
        })
    }

    fn place(&self, thread: &Thread) -> usize {
        let new = || {
            let place = self.threads.fetch_add(1, Ordering::Relaxed);
            thread.place.set(Some(place));
            place
        };
        thread.place.get().unwrap_or_else(new)
    }
}

impl Serving<'_> {
    pub fn number(&self) -> u64 {
        self.number
    }

    /// As a change of names takes it. The one before on this thread has been answered: a thread replies before it reads on.
    pub fn change(&self) -> pageserver::Request<'_> {
        pageserver::Request {
            now: clock::now(),
            number: Some(self.number),
            again: self.again,
            last: Some(&self.changed),
        }
    }
}

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        self.place.store(0, Ordering::Relaxed);
    }
}
