//! Snapshots: names for sealed layers; and going back to one.

use std::sync::Arc;

use rocksdb::WriteBatch;
use serde::{Deserialize, Serialize};

use crate::catalog::{Catalog, Entry, LayerRecord, SnapshotRecord, TimelineRecord};
use crate::error::{Error, Result};
use crate::layer::Layer;
use crate::names::{BranchName, SnapshotName, Tag};
use crate::pg::{self, ControlFile, PgInfo, Purpose};
use crate::store::{Store, refuse_origin};
use crate::timeline::Timeline;
use crate::types::{LayerId, Time, TimelineId};
use crate::view::View;

/// What is known of a snapshot.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SnapshotInfo {
    pub name: SnapshotName,
    pub layer: LayerId,
    pub created: Time,
    /// The Postgres cluster in it, if there is one.
    pub postgres: Option<PgInfo>,
}

impl Store {
    /// The snapshots of one branch or of all, oldest first.
    pub fn snapshots(&self, branch: Option<&BranchName>) -> Vec<SnapshotInfo> {
        let catalog = self.catalog();
        let mut found: Vec<SnapshotInfo> = catalog
            .timelines()
            .filter(|(_, timeline)| branch.is_none_or(|branch| timeline.name == *branch))
            .flat_map(|(id, timeline)| {
                let own = catalog.snapshots().filter(move |(of, ..)| *of == id);
                own.map(|(_, tag, record)| info(&timeline.name, tag, record))
            })
            .collect();
        found.sort_by_key(|snapshot| (snapshot.created, snapshot.layer));
        found
    }

    pub fn snapshot(&self, name: &SnapshotName) -> Result<SnapshotInfo> {
        Ok(info(&name.branch, &name.tag, self.catalog().snapshot(name)?))
    }

    /// A snapshot's tree, read-only.
    pub fn snapshot_view(&self, name: &SnapshotName) -> Result<Arc<View>> {
        let layer = self.catalog().snapshot(name)?.layer;
        self.sealed_view(layer)
    }

    /// Takes a snapshot of a branch as it is now. Copies nothing; returns when it is durable.
    pub fn create_snapshot(&self, name: &SnapshotName, now: Time) -> Result<SnapshotInfo> {
        if name.tag.is_reserved() {
            return Err(Error::ReservedName {
                name: name.tag.to_string(),
            });
        }
        let exists = || Error::SnapshotExists { name: name.to_string() };
        if self.snapshot(name).is_ok() {
            return Err(exists());
        }
        let record = self.seal_branch(&name.branch, now)?;
        let mut catalog = self.catalog();
        let (timeline, _) = catalog.timeline(&name.branch)?;
        let info = info(&name.branch, &name.tag, &record);
        let entry = Entry::Snapshot(timeline, name.tag.clone(), Some(record));
        catalog.commit(&self.shared.db, WriteBatch::default(), vec![entry])?;
        drop(catalog);
        self.sync_db()?;
        Ok(info)
    }

    /// Seals a branch's head and makes the sealed layer's blocks durable; the caller syncs the database when it has
    /// put a name on it. An unchanged head leaves the layer below it.
    pub(crate) fn seal_branch(&self, name: &BranchName, now: Time) -> Result<SnapshotRecord> {
        let timeline = self.timeline(name)?;
        let mut catalog = self.catalog();
        let (_, record) = catalog.timeline(name)?;
        let record = record.clone();
        let parent = catalog.layer(record.head)?.parent;
        let (layer, postgres) = match parent {
            Some(parent) if timeline.is_unchanged() => (parent, postgres_in(timeline.view())),
            _ => self.swap_heads(&timeline, &mut catalog, record)?,
        };
        drop(catalog);
        timeline.sync_sealed()?;
        Ok(SnapshotRecord {
            layer,
            created: now,
            postgres,
        })
    }

    fn swap_heads(
        &self,
        timeline: &Timeline,
        catalog: &mut Catalog,
        mut record: TimelineRecord,
    ) -> Result<(LayerId, Option<PgInfo>)> {
        let next = LayerId(catalog.next_number());
        let layer = Layer::create(&self.shared.disk, &self.shared.layers_dir, next)?;
        let layer_record = LayerRecord::new(Some(record.head), timeline.id);
        record.head = next;
        let entries = vec![
            Entry::Layer(next, Some(layer_record)),
            Entry::Timeline(timeline.id, Some(record)),
        ];
        timeline.seal(layer, || {
            catalog.commit(&self.shared.db, WriteBatch::default(), entries)?;
            Ok(postgres_in(timeline.view()))
        })
    }

