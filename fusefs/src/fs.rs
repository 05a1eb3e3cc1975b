//! What the files of a mount mean: POSIX semantics over a store's trees, without any type of FUSE.
//!
//! A mount shows a branch's head, which can be written, or one sealed view, which can't. In a branch's mount
//! [`crate::control`] adds the snapshots. Reading stands in this file, changing in [`change`].
//!
//! Rules:
//! * The kernel checks permissions (`default_permissions`) before it asks, and applies the umask.
//! * Every [`Entry`] that [`Fs::lookup`] and the methods that create names return is one reference of the
//!   kernel's to that node, until [`Fs::forget`].
//! * Nothing here keeps state for an open file: each request is served by its node alone.

mod change;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use nix::errno::Errno;
use pageserver::{Attr, FsResult, Ino, Kind, LayerId, NAME_MAX, Seek, Space, Timeline, View};

use crate::control::{self, CONTROL_NAME, Control, SNAPSHOTS_NAME, Snapshots};
use crate::lookups::Lookups;
use crate::node::Node;

pub use change::{Caller, Name};

/// The files of one mount.
pub struct Fs {
    tree: Tree,
    control: Option<Control>,
    lookups: Lookups,
}

enum Tree {
    Head(Arc<Timeline>),
    Sealed(Arc<View>),
}

/// A node with its attributes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    pub node: Node,
    pub attr: Attr,
    /// Whether the kernel may keep the name.
    pub keep: Keep,
}

/// How long the kernel may keep what it was told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Keep {
    /// All changes pass through the kernel.
    Forever,
    /// It can change at any time from elsewhere.
    Never,
}

/// How a file is to be opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Opening {
    /// Through the kernel's page cache.
    Cached,
    /// Every read and write comes to us as it is made.
    Direct,
}

/// One entry of a directory, `.` and `..` among them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Item {
    pub name: OsString,
    pub node: Node,
    pub kind: Kind,
    /// Where a listing goes on after this entry.
    pub cookie: u64,
    /// Whether the kernel may keep the name.
    pub keep: Keep,
}

impl Item {
    /// Whether this is `.` or `..`, of which the kernel takes no reference.
    pub fn is_dots(&self) -> bool {
        self.cookie <= DOTDOT_COOKIE
    }
}

const DOT_COOKIE: u64 = 1;
const DOTDOT_COOKIE: u64 = 2;

impl Fs {
    /// A branch's head, with its snapshots in the hidden directory.
    pub fn of_branch(timeline: Arc<Timeline>, snapshots: Box<dyn Snapshots>) -> Fs {
        Fs {
            tree: Tree::Head(timeline),
            control: Some(Control::new(snapshots)),
            lookups: Lookups::new(),
        }
    }

    /// A sealed view, read-only.
    pub fn of_snapshot(view: Arc<View>) -> Fs {
        Fs {
            tree: Tree::Sealed(view),
            control: None,
            lookups: Lookups::new(),
        }
    }

    pub fn is_read_only(&self) -> bool {
        matches!(self.tree, Tree::Sealed(_))
    }

    pub fn lookup(&self, parent: Node, name: &OsStr) -> FsResult<Entry> {
        check_name(name)?;
        let entry = match parent {
            Node::Control if name == SNAPSHOTS_NAME => self.entry(Node::Snapshots)?,
            Node::Control => return Err(Errno::ENOENT),
            Node::Snapshots => self.snapshot_entry(self.control()?.find(name)?)?,
            Node::ROOT if self.is_control(name) => self.entry(Node::Control)?,
            _ => self
                .view(parent, |view, ino| view.lookup(ino, name))
                .map(|attr| kept(parent, attr))?,
        };
        Ok(self.counted(entry))
    }

    /// Whether the kernel may keep that a name does not exist in this directory.
    pub fn keeps_absence(&self, parent: Node) -> bool {
        !matches!(parent, Node::Control | Node::Snapshots)
    }

    /// Takes back `count` references of the kernel's to a node.
    pub fn forget(&self, node: Node, count: u64) {
        self.lookups.forget(node, count, || self.let_go(node));
    }

    /// The mount has ended: the kernel holds nothing of it any more, and all that was written is made durable.
    pub fn end(&self) {
        for node in self.lookups.drain().into_iter().chain(self.orphans()) {
            self.let_go(node);
        }
        self.forget_answers();
        if let Tree::Head(timeline) = &self.tree
            && let Err(error) = timeline.sync_all()
        {
            tracing::error!(branch = %timeline.branch(), "not all that was written is durable: {error}");
        }
    }

    /// The mount is a new one: what is kept of requests is another's.
    pub fn begin(&self) {
        self.forget_answers();
    }

    fn forget_answers(&self) {
        if let Tree::Head(timeline) = &self.tree
            && let Err(error) = timeline.forget_answers()
        {
            tracing::error!(branch = %timeline.branch(), "results of old requests stay behind: {error}");
        }
    }

