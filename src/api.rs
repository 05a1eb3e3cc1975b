//! The REST interface: resources over the store's Unix socket and TCP, JSON both ways, errors as problem+json.
//!
//! Each module holds one resource: the types that the service and its client share, and the handlers. A handler
//! only hands over to the [`Service`], on a blocking thread: the store and the mounts wait for disks. Once begun,
//! work goes on to its end even when the client goes away. Nothing changes on GET; unknown fields are refused. What a
//! handler answers stands in its attribute, from which the description of the interface ([`openapi`]) is made:
//! 200 with what was asked for, 201 with what was made, 202 with a job, 204 with nothing.
//!
//! ```text
//!   request ──> metrics ──> guard ──> route ──> handler ──> Service
//!               counts      who asks
//! ```

pub mod branches;
pub mod check;
mod docs;
pub mod guard;
pub mod jobs;
mod metrics;
pub mod mounts;
mod openapi;
pub mod peeks;
pub mod pgs;
pub mod problem;
pub mod schedules;
mod schema;
pub mod snapshots;
pub mod status;
pub mod storages;

use std::str::FromStr;
use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::extract::{DefaultBodyLimit, FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode};
use axum::middleware::from_fn_with_state;
use axum::response::NoContent;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;

use crate::error::{Error, Result};
use crate::service::Service;
use guard::Guard;
use problem::Refusal;

/// Requests are names and paths: this is plenty.
const BODY_MAX: usize = 64 * 1024;

/// A handler's answer: what was asked for.
type Answer<T> = Result<Json<T>>;

/// What was made.
type Made<T> = Result<(StatusCode, Json<T>)>;

/// Nothing more to tell.
type Done = Result<NoContent>;

pub fn router(service: Arc<Service>, guard: Guard) -> Router {
    let (router, api) = OpenApiRouter::new()
        .merge(status::routes())
        .merge(branches::routes())
        .merge(schedules::routes())
        .merge(snapshots::routes())
        .merge(mounts::routes())
        .merge(pgs::routes())
        .merge(peeks::routes())
        .merge(storages::routes())
        .merge(check::routes())
        .merge(jobs::routes())
        .merge(metrics::routes())
        .split_for_parts();
    router
        .merge(openapi::route(api))
        .merge(docs::routes())
        .fallback(no_resource)
        .method_not_allowed_fallback(no_method)
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .layer(from_fn_with_state(guard, guard::pass))
        .layer(from_fn_with_state(service.clone(), metrics::count))
        .with_state(service)
}

async fn no_resource(request: Request) -> Error {
    Error::not_found(format!("no resource {}", request.uri().path()))
}

async fn no_method(method: Method, request: Request) -> Refusal {
    let what = format!("{method} isn't for {}", request.uri().path());
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, what)
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

async fn made<T, F>(work: F) -> Made<T>
where
    T: Serialize + Send + 'static,
    F: FnOnce() -> Result<T> + Send + 'static,
{
    blocking(work).await.map(|made| (StatusCode::CREATED, made))
}

async fn done(work: impl FnOnce() -> Result<()> + Send + 'static) -> Done {
    blocking(work).await.map(|_| NoContent)
}

/// A JSON body; what is wrong with one is told as a problem.
struct Body<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> std::result::Result<Body<T>, Refusal> {
        match Json::from_request(request, state).await {
            Ok(Json(body)) => Ok(Body(body)),
            Err(rejection) => Err(Refusal::new(rejection.status(), rejection.body_text())),
        }
    }
}

/// The name, or whatever else it is, in a path with one.
struct Named<T>(T);

impl<T, S> FromRequestParts<S> for Named<T>
where
    T: FromStr,
    Error: From<T::Err>,
    S: Send + Sync,
{
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Named<T>> {
        let Path(name) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|rejection| Error::usage(rejection.body_text()))?;
        Ok(Named(name.parse()?))
    }
}

/// How to destroy something.
#[derive(Deserialize, IntoParams)]
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
