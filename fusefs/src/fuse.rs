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
mod readers;
mod reply;
mod serving;
mod waiting;
mod write_out;

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
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
use crate::mount::Record;
use crate::node::Node;
use readers::{Readers, Turn};
use reply::Listing;
use serving::{Requests, Serving};
use waiting::{Place, Waiting};
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
    readers: Readers,
    write_out: WriteOut,
    waiting: Waiting,
    requests: Requests,
}

impl Fuse {
    /// `record` is where the requests under way are noted, `device` where they come from, if that is known.
    pub fn new(fs: Arc<Fs>, record: Arc<Record>, device: Option<OwnedFd>) -> io::Result<Fuse> {
        let write_out = WriteOut::start(fs.clone())?;
        let waiting = Waiting::of(record.clone())?;
        let requests = Requests::of(record);
        Ok(Fuse {
            fs,
            readers: Readers::of(device),
            write_out,
            waiting,
            requests,
        })
    }

    /// Serves a request with `serve`, so that it is known which one it is.
    fn serve<T>(&self, request: &Request, serve: impl FnOnce(&Fs, &Serving) -> FsResult<T>) -> FsResult<T> {
        let serving = self.requests.begin(request)?;
        serve(&self.fs, &serving)
    }

    /// The turn of a request that looks at a node.
    fn turn_at(&self, node: Node) -> Turn<'_> {
        match self.fs.is_at_hand(node) {
            true => self.readers.turn(),
            false => self.readers.long_turn(),
        }
    }

    /// The turn of a request that changes names.
    fn turn_of_change(&self) -> Turn<'_> {
        match self.fs.holds_up_changes() {
            true => self.readers.long_turn(),
            false => self.readers.turn(),
        }
    }

    /// A place to wait for what is being served; where there is none left, `serve` serves it here and now, while another thread reads.
    fn wait<T>(
        &self,
        serving: &Serving,
        turn: &mut Turn,
        serve: impl FnOnce(&Fs) -> FsResult<T>,
    ) -> FsResult<Served<T>> {
        if let Some(place) = self.waiting.place(serving.number()) {
            return Ok(Served::Waits(place));
        }
        turn.let_read();
        serve(&self.fs).map(Served::Now)
    }

    fn list(&self, request: &Request, dir: Node, cookie: u64, reply: impl Listing) {
        let _turn = self.turn_at(dir);
        match self.requests.begin(request) {
            Ok(_serving) => reply::listing(reply, &self.fs, dir, cookie),
            Err(error) => reply.refuse(convert::errno(error)),
        }
    }

    /// A commit's sync is served at once, since handing it on takes time that its caller waits, too, and so is one that has nothing to do: recovery
    /// asks for one of every file. Those of other files are a checkpoint's, and can be long.
    fn sync(&self, request: &Request, node: Node, reply: ReplyEmpty) {
        let mut turn = self.readers.turn();
        let served = self.serve(request, |fs, serving| match fs.syncs_long(node) {
            true => self.wait(serving, &mut turn, |fs| fs.fsync(node)),
            false => turn.commit(|| fs.fsync(node)).map(Served::Now),
        });
        match served {
            Ok(Served::Waits(place)) => {
                let serve = move |fs: &Fs| reply::empty(reply, fs.fsync(node));
                self.waiting.serve(place, self.fs.clone(), serve);
            }
            served => reply::empty(reply, served.map(drop)),
        }
    }
}

