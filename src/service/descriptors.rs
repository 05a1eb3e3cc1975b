//! How the process shares out the descriptors it may have: what the service, its stores and its mounts need comes first, and of what is left half is
//! for the files of layers, which may go half as much above that for a moment.

use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use pageserver::Disk;

use crate::error::{Error, Result};

/// With fewer it could run out of them and no command reach it any more.
const MIN: usize = 256;

/// Of the service itself: its log, its sockets, the requests under way.
const OWN: usize = 48;

/// Of a store: its database's files and its lock.
const STORE: usize = 72;

/// Of a mount: the kernel's two, its buffers, and a file on the way.
const MOUNT: usize = 4;

/// What must be left for the files of layers, so that another mount can work.
const LEFT_MIN: usize = 64;

const FILES_MAX: usize = 16 * 1024;

pub struct Descriptors {
    limit: usize,
    disk: Disk,
    users: Mutex<Users>,
}

#[derive(Clone, Copy)]
struct Users {
    stores: usize,
    mounts: usize,
}

impl Descriptors {
    /// Raises the limit as far as it may be.
    pub fn claim() -> Result<Descriptors> {
        let raise = || {
            let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
            setrlimit(Resource::RLIMIT_NOFILE, most, most).map(|()| most)
        };
        let limit = raise().map_err(Error::io("raise the number of open files"))?;
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        if limit < MIN {
            return Err(refused(limit, &format!("and needs {MIN} at least")));
        }
        let descriptors = Descriptors {
            limit,
            disk: Disk::new(),
            users: Mutex::new(Users { stores: 1, mounts: 0 }),
        };
        descriptors.change(|_| {});
        Ok(descriptors)
    }

    /// The way to the files of a store.
    pub fn disk(&self) -> Disk {
        self.disk.beside()
    }

    /// There are so many mounts, or will be.
    pub fn set_mounts(&self, mounts: usize) {
        self.change(|users| users.mounts = mounts);
    }

    pub fn set_stores(&self, stores: usize) {
        self.change(|users| users.stores = stores);
    }

    /// Refuses a mount beside so many others for which there is no room.
    pub fn check_mount(&self, others: usize) -> Result<()> {
        let mounts = others + 1;
        let users = Users {
            mounts,
            ..*self.users()
        };
        self.check(users, &format!("{mounts} mounts"))
    }

    /// The same for a storage.
    pub fn check_store(&self, others: usize) -> Result<()> {
        let stores = others + 1;
        let users = Users {
            stores,
            ..*self.users()
        };
        self.check(users, &format!("{stores} storages"))
    }

    fn check(&self, users: Users, what: &str) -> Result<()> {
        match self.left(users) {
            left if left < LEFT_MIN => Err(refused(self.limit, &format!("too few for {what}"))),
            _ => Ok(()),
        }
    }

    fn left(&self, users: Users) -> usize {
        self.limit
            .saturating_sub(OWN + STORE * users.stores + MOUNT * users.mounts)
    }

    fn change(&self, change: impl FnOnce(&mut Users)) {
        let mut users = self.users();
        change(&mut users);
        self.disk
            .keep_open((self.left(*users) / 2).clamp(LEFT_MIN / 4, FILES_MAX));
    }

    fn users(&self) -> MutexGuard<'_, Users> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn refused(limit: usize, but: &str) -> Error {
    Error::refused(format!("a service may have only {limit} files open here, {but}"))
        .hint("`ulimit -n` shows and sets the limit, in a systemd unit LimitNOFILE=")
}
