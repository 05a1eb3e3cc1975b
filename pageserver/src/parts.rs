//! What the backing files of a sealed layer were when it was sealed.
//!
//! While a layer is a head its backing files alone say what they are: sizes and floors change with every write, and no
//! write touches the database. A sealed one is never written again, so once it is durable the database keeps the size
//! and the floor of each file in it. A file that is gone, cut short, or under another name later is then damage, and not a file
//! that is shorter or older. Blocks within a file have no checksums yet.

use std::collections::BTreeMap;

use rocksdb::WriteBatch;

use crate::catalog::Entry;
use crate::db::Db;
use crate::error::Result;
use crate::layer::{Found, Layer};
use crate::namespace::{Namespace, codec};
use crate::store::Store;
use crate::types::{Ino, Kind, LayerId};

/// Stands for a floor that is not kept.
const NO_FLOOR: u64 = u64::MAX;

impl Store {
    /// Keeps what the files of a sealed layer are, to be called when they are durable. Costs nothing the second time.
    pub(crate) fn keep_parts(&self, id: LayerId) -> Result<()> {
        let shared = &self.shared;
        let ns = match shared.namespace(id) {
            Some(ns) if !self.catalog().layer(id)?.has_parts => ns,
            _ => return Ok(()),
        };
        let mut batch = WriteBatch::default();
        for file in Layer::open(&shared.disk, &shared.layers_dir, id).scan()? {
            if is_file(&ns, file.ino) {
                codec::put_part(&shared.db, &mut batch, id, file.ino, &encode(&file));
            }
        }
        let mut catalog = self.catalog();
        let mut record = catalog.layer(id)?.clone();
        record.has_parts = true;
        catalog.commit(&shared.db, batch, vec![Entry::Layer(id, Some(record))])
    }
}

/// How the files found in a sealed layer differ from what was kept of them. Files that `ns`, the layer's own, does
/// not know are left over from unlinked ones.
pub fn differences(db: &Db, id: LayerId, found: &[Found], ns: &Namespace) -> Result<Vec<String>> {
    let mut kept: BTreeMap<Ino, [u8; 16]> = BTreeMap::new();
    codec::read_parts(db, id, |ino, record| {
        kept.insert(ino, record);
    })?;
    let mut differences = Vec::new();
    for file in found {
        match kept.remove(&file.ino) {
            Some(record) if record == encode(file) => {}
            Some(record) => differences.push(changed(file, record)),
            None if is_file(ns, file.ino) => {
                differences.push(format!(
                    "the backing file {} was not there when it was sealed",
                    file.ino
                ));
            }
            None => {}
        }
    }
    let missing = kept.keys().map(|ino| format!("the backing file {ino} is missing"));
    differences.extend(missing);
    Ok(differences)
}

fn is_file(ns: &Namespace, ino: Ino) -> bool {
    ns.inode(ino).is_ok_and(|inode| inode.kind == Kind::File)
}

fn changed(file: &Found, record: [u8; 16]) -> String {
    let (size, _) = decode(record);
    match file.stat.size {
        now if now != size => format!("the backing file {} has {now} bytes instead of {size}", file.ino),
        _ => format!("the floor of the backing file {} is another than it was", file.ino),
    }
}

/// Size and floor, little-endian.
fn encode(file: &Found) -> [u8; 16] {
    let [size, floor] = [file.stat.size, file.floor.unwrap_or(NO_FLOOR)].map(u64::to_le_bytes);
    let mut record = [0; 16];
    record[..8].copy_from_slice(&size);
    record[8..].copy_from_slice(&floor);
    record
}

fn decode(record: [u8; 16]) -> (u64, u64) {
    let record = u128::from_le_bytes(record);
    (record as u64, (record >> 64) as u64)
}
