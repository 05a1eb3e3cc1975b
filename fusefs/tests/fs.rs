//! The semantics of a mount's files, without a mount.

#[allow(dead_code)]
mod common;

use std::cell::Cell;

use common::{NOW, Scratch, os, snapshot};
use fusefs::{Caller, Entry, Fs, Keep, Name, Node, Opening};
use nix::errno::Errno;
use pageserver::{Kind, NewKind, Rename, Request, Seek, SetAttr, Start};

const ALICE: Caller = Caller { uid: 1000, gid: 100 };

fn at(parent: Node, name: &str) -> Name<'_> {
    Name { parent, name: os(name) }
}

fn make(fs: &Fs, parent: Node, name: &str, kind: NewKind, mode: u16) -> Entry {
    fs.create(at(parent, name), kind, mode, ALICE, NOW).expect(name)
}

fn file(fs: &Fs, name: &str, text: &str) -> Entry {
    let entry = make(fs, Node::ROOT, name, NewKind::File, 0o644);
    fs.write(entry.node, 0, text.as_bytes(), Some(NOW)).expect("written");
    entry
}

fn text(fs: &Fs, node: Node) -> Result<String, Errno> {
    let mut buf = [0; 100];
    let read = fs.read(node, 0, &mut buf)?;
    Ok(String::from_utf8_lossy(&buf[..read]).into_owned())
}

fn lookup(fs: &Fs, path: &[&str]) -> Result<Entry, Errno> {
    let root = fs.getattr(Node::ROOT)?;
    path.iter().try_fold(root, |dir, name| fs.lookup(dir.node, os(name)))
}

fn names(fs: &Fs, dir: Node) -> Vec<String> {
    let items = fs.readdir(dir, 0, 100).expect("listed");
    items
        .into_iter()
        .map(|item| item.name.into_string().expect("utf-8"))
        .collect()
}

#[test]
fn a_file_in_a_snapshot_is_another_node_than_the_live_one() {
    let scratch = Scratch::new("nodes", (0, 0));
    let fs = scratch.head();
    let live = file(&fs, "a", "old");
    let layer = scratch.take("t").layer;
    fs.write(live.node, 0, b"new", Some(NOW)).expect("written");
    let kept = lookup(&fs, &[".zenith", "snapshot", "t", "a"]).expect("in the snapshot");
    assert_eq!(kept.node, Node::Snapshot(layer, live.attr.ino));
    assert_eq!(text(&fs, live.node), Ok("new".into()));
    assert_eq!(text(&fs, kept.node), Ok("old".into()));
    drop(fs);
    let scratch = scratch.reopen();
    let fs = scratch.head();
    assert_eq!(
        text(&fs, live.node),
        Ok("new".into()),
        "nodes stay the same over a restart"
    );
    assert_eq!(text(&fs, kept.node), Ok("old".into()), "also without a lookup");
}

#[test]
fn the_hidden_directory_is_found_but_not_listed() {
    let scratch = Scratch::new("hidden", (7, 8));
    let fs = scratch.head();
    file(&fs, "a", "");
    assert_eq!(names(&fs, Node::ROOT), [".", "..", "a"]);
    let hidden = lookup(&fs, &[".zenith"]).expect("found");
    assert_eq!((hidden.attr.uid, hidden.attr.gid, hidden.attr.mode), (7, 8, 0o500));
    assert_eq!(hidden.keep, Keep::Never);
    let snapshots = lookup(&fs, &[".zenith", "snapshot"]).expect("found");
    assert_eq!((snapshots.attr.uid, snapshots.attr.mode), (7, 0o700));
    assert_eq!(names(&fs, hidden.node), [".", "..", "snapshot"]);
    assert_eq!(lookup(&fs, &[".zenith", "other"]), Err(Errno::ENOENT));
}

