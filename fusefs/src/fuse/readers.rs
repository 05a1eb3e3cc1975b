//! Which of a mount's threads read the kernel's requests.
//!
//! One at a time, so that the kernel wakes the one that is at hand: several that sleep there take turns, and each finds its processor asleep and its
//! caches cold. Whose request can take long has another thread read meanwhile, and stands back afterwards as long as that one reads. Where one
//! that seemed short takes long, one of those that stand back sees requests wait, and reads too.

use std::cell::OnceCell;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// So many syncs of commits are made beside a reading thread, and the disk is not asked to begin before, after one that kept a request waiting, or
/// was slow.
const SYNCS_ASIDE: u32 = 16;

/// What takes so long takes hardly longer when another thread is woken first.
const SLOW: Duration = Duration::from_millis(5);

/// To ask the disk to begin takes so long where it has no place for more.
const BEHIND: Duration = Duration::from_millis(1);

/// So long a request can wait for a thread that reads and is held up.
const WATCH: Duration = Duration::from_millis(500);

thread_local! {
    /// A thread serves one mount all its life.
    static READER: OnceCell<Reader> = const { OnceCell::new() };
}

/// The threads that read a mount's requests. They are known from their first request on.
pub struct Readers {
    shared: Arc<Shared>,
    /// Syncs of commits that are still to be made aside.
    aside: AtomicU32,
    /// Whether a thread asks the disk to begin with WAL.
    is_beginning: AtomicBool,
}

struct Shared {
    /// Where requests come from; none where that can't be asked.
    device: Option<OwnedFd>,
    /// How many threads read or serve what does not take long. Taken down under the lock only.
    reading: AtomicUsize,
    /// Whether one of the threads has ended, as all do when the mount does: the others must read to hear of it.
    is_over: Mutex<bool>,
    changed: Condvar,
}

/// Tells the others when its thread ends.
struct Reader(Arc<Shared>);

/// A request's time on a thread that reads. When it is over, so is the request: the thread may have to stand back.
pub struct Turn<'a> {
    readers: &'a Readers,
    is_away: bool,
}

impl Readers {
    pub fn of(device: Option<OwnedFd>) -> Readers {
        Readers {
            shared: Arc::new(Shared {
                device,
                reading: AtomicUsize::new(0),
                is_over: Mutex::new(false),
                changed: Condvar::new(),
            }),
            aside: AtomicU32::new(0),
            is_beginning: AtomicBool::new(false),
        }
    }

    /// Of a request that was just read. To be kept until it is answered.
    pub fn turn(&self) -> Turn<'_> {
        READER.with(|reader| {
            reader.get_or_init(|| {
                self.shared.reading.fetch_add(1, Ordering::Relaxed);
                Reader(self.shared.clone())
            });
        });
        Turn {
            readers: self,
            is_away: false,
        }
    }

    /// Of one that can take long.
    pub fn long_turn(&self) -> Turn<'_> {
        let mut turn = self.turn();
        turn.let_read();
        turn
    }
}

impl Turn<'_> {
    /// Has another thread read from here on.
    pub fn let_read(&mut self) {
        if !self.is_away {
            self.is_away = true;
            self.readers.shared.leave();
        }
    }

    /// Has the disk begin with WAL, whose sync is mostly asked for next: that request's way takes as long as the disk. Not while syncs are made
    /// aside, and not beside another thread, which a disk that hangs may have kept.
    pub fn begin_write_out<E>(&self, begin: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        let Readers {
            aside, is_beginning, ..
        } = self.readers;
        if aside.load(Ordering::Relaxed) > 0 || is_beginning.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        let begun = Instant::now();
        let done = begin();
        is_beginning.store(false, Ordering::Relaxed);
        if begun.elapsed() > BEHIND {
            aside.store(SYNCS_ASIDE, Ordering::Relaxed);
        }
        done
    }

    /// Serves a commit's sync. Its caller is the one who waits for it, mostly, so no other thread is woken, unless syncs are slow or have kept somebody
    /// else waiting.
    pub fn commit<T>(&mut self, sync: impl FnOnce() -> T) -> T {
        let aside = &self.readers.aside;
        let left = aside.load(Ordering::Relaxed);
        if left > 0 {
            aside.store(left - 1, Ordering::Relaxed);
            self.let_read();
        }
        let begun = Instant::now();
        let done = sync();
        if begun.elapsed() > SLOW || !self.is_away && self.readers.shared.is_request_waiting() {
            aside.store(SYNCS_ASIDE, Ordering::Relaxed);
        }
        done
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let shared = &self.readers.shared;
        match self.is_away {
            true => shared.come_back(),
            false if shared.reading.load(Ordering::Relaxed) > 1 => shared.stand_back(),
            false => {}
        }
    }
}

impl Shared {
    fn is_over(&self) -> MutexGuard<'_, bool> {
        self.is_over.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leave(&self) {
        let is_over = self.is_over();
        if self.reading.fetch_sub(1, Ordering::Relaxed) == 1 {
            drop(is_over);
            self.changed.notify_one();
        }
    }

    /// Waits until nobody else reads, or does not come to it.
    fn come_back(&self) {
        let others_read = |is_over: &mut bool| !*is_over && self.reading.load(Ordering::Relaxed) > 0;
        let mut is_over = self.is_over();
        loop {
            let waited = self.changed.wait_timeout_while(is_over, WATCH, others_read);
            let (still_locked, waited) = waited.unwrap_or_else(PoisonError::into_inner);
            if !waited.timed_out() || self.is_request_waiting() {
                self.reading.fetch_add(1, Ordering::Relaxed);
                return;
            }
            is_over = still_locked;
        }
    }

