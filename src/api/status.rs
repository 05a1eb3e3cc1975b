//! `GET /status`, `POST /stop`: the service itself.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::routing::{get, post};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::mounts::Mount;
use super::{Answer, Body, blocking};
use crate::service::Service;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    pub store: Store,
    pub service: Process,
    pub branches: usize,
    pub snapshots: usize,
    pub mounts: Vec<Mount>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Store {
    pub dir: PathBuf,
    /// Size of the filesystem under the store, in bytes.
    pub total: u64,
    /// What of it the store can still use, in bytes.
    pub available: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Process {
    pub pid: u32,
    pub version: String,
    pub started: Timestamp,
}

/// Whether to stop although mounts are in use.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stop {
    pub force: bool,
}

pub fn routes() -> Router<Arc<Service>> {
    Router::new().route("/status", get(status)).route("/stop", post(stop))
}

async fn status(State(service): State<Arc<Service>>) -> Answer<Status> {
    blocking(move || service.status()).await
}

async fn stop(State(service): State<Arc<Service>>, Body(stop): Body<Stop>) -> Answer<()> {
    blocking(move || service.stop(stop.force)).await
}