#[test]
fn its_name_can_be_neither_taken_nor_removed() {
    let scratch = Scratch::new("reserved", (0, 0));
    let fs = scratch.head();
    let a = file(&fs, "a", "");
    let hidden = at(Node::ROOT, ".zenith");
    let from = at(Node::ROOT, "a");
    assert_eq!(fs.mkdir(hidden, 0o700, ALICE, NOW), Err(Errno::EEXIST));
    assert_eq!(fs.link(a.node, hidden, NOW), Err(Errno::EEXIST));
    assert_eq!(fs.rmdir(hidden, NOW), Err(Errno::EPERM));
    assert_eq!(fs.rename(from, hidden, Rename::Replace, NOW), Err(Errno::EPERM));
    assert_eq!(
        fs.rename(hidden, at(Node::ROOT, "b"), Rename::Replace, NOW),
        Err(Errno::EPERM)
    );
    assert_eq!(fs.unlink(at(Node::Control, "snapshot"), NOW), Err(Errno::EPERM));
    assert_eq!(fs.mkdir(at(Node::Control, "x"), 0o700, ALICE, NOW), Err(Errno::EPERM));
    assert_eq!(
        fs.create(at(Node::Snapshots, "x"), NewKind::File, 0, ALICE, NOW),
        Err(Errno::EPERM)
    );
    assert_eq!(fs.setattr(Node::Snapshots, SetAttr::default(), NOW), Err(Errno::EPERM));
    let dir = make(&fs, Node::ROOT, "dir", NewKind::Dir, 0o755);
    make(&fs, dir.node, ".zenith", NewKind::Dir, 0o755);
    assert_eq!(
        names(&fs, dir.node),
        [".", "..", ".zenith"],
        "below the root the name is like any other"
    );
}

#[test]
fn mkdir_takes_a_snapshot_and_rmdir_destroys_it() {
    let scratch = Scratch::new("mkdir", (0, 0));
    let fs = scratch.head();
    file(&fs, "a", "text");
    let mkdir = |tag| fs.mkdir(at(Node::Snapshots, tag), 0o700, ALICE, NOW);
    let rmdir = |tag| fs.rmdir(at(Node::Snapshots, tag), NOW);
    let taken = mkdir("t").expect("taken");
    assert_eq!(taken.keep, Keep::Never);
    assert_eq!(names(&fs, taken.node), [".", "..", "a"]);
    assert_eq!(names(&fs, Node::Snapshots), [".", "..", "t"]);
    assert_eq!(mkdir("t"), Err(Errno::EEXIST));
    assert_eq!(mkdir("-t"), Err(Errno::EINVAL));
    assert_eq!(mkdir("HEAD{1}"), Err(Errno::EINVAL));
    assert_eq!(rmdir("u"), Err(Errno::ENOENT));
    assert_eq!(rmdir("-u"), Err(Errno::ENOENT));
    let dev = "dev".parse().expect("a good name");
    let from = Start::Snapshot(snapshot("t"));
    scratch.store.create_branch(&dev, &from, (0, 0), NOW).expect("a branch");
    assert_eq!(rmdir("t"), Err(Errno::EBUSY), "a branch starts from it");
    scratch.store.destroy_branch(&dev).expect("destroyed");
    assert_eq!(rmdir("t"), Ok(()), "although it was looked into");
    assert_eq!(names(&fs, Node::Snapshots), [".", ".."]);
    assert_eq!(lookup(&fs, &[".zenith", "snapshot", "t"]), Err(Errno::ENOENT));
    assert_eq!(fs.getattr(taken.node), Err(Errno::ESTALE));
}

#[test]
fn snapshots_that_come_and_go_elsewhere_are_seen_at_once() {
    let scratch = Scratch::new("elsewhere", (0, 0));
    let fs = scratch.head();
    let a = file(&fs, "a", "1");
    let first = scratch.take("t").layer;
    let old = lookup(&fs, &[".zenith", "snapshot", "t", "a"]).expect("there");
    fs.release_snapshot(first);
    scratch.store.destroy_snapshot(&snapshot("t")).expect("destroyed");
    fs.write(a.node, 0, b"2", Some(NOW)).expect("written");
    scratch.take("t");
    let new = lookup(&fs, &[".zenith", "snapshot", "t", "a"]).expect("there again");
    assert_ne!(old.node, new.node);
    assert_eq!(text(&fs, new.node), Ok("2".into()));
    assert_eq!(text(&fs, old.node), Err(Errno::ESTALE));
}

#[test]
fn a_snapshot_is_held_only_while_the_kernel_looks_into_it() {
    let scratch = Scratch::new("held", (0, 0));
    let fs = scratch.head();
    file(&fs, "a", "1");
    scratch.take("t");
    let root = lookup(&fs, &[".zenith", "snapshot", "t"]).expect("there");
    let busy = scratch.store.destroy_snapshot(&snapshot("t"));
    assert!(busy.is_err(), "looked into");
    fs.forget(root.node, 1);
    scratch.store.destroy_snapshot(&snapshot("t")).expect("nobody looks");
}

