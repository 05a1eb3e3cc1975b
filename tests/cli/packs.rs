//! A compressed storage: what is sealed there is packed while it is in use, read through mounts as it was, told when it is damaged, and shown by
//! `zenith layer dump`.

use std::fs;
use std::path::PathBuf;

use crate::sandbox::{Sandbox, text, until};

const LINE: &str = "a line that is in the file again and again\n";

/// Attaches a compressed storage; returns where it lies.
fn attach(sandbox: &Sandbox) -> PathBuf {
    let dir = sandbox.path("packed");
    let path = format!("path={}", dir.display());
    let compression = ["-c", "compression=zstd:5", "-n", "packed"];
    sandbox.ok(&[&["storage", "attach", "-c", &path][..], &compression].concat());
    dir
}

/// A branch in a compressed storage, mounted on `m`, with a snapshot of a file whose layer is packed.
fn packed(name: &str) -> (Sandbox, PathBuf) {
    let sandbox = Sandbox::new(name);
    let dir = attach(&sandbox);
    sandbox.ok(&["branch", "big", "--empty", "--storage", "packed"]);
    sandbox.ok(&["mount", "big", "m", "--create"]);
    fs::write(sandbox.path("m/file"), LINE.repeat(100_000)).expect("written");
    sandbox.ok(&["snapshot", "create", "big@s"]);
    until("the layer is packed", || {
        sandbox.json(&["storage", "show", "packed"])[0]["unpacked"] == 0
    });
    let mut packs = fs::read_dir(dir.join("packs")).expect("packs");
    let pack = packs.next().expect("one").expect("its name").path();
    (sandbox, pack)
}

#[test]
fn what_is_packed_is_small_and_reads_as_it_was() {
    let (sandbox, pack) = packed("packs");
    let whole = LINE.repeat(100_000);
    assert!(pack.metadata().expect("stat").len() < whole.len() as u64 / 100);
    // It goes when the database knows the pack durably.
    until("only the head has a directory of its own", || {
        fs::read_dir(sandbox.path("packed/layers")).expect("listed").count() == 1
    });
    let read = |name: &str| fs::read_to_string(sandbox.path(name)).expect("read");
    assert!(read("m/file") == whole);
    fs::write(sandbox.path("m/other"), "the head is as it was before").expect("written");
    sandbox.ok(&["mount", "big@s", "then", "--create"]);
    assert!(read("then/file") == whole);
    sandbox.ok(&["stop"]);
    sandbox.ok(&["start"]);
    assert!(read("then/file") == whole && read("m/file") == whole);
    assert_eq!(read("m/other"), "the head is as it was before");
    assert_eq!(sandbox.run(&["check", "packed", "--read-data"]).status.code(), Some(0));
}

#[test]
fn a_pack_is_shown_and_what_is_none_is_refused() {
    let (sandbox, pack) = packed("pack-dump");
    let pack = pack.to_str().expect("UTF-8");
    let told = sandbox.ok(&["layer", "dump", pack]);
    assert!(
        told.contains("INODE") && told.contains("pack version 1: 1 files with"),
        "{told}"
    );
    assert!(sandbox.ok(&["layer", "dump", "--frames", pack]).contains("OFFSET"));
    assert_eq!(sandbox.json(&["layer", "dump", pack])["files"][0]["size"], 4_300_000);
    let store = sandbox.store().to_str().expect("UTF-8").to_owned();
    sandbox.refused(1, &["layer", "dump", &store], "it is no regular file", "packs");
    sandbox.refused(
        1,
        &["layer", "dump", &format!("{store}/format")],
        "it is too short",
        "packs",
    );
    sandbox.refused(1, &["layer", "dump", "nowhere"], "no such file", "packs");
}

#[test]
fn a_damaged_pack_is_an_error_of_the_read_and_told_by_the_check() {
    let (sandbox, pack) = packed("pack-damage");
    sandbox.ok(&["stop"]);
    let mut bytes = fs::read(&pack).expect("read");
    bytes[100] ^= 1;
    fs::write(&pack, bytes).expect("written");
    sandbox.ok(&["start"]);
    let error = fs::read(sandbox.path("m/file")).expect_err("damaged");
    assert_eq!(error.raw_os_error(), Some(5));
    let output = sandbox.run(&["check", "packed", "--read-data"]);
    let told = text(&output.stdout);
    assert!(told.contains("file: 32 blocks are not what was sealed"), "{told}");
    assert!(told.contains("part of big, big@s"), "{told}");
    let name = pack.file_name().expect("a name").to_string_lossy().into_owned();
    assert!(told.contains(&format!("packs/{name}")), "{told}");
    fs::remove_file(&pack).expect("removed");
    let gone = sandbox.run(&["check", "packed", "--read-data"]);
    let told = text(&gone.stdout);
    assert_eq!(told.matches("is missing").count(), 1, "{told}");
}

#[test]
fn an_upkeep_that_fails_is_shown_and_goes_on_later() {
    let sandbox = Sandbox::new("upkeep-fails");
    let dir = attach(&sandbox);
    fs::write(dir.join("packs"), "in the way").expect("written");
    sandbox.ok(&["branch", "big", "--empty", "--storage", "packed"]);
    sandbox.ok(&["mount", "big", "m", "--create"]);
    fs::write(sandbox.path("m/file"), LINE).expect("written");
    sandbox.ok(&["snapshot", "create", "big@s"]);
    let error = || sandbox.json(&["storage", "show", "packed"])[0]["upkeep_error"].clone();
    until("the upkeep fails", || error().is_string());
    let table = sandbox.ok(&["storage", "list"]);
    assert!(table.contains("its upkeep fails: "), "{table}");
    assert_eq!(fs::read_to_string(sandbox.path("m/file")).expect("read"), LINE);
    fs::remove_file(dir.join("packs")).expect("removed");
    sandbox.ok(&["stop"]);
    sandbox.ok(&["start"]);
    until("the layer is packed", || {
        sandbox.json(&["storage", "show", "packed"])[0]["unpacked"] == 0
    });
    assert!(error().is_null());
}
