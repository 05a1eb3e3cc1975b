//! What the service tells the keeper, over a datagram socket as sd_notify(3) has it.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, UnixCredentials, bind, getsockname,
    recvmsg, setsockopt, socket, sockopt,
};
use nix::unistd::Pid;

use super::held::Held;
use crate::service::parent;

/// Longest message, in bytes: a path and some words.
const MESSAGE_MAX: usize = 8 << 10;

pub struct Notices {
    socket: OwnedFd,
    address: String,
}

/// What a service has said, besides what is to be held.
#[derive(Default)]
pub struct Told {
    pub ready: bool,
    /// What is to be the next service.
    pub program: Option<PathBuf>,
}

impl Notices {
    /// On an abstract address of the kernel's choice.
    pub fn listen() -> io::Result<Notices> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
        setsockopt(&socket, sockopt::PassCred, &true)?;
        bind(socket.as_raw_fd(), &UnixAddr::new_unnamed())?;
        let address: UnixAddr = getsockname(socket.as_raw_fd())?;
        let name = address.as_abstract().ok_or(io::ErrorKind::AddrNotAvailable)?;
        let address = format!("@{}", String::from_utf8_lossy(name));
        Ok(Notices { socket, address })
    }

    /// As `NOTIFY_SOCKET` has it.
    pub fn address(&self) -> &str {
        &self.address
    }

    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Does what the service has asked for so far. Others are not heard.
    pub fn read(&self, service: Pid, held: &mut Held) -> io::Result<Told> {
        let mut told = Told::default();
        loop {
            match self.receive() {
                Ok((Some(sender), message, fds)) if sender == service.as_raw() => told.take(&message, fds, held),
                Ok(_) => {}
                Err(Errno::EAGAIN) => return Ok(told),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// A message, the process that has sent it and the descriptors that came along.
    fn receive(&self) -> nix::Result<(Option<i32>, String, Vec<OwnedFd>)> {
        let mut message = vec![0; MESSAGE_MAX];
        let mut control = cmsg_space!(UnixCredentials, [RawFd; 4]);
        let (mut sender, mut fds) = (None, Vec::new());
        let mut room = [IoSliceMut::new(&mut message)];
        let received = recvmsg::<()>(
            self.socket.as_raw_fd(),
            &mut room,
            Some(&mut control),
            MsgFlags::MSG_CMSG_CLOEXEC,
        )?;
        for control in received.cmsgs()? {
            match control {
                ControlMessageOwned::ScmCredentials(credentials) => sender = Some(credentials.pid()),
                ControlMessageOwned::ScmRights(raw) => fds.extend(raw.into_iter().map(owned)),
                _ => {}
            }
        }
        let len = received.bytes;
        message.truncate(len);
        Ok((sender, String::from_utf8_lossy(&message).into_owned(), fds))
    }
}

/// Takes a descriptor that came with a message.
fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just made it for us, and nothing else knows of it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

impl Told {
    fn take(&mut self, message: &str, fds: Vec<OwnedFd>, held: &mut Held) {
        let value = |name: &str| {
            let mut lines = message.lines().filter_map(|line| line.split_once('='));
            lines.find(|(found, _)| *found == name).map(|(_, value)| value)
        };
        if value("READY") == Some("1") {
            self.ready = true;
        }
        if let Some(program) = value(parent::PROGRAM) {
            self.program = Some(program.into());
        }
        match (value("FDNAME"), fds.into_iter().next()) {
            (Some(name), Some(fd)) if value("FDSTORE") == Some("1") => held.hold(name, fd),
            (Some(name), None) if value("FDSTOREREMOVE") == Some("1") => held.let_go(name),
            _ => {}
        }
    }
}
