//! pgs with real servers: what a user does with them, what goes wrong, and that nothing half-made stays.

#[allow(dead_code, reason = "tests take what they need")]
#[path = "support/postgres.rs"]
mod postgres;
#[path = "support/service.rs"]
mod service;
#[path = "support/store.rs"]
mod store;

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use store::Store;

/// How long anything may take to come about.
const PATIENCE: Duration = Duration::from_secs(30);

/// For pgs that are stopped and started again: the other tests' services look for free ports from 5432 on, and would take
/// one that is free for a moment.
const FAR_PORTS: [&str; 7] = ["26501", "26502", "26503", "26504", "26505", "26506", "26507"];

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_owned()
}

/// The first column of the first row.
fn sql(store: &Store, pg: &str, statement: &str) -> String {
    let output = store.run(&["pg", "psql", pg, "--", "-XAtqc", statement]);
    assert!(output.status.success(), "{statement}: {output:?}");
    text(&output.stdout)
}

/// A command that must fail: how it ends, what it says why, and what to do.
fn refused(output: &Output, code: i32, why: &str, hint: &str) {
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.contains("error: ") && said.contains(why), "{said}");
    assert!(said.contains("HINT: ") && said.contains(hint), "{said}");
}

fn until(what: &str, there: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !there() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn names(list: &serde_json::Value) -> Vec<String> {
    let items = list.as_array().into_iter().flatten();
    items
        .filter_map(|item| Some(item["name"].as_str()?.to_owned()))
        .collect()
}

fn is_mount_point(dir: &Path) -> bool {
    let info = fs::read_to_string("/proc/self/mountinfo").expect("the list of mounts");
    info.lines()
        .any(|line| line.split(' ').nth(4).is_some_and(|at| Path::new(at) == dir))
}

#[test]
fn a_copy_keeps_its_data_when_its_source_goes_and_a_tied_one_holds_it() {
    let store = Store::new("copies");
    store.zenith(&["pg", "create", "-n", "shop", "-c", "autovacuum=off"]);
    assert_eq!(sql(&store, "shop", "show autovacuum"), "off");
    assert_eq!(sql(&store, "shop", "show data_checksums"), "on");
    sql(&store, "shop", "create table t as select generate_series(1, 1000) n");
    store.zenith(&["snapshot", "create", "shop@a", "--checkpoint"]);
    store.zenith(&["pg", "create", "-n", "tied", "--snapshot", "shop@a", "--cow"]);
    store.zenith(&["pg", "create", "-n", "copy", "--branch", "shop"]);
    refused(
        &store.run(&["pg", "destroy", "shop", "--yes"]),
        4,
        "branch tied depends on it",
        "tied",
    );
    assert_eq!(sql(&store, "shop", "select count(*) from t"), "1000", "it runs on");
    store.zenith(&["pg", "destroy", "tied", "--yes"]);
    store.zenith(&["pg", "destroy", "shop", "--yes"]);
    assert!(!store.path("shop").exists() && !store.path("tied").exists());
    assert_eq!(sql(&store, "copy", "select count(*) from t"), "1000");
    assert_eq!(names(&store.json(&["branch"])), ["copy"]);
}

#[test]
fn every_major_version_runs_and_its_copies_run_beside_it() {
    let store = Store::new("majors");
    for major in 13..=18 {
        let bin = postgres::programs(major);
        let bin = bin.to_str().expect("UTF-8");
        let (name, copy, version) = (format!("v{major}"), format!("c{major}"), major.to_string());
        store.zenith(&["pg", "create", "-n", &name, "--pg-bin", bin, "--pg-version", &version]);
        let number = sql(&store, &name, "show server_version_num");
        assert!(number.starts_with(&version), "{major} runs as {number}");
        sql(&store, &name, "create table t as select generate_series(1, 1000) n");
        let snapshot = format!("{name}@a");
        store.zenith(&["snapshot", "create", &snapshot, "--checkpoint"]);
        store.zenith(&["pg", "create", "-n", &copy, "--snapshot", &snapshot, "--cow"]);
        assert_eq!(sql(&store, &copy, "select sum(n) from t"), "500500");
        assert_eq!(store.json(&["pg", "show", &copy])["version"], major);
        store.zenith(&["pg", "destroy", &copy, "--yes"]);
        store.zenith(&["pg", "destroy", &name, "--yes"]);
    }
}

#[test]
fn a_replica_follows_its_primary_and_goes_on_by_itself_when_promoted() {
    let store = Store::new("replica");
    store.zenith(&["pg", "create", "-n", "shop"]);
    store.zenith(&["pg", "start", "--replica", "shop"]);
    sql(&store, "shop", "create table t as select generate_series(1, 1000) n");
    until("the replica has the table", || {
        sql(&store, "replica-1", "select to_regclass('t') is not null") == "t"
            && sql(&store, "replica-1", "select count(*) from t") == "1000"
    });
    assert_eq!(sql(&store, "shop", "select count(*) from pg_stat_replication"), "1");
    let used = store.json(&["pg", "show", "replica-1"])["used"]
        .as_u64()
        .expect("bytes");
    assert!(used < 20 << 20, "a replica copies nothing, but uses {used} bytes");
    refused(
        &store.run(&["pg", "start", "--replica", "replica-1"]),
        4,
        "is itself a replica",
        "primary",
    );
    store.zenith(&["pg", "promote", "replica-1"]);
    sql(&store, "replica-1", "insert into t values (0)");
    assert_eq!(sql(&store, "shop", "select count(*) from t"), "1000");
    assert_eq!(store.json(&["pg", "show", "replica-1"])["role"], "primary");
}

#[test]
fn a_server_that_does_not_start_says_why_and_the_next_command_works() {
    let store = Store::new("no-start");
    let made = store.run(&[
        "pg",
        "create",
        "-n",
        "bad",
        "-c",
        "shared_buffers=nonsense",
        "--port",
        FAR_PORTS[1],
    ]);
    refused(
        &made,
        1,
        "invalid value for parameter \"shared_buffers\"",
        "the whole log is",
    );
    let conf = store.path("bad").join("postgresql.conf");
    let mended = fs::read_to_string(&conf).expect("readable").replace("nonsense", "16MB");
    fs::write(&conf, mended).expect("writable");
    store.zenith(&["pg", "start", "bad"]);
    assert_eq!(sql(&store, "bad", "show shared_buffers"), "16MB");
    assert_eq!(sql(&store, "bad", "show wal_buffers"), "32MB");
    store.zenith(&["pg", "stop", "bad"]);

    let port = store.json(&["pg", "show", "bad"])["port"].as_u64().expect("a port");
    let port = u16::try_from(port).expect("a port");
    let holder = TcpListener::bind(("127.0.0.1", port)).expect("free");
    refused(
        &store.run(&["pg", "start", "bad"]),
        1,
        "Address already in use",
        "the whole log is",
    );
    drop(holder);
    store.zenith(&["pg", "start", "bad"]);
    let taken = store.run(&["pg", "create", "-n", "other", "--port", &port.to_string()]);
    refused(&taken, 4, "belongs to bad", "--port");
    assert!(!store.path("other").exists());

    store.zenith(&["pg", "stop", "bad"]);
    let version = store.path("bad").join("PG_VERSION");
    let right = fs::read_to_string(&version).expect("readable");
    fs::write(&version, "12\n").expect("writable");
    refused(
        &store.run(&["pg", "start", "bad"]),
        3,
        "PostgreSQL 12 was not found",
        "--pg-bin",
    );
    fs::write(&version, right).expect("writable");
    store.zenith(&["pg", "start", "bad"]);
}

#[test]
fn whoever_is_killed_no_pg_is_left_half_made() {
    let store = Store::new("killed");
    for wait in [5, 60, 250, 700] {
        let mut command = store.spawn(&["pg", "create", "-n", "shop", "--no-start", "--port", FAR_PORTS[0]]);
        thread::sleep(Duration::from_millis(wait));
        command.kill().expect("killed");
        command.wait().expect("ended");
        // What has begun goes on to its end; what hasn't never was.
        until("it is there whole or not at all", || {
            let pgs = names(&store.json(&["pg", "list"]));
            pgs == names(&store.json(&["branch"])) && (pgs.is_empty() || store.path("shop/PG_VERSION").exists())
        });
        if !names(&store.json(&["pg", "list"])).is_empty() {
            store.zenith(&["pg", "start", "shop"]);
            store.zenith(&["pg", "destroy", "shop", "--yes"]);
        }
    }
    for wait in [60, 250, 500] {
        let mut command = store.spawn(&["pg", "create", "-n", "shop", "--no-start", "--port", FAR_PORTS[0]]);
        thread::sleep(Duration::from_millis(wait));
        service::kill_service(store.dir());
        command.wait().expect("ended");
        let pgs = names(&store.json(&["pg", "list"]));
        assert_eq!(pgs, names(&store.json(&["branch"])));
        if pgs.is_empty() {
            assert!(!store.path("shop").exists() && !is_mount_point(&store.path("shop")));
        } else {
            store.zenith(&["pg", "start", "shop"]);
            store.zenith(&["pg", "destroy", "shop", "--yes"]);
        }
    }
}

#[test]
fn a_server_that_was_being_set_back_runs_again_when_the_service_is_killed() {
    let store = Store::new("half-back");
    store.zenith(&["pg", "create", "-n", "shop", "--port", FAR_PORTS[5]]);
    sql(&store, "shop", "create table t as select 1 n");
    store.zenith(&["snapshot", "create", "shop@one"]);
    for wait in [5, 20, 50, 80, 110, 140, 180, 230, 300] {
        sql(&store, "shop", "update t set n = 2");
        let mut checkout = store.spawn(&["pg", "checkout", "shop@one"]);
        thread::sleep(Duration::from_millis(wait));
        service::kill_service(store.dir());
        let told = checkout.wait().expect("ended").success();
        until("it runs again", || {
            let stopped = store.run(&["pg", "psql", "shop", "--", "-XAtqc", "select 1"]);
            text(&stopped.stdout) == "1"
        });
        let n = sql(&store, "shop", "select n from t");
        assert!(n == "1" || n == "2" && !told, "after {wait} ms: {n}");
    }
    until("nothing is left to do", || {
        let state = fs::read_to_string(store.dir().join("state.json")).expect("readable");
        state.contains("\"restarting\": null")
    });
}

#[test]
fn psql_reaches_the_pg_whichever_database_it_is_told() {
    let store = Store::new("psql");
    let port = FAR_PORTS[6];
    store.zenith(&["pg", "create", "-n", "shop", "--port", port]);
    let show = "select current_setting('port'), current_database()";
    for database in [
        &["-d", "template1"][..],
        &["template1"],
        &["--dbname=dbname=template1"],
        &["postgresql:///template1"],
    ] {
        let words = [&["pg", "psql", "shop", "--"], database, &["-XAtqc", show]].concat();
        assert_eq!(
            text(&store.run(&words).stdout),
            format!("{port}|template1"),
            "{database:?}"
        );
    }
    let elsewhere = store
        .command(&["pg", "psql", "shop", "--", "-XAtqc", show])
        .envs([("PGHOSTADDR", "127.0.0.9"), ("PGSERVICE", "none"), ("PGPORT", "1")])
        .output()
        .expect("run");
    assert_eq!(text(&elsewhere.stdout), format!("{port}|postgres"));
}

#[test]
fn a_look_into_a_snapshot_leaves_nothing_behind() {
    let store = Store::new("peek");
    store.zenith(&["pg", "create", "-n", "shop"]);
    sql(&store, "shop", "create table t as select generate_series(1, 10) n");
    store.zenith(&["snapshot", "create", "shop@a"]);
    sql(&store, "shop", "drop table t");
    let look = |statement: &str| store.run(&["snapshot", "psql", "shop@a", "--", "-XAtqc", statement]);
    assert_eq!(text(&look("select count(*) from t").stdout), "10");
    let port = sql(&store, "shop", "show port");
    let in_another = [
        "snapshot",
        "psql",
        "shop@a",
        "--",
        "-d",
        "template1",
        "-XAtqc",
        "create table x ()",
    ];
    let written = store.command(&in_another).env("PGPORT", port).output().expect("run");
    assert!(text(&written.stderr).contains("read-only transaction"), "{written:?}");
    let written = look("create table x ()");
    assert!(text(&written.stderr).contains("read-only transaction"), "{written:?}");
    assert_eq!(written.status.code(), Some(1));
    let nothing_is_left = || names(&store.json(&["branch"])) == ["shop"];
    until("the branch is gone", nothing_is_left);

    let mut looking = store.spawn(&["snapshot", "psql", "shop@a", "--", "-XAtqc", "select pg_sleep(60)"]);
    until("it is open", || names(&store.json(&["branch"])).len() == 2);
    refused(
        &store.run(&["snapshot", "destroy", "shop@a", "--yes"]),
        4,
        "depends on it",
        "first",
    );
    looking.kill().expect("killed");
    looking.wait().expect("ended");
    until("the branch is gone", nothing_is_left);
    store.zenith(&["snapshot", "destroy", "shop@a", "--yes"]);
}

#[test]
fn a_snapshot_goes_when_its_time_has_come_unless_it_is_protected() {
    let store = Store::new("ttl");
    store.zenith(&["mount", "main", "m", "--create"]);
    store.zenith(&["snapshot", "create", "main@short", "--ttl", "1s"]);
    store.zenith(&["snapshot", "create", "main@kept", "--ttl", "1s", "--protect"]);
    store.zenith(&["snapshot", "create", "main@long", "--ttl", "1h"]);
    until("the first is gone", || {
        names(&store.json(&["snapshot", "list"])) == ["main@kept", "main@long"]
    });
    refused(
        &store.run(&["snapshot", "destroy", "main@kept", "--yes"]),
        4,
        "main@kept is protected",
        "protect",
    );
    refused(&store.run(&["branch", "-d", "main", "--yes"]), 4, "mounted", "umount");
    store.zenith(&["snapshot", "rename", "main@long", "later"]);
    store.zenith(&["snapshot", "protect", "main@kept", "--off"]);
    until("the second is gone too", || {
        names(&store.json(&["snapshot", "list"])) == ["main@later"]
    });
}

#[test]
fn a_storage_holds_pgs_and_is_not_let_go_of_under_them() {
    let store = Store::new("storage");
    let place = store.dir().with_extension("fast");
    let path = format!("path={}", place.display());
    store.zenith(&[
        "storage",
        "attach",
        "-n",
        "fast",
        "-c",
        &path,
        "-c",
        "compression=zstd:3",
    ]);
    store.zenith(&["pg", "create", "-n", "shop", "-s", "fast", "--port", FAR_PORTS[2]]);
    store.zenith(&["snapshot", "create", "shop@a"]);
    assert_eq!(store.json(&["pg", "show", "shop"])["storage"], "fast");
    refused(
        &store.run(&["storage", "detach", "fast", "--yes"]),
        4,
        "shop lies in the storage fast",
        "pg destroy shop",
    );
    refused(
        &store.run(&["branch", "shop", "--empty"]),
        4,
        "exists already",
        "another name",
    );
    refused(
        &store.run(&["storage", "attach", "-t", "s3", "-n", "cloud"]),
        4,
        "not available yet",
        "path=",
    );
    refused(
        &store.run(&["pg", "create", "-n", "far", "--snapshot", "shop@a", "-s", "local"]),
        4,
        "can't go to local",
        "-s",
    );
    store.zenith(&["pg", "stop", "shop"]);
    store.zenith(&["stop"]);
    store.zenith(&["pg", "start", "shop"]);
    store.zenith(&["pg", "destroy", "shop", "--yes"]);
    store.zenith(&["storage", "detach", "fast", "--yes"]);
    assert_eq!(names(&store.json(&["storage", "list"])), ["local"]);
    assert!(place.join("format").exists(), "what is in it stays");
    fs::remove_dir_all(place).expect("removed");
}

#[test]
fn a_server_that_lost_its_mount_with_service_and_keeper_is_restarted() {
    let store = Store::new("orphan");
    let create = [
        "pg",
        "create",
        "-n",
        "shop",
        "--port",
        FAR_PORTS[3],
        "--",
        "--auth=trust",
    ];
    store.zenith(&create);
    sql(&store, "shop", "create table t as select generate_series(1, 1000) n");
    let shown = store.json(&["pg", "show", "shop"]);
    let told = |field: &str| shown[field].as_str().expect(field).to_owned();
    let write = || {
        let mut psql = Command::new(format!("{}/psql", told("pg_bin")));
        psql.args([
            "-h",
            &told("socket_dir"),
            "-p",
            FAR_PORTS[3],
            "-U",
            &told("user"),
            "postgres",
        ]);
        psql.args(["-Xqc", "create table lost ()"]).output().expect("psql runs")
    };
    for ends_by_itself in [false, true] {
        let pid = || store.json(&["pg", "show", "shop"])["pid"].as_i64();
        let old = pid().expect("a process");
        let old_dir = format!("/proc/{old}/cwd");
        service::kill_with_keeper(store.dir());
        if ends_by_itself {
            assert!(!write().status.success());
            until("it has noticed its loss", || !Path::new(&old_dir).exists());
        }
        until("another server runs", || {
            let pg = store.json(&["pg", "show", "shop"]);
            pg["status"] == "running" && pg["pid"] != old
        });
        assert_eq!(sql(&store, "shop", "select count(*) from t"), "1000");
        assert!(!Path::new(&old_dir).exists(), "the old server is gone");
    }
}

#[test]
fn a_storage_is_not_let_go_of_under_a_snapshots_mount() {
    let store = Store::new("storage-ro");
    let place = store.dir().with_extension("other");
    let other = place.to_str().expect("UTF-8");
    for command in [
        &["init", "--empty"][..],
        &["branch", "old", "--empty"],
        &["snapshot", "create", "old@s"],
        &["stop"],
    ] {
        store.zenith(&[command, &["--store", other]].concat());
    }
    store.zenith(&["storage", "attach", "-n", "other", "-c", &format!("path={other}")]);
    let dir = store.mount("old@s", "ro", &[]);
    let detach = ["storage", "detach", "other", "--yes"];
    refused(&store.run(&detach), 4, "old@s is mounted", "umount");
    store.zenith(&["umount", dir.to_str().expect("UTF-8")]);
    store.zenith(&detach);
    fs::remove_dir_all(place).expect("removed");
}

#[test]
fn a_harder_stop_overtakes_one_that_waits() {
    let store = Store::new("overtake");
    store.zenith(&["pg", "create", "-n", "shop", "--port", FAR_PORTS[4]]);
    let mut client = store.spawn(&["pg", "psql", "shop", "--", "-Xc", "select pg_sleep(60)"]);
    until("the client is there", || {
        sql(
            &store,
            "shop",
            "select count(*) from pg_stat_activity where query like 'select pg_sleep%'",
        ) == "1"
    });
    let mut smart = store.spawn(&["pg", "stop", "-m", "smart", "shop"]);
    until("it is stopping", || {
        store.json(&["pg", "show", "shop"])["status"] == "stopping"
    });
    store.zenith(&["pg", "stop", "-m", "fast", "shop"]);
    assert!(smart.wait().expect("ended").success());
    assert!(!client.wait().expect("ended").success());
    store.zenith(&["pg", "start", "shop"]);
}

#[test]
fn what_a_shell_would_take_apart_and_what_is_zeniths_to_say_is_refused_before_anything_is_made() {
    let store = Store::new("shell");
    for dir in ["$(touch x)", "a\"b", "a`id`", "a\\b", "a\nb"] {
        refused(
            &store.run(&["pg", "create", "-n", "shop", "--dir", dir]),
            2,
            "can't start a server",
            "--dir",
        );
    }
    let port = store.run(&["pg", "create", "-n", "shop", "-c", "port=5999"]);
    assert_eq!(port.status.code(), Some(2), "{port:?}");
    assert!(text(&port.stderr).contains("--port"), "{port:?}");
    assert!(names(&store.json(&["pg", "list"])).is_empty() && names(&store.json(&["branch"])).is_empty());
    let left = fs::read_dir(store.path("")).expect("readable").count();
    assert_eq!(left, 0, "nothing was made");
}
