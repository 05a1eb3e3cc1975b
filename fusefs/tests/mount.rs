//! A mounted branch as programs see it, through the kernel. Needs /dev/fuse; as root it also checks what other
//! users can do.

#![cfg(target_os = "linux")]

#[allow(dead_code)]
mod common;

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use common::{Mounted, Scratch, errno, main, owner, snapshot};
use fusefs::{Fs, Keeping, Mount, MountError, Options};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, copy_file_range, fallocate};
use nix::libc;
use nix::mount::{MntFlags, umount2};
use nix::sys::statvfs::statvfs;
use nix::unistd::{Whence, geteuid, lseek};
use pageserver::Ino;

const NOBODY: u32 = 65534;

fn scratch(test: &str) -> Scratch {
    Scratch::new(&format!("mount-{test}"), owner())
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).expect("readable")
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("listed");
    let mut names: Vec<_> = entries
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("utf-8"))
        .collect();
    names.sort();
    names
}

/// Runs a line of shell as another user.
fn as_nobody(dir: &Path, line: &str) -> bool {
    let shell = Command::new("setpriv")
        .args([
            "--reuid",
            "65534",
            "--regid",
            "65534",
            "--clear-groups",
            "sh",
            "-c",
            line,
        ])
        .current_dir(dir)
        .output();
    shell.expect("setpriv and sh").status.success()
}

#[test]
fn what_is_written_is_there_after_the_next_mount() {
    let scratch = scratch("again");
    let mounted = Mounted::new("again", scratch.head());
    fs::create_dir(mounted.path("dir")).expect("made");
    mounted.file("dir/a", "text");
    fs::hard_link(mounted.path("dir/a"), mounted.path("b")).expect("linked");
    std::os::unix::fs::symlink("dir/a", mounted.path("c")).expect("linked");
    drop(mounted);
    let scratch = scratch.reopen();
    let mounted = Mounted::new("again", scratch.head());
    assert_eq!(names(&mounted.dir), ["b", "c", "dir"]);
    assert_eq!(read(&mounted.path("c")), "text");
    assert_eq!(fs::metadata(mounted.path("b")).expect("there").nlink(), 2);
}

#[test]
fn an_unlinked_file_can_be_used_while_it_is_open() {
    let scratch = scratch("unlinked");
    let mounted = Mounted::new("unlinked", scratch.head());
    let path = mounted.file("a", "text");
    let file = OpenOptions::new().read(true).write(true).open(&path).expect("opened");
    fs::remove_file(&path).expect("removed");
    mounted.file("a", "another");
    file.write_at(b"TEXT", 0).expect("written");
    file.sync_all().expect("synced");
    let mut text = [0; 10];
    assert_eq!(file.read_at(&mut text, 0).expect("read"), 4);
    assert_eq!(&text[..4], b"TEXT");
    assert_eq!(read(&path), "another");
}

#[test]
fn an_absent_name_is_found_once_it_is_made() {
    let scratch = scratch("absent");
    let mounted = Mounted::new("absent", scratch.head());
    let path = mounted.path("a");
    for _ in 0..2 {
        assert_eq!(errno(fs::metadata(&path)), Some(Errno::ENOENT));
        fs::write(&path, "").expect("written");
        assert!(path.exists());
        fs::remove_file(&path).expect("removed");
    }
}

#[test]
fn dirty_pages_are_never_taken_for_holes() {
    let scratch = scratch("holes");
    let mounted = Mounted::new("holes", scratch.head());
    let file = File::create(mounted.path("a")).expect("made");
    file.write_at(b"data", 512 * 1024).expect("written");
    let data = lseek(&file, 0, Whence::SeekData).expect("there is data");
    let hole = lseek(&file, 0, Whence::SeekHole).expect("there is an end");
    assert!(
        data <= 512 * 1024 && hole > 512 * 1024,
        "data at {data}, a hole at {hole}"
    );
}