#[test]
fn nothing_in_a_snapshot_can_be_changed() {
    let scratch = Scratch::new("read-only", (0, 0));
    let fs = scratch.head();
    file(&fs, "a", "1");
    scratch.take("t");
    let root = lookup(&fs, &[".zenith", "snapshot", "t"]).expect("there").node;
    let a = lookup(&fs, &[".zenith", "snapshot", "t", "a"]).expect("there").node;
    refuses_changes(&fs, root, a);
    assert_eq!(fs.open(a, false), Ok(Opening::Cached));
    assert_eq!(fs.link(a, at(Node::ROOT, "b"), NOW), Err(Errno::EXDEV));
    let moved = fs.rename(at(root, "a"), at(Node::ROOT, "b"), Rename::Replace, NOW);
    assert_eq!(moved, Err(Errno::EXDEV));
    scratch.take("u");
    let other = lookup(&fs, &[".zenith", "snapshot", "u"]).expect("there").node;
    assert_eq!(other, root, "nothing was changed in between");
    file(&fs, "b", "2");
    scratch.take("v");
    let other = lookup(&fs, &[".zenith", "snapshot", "v"]).expect("there").node;
    assert_eq!(fs.link(a, at(other, "c"), NOW), Err(Errno::EXDEV));
}

#[test]
fn a_mounted_snapshot_is_read_only_and_knows_its_holes() {
    let scratch = Scratch::new("sealed", (0, 0));
    let fs = scratch.head();
    let a = file(&fs, "a", "1");
    fs.write(a.node, 1 << 20, b"2", Some(NOW)).expect("written");
    assert_eq!(
        fs.seek(a.node, 0, Seek::Hole),
        Err(Errno::ENOSYS),
        "a head's may be dirty"
    );
    scratch.take("t");
    let sealed = Fs::of_snapshot(scratch.store.snapshot_view(&snapshot("t")).expect("a view"));
    refuses_changes(&sealed, Node::ROOT, a.node);
    assert_eq!(sealed.seek(a.node, 4096, Seek::Data), Ok(1 << 20));
    assert_eq!(lookup(&sealed, &[".zenith"]), Err(Errno::ENOENT));
    assert!(sealed.statfs().expect("space").total > 0);
}

fn refuses_changes(fs: &Fs, root: Node, file: Node) {
    let erofs = Err(Errno::EROFS);
    assert_eq!(fs.mkdir(at(root, "d"), 0o700, ALICE, NOW).map(|_| ()), erofs);
    assert_eq!(
        fs.create(at(root, "f"), NewKind::File, 0o700, ALICE, NOW).map(|_| ()),
        erofs
    );
    assert_eq!(fs.link(file, at(root, "l"), NOW).map(|_| ()), erofs);
    assert_eq!(fs.unlink(at(root, "a"), NOW), erofs);
    assert_eq!(fs.rmdir(at(root, "a"), NOW), erofs);
    assert_eq!(fs.rename(at(root, "a"), at(root, "b"), Rename::Replace, NOW), erofs);
    assert_eq!(fs.setattr(file, SetAttr::default(), NOW).map(|_| ()), erofs);
    assert_eq!(fs.write(file, 0, b"x", None).map(|_| ()), erofs);
    assert_eq!(fs.open(file, true).map(|_| ()), erofs);
    assert_eq!(fs.fsync(file), Ok(()), "there is nothing to do");
}

#[test]
fn an_unlinked_file_lives_until_its_last_reference_is_gone() {
    let scratch = Scratch::new("orphan", (0, 0));
    let fs = scratch.head();
    let a = file(&fs, "a", "text");
    lookup(&fs, &["a"]).expect("a second reference");
    fs.unlink(at(Node::ROOT, "a"), NOW).expect("unlinked");
    fs.forget(a.node, 1);
    assert_eq!(text(&fs, a.node), Ok("text".into()));
    assert_eq!(fs.write(a.node, 0, b"T", Some(NOW)), Ok(1));
    fs.forget(a.node, 1);
    assert!(text(&fs, a.node).is_err(), "gone");
}

#[test]
fn a_replaced_file_lives_on_too_and_a_linked_one_is_not_forgotten() {
    let scratch = Scratch::new("replaced", (0, 0));
    let fs = scratch.head();
    let (a, b) = (file(&fs, "a", "A"), file(&fs, "b", "B"));
    let (from, to) = (at(Node::ROOT, "a"), at(Node::ROOT, "b"));
    fs.rename(from, to, Rename::Replace, NOW).expect("renamed");
    assert_eq!(text(&fs, b.node), Ok("B".into()));
    fs.forget(b.node, 1);
    assert!(text(&fs, b.node).is_err(), "gone");
    fs.forget(a.node, 1);
    assert_eq!(text(&fs, a.node), Ok("A".into()), "it has a name");
}

