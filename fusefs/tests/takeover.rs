//! Mounts that outlive the process that serves them. The processes are this test's program again; the test holds what they hand over.

#![cfg(target_os = "linux")]

#[allow(dead_code)]
mod common;

use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use common::{Scratch, main};
use fusefs::{Fs, Keeper, Keeping, Kept, Mount, Options};
use nix::cmsg_space;
use nix::mount::{MntFlags, umount2};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};
use nix::unistd::{getegid, geteuid};
use pageserver::{Call, Disk, Hook, Store};

const ROLE: &str = "ZENITH_TEST_TAKEOVER";

/// Holds what processes hand over, and starts them.
struct TestKeeper {
    socket: UnixDatagram,
    address: PathBuf,
    store: PathBuf,
    dir: PathBuf,
    held: Vec<(String, OwnedFd)>,
    process: Child,
}

impl TestKeeper {
    fn new(name: &str) -> TestKeeper {
        let scratch = Scratch::new(&format!("takeover-{name}"), (geteuid().as_raw(), getegid().as_raw()));
        let store = scratch.keep();
        let dir = std::env::temp_dir().join(format!("zenith-takeover-{name}-{}", std::process::id()));
        fs::create_dir(&dir).expect("a mount point");
        let address = dir.with_extension("socket");
        let socket = UnixDatagram::bind(&address).expect("an address");
        socket
            .set_read_timeout(Some(Duration::from_millis(50)))
            .expect("a limit");
        let process = start(&address, &store, &dir, &[], false);
        let mut keeper = TestKeeper {
            socket,
            address,
            store,
            dir,
            held: Vec::new(),
            process,
        };
        keeper.wait_until_ready();
        keeper
    }

    fn restart(&mut self, crashed: bool) {
        self.process.wait().expect("it has ended");
        self.process = start(&self.address, &self.store, &self.dir, &self.held, crashed);
        self.wait_until_ready();
    }

    /// Until the process says that it serves, or has ended: a request that crashes it can do so before it has said anything.
    fn wait_until_ready(&mut self) {
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(20) {
            // Asked first, so that what the process has said before it ended is heard.
            let ended = self.process.try_wait().expect("asked").is_some();
            match receive(&self.socket) {
                Ok((name, Some(fd))) => self.held.push((name, fd)),
                Ok((_, None)) => return,
                Err(_) if ended => return,
                Err(_) => {}
            }
        }
        panic!("the process neither serves nor ends");
    }
}

impl Drop for TestKeeper {
    fn drop(&mut self) {
        // Forced, so that nobody waits for an answer that nobody is going to give.
        let _ = umount2(&self.dir, MntFlags::MNT_FORCE | MntFlags::MNT_DETACH);
        let _ = self.process.kill().and_then(|()| self.process.wait());
        let _ = fs::remove_dir(&self.dir);
        let _ = fs::remove_file(&self.address);
        let _ = fs::remove_dir_all(&self.store);
    }
}

/// Starts a process that serves the mount. What is held goes along over its standard input, a socket.
fn start(address: &Path, store: &Path, dir: &Path, held: &[(String, OwnedFd)], crashed: bool) -> Child {
    let (ours, theirs) = UnixDatagram::pair().expect("a pair");
    let program = std::env::current_exe().expect("this program");
    let child = Command::new(program)
        .args(["--exact", "serve", "--ignored", "--nocapture"])
        .env(
            ROLE,
            format!(
                "{}\n{}\n{}\n{crashed}",
                address.display(),
                store.display(),
                dir.display()
            ),
        )
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .spawn()
        .expect("it starts");
    for (name, fd) in held {
        send(&ours, None, name, Some(fd.as_raw_fd())).expect("handed over");
    }
    send(&ours, None, "that is all", None).expect("handed over");
    child
}

fn send(socket: &UnixDatagram, to: Option<&UnixAddr>, text: &str, fd: Option<RawFd>) -> io::Result<()> {
    let fds: Vec<RawFd> = fd.into_iter().collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let rights = if fds.is_empty() { &[][..] } else { &rights };
    let text = [IoSlice::new(text.as_bytes())];
    sendmsg(socket.as_raw_fd(), &text, rights, MsgFlags::empty(), to)?;
    Ok(())
}

