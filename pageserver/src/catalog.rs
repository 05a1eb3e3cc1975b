//! Layers, timelines and snapshots: what exists, who stands on whom.
//!
//! Held in memory whole, written through to the database as one JSON record for each thing (`layer/ID`, `timeline/ID`,
//! `snapshot/TIMELINE/TAG`). An edit is a list of [`Entry`]s that is written as one batch, together with whatever else
//! must happen at the same moment, and only then applied in memory.

use std::collections::BTreeMap;

use rocksdb::WriteBatch;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::answers;
use crate::db::{CATALOG, Db};
use crate::error::{Error, Result};
use crate::names::{BranchName, SnapshotName, Tag};
use crate::pg::PgInfo;
use crate::sealed::Form;
use crate::types::{LayerId, PackId, Time, TimelineId};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LayerRecord {
    pub parent: Option<LayerId>,
    /// The timeline whose head it is or was.
    pub timeline: TimelineId,
    /// The database has its whole namespace, not only its changes.
    #[serde(default)]
    pub has_image: bool,
    /// It is sealed, and the database has what its backing files were then, with a checksum for each block.
    #[serde(default)]
    pub has_sums: bool,
    /// Whose directory and records it has, where they are not its own any more; see `merge.rs`.
    #[serde(default)]
    pub body: Option<LayerId>,
    /// The pack that has its blocks; none while it has backing files.
    #[serde(default)]
    pub pack: Option<PackId>,
    /// The checksum that this pack ends with.
    #[serde(default)]
    pub pack_sum: Option<u32>,
    /// What it has is going over to the only layer that stands on it, or the other way round.
    #[serde(default)]
    pub merging: bool,
    /// Whether its files have what they inherit from the layers below it; see `flatten.rs`.
    #[serde(default)]
    pub flat: Flat,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug, Serialize, Deserialize)]
pub enum Flat {
    #[default]
    No,
    /// They are just getting it.
    Begun,
    Done,
}

/// What a layer has on the disk.
#[derive(Clone, Copy)]
pub struct Body {
    pub id: LayerId,
    pub form: Form,
}

