//! `/mounts`: where views are mounted.

use std::path::PathBuf;
use std::sync::Arc;

use axum::extract::State;
use pageserver::BranchName;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Answer, Asked, Body, Done, Made, blocking, done, made, schema};
use crate::name::ViewName;
use crate::service::Service;

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Mount {
    pub view: ViewName,
    #[schema(value_type = schema::Path)]
    pub dir: PathBuf,
    pub writable: bool,
    /// The branch was made for this mount just now.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub new_branch: bool,
    /// Why a remembered mount isn't there.
    pub error: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewMount {
    pub view: ViewName,
    /// Absolute.
    #[schema(value_type = schema::Path)]
    pub dir: PathBuf,
    /// Make the directory, and an empty branch of that name, when they are missing.
    pub create: bool,
    /// Fork this branch from the view and mount it instead.
    #[schema(value_type = Option<schema::Name>)]
    pub cow: Option<BranchName>,
}

/// Which mount is meant.
#[derive(Clone, Debug, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct At {
    #[param(value_type = schema::Path)]
    pub dir: PathBuf,
}

pub fn routes() -> OpenApiRouter<Arc<Service>> {
    OpenApiRouter::new().routes(routes!(list, create, destroy))
}

/// What is mounted, and what was and could not come back.
#[utoipa::path(get, path = "/mounts", responses((status = 200, body = Vec<Mount>)))]
async fn list(State(service): State<Arc<Service>>) -> Answer<Vec<Mount>> {
    blocking(move || service.mounts()).await
}

/// Mounts a view.
#[utoipa::path(post, path = "/mounts", request_body = NewMount, responses((status = 201, body = Mount)))]
async fn create(State(service): State<Arc<Service>>, Body(new): Body<NewMount>) -> Made<Mount> {
    made(move || service.mount(&new)).await
}

/// Unmounts what is mounted on a directory.
#[utoipa::path(delete, path = "/mounts", params(At), responses((status = 204)))]
async fn destroy(State(service): State<Arc<Service>>, Asked(at): Asked<At>) -> Done {
    done(move || service.umount(&at.dir)).await
}
