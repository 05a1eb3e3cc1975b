//! zenith's FUSE side: the kernel's requests on one hand, a store's trees on the other.
//!
//! ```text
//!   kernel ── /dev/fuse ── fuse (decodes, replies) ── fs (what files mean) ── pageserver
//!                 │                                     └─ control: .zenith/snapshot/TAG
//!               mount (mounts, watches, unmounts)
//! ```
//!
//! Only [`fuse`] and [`mount`] name a type of fuser; [`fs`] can be tested without a mount. A file handle carries
//! no state and there is one descriptor of `/dev/fuse` for a mount, so that another process can take it over.

mod clock;
mod control;
mod errno;
mod fs;
mod fuse;
mod lookups;
mod mount;
mod node;
mod resident;

pub use control::{CONTROL_NAME, SNAPSHOTS_NAME, Snapshots};
pub use fs::{Caller, Entry, Fs, Item, Keep, Name, Opening};
pub use mount::{Keeper, Keeping, Kept, Mount, MountError, NoKeeper, Options};
pub use node::Node;
pub use resident::ResidentBuffers;
