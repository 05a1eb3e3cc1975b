//! A session with the kernel that can go on in another process. Linux only.
//!
//! The kernel greets once in the life of a mount (FUSE_INIT), and fuser begins every session with a greeting. So fuser is greeted by us, over
//! a socket, with what the kernel has said; its reply goes on to the kernel the first time. Then the device takes the socket's place under
//! fuser's descriptor. A process that takes over also asks the kernel to send again what the one before has read and not answered
//! (FUSE_NOTIFY_RESEND, Linux 6.9); what it had answered is lost to nobody.
//!
//! A mount has one descriptor of the device for all its threads: what was read through a clone of its own would die with the clone.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use fuser::{Config, Session, SessionACL};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use nix::unistd::{read, write};

use super::record::Record;
use crate::fuse::Fuse;

/// More than a greeting ever was.
const GREETING_ROOM: usize = 128 << 10;

/// Where the flags lie in the kernel's greeting, behind its header of 40 bytes, and in the reply, behind 16.
const INIT_FLAGS: usize = 40 + 12;
const INIT_FLAGS2: usize = 40 + 16;
const REPLY_FLAGS: usize = 16 + 12;
const REPLY_FLAGS2: usize = 16 + 32;

/// The greeting has a second word of flags.
const INIT_EXT: u32 = 1 << 30;

/// `struct fuse_out_header` of a notification: length, code, and no request that it answers.
const NOTIFY_RESEND: u32 = 7;
const NOTIFY_INVAL_INODE: u32 = 2;

/// Begins the session of a new mount.
pub fn begin(fuse: Fuse, device: &OwnedFd, record: &Record, config: Config) -> io::Result<Session<Fuse>> {
    let init = greeting(device)?;
    let (session, reply) = greet(fuse, &init, config)?;
    // Kept first: a greeting that was answered is never sent again.
    record.begin(&agreed(init, &reply), &reply)?;
    write(device, &reply)?;
    take_seat(&session, device)?;
    Ok(session)
}

/// Goes on with the session of a mount that another process has served.
pub fn resume(fuse: Fuse, device: &OwnedFd, record: &Record, config: Config) -> io::Result<Session<Fuse>> {
    let (init, reply) = record.greeting().ok_or(io::ErrorKind::NotConnected)?;
    // Nobody knows whether the kernel got it. A second reply finds no request.
    match write(device, &reply) {
        Ok(_) | Err(Errno::ENOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let (session, _) = greet(fuse, &init, config)?;
    take_seat(&session, device)?;
    notify(device.as_fd(), NOTIFY_RESEND, &[])?;
    Ok(session)
}

/// Whether the kernel still holds a node, by asking it to forget what it has read of the node's attributes.
pub fn is_held(device: BorrowedFd<'_>, node: u64) -> io::Result<bool> {
    const NO_PAGES: i64 = -1;
    let mut body = [0; 24];
    body[..8].copy_from_slice(&node.to_ne_bytes());
    body[8..16].copy_from_slice(&NO_PAGES.to_ne_bytes());
    match notify(device, NOTIFY_INVAL_INODE, &body) {
        Ok(()) => Ok(true),
        Err(Errno::ENOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn notify(device: BorrowedFd<'_>, code: u32, body: &[u8]) -> Result<(), Errno> {
    let mut message = Vec::with_capacity(16 + body.len());
    message.extend(((16 + body.len()) as u32).to_ne_bytes());
    message.extend(code.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    write(device, &message).map(drop)
}

fn greeting(device: &OwnedFd) -> io::Result<Vec<u8>> {
    let mut init = vec![0; GREETING_ROOM];
    loop {
        match read(device, &mut init) {
            Ok(len) => {
                init.truncate(len);
                return Ok(init);
            }
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Has fuser greeted; returns what it replies.
fn greet(fuse: Fuse, init: &[u8], config: Config) -> io::Result<(Session<Fuse>, Vec<u8>)> {
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    send(ours.as_raw_fd(), init, MsgFlags::MSG_NOSIGNAL)?;
    let session = Session::from_fd(fuse, theirs, SessionACL::All, config)?;
    let mut reply = vec![0; GREETING_ROOM];
    let len = recv(ours.as_raw_fd(), &mut reply, MsgFlags::MSG_DONTWAIT)?;
    reply.truncate(len);
    Ok((session, reply))
}

/// The greeting with nothing offered but what was taken, so that a later version of this program can't take more.
fn agreed(mut init: Vec<u8>, reply: &[u8]) -> Vec<u8> {
    for (offered, taken, always) in [(INIT_FLAGS, REPLY_FLAGS, INIT_EXT), (INIT_FLAGS2, REPLY_FLAGS2, 0)] {
        if let (Some(offer), Some(take)) = (word(&init, offered), word(reply, taken)) {
            let agreed = offer & (take | always);
            init[offered..offered + 4].copy_from_slice(&agreed.to_ne_bytes());
        }
    }
    init
}

fn word(message: &[u8], at: usize) -> Option<u32> {
    let bytes = message.get(at..at + 4)?;
    bytes.try_into().ok().map(u32::from_ne_bytes)
}

/// Puts the device where fuser reads and writes.
fn take_seat(session: &Session<Fuse>, device: &OwnedFd) -> io::Result<()> {
    let seat = session.as_fd().as_raw_fd();
    // SAFETY: both descriptors are open; fuser's own keeps its number and is closed by fuser.
    match unsafe { libc::dup3(device.as_raw_fd(), seat, libc::O_CLOEXEC) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_process_is_offered_what_the_first_has_taken() {
        let (mut init, mut reply) = (vec![0; 104], vec![0; 80]);
        init[INIT_FLAGS..INIT_FLAGS + 4].copy_from_slice(&(INIT_EXT | 0b111).to_ne_bytes());
        init[INIT_FLAGS2..INIT_FLAGS2 + 4].copy_from_slice(&0b11u32.to_ne_bytes());
        reply[REPLY_FLAGS..REPLY_FLAGS + 4].copy_from_slice(&0b101u32.to_ne_bytes());
        reply[REPLY_FLAGS2..REPLY_FLAGS2 + 4].copy_from_slice(&0b10u32.to_ne_bytes());
        let agreed = agreed(init, &reply);
        assert_eq!(word(&agreed, INIT_FLAGS), Some(INIT_EXT | 0b101));
        assert_eq!(word(&agreed, INIT_FLAGS2), Some(0b10));
    }
}
