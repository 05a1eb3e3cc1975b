//! Requests that have to wait for the disk, served by threads of their own.
//!
//! Few threads read the kernel's requests: each of them that sleeps there is one more to be woken, on a processor where nothing is at hand.
//! But one that waits for the disk reads no more requests, and the disk would get as many reads at once as there are such threads. So what
//! waits is handed on, to threads that all mounts of the process share.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use crate::fs::Fs;
use crate::mount::Record;

/// As many requests of a mount can wait at once, each with a place in the record; those beyond are served where they were read.
const PLACES: usize = 8;

/// Where these places begin. Those before are for the threads that read requests.
pub const FIRST_PLACE: usize = 8;

const THREADS: usize = 8;

type Job = Box<dyn FnOnce() + Send>;

/// What of a mount's requests waits. Dropping it waits until nothing does.
pub struct Waiting {
    pool: &'static Pool,
    record: Arc<Record>,
    places: Arc<Places>,
}

#[derive(Default)]
struct Places {
    /// One bit each.
    taken: Mutex<u8>,
    freed: Condvar,
}

/// A place for one request.
pub struct Place {
    record: Arc<Record>,
    places: Arc<Places>,
    number: usize,
}

impl Waiting {
    /// `record` is where the requests under way are noted.
    pub fn of(record: Arc<Record>) -> io::Result<Waiting> {
        Ok(Waiting {
            pool: Pool::get()?,
            record,
            places: Arc::default(),
        })
    }

    /// A place for the request with that number, if there is one left.
    pub fn place(&self, request: u64) -> Option<Place> {
        let mut taken = self.places.taken();
        let number = taken.trailing_ones() as usize;
        if number == PLACES {
            return None;
        }
        *taken |= 1 << number;
        self.record.note(FIRST_PLACE + number, request);
        Some(Place {
            record: self.record.clone(),
            places: self.places.clone(),
            number,
        })
    }

    /// Has the request that has a place be served.
    pub fn serve(&self, place: Place, fs: Arc<Fs>, serve: impl FnOnce(&Fs) + Send + 'static) {
        self.pool.run(Box::new(move || {
            serve(&fs);
            // Whoever waits for the place finds nobody that holds the file system.
            drop(fs);
            drop(place);
        }));
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let free = self.places.freed.wait_while(self.places.taken(), |taken| *taken != 0);
        drop(free.unwrap_or_else(PoisonError::into_inner));
    }
}

impl Places {
    fn taken(&self) -> MutexGuard<'_, u8> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.record.note(FIRST_PLACE + self.number, 0);
        let mut taken = self.places.taken();
        *taken &= !(1 << self.number);
        if *taken == 0 {
            self.places.freed.notify_all();
        }
    }
}

/// The threads of the process.
struct Pool {
    jobs: Mutex<VecDeque<Job>>,
    more: Condvar,
}

impl Pool {
    fn get() -> io::Result<&'static Pool> {
        static POOL: Pool = Pool {
            jobs: Mutex::new(VecDeque::new()),
            more: Condvar::new(),
        };
        static STARTED: Mutex<usize> = Mutex::new(0);
        let mut started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
        while *started < THREADS {
            let name = format!("waiting-{started}");
            thread::Builder::new().name(name).spawn(|| POOL.serve())?;
            *started += 1;
        }
        Ok(&POOL)
    }

    fn jobs(&self) -> MutexGuard<'_, VecDeque<Job>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, job: Job) {
        self.jobs().push_back(job);
        self.more.notify_one();
    }

    fn serve(&self) -> ! {
        loop {
            let jobs = self.more.wait_while(self.jobs(), |jobs| jobs.is_empty());
            let job = jobs.unwrap_or_else(PoisonError::into_inner).pop_front();
            if let Some(job) = job {
                job();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use super::*;

    fn waiting() -> Waiting {
        Waiting::of(Arc::new(Record::new(b"test").expect("a record"))).expect("threads")
    }

    #[test]
    fn there_are_so_many_places_and_each_is_free_again() {
        let waiting = waiting();
        let places: Vec<_> = (1..=PLACES as u64)
            .map_while(|request| waiting.place(request))
            .collect();
        assert_eq!(places.len(), PLACES);
        assert!(waiting.place(99).is_none());
        drop(places);
        assert!(waiting.place(99).is_some());
    }

    #[test]
    fn what_waits_has_ended_when_the_mount_has() {
        let waiting = waiting();
        let served = Arc::new(AtomicBool::new(false));
        let (place, done) = (waiting.place(1).expect("a place"), served.clone());
        waiting.pool.run(Box::new(move || {
            thread::sleep(Duration::from_millis(50));
            done.store(true, Ordering::Release);
            drop(place);
        }));
        drop(waiting);
        assert!(served.load(Ordering::Acquire));
    }
}
