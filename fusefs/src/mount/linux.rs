//! Mounting on Linux: by mount(2) as root, otherwise by the setuid program fusermount3.
//!
//! As root, other users may enter (a Postgres runs as its own user), and the kernel checks their permissions.
//! Nobody gains rights or devices by what lies in a mount (nosuid, nodev).

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use fuser::Session;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::sys::stat::{major, makedev, minor};
use nix::unistd::{getegid, geteuid};

use super::error::desc;
use super::{Keeping, MountError, Options, Record, abandon, config, session};
use crate::fs::Fs;
use crate::fuse::Fuse;

const DEVICE: &str = "/dev/fuse";
const FUSERMOUNT: &str = "fusermount3";
const SUBTYPE: &str = "zenith";

/// Mounts `fs` and begins the session with the kernel.
pub fn open(
    fs: Arc<Fs>,
    mountpoint: &Path,
    options: &Options,
    record: &Arc<Record>,
    keeping: &Keeping,
) -> Result<Session<Fuse>, MountError> {
    let keep = |device: &OwnedFd| keeping.keep(device.as_fd(), record);
    let device = attach(mountpoint, options, fs.is_read_only(), keep)?;
    let session = device
        .try_clone()
        .and_then(|device| Fuse::new(fs, record.clone(), Some(device)))
        .and_then(|fuse| session::begin(fuse, &device, record, config(options)));
    session.map_err(|error| abandon(mountpoint, error))
}

/// Mounts, and returns the descriptor by which the kernel asks, which `keep` has kept.
fn attach(
    mountpoint: &Path,
    options: &Options,
    read_only: bool,
    keep: impl Fn(&OwnedFd) -> io::Result<()>,
) -> Result<OwnedFd, MountError> {
    let kept = |error| MountError::session(mountpoint, error);
    if geteuid().is_root() {
        let device = open_device()?;
        // Before it is mounted: a process that dies in between leaves nothing behind.
        keep(&device).map_err(kept)?;
        attach_as_root(&device, mountpoint, options, read_only)?;
        return Ok(device);
    }
    let device = attach_by_helper(mountpoint, options, read_only)?;
    keep(&device).map_err(|error| abandon(mountpoint, error))?;
    Ok(device)
}

fn open_device() -> Result<OwnedFd, MountError> {
    let device = File::options().read(true).write(true).open(DEVICE);
    let device = device.map_err(|error| MountError::NoFuse {
        reason: format!("failed to open {DEVICE}: {}", desc(&error)),
    })?;
    Ok(device.into())
}

fn attach_as_root(device: &OwnedFd, mountpoint: &Path, options: &Options, read_only: bool) -> Result<(), MountError> {
    let data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},allow_other,default_permissions",
        device.as_raw_fd(),
        geteuid(),
        getegid()
    );
    let mut flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    flags.set(MsFlags::MS_RDONLY, read_only);
    let kind = format!("fuse.{SUBTYPE}");
    mount(
        Some(source(options).as_str()),
        mountpoint,
        Some(kind.as_str()),
        flags,
        Some(data.as_str()),
    )
    .map_err(|errno| MountError::refused(mountpoint, errno.desc().to_lowercase()))
}

/// fusermount3 mounts and sends the descriptor over a socket, which it is given as its standard input.
fn attach_by_helper(mountpoint: &Path, options: &Options, read_only: bool) -> Result<OwnedFd, MountError> {
    let session = |error| MountError::session(mountpoint, error);
    let (ours, theirs) = UnixStream::pair().map_err(session)?;
    let mode = if read_only { "ro" } else { "rw" };
    let helper = Command::new(FUSERMOUNT)
        .arg("-o")
        .arg(format!(
            "{mode},nosuid,nodev,default_permissions,fsname={},subtype={SUBTYPE}",
            source(options)
        ))
        .arg("--")
        .arg(mountpoint)
        .env("_FUSE_COMMFD", "0")
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| no_helper(source, mountpoint))?;
    let device = receive(&ours).map_err(session)?;
    let output = helper.wait_with_output().map_err(session)?;
    device.ok_or_else(|| match complaint(&output) {
        reason if reason.contains(DEVICE) => MountError::NoFuse { reason },
        reason => MountError::refused(mountpoint, reason),
    })
}