    /// Files without a name. Some of them nobody has open any more, where the mount has outlived a process.
    pub fn orphans(&self) -> Vec<Node> {
        match &self.tree {
            Tree::Head(timeline) => timeline.view().orphans().into_iter().map(Node::Own).collect(),
            Tree::Sealed(_) => Vec::new(),
        }
    }

    /// Counts the reference that a listing with attributes gives to the kernel.
    pub fn count(&self, node: Node) {
        self.lookups.add(node);
    }

    /// Lets go of a snapshot that is about to be destroyed from outside.
    pub fn release_snapshot(&self, layer: LayerId) {
        if let Some(control) = &self.control {
            control.release(layer);
        }
    }

    pub fn getattr(&self, node: Node) -> FsResult<Entry> {
        self.entry(node)
    }

    pub fn readlink(&self, node: Node) -> FsResult<OsString> {
        self.view(node, |view, ino| view.readlink(ino))
    }

    /// `writing` is whether the file is opened for writing.
    pub fn open(&self, node: Node, writing: bool) -> FsResult<Opening> {
        if writing {
            self.head(node)?;
        }
        self.view(node, |view, ino| Ok(opening(view, ino)))
    }

    /// Whether a sync of it can take long: it has bytes to make durable, and is no WAL, of which a commit has little; or nobody knows what there is to
    /// make durable.
    pub fn syncs_long(&self, node: Node) -> bool {
        let is_settled = self.timeline().is_none_or(Timeline::is_settled);
        let long = || self.view(node, |view, ino| Ok(!view.is_durable(ino) && !view.is_wal(ino)));
        !is_settled || long().unwrap_or(false)
    }

    /// Whether the file's bytes arrive as they are written, past the page cache, because it is WAL.
    pub fn is_wal(&self, node: Node) -> bool {
        self.view(node, |view, ino| Ok(view.is_wal(ino))).unwrap_or(false)
    }

    /// Whether a node's attributes and names are in memory: else a snapshot may have to be loaded, and the store be asked which there are.
    pub fn is_at_hand(&self, node: Node) -> bool {
        match node {
            Node::Own(_) | Node::Control => true,
            Node::Snapshots => false,
            Node::Snapshot(layer, _) => self.control.as_ref().is_some_and(|control| control.has(layer)),
        }
    }

    /// Whether a change of names would have to wait for the disk just now.
    pub fn holds_up_changes(&self) -> bool {
        self.timeline().is_some_and(Timeline::holds_up_changes)
    }

    /// Whether the kernel may keep the listing of a directory.
    pub fn opendir(&self, node: Node) -> Keep {
        match node {
            Node::Control | Node::Snapshots => Keep::Never,
            Node::Own(_) | Node::Snapshot(..) => Keep::Forever,
        }
    }

    /// Fills `buf` from `offset`; fewer bytes only at the end of the file.
    pub fn read(&self, node: Node, offset: u64, buf: &mut [u8]) -> FsResult<usize> {
        self.view(node, |view, ino| view.read(ino, offset, buf))
    }

    /// As [`Fs::read`], if that need not wait for the disk; if not, the disk may have begun to read.
    pub fn read_at_once(&self, node: Node, offset: u64, buf: &mut [u8]) -> FsResult<Option<usize>> {
        self.view(node, |view, ino| view.read_at_once(ino, offset, buf))
    }

    /// Holes are only told of what can't be written: the kernel asks without writing its dirty pages first, so that
    /// a hole of a head could hide data. After ENOSYS it takes the whole of every file for data.
    pub fn seek(&self, node: Node, offset: u64, whence: Seek) -> FsResult<u64> {
        match self.tree {
            Tree::Head(_) => Err(Errno::ENOSYS),
            Tree::Sealed(_) => self.view(node, |view, ino| view.seek(ino, offset, whence)),
        }
    }

    /// Up to `max` entries after `cookie`, besides `.` and `..`; none at the end.
    pub fn readdir(&self, node: Node, cookie: u64, max: usize) -> FsResult<Vec<Item>> {
        let mut items = self.dots(node, cookie)?;
        let after = if cookie <= DOTDOT_COOKIE { 0 } else { cookie };
        match node {
            Node::Control => items.extend(control_item(after)),
            Node::Snapshots => items.extend(self.snapshot_items(after, max)?),
            Node::Own(_) | Node::Snapshot(..) => items.extend(self.view_items(node, after, max)?),
        }
        Ok(items)
    }

    pub fn statfs(&self) -> FsResult<Space> {
        self.own_view().space()
    }

    fn control(&self) -> FsResult<&Control> {
        self.control.as_ref().ok_or(Errno::ESTALE)
    }

    fn is_control(&self, name: &OsStr) -> bool {
        self.control.is_some() && name == CONTROL_NAME
    }

    fn timeline(&self) -> Option<&Timeline> {
        match &self.tree {
            Tree::Head(timeline) => Some(timeline),
            Tree::Sealed(_) => None,
        }
    }