/// EAGAIN where nothing came in time.
fn receive(socket: &UnixDatagram) -> io::Result<(String, Option<OwnedFd>)> {
    let mut text = [0; 256];
    let mut control = cmsg_space!(RawFd);
    let mut room = [IoSliceMut::new(&mut text)];
    let received = recvmsg::<()>(
        socket.as_raw_fd(),
        &mut room,
        Some(&mut control),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let fd = received.cmsgs().expect("whole").find_map(|control| match control {
        // SAFETY: the kernel has just made it for us.
        ControlMessageOwned::ScmRights(fds) => fds.first().map(|fd| unsafe { OwnedFd::from_raw_fd(*fd) }),
        _ => None,
    });
    let len = received.bytes;
    Ok((String::from_utf8_lossy(&text[..len]).into_owned(), fd))
}

/// The way from a process to the test.
struct ToTest {
    socket: UnixDatagram,
    address: UnixAddr,
}

impl Keeper for ToTest {
    fn keep(&self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
        send(&self.socket, Some(&self.address), name, Some(fd.as_raw_fd()))
    }

    fn let_go(&self, _name: &str) {}
}

/// Crashes the process when a hole is to be punched.
struct Crash;

impl Hook for Crash {
    fn before(&self, call: Call) -> io::Result<()> {
        if call == Call::Punch {
            std::process::abort();
        }
        Ok(())
    }
}

/// Not a test: a process that serves a mount until it is killed.
#[test]
#[ignore = "run by the tests of this file"]
fn serve() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let words: Vec<&str> = role.lines().collect();
    let [address, store, dir, crashed] = words[..] else {
        panic!("{role}");
    };
    // SAFETY: the standard input is a socket, and nobody else here uses it.
    let stdin = unsafe { UnixDatagram::from_raw_fd(0) };
    let mut held = Vec::new();
    while let (name, Some(fd)) = receive(&stdin).expect("a message") {
        held.push((name, fd));
    }
    let store = Store::open(Path::new(store), Disk::new().with_hook(Arc::new(Crash))).expect("the store opens");
    let keeper = Arc::new(ToTest {
        socket: UnixDatagram::unbound().expect("a socket"),
        address: UnixAddr::new(address).expect("an address"),
    });
    let keeping = Keeping {
        keeper: keeper.clone(),
        number: 1,
        label: b"the mount".to_vec(),
    };
    let (end, ended) = mpsc::channel();
    let on_end = move || drop(end);
    let options = Options::new("test");
    let mounted = match Kept::among(&mut held).pop() {
        Some(kept) => {
            assert_eq!(kept.label(), b"the mount");
            let fs = Fs::of_branch(store.resumed_timeline(&main()).expect("loaded"), common::hidden(&store));
            Mount::resume(fs, kept, Path::new(dir), &options, keeping, crashed == "true", on_end)
        }
        None => {
            let fs = Fs::of_branch(store.timeline(&main()).expect("loaded"), common::hidden(&store));
            Mount::new(fs, Path::new(dir), &options, keeping, on_end)
        }
    };
    let _mount = mounted.unwrap_or_else(|error| panic!("{error}"));
    send(&keeper.socket, Some(&keeper.address), "ready", None).expect("told");
    let _: Result<(), _> = ended.recv();
}

/// Whoever uses the mount is a process of its own: one with a file open there can't start the process that is to serve it, since the
/// child would wait for the mount when it closes its copy.
fn user(dir: &Path, line: &str) -> Child {
    let mut shell = Command::new("sh");
    shell.args(["-c", line]).current_dir("/").env("DIR", dir);
    shell.spawn().expect("it starts")
}

#[test]
fn who_writes_sees_nothing_of_kills() {
    let mut keeper = TestKeeper::new("kills");
    let line = "n=0; while [ $n -lt 100000 ]; do echo $n; n=$((n+1)); done >$DIR/file && sync $DIR/file";
    let mut writer = user(&keeper.dir, line);
    for _ in 0..5 {
        std::thread::sleep(Duration::from_millis(100));
        keeper.process.kill().expect("killed");
        keeper.restart(false);
    }
    assert!(writer.wait().expect("it ends").success());
    let text = fs::read_to_string(keeper.dir.join("file")).expect("readable");
    assert!(text.lines().enumerate().all(|(n, line)| line == n.to_string()));
    assert_eq!(text.lines().count(), 100_000);
}

#[test]
fn a_request_that_crashes_every_process_is_refused_in_the_end() {
    let mut keeper = TestKeeper::new("crashes");
    let line = "truncate -s 1M $DIR/file && fallocate --punch-hole --offset 0 --length 4096 $DIR/file 2>&1 | grep -q Input/output";
    let mut puncher = user(&keeper.dir, line);
    for crash in 0..3 {
        std::thread::sleep(Duration::from_millis(200));
        let early = puncher.try_wait().expect("asked");
        assert!(early.is_none(), "answered after {crash} crashes: {early:?}");
        keeper.restart(true);
    }
    assert!(puncher.wait().expect("it ends").success(), "it was told of an error");
    fs::write(keeper.dir.join("file"), "all else goes on").expect("written");
}