#[test]
fn the_end_of_a_mount_frees_what_was_still_open() {
    let scratch = Scratch::new("end", (0, 0));
    let fs = scratch.head();
    let a = file(&fs, "a", "text");
    fs.unlink(at(Node::ROOT, "a"), NOW).expect("unlinked");
    fs.end();
    assert!(text(&fs, a.node).is_err(), "gone");
}

#[test]
fn a_setgid_directory_hands_down_its_group() {
    let scratch = Scratch::new("setgid", (0, 0));
    let fs = scratch.head();
    let dir = make(&fs, Node::ROOT, "dir", NewKind::Dir, 0o775);
    assert_eq!((dir.attr.uid, dir.attr.gid), (ALICE.uid, ALICE.gid));
    let set = SetAttr {
        mode: Some(0o2775),
        gid: Some(55),
        ..SetAttr::default()
    };
    fs.setattr(dir.node, set, NOW).expect("set");
    let file = make(&fs, dir.node, "file", NewKind::File, 0o644);
    let below = make(&fs, dir.node, "below", NewKind::Dir, 0o755);
    assert_eq!((file.attr.gid, file.attr.mode), (55, 0o644));
    assert_eq!((below.attr.gid, below.attr.mode), (55, 0o2755));
}

#[test]
fn creating_opens_what_is_there_unless_it_has_to_be_new() {
    let scratch = Scratch::new("create", (0, 0));
    let fs = scratch.head();
    let a = file(&fs, "a", "text");
    let name = at(Node::ROOT, "a");
    let (again, _) = fs.create_and_open(name, 0o600, false, ALICE, NOW).expect("opened");
    assert_eq!((again.node, again.attr.size), (a.node, 4));
    let exclusive = fs.create_and_open(name, 0o600, true, ALICE, NOW);
    assert_eq!(exclusive, Err(Errno::EEXIST));
}

#[test]
fn wal_is_opened_past_the_page_cache() {
    let scratch = Scratch::new("wal", (0, 0));
    let fs = scratch.head();
    let wal = make(&fs, Node::ROOT, "pg_wal", NewKind::Dir, 0o700);
    let name = at(wal.node, "000000010000000000000001");
    let (segment, opening) = fs.create_and_open(name, 0o600, true, ALICE, NOW).expect("created");
    assert_eq!(opening, Opening::Direct);
    assert_eq!(fs.open(segment.node, true), Ok(Opening::Direct));
    let table = file(&fs, "16384", "");
    assert_eq!(fs.open(table.node, true), Ok(Opening::Cached));
}

#[test]
fn a_listing_in_pieces_shows_every_entry_once() {
    let scratch = Scratch::new("listing", (0, 0));
    let fs = scratch.head();
    let dir = make(&fs, Node::ROOT, "dir", NewKind::Dir, 0o755).node;
    let mut expected: Vec<String> = (0..50).map(|n| format!("file{n}")).collect();
    for name in &expected {
        make(&fs, dir, name, NewKind::File, 0o644);
    }
    let mut listed = Vec::new();
    let mut cookie = 0;
    loop {
        let items = fs.readdir(dir, cookie, 7).expect("listed");
        let Some(last) = items.last() else { break };
        cookie = last.cookie;
        listed.extend(items);
    }
    assert_eq!(listed[0].node, dir);
    assert_eq!(listed[1].node, Node::ROOT);
    assert!(listed[..2].iter().all(|item| item.is_dots() && item.kind == Kind::Dir));
    let mut found: Vec<_> = listed[2..]
        .iter()
        .map(|item| item.name.to_string_lossy().into_owned())
        .collect();
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
}

#[test]
fn names_end_at_255_bytes() {
    let scratch = Scratch::new("long", (0, 0));
    let fs = scratch.head();
    let (fits, long) = ("n".repeat(255), "n".repeat(256));
    file(&fs, &fits, "");
    assert!(lookup(&fs, &[&fits]).is_ok());
    assert_eq!(lookup(&fs, &[&long]), Err(Errno::ENAMETOOLONG));
    let made = fs.mkdir(at(Node::ROOT, &long), 0o755, ALICE, NOW);
    assert_eq!(made, Err(Errno::ENAMETOOLONG));
}

/// A change of names that the kernel asks for twice.
type ChangeOnce = fn(&Fs, Request) -> Result<(), Errno>;

