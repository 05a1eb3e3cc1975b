//! zenith's versioned page store.
//!
//! A [`Store`] holds timelines; each has one writable head, reached through a [`Timeline`], and below it layers that
//! are sealed for good and may be looked at through a [`View`]. A seal ends a head and puts an empty one on top; a
//! snapshot is a name for a sealed layer; a branch is another head on one. None of them copies anything.
//!
//! ```text
//!          snapshot a         snapshot b
//!              v                  v
//!   layer 1 <- layer 2 <- layer 3 <- head      branch main
//!                 ^
//!                 +------------------ head      branch dev, started from a
//! ```
//!
//! The life of one 8 KiB write: [`Timeline::write`] (`timeline/blocks.rs`) → `Content::overwrite` (`write.rs`) →
//! `Backing::write_at` (`layer/backing.rs`) → [`Disk::write_at`] (`disk.rs`). That of a snapshot: [`Store::create_snapshot`]
//! (`snapshot.rs`) → `Timeline::seal` → `Layer::sync`.
//!
//! Nothing here prints, reads a clock, draws random numbers or looks at the environment.

mod answers;
mod aside;
mod block_map;
mod bounded_log;
mod catalog;
mod check;
mod db;
mod disk;
mod error;
mod fields;
mod file;
mod file_table;
mod flatten;
#[cfg(fuzzing)]
pub mod fuzz;
mod layer;
mod load;
mod merge;
mod names;
mod namespace;
mod pack;
mod packing;
mod packs;
mod parts;
mod pg;
mod poison;
mod room;
mod sealed;
mod shared;
mod snapshot;
mod store;
mod sums;
mod sync_point;
mod timeline;
mod types;
mod usage;
mod view;
mod write;

pub use check::{Checks, Finding, Progress, Repair, Severity, check_closed};
pub use disk::{Call, Disk, Hook};
pub use error::{Error, FsResult, Result};
pub use names::{BranchName, SnapshotName, Tag, known_names};
pub use pack::{FileDump, FrameDump, PackDump, dump_pack};
pub use parts::{Pace, Tending};
pub use pg::PgInfo;
pub use snapshot::{Keep, SnapshotInfo};
pub use store::{Bond, BranchInfo, FORMAT, Start, Store};
pub use timeline::Timeline;
pub use types::*;
pub use usage::SnapshotBytes;
pub use view::View;
