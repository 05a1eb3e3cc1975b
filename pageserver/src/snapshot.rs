//! Snapshots: names for sealed layers; and going back to one.

use std::sync::{Arc, MutexGuard};

use nix::errno::Errno;
use rocksdb::WriteBatch;
use serde::{Deserialize, Serialize};

use crate::catalog::{Catalog, Entry, LayerRecord, Origin, SnapshotRecord, TimelineRecord};
use crate::error::{Error, FsResult, Result};
use crate::names::{BranchName, SnapshotName, Tag};
use crate::pg::{self, ControlFile, PgInfo, Purpose};
use crate::store::{Naming, Store, refuse_origin};
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
    /// It can't be destroyed until this is taken back.
    pub protected: bool,
    /// When it may go by itself.
    pub expires: Option<Time>,
}

/// How long a snapshot is to stay.
#[derive(Clone, Copy, Default, Debug)]
pub struct Keep {
    pub protected: bool,
    pub expires: Option<Time>,
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

    /// The layer of a snapshot, if there is one of that name.
    pub fn find_snapshot(&self, name: &SnapshotName) -> Option<LayerId> {
        self.catalog().find_snapshot(name).map(|record| record.layer)
    }

    /// Whether a branch has a snapshot with this layer.
    pub fn is_snapshot_of(&self, branch: &BranchName, layer: LayerId) -> bool {
        let catalog = self.catalog();
        let Ok((id, _)) = catalog.timeline(branch) else {
            return false;
        };
        let mut snapshots = catalog.snapshots();
        snapshots.any(|(of, _, record)| of == id && record.layer == layer)
    }

    /// A snapshot's tree, read-only.
    pub fn snapshot_view(&self, name: &SnapshotName) -> Result<Arc<View>> {
        let mut catalog = self.catalog();
        let layer = catalog.snapshot(name)?.layer;
        let view = self.view_of(&mut catalog, layer)?;
        view.open_as(name);
        Ok(view)
    }

    /// Takes a snapshot of a branch as it is now. Copies nothing; returns when it is durable.
    pub fn create_snapshot(&self, name: &SnapshotName, keep: Keep, now: Time) -> Result<SnapshotInfo> {
        refuse_tag(&self.catalog(), name)?;
        let (sealed, _naming) = self.seal_branch(&name.branch, now)?;
        let record = SnapshotRecord {
            protected: keep.protected,
            expires: keep.expires,
            ..sealed
        };
        let catalog = self.catalog();
        // Somebody may have been quicker.
        refuse_tag(&catalog, name)?;
        let (timeline, _) = catalog.timeline(&name.branch)?;
        // Another branch may have the name by now.
        catalog.layer(record.layer)?;
        let info = info(&name.branch, &name.tag, &record);
        self.commit(catalog, vec![Entry::Snapshot(timeline, name.tag.clone(), Some(record))])?;
        Ok(info)
    }

    /// Gives a snapshot another tag; what starts from it follows. One that a checkout kept can so be kept for good.
    pub fn rename_snapshot(&self, name: &SnapshotName, tag: &Tag) -> Result<SnapshotInfo> {
        let _changing = self.changing();
        let new = SnapshotName {
            branch: name.branch.clone(),
            tag: tag.clone(),
        };
        let catalog = self.catalog();
        refuse_tag(&catalog, &new)?;
        let record = catalog.snapshot(name)?.clone();
        let (timeline, _) = catalog.timeline(&name.branch)?;
        let mut entries = vec![
            Entry::Snapshot(timeline, name.tag.clone(), None),
            Entry::Snapshot(timeline, tag.clone(), Some(record)),
        ];
        for (id, started) in catalog.timelines() {
            if let Some(origin) = &started.origin
                && origin.timeline == timeline
                && origin.tag.as_ref() == Some(&name.tag)
            {
                let mut started = started.clone();
                started.origin = Some(Origin {
                    timeline,
                    tag: Some(tag.clone()),
                });
                entries.push(Entry::Timeline(id, Some(started)));
            }
        }
        self.commit(catalog, entries)?;
        self.snapshot(&new)
    }

    /// Changes how long a snapshot is to stay, as far as is told; an expiry can be taken away.
    pub fn keep_snapshot(
        &self,
        name: &SnapshotName,
        protected: Option<bool>,
        expires: Option<Option<Time>>,
    ) -> Result<SnapshotInfo> {
        let _changing = self.changing();
        let catalog = self.catalog();
        let (timeline, _) = catalog.timeline(&name.branch)?;
        let mut record = catalog.snapshot(name)?.clone();
        record.protected = protected.unwrap_or(record.protected);
        record.expires = expires.unwrap_or(record.expires);
        self.commit(catalog, vec![Entry::Snapshot(timeline, name.tag.clone(), Some(record))])?;
        self.snapshot(name)
    }

