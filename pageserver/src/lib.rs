//! zenith's versioned page store.
mod error;
mod names;
mod stubs;
mod types;
pub use error::{Error, FsResult, Result};
pub use names::{BranchName, SnapshotName, Tag};
pub use stubs::*;
pub use types::*;
