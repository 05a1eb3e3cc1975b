//! Errors on the wire: RFC 9457 problem details, with zenith's hint beside them.
//!
//! What is wrong with a request itself (its body, its values, its names) is 400 throughout, never 422: to whoever
//! sent it that is the same thing.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::error::{Error, Kind};

/// What every unsuccessful answer carries.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What went wrong, in a sentence.
    pub detail: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// The one table between kinds of errors and HTTP. An error is sent with the first status of its kind; the others of
/// a kind are for what HTTP alone refuses.
pub const STATUSES: [(StatusCode, Kind, &str); 10] = [
    (StatusCode::BAD_REQUEST, Kind::Usage, "Bad request"),
    (StatusCode::NOT_FOUND, Kind::NotFound, "Not found"),
    (StatusCode::CONFLICT, Kind::Refused, "Refused"),
    (StatusCode::SERVICE_UNAVAILABLE, Kind::NoService, "Service unavailable"),
    (StatusCode::INTERNAL_SERVER_ERROR, Kind::Failure, "Failure"),
    (StatusCode::UNAUTHORIZED, Kind::Refused, "No token"),
    (StatusCode::FORBIDDEN, Kind::Refused, "Forbidden"),
    (StatusCode::METHOD_NOT_ALLOWED, Kind::Usage, "Method not allowed"),
    (StatusCode::PAYLOAD_TOO_LARGE, Kind::Usage, "Body too large"),
    (StatusCode::UNSUPPORTED_MEDIA_TYPE, Kind::Usage, "Not JSON"),
];

/// An unsuccessful answer: an error with its status.
#[derive(Debug)]
pub struct Refusal {
    status: StatusCode,
    error: Error,
}

impl Refusal {
    /// With a status that says more than the kind of the error: one of [`STATUSES`], or it is a bad request.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Refusal {
        let row = STATUSES.iter().find(|(known, ..)| *known == status);
        let (status, kind, _) = row.unwrap_or(&STATUSES[0]);
        Refusal {
            status: *status,
            error: Error::new(*kind, message),
        }
    }

    pub fn hint(self, hint: impl Into<String>) -> Refusal {
        Refusal {
            error: self.error.hint(hint),
            ..self
        }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        let row = STATUSES.iter().find(|(_, kind, _)| *kind == error.kind);
        let status = row.map_or(StatusCode::INTERNAL_SERVER_ERROR, |(status, ..)| *status);
        Refusal { status, error }
    }
}

impl From<Refusal> for Problem {
    fn from(Refusal { status, error }: Refusal) -> Problem {
        let row = STATUSES.iter().find(|(known, ..)| *known == status);
        Problem {
            title: row.map_or("Failure", |(.., title)| title).into(),
            status: status.as_u16(),
            detail: error.message,
            hint: error.hint,
        }
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Problem {
        Refusal::from(error).into()
    }
}

impl From<Problem> for Error {
    fn from(problem: Problem) -> Error {
        let row = STATUSES.iter().find(|(status, ..)| status.as_u16() == problem.status);
        Error {
            kind: row.map_or(Kind::Failure, |(_, kind, _)| *kind),
            message: problem.detail,
            hint: problem.hint,
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        match self.error.kind {
            Kind::Failure => tracing::error!(hint = self.error.hint, "{}", self.error.message),
            _ => tracing::debug!("refused: {}", self.error.message),
        }
        let status = self.status;
        let mut response = (status, axum::Json(Problem::from(self))).into_response();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        Refusal::from(self).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_comes_back_from_the_wire_as_it_went_in() {
        for (_, kind, _) in STATUSES {
            let error = Error::new(kind, "what").hint("do this");
            assert_eq!(Error::from(Problem::from(error.clone())), error);
        }
    }

    #[test]
    fn a_status_of_its_own_is_sent_and_tells_the_kind() {
        let problem = Problem::from(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "too much"));
        assert_eq!(problem.status, 413);
        assert_eq!(Error::from(problem).kind, Kind::Usage);
    }
}
