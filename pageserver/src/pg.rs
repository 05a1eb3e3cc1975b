//! What the page store knows of Postgres' files, and the only place that knows it.
//!
//! Names and formats are those of PostgreSQL 13 to 18: "Database File Layout" in its manual, `src/include/catalog/pg_control.h`
//! and `src/backend/backup/basebackup.c` (what a base backup leaves out).

mod control;
pub mod wal;

pub use control::ControlFile;

use serde::{Deserialize, Serialize};

/// What a snapshot tells about the Postgres cluster in it, from `PG_VERSION` and `global/pg_control`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PgInfo {
    /// The major version as `PG_VERSION` has it.
    pub version: String,
    pub system_id: u64,
    /// Where recovery of this snapshot starts to read WAL.
    pub redo_lsn: u64,
    pub wal_timeline: u32,
    /// Whether the server was running, so that a view of the snapshot replays WAL when it starts.
    pub in_production: bool,
}

/// Path of the control file in a data directory.
pub const CONTROL_FILE: [&str; 2] = ["global", "pg_control"];

/// Name of the file that holds the major version.
pub const VERSION_FILE: &str = "PG_VERSION";

/// Whether a directory of this name holds WAL, whose writes must reach the store in order.
pub fn is_wal_dir(name: &[u8]) -> bool {
    name == b"pg_wal"
}

/// Files of the running server's process; in a copy of the data directory they would name somebody else's.
const PROCESS_FILES: [&str; 2] = ["postmaster.pid", "postmaster.opts"];

/// Further files that a base backup leaves out.
const BACKUP_LEAVES_OUT: [&str; 3] = ["postgresql.auto.conf.tmp", "current_logfiles.tmp", "pg_internal.init"];

/// Directories whose content a base backup leaves out. Replication slots belong to the server they were made on.
const BACKUP_EMPTIES: [&str; 7] = [
    "pg_dynshmem",
    "pg_notify",
    "pg_replslot",
    "pg_serial",
    "pg_snapshots",
    "pg_stat_tmp",
    "pg_subtrans",
];

/// What a new view of a running server's snapshot is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// Another server beside the first.
    Clone,
    /// The same server, set back.
    Rollback,
}

/// Whether a file at the root of a data directory must not be carried into such a view.
pub fn leaves_out_file(purpose: Purpose, name: &[u8]) -> bool {
    let in_list = |list: &[&str]| list.iter().any(|file| file.as_bytes() == name);
    in_list(&PROCESS_FILES) || (purpose == Purpose::Clone && in_list(&BACKUP_LEAVES_OUT))
}

/// Whether a directory at the root of a data directory must be empty in such a view.
pub fn empties_dir(purpose: Purpose, name: &[u8]) -> bool {
    purpose == Purpose::Clone && BACKUP_EMPTIES.iter().any(|dir| dir.as_bytes() == name)
}
