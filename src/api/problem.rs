//! Errors on the wire: RFC 9457 problem details, with zenith's hint beside them.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind};

/// What every unsuccessful answer carries.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Problem {
    pub title: String,
    /// The HTTP status; it tells the [`Kind`].
    pub status: u16,
    pub detail: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// The one table between kinds of errors and HTTP.
const KINDS: [(Kind, StatusCode, &str); 5] = [
    (Kind::Usage, StatusCode::BAD_REQUEST, "Bad request"),
    (Kind::NotFound, StatusCode::NOT_FOUND, "Not found"),
    (Kind::Refused, StatusCode::CONFLICT, "Refused"),
    (Kind::NoService, StatusCode::SERVICE_UNAVAILABLE, "Service unavailable"),
    (Kind::Failure, StatusCode::INTERNAL_SERVER_ERROR, "Failure"),
];

impl From<Error> for Problem {
    fn from(error: Error) -> Problem {
        let (status, title) = KINDS
            .iter()
            .find(|(kind, ..)| *kind == error.kind)
            .map_or((500, "Failure"), |(_, status, title)| (status.as_u16(), title));
        Problem {
            title: title.into(),
            status,
            detail: error.message,
            hint: error.hint,
        }
    }
}

impl From<Problem> for Error {
    fn from(problem: Problem) -> Error {
        let kind = KINDS
            .iter()
            .find(|(_, status, _)| status.as_u16() == problem.status)
            .map_or(Kind::Failure, |(kind, ..)| *kind);
        Error {
            kind,
            message: problem.detail,
            hint: problem.hint,
        }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        match self.kind {
            Kind::Failure => tracing::error!(hint = self.hint, "{}", self.message),
            _ => tracing::debug!("refused: {}", self.message),
        }
        let problem = Problem::from(self);
        let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, axum::Json(problem)).into_response();
        let json = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(header::CONTENT_TYPE, json);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_comes_back_from_the_wire_as_it_went_in() {
        for (kind, ..) in KINDS {
            let error = Error::new(kind, "what").hint("do this");
            assert_eq!(Error::from(Problem::from(error.clone())), error);
        }
    }
}
