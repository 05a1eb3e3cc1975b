//! What users and programs get wrong, and what a machine does to them: a line that says why, a hint, an exit code that
//! is not 0, and nothing lost.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;

use crate::sandbox::{Sandbox, assert_refused, sync, until};

#[test]
fn what_does_not_exist_is_named() {
    let sandbox = Sandbox::new("none");
    sandbox.refused(
        3,
        &["mount", "nope", "m"],
        "no branch named nope",
        "there are no branches yet",
    );
    sandbox.ok(&["branch", "main", "--empty"]);
    sandbox.refused(3, &["mount", "mian", "m"], "no branch named mian", "main");
    sandbox.refused(3, &["mount", "main", "m"], "m does not exist", "mkdir");
    sandbox.refused(
        3,
        &["mount", "main@x", "m"],
        "no snapshot named main@x",
        "there are no snapshots of that branch yet",
    );
    sandbox.refused(3, &["snapshot", "list", "nope"], "no branch named nope", "main");
    sandbox.refused(
        3,
        &["snapshot", "destroy", "main@x", "-y"],
        "no snapshot named main@x",
        "",
    );
    sandbox.refused(3, &["checkout", "main@x", "-y"], "no snapshot named main@x", "");
    sandbox.refused(
        3,
        &["umount", "m"],
        "nothing of this store is mounted on",
        "zenith status",
    );
    sandbox.refused(
        3,
        &["init", "--pg-bin", "/", "--store", "other"],
        "no PostgreSQL server in /",
        "--pg-bin",
    );
    sandbox.refused(
        3,
        &["status", "--store", "other"],
        "there is no store at other",
        "zenith init",
    );
}

#[test]
fn a_directory_that_cannot_be_mounted_on_is_left_as_it_is() {
    let sandbox = Sandbox::new("dirs");
    sandbox.ok(&["mount", "main", "m", "--create"]);
    fs::create_dir(sandbox.path("full")).expect("made");
    fs::write(sandbox.path("full/file"), "mine").expect("written");
    sandbox.refused(
        4,
        &["mount", "new", "full", "--create"],
        "full is not empty",
        "empty directory",
    );
    sandbox.refused(
        4,
        &["mount", "new", "full/file", "--create"],
        "file is not a directory",
        "empty directory",
    );
    sandbox.refused(
        4,
        &["mount", "new", "m", "--create"],
        "main is mounted on",
        "zenith umount",
    );
    sandbox.refused(
        4,
        &["mount", "new", "/proc", "--create"],
        "something is mounted on /proc",
        "another directory",
    );
    sandbox.refused(
        4,
        &["mount", "new", "store/layers", "--create"],
        "lies in the store",
        "outside",
    );
    sandbox.refused(
        3,
        &["mount", "new", "none/at/all", "--create"],
        "none/at does not exist",
        "make it first",
    );
    assert_eq!(fs::read_to_string(sandbox.path("full/file")).expect("readable"), "mine");
    assert_eq!(sandbox.json(&["branch"]).as_array().map(Vec::len), Some(1));
}

#[test]
fn a_branch_is_mounted_in_one_place_and_not_deleted_there() {
    let sandbox = Sandbox::new("twice");
    sandbox.ok(&["mount", "main", "m", "--create"]);
    sandbox.refused(4, &["mount", "main", "n", "--create"], "main is mounted on", "--cow");
    sandbox.refused(
        4,
        &["branch", "-d", "main", "-y"],
        "main is mounted on",
        "zenith umount",
    );
    sandbox.refused(
        4,
        &["branch", "main", "--empty"],
        "a branch named main exists",
        "another name",
    );
    assert!(!sandbox.path("n").exists());
}

#[test]
fn a_directory_inside_a_mount_is_not_mounted_on() {
    let sandbox = Sandbox::new("inside");
    sandbox.ok(&["mount", "main", "m", "--create"]);
    sandbox.refused(
        4,
        &["mount", "other", "m/x", "--create"],
        "lies in the mount of main",
        "outside",
    );
    fs::create_dir(sandbox.path("m/x")).expect("made");
    sandbox.refused(
        4,
        &["mount", "main", "m/x", "--cow", "other"],
        "lies in the mount of main",
        "outside",
    );
    assert_eq!(sandbox.json(&["branch"]).as_array().map(Vec::len), Some(1));
}