/// How a request was served.
enum Served<T> {
    Now(T),
    /// It has to wait for the disk, and has a place to do so.
    Waits(Place),
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

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let _turn = self.turn_at(node(parent));
        let keeps_absence = self.fs.keeps_absence(node(parent));
        match self.serve(req, |fs, _serving| fs.lookup(node(parent), name)) {
            Err(nix::errno::Errno::ENOENT) if keeps_absence => {
                reply.entry(&convert::FOREVER, &convert::absent(), convert::GENERATION);
            }
            found => reply::entry(reply, found),
        }
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.fs.forget(node(ino), nlookup);
    }

    fn getattr(&self, req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let _turn = self.turn_at(node(ino));
        reply::attr(reply, self.serve(req, |fs, _serving| fs.getattr(node(ino))));
    }

    fn setattr(
        &self,
        req: &Request,
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
        let _turn = match size {
            Some(_) => self.readers.long_turn(),
            None => self.turn_of_change(),
        };
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
        reply::attr(reply, self.serve(req, |fs, _serving| fs.setattr(node(ino), set, now)));
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        let _turn = self.turn_at(node(ino));
        match self.serve(req, |fs, _serving| fs.readlink(node(ino))) {
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
        let _turn = self.turn_of_change();
        let made = self.serve(req, |fs, serving| {
            let kind = convert::new_kind(mode)?;
            fs.create(at(parent, name), kind, mode as u16, caller(req), serving.change())
        });
        reply::entry(reply, made);
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, reply: ReplyEntry) {
        let _turn = self.readers.long_turn();
        let made = self.serve(req, |fs, serving| {
            fs.mkdir(at(parent, name), mode as u16, caller(req), serving.change())
        });
        reply::entry(reply, made);
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _turn = self.turn_of_change();
        let gone = self.serve(req, |fs, serving| fs.unlink(at(parent, name), serving.change()));
        reply::empty(reply, gone);
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _turn = self.readers.long_turn();
        let gone = self.serve(req, |fs, serving| fs.rmdir(at(parent, name), serving.change()));
        reply::empty(reply, gone);
    }

    fn symlink(&self, req: &Request, parent: INodeNo, link_name: &OsStr, target: &Path, reply: ReplyEntry) {
        let _turn = self.turn_of_change();
        let kind = NewKind::Symlink(target.as_os_str().to_owned());
        let made = self.serve(req, |fs, serving| {
            fs.create(at(parent, link_name), kind, 0o777, caller(req), serving.change())
        });
        reply::entry(reply, made);
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let _turn = self.turn_of_change();
        let (from, to) = (at(parent, name), at(newparent, newname));
        let renamed = self.serve(req, |fs, serving| {
            fs.rename(from, to, convert::rename(flags)?, serving.change())
        });
        reply::empty(reply, renamed);
    }

    fn link(&self, req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let _turn = self.turn_of_change();
        let linked = self.serve(req, |fs, serving| {
            fs.link(node(ino), at(newparent, newname), serving.change())
        });
        reply::entry(reply, linked);
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let _turn = self.turn_at(node(ino));
        let writing = flags.acc_mode() != OpenAccMode::O_RDONLY;
        match self.serve(req, |fs, _serving| fs.open(node(ino), writing)) {
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
        let _turn = self.turn_of_change();
        let exclusive = flags & libc::O_EXCL != 0;
        let created = self.serve(req, |fs, serving| {
            fs.create_and_open(at(parent, name), mode as u16, exclusive, caller(req), serving.change())
        });
        reply::created(reply, created.map(|(entry, opening)| (entry, open_flags(opening))));
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let (node, size) = (node(ino), size as usize);
        let mut turn = self.turn_at(node);
        buffer::with_buffer(size, |buf| {
            let served = self.serve(req, |fs, serving| match fs.read_at_once(node, offset, buf)? {
                Some(count) => Ok(Served::Now(count)),
                None => self.wait(serving, &mut turn, |fs| fs.read(node, offset, buf)),
            });
            match served {
                Ok(Served::Now(count)) => reply.data(&buf[..count]),
                Ok(Served::Waits(place)) => self.waiting.serve(place, self.fs.clone(), move |fs| {
                    buffer::with_buffer(size, |buf| match fs.read(node, offset, buf) {
                        Ok(count) => reply.data(&buf[..count]),
                        Err(error) => reply.error(convert::errno(error)),
                    });
                }),
                Err(error) => reply.error(convert::errno(error)),
            }
        });
    }

    fn write(
        &self,
        req: &Request,
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
            // Past the page cache of a file that is not WAL, a block may have to be read first.
            let is_wal = self.fs.is_wal(node(ino));
            let mut turn = match is_wal {
                true => self.readers.turn(),
                false => self.readers.long_turn(),
            };
            let written = self.serve(req, |fs, _serving| {
                let written = fs.write(node(ino), offset, data, Some(clock::now()))?;
                // O_SYNC has it, too: the kernel leaves it to us to make the bytes durable.
                if flags.0 & libc::O_DSYNC != 0 {
                    turn.commit(|| fs.fsync(node(ino)))?;
                } else if is_wal {
                    turn.begin_write_out(|| fs.write_out(node(ino), offset, written as u64))?;
                }
                Ok(written)
            });
            return reply::written(reply, written);
        }
        // The backing filesystem slows down who dirties too many pages.
        let _turn = self.readers.long_turn();
        match self.serve(req, |fs, _serving| fs.write(node(ino), offset, data, None)) {
            Ok(count) => self.write_out.answer(node(ino), offset, count, reply),
            Err(error) => reply.error(convert::errno(error)),
        }
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn fsync(&self, req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.sync(req, node(ino), reply);
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(NO_HANDLE, opendir_flags(self.fs.opendir(node(ino))));
    }

    fn readdir(&self, req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, reply: ReplyDirectory) {
        self.list(req, node(ino), offset, reply);
    }

    fn readdirplus(&self, req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, reply: ReplyDirectoryPlus) {
        self.list(req, node(ino), offset, reply);
    }

    fn fsyncdir(&self, req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.sync(req, node(ino), reply);
    }

    fn statfs(&self, req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        reply::space(reply, self.serve(req, |fs, _serving| fs.statfs()));
    }

    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let _turn = self.readers.long_turn();
        let done = self.serve(req, |fs, _serving| {
            fs.fallocate(node(ino), convert::fallocate(mode)?, offset, length, clock::now())
        });
        reply::empty(reply, done);
    }

    fn lseek(&self, req: &Request, ino: INodeNo, _fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let _turn = self.turn_at(node(ino));
        let found = self.serve(req, |fs, _serving| seek(fs, node(ino), offset, whence));
        reply::found(reply, found);
    }

    fn copy_file_range(
        &self,
        req: &Request,
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
        let _turn = self.readers.long_turn();
        let (from, to) = ((node(ino_in), offset_in), (node(ino_out), offset_out));
        let copied = self.serve(req, |fs, _serving| fs.copy_range(from, to, len, clock::now()));
        reply::written(reply, copied);
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

fn seek(fs: &Fs, node: Node, offset: i64, whence: i32) -> FsResult<u64> {
    let offset = u64::try_from(offset).map_err(|_| nix::errno::Errno::EINVAL)?;
    fs.seek(node, offset, convert::seek(whence)?)
}
