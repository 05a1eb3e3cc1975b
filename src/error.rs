//! What zenith says when something fails: one line, a hint, and an exit code that tells programs what kind it was.
//!
//! The service sends the same error as problem+json (see [`crate::api::problem`]), so that a command prints what
//! the service found.

use std::fmt::{self, Display};
use std::io;
use std::path::Path;

use fusefs::MountError;

pub type Result<T> = std::result::Result<T, Error>;

/// An error for people. `message` is one line, save where it quotes what another program said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Error {
    pub kind: Kind,
    pub message: String,
    pub hint: Option<String>,
}

/// What the caller can do about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// It went wrong: the disk, Postgres, the machine.
    Failure,
    /// It was asked wrongly: arguments, names.
    Usage,
    /// What was named doesn't exist.
    NotFound,
    /// It can't be done as things are: in use, there already, needed, not confirmed.
    Refused,
    /// No service runs for the store.
    NoService,
}

/// The exit codes as `--help` shows them.
pub const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  it failed (disk, Postgres, machine)
  2  wrong arguments or a name that can't be
  3  no such store, branch, snapshot or mount
  4  refused: in use, there already, needed by something else, or not confirmed
  5  no service runs for the store";

impl Kind {
    pub fn exit_code(self) -> i32 {
        match self {
            Kind::Failure => 1,
            Kind::Usage => 2,
            Kind::NotFound => 3,
            Kind::Refused => 4,
            Kind::NoService => 5,
        }
    }
}

impl Error {
    pub fn new(kind: Kind, message: impl Into<String>) -> Error {
        Error {
            kind,
            message: message.into(),
            hint: None,
        }
    }

    pub fn failure(message: impl Into<String>) -> Error {
        Error::new(Kind::Failure, message)
    }

    pub fn usage(message: impl Into<String>) -> Error {
        Error::new(Kind::Usage, message)
    }

    pub fn not_found(message: impl Into<String>) -> Error {
        Error::new(Kind::NotFound, message)
    }

    pub fn refused(message: impl Into<String>) -> Error {
        Error::new(Kind::Refused, message)
    }

    pub fn no_service(message: impl Into<String>) -> Error {
        Error::new(Kind::NoService, message)
    }

    pub fn hint(self, hint: impl Into<String>) -> Error {
        Error {
            hint: Some(hint.into()),
            ..self
        }
    }

    /// Wraps what the system said with what was being done: `.map_err(Error::io("open x"))`.
    pub fn io<E: Into<io::Error>>(what: impl Display) -> impl FnOnce(E) -> Error {
        move |source| pageserver::Error::io(what.to_string())(source.into()).into()
    }

    /// As [`Error::io`], for something done to a path.
    pub fn path<E: Into<io::Error>>(what: &str, path: &Path) -> impl FnOnce(E) -> Error {
        Error::io(format!("{what} {}", path.display()))
    }

    /// What a command that ends with the error exits with.
    pub fn exit_code(&self) -> i32 {
        self.kind.exit_code()
    }
}

impl Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<pageserver::Error> for Error {
    fn from(error: pageserver::Error) -> Error {
        Error {
            kind: kind_of(&error),
            message: error.to_string(),
            hint: error.hint(),
        }
    }
}

impl From<MountError> for Error {
    fn from(error: MountError) -> Error {
        use MountError as E;
        let kind = match error {
            E::Missing { .. } => Kind::NotFound,
            E::NotADirectory { .. } | E::NotEmpty { .. } | E::AlreadyMounted { .. } => Kind::Refused,
            E::Busy { .. } | E::Covered { .. } | E::Detached { .. } | E::Dead { .. } | E::Held { .. } => Kind::Refused,
            _ => Kind::Failure,
        };
        Error {
            kind,
            message: error.to_string(),
            hint: error.hint(),
        }
    }
}

fn kind_of(error: &pageserver::Error) -> Kind {
    use pageserver::Error as E;
    match error {
        E::BadName { .. } | E::NoTag { .. } | E::ReservedName { .. } => Kind::Usage,
        E::NotAStore { .. } | E::NoBranch { .. } | E::NoSnapshot { .. } => Kind::NotFound,
        E::StoreExists { .. } | E::NotEmpty { .. } | E::Locked { .. } => Kind::Refused,
        E::BranchExists { .. } | E::SnapshotExists { .. } => Kind::Refused,
        E::NewerFormat { .. } | E::UnsupportedFilesystem { .. } => Kind::Refused,
        E::Busy { .. } | E::Needed { .. } | E::Protected { .. } => Kind::Refused,
        _ => Kind::Failure,
    }
}
