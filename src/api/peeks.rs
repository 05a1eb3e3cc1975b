//! `/snapshots/{name}/peeks`: a temporary read-only server over a snapshot.
//!
//! The answer is one line of JSON that says how to connect, and then stays open: the server lives as long as the connection.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;

use axum::body::{Body as Stream, Bytes};
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::stream::unfold;
use pageserver::SnapshotName;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Body, Named, schema};
use crate::error::{Error, Result};
use crate::service::Service;

#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewPeek {
    /// Directories to look for Postgres' programs in before the usual ones.
    #[serde(default)]
    #[schema(value_type = Vec<schema::Path>)]
    pub pg_bins: Vec<PathBuf>,
}

/// A server that is there for the time being.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Peek {
    /// For libpq.
    pub conninfo: String,
    #[schema(value_type = schema::Path)]
    pub socket_dir: PathBuf,
    pub port: u16,
    #[schema(value_type = String)]
    pub psql: PathBuf,
    /// The user that the server runs as, whom it lets in.
    pub user: String,
}

pub fn routes() -> OpenApiRouter<Arc<Service>> {
    OpenApiRouter::new().routes(routes!(peek))
}

/// Opens a temporary read-only server over a snapshot, for as long as the connection stays.
#[utoipa::path(
    post, path = "/snapshots/{name}/peeks",
    params(("name" = schema::SnapshotName, Path)), request_body = NewPeek,
    responses((status = 200, body = Peek, content_type = "application/x-ndjson"))
)]
async fn peek(
    State(service): State<Arc<Service>>,
    Named(name): Named<SnapshotName>,
    Body(new): Body<NewPeek>,
) -> Result<Response> {
    let opened = tokio::task::spawn_blocking(move || service.open_peek(&name, &new));
    let opened = opened
        .await
        .map_err(|died| Error::failure(format!("the service failed to answer: {died}")))?;
    let (opened, guard) = opened?;
    let line = serde_json::to_string(&opened).map_err(|error| Error::failure(error.to_string()))?;
    let told = unfold((Some(line), guard), |(line, guard)| async {
        match line {
            Some(line) => {
                let part = Ok::<Bytes, Infallible>(format!("{line}\n").into());
                Some((part, (None, guard)))
            }
            // Until the client goes away, and this with it.
            None => std::future::pending().await,
        }
    });
    let json = (header::CONTENT_TYPE, "application/x-ndjson");
    Ok(([json], Stream::from_stream(told)).into_response())
}
