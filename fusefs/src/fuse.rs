//! Decodes the kernel's requests, has [`Fs`] serve them, replies. Nothing is decided here but how the kernel may
//! cache, which follows from one fact: all changes of a mounted view pass through the kernel.
//!
//! * Names, attributes and pages are kept forever, absent names too. The writeback cache collects writes; then
//!   the kernel keeps the times of regular files itself.
//! * WAL is opened with direct I/O, so that its bytes arrive as they are written.
//! * Directories are opened one by one: did we leave opendir out (NO_OPENDIR_SUPPORT), the kernel would cache
//!   every listing, that of `.zenith/snapshot` too.
//! * Left out for good (ENOSYS, asked once a mount): flush, since the kernel writes dirty pages out on close
//!   itself, extended attributes, and on a head lseek. Never fsync: the kernel would then report success forever.
//! * Not asked for: HANDLE_KILLPRIV_V2, because fuser doesn't pass on the flag that says a truncation must clear
//!   setuid bits. Without it the kernel sends the new mode, and asks for no attribute before a write, as
//!   there are none. Remote locks: those of one machine are the kernel's business. DONT_MASK: it applies the umask.

mod buffer;
mod convert;
mod reply;
mod write_out;

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, INodeNo, InitFlags, IoctlFlags,
    KernelConfig, LockOwner, OpenAccMode, OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek,
    ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use pageserver::{FsResult, NewKind, SetAttr};

use crate::clock;
use crate::fs::{Caller, Fs, Keep, Name, Opening};
use crate::node::Node;
use write_out::WriteOut;

/// The most bytes of one read or write.
pub(crate) const MAX_IO: usize = 1 << 20;

/// What is asked of the kernel, as far as it offers it.
const WANTED: InitFlags = InitFlags::FUSE_WRITEBACK_CACHE
    .union(InitFlags::FUSE_EXPLICIT_INVAL_DATA)
    .union(InitFlags::FUSE_PARALLEL_DIROPS)
    .union(InitFlags::FUSE_ASYNC_DIO)
    .union(InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP)
    .union(InitFlags::FUSE_CACHE_SYMLINKS)
    .union(InitFlags::FUSE_DO_READDIRPLUS)
    .union(InitFlags::FUSE_READDIRPLUS_AUTO);

/// Files are served by node alone.
const NO_HANDLE: FileHandle = FileHandle(0);

/// The kernel's side of a mount.
pub(crate) struct Fuse {
    fs: Arc<Fs>,
    write_out: WriteOut,
}

impl Fuse {
    pub fn new(fs: Arc<Fs>) -> io::Result<Fuse> {
        let write_out = WriteOut::start(fs.clone())?;
        Ok(Fuse { fs, write_out })
    }
}

fn node(id: INodeNo) -> Node {
    Node::from_id(id.0)
}

fn at(parent: INodeNo, name: &OsStr) -> Name<'_> {
    Name {
        parent: node(parent),
        name,
    }
}

fn caller(request: &Request) -> Caller {
    Caller {
        uid: request.uid(),
        gid: request.gid(),
    }
}

fn open_flags(opening: Opening) -> FopenFlags {
    match opening {
        Opening::Cached => FopenFlags::FOPEN_KEEP_CACHE,
        Opening::Direct => FopenFlags::FOPEN_DIRECT_IO,
    }
}

fn opendir_flags(keep: Keep) -> FopenFlags {
    match keep {
        Keep::Forever => FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR,
        Keep::Never => FopenFlags::empty(),
    }
}

