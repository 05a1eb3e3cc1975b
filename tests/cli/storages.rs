//! Storages that come, change and go: their options, and what is said while the disk of one is missing.

use std::fs;

use crate::sandbox::Sandbox;

fn attach(sandbox: &Sandbox, name: &str, more: &[&str]) {
    let path = format!("path={}", sandbox.path("disk").display());
    sandbox.ok(&[&["storage", "attach", "-n", name, "-c", &path], more].concat());
}

#[test]
fn who_attaches_a_storage_again_gives_it_other_options() {
    let sandbox = Sandbox::new("options");
    attach(&sandbox, "fast", &[]);
    sandbox.ok(&["pg", "create", "-n", "shop", "-s", "fast", "--no-start"]);
    attach(&sandbox, "fast", &["-c", "compression=zstd:9"]);
    let shown = sandbox.json(&["storage", "show", "fast"]);
    assert_eq!(shown[0]["options"]["compression"], "zstd:9");
    sandbox.ok(&["stop"]);
    sandbox.ok(&["start"]);
    let shown = sandbox.json(&["storage", "show", "fast"]);
    assert_eq!(shown[0]["options"]["compression"], "zstd:9");
    let path = format!("path={}", sandbox.path("disk").display());
    sandbox.refused(
        4,
        &["storage", "attach", "-n", "other", "-c", &path],
        "is the storage fast",
        "zenith storage list",
    );
    let inside = format!("path={}", sandbox.path("disk/layers").display());
    sandbox.refused(
        4,
        &["storage", "attach", "-n", "other", "-c", &inside],
        "lie in one another",
        "of its own",
    );
    sandbox.refused(
        4,
        &["storage", "detach", "fast", "--yes"],
        "shop lies in",
        "attach it again",
    );
}

#[test]
fn a_missing_disk_gives_no_name_away_and_can_be_let_go_of() {
    let sandbox = Sandbox::new("missing-disk");
    attach(&sandbox, "fast", &[]);
    sandbox.ok(&["pg", "create", "-n", "shop", "-s", "fast", "--no-start"]);
    sandbox.ok(&["branch", "plain", "--empty", "--storage", "fast"]);
    sandbox.ok(&["stop"]);
    let (disk, away) = (sandbox.path("disk"), sandbox.path("away"));
    fs::rename(&disk, &away).expect("taken away");
    // The pg's mount can't come back.
    assert_eq!(sandbox.run(&["start"]).status.code(), Some(1));
    sandbox.refused(
        4,
        &["branch", "shop", "--empty"],
        "shop is a pg in the storage fast",
        "another name",
    );
    sandbox.refused(
        3,
        &["pg", "start", "shop"],
        "no branch named shop",
        "the storage fast can't be used",
    );
    // Of a branch nobody remembers where it was: so both can't be used when the disk is back.
    sandbox.ok(&["branch", "plain", "--empty"]);
    fs::rename(&away, &disk).expect("brought back");
    sandbox.ok(&["upgrade"]);
    let shown = sandbox.json(&["storage", "show", "fast"]);
    let error = shown[0]["error"].as_str().expect("an error");
    assert!(error.contains("both local and fast have a branch plain"), "{error}");
    sandbox.ok(&["branch", "-d", "plain", "--yes"]);
    sandbox.ok(&["upgrade"]);
    sandbox.ok(&["pg", "show", "shop"]);
    sandbox.ok(&["pg", "destroy", "shop", "--yes"]);
    sandbox.ok(&["stop"]);
    fs::rename(&disk, &away).expect("taken away");
    sandbox.ok(&["start"]);
    sandbox.ok(&["storage", "detach", "fast", "--yes"]);
    fs::rename(&away, &disk).expect("brought back");
    attach(&sandbox, "slow", &[]);
    assert_eq!(sandbox.json(&["branch", "show", "plain"])["storage"], "slow");
}

#[test]
fn a_storage_is_told_from_a_store_that_no_service_runs_for() {
    let sandbox = Sandbox::new("not-a-store");
    attach(&sandbox, "fast", &[]);
    let disk = sandbox.path("disk");
    let disk = disk.to_str().expect("UTF-8");
    for command in ["status", "branch"] {
        let arguments = ["--store", disk, command];
        sandbox.refused(4, &arguments, "is a storage of the store", "storage list");
    }
    sandbox.ok(&["storage", "detach", "fast", "--yes"]);
    sandbox.ok(&["--store", disk, "branch"]);
    sandbox.ok(&["--store", disk, "stop"]);
}

/// What a killed service has begun goes; a branch of that name in a storage that has come since does not.
#[test]
fn what_is_unfinished_is_undone_only_in_the_storage_where_it_was_begun() {
    let sandbox = Sandbox::new("unfinished-elsewhere");
    attach(&sandbox, "fast", &[]);
    sandbox.ok(&["branch", "shop", "--empty", "--storage", "fast"]);
    sandbox.ok(&["stop"]);
    let state = sandbox.store().join("state.json");
    let text = fs::read_to_string(&state).expect("readable");
    let mut remembered: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let fields = remembered.as_object_mut().expect("fields");
    fields.remove("crc32c").expect("a checksum");
    let begun =
        serde_json::json!({"branch": "shop", "storage": "local", "dir": sandbox.path("begun"), "made_dir": true});
    fields["unfinished"] = serde_json::json!([begun]);
    fs::write(&state, remembered.to_string()).expect("written");
    sandbox.ok(&["start"]);
    let shown = sandbox.json(&["branch"]);
    assert!(shown.to_string().contains("\"shop\""), "{shown}");
    let text = fs::read_to_string(&state).expect("readable");
    assert!(!text.contains("begun"), "{text}");
}