const CHANGES: [(&str, ChangeOnce); 8] = [
    ("create", |fs, request| {
        let name = at(Node::ROOT, "new");
        fs.create_and_open(name, 0o600, true, ALICE, request).map(drop)
    }),
    ("mkdir", |fs, request| {
        fs.mkdir(at(Node::ROOT, "new"), 0o700, ALICE, request).map(drop)
    }),
    ("symlink", |fs, request| {
        let target = NewKind::Symlink("there".into());
        fs.create(at(Node::ROOT, "new"), target, 0o777, ALICE, request)
            .map(drop)
    }),
    ("link", |fs, request| {
        let node = fs.lookup(Node::ROOT, os("a"))?.node;
        fs.link(node, at(Node::ROOT, "new"), request).map(drop)
    }),
    ("unlink", |fs, request| fs.unlink(at(Node::ROOT, "a"), request)),
    ("rmdir", |fs, request| fs.rmdir(at(Node::ROOT, "dir"), request)),
    ("rename", |fs, request| {
        fs.rename(at(Node::ROOT, "a"), at(Node::ROOT, "b"), Rename::Replace, request)
    }),
    ("exchange", |fs, request| {
        fs.rename(at(Node::ROOT, "a"), at(Node::ROOT, "b"), Rename::Exchange, request)
    }),
];

fn numbered(number: u64, again: bool) -> Request<'static> {
    Request {
        number: Some(number),
        again,
        ..NOW.into()
    }
}

#[test]
fn a_change_that_is_asked_for_again_by_the_next_process_is_made_once() {
    for (what, change) in CHANGES {
        for made_before in [true, false] {
            let scratch = Scratch::new(&format!("again-{what}"), (0, 0));
            let fs = scratch.head();
            file(&fs, "a", "this is a");
            file(&fs, "b", "this is b");
            make(&fs, Node::ROOT, "dir", NewKind::Dir, 0o700);
            if made_before {
                assert_eq!(change(&fs, numbered(7, false)), Ok(()), "{what}");
            }
            let before = names_and_texts(&fs);
            drop(fs);
            let scratch = scratch.reopen();
            let fs = scratch.resumed_head();
            assert_eq!(
                change(&fs, numbered(7, true)),
                Ok(()),
                "{what}, made before: {made_before}"
            );
            let after = names_and_texts(&fs);
            assert_eq!(before == after, made_before, "{what}: {before:?} {after:?}");
        }
    }
}

#[test]
fn a_snapshot_that_is_taken_or_destroyed_through_the_mount_is_so_once() {
    let scratch = Scratch::new("again-snapshot", (0, 0));
    let fs = scratch.head();
    let taken = |again| {
        fs.mkdir(at(Node::Snapshots, "t"), 0, ALICE, numbered(7, again))
            .map(|entry| entry.node)
    };
    let first = taken(false);
    assert!(first.is_ok());
    assert_eq!(taken(true), first);
    assert_eq!(taken(false), Err(Errno::EEXIST));
    let destroyed = |again| fs.rmdir(at(Node::Snapshots, "t"), numbered(8, again));
    assert_eq!(destroyed(false), Ok(()));
    assert_eq!(destroyed(true), Ok(()));
    assert_eq!(destroyed(false), Err(Errno::ENOENT));
}

#[test]
fn of_each_asker_one_result_is_kept_and_none_for_the_next_mount() {
    let scratch = Scratch::new("answers", (0, 0));
    let fs = scratch.head();
    let last = Cell::new(None);
    for number in 1..=3 {
        let request = Request {
            last: Some(&last),
            ..numbered(number, false)
        };
        fs.mkdir(at(Node::ROOT, &format!("d{number}")), 0o700, ALICE, request)
            .expect("made");
    }
    let timeline = scratch.timeline();
    let known = || {
        (1..=3)
            .filter(|number| timeline.answer(&numbered(*number, true)) != Ok(None))
            .collect::<Vec<_>>()
    };
    assert_eq!(known(), [3]);
    fs.begin();
    assert!(known().is_empty());
}

fn names_and_texts(fs: &Fs) -> Vec<(String, Result<String, Errno>)> {
    let node = |name: &str| lookup(fs, &[name]).map(|entry| entry.node);
    let read = |name: String| {
        let text = node(&name).and_then(|node| text(fs, node));
        (name, text)
    };
    let mut found: Vec<_> = names(fs, Node::ROOT).into_iter().map(read).collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}