#[test]
fn a_killed_init_does_not_stand_in_the_way_of_the_next() {
    let sandbox = Sandbox::bare("half-made");
    let store = sandbox.store();
    let half_made = || {
        fs::create_dir_all(store.join("db")).expect("made");
        for name in ["lock", "probe", "db/CURRENT"] {
            fs::write(store.join(name), "half").expect("written");
        }
    };
    half_made();
    sandbox.refused(4, &["init", "--empty"], "is not empty", "an empty or a new directory");
    assert!(store.join("db/CURRENT").exists());
    fs::write(store.join("format.new"), "").expect("written");
    fs::write(store.join("mine"), "").expect("written");
    sandbox.refused(4, &["init", "--empty"], "is not empty", "an empty or a new directory");
    assert!(store.join("db/CURRENT").exists());
    fs::remove_file(store.join("mine")).expect("removed");
    sandbox.ok(&["init", "--empty"]);
    sandbox.ok(&["branch", "main", "--empty"]);
}

#[test]
fn a_second_service_is_refused() {
    let sandbox = Sandbox::new("second");
    sandbox.ok(&["start"]);
    let pid = sandbox.pid();
    let output = sandbox.run(&["start", "--foreground"]);
    assert_refused(&output, 4, "in use by another zenith service", "zenith stop");
    sandbox.ok(&["start"]);
    assert_eq!(sandbox.pid(), pid);
}

#[test]
fn a_filesystem_that_cannot_hold_a_store_is_refused_by_name() {
    let sandbox = Sandbox::bare("tmpfs");
    let dir = format!("/dev/shm/zenith-test-{}", std::process::id());
    for more in [&["--empty"] as &[&str], &[]] {
        let arguments = [&["init", "--store", &dir], more].concat();
        sandbox.refused(4, &arguments, "tmpfs, which can't hold a store", "ext4");
        assert!(!Path::new(&dir).exists());
    }
}

#[test]
fn what_is_no_store_of_ours_is_left_alone() {
    let sandbox = Sandbox::bare("foreign");
    fs::create_dir(sandbox.store()).expect("made");
    fs::write(sandbox.store().join("file"), "mine").expect("written");
    sandbox.refused(4, &["init", "--empty"], "is not empty", "an empty or a new directory");
    sandbox.refused(4, &["init"], "is not empty", "an empty or a new directory");
    sandbox.refused(3, &["branch"], "is not a zenith store", "zenith init");
    assert_eq!(
        fs::read_to_string(sandbox.store().join("file")).expect("readable"),
        "mine"
    );
    sandbox.ok(&["init", "--empty", "--store", "real"]);
    sandbox.refused(
        4,
        &["init", "--store", "real"],
        "already holds a zenith store",
        "use it as it is",
    );
}

#[test]
fn a_store_of_a_newer_format_is_left_to_a_newer_zenith() {
    let sandbox = Sandbox::new("newer");
    sandbox.ok(&["branch", "main", "--empty"]);
    sandbox.ok(&["stop"]);
    let format = sandbox.store().join("format");
    let known = fs::read_to_string(&format).expect("readable");
    fs::write(&format, "999\n").expect("written");
    sandbox.refused(4, &["branch"], "has format 999", "newer");
    sandbox.refused(4, &["start"], "has format 999", "newer");
    fs::write(&format, "nonsense\n").expect("written");
    sandbox.refused(1, &["branch"], "the store is damaged", "zenith check");
    fs::write(&format, known).expect("written");
    assert_eq!(sandbox.json(&["branch"])[0]["name"], "main");
}

#[test]
fn a_damaged_list_of_mounts_is_told() {
    let sandbox = Sandbox::new("damaged");
    fs::write(sandbox.store().join("state.json"), "{").expect("written");
    sandbox.refused(1, &["branch"], "state.json is damaged", "move it away");
    fs::remove_file(sandbox.store().join("state.json")).expect("removed");
    sandbox.ok(&["branch"]);
}

#[test]
fn a_log_filter_that_makes_no_sense_is_told() {
    let sandbox = Sandbox::new("filter");
    let output = sandbox
        .command(&["start"])
        .env("ZENITH_LOG", "zenith=loud")
        .output()
        .expect("runs");
    assert_refused(&output, 2, "ZENITH_LOG", "ZENITH_LOG=debug");
}