#[test]
fn ranges_are_allocated_punched_and_copied() {
    let scratch = scratch("ranges");
    let mounted = Mounted::new("ranges", scratch.head());
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(mounted.path("a"))
        .expect("made");
    file.write_at(&[7; 12288], 0).expect("written");
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&file, punch, 100, 8000).expect("punched");
    let collapse = fallocate(&file, FallocateFlags::FALLOC_FL_COLLAPSE_RANGE, 0, 4096);
    assert_eq!(collapse, Err(Errno::EOPNOTSUPP));
    fallocate(&file, FallocateFlags::empty(), 0, 16384).expect("allocated");
    let copy = File::create(mounted.path("b")).expect("made");
    let mut copied = 0;
    while copied < 16384 {
        copied += copy_file_range(&file, None, &copy, None, 16384 - copied).expect("copied");
    }
    let mut expected = vec![7; 12288];
    expected[100..8100].fill(0);
    expected.resize(16384, 0);
    assert_eq!(fs::read(mounted.path("b")).expect("read"), expected);
}

#[test]
fn times_before_1970_are_kept() {
    let scratch = scratch("times");
    let mounted = Mounted::new("times", scratch.head());
    let before = [
        ("dir", Duration::from_millis(1_500)),
        ("a", Duration::from_millis(2_700)),
        ("b", Duration::from_nanos(1)),
        ("c", Duration::from_secs(3_000_000_000)),
    ];
    fs::create_dir(mounted.path("dir")).expect("made");
    for (name, before) in &before {
        if *name != "dir" {
            mounted.file(name, "");
        }
        let set = File::open(mounted.path(name)).and_then(|file| file.set_modified(UNIX_EPOCH - *before));
        set.expect("set");
    }
    drop(mounted);
    let mounted = Mounted::new("times", scratch.head());
    for (name, before) in &before {
        let metadata = fs::metadata(mounted.path(name)).expect("there");
        assert_eq!(metadata.modified().expect("a time"), UNIX_EPOCH - *before, "{name}");
    }
}

#[test]
fn times_set_by_us_and_by_the_kernel_do_not_run_apart() {
    let scratch = scratch("clock");
    let mounted = Mounted::new("clock", scratch.head());
    for n in 0..50 {
        fs::create_dir(mounted.path(&format!("dir{n}"))).expect("made");
        mounted.file(&format!("file{n}"), "text");
        let modified = |name: String| {
            fs::metadata(mounted.path(&name))
                .expect("there")
                .modified()
                .expect("a time")
        };
        assert!(modified(format!("dir{n}")) <= modified(format!("file{n}")));
    }
    assert!(fs::metadata(&mounted.dir).expect("there").modified().expect("a time") <= SystemTime::now());
}

