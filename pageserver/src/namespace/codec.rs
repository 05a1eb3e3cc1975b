//! How a namespace lies in the database, layer by layer.
//!
//! | key | value |
//! |---|---|
//! | `layer` `i` `ino` | an inode that the layer changed; empty = it is gone |
//! | `layer` `d` `parent` `name` | the inode behind a name that the layer changed; empty = it is gone |
//! | `layer` `I` `ino`, `layer` `D` `parent` `name` | the same for *every* inode and name: a full image |
//! | `layer` `p` `ino` | size, floor and time of a backing file of the sealed layer; see [`crate::parts`] |
//! | `layer` `s` `ino` `chunk` | the checksums of its blocks there; see [`crate::sums`] |
//!
//! `layer`, `ino`, `parent` and `chunk` are 8 bytes, big-endian in keys. A changed inode's record tells nothing of the file's
//! blocks: the layer's backing files do. An image's record does, so that whoever loads it need not look below.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rocksdb::WriteBatch;

use super::{Change, Inode, Namespace, PartRef};
use crate::db::{Db, NAMESPACE};
use crate::error::{Error, Result};
use crate::fields::Fields;
use crate::parts::Kept;
use crate::sums::Chunk;
use crate::types::{Ino, Kind, LayerId};

const CHANGED_INODE: u8 = b'i';
const CHANGED_NAME: u8 = b'd';
const IMAGE_INODE: u8 = b'I';
const IMAGE_NAME: u8 = b'D';
const PART: u8 = b'p';
const SUMS: u8 = b's';

const RECORD_VERSION: u8 = 1;
const FLAG_WAL_DIR: u8 = 1;

fn key(layer: LayerId, tag: u8, ino: Ino, name: &OsStr) -> Vec<u8> {
    let mut key = Vec::with_capacity(17 + name.len());
    key.extend_from_slice(&layer.0.to_be_bytes());
    key.push(tag);
    key.extend_from_slice(&ino.0.to_be_bytes());
    key.extend_from_slice(name.as_bytes());
    key
}

/// Adds changes to a batch. What the layer's parent (`below`) never had is deleted outright, the rest gets a
/// tombstone; so names that come and go within a layer leave nothing behind.
pub fn put_changes(db: &Db, batch: &mut WriteBatch, layer: LayerId, below: &Namespace, changes: &[Change]) {
    for change in changes {
        let is_to_stay = match change {
            Change::DropInode(ino) => below.inode(*ino).is_ok(),
            Change::DropName(parent, name) => below.get(*parent, name).is_some(),
            Change::SetInode(..) | Change::SetName(..) => true,
        };
        match is_to_stay {
            true => put_change(db, batch, layer, change),
            false => db.delete(batch, NAMESPACE, &record(layer, change).0),
        }
    }
}

/// Adds one change to a batch, with a tombstone where something goes.
pub fn put_change(db: &Db, batch: &mut WriteBatch, layer: LayerId, change: &Change) {
    let (key, value) = record(layer, change);
    db.put(batch, NAMESPACE, &key, &value);
}

fn record(layer: LayerId, change: &Change) -> (Vec<u8>, Vec<u8>) {
    let no_name = OsStr::new("");
    match change {
        Change::SetInode(ino, inode) => (key(layer, CHANGED_INODE, *ino, no_name), encode(inode, false)),
        Change::DropInode(ino) => (key(layer, CHANGED_INODE, *ino, no_name), Vec::new()),
        Change::SetName(parent, name, ino) => {
            let value = ino.0.to_le_bytes().to_vec();
            (key(layer, CHANGED_NAME, *parent, name), value)
        }
        Change::DropName(parent, name) => (key(layer, CHANGED_NAME, *parent, name), Vec::new()),
    }
}

/// Adds a full image of the layer's namespace to a batch.
pub fn put_image(db: &Db, batch: &mut WriteBatch, layer: LayerId, ns: &Namespace) {
    for (ino, inode) in ns.inodes() {
        let key = key(layer, IMAGE_INODE, ino, OsStr::new(""));
        db.put(batch, NAMESPACE, &key, &encode(inode, true));
    }
    for (parent, name, ino) in ns.all_names() {
        let key = key(layer, IMAGE_NAME, parent, name);
        db.put(batch, NAMESPACE, &key, &ino.0.to_le_bytes());
    }
}

