//! Node ids: the numbers by which the kernel calls the files of a mount.
//!
//! One mount shows several trees: the mounted view, and below `.zenith/snapshot/TAG/` the branch's snapshots.
//! An inode number is unique in the store, but a file has the same one in every snapshot. So a node id
//! carries the layer beside the inode number:
//!
//! ```text
//!   63           40 39                          0
//!  +---------------+-----------------------------+
//!  | layer         | ino                         |   layer 0: the mounted view itself
//!  +---------------+-----------------------------+
//! ```
//!
//! The ids follow from the store's numbers alone, so they are the same after a restart. The inode numbers below
//! [`Ino::FIRST`] that the store leaves free are the hidden directory's own.

use nix::errno::Errno;
use pageserver::{FsResult, Ino, LayerId};

const INO_BITS: u32 = 40;
const INO_MAX: u64 = (1 << INO_BITS) - 1;
const LAYER_MAX: u64 = u64::MAX >> INO_BITS;

/// The inode number of `.zenith`.
pub(crate) const CONTROL_INO: Ino = Ino(2);
/// The inode number of `.zenith/snapshot`.
pub(crate) const SNAPSHOTS_INO: Ino = Ino(3);

/// A file or directory of a mount.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Node {
    /// Of the mounted view.
    Own(Ino),
    /// Of a snapshot of the mounted branch.
    Snapshot(LayerId, Ino),
    /// The hidden directory `.zenith`.
    Control,
    /// `.zenith/snapshot`, whose entries are the snapshots.
    Snapshots,
}

impl Node {
    pub const ROOT: Node = Node::Own(Ino::ROOT);

    pub fn from_id(id: u64) -> Node {
        match (id >> INO_BITS, Ino(id & INO_MAX)) {
            (0, CONTROL_INO) => Node::Control,
            (0, SNAPSHOTS_INO) => Node::Snapshots,
            (0, ino) => Node::Own(ino),
            (layer, ino) => Node::Snapshot(LayerId(layer), ino),
        }
    }

    /// The number the kernel is told. EOVERFLOW when the store's numbers have outgrown a node id.
    pub fn id(self) -> FsResult<u64> {
        let (layer, ino) = match self {
            Node::Own(ino) => (0, ino),
            Node::Snapshot(layer, ino) => (layer.0, ino),
            Node::Control => (0, CONTROL_INO),
            Node::Snapshots => (0, SNAPSHOTS_INO),
        };
        if layer > LAYER_MAX || ino.0 > INO_MAX {
            return Err(Errno::EOVERFLOW);
        }
        Ok(layer << INO_BITS | ino.0)
    }

    /// The node with another inode number of the same tree.
    pub(crate) fn sibling(self, ino: Ino) -> Node {
        match self {
            Node::Snapshot(layer, _) => Node::Snapshot(layer, ino),
            Node::Own(_) | Node::Control | Node::Snapshots => Node::Own(ino),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_comes_back_from_its_id() {
        let nodes = [
            Node::ROOT,
            Node::Own(Ino(INO_MAX)),
            Node::Snapshot(LayerId(1), Ino::ROOT),
            Node::Snapshot(LayerId(LAYER_MAX), Ino(INO_MAX)),
            Node::Control,
            Node::Snapshots,
        ];
        for node in nodes {
            assert_eq!(Node::from_id(node.id().expect("fits")), node);
        }
    }

    #[test]
    fn the_same_file_has_another_id_in_each_tree() {
        let ino = Ino(77);
        let ids = [
            Node::Own(ino).id(),
            Node::Snapshot(LayerId(1), ino).id(),
            Node::Snapshot(LayerId(2), ino).id(),
        ];
        assert_eq!(ids, [Ok(77), Ok(77 + (1 << 40)), Ok(77 + (2 << 40))]);
    }

    #[test]
    fn numbers_that_do_not_fit_are_refused_rather_than_cut() {
        assert_eq!(Node::Own(Ino(INO_MAX + 1)).id(), Err(Errno::EOVERFLOW));
        let layer = LayerId(LAYER_MAX + 1);
        assert_eq!(Node::Snapshot(layer, Ino(16)).id(), Err(Errno::EOVERFLOW));
    }
}