    fn is_request_waiting(&self) -> bool {
        self.device.as_ref().is_some_and(|device| {
            let mut asked = [PollFd::new(device.as_fd(), PollFlags::POLLIN)];
            let count = poll(&mut asked, PollTimeout::ZERO);
            count.is_ok() && asked[0].any() == Some(true)
        })
    }

    /// Leaves reading to the others, if there are others.
    fn stand_back(&self) {
        let is_over = self.is_over();
        if self.reading.load(Ordering::Relaxed) > 1 {
            self.reading.fetch_sub(1, Ordering::Relaxed);
            drop(is_over);
            self.come_back();
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        *self.0.is_over() = true;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Write, pipe};
    use std::sync::mpsc::{Receiver, channel};
    use std::thread;

    use super::*;

    const MOMENT: Duration = Duration::from_millis(50);

    /// Another thread, which serves one request and says when it would read the next.
    fn another(readers: &Arc<Readers>, serve: impl FnOnce(&Readers) + Send + 'static) -> Receiver<()> {
        let (say, said) = channel();
        let readers = readers.clone();
        thread::spawn(move || {
            serve(&readers);
            say.send(()).expect("somebody listens");
            // It reads until the test is over.
            thread::sleep(Duration::from_secs(2));
        });
        said
    }

    fn known(device: Option<OwnedFd>) -> Arc<Readers> {
        let readers = Arc::new(Readers::of(device));
        drop(readers.turn());
        readers
    }

    #[test]
    fn a_thread_stands_back_until_the_one_that_reads_has_something_long() {
        let readers = known(None);
        let other = another(&readers, |readers| drop(readers.turn()));
        other.recv_timeout(MOMENT).expect_err("both read");
        let turn = readers.long_turn();
        other.recv().expect("it reads");
        assert_eq!(readers.shared.reading.load(Ordering::Relaxed), 1);
        drop(turn);
        // The other thread had ended by then.
        assert!(*readers.shared.is_over());
    }

    #[test]
    fn who_comes_back_first_reads_on() {
        let readers = known(None);
        let mut turn = readers.turn();
        turn.let_read();
        turn.let_read();
        drop(turn);
        let other = another(&readers, |readers| drop(readers.long_turn()));
        other.recv_timeout(MOMENT).expect_err("both read");
        assert_eq!(readers.shared.reading.load(Ordering::Relaxed), 1);
        let _turn = readers.long_turn();
        other.recv().expect("it reads");
    }

    #[test]
    fn a_thread_that_stands_back_reads_when_the_one_that_reads_is_held_up() {
        let (device, mut kernel) = pipe().expect("a pipe");
        let readers = known(Some(device.into()));
        let other = another(&readers, |readers| drop(readers.turn()));
        let turn = readers.turn();
        other.recv_timeout(2 * WATCH).expect_err("nothing waits");
        kernel.write_all(b"request").expect("written");
        other.recv_timeout(4 * WATCH).expect("it reads");
        drop(turn);
    }

    fn is_aside(readers: &Readers, sync: impl FnOnce()) -> bool {
        let mut turn = readers.turn();
        turn.commit(sync);
        turn.is_away
    }

    #[test]
    fn commits_are_made_aside_for_a_while_when_one_has_kept_a_request_waiting() {
        let (device, mut kernel) = pipe().expect("a pipe");
        let readers = known(Some(device.into()));
        let is_aside = || is_aside(&readers, || ());
        assert!(!is_aside() && !is_aside());
        kernel.write_all(b"request").expect("written");
        assert!(!is_aside());
        for _ in 0..SYNCS_ASIDE {
            assert!(is_aside());
        }
        assert!(!is_aside() && is_aside());
    }

    fn is_begun(readers: &Readers, asking: impl FnOnce()) -> bool {
        let mut is_begun = false;
        let begin = || {
            is_begun = true;
            asking();
            Ok::<_, ()>(())
        };
        readers.turn().begin_write_out(begin).expect("begun");
        is_begun
    }

    #[test]
    fn the_disk_begins_with_wal_unless_it_is_behind() {
        let readers = known(None);
        assert!(is_begun(&readers, || thread::sleep(2 * BEHIND)));
        for _ in 0..SYNCS_ASIDE {
            assert!(!is_begun(&readers, || ()));
            assert!(is_aside(&readers, || ()));
        }
        assert!(is_begun(&readers, || ()));
    }

    #[test]
    fn one_thread_asks_the_disk_to_begin_and_says_what_failed() {
        let readers = known(None);
        let both = || assert!(!is_begun(&readers, || ()));
        assert!(is_begun(&readers, both));
        readers.aside.store(0, Ordering::Relaxed);
        readers.turn().begin_write_out(|| Err("full")).expect_err("said");
    }

    #[test]
    fn commits_are_made_aside_while_they_are_slow() {
        let readers = known(None);
        let slow = || thread::sleep(2 * SLOW);
        assert!(!is_aside(&readers, slow));
        for _ in 0..SYNCS_ASIDE {
            assert!(is_aside(&readers, slow));
        }
        for _ in 0..SYNCS_ASIDE {
            assert!(is_aside(&readers, || ()));
        }
        assert!(!is_aside(&readers, || ()));
    }
}
