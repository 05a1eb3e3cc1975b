//! `/snapshots`: named moments of branches.

use std::sync::Arc;

use axum::extract::State;
use jiff::Timestamp;
use pageserver::{BranchName, PgInfo, SnapshotInfo, SnapshotName, Tag};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Answer, Asked, Body, Destroying, Done, Made, Named, blocking, done, made, schema};
use crate::service::Service;
use crate::time::timestamp;

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Snapshot {
    #[schema(value_type = schema::SnapshotName)]
    pub name: SnapshotName,
    pub created: Timestamp,
    /// What `pg_control` told, where the snapshot holds a cluster.
    pub postgres: Option<Postgres>,
    /// It can't be destroyed until this is taken back.
    pub protected: bool,
    /// When it is destroyed by itself.
    pub expires: Option<Timestamp>,
    /// Bytes that destroying it would give back now.
    pub used: Option<u64>,
    /// Bytes of all layers that it stands on, shared or not.
    pub total: Option<u64>,
    /// Bytes of WAL that a server on a view of it replays when it starts.
    pub wal_to_replay: Option<u64>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Postgres {
    /// The major version, as in `PG_VERSION`.
    pub version: String,
    pub system_id: u64,
    /// Where recovery begins, as Postgres writes an LSN.
    pub redo_lsn: String,
    pub wal_timeline: u32,
    /// Whether the server ran; then it will start with recovery.
    pub running: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewSnapshot {
    #[schema(value_type = schema::SnapshotName)]
    pub name: SnapshotName,
    /// Have the pg's Postgres write a checkpoint first, so that views of the snapshot start without replay.
    #[serde(default)]
    pub checkpoint: bool,
    #[serde(default)]
    pub protected: bool,
    /// When it is to be destroyed by itself.
    #[serde(default)]
    pub expires: Option<Timestamp>,
}

/// What to change; what isn't given stays.
#[derive(Clone, Default, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SnapshotChange {
    #[serde(default)]
    #[schema(value_type = Option<schema::Tag>)]
    pub tag: Option<Tag>,
    #[serde(default)]
    pub protected: Option<bool>,
    /// `null` lets it stay.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Timestamp>)]
    pub expires: Option<Option<Timestamp>>,
}

/// Tells a field that is `null` from one that is missing.
fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> std::result::Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// Which snapshots to list; all when no branch is given.
#[derive(Clone, Debug, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    #[param(value_type = Option<schema::Name>)]
    pub branch: Option<BranchName>,
}

impl From<SnapshotInfo> for Snapshot {
    fn from(info: SnapshotInfo) -> Snapshot {
        Snapshot {
            name: info.name,
            created: timestamp(info.created),
            postgres: info.postgres.map(Postgres::from),
            protected: info.protected,
            expires: info.expires.map(timestamp),
            used: None,
            total: None,
            wal_to_replay: None,
        }
    }
}

impl From<PgInfo> for Postgres {
    fn from(info: PgInfo) -> Postgres {
        Postgres {
            version: info.version,
            system_id: info.system_id,
            redo_lsn: lsn(info.redo_lsn),
            wal_timeline: info.wal_timeline,
            running: info.in_production,
        }
    }
}

/// A position in the WAL as Postgres writes it: two halves in hexadecimal.
pub fn lsn(position: u64) -> String {
    format!("{:X}/{:X}", position >> 32, position & 0xFFFF_FFFF)
}

pub fn routes() -> OpenApiRouter<Arc<Service>> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(show, change, destroy))
}

/// The snapshots of a branch, or of all.
#[utoipa::path(get, path = "/snapshots", params(Filter), responses((status = 200, body = Vec<Snapshot>)))]
async fn list(State(service): State<Arc<Service>>, Asked(filter): Asked<Filter>) -> Answer<Vec<Snapshot>> {
    blocking(move || service.snapshots(filter.branch.as_ref())).await
}

/// One snapshot.
#[utoipa::path(
    get, path = "/snapshots/{name}",
    params(("name" = schema::SnapshotName, Path)),
    responses((status = 200, body = Snapshot))
)]
async fn show(State(service): State<Arc<Service>>, Named(name): Named<SnapshotName>) -> Answer<Snapshot> {
    blocking(move || service.snapshot(&name)).await
}

/// Takes a snapshot.
#[utoipa::path(post, path = "/snapshots", request_body = NewSnapshot, responses((status = 201, body = Snapshot)))]
async fn create(State(service): State<Arc<Service>>, Body(new): Body<NewSnapshot>) -> Made<Snapshot> {
    made(move || service.create_snapshot(&new)).await
}

/// Gives a snapshot another tag, protects it, or says when it goes.
#[utoipa::path(
    patch, path = "/snapshots/{name}",
    params(("name" = schema::SnapshotName, Path)),
    request_body = SnapshotChange,
    responses((status = 200, body = Snapshot))
)]
async fn change(
    State(service): State<Arc<Service>>,
    Named(name): Named<SnapshotName>,
    Body(change): Body<SnapshotChange>,
) -> Answer<Snapshot> {
    blocking(move || service.change_snapshot(&name, &change)).await
}

/// Destroys a snapshot.
#[utoipa::path(
    delete, path = "/snapshots/{name}",
    params(("name" = schema::SnapshotName, Path), Destroying),
    responses((status = 204))
)]
async fn destroy(
    State(service): State<Arc<Service>>,
    Named(name): Named<SnapshotName>,
    Asked(how): Asked<Destroying>,
) -> Done {
    done(move || match how.dry_run {
        true => service.check_snapshot_destroyable(&name),
        false => service.destroy_snapshot(&name),
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::lsn;

    #[test]
    fn an_lsn_reads_as_postgres_writes_it() {
        assert_eq!(lsn(0x16B_3748), "0/16B3748");
        assert_eq!(lsn(0x1_0000_00A0), "1/A0");
    }
}
