//! What fuzzers call: the readers of bytes that a disk has damaged or somebody else has written. Checksums of packs are taken for right, so
//! that what stands behind them is reached.

use crate::check;
use crate::fields::Fields;
use crate::namespace::{Namespace, codec};
use crate::pack;

/// Reads a pack, whole.
pub fn pack(bytes: &[u8]) {
    let _refused = pack::dump(bytes, "a pack".into()).is_err();
}

/// Reads records of a namespace, each with its key's and its value's length (u8, u16) before it, and looks at the tree that they make.
pub fn namespace(bytes: &[u8]) {
    let (mut ns, mut fields) = (Namespace::default(), Fields(bytes));
    while let (Some([key]), Some(value)) = (fields.take(), fields.u16()) {
        let key_len = usize::from(key).min(fields.0.len());
        let (key, rest) = fields.0.split_at(key_len);
        let (value, rest) = rest.split_at(usize::from(value).min(rest.len()));
        codec::take(&mut ns, key, value);
        fields = Fields(rest);
    }
    check::look_at(&ns);
}
