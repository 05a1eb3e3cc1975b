//! `/pgs`: data directories and the Postgres servers on them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use pageserver::{BranchName, SnapshotName, Tag};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::jobs::{Job, PREFER, Task, as_job};
use super::storages::StorageName;
use super::{Answer, Asked, Body, Destroying, Named, blocking, done, schema};
use crate::error::Result;
use crate::name::ViewName;
use crate::postgres::server::{Status, StopMode};
use crate::service::Service;

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Pg {
    #[schema(value_type = schema::Name)]
    pub name: BranchName,
    pub role: Role,
    /// The pg that a replica follows.
    #[schema(value_type = Option<schema::Name>)]
    pub follows: Option<BranchName>,
    /// Where the data directory is mounted.
    #[schema(value_type = schema::Path)]
    pub dir: PathBuf,
    pub mounted: bool,
    #[schema(value_type = schema::Name)]
    pub storage: StorageName,
    /// Bytes that its own layers hold, without what it shares with where it started.
    pub used: u64,
    pub port: u16,
    /// Where the server's socket is.
    #[schema(value_type = schema::Path)]
    pub socket_dir: PathBuf,
    /// The user that Postgres runs as.
    pub user: String,
    pub status: Status,
    /// The server's process.
    pub pid: Option<i32>,
    /// The snapshot or branch that it shares data with and that must stay for it.
    pub parent: Option<String>,
    pub created: Timestamp,
    /// Why it can't be used.
    pub error: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    Primary,
    Replica,
}

/// Everything about one pg.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct PgDetails {
    #[serde(flatten)]
    pub pg: Pg,
    /// The major version.
    pub version: u32,
    #[schema(value_type = schema::Path)]
    pub pg_bin: PathBuf,
    /// Where recovery would start, from `pg_control`.
    pub redo_lsn: Option<String>,
    pub wal_timeline: Option<u32>,
    /// For libpq.
    pub conninfo: String,
    #[schema(value_type = Vec<schema::SnapshotName>)]
    pub snapshots: Vec<SnapshotName>,
    #[schema(value_type = Vec<schema::Name>)]
    pub replicas: Vec<BranchName>,
    #[schema(value_type = schema::Path)]
    pub log: PathBuf,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewPg {
    /// What it starts with; an empty one gets a new cluster.
    #[serde(default)]
    pub from: Option<ViewName>,
    /// Whether what it starts from must stay for it.
    #[serde(default)]
    pub cow: bool,
    /// Where its data directory is to be mounted.
    #[serde(default)]
    pub at: At,
    /// Where a new cluster goes; a copy goes where its source is.
    #[serde(default)]
    #[schema(value_type = Option<schema::Name>)]
    pub storage: Option<StorageName>,
    /// The one that is free from 5432 on when none is given.
    #[serde(default)]
    pub port: Option<u16>,
    /// Added to postgresql.conf.
    #[serde(default)]
    pub settings: Vec<(String, String)>,
    #[serde(default = "yes")]
    pub start: bool,
    /// Directories to look for Postgres' programs in before the usual ones.
    #[serde(default)]
    #[schema(value_type = Vec<schema::Path>)]
    pub pg_bins: Vec<PathBuf>,
    /// The major version of a new cluster.
    #[serde(default)]
    pub pg_version: Option<u32>,
    /// The user that runs Postgres, when the service is root.
    #[serde(default)]
    pub user: Option<String>,
    /// Options for initdb.
    #[serde(default)]
    pub initdb: Vec<String>,
    /// The caller's language and time zone, which initdb writes into the configuration.
    #[serde(default)]
    pub locale: BTreeMap<String, String>,
}

/// A place for a data directory: named, or named like the pg in another directory. Absolute; made when it is missing.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum At {
    Dir(PathBuf),
    In(PathBuf),
    /// In the directory that the store lies in.
    #[default]
    BesideStore,
}

fn yes() -> bool {
    true
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "action", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Action {
    Start {
        /// Add a standby that follows the pg, and start that.
        #[serde(default)]
        is_replica: bool,
        /// Where a new standby's data directory is to be mounted.
        #[serde(default)]
        at: At,
    },
    Stop {
        #[serde(default)]
        mode: StopMode,
    },
    Restart {
        #[serde(default)]
        mode: StopMode,
    },
    /// Makes a replica a pg of its own.
    Promote,
    /// Sets the pg back to one of its snapshots.
    Checkout {
        #[schema(value_type = schema::Tag)]
        tag: Tag,
    },
}

/// How a pg stands after an action, and what the action made.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Acted {
    pub pg: Pg,
    /// The name that keeps the state before a checkout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<schema::SnapshotName>)]
    pub kept: Option<SnapshotName>,
    /// What to know beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
}

