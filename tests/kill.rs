//! The service is killed again and again while Postgres works on its mount: no client gets an error, and nothing that
//! was acknowledged is lost.
//!
//! pgbench, clients that make and drop tables, and a ledger of acknowledged commits run on one pg; every second the service is
//! killed with SIGKILL, each time at another moment of what it is doing, and now and then it is killed while it takes over. Afterwards
//! the ledger is compared with the table, and the cluster is checked by Postgres' own tools.
//!
//! `ZENITH_KILLS=200 cargo test --release --workspace --test kill -- --nocapture` is the long form; 20 kills are the short one.

#[path = "support/ledger.rs"]
mod ledger;
#[path = "support/service.rs"]
mod service;
#[path = "support/store.rs"]
mod store;

use std::env;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ledger::Ledger;
use store::Store;

const KILLS: usize = 20;

/// Far from the ports of other tests.
const PORT: &str = "7741";

/// From one kill to the next.
const INTERVAL: Duration = Duration::from_secs(1);

/// Every so many kills the service that takes over is killed too, as soon as it has begun.
const TWICE_EVERY: usize = 7;

/// The median time that a kill may hold clients up.
const PAUSE_MAX: Duration = Duration::from_millis(300);

#[test]
fn clients_of_a_killed_service_see_a_pause_and_nothing_else() {
    let kills = env::var("ZENITH_KILLS").map_or(KILLS, |kills| kills.parse().expect("a number of kills"));
    let store = Store::new("kill");
    store.zenith(&[
        "pg",
        "create",
        "-n",
        "shop",
        "--port",
        PORT,
        "--",
        "--data-checksums",
        "--auth=trust",
    ]);
    let pg = Pg::of(&store);
    pg.run("createdb", &["bench"]);
    pg.run("pgbench", &["-i", "-q", "-s", "5", "bench"]);
    let bench = pg.spawn("pgbench", &["-n", "-c", "8", "-j", "2", "-T", "100000", "bench"]);
    let tables = pg.spawn(
        "pgbench",
        &["-n", "-c", "2", "-T", "100000", "-f", &pg.script(&store), "bench"],
    );
    let ledger = Ledger::open(&pg.conninfo("postgres"), 2, || 0).expect("the ledger opens");
    let killed = kill_repeatedly(&store, kills);
    thread::sleep(INTERVAL);
    let report = ledger.close();
    let failed = [("pgbench", bench), ("tables", tables)].map(|(name, client)| (name, errors_of(client)));
    let lost = ledger::lost(&pg.conninfo("postgres"), &report.acknowledged).expect("the ledger's table is read");
    let pauses = Pauses::after(&killed, &report);
    println!(
        "{} kills: {} client errors, {} of {} acknowledged commits lost, pause median {} ms, p90 {} ms, longest {} ms",
        killed.len(),
        report.errors.len() + failed.iter().map(|(_, errors)| errors.len()).sum::<usize>(),
        lost.len(),
        report.acknowledged.len(),
        pauses.at(50),
        pauses.at(90),
        pauses.at(100),
    );
    assert!(report.errors.is_empty(), "{:?}", report.errors);
    assert!(failed.iter().all(|(_, errors)| errors.is_empty()), "{failed:?}");
    assert!(lost.is_empty(), "{lost:?}");
    assert!(pauses.at(50) <= PAUSE_MAX.as_millis(), "{pauses:?}");
    assert!(report.acknowledged.len() > kills, "the ledger was hardly written");
    let log = fs::read_to_string(store.dir().join("pgs/shop.log")).expect("the server's log");
    let bad = ["PANIC", "Input/output error", "terminated by signal"];
    assert!(!bad.iter().any(|bad| log.contains(bad)), "{log}");
    pg.run("pg_amcheck", &["--install-missing", "--all", "--heapallindexed"]);
    store.zenith(&["pg", "stop", "shop"]);
    let data = pg.dir.clone();
    pg.run_alone("pg_checksums", &["--check", "-D", &data]);
}

