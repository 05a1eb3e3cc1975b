//! `zenith check`: what it says of sound and of damaged stores, with the service and without, and what a repair does.

use std::fs;
use std::path::PathBuf;

use crate::sandbox::{Sandbox, text, until};

/// A branch with a snapshot of one file in layer 1, not mounted.
fn with_snapshot(name: &str) -> Sandbox {
    let sandbox = Sandbox::new(name);
    sandbox.ok(&["mount", "main", "m", "--create"]);
    fs::write(sandbox.path("m/file"), "twelve bytes").expect("written");
    sandbox.ok(&["snapshot", "create", "main@s"]);
    sandbox.ok(&["umount", "m"]);
    until("the sealed blocks have checksums", || {
        sandbox.json(&["storage", "list"])[0]["unsummed"] == 0
    });
    sandbox
}

/// The one backing file of the first layer.
fn backing_file(sandbox: &Sandbox) -> PathBuf {
    let layer = sandbox.store().join("layers/00000001");
    let mut files = fs::read_dir(layer).expect("the layer's directory");
    files.next().expect("a file").expect("its name").path()
}

#[test]
fn a_sound_store_is_sound_with_the_service_and_without() {
    let sandbox = with_snapshot("check-sound");
    assert_eq!(sandbox.ok(&["check"]), "nothing is damaged\n");
    sandbox.ok(&["mount", "main", "m"]);
    let in_use =
        "note: local: layer 00000003: the branch main is in use: what was written since its last seal was left out\n";
    assert_eq!(sandbox.ok(&["check"]), format!("{in_use}nothing is damaged\n"));
    sandbox.ok(&["stop"]);
    assert_eq!(sandbox.ok(&["check", "local"]), "nothing is damaged\n");
    assert_eq!(sandbox.json(&["check"])["sound"], true);
    assert!(!sandbox.store().join("zenith.sock").exists(), "no service was started");
    sandbox.refused(3, &["check", "nowhere"], "no storage named nowhere", "local");
}

#[test]
fn what_is_not_ours_in_a_layer_keeps_nobody_out_and_is_put_aside() {
    let sandbox = with_snapshot("check-foreign");
    let foreign = sandbox.store().join("layers/00000001/zzz");
    fs::write(&foreign, "somebody's").expect("written");
    sandbox.ok(&["stop"]);
    sandbox.ok(&["mount", "main", "m"]);
    let kept = fs::read_to_string(sandbox.path("m/file")).expect("readable");
    assert_eq!(kept, "twelve bytes");
    sandbox.ok(&["umount", "m"]);
    let told = sandbox.ok(&["check", "--repair"]);
    assert!(
        told.contains("repaired: local: layer 00000001: zzz is no backing file"),
        "{told}"
    );
    assert!(!foreign.exists(), "{told}");
    let lost = fs::read_dir(sandbox.store().join("lost")).expect("listed");
    assert_eq!(lost.count(), 1);
}

#[test]
fn a_file_that_is_cut_or_gone_is_told_in_every_form() {
    let sandbox = with_snapshot("check-cut");
    let file = backing_file(&sandbox);
    let name = file.file_name().expect("a name").to_string_lossy().into_owned();
    fs::write(&file, "seven b").expect("written");
    let told = format!("damage: local: layer 00000001: the backing file {name} has 7 bytes instead of 12\n");
    for running in [true, false] {
        let output = sandbox.run(&["check"]);
        assert_eq!(
            (output.status.code(), text(&output.stdout)),
            (Some(1), told.clone()),
            "{running}"
        );
        assert!(
            text(&output.stderr).contains("error: there is damage in 1 place\nHINT: "),
            "{output:?}"
        );
        let output = sandbox.run(&["check", "-o", "json"]);
        let found: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(
            (found["sound"].as_bool(), &found["findings"][0]["where"]),
            (Some(false), &"layer 00000001".into())
        );
        sandbox.ok(&["stop"]);
    }
    fs::remove_file(&file).expect("removed");
    let output = sandbox.run(&["check", "--repair"]);
    let told = format!("damage: local: layer 00000001: the backing file {name} is missing\n");
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(1), told));
    sandbox.refused(
        1,
        &["mount", "main", "m"],
        "the store is damaged: layer 00000001",
        "zenith check",
    );
}

