//! Whether a namespace is a tree that `stat` and `readdir` can tell of: every name has its inode, every directory one name,
//! every count of links is right.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use crate::namespace::{Change, Inode, Namespace};
use crate::types::{FILE_SIZE_MAX, Ino, Kind, LayerId, NAME_MAX};

pub struct Problem {
    pub what: String,
    /// A change that ends it and loses nothing that can still be reached.
    pub mend: Option<Change>,
}

/// What the names tell of an inode.
#[derive(Default)]
struct Named {
    names: u32,
    /// Names of directories in it.
    subdirs: u32,
}

/// All that is wrong, in a fixed order. `is_below` tells which layers the namespace may have blocks in.
pub fn problems(ns: &Namespace, is_below: impl Fn(LayerId) -> bool) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut named: BTreeMap<Ino, Named> = BTreeMap::new();
    for (parent, name, ino) in ns.all_names() {
        named.entry(ino).or_default().names += 1;
        if ns.inode(ino).is_ok_and(|inode| inode.kind == Kind::Dir) {
            named.entry(parent).or_default().subdirs += 1;
        }
        problems.extend(wrong_with_name(ns, parent, name, ino));
    }
    if ns.dir(Ino::ROOT).is_err() {
        problems.push(problem("there is no root directory"));
    }
    for (ino, inode) in ns.inodes() {
        let of_names = named.remove(&ino).unwrap_or_default();
        problems.extend(wrong_with_links(ino, inode, &of_names));
        problems.extend(wrong_with_content(ino, inode, &is_below).map(problem));
    }
    problems.extend(unreachable(ns).map(|ino| problem(format!("the root does not lead to the directory {ino}"))));
    problems
}

fn problem(what: impl Into<String>) -> Problem {
    Problem {
        what: what.into(),
        mend: None,
    }
}

fn wrong_with_name(ns: &Namespace, parent: Ino, name: &Arc<OsStr>, ino: Ino) -> Option<Problem> {
    let told = format!("the name {:?} in the directory {parent}", name.to_string_lossy());
    let is_possible = match name.as_bytes() {
        b"" | b"." | b".." => false,
        bytes => bytes.len() <= NAME_MAX && !bytes.iter().any(|byte| matches!(byte, b'/' | 0)),
    };
    let inode = ns.inode(ino);
    if ns.dir(parent).is_err() {
        return Some(problem(format!("{told}: there is no such directory")));
    }
    if inode.is_err() {
        return Some(Problem {
            what: format!("{told}: its inode {ino} does not exist"),
            mend: Some(Change::DropName(parent, name.clone())),
        });
    }
    let is_elsewhere = inode.is_ok_and(|inode| inode.kind == Kind::Dir && inode.parent != parent);
    match (is_possible, is_elsewhere) {
        (false, _) => Some(problem(format!("{told} is none that a file can have"))),
        (_, true) => Some(problem(format!(
            "{told}: the directory {ino} takes another for the one above it"
        ))),
        _ => None,
    }
}

fn wrong_with_links(ino: Ino, inode: &Arc<Inode>, named: &Named) -> Option<Problem> {
    let names = named.names + u32::from(ino == Ino::ROOT);
    let links = match (inode.kind, names) {
        (Kind::Dir, 2..) => return Some(problem(format!("the directory {ino} has {names} names"))),
        (Kind::Dir, 1) => 2 + named.subdirs,
        (_, names) => names,
    };
    match inode.nlink {
        found if found == links => None,
        found if links == 0 => Some(problem(format!("the inode {ino} has {found} links and no name"))),
        found => {
            let mended = Inode {
                nlink: links,
                ..Inode::clone(inode)
            };
            Some(Problem {
                what: format!("the inode {ino} has {found} links and should have {links}"),
                mend: Some(Change::SetInode(ino, mended)),
            })
        }
    }
}

fn wrong_with_content(ino: Ino, inode: &Inode, is_below: impl Fn(LayerId) -> bool) -> Option<String> {
    let layers: Vec<LayerId> = inode.parts.iter().map(|part| part.layer).collect();
    let target_len = inode.target.as_ref().map(|target| target.len() as u64);
    if inode.size > FILE_SIZE_MAX {
        return Some(format!("the file {ino} is larger than a file can be"));
    }
    if target_len.is_some_and(|len| len != inode.size) {
        return Some(format!("the symbolic link {ino} has another size than its target"));
    }
    if inode.kind != Kind::File && !layers.is_empty() {
        return Some(format!("the inode {ino} has blocks and is no file"));
    }
    if !layers.is_sorted_by(|a, b| a < b) {
        return Some(format!("the layers of the file {ino} are not in order"));
    }
    let stranger = layers.into_iter().find(|layer| !is_below(*layer))?;
    Some(format!(
        "the file {ino} has blocks in layer {stranger}, which it does not stand on"
    ))
}

