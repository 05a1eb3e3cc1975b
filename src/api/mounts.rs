//! `/mounts`: where views are mounted.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use pageserver::BranchName;
use serde::{Deserialize, Serialize};

use super::{Answer, Asked, Body, blocking};
use crate::name::ViewName;
use crate::service::Service;

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Mount {
    pub view: ViewName,
    pub dir: PathBuf,
    pub writable: bool,
    /// The branch was made for this mount just now.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub new_branch: bool,
    /// Why a remembered mount isn't there.
    pub error: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewMount {
    pub view: ViewName,
    /// Absolute.
    pub dir: PathBuf,
    /// Make the directory, and an empty branch of that name, when they are missing.
    pub create: bool,
    /// Fork this branch from the view and mount it instead.
    pub cow: Option<BranchName>,
}

/// Which mount is meant.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct At {
    pub dir: PathBuf,
}

pub fn routes() -> Router<Arc<Service>> {
    Router::new().route("/mounts", get(list).post(create).delete(destroy))
}

async fn list(State(service): State<Arc<Service>>) -> Answer<Vec<Mount>> {
    blocking(move || service.mounts()).await
}

async fn create(State(service): State<Arc<Service>>, Body(new): Body<NewMount>) -> Answer<Mount> {
    blocking(move || service.mount(&new)).await
}

async fn destroy(State(service): State<Arc<Service>>, Asked(at): Asked<At>) -> Answer<()> {
    blocking(move || service.umount(&at.dir)).await
}
