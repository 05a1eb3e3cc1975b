//! How many references the kernel holds to each node.
//!
//! Every entry that is handed to the kernel is one reference; it gives them back with FORGET. When the last one
//! of an unlinked file is gone nobody can reach it any more, and the store may free it. The counts are kept in
//! shards, so that lookups on different threads rarely meet.
//!
//! A service that took over a live mount does not know the references its predecessor handed out. The kernel
//! gives back all it holds of an unlinked node at once, so a FORGET for more than was counted is the last one too.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::node::Node;

const SHARDS: usize = 64;

type Counts = HashMap<Node, u64>;

pub(crate) struct Lookups {
    shards: [Mutex<Counts>; SHARDS],
}

impl Lookups {
    pub fn new() -> Lookups {
        Lookups {
            shards: std::array::from_fn(|_| Mutex::default()),
        }
    }

    /// Counts one more reference to `node`.
    pub fn add(&self, node: Node) {
        *self.shard(node).entry(node).or_insert(0) += 1;
    }

    /// Takes `count` references off, and calls `gone` when none is left. No new reference to the node can be
    /// counted until `gone` has returned.
    pub fn forget(&self, node: Node, count: u64, gone: impl FnOnce()) {
        let mut shard = self.shard(node);
        let left = shard.get(&node).map_or(0, |held| held.saturating_sub(count));
        if left > 0 {
            shard.insert(node, left);
            return;
        }
        shard.remove(&node);
        gone();
    }

    /// Forgets all nodes and returns them.
    pub fn drain(&self) -> Vec<Node> {
        let drain = |shard| lock(shard).drain().map(|(node, _)| node).collect::<Vec<_>>();
        self.shards.iter().flat_map(drain).collect()
    }

    fn shard(&self, node: Node) -> MutexGuard<'_, Counts> {
        let number = match node {
            Node::Own(ino) | Node::Snapshot(_, ino) => ino.0,
            Node::Control | Node::Snapshots => 0,
        };
        lock(&self.shards[number as usize % SHARDS])
    }
}

/// A count is whole at every moment, so one that a panicking thread left behind can still be used.
fn lock(shard: &Mutex<Counts>) -> MutexGuard<'_, Counts> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use pageserver::Ino;

    use super::*;

    fn is_gone(lookups: &Lookups, node: Node, count: u64) -> bool {
        let mut gone = false;
        lookups.forget(node, count, || gone = true);
        gone
    }

    #[test]
    fn a_node_is_gone_when_all_its_references_are_given_back() {
        let lookups = Lookups::new();
        let node = Node::Own(Ino(16));
        for _ in 0..3 {
            lookups.add(node);
        }
        assert!(!is_gone(&lookups, node, 2));
        assert!(is_gone(&lookups, node, 1));
    }

    #[test]
    fn nodes_are_counted_apart_even_in_one_shard() {
        let lookups = Lookups::new();
        let (a, b) = (Node::Own(Ino(16)), Node::Own(Ino(16 + SHARDS as u64)));
        lookups.add(a);
        lookups.add(b);
        assert!(is_gone(&lookups, a, 1));
        assert_eq!(lookups.drain(), [b]);
    }

    #[test]
    fn references_from_before_a_restart_are_given_back_too() {
        let lookups = Lookups::new();
        assert!(is_gone(&lookups, Node::Own(Ino(16)), 5));
        lookups.add(Node::Own(Ino(17)));
        assert!(is_gone(&lookups, Node::Own(Ino(17)), 5));
    }
}