/// When the service was killed.
fn kill_repeatedly(store: &Store, kills: usize) -> Vec<Instant> {
    let mut killed = Vec::new();
    for n in 0..kills {
        thread::sleep(INTERVAL);
        killed.push(Instant::now());
        service::kill_service(store.dir()).expect("the service runs");
        if n % TWICE_EVERY == TWICE_EVERY - 1 {
            let again = Instant::now();
            // As soon as there is one: it is opening the store.
            while again.elapsed() < INTERVAL && service::kill_service(store.dir()).is_none() {
                thread::yield_now();
            }
        }
    }
    killed
}

/// How long the ledger's clients waited after each kill: the longest time, among all clients, from the last answer before to the first after.
#[derive(Debug)]
struct Pauses(Vec<Duration>);

impl Pauses {
    fn after(killed: &[Instant], report: &ledger::Report) -> Pauses {
        let pause = |kill: &Instant| {
            let around = report
                .acknowledged
                .windows(2)
                .filter(|pair| pair[0].client == pair[1].client && pair[0].at <= *kill && pair[1].at > *kill);
            around.map(|pair| pair[1].at - *kill).max().unwrap_or(Duration::MAX)
        };
        let mut pauses: Vec<Duration> = killed.iter().map(pause).collect();
        pauses.sort();
        Pauses(pauses)
    }

    /// In milliseconds.
    fn at(&self, percent: usize) -> u128 {
        let rank = (self.0.len() * percent).div_ceil(100).max(1);
        self.0[rank - 1].as_millis()
    }
}

/// The pg's server, and the programs that speak to it.
struct Pg {
    bin: String,
    socket_dir: String,
    dir: String,
    user: String,
}

impl Pg {
    fn of(store: &Store) -> Pg {
        let shown = store.json(&["pg", "show", "shop"]);
        let text = |name: &str| shown[name].as_str().expect(name).to_owned();
        Pg {
            bin: text("pg_bin"),
            socket_dir: text("socket_dir"),
            dir: text("dir"),
            user: text("user"),
        }
    }

    fn conninfo(&self, database: &str) -> String {
        format!(
            "host={} port={PORT} user={} dbname={database}",
            self.socket_dir, self.user
        )
    }

    /// A program of Postgres', as the server's user.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("setpriv");
        let user = format!("--reuid={}", self.user);
        let group = format!("--regid={}", self.user);
        command.args([&user, &group, "--init-groups", &format!("{}/{program}", self.bin)]);
        command.current_dir("/").stdin(Stdio::null());
        command
    }

    fn client(&self, program: &str) -> Command {
        let mut command = self.command(program);
        command.args(["-h", &self.socket_dir, "-p", PORT]);
        command
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        succeed(self.client(program).args(arguments));
    }

    fn run_alone(&self, program: &str, arguments: &[&str]) {
        succeed(self.command(program).args(arguments));
    }

    fn spawn(&self, program: &str, arguments: &[&str]) -> Child {
        let mut command = self.client(program);
        command.args(arguments).stdout(Stdio::null()).stderr(Stdio::piped());
        command.spawn().expect("it runs")
    }

    /// Makes, fills and drops tables: files come and go, are renamed and truncated.
    fn script(&self, store: &Store) -> String {
        let path = store.path("tables.sql");
        let script = "\\set n random(1, 1000000)\n\
            create table if not exists t_:client_id as select generate_series(1, 2000) n;\n\
            create index on t_:client_id (n);\n\
            truncate t_:client_id;\n\
            vacuum full t_:client_id;\n\
            drop table t_:client_id;\n";
        fs::write(&path, script).expect("a script");
        path.to_str().expect("UTF-8").to_owned()
    }
}

fn succeed(command: &mut Command) {
    let output = command.output().expect("it runs");
    assert!(output.status.success(), "{command:?}: {output:?}");
}

/// What a client that works until it is ended complained of.
fn errors_of(mut client: Child) -> Vec<String> {
    let ended_before = client.try_wait().expect("asked");
    let pid = nix::unistd::Pid::from_raw(client.id() as i32);
    // A shell has what it starts in the background ignore SIGINT.
    let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
    let output = client.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    let complaints = said
        .lines()
        .filter(|line| line.contains("ERROR") || line.contains("error") || line.contains("FATAL"));
    let early = ended_before.map(|status| format!("it ended before its time: {status}"));
    complaints.map(String::from).chain(early).collect()
}
