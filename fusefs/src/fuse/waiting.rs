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
use crate::mount::{Record, THREADS_MAX};

/// As many requests of a mount can wait at once, each with a place in the record; those beyond are served where they were read.
const PLACES: usize = 8;

/// Where these places begin. Those before are for the threads that read requests.
const FIRST_PLACE: usize = THREADS_MAX - PLACES;

/// More than one mount can take: one whose disk hangs leaves some to the others. Where none is free requests are served where they were read, too.
const THREADS: usize = 16;

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

/// A place for one request, and a thread that is going to serve it.
pub struct Place {
    pool: &'static Pool,
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
        if number == PLACES || !self.pool.take() {
            return None;
        }
        *taken |= 1 << number;
        self.record.note(FIRST_PLACE + number, request);
        Some(Place {
            pool: self.pool,
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
        self.pool.give_back();
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
    work: Mutex<Work>,
    more: Condvar,
}

struct Work {
    jobs: VecDeque<Job>,
    /// Threads that nothing was promised to.
    free: usize,
}

impl Pool {
    fn get() -> io::Result<&'static Pool> {
        static POOL: Pool = Pool {
            work: Mutex::new(Work {
                jobs: VecDeque::new(),
                free: 0,
            }),
            more: Condvar::new(),
        };
        static STARTED: Mutex<usize> = Mutex::new(0);
        let mut started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
        while *started < THREADS {
            let name = format!("waiting-{started}");
            thread::Builder::new().name(name).spawn(|| POOL.serve())?;
            *started += 1;
            POOL.give_back();
        }
        Ok(&POOL)
    }

    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Promises a thread, if one is free.
    fn take(&self) -> bool {
        let mut work = self.work();
        let is_free = work.free > 0;
        work.free -= usize::from(is_free);
        is_free
    }

    fn give_back(&self) {
        self.work().free += 1;
    }

    /// To be called by whom a thread was promised to.
    fn run(&self, job: Job) {
        self.work().jobs.push_back(job);
        self.more.notify_one();
    }

    fn serve(&self) -> ! {
        loop {
            let work = self.more.wait_while(self.work(), |work| work.jobs.is_empty());
            let job = work.unwrap_or_else(PoisonError::into_inner).jobs.pop_front();
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

    /// The threads are the process's, so these tests take turns.
    static TURN: Mutex<()> = Mutex::new(());

    fn turn() -> MutexGuard<'static, ()> {
        TURN.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiting() -> Waiting {
        Waiting::of(Arc::new(Record::new(b"test").expect("a record"))).expect("threads")
    }

    #[test]
    fn there_are_so_many_places_and_each_is_free_again() {
        let _turn = turn();
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
    fn one_mount_leaves_threads_to_the_others() {
        let _turn = turn();
        let mounts: Vec<_> = (0..3).map(|_| waiting()).collect();
        let all = |waiting: &Waiting| -> Vec<Place> { (1..).map_while(|request| waiting.place(request)).collect() };
        let _first = all(&mounts[0]);
        assert!(mounts[1].place(1).is_some());
        let _second = all(&mounts[1]);
        assert!(
            all(&mounts[2]).len() <= THREADS - PLACES,
            "more is promised than there are threads"
        );
    }

    #[test]
    fn what_waits_has_ended_when_the_mount_has() {
        let _turn = turn();
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
