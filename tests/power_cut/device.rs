//! A recorded disk as a block device with a filesystem on it.
//!
//! ```text
//!   ext4, xfs or btrfs -> /dev/loopN -> backing/disk, a file that this process serves by FUSE -> Disk
//! ```
//!
//! The file is served with direct I/O by one thread, so the order of the log is the order in which the loop device
//! asked; and the loop device asks for an fsync of the file where the filesystem has its disk flush.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyWrite, Request, WriteFlags,
};

use crate::disk::{Disk, SECTOR};

const NAME: &str = "disk";
const DISK: INodeNo = INodeNo(2);
const TTL: Duration = Duration::from_secs(3600);

/// The largest write that is asked for at once.
const MAX_WRITE: u32 = 1 << 20;

/// What lies on the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Ext4,
    Xfs,
    Btrfs,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Ext4 => "ext4",
            Kind::Xfs => "xfs",
            Kind::Btrfs => "btrfs",
        }
    }

    /// Nothing is discarded and nothing is initialised late: both would only fill the log.
    fn mkfs(self) -> &'static [&'static str] {
        match self {
            Kind::Ext4 => &["-q", "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1"],
            Kind::Xfs => &["-q", "-K"],
            Kind::Btrfs => &["-q", "-K"],
        }
    }

    /// What its disk writes at once or not at all. xfs does not survive a block of metadata that is torn: its log tells
    /// changes, not whole blocks, and the block's first sector says which of them it has.
    pub fn sector(self) -> usize {
        match self {
            Kind::Ext4 | Kind::Btrfs => SECTOR,
            Kind::Xfs => 4096,
        }
    }

    fn options(self) -> &'static str {
        match self {
            Kind::Ext4 => "nodiscard,noinit_itable",
            Kind::Xfs => "defaults",
            Kind::Btrfs => "nodiscard",
        }
    }
}

/// A served disk. Its mounts must be gone before it is dropped.
pub struct Device {
    _session: BackgroundSession,
}

impl Device {
    /// Serves the disk in `dir/backing` and mounts what lies on it, which is made first when `format`, on `dir/disk`.
    pub fn mount(disk: &Arc<Disk>, kind: Kind, dir: &Path, format: bool) -> Device {
        let backing = dir.join("backing");
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("zenith-power-cut".into())];
        let session = fuser::spawn_mount(Served(disk.clone()), &backing, &config).expect("the disk is served");
        let device = Device { _session: session };
        let node = run(Command::new("losetup")
            .args(["--find", "--show", "--direct-io=on", "--sector-size"])
            .arg(kind.sector().to_string())
            .arg(backing.join(NAME)));
        if format {
            run(Command::new(format!("mkfs.{}", kind.name()))
                .args(kind.mkfs())
                .arg(&node));
        }
        let mounted = Command::new("mount")
            .args(["-t", kind.name(), "-o", kind.options(), &node])
            .arg(dir.join("disk"))
            .output();
        // Let go of by the mount from now on, or at once when there is none.
        run(Command::new("losetup").args(["--detach", &node]));
        let mounted = mounted.expect("mount runs");
        assert!(
            mounted.status.success(),
            "the filesystem itself does not come up: {mounted:?}"
        );
        device
    }
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// The directory with the disk in it.
struct Served(Arc<Disk>);

impl Served {
    fn attr(&self, ino: INodeNo) -> FileAttr {
        let (kind, size) = match ino {
            DISK => (FileType::RegularFile, self.0.bytes()),
            _ => (FileType::Directory, 0),
        };
        FileAttr {
            ino,
            size,
            blocks: size / SECTOR as u64,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm: 0o700,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: SECTOR as u32,
            flags: 0,
        }
    }
}

impl Filesystem for Served {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // A kernel that wants less is welcome to it.
        let _ = config.set_max_write(MAX_WRITE);
        Ok(())
    }

    fn lookup(&self, _request: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match name == NAME {
            true => reply.entry(&TTL, &self.attr(DISK), Generation(0)),
            false => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attr(ino));
    }

    fn open(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn flush(&self, _request: &Request, _ino: INodeNo, _fh: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn read(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let len = u64::from(size).min(self.0.bytes().saturating_sub(offset));
        let mut data = vec![0; len as usize];
        match self.0.read(&mut data, offset) {
            Ok(()) => reply.data(&data),
            Err(_) => reply.error(Errno::EIO),
        }
    }

    fn write(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.0.write(data, offset) {
            Ok(()) => reply.written(data.len() as u32),
            Err(_) => reply.error(Errno::EIO),
        }
    }

    fn fsync(&self, _request: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.0.flush();
        reply.ok();
    }
}