#[test]
fn a_request_that_is_not_understood_is_a_problem_and_changes_nothing() {
    let sandbox = Sandbox::new("rest");
    sandbox.ok(&["start"]);
    let post = |path: &str, body: &str| {
        let head = "Host: localhost\r\nConnection: close\r\nContent-Type: application/json";
        sandbox.raw(&format!(
            "POST {path} HTTP/1.1\r\n{head}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ))
    };
    let get = |path: &str| {
        sandbox.raw(&format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        ))
    };
    let bodies = [
        "",
        "{",
        "[]",
        r#"{"name":"a"}"#,
        r#"{"name":"a","start":"empty","more":1}"#,
        r#"{"name":"../a","start":"empty"}"#,
    ];
    for body in bodies {
        let answer = post("/branches", body);
        assert!(
            answer.starts_with("HTTP/1.1 400") && answer.contains("application/problem+json"),
            "{body}: {answer}"
        );
    }
    let long = format!(r#"{{"name":"{}"}}"#, "x".repeat(100_000));
    for (status, answer) in [
        (413, post("/branches", &long)),
        (400, post("/stop", "{}")),
        (
            400,
            post("/mounts", r#"{"view":"a","dir":"relative","create":true,"cow":null}"#),
        ),
        (400, get("/snapshots?branch=%2F")),
        (400, get("/snapshots?other=1")),
        (400, get("/branches/%2e%2e")),
        (405, get("/stop")),
        (404, get("/branches/none")),
        (404, get("/none")),
    ] {
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
        assert!(
            answer.contains("application/problem+json") && answer.contains("\"detail\""),
            "{answer}"
        );
    }
    assert_eq!(sandbox.json(&["branch"]).as_array().map(Vec::len), Some(0));
}

/// On a small ext4 of its own, made in a file.
#[test]
fn on_a_full_disk_commands_fail_and_nothing_is_lost() {
    let sandbox = Sandbox::bare("full").with_store("disk/store");
    small_disk(&sandbox.path("image"), &sandbox.path("disk"));
    sandbox.ok(&["init", "--empty"]);
    sandbox.ok(&["mount", "main", "m", "--create"]);
    fs::write(sandbox.path("m/kept"), "kept").expect("written");
    sync(&sandbox.path("m/kept"));
    sandbox.ok(&["snapshot", "create", "main@before"]);
    fill(&sandbox.path("m/big"));
    let many = (0..100).map(|n| sandbox.run(&["branch", &format!("b{n}"), "--empty"]));
    let refused = many.into_iter().find(|output| !output.status.success());
    assert_refused(&refused.expect("one too many"), 1, "no space left", "make space");
    let copy = ["mount", "main@before", "copy", "--create", "--cow", "copy"];
    sandbox.refused(1, &copy, "no space left", "make space");
    assert!(!sandbox.path("copy").exists());
    sandbox.ok(&["status"]);
    assert_eq!(fs::read_to_string(sandbox.path("m/kept")).expect("readable"), "kept");
    fs::remove_file(sandbox.path("m/big")).expect("removed");
    let snapshot = || sandbox.run(&["snapshot", "create", "main@after"]);
    until("the kernel has let go of the file, and there is space again", || {
        snapshot().status.success()
    });
    sandbox.ok(&["stop"]);
    sandbox.ok(&["start"]);
    assert_eq!(fs::read_to_string(sandbox.path("m/kept")).expect("readable"), "kept");
}

fn small_disk(image: &Path, disk: &Path) {
    File::create(image)
        .and_then(|image| image.set_len(128 << 20))
        .expect("made");
    fs::create_dir(disk).expect("made");
    run(Command::new("mkfs.ext4").args(["-q", "-b", "4096"]).arg(image));
    run(Command::new("mount").args(["-o", "loop"]).arg(image).arg(disk));
}

fn run(command: &mut Command) {
    let output = command.output().expect("it runs");
    assert!(output.status.success(), "{output:?}");
}

/// Writes until nothing fits any more, not even a block.
fn fill(path: &Path) {
    let mut file = File::create(path).expect("made");
    for len in [1 << 20, 4096] {
        let chunk = vec![7; len];
        let full = (0..1000).find_map(|_| file.write_all(&chunk).and_then(|()| file.sync_data()).err());
        assert_eq!(full.expect("it gets full").raw_os_error(), Some(libc::ENOSPC));
    }
}