    /// Drops a snapshot's name, and its layer where nothing else needs it. Refused while a branch starts from it.
    pub fn destroy_snapshot(&self, name: &SnapshotName) -> Result<()> {
        let _changing = self.changing();
        let mut catalog = self.catalog();
        let layer = catalog.snapshot(name)?.layer;
        let (timeline, _) = catalog.timeline(&name.branch)?;
        refuse_origin(&catalog, name.to_string(), |origin| {
            origin.timeline == timeline && origin.tag.as_ref() == Some(&name.tag)
        })?;
        self.refuse_looked_at(name.to_string(), layer)?;
        let entry = Entry::Snapshot(timeline, name.tag.clone(), None);
        catalog.commit(&self.shared.db, WriteBatch::default(), vec![entry])?;
        self.collect(&mut catalog)?;
        drop(catalog);
        self.sync_db()
    }

    /// Sets a branch back to one of its snapshots. The state it had is kept as the returned `NAME@HEAD{n}`.
    /// Refused while somebody holds the branch's timeline.
    pub fn checkout(&self, name: &SnapshotName, now: Time) -> Result<SnapshotName> {
        let _changing = self.changing();
        let target = self.catalog().snapshot(name)?.layer;
        let (id, _) = self.catalog().timeline(&name.branch)?;
        self.refuse_if_open(id, &name.branch)?;
        let kept = self.seal_branch(&name.branch, now)?;
        let mut catalog = self.catalog();
        self.refuse_if_open(id, &name.branch)?;
        let tag = self.replace_head(&mut catalog, id, target, kept, now)?;
        self.collect(&mut catalog)?;
        drop(catalog);
        self.sync_db()?;
        Ok(SnapshotName {
            branch: name.branch.clone(),
            tag,
        })
    }

    fn refuse_if_open(&self, id: TimelineId, name: &BranchName) -> Result<()> {
        match self.is_open(id) {
            true => Err(Error::Busy { name: name.to_string() }),
            false => Ok(()),
        }
    }

    /// Puts a new head on `target`, in one batch with the name of the state that it replaces.
    fn replace_head(
        &self,
        catalog: &mut Catalog,
        id: TimelineId,
        target: LayerId,
        kept: SnapshotRecord,
        now: Time,
    ) -> Result<Tag> {
        let (head, batch) = self.new_head(catalog, Some(target), Purpose::Rollback, (0, 0), now)?;
        let found = catalog.timelines().find(|(timeline, _)| *timeline == id);
        let (_, record) = found.ok_or_else(|| Error::Damaged {
            what: "a branch went away during its checkout".into(),
        })?;
        let mut record = record.clone();
        let tag = Tag::head(record.replaced);
        record.head = head;
        record.replaced += 1;
        let entries = vec![
            Entry::Layer(head, Some(LayerRecord::new(Some(target), id))),
            Entry::Timeline(id, Some(record)),
            Entry::Snapshot(id, tag.clone(), Some(kept)),
        ];
        catalog.commit(&self.shared.db, batch, entries)?;
        Ok(tag)
    }
}

fn info(branch: &BranchName, tag: &Tag, record: &SnapshotRecord) -> SnapshotInfo {
    SnapshotInfo {
        name: SnapshotName {
            branch: branch.clone(),
            tag: tag.clone(),
        },
        layer: record.layer,
        created: record.created,
        postgres: record.postgres.clone(),
    }
}

/// The Postgres cluster at the root of a view, if there is one.
fn postgres_in(view: &View) -> Option<PgInfo> {
    let ns = view.ns();
    let (version, control) = (
        ns.resolve(&[pg::VERSION_FILE]).ok()?,
        ns.resolve(&pg::CONTROL_FILE).ok()?,
    );
    drop(ns);
    let mut text = [0; 16];
    let len = view.read(version, 0, &mut text).ok()?;
    let mut head = [0; ControlFile::LEN];
    view.read(control, 0, &mut head).ok()?;
    let control = ControlFile::parse(&head)?;
    Some(PgInfo {
        version: String::from_utf8_lossy(&text[..len]).trim().into(),
        system_id: control.system_id,
        redo_lsn: control.redo_lsn,
        wal_timeline: control.wal_timeline,
        in_production: control.in_production,
    })
}
