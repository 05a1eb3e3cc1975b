//! Who may ask: checked before anything else of a request is looked at.
//!
//! A page in a browser can send requests to this machine. It can't read the token, but it need not even try: the name it
//! was loaded by stands in `Host` (also when that name's address was changed to ours, DNS rebinding) and in `Origin`, and
//! both have to be this machine's own. On TCP, where every user of the machine gets through, a request needs the
//! store's token as well; the socket is its owner's alone.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::Response;

use super::docs;
use super::openapi::PUBLIC;
use super::problem::Refusal;
use crate::service::token::Token;
use crate::store_dir;

/// What a door asks of those who come in.
#[derive(Clone)]
pub struct Guard {
    token: Option<Arc<Token>>,
}

impl Guard {
    /// Of the socket, which only its owner can open.
    pub fn of_socket() -> Guard {
        Guard { token: None }
    }

    pub fn of_tcp(token: Token) -> Guard {
        let token = Some(Arc::new(token));
        Guard { token }
    }

    fn check(&self, request: &Request) -> Result<(), Refusal> {
        check_host(request)?;
        check_origin(request.headers())?;
        match &self.token {
            Some(token) if !is_public(request.uri().path()) => check_token(token, request.headers()),
            _ => Ok(()),
        }
    }
}

pub async fn pass(State(guard): State<Guard>, request: Request, next: Next) -> Result<Response, Refusal> {
    guard.check(&request)?;
    Ok(next.run(request).await)
}

/// What tells nothing of the store.
fn is_public(path: &str) -> bool {
    PUBLIC.contains(&path) || docs::has(path)
}

fn check_host(request: &Request) -> Result<(), Refusal> {
    let named = request.headers().get_all(header::HOST);
    let mut hosts: Vec<&[u8]> = named.iter().map(HeaderValue::as_bytes).collect();
    hosts.extend(request.uri().authority().map(|authority| authority.as_str().as_bytes()));
    match !hosts.is_empty() && hosts.into_iter().all(is_local) {
        true => Ok(()),
        false => Err(foreign(header::HOST)),
    }
}

fn check_origin(headers: &HeaderMap) -> Result<(), Refusal> {
    let mut origins = headers.get_all(header::ORIGIN).iter();
    match origins.all(|origin| is_local_origin(origin.as_bytes())) {
        true => Ok(()),
        false => Err(foreign(header::ORIGIN)),
    }
}

fn foreign(header: HeaderName) -> Refusal {
    Refusal::new(StatusCode::FORBIDDEN, format!("the {header} is not this machine"))
        .hint("ask by the name localhost or the address that the service listens on")
}

fn is_local_origin(origin: &[u8]) -> bool {
    let Ok(origin) = Uri::try_from(origin) else {
        return false;
    };
    let authority = origin.authority().map(|authority| authority.as_str().as_bytes());
    origin.scheme().is_some() && authority.is_some_and(is_local)
}

/// `localhost` or an address of the loopback, with or without a port. No name in the DNS can be made to look like these.
fn is_local(authority: &[u8]) -> bool {
    let Ok(authority) = Authority::try_from(authority) else {
        return false;
    };
    let host = authority.host();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    !authority.as_str().contains('@')
        && (host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback()))
}

fn check_token(token: &Token, headers: &HeaderMap) -> Result<(), Refusal> {
    let given = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
    match given.and_then(bearer) {
        Some(given) if token.is(given) => Ok(()),
        Some(_) => Err(no_token("the token is not this store's")),
        None => Err(no_token("this needs the store's token")),
    }
}

fn no_token(what: &str) -> Refusal {
    Refusal::new(StatusCode::UNAUTHORIZED, what).hint(format!(
        "send `Authorization: Bearer TOKEN` with what is in the file {} of the store",
        store_dir::TOKEN
    ))
}

/// The name of the scheme may be written in any case.
fn bearer(authorization: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = authorization.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_local() {
        for local in [
            "localhost",
            "LOCALHOST:3000",
            "127.0.0.1:80",
            "127.0.0.2",
            "[::1]",
            "[::1]:3000",
        ] {
            assert!(is_local(local.as_bytes()), "{local}");
        }
        for foreign in [
            "",
            "localhost.evil.example",
            "evil.example:3000",
            "127.0.0.1.evil.example",
            "localhost@evil.example",
            "evil@localhost",
            "10.0.0.1",
            "[::2]",
            "0.0.0.0",
            "local host",
        ] {
            assert!(!is_local(foreign.as_bytes()), "{foreign}");
        }
    }

    #[test]
    fn an_origin_is_a_whole_one() {
        for local in ["http://localhost:3000", "https://127.0.0.1", "http://[::1]:1"] {
            assert!(is_local_origin(local.as_bytes()), "{local}");
        }
        for foreign in [
            "null",
            "",
            "localhost",
            "http://evil.example",
            "file://",
            "http://localhost.evil.example",
        ] {
            assert!(!is_local_origin(foreign.as_bytes()), "{foreign}");
        }
    }

    #[test]
    fn a_bearer_is_told_from_others() {
        assert_eq!(bearer(b"bearer abc"), Some(&b"abc"[..]));
        assert_eq!(bearer(b"Basic abc"), None);
        assert_eq!(bearer(b"Bear"), None);
    }
}
