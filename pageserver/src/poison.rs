//! Which heads are poisoned, as far as that must outlive the service: a name `STORE/poisoned/TIMELINE` for each.
//!
//! A mount can outlive the service too. The one that takes it over must not believe a sync that the one before was
//! already told had failed: the kernel tells a lost write only once. The mark is made before the failure is answered, as
//! well as a failing disk allows (it takes no descriptor, for it may be their lack that lost something), and goes when the branch is mounted anew.

use std::io;
use std::path::PathBuf;

use crate::disk::Disk;
use crate::types::TimelineId;

pub const POISONED_DIR: &str = "poisoned";

pub struct Marks {
    pub disk: Disk,
    pub dir: PathBuf,
}

impl Marks {
    fn path(&self, id: TimelineId) -> PathBuf {
        self.dir.join(format!("{:08x}", id.0))
    }

    /// Marks a timeline's head. A failure is only logged: the disk is failing.
    pub fn set(&self, id: TimelineId) {
        let made = self
            .disk
            .make_dir(&self.dir)
            .and_then(|()| self.disk.mark(&self.path(id)));
        if let Err(error) = made {
            tracing::error!(%error, "that a head is poisoned can't be noted: don't believe it after a kill of the service");
        }
    }

    /// Whether a timeline's head is marked. Where nobody can tell, it counts as marked.
    pub fn is_set(&self, id: TimelineId) -> bool {
        self.disk.exists(&self.path(id)).unwrap_or_else(|error| {
            tracing::error!(%error, "whether a head is poisoned can't be told: it is taken for that");
            true
        })
    }

    pub fn clear(&self, id: TimelineId) -> io::Result<()> {
        self.disk.remove(&self.path(id))
    }
}
