//! Layers that the upkeep of a store passes over, so that one that can't be read keeps nothing else from being done.

use std::collections::{BTreeMap, HashSet};

use crate::error::Error;
use crate::types::LayerId;

#[derive(Default)]
pub struct Aside {
    /// They stay what they are: what is wrong with them.
    damaged: BTreeMap<LayerId, String>,
    /// Until all else is done: the disk may have come to itself by then.
    failed: HashSet<LayerId>,
    /// Of the first since that was last told.
    why: Option<Error>,
}

impl Aside {
    pub fn has(&self, layer: LayerId) -> bool {
        self.damaged.contains_key(&layer) || self.failed.contains(&layer)
    }

    pub fn put(&mut self, layer: LayerId, why: Error) {
        match &why {
            Error::Damaged { what } => drop(self.damaged.insert(layer, what.clone())),
            _ => drop(self.failed.insert(layer)),
        }
        self.why.get_or_insert(why);
    }

    /// What is wrong with the damaged ones.
    pub fn damaged(&self) -> impl Iterator<Item = (LayerId, &str)> {
        self.damaged.iter().map(|(id, what)| (*id, what.as_str()))
    }

    /// All else is done: what failed is tried again from now on. Returns the first reason, if there is one.
    pub fn end_round(&mut self) -> Option<Error> {
        self.failed.clear();
        self.why.take()
    }
}
