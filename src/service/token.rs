//! The secret that lets requests in on TCP: made at the first start, in a file that only the store's owner can read.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::hint::black_box;
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use crate::error::{Error, Result};
use crate::store_dir;

/// From the system's source of randomness.
const BYTES: usize = 32;

/// A token that was put there by hand must be hard to guess, too.
const LEN_MIN: usize = 32;

pub struct Token(String);

impl Token {
    /// The store's token; a new one when it has none.
    pub fn of_store(store: &Path) -> Result<Token> {
        let path = store.join(store_dir::TOKEN);
        if !path.try_exists().map_err(Error::path("look for", &path))? {
            make(&path).map_err(Error::path("make", &path))?;
        }
        read(&path)
    }

    /// Takes the same time whatever differs.
    pub fn is(&self, given: &[u8]) -> bool {
        let token = self.0.as_bytes();
        let differing = token
            .iter()
            .zip(given)
            .fold(0, |found, (a, b)| black_box(found | (a ^ b)));
        token.len() == given.len() && differing == 0
    }
}

/// A crash leaves no token or all of it.
fn make(path: &Path) -> io::Result<()> {
    let mut bytes = [0; BYTES];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let unfinished = path.with_extension("new");
    let mut file = File::options()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&unfinished)?;
    writeln!(file, "{}", hex(&bytes))?;
    file.sync_all()?;
    fs::rename(unfinished, path)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // A string takes everything.
        let _written = write!(text, "{byte:02x}").is_ok();
        text
    })
}

fn read(path: &Path) -> Result<Token> {
    let mode = fs::metadata(path)
        .map_err(Error::path("look at", path))?
        .permissions()
        .mode();
    if mode & 0o077 != 0 {
        return Err(
            Error::refused(format!("others than its owner may use {}", path.display())).hint(format!(
                "`chmod 600 {0}`, or delete it: the next start makes a new one",
                path.display()
            )),
        );
    }
    let token = fs::read_to_string(path).map_err(Error::path("read", path))?;
    let token = token.trim();
    match token.len() >= LEN_MIN && token.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok(Token(token.into())),
        false => Err(Error::refused(format!("{} holds no token", path.display()))
            .hint("delete it: the next start makes a new one")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_only_itself() {
        let token = Token(hex(&[0xA5; BYTES]));
        assert!(token.is("a5".repeat(BYTES).as_bytes()));
        let others = [
            "".into(),
            "a5".repeat(BYTES - 1),
            "a5".repeat(BYTES + 1),
            "a4".repeat(BYTES),
            "b5".repeat(BYTES),
        ];
        for other in others {
            assert!(!token.is(other.as_bytes()), "{other}");
        }
        assert!(
            !token.is(format!("{}a4", "a5".repeat(BYTES - 1)).as_bytes()),
            "the last digit"
        );
    }
}
