//! Who stands behind the service: a process that holds its descriptors and starts the next service when it dies.
//!
//! That is the [keeper](crate::keeper), or systemd. Both speak sd_notify(3): what is to be held is sent over the datagram socket that
//! `NOTIFY_SOCKET` names (`FDSTORE=1`, `FDNAME=…`), and what an earlier service sent comes back as descriptors from 3 on, counted by
//! `LISTEN_FDS` and named by `LISTEN_FDNAMES`. A message lies in the socket's queue before the call returns, so it is held from then on.
//!
//! Held are the lock of each store (`lock`, `lock-STORAGE`), so that nobody gets in between two services, and for every mount its device
//! and its record (see [`fusefs::Kept`]).

use std::env;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

use fusefs::{Keeper, Keeping, Kept};
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, sendmsg, socket};
use nix::unistd::pipe2;

use crate::api::storages::StorageName;

const FIRST_FD: RawFd = 3;

/// How long the process behind may take to do what it is told, in milliseconds.
const HEARING: u16 = 2000;

/// Set by the keeper when the service before has died of itself.
pub const CRASHED: &str = "ZENITH_CRASHED";

/// Tells the keeper which program is to be the next service.
pub const PROGRAM: &str = "X_ZENITH_PROGRAM";

const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";
const LISTEN: [&str; 3] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

/// What earlier services have left.
#[derive(Default)]
pub struct Inherited {
    others: Vec<(String, OwnedFd)>,
    pub mounts: Vec<Kept>,
    /// The service before died of itself: it was not killed.
    pub crashed: bool,
}

impl Inherited {
    /// What `NAME` stands for, if it was held.
    fn take(&mut self, name: &str) -> Option<OwnedFd> {
        let found = self.others.iter().position(|(held, _)| held == name)?;
        Some(self.others.swap_remove(found).1)
    }

    /// The lock of a storage's store.
    pub fn lock(&mut self, storage: &StorageName) -> Option<OwnedFd> {
        self.take(&lock_name(storage))
    }
}

/// The process behind, if there is one.
pub struct Parent {
    socket: Option<(OwnedFd, UnixAddr)>,
    next_number: AtomicU64,
}

/// Whether a service manager stands behind this process.
pub fn is_expected() -> bool {
    env::var_os(NOTIFY_SOCKET).is_some()
}

/// Takes what is this process's from the environment, so that no child takes it for its own. To be called before there are threads.
pub fn find() -> io::Result<(Parent, Inherited)> {
    let mut descriptors = descriptors();
    let mounts = Kept::among(&mut descriptors);
    let last = mounts.iter().map(|kept| kept.number).max().unwrap_or(0);
    let inherited = Inherited {
        others: descriptors,
        mounts,
        crashed: env::var_os(CRASHED).is_some(),
    };
    let socket = env::var(NOTIFY_SOCKET).ok().map(|name| connect(&name)).transpose()?;
    for variable in LISTEN.iter().chain(&[NOTIFY_SOCKET, CRASHED]) {
        // SAFETY: no other thread runs yet.
        unsafe { env::remove_var(variable) };
    }
    let next_number = AtomicU64::new(last + 1);
    Ok((Parent { socket, next_number }, inherited))
}

/// The descriptors that were handed to this process, with their names.
fn descriptors() -> Vec<(String, OwnedFd)> {
    let number = |name: &str| env::var(name).ok()?.parse::<RawFd>().ok();
    let [pid, count, names] = LISTEN;
    // systemd says whom they are for; the keeper hands them to its child alone.
    if number(pid).is_some_and(|pid| pid != process::id() as RawFd) {
        return Vec::new();
    }
    let names = env::var(names).unwrap_or_default();
    let names = names.split(':').chain(std::iter::repeat(""));
    (FIRST_FD..FIRST_FD + number(count).unwrap_or(0))
        .zip(names)
        .filter(|(fd, _)| set_cloexec(*fd))
        // SAFETY: handed to this process, and taken once: nobody else here knows of them.
        .map(|(fd, name)| (name.to_owned(), unsafe { OwnedFd::from_raw_fd(fd) }))
        .collect()
}

/// False for a descriptor that is not open.
fn set_cloexec(fd: RawFd) -> bool {
    // SAFETY: fcntl takes no pointers here.
    unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) != -1 }
}

