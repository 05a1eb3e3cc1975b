//! Layers that the upkeep of a store passes over, so that one that can't be read keeps nothing else from being done.

use std::collections::HashSet;

use crate::error::Error;
use crate::types::LayerId;

#[derive(Default)]
pub struct Aside {
    /// They stay what they are.
    damaged: HashSet<LayerId>,
    /// Until all else is done: the disk may have come to itself by then.
    failed: HashSet<LayerId>,
    /// Of the first since that was last told.
    why: Option<Error>,
}

impl Aside {
    pub fn has(&self, layer: LayerId) -> bool {
        self.damaged.contains(&layer) || self.failed.contains(&layer)
    }

    pub fn put(&mut self, layer: LayerId, why: Error) {
        match why {
            Error::Damaged { .. } => self.damaged.insert(layer),
            _ => self.failed.insert(layer),
        };
        self.why.get_or_insert(why);
    }

    /// All else is done: what failed is tried again from now on. Returns the first reason, if there is one.
    pub fn end_round(&mut self) -> Option<Error> {
        self.failed.clear();
        self.why.take()
    }
}
