//! The ledger that other tests lean on sees what it is there for: rows that are gone, rows that differ, and a server
//! that was away.

#[allow(dead_code, reason = "tests take what they need")]
#[path = "support/ledger.rs"]
mod ledger;
#[allow(dead_code, reason = "tests take what they need")]
#[path = "support/postgres.rs"]
mod postgres;
#[path = "support/store.rs"]
mod store;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use ledger::Ledger;
use postgres::Cluster;
use store::Store;

#[test]
fn the_ledger_misses_what_is_lost_and_nothing_else() {
    let store = Store::new("ledger");
    let data = store.mount("main", "main", &[]);
    let sockets = store.path("main.sock");
    let cluster = Cluster::new(15, &data, &sockets);
    cluster.initdb();
    cluster.start();
    let connection = format!("host={} user=postgres dbname=postgres", sockets.display());
    let position = Arc::new(AtomicU64::new(1));
    let told = position.clone();
    let ledger = Ledger::open(&connection, 2, move || told.load(Ordering::Acquire)).expect("a ledger");
    thread::sleep(Duration::from_millis(500));
    cluster.kill_9();
    position.store(2, Ordering::Release);
    cluster.start();
    thread::sleep(Duration::from_millis(500));
    let report = ledger.close();
    assert!(!report.errors.is_empty(), "the server was away");
    let before = report.up_to(1);
    assert!(!before.is_empty() && before.len() < report.acknowledged.len());
    let lost = || ledger::lost(&connection, &report.acknowledged).expect("the rows");
    assert!(lost().is_empty(), "{:?}", lost());
    cluster.sql("DELETE FROM ledger WHERE client = 0 AND number = 1");
    cluster.sql("UPDATE ledger SET payload = payload || ' ' WHERE client = 1 AND number = 2");
    let keys: Vec<_> = lost().iter().map(|commit| (commit.client, commit.number)).collect();
    assert_eq!(keys, [(0, 1), (1, 2)]);
    cluster.stop();
}