/// The descriptor that is sent over `socket`; none when it is closed instead.
fn receive(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0];
    let mut buffers = [IoSliceMut::new(&mut byte)];
    let mut control = nix::cmsg_space!(RawFd);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut buffers, Some(&mut control), flags)?;
    let descriptors = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::ScmRights(descriptors) => descriptors.first().copied(),
        _ => None,
    });
    // SAFETY: the kernel has just made this descriptor for us, and nothing else knows of it.
    Ok(descriptors.map(|descriptor| unsafe { OwnedFd::from_raw_fd(descriptor) }))
}

/// Takes the mount away, unless somebody uses it.
pub fn detach(mountpoint: &Path) -> Result<(), MountError> {
    if !geteuid().is_root() {
        return detach_by_helper(mountpoint);
    }
    umount2(mountpoint, MntFlags::UMOUNT_NOFOLLOW).map_err(|errno| match errno {
        Errno::EBUSY => busy(mountpoint),
        errno => MountError::not_unmounted(mountpoint, errno.desc().to_lowercase()),
    })
}

fn detach_by_helper(mountpoint: &Path) -> Result<(), MountError> {
    let output = Command::new(FUSERMOUNT)
        .arg("-u")
        .arg("--")
        .arg(mountpoint)
        .env("LC_ALL", "C")
        .output();
    let output = output.map_err(|source| no_helper(source, mountpoint))?;
    match complaint(&output) {
        _ if output.status.success() => Ok(()),
        reason if reason.ends_with("Device or resource busy") => Err(busy(mountpoint)),
        reason => Err(MountError::not_unmounted(mountpoint, reason)),
    }
}

/// Lets the kernel keep more of the mount's pages dirty and read further ahead than it grants a FUSE mount by
/// itself, which it takes for slow and not to be trusted. Only root can say so; without it all works the same, slower.
pub fn tune(device: u64) {
    if !geteuid().is_root() {
        return;
    }
    let bdi = format!("/sys/class/bdi/{}:{}", major(device), minor(device));
    for (setting, value) in [("max_ratio", "100"), ("strict_limit", "0"), ("read_ahead_kb", "2048")] {
        if let Err(error) = fs::write(format!("{bdi}/{setting}"), value) {
            tracing::debug!("{bdi}/{setting} stays as it is: {error}");
        }
    }
}

/// The number of the device whose file system is at `path`, without asking that file system, which may not answer.
pub fn device(path: &Path) -> io::Result<u64> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut found = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path ends with a zero byte, and the kernel writes one statx.
    let done = unsafe {
        libc::statx(
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::AT_STATX_DONT_SYNC,
            0,
            found.as_mut_ptr(),
        )
    };
    Errno::result(done)?;
    // SAFETY: all zeros are a statx, and the kernel has filled it in.
    let found = unsafe { found.assume_init() };
    Ok(makedev(found.stx_dev_major.into(), found.stx_dev_minor.into()))
}

fn source(options: &Options) -> String {
    format!("zenith:{}", options.source)
}

fn no_helper(source: io::Error, mountpoint: &Path) -> MountError {
    match source.kind() {
        io::ErrorKind::NotFound => MountError::NoFusermount,
        _ => MountError::session(mountpoint, source),
    }
}

/// The last line that a program wrote to its standard error.
fn complaint(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let last = text.lines().last().unwrap_or("fusermount3 gave no reason");
    last.trim_start_matches("fusermount3: ").trim().to_owned()
}

fn busy(path: &Path) -> MountError {
    MountError::Busy { path: path.to_owned() }
}