fn connect(name: &str) -> io::Result<(OwnedFd, UnixAddr)> {
    let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    Ok((socket, address(name)?))
}

/// A name that starts with `@` is an abstract one.
#[cfg(target_os = "linux")]
fn address(name: &str) -> io::Result<UnixAddr> {
    Ok(match name.strip_prefix('@') {
        Some(name) => UnixAddr::new_abstract(name.as_bytes())?,
        None => UnixAddr::new(name)?,
    })
}

#[cfg(not(target_os = "linux"))]
fn address(name: &str) -> io::Result<UnixAddr> {
    Ok(UnixAddr::new(name)?)
}

impl Parent {
    /// Whether there is one and it lives.
    pub fn hears(&self) -> bool {
        self.socket.is_some() && self.wait_until_heard().is_ok()
    }

    /// Whether there was one and it doesn't answer.
    pub fn is_gone(&self) -> bool {
        self.socket.is_some() && self.wait_until_heard().is_err()
    }

    /// The service answers.
    pub fn tell_ready(&self) {
        self.tell("READY=1");
    }

    /// The service ends for good.
    pub fn tell_stopping(&self) {
        self.tell("STOPPING=1");
    }

    /// The next service is to be this program.
    pub fn tell_program(&self, program: &Path) {
        self.tell(&format!("{PROGRAM}={}", program.display()));
    }

    /// How a new mount is kept.
    pub fn keeping(self: &std::sync::Arc<Parent>, label: Vec<u8>) -> Keeping {
        self.still_keeping(self.next_number.fetch_add(1, Ordering::Relaxed), label)
    }

    /// How one that was kept already is kept further.
    pub fn still_keeping(self: &std::sync::Arc<Parent>, number: u64, label: Vec<u8>) -> Keeping {
        Keeping {
            keeper: self.clone(),
            number,
            label,
        }
    }

    pub fn keep_lock(&self, storage: &StorageName, lock: BorrowedFd<'_>) -> io::Result<()> {
        self.keep(&lock_name(storage), lock)
    }

    pub fn let_go_of_lock(&self, storage: &StorageName) {
        self.let_go(&lock_name(storage));
    }

    fn tell(&self, message: &str) {
        if let Err(error) = self.send(message, &[]) {
            tracing::warn!("the keeper can't be told {message}: {error}");
        }
    }

    /// Sends one end of a pipe along, which is closed when all before it has been done.
    fn wait_until_heard(&self) -> io::Result<()> {
        if self.socket.is_none() {
            return Ok(());
        }
        let (ours, theirs) = pipe2(OFlag::O_CLOEXEC)?;
        self.send("BARRIER=1", &[theirs.as_raw_fd()])?;
        drop(theirs);
        let mut closed = [PollFd::new(ours.as_fd(), PollFlags::POLLIN)];
        match poll(&mut closed, HEARING)? {
            0 => Err(io::ErrorKind::TimedOut.into()),
            _ => Ok(()),
        }
    }

    fn send(&self, message: &str, descriptors: &[RawFd]) -> io::Result<()> {
        let Some((socket, address)) = &self.socket else {
            return Ok(());
        };
        let rights = [ControlMessage::ScmRights(descriptors)];
        let rights = if descriptors.is_empty() { &[][..] } else { &rights };
        let text = [IoSlice::new(message.as_bytes())];
        sendmsg(socket.as_raw_fd(), &text, rights, MsgFlags::MSG_NOSIGNAL, Some(address))?;
        Ok(())
    }
}

impl Keeper for Parent {
    fn keep(&self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
        // Without FDPOLL=0 systemd lets go of a device that is not mounted yet: it polls as broken.
        self.send(&format!("FDSTORE=1\nFDPOLL=0\nFDNAME={name}"), &[fd.as_raw_fd()])
    }

    fn let_go(&self, name: &str) {
        self.tell(&format!("FDSTOREREMOVE=1\nFDNAME={name}"));
        if let Err(error) = self.wait_until_heard() {
            tracing::warn!("the keeper doesn't answer: {error}");
        }
    }
}

fn lock_name(storage: &StorageName) -> String {
    match storage.is_local() {
        true => "lock".into(),
        false => format!("lock-{storage}"),
    }
}
