//! `/pgs`: data directories and the Postgres servers on them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use jiff::Timestamp;
use pageserver::{BranchName, SnapshotName, Tag};
use serde::{Deserialize, Serialize};

use super::jobs::as_job;
use super::storages::StorageName;
use super::{Answer, Asked, Body, Destroying, blocking};
use crate::error::Result;
use crate::name::ViewName;
use crate::postgres::server::{Status, StopMode};
use crate::service::Service;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pg {
    pub name: BranchName,
    pub role: Role,
    /// The pg that a replica follows.
    pub follows: Option<BranchName>,
    /// Where the data directory is mounted.
    pub dir: PathBuf,
    pub mounted: bool,
    pub storage: StorageName,
    /// Bytes that its own layers hold, without what it shares with where it started.
    pub used: u64,
    pub port: u16,
    /// Where the server's socket is.
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

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    Primary,
    Replica,
}

/// Everything about one pg.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PgDetails {
    #[serde(flatten)]
    pub pg: Pg,
    /// The major version.
    pub version: u32,
    pub pg_bin: PathBuf,
    /// Where recovery would start, from `pg_control`.
    pub redo_lsn: Option<String>,
    pub wal_timeline: Option<u32>,
    /// For libpq.
    pub conninfo: String,
    pub snapshots: Vec<SnapshotName>,
    pub replicas: Vec<BranchName>,
    pub log: PathBuf,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
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

#[derive(Clone, Debug, Serialize, Deserialize)]
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
    Checkout { tag: Tag },
}

/// How a pg stands after an action, and what the action made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Acted {
    pub pg: Pg,
    /// The name that keeps the state before a checkout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<SnapshotName>,
    /// What to know beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
}

/// What of a server's log to send.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogRange {
    /// Bytes to leave out from the start.
    #[serde(default)]
    pub from: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LogText {
    pub text: String,
    /// Where to go on.
    pub next: u64,
}

pub fn routes() -> Router<Arc<Service>> {
    Router::new()
        .route("/pgs", get(list).merge(put(create_somehow_named)))
        .route("/pgs/{name}", get(show).put(create).delete(destroy))
        .route("/pgs/{name}/actions", post(act))
        .route("/pgs/{name}/log", get(log))
}

async fn list(State(service): State<Arc<Service>>) -> Answer<Vec<Pg>> {
    blocking(move || service.pgs()).await
}

async fn show(State(service): State<Arc<Service>>, Path(name): Path<String>) -> Answer<PgDetails> {
    blocking(move || service.pg_details(&name.parse()?)).await
}

async fn create_somehow_named(
    State(service): State<Arc<Service>>,
    headers: HeaderMap,
    Body(new): Body<NewPg>,
) -> Result<Response> {
    as_job(service, &headers, "create a pg".into(), move |service, job| {
        service.create_pg(None, &new, job)
    })
    .await
}

async fn create(
    State(service): State<Arc<Service>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    Body(new): Body<NewPg>,
) -> Result<Response> {
    let name: BranchName = name.parse()?;
    as_job(service, &headers, format!("create {name}"), move |service, job| {
        service.create_pg(Some(&name), &new, job)
    })
    .await
}

async fn destroy(
    State(service): State<Arc<Service>>,
    Path(name): Path<String>,
    Asked(how): Asked<Destroying>,
    headers: HeaderMap,
) -> Result<Response> {
    let name: BranchName = name.parse()?;
    if how.dry_run {
        let checked = blocking(move || service.check_pg_destroyable(&name)).await?;
        return Ok(checked.into_response());
    }
    as_job(service, &headers, format!("destroy {name}"), move |service, job| {
        service.destroy_pg(&name, job)
    })
    .await
}

async fn act(
    State(service): State<Arc<Service>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    Body(action): Body<Action>,
) -> Result<Response> {
    let name: BranchName = name.parse()?;
    let what = format!("{} {name}", action.verb());
    as_job(service, &headers, what, move |service, job| {
        service.act(&name, action, job)
    })
    .await
}

async fn log(
    State(service): State<Arc<Service>>,
    Path(name): Path<String>,
    Asked(range): Asked<LogRange>,
) -> Answer<LogText> {
    blocking(move || service.pg_log(&name.parse()?, range.from)).await
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