/// Adds what a sealed layer's backing file must be from now on.
pub fn put_part(db: &Db, batch: &mut WriteBatch, layer: LayerId, ino: Ino, record: &[u8]) {
    db.put(batch, NAMESPACE, &key(layer, PART, ino, OsStr::new("")), record);
}

/// Calls `each` with what was kept by [`put_part`], in order of the inode numbers.
pub fn read_parts(db: &Db, layer: LayerId, mut each: impl FnMut(Ino, Kept)) -> Result<()> {
    let prefix = key(layer, PART, Ino(0), OsStr::new(""))[..9].to_vec();
    db.scan(NAMESPACE, &prefix, |key, value| {
        let ino = ino_of(key)?;
        each(ino, Kept::decode(value).ok_or_else(|| damaged("part", layer, ino))?);
        Ok(())
    })
}

fn sums_key(layer: LayerId, ino: Ino, chunk: u64) -> Vec<u8> {
    key(layer, SUMS, ino, OsStr::from_bytes(&chunk.to_be_bytes()))
}

/// Adds the checksums of a chunk of a file's blocks in a sealed layer to a batch; none where the layer has nothing of it.
pub fn put_sums(db: &Db, batch: &mut WriteBatch, layer: LayerId, ino: Ino, chunk: u64, sums: &Chunk) {
    if !sums.is_empty() {
        db.put(batch, NAMESPACE, &sums_key(layer, ino, chunk), &sums.encode());
    }
}

/// Reads what [`put_sums`] has kept of a chunk.
pub fn read_sums(db: &Db, layer: LayerId, ino: Ino, chunk: u64) -> Result<Option<Chunk>> {
    let record = db.get(NAMESPACE, &sums_key(layer, ino, chunk))?;
    record.map(|record| decode_sums(&record, layer, ino)).transpose()
}

/// Calls `each` with all chunks of a file in a layer, in order.
pub fn each_sums(db: &Db, layer: LayerId, ino: Ino, mut each: impl FnMut(u64, Chunk) -> Result<()>) -> Result<()> {
    let prefix = key(layer, SUMS, ino, OsStr::new(""));
    db.scan(NAMESPACE, &prefix, |key, record| {
        let number = key[prefix.len()..]
            .try_into()
            .map_err(|_| damaged("sums", layer, ino))?;
        each(u64::from_be_bytes(number), decode_sums(record, layer, ino)?)
    })
}

fn decode_sums(record: &[u8], layer: LayerId, ino: Ino) -> Result<Chunk> {
    Chunk::decode(record).ok_or_else(|| damaged("sums", layer, ino))
}

/// Adds the delete of what the database keeps of a file in a sealed layer to a batch.
pub fn delete_part(db: &Db, batch: &mut WriteBatch, layer: LayerId, ino: Ino) {
    db.delete(batch, NAMESPACE, &key(layer, PART, ino, OsStr::new("")));
    let [from, to] = [ino, Ino(ino.0 + 1)].map(|ino| key(layer, SUMS, ino, OsStr::new("")));
    db.delete_range(batch, NAMESPACE, &from, &to);
}

/// Adds the delete of all checksums that the database has of a layer to a batch.
pub fn delete_sums(db: &Db, batch: &mut WriteBatch, layer: LayerId) {
    let [from, to] = [SUMS, SUMS + 1].map(|tag| key(layer, tag, Ino(0), OsStr::new(""))[..9].to_vec());
    db.delete_range(batch, NAMESPACE, &from, &to);
}

/// Adds the delete of a layer's full image to a batch.
pub fn delete_image(db: &Db, batch: &mut WriteBatch, layer: LayerId) {
    for tag in [IMAGE_INODE, IMAGE_NAME] {
        let range = [tag, tag + 1].map(|tag| key(layer, tag, Ino(0), OsStr::new(""))[..9].to_vec());
        db.delete_range(batch, NAMESPACE, &range[0], &range[1]);
    }
}

/// Adds the delete of everything a layer has to a batch.
pub fn delete_layer(db: &Db, batch: &mut WriteBatch, layer: LayerId) {
    let (from, to) = (layer.0.to_be_bytes(), (layer.0 + 1).to_be_bytes());
    db.delete_range(batch, NAMESPACE, &from, &to);
}