impl Filesystem for Fuse {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let refused = |_| io::Error::from(io::ErrorKind::InvalidInput);
        config.set_max_write(MAX_IO as u32).map_err(refused)?;
        let offered = config.capabilities() & WANTED;
        config
            .add_capabilities(offered)
            .map_err(|_| io::ErrorKind::InvalidInput.into())
    }

    fn destroy(&mut self) {
        self.fs.end();
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let keeps_absence = self.fs.keeps_absence(node(parent));
        match self.fs.lookup(node(parent), name) {
            Err(nix::errno::Errno::ENOENT) if keeps_absence => {
                reply.entry(&convert::FOREVER, &convert::absent(), convert::GENERATION);
            }
            found => reply::entry(reply, found),
        }
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.fs.forget(node(ino), nlookup);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        reply::attr(reply, self.fs.getattr(node(ino)));
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        // The kernel gives the time of change where it keeps the times itself.
        let now = ctime.map_or_else(clock::now, convert::received_time);
        let set = SetAttr {
            mode: mode.map(|mode| (mode & 0o7777) as u16),
            uid,
            gid,
            size,
            atime: atime.map(|time| convert::time_or_now(time, now)),
            mtime: mtime.map(|time| convert::time_or_now(time, now)),
        };
        reply::attr(reply, self.fs.setattr(node(ino), set, now));
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        match self.fs.readlink(node(ino)) {
            Ok(target) => reply.data(target.as_bytes()),
            Err(error) => reply.error(convert::errno(error)),
        }
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        let made = convert::new_kind(mode).and_then(|kind| {
            self.fs
                .create(at(parent, name), kind, mode as u16, caller(req), clock::now())
        });
        reply::entry(reply, made);
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, reply: ReplyEntry) {
        let made = self.fs.mkdir(at(parent, name), mode as u16, caller(req), clock::now());
        reply::entry(reply, made);
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply::empty(reply, self.fs.unlink(at(parent, name), clock::now()));
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply::empty(reply, self.fs.rmdir(at(parent, name), clock::now()));
    }

    fn symlink(&self, req: &Request, parent: INodeNo, link_name: &OsStr, target: &Path, reply: ReplyEntry) {
        let kind = NewKind::Symlink(target.as_os_str().to_owned());
        let made = self
            .fs
            .create(at(parent, link_name), kind, 0o777, caller(req), clock::now());
        reply::entry(reply, made);
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (from, to) = (at(parent, name), at(newparent, newname));
        let renamed = convert::rename(flags).and_then(|how| self.fs.rename(from, to, how, clock::now()));
        reply::empty(reply, renamed);
    }

    fn link(&self, _req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        reply::entry(reply, self.fs.link(node(ino), at(newparent, newname), clock::now()));
    }

    fn open(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let writing = flags.acc_mode() != OpenAccMode::O_RDONLY;
        match self.fs.open(node(ino), writing) {
            Ok(opening) => reply.opened(NO_HANDLE, open_flags(opening)),
            Err(error) => reply.error(convert::errno(error)),
        }
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let exclusive = flags & libc::O_EXCL != 0;
        let created = self
            .fs
            .create_and_open(at(parent, name), mode as u16, exclusive, caller(req), clock::now());
        reply::created(reply, created.map(|(entry, opening)| (entry, open_flags(opening))));
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        buffer::with_buffer(size as usize, |buf| match self.fs.read(node(ino), offset, buf) {
            Ok(count) => reply.data(&buf[..count]),
            Err(error) => reply.error(convert::errno(error)),
        });
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        if !write_flags.contains(WriteFlags::FUSE_WRITE_CACHE) {
            return reply::written(reply, self.write_through(node(ino), offset, data, flags));
        }
        match self.fs.write(node(ino), offset, data, None) {
            Ok(count) => self.write_out.answer(node(ino), offset, count, reply),
            Err(error) => reply.error(convert::errno(error)),
        }
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn fsync(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        reply::empty(reply, self.fs.fsync(node(ino)));
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(NO_HANDLE, opendir_flags(self.fs.opendir(node(ino))));
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, reply: ReplyDirectory) {
        reply::listing(reply, &self.fs, node(ino), offset);
    }

    fn readdirplus(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, reply: ReplyDirectoryPlus) {
        reply::listing(reply, &self.fs, node(ino), offset);
    }

    fn fsyncdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        reply::empty(reply, self.fs.fsync(node(ino)));
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        reply::space(reply, self.fs.statfs());
    }

    fn fallocate(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let done =
            convert::fallocate(mode).and_then(|how| self.fs.fallocate(node(ino), how, offset, length, clock::now()));
        reply::empty(reply, done);
    }

    fn lseek(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        reply::found(reply, self.seek(node(ino), offset, whence));
    }

    fn copy_file_range(
        &self,
        _req: &Request,
        ino_in: INodeNo,
        _fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        _fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let (from, to) = ((node(ino_in), offset_in), (node(ino_out), offset_out));
        reply::written(reply, self.fs.copy_range(from, to, len, clock::now()));
    }

    fn setxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: &[u8], _: i32, _: u32, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn getxattr(&self, _req: &Request, _ino: INodeNo, _name: &OsStr, _size: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _req: &Request, _ino: INodeNo, _size: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn removexattr(&self, _req: &Request, _ino: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn poll(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _ph: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(Errno::ENOSYS);
    }
}

impl Fuse {
    /// A write past the page cache. For O_DSYNC, which is part of O_SYNC too, the kernel leaves it to us to make
    /// the bytes durable.
    fn write_through(&self, node: Node, offset: u64, data: &[u8], flags: OpenFlags) -> FsResult<usize> {
        let written = self.fs.write(node, offset, data, Some(clock::now()))?;
        if flags.0 & libc::O_DSYNC != 0 {
            self.fs.fsync(node)?;
        }
        Ok(written)
    }

    fn seek(&self, node: Node, offset: i64, whence: i32) -> FsResult<u64> {
        let offset = u64::try_from(offset).map_err(|_| nix::errno::Errno::EINVAL)?;
        self.fs.seek(node, offset, convert::seek(whence)?)
    }
}
