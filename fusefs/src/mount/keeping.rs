//! Descriptors that outlive the process.
//!
//! A mount ends when the last descriptor of its device is closed. So somebody else, who never dies of what a service can die of, holds a
//! copy of each, with the [`Record`] beside it, and hands both to the next process.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::record::Record;

/// Who holds descriptors for the next process.
pub trait Keeper: Send + Sync {
    /// From when this returns the descriptor is held, whatever happens to this process.
    fn keep(&self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()>;
    /// When this returns the copy is closed.
    fn let_go(&self, name: &str);
}

/// For a process that nobody stands behind: its mounts end with it.
pub struct NoKeeper;

impl Keeper for NoKeeper {
    fn keep(&self, _name: &str, _fd: BorrowedFd<'_>) -> io::Result<()> {
        Ok(())
    }

    fn let_go(&self, _name: &str) {}
}

/// How a mount is kept.
#[derive(Clone)]
pub struct Keeping {
    pub keeper: Arc<dyn Keeper>,
    /// A number that no other mount of the keeper's has.
    pub number: u64,
    /// What the owner wants to find on it again.
    pub label: Vec<u8>,
}

impl Keeping {
    pub fn none() -> Keeping {
        Keeping {
            keeper: Arc::new(NoKeeper),
            number: 0,
            label: Vec::new(),
        }
    }

    pub(super) fn keep(&self, device: BorrowedFd<'_>, record: &Record) -> io::Result<()> {
        if let Some(memory) = record.memory() {
            self.keeper.keep(&record_name(self.number), memory)?;
            self.keeper.keep(&device_name(self.number), device)?;
        }
        Ok(())
    }

    pub(super) fn let_go(&self) {
        self.keeper.let_go(&device_name(self.number));
        self.keeper.let_go(&record_name(self.number));
    }
}

fn device_name(number: u64) -> String {
    format!("{DEVICE}{number}")
}

fn record_name(number: u64) -> String {
    format!("{RECORD}{number}")
}

const DEVICE: &str = "fuse-";
const RECORD: &str = "mount-";

/// A mount as an earlier process has left it.
pub struct Kept {
    pub number: u64,
    pub(super) device: OwnedFd,
    pub(super) record: Arc<Record>,
}

impl Kept {
    /// The mounts among descriptors that were kept, which are taken out. A record without a device or the reverse is what is left of a
    /// mount that was just being made or had just ended.
    pub fn among(descriptors: &mut Vec<(String, OwnedFd)>) -> Vec<Kept> {
        let (mut devices, mut records) = (Vec::new(), Vec::new());
        for (name, fd) in std::mem::take(descriptors) {
            match (number(&name, DEVICE), number(&name, RECORD)) {
                (Some(number), _) => devices.push((number, fd)),
                (_, Some(number)) => records.push((number, fd)),
                _ => descriptors.push((name, fd)),
            }
        }
        devices
            .into_iter()
            .filter_map(|(number, device)| {
                let found = records.iter().position(|(other, _)| *other == number)?;
                let (_, memory) = records.swap_remove(found);
                let record = Record::of(memory)
                    .inspect_err(|error| tracing::error!("a kept mount can't be taken over: {error}"))
                    .ok()?;
                Some(Kept {
                    number,
                    device,
                    record: Arc::new(record),
                })
            })
            .collect()
    }

    pub fn label(&self) -> Vec<u8> {
        self.record.label()
    }

    /// Ends the mount: whoever uses it gets errors from now on.
    pub fn end(self, keeper: &dyn Keeper) {
        keeper.let_go(&device_name(self.number));
        keeper.let_go(&record_name(self.number));
        // The last descriptor of the device goes with `self`.
    }
}

fn number(name: &str, kind: &str) -> Option<u64> {
    name.strip_prefix(kind)?.parse().ok()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::fs::File;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Box(Mutex<Vec<(String, OwnedFd)>>);

    impl Keeper for Box {
        fn keep(&self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
            let held = (name.to_owned(), fd.try_clone_to_owned()?);
            self.0.lock().expect("whole").push(held);
            Ok(())
        }

        fn let_go(&self, name: &str) {
            self.0.lock().expect("whole").retain(|(held, _)| held != name);
        }
    }

    #[test]
    fn a_mount_is_found_again_with_its_label_and_the_rest_is_left() {
        let keeper = Arc::new(Box::default());
        let keeping = |number, label: &[u8]| Keeping {
            keeper: keeper.clone(),
            number,
            label: label.into(),
        };
        let device = File::open("/dev/null").expect("a device");
        for (number, label) in [(1, b"one"), (2, b"two")] {
            let record = Record::new(label).expect("made");
            let fd = std::os::fd::AsFd::as_fd(&device);
            keeping(number, label).keep(fd, &record).expect("kept");
        }
        keeper.keep("lock", std::os::fd::AsFd::as_fd(&device)).expect("kept");
        keeping(1, b"").let_go();
        let mut held = std::mem::take(&mut *keeper.0.lock().expect("whole"));
        let kept = Kept::among(&mut held);
        let found: Vec<_> = kept.iter().map(|kept| (kept.number, kept.label())).collect();
        assert_eq!(found, [(2, b"two".to_vec())]);
        assert_eq!(held.len(), 1);
    }
}
