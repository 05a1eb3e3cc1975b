//! `/status`, `/stop`, `/healthz`: the service itself.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::mounts::Mount;
use super::{Answer, Body, Done, blocking, done, schema};
use crate::service::Service;

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Status {
    pub store: Store,
    pub service: Process,
    pub http: Http,
    pub branches: usize,
    pub snapshots: usize,
    pub mounts: Vec<Mount>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Store {
    #[schema(value_type = schema::Path)]
    pub dir: PathBuf,
    /// Size of the filesystem under the store, in bytes.
    pub total: u64,
    /// What of it the store can still use, in bytes.
    pub available: u64,
    /// What to know of that filesystem.
    pub warning: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Process {
    pub pid: u32,
    pub version: String,
    /// Its file; one that was replaced or deleted since it was started has ` (deleted)` at its end.
    #[schema(value_type = schema::Path)]
    pub program: PathBuf,
    pub started: Timestamp,
    /// What to know of it.
    pub warning: Option<String>,
}

/// The service on TCP.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Http {
    /// Where it was told to listen: an address and a port, or `none`.
    pub listen: String,
    /// Where it listens.
    pub address: Option<String>,
    /// Why it can't listen where it was told to.
    pub error: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// Always `ok`: a service that isn't doesn't answer.
    status: String,
}

/// Whether to stop although mounts are in use.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Stop {
    pub force: bool,
}

/// What is to be the next service.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Upgrade {
    /// The program, by its absolute path.
    #[schema(value_type = schema::Path)]
    pub program: PathBuf,
    /// Although somebody looks into a snapshot.
    pub force: bool,
}

pub fn routes() -> OpenApiRouter<Arc<Service>> {
    OpenApiRouter::new()
        .routes(routes!(status))
        .routes(routes!(stop))
        .routes(routes!(upgrade))
        .routes(routes!(healthz))
}

/// The store, the service and its mounts.
#[utoipa::path(get, path = "/status", responses((status = 200, body = Status)))]
async fn status(State(service): State<Arc<Service>>) -> Answer<Status> {
    blocking(move || service.status()).await
}

/// Unmounts everything and ends the service. The next command starts it again.
#[utoipa::path(post, path = "/stop", request_body = Stop, responses((status = 204)))]
async fn stop(State(service): State<Arc<Service>>, Body(stop): Body<Stop>) -> Done {
    done(move || service.stop(stop.force)).await
}

/// Ends the service and has another program be the next. Mounts stay in use over it.
#[utoipa::path(post, path = "/upgrade", request_body = Upgrade, responses((status = 204)))]
async fn upgrade(State(service): State<Arc<Service>>, Body(upgrade): Body<Upgrade>) -> Done {
    done(move || service.upgrade(&upgrade)).await
}

/// Whether the service answers. Looks at no disk.
#[utoipa::path(get, path = "/healthz", responses((status = 200, body = Health)))]
async fn healthz() -> Json<Health> {
    let status = "ok".into();
    Json(Health { status })
}