/// Reads a layer's full image.
pub fn read_image(db: &Db, layer: LayerId) -> Result<Namespace> {
    let mut ns = Namespace::default();
    read(db, layer, IMAGE_INODE, IMAGE_NAME, |change| ns.apply(change))?;
    Ok(ns)
}

/// Applies what a layer changed to its parent's namespace; returns how many changes there were.
pub fn apply_changes(db: &Db, layer: LayerId, ns: &mut Namespace) -> Result<usize> {
    let mut count = 0;
    read(db, layer, CHANGED_INODE, CHANGED_NAME, |change| {
        count += 1;
        ns.apply(match change {
            Change::SetInode(ino, inode) => Change::SetInode(ino, inheriting(ns, ino, inode)),
            other => other,
        });
    })?;
    Ok(count)
}

/// What a layer changed, by what it is about.
pub fn read_changes(db: &Db, layer: LayerId) -> Result<BTreeMap<Vec<u8>, Change>> {
    let mut changes = BTreeMap::new();
    read(db, layer, CHANGED_INODE, CHANGED_NAME, |change| {
        let about = record(LayerId(0), &change).0;
        changes.insert(about, change);
    })?;
    Ok(changes)
}

/// A changed file keeps the blocks and the size of its older self; what the layer did to them, its backing file tells.
fn inheriting(ns: &Namespace, ino: Ino, mut inode: Inode) -> Inode {
    if inode.kind == Kind::File {
        let older = ns.inode(ino).ok();
        inode.size = older.map_or(0, |older| older.size);
        inode.parts = older.map_or_else(Default::default, |older| older.parts.clone());
    }
    inode
}

fn read(db: &Db, layer: LayerId, inodes: u8, names: u8, mut each: impl FnMut(Change)) -> Result<()> {
    for tag in [inodes, names] {
        let prefix = key(layer, tag, Ino(0), OsStr::new(""))[..9].to_vec();
        db.scan(NAMESPACE, &prefix, |key, value| {
            each(decode_change(layer, key, value)?);
            Ok(())
        })?;
    }
    Ok(())
}

/// The change that a record of an inode or of a name stands for.
fn decode_change(layer: LayerId, key: &[u8], value: &[u8]) -> Result<Change> {
    let ino = ino_of(key)?;
    if [CHANGED_INODE, IMAGE_INODE].contains(&key[8]) {
        return match value {
            [] => Ok(Change::DropInode(ino)),
            record => decode(record)
                .map(|inode| Change::SetInode(ino, inode))
                .ok_or_else(|| damaged("inode", layer, ino)),
        };
    }
    let name: Arc<OsStr> = Arc::from(OsStr::from_bytes(&key[17..]));
    match value {
        [] => Ok(Change::DropName(ino, name)),
        value => {
            let named = value.try_into().map_err(|_| damaged("name", layer, ino))?;
            Ok(Change::SetName(ino, name, Ino(u64::from_le_bytes(named))))
        }
    }
}

fn damaged(what: &str, layer: LayerId, ino: Ino) -> Error {
    Error::Damaged {
        what: format!("layer {layer}: the record of {what} {ino} can't be read"),
    }
}

fn ino_of(key: &[u8]) -> Result<Ino> {
    let bytes = key.get(9..17).and_then(|bytes| bytes.try_into().ok());
    bytes
        .map(|bytes| Ino(u64::from_be_bytes(bytes)))
        .ok_or_else(|| Error::Damaged {
            what: "a key of the namespace is too short".into(),
        })
}