    /// Writes entries and makes them durable.
    fn commit(&self, mut catalog: MutexGuard<'_, Catalog>, entries: Vec<Entry>) -> Result<()> {
        catalog.commit(&self.shared.db, WriteBatch::default(), entries)?;
        drop(catalog);
        self.at("names: committed");
        self.sync_db()
    }

    /// Seals a branch's head and makes the sealed layer's blocks durable; the caller syncs the database when it has
    /// put a name on it, and until then keeps the layer from being merged. An unchanged head leaves the layer below it.
    pub(crate) fn seal_branch(&self, name: &BranchName, now: Time) -> Result<(SnapshotRecord, Naming<'_>)> {
        let timeline = self.timeline(name)?;
        let mut catalog = self.catalog();
        let (_, record) = catalog.timeline(name)?;
        let record = record.clone();
        let parent = catalog.layer(record.head)?.parent;
        let (layer, postgres) = match parent {
            Some(parent) if timeline.is_unchanged() => (parent, recorded_of(timeline.view())?),
            _ => self.swap_heads(&timeline, &mut catalog, record)?,
        };
        let naming = Naming::begin(self, layer);
        drop(catalog);
        self.at("seal: heads swapped");
        timeline.sync_sealed()?;
        self.at("seal: synced");
        let record = SnapshotRecord {
            layer,
            created: now,
            postgres,
            protected: false,
            expires: None,
        };
        Ok((record, naming))
    }

    fn swap_heads(
        &self,
        timeline: &Timeline,
        catalog: &mut Catalog,
        mut record: TimelineRecord,
    ) -> Result<(LayerId, Option<PgInfo>)> {
        let next = LayerId(catalog.next_number());
        let layer = self.shared.layers.create(next)?;
        // Any sync from the swap on may make the new head durable, and a head without its directory can't be loaded.
        layer.sync_names().map_err(Error::io("make a layer durable"))?;
        self.at("seal: layer made");
        let layer_record = LayerRecord::new(Some(record.head), timeline.id);
        record.head = next;
        let entries = vec![
            Entry::Layer(next, Some(layer_record)),
            Entry::Timeline(timeline.id, Some(record)),
        ];
        timeline.seal(layer, || {
            let postgres = recorded_of(timeline.view())?;
            catalog.commit(&self.shared.db, WriteBatch::default(), entries)?;
            Ok(postgres)
        })
    }

    /// Drops a snapshot's name, and its layer where nothing else needs it. Refused while a branch starts from it.
    pub fn destroy_snapshot(&self, name: &SnapshotName) -> Result<()> {
        self.destroy_snapshot_if(name, |_| true).map(drop)
    }

    /// As [`Store::destroy_snapshot`], of one whose time has come by `now`; whether it has.
    pub fn destroy_expired_snapshot(&self, name: &SnapshotName, now: Time) -> Result<bool> {
        self.destroy_snapshot_if(name, |record| record.expires.is_some_and(|at| at <= now))
    }

    fn destroy_snapshot_if(&self, name: &SnapshotName, wanted: impl FnOnce(&SnapshotRecord) -> bool) -> Result<bool> {
        let (_changing, _bodies) = (self.changing(), self.bodies());
        let mut catalog = self.catalog();
        if !wanted(catalog.snapshot(name)?) {
            return Ok(false);
        }
        self.refuse_destroying(&catalog, name)?;
        let (timeline, _) = catalog.timeline(&name.branch)?;
        let entry = Entry::Snapshot(timeline, name.tag.clone(), None);
        catalog.commit(&self.shared.db, WriteBatch::default(), vec![entry])?;
        self.at("destroy: committed");
        self.collect(&mut catalog)?;
        drop(catalog);
        self.sync_db().map(|()| true)
    }

    /// Bytes of WAL that a server on a view of the snapshot replays when it starts; none when it was shut down.
    pub fn wal_to_replay(&self, name: &SnapshotName) -> Result<u64> {
        let info = self.snapshot(name)?;
        if !info.postgres.is_some_and(|postgres| postgres.in_production) {
            return Ok(0);
        }
        if let Some(bytes) = self.wal_bytes().get(&info.layer) {
            return Ok(*bytes);
        }
        // Nobody finds the snapshot in use over this look.
        let _changing = self.changing();
        let view = self.sealed_view(self.snapshot(name)?.layer)?;
        let bytes = match control_in(&view) {
            Ok(Some(control)) => pg::wal::bytes_to_replay(&view, &control),
            found => found.map(|_| 0),
        };
        let bytes = bytes.map_err(|e| Error::io(format!("read the WAL of {name}"))(e.into()))?;
        self.wal_bytes().insert(info.layer, bytes);
        Ok(bytes)
    }

