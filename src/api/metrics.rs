//! `GET /metrics`, for Prometheus; and the counting of requests for it.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::blocking;
use crate::error::Result;
use crate::service::Service;

/// Prometheus' text format.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

pub fn routes() -> OpenApiRouter<Arc<Service>> {
    OpenApiRouter::new().routes(routes!(metrics))
}

/// The state of the service in numbers, for Prometheus.
#[utoipa::path(
    get, path = "/metrics",
    responses((status = 200, body = String, content_type = "text/plain"))
)]
async fn metrics(State(service): State<Arc<Service>>) -> Result<Response> {
    let Json(text) = blocking(move || service.metrics()).await?;
    Ok(([(header::CONTENT_TYPE, TEXT)], text).into_response())
}

/// Notes each request once it has been answered.
pub async fn count(State(service): State<Arc<Service>>, request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let method = known(request.method());
    let route = request.extensions().get::<MatchedPath>().cloned();
    let response = next.run(request).await;
    let route = route.as_ref().map_or("none", MatchedPath::as_str);
    let status = response.status().as_u16();
    service.requests.note(&method, route, status, begun.elapsed());
    response
}

/// Others can have any name; each would be counted for ever.
fn known(method: &Method) -> String {
    match *method {
        Method::GET | Method::HEAD | Method::PUT | Method::POST | Method::PATCH | Method::DELETE => method.to_string(),
        _ => "other".into(),
    }
}