/// version u8, kind u8, flags u8, mode u16, uid u32, gid u32, nlink u32, size u64, atime, mtime, ctime (i64 + u32 each),
/// parent u64, count u32, count × (layer u64, floor u64), then the target of a symlink; all little-endian.
fn encode(inode: &Inode, with_parts: bool) -> Vec<u8> {
    let mut out = vec![
        RECORD_VERSION,
        kind_code(inode.kind),
        u8::from(inode.wal_dir) * FLAG_WAL_DIR,
    ];
    out.extend(inode.mode.to_le_bytes());
    for field in [inode.uid, inode.gid, inode.nlink] {
        out.extend(field.to_le_bytes());
    }
    out.extend(inode.size.to_le_bytes());
    for time in [inode.atime, inode.mtime, inode.ctime] {
        out.extend(time.secs.to_le_bytes());
        out.extend(time.nanos.to_le_bytes());
    }
    out.extend(inode.parent.0.to_le_bytes());
    let count = if with_parts { inode.parts.len() } else { 0 };
    out.extend((count as u32).to_le_bytes());
    for part in inode.parts.iter().take(count) {
        out.extend(part.layer.0.to_le_bytes());
        out.extend(part.floor.to_le_bytes());
    }
    if let Some(target) = &inode.target {
        out.extend(target.as_bytes());
    }
    out
}

fn decode(record: &[u8]) -> Option<Inode> {
    let mut fields = Fields(record);
    let [version, kind, flags] = fields.take()?;
    if version != RECORD_VERSION {
        return None;
    }
    let kind = kind_of(kind)?;
    let mode = u16::from_le_bytes(fields.take()?);
    let [uid, gid, nlink] = [fields.u32()?, fields.u32()?, fields.u32()?];
    let size = fields.u64()?;
    let [atime, mtime, ctime] = [fields.time()?, fields.time()?, fields.time()?];
    let parent = Ino(fields.u64()?);
    let parts = (0..fields.u32()?)
        .map(|_| {
            Some(PartRef {
                layer: LayerId(fields.u64()?),
                floor: fields.u64()?,
            })
        })
        .collect::<Option<_>>()?;
    Some(Inode {
        kind,
        mode,
        uid,
        gid,
        nlink,
        size,
        atime,
        mtime,
        ctime,
        parent,
        wal_dir: flags & FLAG_WAL_DIR != 0,
        target: (kind == Kind::Symlink).then(|| Arc::from(OsStr::from_bytes(fields.0))),
        parts,
    })
}

fn kind_code(kind: Kind) -> u8 {
    match kind {
        Kind::File => 0,
        Kind::Dir => 1,
        Kind::Symlink => 2,
        Kind::Fifo => 3,
        Kind::Socket => 4,
    }
}

fn kind_of(code: u8) -> Option<Kind> {
    [Kind::File, Kind::Dir, Kind::Symlink, Kind::Fifo, Kind::Socket]
        .into_iter()
        .find(|kind| kind_code(*kind) == code)
}

/// Takes one record of any kind in, whatever it is; fuzzed.
#[cfg(fuzzing)]
pub fn take(ns: &mut Namespace, key: &[u8], value: &[u8]) {
    match key.get(8) {
        Some(&PART) => drop(Kept::decode(value).map(|kept| assert_eq!(kept.encode(), value))),
        Some(&SUMS) => drop(Chunk::decode(value).map(|chunk| assert_eq!(chunk.encode(), value))),
        Some(&(CHANGED_INODE | CHANGED_NAME | IMAGE_INODE | IMAGE_NAME)) => {
            if let Ok(change) = decode_change(LayerId(1), key, value) {
                if let Change::SetInode(_, inode) = &change {
                    assert_eq!(decode(&encode(inode, true)).as_ref(), Some(inode));
                }
                ns.apply(change);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::namespace::ops::new_inode;
    use crate::types::{NewKind, NewNode, Time};

    fn symlink() -> Inode {
        let node = NewNode {
            kind: NewKind::Symlink("over/there".into()),
            mode: 0o777,
            uid: 1,
            gid: 2,
        };
        let mut inode = new_inode(node, Ino(7), Time { secs: -5, nanos: 6 }).expect("valid");
        inode.parts.push_back(PartRef {
            layer: LayerId(9),
            floor: 4096,
        });
        inode
    }

    #[test]
    fn a_record_reads_back_as_it_was_written() {
        assert_eq!(decode(&encode(&symlink(), true)), Some(symlink()));
        assert!(decode(&encode(&symlink(), false)).is_some_and(|inode| inode.parts.is_empty()));
    }

    #[test]
    fn a_record_cut_anywhere_in_its_fixed_part_is_refused() {
        let record = encode(&symlink(), true);
        let fixed = record.len() - "over/there".len();
        assert!((0..fixed).all(|len| decode(&record[..len]).is_none()));
    }
}