#[test]
fn refused_are_devices_attributes_and_long_names() {
    let scratch = scratch("refused");
    let mounted = Mounted::new("refused", scratch.head());
    let shell = |line: &str| {
        let output = Command::new("sh")
            .args(["-c", line])
            .current_dir(&mounted.dir)
            .output()
            .expect("sh");
        (
            output.status.success(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    assert!(shell("mkfifo fifo").0);
    let (made, why) = shell("mknod device c 1 3");
    assert!(!made && why.contains("Operation not permitted"), "{why}");
    assert_eq!(set_attribute(&mounted.file("a", "text")), Err(Errno::EOPNOTSUPP));
    let long = mounted.path(&"n".repeat(256));
    assert_eq!(errno(File::create(long)), Some(Errno::ENAMETOOLONG));
    mounted.file(&"n".repeat(255), "");
}

fn set_attribute(path: &Path) -> Result<(), Errno> {
    let path = CString::new(path.as_os_str().as_bytes()).expect("no NUL");
    // SAFETY: both names end with a NUL, and the value has the one byte that is told.
    let set = unsafe { libc::setxattr(path.as_ptr(), c"user.name".as_ptr(), [1u8].as_ptr().cast(), 1, 0) };
    Errno::result(set).map(drop)
}

#[test]
fn space_is_that_of_the_disk_below() {
    let scratch = scratch("space");
    let mounted = Mounted::new("space", scratch.head());
    let ours = statvfs(&mounted.dir).expect("statfs");
    let below = statvfs(scratch.store.dir()).expect("statfs");
    assert_eq!(ours.name_max(), 255);
    assert_eq!(
        ours.blocks() * ours.fragment_size(),
        below.blocks() * below.fragment_size()
    );
}

#[test]
fn a_write_by_another_user_takes_the_setuid_bit_away() {
    if !geteuid().is_root() {
        return;
    }
    let scratch = scratch("setuid");
    let mounted = Mounted::new("setuid", scratch.head());
    fs::set_permissions(&mounted.dir, PermissionsExt::from_mode(0o777)).expect("set");
    for line in ["echo x >> a", "echo x > a", "truncate -s 1 a", "fallocate -l 9000 a"] {
        let path = mounted.file("a", "text");
        fs::set_permissions(&path, PermissionsExt::from_mode(0o6777)).expect("set");
        assert!(as_nobody(&mounted.dir, line), "{line}");
        let mode = fs::metadata(&path).expect("there").mode();
        assert_eq!(mode & 0o7777, 0o777, "after {line}");
        fs::remove_file(&path).expect("removed");
    }
    let path = mounted.file("a", "text");
    fs::set_permissions(&path, PermissionsExt::from_mode(0o6777)).expect("set");
    std::os::unix::fs::chown(&path, Some(NOBODY), None).expect("given away");
    assert_eq!(
        fs::metadata(&path).expect("there").mode() & 0o7777,
        0o777,
        "after chown"
    );
}

#[test]
fn the_kernel_checks_who_may_enter() {
    if !geteuid().is_root() {
        return;
    }
    let scratch = scratch("enter");
    let mounted = Mounted::new("enter", scratch.head());
    mounted.file("a", "text");
    let root = Path::new("/");
    let cat = format!("cat {}", mounted.path("a").display());
    let take = format!("mkdir {}", mounted.tag("t").display());
    assert!(!as_nobody(root, &cat), "the root directory is its owner's alone");
    fs::set_permissions(&mounted.dir, PermissionsExt::from_mode(0o755)).expect("set");
    assert!(as_nobody(root, &cat));
    assert!(!as_nobody(root, &take), "snapshots are the owner's business");
    std::os::unix::fs::chown(&mounted.dir, Some(NOBODY), Some(NOBODY)).expect("given away");
    assert!(as_nobody(root, &take), "the owner's");
    assert_eq!(names(&mounted.path(".zenith/snapshot")), ["t"]);
}

#[test]
fn the_hidden_directory_takes_shows_and_destroys_snapshots() {
    let scratch = scratch("hidden");
    let mounted = Mounted::new("hidden", scratch.head());
    let a = mounted.file("a", "old");
    fs::create_dir(mounted.tag("t")).expect("taken");
    fs::write(&a, "new").expect("written");
    assert_eq!(read(&mounted.tag("t").join("a")), "old");
    assert_eq!(names(&mounted.dir), ["a"]);
    assert_eq!(errno(fs::write(mounted.tag("t").join("a"), "")), Some(Errno::EROFS));
    assert_eq!(errno(fs::create_dir(mounted.tag("-t"))), Some(Errno::EINVAL));
    fs::remove_dir(mounted.tag("t")).expect("destroyed");
    assert_eq!(errno(fs::metadata(mounted.tag("t"))), Some(Errno::ENOENT));
    assert_eq!(names(&mounted.path(".zenith/snapshot")), [""; 0]);
}

#[test]
fn the_kernel_keeps_nothing_of_a_snapshot_that_was_replaced_elsewhere() {
    let scratch = scratch("stale");
    let mounted = Mounted::new("stale", scratch.head());
    let snapshots = mounted.path(".zenith/snapshot");
    let inside = mounted.tag("t").join("a");
    for text in ["1", "2", "3"] {
        mounted.file("a", text);
        assert_eq!(names(&snapshots), [""; 0]);
        assert_eq!(errno(fs::read_dir(mounted.tag("t"))), Some(Errno::ENOENT));
        let taken = scratch.take("t");
        assert_eq!(read(&inside), text);
        assert_eq!(names(&snapshots), ["t"]);
        assert_eq!(names(&mounted.tag("t")), ["a"]);
        mounted.mount.release_snapshot(taken.layer);
        scratch.store.destroy_snapshot(&snapshot("t")).expect("destroyed");
    }
}

#[test]
fn a_busy_mount_stays_and_a_free_one_lets_go_of_everything() {
    let scratch = scratch("busy");
    let mounted = Mounted::new("busy", scratch.head());
    let file = File::create(mounted.path("a")).expect("made");
    assert!(matches!(mounted.mount.unmount(), Err(MountError::Busy { .. })));
    (&file).write_all(b"text").expect("still there");
    drop(file);
    mounted.mount.unmount().expect("free");
    assert!(mounted.has_ended(), "and says so");
    assert_eq!(names(&mounted.dir), [""; 0]);
    mounted.mount.unmount().expect("a second time changes nothing");
    let tag = scratch.take("t").name;
    scratch
        .store
        .checkout(&tag, common::NOW)
        .expect("nobody holds the branch");
}

#[test]
fn a_mount_that_is_torn_off_frees_unlinked_files() {
    if !geteuid().is_root() {
        return;
    }
    let scratch = scratch("torn");
    let timeline = scratch.timeline();
    let mounted = Mounted::new("torn", scratch.head());
    let path = mounted.file("a", "text");
    let file = File::open(&path).expect("opened");
    let metadata = file.metadata().expect("there");
    fs::remove_file(&path).expect("removed");
    let busy = umount2(&mounted.dir, MntFlags::MNT_FORCE);
    assert_eq!(busy, Err(Errno::EBUSY), "but the kernel ends the session");
    assert!(mounted.has_ended());
    assert!(
        timeline.view().getattr(Ino(metadata.ino())).is_err(),
        "although it is open"
    );
    drop(file);
    umount2(&mounted.dir, MntFlags::MNT_DETACH).expect("what is left of it is taken away");
}

#[test]
fn an_unmount_from_outside_is_noticed() {
    let scratch = scratch("outside");
    let mounted = Mounted::new("outside", scratch.head());
    mounted.file("a", "text");
    assert!(!mounted.mount.has_ended());
    let program = if geteuid().is_root() {
        ["umount", "--"]
    } else {
        ["fusermount3", "-u"]
    };
    let status = Command::new(program[0]).arg(program[1]).arg(&mounted.dir).status();
    assert!(status.expect("unmounted").success());
    assert!(mounted.has_ended());
    assert!(mounted.mount.has_ended());
    drop(scratch.store.timeline(&main()).expect("still there"));
}

#[test]
fn nothing_is_mounted_on_a_mount() {
    let scratch = scratch("twice");
    let mounted = Mounted::new("twice", scratch.head());
    let again = Mount::new(
        scratch.head(),
        &mounted.dir,
        &Options::new("again"),
        Keeping::none(),
        || {},
    );
    assert!(matches!(again, Err(MountError::AlreadyMounted { .. })));
}

#[test]
fn a_snapshot_is_mounted_read_only() {
    let scratch = scratch("snapshot");
    let mounted = Mounted::new("snapshot-head", scratch.head());
    let file = File::create(mounted.path("a")).expect("made");
    file.write_at(b"data", 1 << 20).expect("written");
    file.sync_all().expect("synced");
    let name = scratch.take("t").name;
    let view = scratch.store.snapshot_view(&name).expect("a view");
    let sealed = Mounted::new("snapshot", Fs::of_snapshot(view));
    assert_eq!(errno(File::create(sealed.path("b"))), Some(Errno::EROFS));
    let kept = File::open(sealed.path("a")).expect("opened");
    assert_eq!(
        lseek(&kept, 0, Whence::SeekData),
        Ok(1 << 20),
        "nothing can be dirty, so holes are told"
    );
}

#[test]
fn direct_io_and_buffered_io_see_the_same_bytes() {
    let scratch = scratch("direct");
    let mounted = Mounted::new("direct", scratch.head());
    let path = mounted.file("a", &"x".repeat(8192));
    let mut options = File::options();
    let direct = match options.read(true).write(true).custom_flags(libc::O_DIRECT).open(&path) {
        Err(error) if error.kind() == ErrorKind::InvalidInput => return,
        opened => opened.expect("opened"),
    };
    let page = Page([b'y'; 4096]);
    direct.write_all_at(&page.0, 4096).expect("written");
    assert_eq!(read(&path), "x".repeat(4096) + &"y".repeat(4096));
}

#[repr(align(4096))]
struct Page([u8; 4096]);