    /// Why a snapshot can't be destroyed as things are, if so.
    pub fn check_snapshot_destroyable(&self, name: &SnapshotName) -> Result<()> {
        let _changing = self.changing();
        self.refuse_destroying(&self.catalog(), name)
    }

    fn refuse_destroying(&self, catalog: &Catalog, name: &SnapshotName) -> Result<()> {
        let record = catalog.snapshot(name)?;
        let (timeline, _) = catalog.timeline(&name.branch)?;
        if record.protected {
            return Err(Error::Protected { name: name.to_string() });
        }
        refuse_origin(catalog, name.to_string(), |origin| {
            origin.timeline == timeline && origin.tag.as_ref() == Some(&name.tag)
        })?;
        let named = catalog.snapshots().filter(|(.., other)| other.layer == record.layer);
        self.refuse_looked_at(name, record.layer, named.count() > 1)
    }

    /// Sets a branch back to one of its snapshots. The state it had is kept as the returned `NAME@HEAD{n}`.
    /// Refused while somebody holds the branch's timeline.
    pub fn checkout(&self, name: &SnapshotName, now: Time) -> Result<SnapshotName> {
        let (_changing, _bodies) = (self.changing(), self.bodies());
        let target = self.catalog().snapshot(name)?.layer;
        let (id, _) = self.catalog().timeline(&name.branch)?;
        self.refuse_if_open(id, &name.branch)?;
        let (kept, _naming) = self.seal_branch(&name.branch, now)?;
        let mut catalog = self.catalog();
        self.refuse_if_open(id, &name.branch)?;
        let tag = self.replace_head(&mut catalog, id, target, kept, now)?;
        self.at("checkout: committed");
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

/// Refuses a name that a new snapshot can't have.
fn refuse_tag(catalog: &Catalog, name: &SnapshotName) -> Result<()> {
    if name.tag.is_reserved() {
        let name = name.tag.to_string();
        return Err(Error::ReservedName { name });
    }
    match catalog.find_snapshot(name) {
        Some(_) => Err(Error::SnapshotExists { name: name.to_string() }),
        None => Ok(()),
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
        protected: record.protected,
        expires: record.expires,
    }
}

impl View {
    /// The Postgres cluster at the view's root, if there is one.
    pub fn postgres(&self) -> FsResult<Option<PgInfo>> {
        let Some(control) = control_in(self)? else {
            return Ok(None);
        };
        let mut version = [0; 16];
        let Some(len) = begin_of(self, &[pg::VERSION_FILE], &mut version)? else {
            return Ok(None);
        };
        Ok(Some(PgInfo {
            version: String::from_utf8_lossy(&version[..len]).trim().into(),
            system_id: control.system_id,
            redo_lsn: control.redo_lsn,
            wal_timeline: control.wal_timeline,
            in_production: control.in_production,
        }))
    }
}

/// What a snapshot keeps of the Postgres cluster in it. One whose control file is damaged can be sealed all the same, so that a checkout
/// can mend it.
fn recorded_of(view: &View) -> Result<Option<PgInfo>> {
    match view.postgres() {
        Err(e @ (Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM)) => {
            Err(Error::io("read the control file of the Postgres cluster")(e.into()))
        }
        Err(error) => {
            tracing::error!(%error, "what Postgres cluster a snapshot has can't be read");
            Ok(None)
        }
        Ok(postgres) => Ok(postgres),
    }
}

fn control_in(view: &View) -> FsResult<Option<ControlFile>> {
    let mut begin = [0; ControlFile::LEN];
    let read = begin_of(view, &pg::CONTROL_FILE, &mut begin)?;
    Ok(read.and_then(|_| ControlFile::parse(&begin)))
}

/// How much there was to read at the beginning of a file, if there is one.
fn begin_of(view: &View, path: &[&str], buf: &mut [u8]) -> FsResult<Option<usize>> {
    let Ok(ino) = view.ns().resolve(path) else {
        return Ok(None);
    };
    match view.read(ino, 0, buf) {
        // Somebody's directory or link.
        Err(Errno::EISDIR | Errno::EINVAL) => Ok(None),
        read => read.map(Some),
    }
}
