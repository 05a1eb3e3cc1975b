//! A service manager in the keeper's place, as systemd is one: it holds what the service hands over by sd_notify(3) and gives it to the
//! next by `LISTEN_FDS`.

use std::fs;
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use nix::cmsg_space;
use nix::libc;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use crate::sandbox::Sandbox;

struct Manager<'a> {
    sandbox: &'a Sandbox,
    socket: UnixDatagram,
    address: PathBuf,
    held: Vec<(String, OwnedFd)>,
}

impl Manager<'_> {
    fn of(sandbox: &Sandbox) -> Manager<'_> {
        let address = std::env::temp_dir().join(format!("zenith-manager-{}", std::process::id()));
        let socket = UnixDatagram::bind(&address).expect("an address");
        socket.set_read_timeout(Some(Duration::from_secs(20))).expect("a limit");
        Manager {
            sandbox,
            socket,
            address,
            held: Vec::new(),
        }
    }

    /// Starts the service with what is held, and waits until it is ready.
    fn start(&mut self) -> Child {
        let names: Vec<&str> = self.held.iter().map(|(name, _)| name.as_str()).collect();
        let mut command = self.sandbox.shell("LISTEN_PID=$$ exec \"$0\" start --foreground");
        command
            .env("NOTIFY_SOCKET", &self.address)
            .env("LISTEN_FDS", names.len().to_string())
            .env("LISTEN_FDNAMES", names.join(":"))
            .stderr(Stdio::null());
        // Copies far from the places that they are going to have.
        let held: Vec<RawFd> = self.held.iter().map(|(_, fd)| copy_from(fd.as_raw_fd(), 100)).collect();
        let copies = held.clone();
        let in_place = move || {
            for (fd, place) in held.iter().zip(3..) {
                // SAFETY: dup2 takes numbers.
                unsafe { libc::dup2(*fd, place) };
            }
            Ok(())
        };
        // SAFETY: only system calls.
        let child = unsafe { command.pre_exec(in_place) }.spawn().expect("it starts");
        for fd in copies {
            // SAFETY: made above, and nobody else has it.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
        }
        while !self.hear() {}
        child
    }

    /// Does what a message says; true when it says that the service is ready.
    fn hear(&mut self) -> bool {
        let (text, mut fds) = receive(&mut self.socket).expect("a message in time");
        let name = text.lines().find_map(|line| line.strip_prefix("FDNAME="));
        if let (Some(name), Some(fd)) = (name, fds.pop()) {
            assert!(text.contains("FDSTORE=1"), "{text}");
            self.held.push((name.into(), fd));
        }
        text.contains("READY=1")
    }
}

impl Drop for Manager<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.address);
    }
}

/// A message and what came with it.
fn receive(socket: &mut UnixDatagram) -> Option<(String, Vec<OwnedFd>)> {
    let mut text = [0; 1024];
    let mut control = cmsg_space!([RawFd; 4]);
    let mut room = [IoSliceMut::new(&mut text)];
    let received = recvmsg::<()>(socket.as_raw_fd(), &mut room, Some(&mut control), MsgFlags::empty()).ok()?;
    let mut fds = Vec::new();
    for control in received.cmsgs().expect("whole") {
        if let ControlMessageOwned::ScmRights(raw) = control {
            // SAFETY: the kernel has just made them for us.
            fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    let len = received.bytes;
    Some((String::from_utf8_lossy(&text[..len]).into_owned(), fds))
}

fn copy_from(fd: RawFd, least: RawFd) -> RawFd {
    // SAFETY: fcntl takes numbers.
    unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, least) }
}

#[test]
fn a_service_manager_can_take_the_keepers_place() {
    let sandbox = Sandbox::new("manager");
    let mut manager = Manager::of(&sandbox);
    let mut service = manager.start();
    sandbox.ok(&["mount", "main", "m", "--create"]);
    // A process of its own: one with files open there can't start the service, since its child would wait for the mount.
    let writer = "for n in 0 1 2 3 4 5 6 7 8 9; do echo $n; sleep 0.1; done >m/file";
    let mut writer = sandbox.shell(writer).spawn().expect("it starts");
    while manager.held.len() < 3 {
        manager.hear();
    }
    for _ in 0..3 {
        service.kill().and_then(|()| service.wait()).expect("killed");
        service = manager.start();
    }
    assert!(writer.wait().expect("it ends").success());
    let text = fs::read_to_string(sandbox.path("m/file")).expect("readable");
    assert_eq!(text, "0\n1\n2\n3\n4\n5\n6\n7\n8\n9\n");
    let mut socket = manager.socket.try_clone().expect("copied");
    std::thread::spawn(move || while receive(&mut socket).is_some() {});
    sandbox.ok(&["umount", "m"]);
    sandbox.ok(&["stop"]);
    assert!(service.wait().expect("it ends").success());
}
