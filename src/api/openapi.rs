//! `/openapi.json`: what the interface can be asked and what it answers, OpenAPI 3.1.
//!
//! Each handler describes itself and its successful answers. What holds for many is added here, by rule: which
//! problems an operation can answer follows from its shape (a body, a name, a change).

use std::sync::Arc;

use axum::http::StatusCode;
use axum::{Json, Router, routing::get};
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::schema::{AdditionalProperties, Components};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{ContentBuilder, Info, OpenApi, Ref, RefOr, Response, ResponseBuilder, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::problem::{Problem, STATUSES};
use crate::service::Service;

/// Paths that need no token. They tell nothing of the store.
pub const PUBLIC: [&str; 2] = ["/healthz", "/openapi.json"];

const TOKEN: &str = "token";

const ABOUT: &str = "Git for PostgreSQL data directories: snapshots, rollbacks and copy-on-write branches as mounts.\n\n\
     On TCP every request needs the token in the file `api.token` of the store; the Unix socket `zenith.sock` beside \
     it needs none. Errors are problem details (RFC 9457). What may take a while is done as a job: \
     with `Prefer: respond-async` it is answered at once with 202.";

/// Serves the description of the router that it is given with.
pub fn route(api: OpenApi) -> Router<Arc<Service>> {
    let api = Arc::new(complete(api));
    Router::new().route("/openapi.json", get(async move || Json(api.as_ref().clone())))
}

fn complete(mut api: OpenApi) -> OpenApi {
    api.info = Info::new("zenith", env!("CARGO_PKG_VERSION"));
    api.info.description = Some(ABOUT.into());
    api.security = Some(vec![needs_token()]);
    add_components(api.components.get_or_insert_default());
    for (path, item) in &mut api.paths.paths {
        for (changes, operation) in operations(item) {
            complete_operation(path, changes, operation);
        }
    }
    api
}

fn needs_token() -> SecurityRequirement {
    SecurityRequirement::new::<_, [&str; 0], &str>(TOKEN, [])
}

fn add_components(components: &mut Components) {
    let mut schemas: Vec<(String, RefOr<Schema>)> = vec![(Problem::name().into(), Problem::schema())];
    Problem::schemas(&mut schemas);
    components.schemas.extend(schemas);
    components.schemas.values_mut().for_each(close_variants);
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some("What is in the file `api.token` of the store."));
    let bearer = SecurityScheme::Http(bearer.build());
    components.security_schemes.insert(TOKEN.into(), RefOr::T(bearer));
    let responses = STATUSES
        .iter()
        .map(|(status, _, title)| (name_of(*status), problem(title)));
    components.responses.extend(responses);
}

/// The alternatives of what is read refuse unknown fields, which their derivation doesn't say.
fn close_variants(schema: &mut RefOr<Schema>) {
    let RefOr::T(Schema::OneOf(alternatives)) = schema else {
        return;
    };
    for alternative in &mut alternatives.items {
        if let RefOr::T(Schema::Object(object)) = alternative {
            let closed = Box::new(AdditionalProperties::FreeForm(false));
            object.additional_properties.get_or_insert(closed);
        }
    }
}

fn problem(title: &str) -> RefOr<Response> {
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name(Problem::name())));
    let response = ResponseBuilder::new()
        .description(title)
        .content("application/problem+json", content.build());
    RefOr::T(response.build())
}

fn name_of(status: StatusCode) -> String {
    format!("problem{}", status.as_u16())
}

/// The operations of a path, and whether each changes something.
fn operations(item: &mut PathItem) -> impl Iterator<Item = (bool, &mut Operation)> {
    let changing = [&mut item.put, &mut item.post, &mut item.patch, &mut item.delete];
    let changing = changing.into_iter().flatten().map(|operation| (true, operation));
    item.get.iter_mut().map(|operation| (false, operation)).chain(changing)
}

fn complete_operation(path: &str, changes: bool, operation: &mut Operation) {
    let resource = path.split('/').nth(1).unwrap_or_default();
    operation.tags = Some(vec![resource.into()]);
    // Handlers of different resources have the same names.
    operation.operation_id = operation.operation_id.take().map(|id| match id == resource {
        true => id,
        false => format!("{resource}_{id}"),
    });
    if PUBLIC.contains(&path) {
        operation.security = Some(vec![]);
    }
    for status in problems(path, changes, operation) {
        let response = RefOr::Ref(Ref::from_response_name(name_of(status)));
        operation
            .responses
            .responses
            .entry(status.as_str().into())
            .or_insert(response);
    }
}

/// The problems that an operation of this shape can answer.
fn problems(path: &str, changes: bool, operation: &Operation) -> Vec<StatusCode> {
    use StatusCode as S;
    let mut statuses = vec![S::FORBIDDEN];
    if PUBLIC.contains(&path) {
        return statuses;
    }
    statuses.extend([S::UNAUTHORIZED, S::INTERNAL_SERVER_ERROR]);
    if operation.parameters.is_some() {
        statuses.extend([S::BAD_REQUEST, S::NOT_FOUND, S::CONFLICT]);
    }
    if operation.request_body.is_some() {
        statuses.extend([S::BAD_REQUEST, S::PAYLOAD_TOO_LARGE, S::UNSUPPORTED_MEDIA_TYPE]);
    }
    if changes {
        statuses.extend([S::NOT_FOUND, S::CONFLICT, S::SERVICE_UNAVAILABLE]);
    }
    statuses
}
