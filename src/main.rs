//! `zenith`: git for PostgreSQL data directories.
//!
//! One program, three roles. As a command it reads its arguments, asks the service over a Unix socket in the store
//! and prints the answer. As the service (`zenith start`) it owns the store: page store, mounts, REST. As the keeper it stands
//! behind the service, holds its mounts open and starts the next one when it dies.

mod api;
mod cli;
mod client;
mod error;
#[cfg(target_os = "linux")]
mod keeper;
mod launch;
mod log;
mod name;
mod output;
mod postgres;
mod service;
mod store_dir;
mod time;

/// A request that is being read when the process is killed must not be lost: see [`fusefs::ResidentBuffers`].
#[global_allocator]
static ALLOCATOR: fusefs::ResidentBuffers = fusefs::ResidentBuffers;

fn main() -> ! {
    let code = cli::run();
    // SAFETY: `_exit` only ends the process. What a command prints is flushed as it is printed, and the service has closed
    // its store, so nothing is left to do: RocksDB's static tables, which `exit` takes apart, cost a command a tenth of its time.
    unsafe { libc::_exit(code) }
}
