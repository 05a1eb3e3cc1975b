//! The service's log: lines on stderr, which is the store's log file unless the service is in the foreground.

use std::env;
use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

use crate::error::{Error, Result};

/// Names what is logged, as in `debug` or `info,fusefs=trace`.
const VARIABLE: &str = "ZENITH_LOG";

const DEFAULT: &str = "info";

pub fn init() -> Result<()> {
    let wanted = env::var(VARIABLE).ok().filter(|text| !text.is_empty());
    let filter = EnvFilter::try_new(wanted.as_deref().unwrap_or(DEFAULT)).map_err(|error| {
        Error::usage(format!("{VARIABLE}: {error}")).hint("for example ZENITH_LOG=debug, or info,fusefs=trace")
    })?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr)
        // A line that doesn't fit on a full disk is lost; complaining of it on the same stderr would be a panic.
        .log_internal_errors(false);
    log.try_init()
        .map_err(|error| Error::failure(format!("start the log: {error}")))
}
