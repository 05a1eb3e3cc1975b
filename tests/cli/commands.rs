//! The commands as a user meets them: what they do, what they print, and that each undoes or finishes what it began.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Output};

use nix::sys::stat::{Mode, umask};
use nix::unistd::{User, geteuid};

use crate::sandbox::{Sandbox, assert_refused, sync, text};

#[test]
fn init_makes_a_cluster_with_checksums_that_belongs_to_the_user_of_the_server() {
    let sandbox = Sandbox::bare("init");
    sandbox.ok(&["init"]);
    sandbox.ok(&["mount", "main", "pg", "--create"]);
    let root = fs::metadata(sandbox.path("pg")).expect("mounted");
    let server = User::from_name("postgres")
        .expect("users can be looked up")
        .expect("there is a user postgres");
    let owner = if geteuid().is_root() { server.uid } else { geteuid() };
    assert_eq!((root.uid(), root.mode() & 0o7777), (owner.as_raw(), 0o700));
    assert!(fs::exists(sandbox.path("pg/PG_VERSION")).expect("readable"));
    let script = "\"$(pg_config --bindir)/pg_controldata\" \"$0\"";
    let control = Command::new("sh")
        .args(["-c", script])
        .arg(sandbox.path("pg"))
        .output()
        .expect("it runs");
    let control = text(&control.stdout);
    assert!(
        control
            .lines()
            .any(|line| line.starts_with("Data page checksum version:") && line.ends_with('1')),
        "{control}"
    );
    let conf = fs::read_to_string(sandbox.path("pg/pg_hba.conf")).expect("readable");
    assert!(
        !conf
            .lines()
            .any(|line| !line.starts_with('#') && line.ends_with("trust")),
        "nobody is let in on trust"
    );
    assert_eq!(sandbox.mount_points().len(), 1);
    let snapshot = sandbox.json(&["snapshot", "create", "main@fresh"]);
    assert_eq!(snapshot["postgres"]["running"], false);
}

#[test]
fn what_is_in_a_store_is_its_owners_alone_also_where_the_directory_is_open_to_all() {
    let sandbox = Sandbox::bare("private");
    umask(Mode::from_bits_truncate(0o022));
    fs::create_dir(sandbox.store()).expect("made");
    fs::set_permissions(sandbox.store(), fs::Permissions::from_mode(0o755)).expect("open to all");
    sandbox.ok(&["init", "--empty"]);
    sandbox.ok(&["mount", "main", "m", "--create"]);
    let entries: Vec<_> = fs::read_dir(sandbox.store()).expect("readable").flatten().collect();
    assert!(entries.len() > 6, "{entries:?}");
    for entry in entries {
        let mode = entry.metadata().expect("there").mode();
        assert_eq!(mode & 0o077, 0, "{entry:?} has mode {mode:o}");
    }
}

#[test]
fn a_failed_initdb_shows_why_and_leaves_no_store() {
    let sandbox = Sandbox::bare("initdb-fails");
    let output = sandbox.run(&["init", "--", "--encoding=nonsense"]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.starts_with("error: initdb failed") && said.contains("nonsense\" is not a valid"),
        "{said}"
    );
    assert!(!sandbox.store().exists());
    sandbox.ok(&["init", "--empty"]);
}

#[test]
fn the_store_is_the_one_named_or_the_nearest_above() {
    let sandbox = Sandbox::bare("nearest").with_store("a/.zenith");
    let inner = sandbox.path("a/b");
    fs::create_dir_all(&inner).expect("made");
    let run = |dir: &Path, arguments: &[&str]| {
        sandbox
            .command(arguments)
            .env_remove("ZENITH_DIR")
            .current_dir(dir)
            .output()
            .expect("runs")
    };
    assert!(run(&sandbox.path("a"), &["init", "--empty"]).status.success());
    let store = sandbox.store();
    let status = run(&inner, &["start", "--json"]);
    assert!(
        text(&status.stdout).contains(store.to_str().expect("UTF-8")),
        "{status:?}"
    );
    fs::create_dir(sandbox.path("a/m")).expect("made");
    assert!(run(&inner, &["mount", "main", "../m", "--create"]).status.success());
    let within = run(&sandbox.path("a/m"), &["status"]);
    assert!(
        within.status.success(),
        "a mount's own .zenith is passed over: {within:?}"
    );
    assert!(run(&inner, &["stop", "--force"]).status.success());
}

