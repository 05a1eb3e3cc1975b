//! `/branches`: the lines of history.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use axum::extract::State;
use jiff::Timestamp;
use pageserver::{BranchName, SnapshotName, Tag};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::mounts::Mount;
use super::storages::StorageName;
use super::{Answer, Asked, Body, Destroying, Done, Made, Named, blocking, done, made, schema};
use crate::name::ViewName;
use crate::service::Service;

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Branch {
    #[schema(value_type = schema::Name)]
    pub name: BranchName,
    /// The branch or snapshot it was forked from.
    pub parent: Option<String>,
    pub created: Timestamp,
    #[schema(value_type = schema::Name)]
    pub storage: StorageName,
    pub snapshots: usize,
    #[schema(value_type = Option<schema::Path>)]
    pub mounted: Option<PathBuf>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewBranch {
    #[schema(value_type = schema::Name)]
    pub name: BranchName,
    pub start: Start,
    /// Where an empty one goes; `local` unless told. A fork lies where its source does.
    #[serde(default)]
    #[schema(value_type = Option<schema::Name>)]
    pub storage: Option<StorageName>,
}

/// What a new branch begins with.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    Empty,
    View(ViewName),
    /// A freshly initdb'ed cluster.
    Cluster(NewCluster),
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewCluster {
    /// Directories to look for Postgres' programs in before the usual ones.
    #[schema(value_type = Vec<schema::Path>)]
    pub pg_bins: Vec<PathBuf>,
    /// Passed on to initdb as they are.
    pub options: Vec<String>,
    /// The caller's language and time zone, which initdb writes into the configuration.
    pub locale: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Checkout {
    #[schema(value_type = schema::Tag)]
    pub tag: Tag,
}

/// How a branch stands after a checkout.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CheckedOut {
    #[schema(value_type = schema::SnapshotName)]
    pub at: SnapshotName,
    /// The name that keeps the state before.
    #[schema(value_type = schema::SnapshotName)]
    pub kept: SnapshotName,
    /// Where the branch is mounted again.
    pub mount: Option<Mount>,
}

pub fn routes() -> OpenApiRouter<Arc<Service>> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(show, destroy))
        .routes(routes!(checkout))
}

/// All branches.
#[utoipa::path(get, path = "/branches", responses((status = 200, body = Vec<Branch>)))]
async fn list(State(service): State<Arc<Service>>) -> Answer<Vec<Branch>> {
    blocking(move || Ok(service.branches())).await
}

/// One branch.
#[utoipa::path(
    get, path = "/branches/{name}",
    params(("name" = schema::Name, Path)),
    responses((status = 200, body = Branch))
)]
async fn show(State(service): State<Arc<Service>>, Named(name): Named<BranchName>) -> Answer<Branch> {
    blocking(move || service.branch(&name)).await
}

/// Makes a branch: empty, of a view, or with a new cluster.
#[utoipa::path(post, path = "/branches", request_body = NewBranch, responses((status = 201, body = Branch)))]
async fn create(State(service): State<Arc<Service>>, Body(new): Body<NewBranch>) -> Made<Branch> {
    made(move || service.create_branch(&new)).await
}

/// Deletes a branch and its snapshots.
#[utoipa::path(
    delete, path = "/branches/{name}",
    params(("name" = schema::Name, Path), Destroying),
    responses((status = 204))
)]
async fn destroy(
    State(service): State<Arc<Service>>,
    Named(name): Named<BranchName>,
    Asked(how): Asked<Destroying>,
) -> Done {
    done(move || match how.dry_run {
        true => service.check_branch_destroyable(&name),
        false => service.destroy_branch(&name),
    })
    .await
}

/// Sets a branch back to one of its snapshots; what it was is kept.
#[utoipa::path(
    post, path = "/branches/{name}/checkout",
    params(("name" = schema::Name, Path)),
    request_body = Checkout,
    responses((status = 200, body = CheckedOut))
)]
async fn checkout(
    State(service): State<Arc<Service>>,
    Named(branch): Named<BranchName>,
    Body(Checkout { tag }): Body<Checkout>,
) -> Answer<CheckedOut> {
    blocking(move || service.checkout(&SnapshotName { branch, tag })).await
}
