//! Stock Postgres on a mount keeps what it promises: every commit it acknowledged outlives its death, and its own
//! tools find nothing wrong with its files.

#[path = "support/postgres.rs"]
mod postgres;
#[path = "support/store.rs"]
mod store;

use std::process::Output;
use std::thread;
use std::time::Duration;

use postgres::Cluster;
use store::Store;

const CLIENTS: u64 = 8;

/// Each transaction of pgbench adds the same number in four tables.
const BALANCED: &str = "SELECT a.sum = b.sum AND b.sum = t.sum AND t.sum = h.sum FROM \
    (SELECT sum(abalance) FROM pgbench_accounts) a, (SELECT sum(bbalance) FROM pgbench_branches) b, \
    (SELECT sum(tbalance) FROM pgbench_tellers) t, (SELECT coalesce(sum(delta), 0) AS sum FROM pgbench_history) h";

#[test]
fn postgres_15_survives_kill_9_on_a_mount() {
    survives_kill_9(15);
}

#[test]
fn postgres_18_survives_kill_9_on_a_mount() {
    survives_kill_9(18);
}

#[test]
fn a_view_of_a_busy_postgres_recovers_by_itself() {
    let store = Store::new("busy");
    let original = filled_cluster(&store, 15);
    let load = original.spawn("pgbench", &["-n", "-c", "8", "-j", "2", "-T", "6"]);
    thread::sleep(Duration::from_secs(2));
    store.zenith(&["snapshot", "create", "main@busy"]);
    let data = store.mount("main@busy", "copy", &["--cow", "copy"]);
    let copy = Cluster::new(15, &data, &store.path("copy.sock"));
    copy.start();
    assert_eq!(copy.sql(BALANCED), "t");
    copy.run("pgbench", &["-n", "-c", "2", "-t", "200"]);
    assert!(load.wait().status.success(), "the original's clients never noticed");
    for cluster in [&original, &copy] {
        assert_eq!(cluster.sql(BALANCED), "t");
        cluster.check();
        cluster.stop();
    }
}

fn survives_kill_9(major: u32) {
    let store = Store::new(&format!("kill-{major}"));
    let cluster = filled_cluster(&store, major);
    let load = cluster.spawn("pgbench", &["-n", "-c", "8", "-j", "2", "-T", "60"]);
    thread::sleep(Duration::from_secs(4));
    cluster.kill_9();
    let acknowledged = transactions(&load.wait());
    cluster.start();
    let kept: u64 = cluster
        .sql("SELECT count(*) FROM pgbench_history")
        .parse()
        .expect("a count");
    // A client can have had one commit under way whose answer it never got.
    assert!(
        (acknowledged..=acknowledged + CLIENTS).contains(&kept),
        "{kept} of {acknowledged} commits are there"
    );
    assert!(acknowledged > 0, "pgbench was at work");
    assert_eq!(cluster.sql(BALANCED), "t");
    cluster.check();
    cluster.stop();
}

fn filled_cluster(store: &Store, major: u32) -> Cluster {
    let data = store.mount("main", "main", &[]);
    let cluster = Cluster::new(major, &data, &store.path("main.sock"));
    cluster.initdb();
    cluster.start();
    cluster.run("pgbench", &["-i", "-q", "-s", "8"]);
    cluster
}

/// How many transactions pgbench saw committed; it says so also when the server went away.
fn transactions(output: &Output) -> u64 {
    let said = String::from_utf8_lossy(&output.stdout);
    let line = said
        .lines()
        .find_map(|line| line.strip_prefix("number of transactions actually processed: "));
    line.and_then(|count| count.split('/').next()?.parse().ok())
        .unwrap_or_else(|| panic!("not said:\n{said}"))
}
