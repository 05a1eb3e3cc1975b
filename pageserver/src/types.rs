//! The words of the page store as types: ids, times, node kinds and attributes.

use std::cell::Cell;
use std::ffi::OsString;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Unit of presence in a layer, in bytes. Half a Postgres page.
pub const BLOCK: u64 = 4096;

/// Longest name of a directory entry, in bytes.
pub const NAME_MAX: usize = 255;

/// Longest target of a symbolic link, in bytes (PATH_MAX less the final NUL).
pub const SYMLINK_MAX: usize = 4095;

/// Largest size of a file, in bytes (what ext4 with 4 KiB blocks can hold).
pub const FILE_SIZE_MAX: u64 = 1 << 44;

/// A layer's number in the store's own sequence. Never reused; a child's is greater than its parent's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct LayerId(pub u64);

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

impl FromStr for LayerId {
    type Err = String;

    /// As it is printed.
    fn from_str(text: &str) -> Result<LayerId, String> {
        let number = u64::from_str_radix(text, 16).map(LayerId);
        number.map_err(|_| format!("{text:?} is no layer: they are hexadecimal numbers"))
    }
}

/// A pack's number, of the same sequence as the layers'. Never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct PackId(pub u64);

impl fmt::Display for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

/// A timeline's number. Never reused; people call the timeline by its branch name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct TimelineId(pub u64);

/// An inode number, unique in the whole store and never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Ino(pub u64);

impl Ino {
    /// The root directory of every view.
    pub const ROOT: Ino = Ino(1);
    /// The first number given to a file; those below are free for a mount's own use.
    pub const FIRST: Ino = Ino(16);
}

impl Ino {
    /// Of the name that a backing file has.
    pub fn of_name(name: &str) -> Option<Ino> {
        let ino = u64::from_str_radix(name, 16).ok().map(Ino);
        ino.filter(|ino| ino.to_string() == name)
    }
}

impl fmt::Display for Ino {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// A moment: seconds and nanoseconds (0..1e9) since 1970, as `struct timespec` has them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub struct Time {
    pub secs: i64,
    pub nanos: u32,
}

/// What an inode is. Device nodes do not exist.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    File,
    Dir,
    Symlink,
    Fifo,
    Socket,
}

/// The attributes of an inode as `stat` shows them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attr {
    pub ino: Ino,
    pub kind: Kind,
    /// Permission bits only (0o7777).
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub nlink: u32,
    /// In bytes; a symlink's is its target's length.
    pub size: u64,
    pub atime: Time,
    pub mtime: Time,
    pub ctime: Time,
}

/// What asks for a change of names, and when.
///
/// A kernel that gets no answer because the process died sends the request again, to the next process. A change of names can't
/// be made twice, so its result is kept beside it under the request's number until that has been answered.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    pub now: Time,
    /// The request's number in its mount; none for what comes from elsewhere and can't come again.
    pub number: Option<u64>,
    /// It was sent before and not answered.
    pub again: bool,
    /// The request whose result was kept last for the same asker, who has had it since and asks one thing at a time.
    pub last: Option<&'a Cell<Option<u64>>>,
}

impl From<Time> for Request<'_> {
    fn from(now: Time) -> Self {
        Request {
            now,
            number: None,
            again: false,
            last: None,
        }
    }
}

/// What a new node is to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NewKind {
    File,
    Dir,
    Fifo,
    Socket,
    /// The target.
    Symlink(OsString),
}

/// A node to be created: the caller has applied umask and setgid inheritance.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewNode {
    pub kind: NewKind,
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
}

/// A change of attributes; `None` leaves a field as it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SetAttr {
    pub mode: Option<u16>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<Time>,
    pub mtime: Option<Time>,
}

/// One entry of a directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DirEntry {
    pub name: OsString,
    pub ino: Ino,
    pub kind: Kind,
    /// Where a listing goes on after this entry; stable over changes and restarts, greater than 2.
    pub cookie: u64,
}

/// How a rename treats an existing target.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rename {
    Replace,
    NoReplace,
    Exchange,
}

/// What `lseek` looks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seek {
    Data,
    Hole,
}

/// What `fallocate` is to do with a range of bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fallocate {
    /// Make room; the file grows when the range ends past it.
    Extend,
    /// Make room without growing the file.
    KeepSize,
    /// The range reads as zeros; the size stays.
    PunchHole,
    /// The range reads as zeros; the file grows when `keep_size` is false.
    ZeroRange { keep_size: bool },
}

/// Space and files of the backing filesystem, in bytes and inodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Space {
    pub total: u64,
    pub free: u64,
    pub available: u64,
    pub files: u64,
    pub files_free: u64,
}
