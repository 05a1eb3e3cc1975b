//! The service's TCP side: where it listens, and why not when it doesn't.
//!
//! The socket in the store is what the service can't be without. TCP is for programs and browsers, and where it can't be
//! had (another store's service has the port) the service comes up all the same and says so.

use std::env;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::str::FromStr;

use super::token::Token;
use crate::api::status::Http;
use crate::error::{Error, Result};

/// Where the service listens when it isn't told.
const DEFAULT: &str = "127.0.0.1:3000";

/// Stands for not at all.
const NONE: &str = "none";

const VARIABLE: &str = "ZENITH_LISTEN";

/// Where to listen, if anywhere.
struct Listen(Option<SocketAddr>);

/// What a service listens with, and on what terms.
pub struct Tcp {
    pub listener: TcpListener,
    pub token: Token,
}

/// Listens as given, else as the environment says, else on the default address.
pub fn open(given: Option<&str>, store: &Path) -> Result<(Http, Option<Tcp>)> {
    let asked = asked(given)?;
    let Listen(address) = asked.parse()?;
    let opened = address.map(|address| Tcp::open(address, store));
    let (address, tcp, error) = match opened {
        None => (None, None, None),
        Some(Ok((address, tcp))) => (Some(address), Some(tcp), None),
        Some(Err(error)) => {
            tracing::warn!(hint = error.hint, "no HTTP on {asked}: {error}");
            (None, None, Some(error.message))
        }
    };
    let address = address.map(|address| address.to_string());
    let http = Http {
        listen: asked,
        address,
        error,
    };
    Ok((http, tcp))
}

/// What is asked for, in the words it was.
pub fn asked(given: Option<&str>) -> Result<String> {
    let variable = match env::var(VARIABLE) {
        Ok(text) if !text.is_empty() => Some(text),
        Err(env::VarError::NotUnicode(text)) => Some(text.to_string_lossy().into_owned()),
        _ => None,
    };
    let asked = given.map(String::from).or(variable).unwrap_or_else(|| DEFAULT.into());
    asked.parse().map(|Listen(_)| asked)
}

impl FromStr for Listen {
    type Err = Error;

    fn from_str(text: &str) -> Result<Listen> {
        if text == NONE {
            return Ok(Listen(None));
        }
        let address: SocketAddr = text.replace("localhost:", "127.0.0.1:").parse().map_err(|_| {
            Error::usage(format!("{text:?} is no address to listen on"))
                .hint(format!("give ADDRESS:PORT, such as {DEFAULT}, or {NONE}"))
        })?;
        match address.ip().is_loopback() {
            true => Ok(Listen(Some(address))),
            false => Err(Error::refused(format!("{text} can be reached from other machines"))
                .hint("what is sent is not encrypted: listen on 127.0.0.1 or [::1], and reach it through ssh -L")),
        }
    }
}

impl Tcp {
    fn open(address: SocketAddr, store: &Path) -> Result<(SocketAddr, Tcp)> {
        let token = Token::of_store(store)?;
        let listen = || {
            let listener = TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            Ok::<_, std::io::Error>((listener.local_addr()?, listener))
        };
        let (address, listener) = listen().map_err(Error::io(format!("listen on {address}")))?;
        tracing::info!("HTTP on {address}");
        Ok((address, Tcp { listener, token }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_listened_to() {
        for good in ["127.0.0.1:3000", "[::1]:0", "localhost:80", "none"] {
            assert!(good.parse::<Listen>().is_ok(), "{good}");
        }
        for bad in [
            "0.0.0.0:3000",
            "[::]:3000",
            "192.168.0.1:80",
            "3000",
            "",
            "localhost",
            "evil.localhost:80",
            "off",
        ] {
            let error = bad.parse::<Listen>().err().expect(bad);
            assert!(error.hint.is_some(), "{bad}");
        }
    }
}