#[test]
fn a_store_whose_path_is_longer_than_a_socket_address_works() {
    let sandbox = Sandbox::bare("long");
    let deep = sandbox.path(&format!("{}/{}", "d".repeat(100), "e".repeat(100)));
    let store = deep.to_str().expect("UTF-8");
    fs::create_dir_all(&deep).expect("made");
    sandbox.ok(&["--store", store, "init", "--empty"]);
    sandbox.ok(&["--store", store, "branch", "one", "--empty"]);
    assert_eq!(sandbox.json(&["--store", store, "branch"])[0]["name"], "one");
    sandbox.ok(&["--store", store, "stop"]);
}

#[test]
fn branches_are_listed_forked_and_deleted() {
    let sandbox = Sandbox::new("branches");
    assert!(sandbox.ok(&["branch"]).contains("no branches yet"));
    sandbox.ok(&["branch", "main", "--empty"]);
    sandbox.ok(&["snapshot", "create", "main@one"]);
    sandbox.ok(&["branch", "live"]);
    sandbox.ok(&["branch", "old", "main@one"]);
    let branches = sandbox.json(&["branch"]);
    let told: Vec<_> = branches
        .as_array()
        .expect("a list")
        .iter()
        .map(|b| (&b["name"], &b["parent"]))
        .collect();
    assert_eq!(
        format!("{told:?}").replace("String", ""),
        r#"[(("main"), Null), (("live"), ("main")), (("old"), ("main@one"))]"#
    );
    sandbox.refused(
        4,
        &["branch", "-d", "main", "--yes"],
        "main can't be destroyed",
        "destroy branch",
    );
    sandbox.refused(4, &["branch", "-d", "old"], "not confirmed", "--yes");
    sandbox.ok(&["branch", "-d", "old", "--yes"]);
    assert!(!sandbox.ok(&["branch"]).contains("old"));
}

#[test]
fn a_snapshot_is_mounted_read_only_and_a_copy_of_it_is_not() {
    let sandbox = Sandbox::new("views");
    sandbox.ok(&["mount", "main", "m", "--create"]);
    fs::write(sandbox.path("m/file"), "before").expect("written");
    sync(&sandbox.path("m/file"));
    sandbox.ok(&["snapshot", "create", "main@s"]);
    fs::write(sandbox.path("m/file"), "after").expect("written");
    sandbox.ok(&["mount", "main@s", "ro", "--create"]);
    assert_eq!(read(&sandbox, "ro/file"), "before");
    let refused = fs::write(sandbox.path("ro/file"), "x").expect_err("read-only");
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    sandbox.ok(&["mount", "main@s", "cow", "--create", "--cow", "copy"]);
    fs::write(sandbox.path("cow/file"), "elsewhere").expect("written");
    assert_eq!(
        [read(&sandbox, "m/file"), read(&sandbox, "ro/file")],
        ["after", "before"]
    );
    sandbox.refused(4, &["snapshot", "destroy", "main@s", "-y"], "main@s", "");
    for dir in ["ro", "cow"] {
        sandbox.ok(&["umount", dir]);
    }
    sandbox.ok(&["branch", "-d", "copy", "-y"]);
    sandbox.ok(&["snapshot", "destroy", "main@s", "-y"]);
}

#[test]
fn a_mount_that_fails_leaves_neither_branch_nor_directory() {
    let sandbox = Sandbox::new("undo");
    sandbox.ok(&["branch", "main", "--empty"]);
    fs::create_dir(sandbox.path("full")).expect("made");
    File::create(sandbox.path("full/file")).expect("made");
    sandbox.refused(
        4,
        &["mount", "main", "full", "--cow", "copy"],
        "is not empty",
        "empty directory",
    );
    sandbox.refused(
        4,
        &["mount", "new", "full", "--create"],
        "is not empty",
        "empty directory",
    );
    sandbox.refused(
        3,
        &["mount", "main@none", "dir", "--create"],
        "no snapshot named main@none",
        "no snapshots of that branch yet",
    );
    assert!(!sandbox.path("dir").exists());
    assert_eq!(sandbox.json(&["branch"]).as_array().map(Vec::len), Some(1));
    assert_eq!(sandbox.json(&["status"])["mounts"].as_array().map(Vec::len), Some(0));
}

