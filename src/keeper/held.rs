//! The descriptors that are held, by name.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

const FIRST: RawFd = 3;

#[derive(Default)]
pub struct Held(Vec<(String, OwnedFd)>);

impl Held {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// As `LISTEN_FDNAMES` has them.
    pub fn names(&self) -> String {
        let names: Vec<&str> = self.0.iter().map(|(name, _)| name.as_str()).collect();
        names.join(":")
    }

    /// One name is one descriptor: the later.
    pub fn hold(&mut self, name: &str, fd: OwnedFd) {
        self.let_go(name);
        self.0.push((name.to_owned(), fd));
    }

    pub fn let_go(&mut self, name: &str) {
        self.0.retain(|(held, _)| held != name);
    }

    /// Gives them the numbers from 3 on, for the program that this process is about to become, which closes everything else. Returns a
    /// copy of the program's descriptor that is not in their way.
    pub fn put_in_place(&mut self, program: &OwnedFd) -> io::Result<OwnedFd> {
        let beyond = FIRST + self.0.len() as RawFd;
        let program = copy_beyond(program, beyond)?;
        for (_, fd) in &mut self.0 {
            if fd.as_raw_fd() < beyond {
                *fd = copy_beyond(fd, beyond)?;
            }
        }
        for ((_, fd), place) in self.0.iter().zip(FIRST..) {
            // SAFETY: dup2 takes numbers. What had the place is closed with it; nothing of it is used before the exec.
            if unsafe { libc::dup2(fd.as_raw_fd(), place) } == -1 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(program)
    }
}

fn copy_beyond(fd: &OwnedFd, beyond: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl takes numbers.
    match unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, beyond) } {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: the copy is new, and nobody else has it.
        copy => Ok(unsafe { OwnedFd::from_raw_fd(copy) }),
    }
}
