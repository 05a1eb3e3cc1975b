//! A ledger beside a database: what Postgres acknowledged, kept outside of it, to be compared with what it has later.
//!
//! Each client inserts rows (client, number, payload), one a transaction, and writes down every commit that was
//! acknowledged, with the time and a *position*: what the caller wants to know of the moment after the answer. A number
//! is never used again, so a commit whose answer never came may be there or not, and says nothing. After an error the
//! client writes that down, pauses and connects again.
//!
//! ```text
//!   let ledger = Ledger::open("host=/run/x user=postgres", 4, || log.len());
//!   ...                                             // kill, cut, fill the disk
//!   let report = ledger.close();
//!   let lost = lost("host=/run/x user=postgres", &report.acknowledged)?;
//! ```

use std::collections::HashMap;
use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio_postgres::{Client, Error, NoTls};

/// How long a client waits after an error before it tries again.
const PAUSE: Duration = Duration::from_millis(50);

/// An answer that takes longer is an error: no test is to hang on one.
const PATIENCE: Duration = Duration::from_secs(60);

const TABLE: &str = "CREATE TABLE IF NOT EXISTS ledger \
    (client int, number bigint, payload text NOT NULL, PRIMARY KEY (client, number))";
const INSERT: &str = "INSERT INTO ledger VALUES ($1, $2, $3)";
const ROWS: &str = "SELECT client, number, payload FROM ledger";

/// A commit that was acknowledged.
#[allow(dead_code, reason = "tests take what they need")]
#[derive(Clone, Debug)]
pub struct Commit {
    pub client: i32,
    pub number: i64,
    /// When the answer came.
    pub at: Instant,
    /// What the caller's `position` said then.
    pub position: u64,
}

/// What a client got instead of an acknowledgement.
#[allow(dead_code, reason = "tests take what they need")]
#[derive(Clone, Debug)]
pub struct Refusal {
    pub at: Instant,
    pub error: String,
}

#[derive(Default, Debug)]
pub struct Report {
    /// Each client's commits in its order.
    pub acknowledged: Vec<Commit>,
    pub errors: Vec<Refusal>,
}

/// Clients at work.
pub struct Ledger {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Report>>,
}

#[allow(dead_code, reason = "tests take what they need")]
impl Report {
    /// The longest times that a client waited from one acknowledgement to its next, the longest first.
    pub fn gaps(&self) -> Vec<Duration> {
        let neighbours = self.acknowledged.windows(2);
        let mut gaps: Vec<Duration> = neighbours
            .filter(|pair| pair[0].client == pair[1].client)
            .map(|pair| pair[1].at - pair[0].at)
            .collect();
        gaps.sort_unstable_by(|a, b| b.cmp(a));
        gaps
    }

    /// The commits that were acknowledged, and written down, up to a position.
    pub fn up_to(&self, position: u64) -> Vec<Commit> {
        let commits = self.acknowledged.iter();
        commits.filter(|commit| commit.position <= position).cloned().collect()
    }
}

#[allow(dead_code, reason = "tests take what they need")]
impl Ledger {
    /// Makes the table where it is missing, and sets the clients to work.
    pub fn open(
        connection: &str,
        clients: i32,
        position: impl Fn() -> u64 + Clone + Send + 'static,
    ) -> Result<Ledger, Error> {
        Ledger::open_for(connection, 0..clients, position)
    }

    /// As [`Ledger::open`], for clients of these numbers: a ledger that was closed is gone on with by others.
    pub fn open_for(
        connection: &str,
        clients: Range<i32>,
        position: impl Fn() -> u64 + Clone + Send + 'static,
    ) -> Result<Ledger, Error> {
        run(async { connect(connection).await?.batch_execute(TABLE).await })?;
        let stop = Arc::new(AtomicBool::new(false));
        let clients = clients.map(|number| {
            let clerk = Clerk {
                connection: connection.to_owned(),
                client: number,
                number: 0,
                stop: stop.clone(),
                report: Report::default(),
            };
            let position = position.clone();
            thread::spawn(move || run(clerk.work(position)))
        });
        let clients = clients.collect();
        Ok(Ledger { stop, clients })
    }

    /// Lets each client finish the transaction it is at.
    pub fn close(mut self) -> Report {
        self.stop.store(true, Ordering::Release);
        let mut all = Report::default();
        for client in self.clients.drain(..) {
            let report = client.join().expect("a client that ends");
            all.acknowledged.extend(report.acknowledged);
            all.errors.extend(report.errors);
        }
        all
    }
}

impl Drop for Ledger {
    /// A test that failed leaves no client at work.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}

/// The commits of `acknowledged` whose row is not there as it was written.
pub fn lost(connection: &str, acknowledged: &[Commit]) -> Result<Vec<Commit>, Error> {
    let rows = run(async { connect(connection).await?.query(ROWS, &[]).await })?;
    let kept: HashMap<(i32, i64), &str> = rows.iter().map(|row| ((row.get(0), row.get(1)), row.get(2))).collect();
    let is_kept = |commit: &&Commit| {
        let key = (commit.client, commit.number);
        kept.get(&key) == Some(&payload(key).as_str())
    };
    let missing = acknowledged.iter().filter(|commit| !is_kept(commit));
    Ok(missing.cloned().collect())
}

/// One client.
struct Clerk {
    connection: String,
    client: i32,
    number: i64,
    stop: Arc<AtomicBool>,
    report: Report,
}

impl Clerk {
    async fn work(mut self, position: impl Fn() -> u64) -> Report {
        while !self.is_to_stop() {
            if let Err(error) = self.session(&position).await {
                let at = Instant::now();
                self.report.errors.push(Refusal { at, error });
                tokio::time::sleep(PAUSE).await;
            }
        }
        self.report
    }

    /// Inserts over one connection until an error.
    async fn session(&mut self, position: &impl Fn() -> u64) -> Result<(), String> {
        let session = in_time(connect(&self.connection)).await?;
        let insert = in_time(session.prepare(INSERT)).await?;
        while !self.is_to_stop() {
            self.number += 1;
            let payload = payload((self.client, self.number));
            in_time(session.execute(&insert, &[&self.client, &self.number, &payload])).await?;
            self.report.acknowledged.push(Commit {
                client: self.client,
                number: self.number,
                at: Instant::now(),
                position: position(),
            });
        }
        Ok(())
    }

    fn is_to_stop(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

/// What the row holds: of many lengths, and no two the same.
fn payload((client, number): (i32, i64)) -> String {
    format!("{client}/{number};").repeat(1 + number as usize % 40)
}

fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(work)
}

async fn connect(connection: &str) -> Result<Client, Error> {
    let (client, traffic) = tokio_postgres::connect(connection, NoTls).await?;
    // Its errors are those of the requests that it carries.
    tokio::spawn(traffic);
    Ok(client)
}

async fn in_time<T>(answer: impl Future<Output = Result<T, Error>>) -> Result<T, String> {
    match tokio::time::timeout(PATIENCE, answer).await {
        Ok(answer) => answer.map_err(|error| match error.as_db_error() {
            Some(said) => said.to_string(),
            None => error.to_string(),
        }),
        Err(_) => Err(format!("no answer in {PATIENCE:?}")),
    }
}