#[test]
fn another_byte_in_a_sealed_block_is_an_error_that_names_it() {
    let sandbox = with_snapshot("check-byte");
    fs::write(backing_file(&sandbox), "twelve bites").expect("written");
    sandbox.ok(&["mount", "main@s", "s", "--create"]);
    let error = fs::read(sandbox.path("s/file")).expect_err("refused");
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    let log = fs::read_to_string(sandbox.store().join("service.log")).expect("readable");
    assert!(
        log.contains("layer 00000001: block 0 of the file 10 is not what was sealed"),
        "{log}"
    );
    let told = "damage: local: layer 00000001: file: block 0 is not what was sealed; part of main, main@s\n";
    assert_eq!(sandbox.ok(&["check"]), "nothing is damaged\n");
    for running in [true, false] {
        let output = sandbox.run(&["check", "--read-data", "--limit", "1MiB"]);
        assert_eq!(
            (output.status.code(), text(&output.stdout)),
            (Some(1), told.to_owned()),
            "{running}"
        );
        assert_eq!(
            sandbox.ok(&["check", "--read-data", "--from", "2"]),
            "nothing is damaged\n"
        );
        if running {
            sandbox.ok(&["umount", "s"]);
            sandbox.ok(&["stop"]);
        }
    }
    for (bad, why) in [
        (["--from", "x"], "no layer"),
        (["--limit", "0"], "nothing can be read"),
        (["--limit", "x"], "no size"),
    ] {
        let output = sandbox.run(&[&["check", "--read-data"][..], &bad].concat());
        assert!(text(&output.stderr).contains(why), "{output:?}");
    }
}

#[test]
fn a_branch_that_is_damaged_takes_no_other_with_it_when_the_service_dies() {
    let sandbox = with_snapshot("check-others");
    sandbox.ok(&["mount", "main", "m"]);
    sandbox.ok(&["branch", "other", "--empty"]);
    sandbox.ok(&["mount", "other", "o", "--create"]);
    fs::write(sandbox.path("o/file"), "sound").expect("written");
    fs::remove_file(backing_file(&sandbox)).expect("removed");
    sandbox.kill_service();
    let status = sandbox.ok(&["status"]);
    assert!(status.contains("the backing file 10 is missing"), "{status}");
    assert_eq!(fs::read_to_string(sandbox.path("o/file")).expect("readable"), "sound");
    sandbox.ok(&["umount", "o"]);
    sandbox.ok(&["umount", "m"]);
    sandbox.ok(&["stop"]);
}

#[test]
fn a_damaged_log_is_refused_until_it_is_repaired_and_then_kept() {
    let sandbox = with_snapshot("check-log");
    sandbox.kill_with_keeper();
    let log = fs::read_dir(sandbox.store().join("db"))
        .expect("db")
        .flatten()
        .map(|entry| entry.path());
    let log = log
        .filter(|path| path.extension().is_some_and(|ext| ext == "log"))
        .max()
        .expect("a log");
    let mut bytes = fs::read(&log).expect("read");
    bytes[20] ^= 1;
    fs::write(&log, &bytes).expect("written");
    sandbox.refused(1, &["branch"], "is damaged at byte 0", "zenith check");
    let output = sandbox.run(&["check"]);
    assert!(
        !output.status.success() && text(&output.stdout).contains("put the log aside in lost/"),
        "{output:?}"
    );
    sandbox.ok(&["check", "--repair"]);
    sandbox.ok(&["branch"]);
    let kept = fs::read_dir(sandbox.store().join("lost")).expect("lost").flatten();
    assert!(
        kept.map(|entry| entry.path())
            .any(|path| fs::read(path).is_ok_and(|kept| kept == bytes))
    );
    assert!(sandbox.ok(&["check"]).contains("was put aside"));
}

#[test]
fn what_is_left_over_is_no_damage_and_goes_with_a_repair() {
    let sandbox = with_snapshot("check-leftover");
    let half_made = sandbox.store().join("layers/00000001/77.new");
    fs::write(&half_made, "").expect("written");
    let unknown = sandbox.store().join("layers/00000099");
    fs::create_dir(&unknown).expect("made");
    fs::write(unknown.join("1f"), "somebody's").expect("written");
    let found = sandbox.json(&["check", "--repair"]);
    assert_eq!(
        (&found["sound"], found["findings"].as_array().map(Vec::len)),
        (&true.into(), Some(2)),
        "{found}"
    );
    assert!(!half_made.exists() && !unknown.exists());
    let aside = sandbox.store().join("lost/layers-00000099.0/1f");
    assert_eq!(fs::read_to_string(aside).expect("put aside"), "somebody's");
    sandbox.ok(&["mount", "main", "m"]);
}