/// What of a server's log to send.
#[derive(Clone, Debug, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct LogRange {
    /// Bytes to leave out from the start.
    #[serde(default)]
    pub from: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct LogText {
    pub text: String,
    /// Where to go on.
    pub next: u64,
}

pub fn routes() -> OpenApiRouter<Arc<Service>> {
    OpenApiRouter::new()
        .routes(routes!(list, create_somehow_named))
        .routes(routes!(show, create, destroy))
        .routes(routes!(act))
        .routes(routes!(log))
}

/// All pgs.
#[utoipa::path(get, path = "/pgs", responses((status = 200, body = Vec<Pg>)))]
async fn list(State(service): State<Arc<Service>>) -> Answer<Vec<Pg>> {
    blocking(move || service.pgs()).await
}

/// Everything about one pg.
#[utoipa::path(
    get, path = "/pgs/{name}",
    params(("name" = schema::Name, Path)),
    responses((status = 200, body = PgDetails))
)]
async fn show(State(service): State<Arc<Service>>, Named(name): Named<BranchName>) -> Answer<PgDetails> {
    blocking(move || service.pg_details(&name)).await
}

/// Makes a pg with a name that the service chooses.
#[utoipa::path(
    put, path = "/pgs",
    params(("prefer" = Option<String>, Header, description = PREFER)),
    request_body = NewPg,
    responses((status = 201, body = Pg), (status = 202, body = Job))
)]
async fn create_somehow_named(
    State(service): State<Arc<Service>>,
    headers: HeaderMap,
    Body(new): Body<NewPg>,
) -> Result<Response> {
    let task = Task {
        what: "create a pg".into(),
        status: StatusCode::CREATED,
    };
    as_job(service, &headers, task, move |service, job| {
        service.create_pg(None, &new, job)
    })
    .await
}

/// Makes a pg: with a new cluster, or of what is there.
#[utoipa::path(
    put, path = "/pgs/{name}",
    params(("name" = schema::Name, Path), ("prefer" = Option<String>, Header, description = PREFER)),
    request_body = NewPg,
    responses((status = 201, body = Pg), (status = 202, body = Job))
)]
async fn create(
    State(service): State<Arc<Service>>,
    Named(name): Named<BranchName>,
    headers: HeaderMap,
    Body(new): Body<NewPg>,
) -> Result<Response> {
    let task = Task {
        what: format!("create {name}"),
        status: StatusCode::CREATED,
    };
    as_job(service, &headers, task, move |service, job| {
        service.create_pg(Some(&name), &new, job)
    })
    .await
}

/// Stops a pg and destroys it with its snapshots.
#[utoipa::path(
    delete, path = "/pgs/{name}",
    params(("name" = schema::Name, Path), Destroying, ("prefer" = Option<String>, Header, description = PREFER)),
    responses((status = 204), (status = 202, body = Job))
)]
async fn destroy(
    State(service): State<Arc<Service>>,
    Named(name): Named<BranchName>,
    Asked(how): Asked<Destroying>,
    headers: HeaderMap,
) -> Result<Response> {
    if how.dry_run {
        let checked = done(move || service.check_pg_destroyable(&name)).await?;
        return Ok(checked.into_response());
    }
    let task = Task {
        what: format!("destroy {name}"),
        status: StatusCode::NO_CONTENT,
    };
    as_job(service, &headers, task, move |service, job| {
        service.destroy_pg(&name, job)
    })
    .await
}

/// Starts, stops, restarts or promotes a pg, or sets it back.
#[utoipa::path(
    post, path = "/pgs/{name}/actions",
    params(("name" = schema::Name, Path), ("prefer" = Option<String>, Header, description = PREFER)),
    request_body = Action,
    responses((status = 200, body = Acted), (status = 202, body = Job))
)]
async fn act(
    State(service): State<Arc<Service>>,
    Named(name): Named<BranchName>,
    headers: HeaderMap,
    Body(action): Body<Action>,
) -> Result<Response> {
    let task = Task {
        what: format!("{} {name}", action.verb()),
        status: StatusCode::OK,
    };
    as_job(service, &headers, task, move |service, job| {
        service.act(&name, action, job)
    })
    .await
}

/// The log of a pg's server.
#[utoipa::path(
    get, path = "/pgs/{name}/log",
    params(("name" = schema::Name, Path), LogRange),
    responses((status = 200, body = LogText))
)]
async fn log(
    State(service): State<Arc<Service>>,
    Named(name): Named<BranchName>,
    Asked(range): Asked<LogRange>,
) -> Answer<LogText> {
    blocking(move || service.pg_log(&name, range.from)).await
}

impl Action {
    fn verb(&self) -> &'static str {
        match self {
            Action::Start { .. } => "start",
            Action::Stop { .. } => "stop",
            Action::Restart { .. } => "restart",
            Action::Promote => "promote",
            Action::Checkout { .. } => "check out",
        }
    }
}
