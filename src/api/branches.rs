//! `/branches`: the lines of history.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::{get, post};
use jiff::Timestamp;
use pageserver::{BranchName, SnapshotName, Tag};
use serde::{Deserialize, Serialize};

use super::mounts::Mount;
use super::storages::StorageName;
use super::{Answer, Asked, Body, Destroying, blocking};
use crate::name::ViewName;
use crate::service::Service;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Branch {
    pub name: BranchName,
    /// The branch or snapshot it was forked from.
    pub parent: Option<String>,
    pub created: Timestamp,
    pub storage: StorageName,
    pub snapshots: usize,
    pub mounted: Option<PathBuf>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewBranch {
    pub name: BranchName,
    pub start: Start,
}

/// What a new branch begins with.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    Empty,
    View(ViewName),
    /// A freshly initdb'ed cluster.
    Cluster(NewCluster),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewCluster {
    /// Directories to look for Postgres' programs in before the usual ones.
    pub pg_bins: Vec<PathBuf>,
    /// Passed on to initdb as they are.
    pub options: Vec<String>,
    /// The caller's language and time zone, which initdb writes into the configuration.
    pub locale: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkout {
    pub tag: Tag,
}

/// How a branch stands after a checkout.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CheckedOut {
    pub at: SnapshotName,
    /// The name that keeps the state before.
    pub kept: SnapshotName,
    /// Where the branch is mounted again.
    pub mount: Option<Mount>,
}

pub fn routes() -> Router<Arc<Service>> {
    Router::new()
        .route("/branches", get(list).post(create))
        .route("/branches/{name}", get(show).delete(destroy))
        .route("/branches/{name}/checkout", post(checkout))
}

async fn list(State(service): State<Arc<Service>>) -> Answer<Vec<Branch>> {
    blocking(move || Ok(service.branches())).await
}

async fn show(State(service): State<Arc<Service>>, Path(name): Path<String>) -> Answer<Branch> {
    blocking(move || service.branch(&name.parse()?)).await
}

async fn create(State(service): State<Arc<Service>>, Body(new): Body<NewBranch>) -> Answer<Branch> {
    blocking(move || service.create_branch(&new)).await
}

async fn destroy(
    State(service): State<Arc<Service>>,
    Path(name): Path<String>,
    Asked(how): Asked<Destroying>,
) -> Answer<()> {
    blocking(move || match how.dry_run {
        true => service.check_branch_destroyable(&name.parse()?),
        false => service.destroy_branch(&name.parse()?),
    })
    .await
}

async fn checkout(
    State(service): State<Arc<Service>>,
    Path(name): Path<String>,
    Body(checkout): Body<Checkout>,
) -> Answer<CheckedOut> {
    blocking(move || {
        service.checkout(&SnapshotName {
            branch: name.parse()?,
            tag: checkout.tag,
        })
    })
    .await
}