impl LayerRecord {
    pub fn new(parent: Option<LayerId>, timeline: TimelineId) -> LayerRecord {
        LayerRecord {
            parent,
            timeline,
            has_image: false,
            has_sums: false,
            body: None,
            pack: None,
            pack_sum: None,
            merging: false,
            flat: Flat::No,
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TimelineRecord {
    pub name: BranchName,
    pub head: LayerId,
    pub origin: Option<Origin>,
    pub created: Time,
    /// How many states checkouts have replaced; the next is kept as `HEAD{n}`.
    pub replaced: u64,
}

/// What a branch was made from: a snapshot, or a branch as it was at that time.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Origin {
    pub timeline: TimelineId,
    pub tag: Option<Tag>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SnapshotRecord {
    pub layer: LayerId,
    pub created: Time,
    pub postgres: Option<PgInfo>,
    /// Not to be destroyed until this is taken back.
    #[serde(default)]
    pub protected: bool,
    /// When it may go by itself.
    #[serde(default)]
    pub expires: Option<Time>,
}

/// One thing's new record; `None` is its end.
pub enum Entry {
    Layer(LayerId, Option<LayerRecord>),
    Timeline(TimelineId, Option<TimelineRecord>),
    Snapshot(TimelineId, Tag, Option<SnapshotRecord>),
}

#[derive(Clone, Default)]
pub struct Catalog {
    layers: BTreeMap<LayerId, LayerRecord>,
    timelines: BTreeMap<TimelineId, TimelineRecord>,
    snapshots: BTreeMap<(TimelineId, Tag), SnapshotRecord>,
    next: u64,
}

/// Layers and timelines are numbered by one sequence, kept ahead of both.
const NEXT_KEY: &[u8] = b"counter/next";

/// Up to which inode numbers are given; see `shared.rs`.
pub const INO_KEY: &[u8] = b"counter/ino";

impl Catalog {
    pub fn load(db: &Db) -> Result<Catalog> {
        Catalog::read(db, Err)
    }

    /// Reads what can be read; `bad` hears of each record that can't, and says whether to go on.
    pub fn read(db: &Db, mut bad: impl FnMut(Error) -> Result<()>) -> Result<Catalog> {
        let mut catalog = Catalog {
            next: 1,
            ..Catalog::default()
        };
        db.scan(CATALOG, b"", |key, value| catalog.take(key, value).or_else(&mut bad))?;
        Ok(catalog)
    }

    /// Takes a record in.
    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let (kind, rest) = split(key).ok_or_else(|| damaged(key))?;
        match kind {
            b"layer" => drop(self.layers.insert(LayerId(number(key, rest)?), record(key, value)?)),
            b"timeline" => drop(
                self.timelines
                    .insert(TimelineId(number(key, rest)?), record(key, value)?),
            ),
            b"snapshot" => {
                let (id, tag) = rest.split_at_checked(16).ok_or_else(|| damaged(key))?;
                let tag = tag.strip_prefix(b"/").and_then(|tag| std::str::from_utf8(tag).ok());
                let tag: Tag = tag.ok_or_else(|| damaged(key))?.parse()?;
                let id = TimelineId(number(key, id)?);
                self.snapshots.insert((id, tag), record(key, value)?);
            }
            _ if key == NEXT_KEY => self.next = record(key, value)?,
            _ if key == INO_KEY || answers::is_one(key, value) => {}
            _ => return Err(damaged(key)),
        }
        Ok(())
    }

    /// Takes the next number of the sequence; it is kept by the next [`Catalog::commit`].
    pub fn next_number(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    /// Whether the catalog can have known what has this number once. What it never knew was made after what the database has.
    pub fn is_past(&self, number: u64) -> bool {
        number < self.next
    }

    /// Writes entries and whatever stands in `batch` as one, and applies the entries.
    pub fn commit(&mut self, db: &Db, mut batch: WriteBatch, entries: Vec<Entry>) -> Result<()> {
        for entry in &entries {
            match entry {
                Entry::Layer(id, record) => put(db, &mut batch, &layer_key(*id), record.as_ref())?,
                Entry::Timeline(id, record) => put(db, &mut batch, &timeline_key(*id), record.as_ref())?,
                Entry::Snapshot(id, tag, record) => {
                    put(db, &mut batch, &snapshot_key(*id, tag), record.as_ref())?;
                }
            }
        }
        put(db, &mut batch, NEXT_KEY, Some(&self.next))?;
        db.make_room();
        db.write(batch)?;
        entries.into_iter().for_each(|entry| self.apply(entry));
        Ok(())
    }

    fn apply(&mut self, entry: Entry) {
        match entry {
            Entry::Layer(id, record) => set(&mut self.layers, id, record),
            Entry::Timeline(id, record) => set(&mut self.timelines, id, record),
            Entry::Snapshot(id, tag, record) => set(&mut self.snapshots, (id, tag), record),
        }
    }

    pub fn layer(&self, id: LayerId) -> Result<&LayerRecord> {
        self.layers.get(&id).ok_or_else(|| Error::Damaged {
            what: format!("layer {id} is missing from the catalog"),
        })
    }

    pub fn body_and_form(&self, id: LayerId) -> Result<Body> {
        let record = self.layer(id)?;
        Ok(Body {
            id: record.body.unwrap_or(id),
            form: record.pack.map_or(Form::Plain, Form::Packed),
        })
    }

    /// The packs that layers have, each with the checksum that it ends with.
    pub fn packs(&self) -> impl Iterator<Item = (PackId, u32)> {
        self.layers().filter_map(|(_, record)| record.pack.zip(record.pack_sum))
    }

    /// The bodies that have a directory.
    pub fn plain_bodies(&self) -> impl Iterator<Item = LayerId> {
        let plain = self.layers().filter(|(_, record)| record.pack.is_none());
        plain.map(|(id, record)| record.body.unwrap_or(id))
    }

    /// Whose directory and records a layer has.
    pub fn body(&self, id: LayerId) -> Result<LayerId> {
        Ok(self.layer(id)?.body.unwrap_or(id))
    }

    /// All bodies, each with its layer.
    pub fn bodies(&self) -> impl Iterator<Item = (LayerId, LayerId)> {
        self.layers().map(|(id, record)| (record.body.unwrap_or(id), id))
    }

    /// The bodies that have checksums, and the form of each.
    pub fn forms(&self) -> impl Iterator<Item = (LayerId, Form)> {
        let summed = self.layers().filter(|(_, record)| record.has_sums);
        summed.map(|(id, record)| (record.body.unwrap_or(id), record.pack.map_or(Form::Plain, Form::Packed)))
    }

    /// The bodies of layers that are being merged: the older one's, the newer one's.
    pub fn merging(&self) -> impl Iterator<Item = (LayerId, LayerId)> {
        self.layers().filter_map(|(id, record)| {
            let older = record
                .parent
                .filter(|parent| self.layer(*parent).is_ok_and(|record| record.merging))?;
            Some((self.body(older).ok()?, record.body.unwrap_or(id)))
        })
    }

    /// Whether its files need not be what was kept of them: they are on their way from or to another layer, or get what they inherit.
    pub fn is_changing(&self, id: LayerId) -> bool {
        let record = self.layer(id).ok();
        let below = record.and_then(|record| self.layer(record.parent?).ok());
        let is_merging = [record, below].into_iter().flatten().any(|record| record.merging);
        is_merging || record.is_some_and(|record| record.flat == Flat::Begun)
    }

    pub fn layers(&self) -> impl Iterator<Item = (LayerId, &LayerRecord)> {
        self.layers.iter().map(|(id, record)| (*id, record))
    }

    /// A timeline's head, and what was sealed of it.
    pub fn layers_of(&self, timeline: TimelineId) -> impl Iterator<Item = LayerId> {
        let own = self.layers().filter(move |(_, record)| record.timeline == timeline);
        own.map(|(id, _)| id)
    }

    pub fn timelines(&self) -> impl Iterator<Item = (TimelineId, &TimelineRecord)> {
        self.timelines.iter().map(|(id, record)| (*id, record))
    }

    pub fn snapshots(&self) -> impl Iterator<Item = (TimelineId, &Tag, &SnapshotRecord)> {
        self.snapshots.iter().map(|((id, tag), record)| (*id, tag, record))
    }

    pub fn timeline(&self, name: &BranchName) -> Result<(TimelineId, &TimelineRecord)> {
        self.timelines()
            .find(|(_, record)| record.name == *name)
            .ok_or_else(|| Error::NoBranch {
                name: name.to_string(),
                known: self.timelines().map(|(_, record)| record.name.to_string()).collect(),
            })
    }

    pub fn snapshot(&self, name: &SnapshotName) -> Result<&SnapshotRecord> {
        let (id, _) = self.timeline(&name.branch)?;
        self.tagged(id, &name.tag).ok_or_else(|| Error::NoSnapshot {
            name: name.to_string(),
            known: self.tags(id).map(|tag| format!("{}@{tag}", name.branch)).collect(),
        })
    }

    /// As [`Catalog::snapshot`], where it is no error that there is none.
    pub fn find_snapshot(&self, name: &SnapshotName) -> Option<&SnapshotRecord> {
        let (id, _) = self.timelines().find(|(_, record)| record.name == name.branch)?;
        self.tagged(id, &name.tag)
    }

    fn tagged(&self, timeline: TimelineId, tag: &Tag) -> Option<&SnapshotRecord> {
        self.snapshots.get(&(timeline, tag.clone()))
    }

    /// An origin as people name it. A branch that others come from can't be destroyed, so it has a name.
    pub fn origin_name(&self, origin: &Origin) -> Option<String> {
        let branch = &self.timelines.get(&origin.timeline)?.name;
        Some(match &origin.tag {
            Some(tag) => format!("{branch}@{tag}"),
            None => branch.to_string(),
        })
    }

    fn tags(&self, timeline: TimelineId) -> impl Iterator<Item = &Tag> {
        self.snapshots()
            .filter(move |(id, ..)| *id == timeline)
            .map(|(_, tag, _)| tag)
    }

    /// Layers that nothing needs: no child, no snapshot, no head.
    pub fn unneeded(&self) -> Vec<LayerId> {
        let parents = self.layers.values().filter_map(|record| record.parent);
        let heads = self.timelines.values().map(|record| record.head);
        let pinned = self.snapshots.values().map(|record| record.layer);
        let needed: std::collections::BTreeSet<LayerId> = parents.chain(heads).chain(pinned).collect();
        self.layers.keys().filter(|id| !needed.contains(id)).copied().collect()
    }
}

fn set<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => drop(map.insert(key, value)),
        None => drop(map.remove(&key)),
    }
}

fn put<T: Serialize>(db: &Db, batch: &mut WriteBatch, key: &[u8], record: Option<&T>) -> Result<()> {
    let Some(record) = record else {
        db.delete(batch, CATALOG, key);
        return Ok(());
    };
    let json = serde_json::to_vec(record).map_err(|_| damaged(key))?;
    db.put(batch, CATALOG, key, &json);
    Ok(())
}

fn record<T: DeserializeOwned>(key: &[u8], value: &[u8]) -> Result<T> {
    serde_json::from_slice(value).map_err(|_| damaged(key))
}

fn damaged(key: &[u8]) -> Error {
    Error::Damaged {
        what: format!("the catalog's record {} can't be read", String::from_utf8_lossy(key)),
    }
}

/// The kind of a record, and what follows.
fn split(key: &[u8]) -> Option<(&[u8], &[u8])> {
    let slash = key.iter().position(|byte| *byte == b'/')?;
    Some((&key[..slash], &key[slash + 1..]))
}

fn number(key: &[u8], digits: &[u8]) -> Result<u64> {
    let digits = Some(digits).filter(|digits| digits.len() == 16);
    digits
        .and_then(|digits| std::str::from_utf8(digits).ok())
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        .ok_or_else(|| damaged(key))
}

fn layer_key(id: LayerId) -> Vec<u8> {
    format!("layer/{:016x}", id.0).into_bytes()
}

fn timeline_key(id: TimelineId) -> Vec<u8> {
    format!("timeline/{:016x}", id.0).into_bytes()
}

fn snapshot_key(id: TimelineId, tag: &Tag) -> Vec<u8> {
    format!("snapshot/{:016x}/{tag}", id.0).into_bytes()
}
