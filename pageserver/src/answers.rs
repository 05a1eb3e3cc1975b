//! Results of changes of names, kept until the requests for them have been answered.
//!
//! | key, in the family `catalog` | value |
//! |---|---|
//! | `answer/` timeline `/` request, both 16 hexadecimal digits | the inode number that the change was about, 8 bytes, little-endian |
//!
//! A result is written in the batch of its change, so it is there if and only if the change is. Who asks next on the same thread has had
//! the result before, and the same batch deletes that. So there is one for each thread, besides those that killed processes have left
//! behind, which go with the mount.

use std::cell::Cell;

use rocksdb::WriteBatch;

use crate::db::{CATALOG, Db};
use crate::error::{Error, Result};
use crate::types::{Ino, Request, TimelineId};

fn prefix(timeline: TimelineId) -> String {
    format!("answer/{:016x}/", timeline.0)
}

fn key(timeline: TimelineId, number: u64) -> Vec<u8> {
    format!("{}{number:016x}", prefix(timeline)).into_bytes()
}

/// Whether a record is a result.
pub fn is_one(key: &[u8], value: &[u8]) -> bool {
    key.starts_with(b"answer/") && value.len() == size_of::<Ino>()
}

/// Adds the result of a change to its batch.
pub fn put(db: &Db, batch: &mut WriteBatch, timeline: TimelineId, request: &Request, about: Ino) {
    if let Some(last) = request.last.and_then(Cell::get) {
        db.delete(batch, CATALOG, &key(timeline, last));
    }
    if let Some(number) = request.number {
        db.put(batch, CATALOG, &key(timeline, number), &about.0.to_le_bytes());
    }
}

/// To be called when the batch has been written.
pub fn kept(request: &Request) {
    if let (Some(last), Some(_)) = (request.last, request.number) {
        last.set(request.number);
    }
}

/// What a request that comes again was about, if its change was made.
pub fn get(db: &Db, timeline: TimelineId, request: &Request) -> Result<Option<Ino>> {
    let Some(number) = request.number.filter(|_| request.again) else {
        return Ok(None);
    };
    let Some(value) = db.get(CATALOG, &key(timeline, number))? else {
        return Ok(None);
    };
    let ino = value.try_into().map_err(|_| Error::Damaged {
        what: format!("the result of request {number:x} can't be read"),
    })?;
    Ok(Some(Ino(u64::from_le_bytes(ino))))
}

/// Adds the end of all of a timeline's results to a batch; false when there are none.
pub fn delete_all(db: &Db, batch: &mut WriteBatch, timeline: TimelineId) -> Result<bool> {
    let mut some = false;
    db.scan(CATALOG, prefix(timeline).as_bytes(), |key, _| {
        db.delete(batch, CATALOG, key);
        some = true;
        Ok(())
    })?;
    Ok(some)
}
