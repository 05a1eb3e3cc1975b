//! `zenith`: git for PostgreSQL data directories.
//!
//! One program, two roles. As a command it reads its arguments, asks the service over a Unix socket in the store
//! and prints the answer. As the service (`zenith start`) it owns the store: page store, mounts, REST.

mod api;
mod cli;
mod client;
mod error;
mod launch;
mod name;
mod output;
mod postgres;
mod service;
mod store_dir;
mod time;

use std::process::ExitCode;

fn main() -> ExitCode {
    match cli::parse().and_then(|cli| cli.run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error.report(),
    }
}