#[test]
fn checkout_goes_back_and_forward_again_also_where_the_branch_is_mounted() {
    let sandbox = Sandbox::new("checkout");
    sandbox.ok(&["mount", "main", "m", "--create"]);
    for state in ["one", "two"] {
        fs::write(sandbox.path("m/file"), state).expect("written");
        sync(&sandbox.path("m/file"));
        sandbox.ok(&["snapshot", "create", &format!("main@{state}")]);
    }
    fs::write(sandbox.path("m/file"), "three").expect("written");
    sandbox.refused(4, &["checkout", "main@one"], "Set main back to main@one?", "--yes");
    let kept = sandbox.json(&["checkout", "main@one", "--yes"])["kept"].clone();
    assert_eq!(read(&sandbox, "m/file"), "one");
    sandbox.ok(&["checkout", kept.as_str().expect("a name"), "--yes"]);
    assert_eq!(
        read(&sandbox, "m/file"),
        "three",
        "an unmount brings everything to the store first"
    );
    let open = File::open(sandbox.path("m/file")).expect("opened");
    sandbox.refused(4, &["checkout", "main@two", "--yes"], "is in use", "stop what uses it");
    drop(open);
    assert_eq!(read(&sandbox, "m/file"), "three");
}

#[test]
fn the_hidden_directory_takes_shows_and_destroys_snapshots() {
    let sandbox = Sandbox::new("hidden");
    sandbox.ok(&["mount", "main", "m", "--create"]);
    fs::write(sandbox.path("m/file"), "then").expect("written");
    sync(&sandbox.path("m/file"));
    fs::create_dir(sandbox.path("m/.zenith/snapshot/s")).expect("taken");
    fs::write(sandbox.path("m/file"), "now").expect("written");
    assert_eq!(read(&sandbox, "m/.zenith/snapshot/s/file"), "then");
    assert_eq!(sandbox.json(&["snapshot", "list", "main"])[0]["name"], "main@s");
    sandbox.ok(&["snapshot", "create", "main@t"]);
    sandbox.ok(&["mount", "main@t", "t", "--create"]);
    let refused = fs::remove_dir(sandbox.path("m/.zenith/snapshot/t")).expect_err("it is mounted");
    assert_eq!(refused.kind(), std::io::ErrorKind::ResourceBusy);
    sandbox.ok(&["snapshot", "destroy", "main@s", "--yes"]);
    assert!(!sandbox.path("m/.zenith/snapshot/s").exists());
    sandbox.ok(&["umount", "t"]);
    fs::remove_dir(sandbox.path("m/.zenith/snapshot/t")).expect("destroyed");
    assert_eq!(sandbox.json(&["snapshot", "list"]).as_array().map(Vec::len), Some(0));
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let sandbox = Sandbox::new("pipe");
    let script = "\"$0\" branch | true; exit ${PIPESTATUS[0]}";
    let zenith = env!("CARGO_BIN_EXE_zenith");
    let output = Command::new("bash")
        .args(["-c", script, zenith])
        .env("ZENITH_DIR", sandbox.store())
        .output();
    let output: Output = output.expect("bash runs");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn wrong_arguments_and_bad_names_are_told_apart_from_failures() {
    let sandbox = Sandbox::new("usage");
    for name in ["a/b", ".x", "a b", "", &"x".repeat(64)] {
        let output = sandbox.run(&["branch", name, "--empty"]);
        assert_refused(&output, 2, "is not a valid name", "1 to 63 characters");
    }
    sandbox.refused(2, &["snapshot", "create", "main"], "named BRANCH@TAG", "");
    sandbox.ok(&["branch", "main", "--empty"]);
    sandbox.refused(2, &["snapshot", "create", "main@CURRENT"], "reserved", "another name");
    assert_eq!(sandbox.run(&["branch", "--nonsense"]).status.code(), Some(2));
    assert_eq!(sandbox.run(&["--help"]).status.code(), Some(0));
}

fn read(sandbox: &Sandbox, name: &str) -> String {
    fs::read_to_string(sandbox.path(name)).expect("readable")
}