    fn own_view(&self) -> &View {
        match &self.tree {
            Tree::Head(timeline) => timeline.view(),
            Tree::Sealed(view) => view,
        }
    }

    /// Asks the view that a file lies in.
    fn view<T>(&self, node: Node, ask: impl FnOnce(&View, Ino) -> FsResult<T>) -> FsResult<T> {
        match node {
            Node::Own(ino) => ask(self.own_view(), ino),
            Node::Snapshot(layer, ino) => ask(&*self.control()?.view(layer)?, ino),
            Node::Control | Node::Snapshots => Err(Errno::EISDIR),
        }
    }

    fn entry(&self, node: Node) -> FsResult<Entry> {
        match node {
            Node::Control | Node::Snapshots => {
                self.control()?;
                let root = self.own_view().getattr(Ino::ROOT)?;
                Ok(fleeting(node, control::attr(node, root)))
            }
            Node::Own(_) | Node::Snapshot(..) => {
                let attr = self.view(node, |view, ino| view.getattr(ino))?;
                Ok(kept(node, attr))
            }
        }
    }

    /// The root of a snapshot's tree under its tag, which can go at any time.
    fn snapshot_entry(&self, layer: LayerId) -> FsResult<Entry> {
        let root = self.entry(Node::Snapshot(layer, Ino::ROOT))?;
        Ok(fleeting(root.node, root.attr))
    }

    fn counted(&self, entry: Entry) -> Entry {
        self.lookups.add(entry.node);
        entry
    }

    /// The kernel has no reference to this node any more.
    fn let_go(&self, node: Node) {
        match (node, &self.tree) {
            (Node::Own(ino), Tree::Head(timeline)) => timeline.forget(ino),
            // Everything else in a tree holds on to its root.
            (Node::Snapshot(layer, Ino::ROOT), _) => self.release_snapshot(layer),
            _ => {}
        }
    }

    /// What of `.` and `..` comes after `cookie`.
    fn dots(&self, node: Node, cookie: u64) -> FsResult<Vec<Item>> {
        let mut dots = Vec::new();
        if cookie < DOT_COOKIE {
            dots.push(dir_item(".".into(), node, DOT_COOKIE));
        }
        if cookie < DOTDOT_COOKIE {
            dots.push(dir_item("..".into(), self.parent(node)?, DOTDOT_COOKIE));
        }
        Ok(dots)
    }

    fn parent(&self, node: Node) -> FsResult<Node> {
        match node {
            Node::ROOT | Node::Control => Ok(Node::ROOT),
            Node::Snapshots => Ok(Node::Control),
            Node::Snapshot(_, Ino::ROOT) => Ok(Node::Snapshots),
            Node::Own(_) | Node::Snapshot(..) => {
                let parent = self.view(node, |view, ino| view.parent(ino))?;
                Ok(node.sibling(parent))
            }
        }
    }

    fn view_items(&self, node: Node, cookie: u64, max: usize) -> FsResult<impl Iterator<Item = Item>> {
        let entries = self.view(node, |view, ino| view.readdir(ino, cookie, max))?;
        Ok(entries.into_iter().map(move |entry| Item {
            name: entry.name,
            node: node.sibling(entry.ino),
            kind: entry.kind,
            cookie: entry.cookie,
            keep: Keep::Forever,
        }))
    }

    fn snapshot_items(&self, cookie: u64, max: usize) -> FsResult<impl Iterator<Item = Item>> {
        let snapshots = self.control()?.list().into_iter();
        let items = (DOTDOT_COOKIE + 1..).zip(snapshots).map(|(cookie, info)| {
            let root = Node::Snapshot(info.layer, Ino::ROOT);
            dir_item(info.name.tag.as_str().into(), root, cookie)
        });
        Ok(items.filter(move |item| item.cookie > cookie).take(max))
    }
}

fn kept(near: Node, attr: Attr) -> Entry {
    Entry {
        node: near.sibling(attr.ino),
        attr,
        keep: Keep::Forever,
    }
}

fn fleeting(node: Node, attr: Attr) -> Entry {
    Entry {
        node,
        attr,
        keep: Keep::Never,
    }
}

/// WAL is written past the page cache, so that the store sees its bytes in order and as they are written.
fn opening(view: &View, ino: Ino) -> Opening {
    if view.is_wal(ino) {
        Opening::Direct
    } else {
        Opening::Cached
    }
}

/// A directory in a listing that is not the store's.
fn dir_item(name: OsString, node: Node, cookie: u64) -> Item {
    Item {
        name,
        node,
        kind: Kind::Dir,
        cookie,
        keep: Keep::Never,
    }
}

fn control_item(cookie: u64) -> Option<Item> {
    let item = dir_item(SNAPSHOTS_NAME.into(), Node::Snapshots, DOTDOT_COOKIE + 1);
    (cookie < item.cookie).then_some(item)
}

fn check_name(name: &OsStr) -> FsResult<()> {
    if name.as_bytes().len() > NAME_MAX {
        return Err(Errno::ENAMETOOLONG);
    }
    Ok(())
}