/// Directories with names that the root does not lead to: a cycle has no other sign.
fn unreachable(ns: &Namespace) -> impl Iterator<Item = Ino> {
    let mut reached = BTreeSet::from([Ino::ROOT]);
    let mut pending = vec![Ino::ROOT];
    while let Some(dir) = pending.pop() {
        let subdirs = ns.names(dir, 0).map(|(.., ino)| ino);
        let subdirs = subdirs.filter(|ino| ns.dir(*ino).is_ok());
        pending.extend(subdirs.filter(|ino| reached.insert(*ino)));
    }
    let dirs = ns
        .inodes()
        .filter(|(_, inode)| inode.kind == Kind::Dir && inode.nlink > 0);
    dirs.map(|(ino, _)| ino).filter(move |ino| !reached.contains(ino))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::namespace::ops::{Place, create, leave_out, link, new_inode, rename, unlink};
    use crate::pg::Purpose;
    use crate::types::{NewKind, NewNode, Rename, Time};

    fn node(kind: NewKind) -> NewNode {
        NewNode {
            kind,
            mode: 0o700,
            uid: 0,
            gid: 0,
        }
    }

    fn place(parent: Ino, name: &str) -> Place<'_> {
        Place {
            parent,
            name: OsStr::new(name),
        }
    }

    /// `/dir/file`, and `/link` to the same.
    fn tree() -> Namespace {
        let mut ns = Namespace::default();
        let now = Time::default();
        let root = new_inode(node(NewKind::Dir), Ino::ROOT, now).expect("made");
        ns.apply(Change::SetInode(Ino::ROOT, root));
        for (parent, name, ino, kind) in [
            (Ino::ROOT, "dir", Ino(20), NewKind::Dir),
            (Ino(20), "file", Ino(21), NewKind::File),
        ] {
            let made = create(&ns, place(parent, name), ino, node(kind), now).expect("made");
            made.changes.into_iter().for_each(|change| ns.apply(change));
        }
        let linked = link(&ns, Ino(21), place(Ino::ROOT, "link"), now).expect("linked");
        linked.changes.into_iter().for_each(|change| ns.apply(change));
        ns
    }

    fn whats(ns: &Namespace) -> Vec<String> {
        problems(ns, |_| true).into_iter().map(|problem| problem.what).collect()
    }

    /// What is found after a change that no operation makes.
    fn after(change: Change) -> Vec<String> {
        let mut ns = tree();
        ns.apply(change);
        whats(&ns)
    }

    fn edited(ino: Ino, edit: impl Fn(&mut Inode)) -> Change {
        let mut inode = Inode::clone(tree().inode(ino).expect("there"));
        edit(&mut inode);
        Change::SetInode(ino, inode)
    }

    #[test]
    fn a_sound_tree_has_no_problems_and_every_other_has_its_own() {
        assert_eq!(whats(&tree()), Vec::<String>::new());
        let name = |name: &str| Arc::from(OsStr::new(name));
        let cases = [
            (Change::DropInode(Ino(21)), "its inode 15 does not exist"),
            (Change::DropInode(Ino(20)), "there is no such directory"),
            (Change::DropInode(Ino::ROOT), "no root directory"),
            (Change::DropName(Ino(20), name("file")), "has 2 links and should have 1"),
            (Change::DropName(Ino::ROOT, name("dir")), "has 2 links and no name"),
            (
                Change::SetName(Ino::ROOT, name(".."), Ino(21)),
                "none that a file can have",
            ),
            (Change::SetName(Ino(20), name("loop"), Ino(20)), "has 2 names"),
            (
                edited(Ino(20), |dir| dir.parent = Ino(20)),
                "another for the one above it",
            ),
            (edited(Ino(20), |dir| dir.nlink = 3), "has 3 links and should have 2"),
            (edited(Ino(21), |file| file.nlink = 0), "has 0 links and should have 2"),
            (
                edited(Ino(21), |file| file.size = FILE_SIZE_MAX + 1),
                "larger than a file can be",
            ),
        ];
        for (change, told) in cases {
            let whats = after(change.clone());
            assert!(whats.iter().any(|what| what.contains(told)), "{change:?}: {whats:?}");
        }
    }

    /// A file with two names in directories that a copy empties.
    #[test]
    fn what_a_copy_leaves_out_leaves_a_sound_tree() {
        let mut ns = tree();
        let (from, to) = (place(Ino::ROOT, "dir"), place(Ino::ROOT, "pg_stat_tmp"));
        let moved = rename(&ns, from, to, Rename::Replace, Time::default()).expect("renamed");
        moved.changes.into_iter().for_each(|change| ns.apply(change));
        let again = link(&ns, Ino(21), place(Ino(20), "again"), Time::default()).expect("linked");
        again.changes.into_iter().for_each(|change| ns.apply(change));
        let gone = unlink(&ns, place(Ino::ROOT, "link"), Time::default()).expect("unlinked");
        gone.changes.into_iter().for_each(|change| ns.apply(change));
        leave_out(&ns, Purpose::Clone)
            .into_iter()
            .for_each(|change| ns.apply(change));
        assert_eq!(whats(&ns), Vec::<String>::new());
        assert!(ns.inode(Ino(21)).is_err(), "nothing of it is left");
    }

    #[test]
    fn what_can_be_mended_is() {
        for change in [
            Change::DropInode(Ino(21)),
            edited(Ino(20), |dir| dir.nlink = 9),
            edited(Ino(21), |file| file.nlink = 0),
        ] {
            let mut ns = tree();
            ns.apply(change);
            let mends = problems(&ns, |_| true).into_iter().filter_map(|problem| problem.mend);
            mends.collect::<Vec<_>>().into_iter().for_each(|mend| ns.apply(mend));
            assert_eq!(whats(&ns), Vec::<String>::new());
        }
    }
}
