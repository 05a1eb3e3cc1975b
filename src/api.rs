//! The REST interface: resources over the store's Unix socket, JSON both ways, errors as problem+json.
//!
//! Each module holds one resource: the types that the service and its client share, and the handlers. A handler
//! only hands over to the [`Service`], on a blocking thread: the store and the mounts wait for disks. Once begun,
//! work goes on to its end even when the client goes away. Nothing changes on GET; unknown fields are refused.

pub mod branches;
pub mod jobs;
pub mod mounts;
pub mod peeks;
pub mod pgs;
pub mod problem;
pub mod snapshots;
pub mod status;
pub mod storages;

use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::extract::{DefaultBodyLimit, FromRequest, FromRequestParts, Query, Request};
use axum::http::Method;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::service::Service;

/// Requests are names and paths: this is plenty.
const BODY_MAX: usize = 64 * 1024;

/// A handler's answer.
type Answer<T> = Result<Json<T>>;

pub fn router(service: Arc<Service>) -> Router {
    Router::new()
        .merge(status::routes())
        .merge(branches::routes())
        .merge(snapshots::routes())
        .merge(mounts::routes())
        .merge(pgs::routes())
        .merge(peeks::routes())
        .merge(storages::routes())
        .merge(jobs::routes())
        .fallback(no_resource)
        .method_not_allowed_fallback(no_method)
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .with_state(service)
}

async fn no_resource(request: Request) -> Error {
    Error::not_found(format!("no resource {}", request.uri().path()))
}

async fn no_method(method: Method, request: Request) -> Error {
    Error::usage(format!("{method} isn't for {}", request.uri().path()))
}

/// Does the work on a thread that may block.
async fn blocking<T, F>(work: F) -> Answer<T>
where
    T: Serialize + Send + 'static,
    F: FnOnce() -> Result<T> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(answer) => answer.map(Json),
        Err(died) => Err(Error::failure(format!("the service failed to answer: {died}"))),
    }
}

/// A JSON body; what is wrong with one is told as a problem.
struct Body<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Body<T>> {
        let Json(body) = Json::from_request(request, state)
            .await
            .map_err(|rejection| Error::usage(rejection.body_text()))?;
        Ok(Body(body))
    }
}

/// How to destroy something.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Destroying {
    /// Change nothing, only answer as the real thing would: that it is refused, or nothing.
    #[serde(default)]
    dry_run: bool,
}

/// Parameters after the `?`, likewise.
struct Asked<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Asked<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Asked<T>> {
        let Query(asked) = Query::from_request_parts(parts, state)
            .await
            .map_err(|rejection| Error::usage(rejection.body_text()))?;
        Ok(Asked(asked))
    }
}
