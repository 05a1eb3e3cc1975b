//! The service's REST interface as a command sees it.
//!
//! Each request is a connection of its own. The service speaks on a socket in the store; whoever may open that
//! socket may do everything, so it is the owner's alone.

use std::fmt::Display;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use nix::errno::Errno;
use pageserver::{BranchName, SnapshotName};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime::{Builder, Runtime};

use crate::api::branches::{Branch, CheckedOut, Checkout, NewBranch};
use crate::api::mounts::{Mount, NewMount};
use crate::api::problem::Problem;
use crate::api::snapshots::{NewSnapshot, Snapshot};
use crate::api::status::{Status, Stop};
use crate::error::{Error, Kind, Result};
use crate::store_dir;

/// The service of a store, whether it runs or not.
pub struct Client {
    store: PathBuf,
    runtime: Runtime,
    start: Option<Start>,
}

/// What brings a store's service up.
pub type Start = fn(&Path) -> Result<()>;

/// How long requests are sent again while services end before they take them.
const PATIENCE: Duration = Duration::from_secs(60);

impl Client {
    /// Requests fail with [`Kind::NoService`] when none runs.
    pub fn new(store: &Path) -> Result<Client> {
        let runtime = Builder::new_current_thread().enable_all().build();
        Ok(Client {
            store: store.into(),
            runtime: runtime.map_err(Error::io("start a client"))?,
            start: None,
        })
    }

    /// Requests that find no service, or one that is ending, start one.
    pub fn starting(store: &Path, start: Start) -> Result<Client> {
        let client = Client::new(store)?;
        Ok(Client {
            start: Some(start),
            ..client
        })
    }

    pub fn status(&self) -> Result<Status> {
        self.get("/status")
    }

    pub fn stop(&self, stop: &Stop) -> Result<()> {
        self.post("/stop", stop)
    }

    pub fn branches(&self) -> Result<Vec<Branch>> {
        self.get("/branches")
    }

    pub fn branch(&self, name: &BranchName) -> Result<Branch> {
        self.get(&format!("/branches/{}", encoded(name)))
    }

    pub fn create_branch(&self, new: &NewBranch) -> Result<Branch> {
        self.post("/branches", new)
    }

    pub fn destroy_branch(&self, name: &BranchName) -> Result<()> {
        self.delete(&format!("/branches/{}", encoded(name)))
    }

    pub fn checkout(&self, name: &SnapshotName) -> Result<CheckedOut> {
        let tag = name.tag.clone();
        self.post(
            &format!("/branches/{}/checkout", encoded(&name.branch)),
            &Checkout { tag },
        )
    }

    /// The snapshots of one branch, or of all.
    pub fn snapshots(&self, branch: Option<&BranchName>) -> Result<Vec<Snapshot>> {
        match branch {
            Some(branch) => self.get(&format!("/snapshots?branch={}", encoded(branch))),
            None => self.get("/snapshots"),
        }
    }

    pub fn snapshot(&self, name: &SnapshotName) -> Result<Snapshot> {
        self.get(&format!("/snapshots/{}", encoded(name)))
    }

    pub fn create_snapshot(&self, new: &NewSnapshot) -> Result<Snapshot> {
        self.post("/snapshots", new)
    }

    pub fn destroy_snapshot(&self, name: &SnapshotName) -> Result<()> {
        self.delete(&format!("/snapshots/{}", encoded(name)))
    }

    pub fn mount(&self, new: &NewMount) -> Result<Mount> {
        self.post("/mounts", new)
    }

    pub fn umount(&self, dir: &Path) -> Result<()> {
        self.delete(&format!("/mounts?dir={}", encoded(dir.display())))
    }

    fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.send(Method::GET, path, Bytes::new())
    }

    fn post<B: Serialize, T: DeserializeOwned>(&self, path: &str, body: &B) -> Result<T> {
        let body = serde_json::to_vec(body).map_err(|error| Error::usage(error.to_string()))?;
        self.send(Method::POST, path, body.into())
    }

    fn delete(&self, path: &str) -> Result<()> {
        self.send(Method::DELETE, path, Bytes::new())
    }

    fn send<T: DeserializeOwned>(&self, method: Method, path: &str, body: Bytes) -> Result<T> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match (self.send_once(method.clone(), path, body.clone()), self.start) {
                (Err(error), Some(start)) if error.kind == Kind::NoService && Instant::now() < deadline => {
                    start(&self.store)?;
                }
                (answer, _) => return answer,
            }
        }
    }

    /// [`Kind::NoService`] says that the request has changed nothing.
    fn send_once<T: DeserializeOwned>(&self, method: Method, path: &str, body: Bytes) -> Result<T> {
        let stream = open(&self.store).map_err(|error| self.not_reached(error))?;
        let reads_only = method == Method::GET;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| Error::usage(error.to_string()))?;
        let answer = self.runtime.block_on(exchange(stream, request));
        let (status, answer) = answer.map_err(|error| match reads_only {
            true => self.no_service(),
            false => self.broken(&error),
        })?;
        if status.is_success() {
            return serde_json::from_slice(&answer).map_err(|error| self.broken(&error));
        }
        let problem: Problem = serde_json::from_slice(&answer).map_err(|error| self.broken(&error))?;
        Err(problem.into())
    }

    fn not_reached(&self, error: io::Error) -> Error {
        match nobody_listens(&error) {
            true => self.no_service(),
            false => Error::path("connect to the service of", &self.store)(error),
        }
    }

    fn no_service(&self) -> Error {
        Error::no_service(format!("no service runs for the store {}", self.store.display()))
            .hint("`zenith start` starts it, and so does every command that needs it")
    }

    /// The service was killed in the middle, or isn't one of ours.
    fn broken(&self, error: &dyn Display) -> Error {
        Error::failure(format!(
            "the service of {} gave no answer, and may or may not have done it: {error}",
            self.store.display()
        ))
        .hint(format!("look into {}", self.store.join(store_dir::LOG).display()))
    }
}

/// One request and its answer.
async fn exchange(stream: UnixStream, request: Request<Full<Bytes>>) -> io::Result<(StatusCode, Bytes)> {
    stream.set_nonblocking(true)?;
    let stream = TokioIo::new(tokio::net::UnixStream::from_std(stream)?);
    let (mut sender, connection) = http1::handshake(stream).await.map_err(io::Error::other)?;
    let answer = async move {
        let response = sender.send_request(request).await?;
        let status = response.status();
        Ok((status, response.into_body().collect().await?.to_bytes()))
    };
    let (answer, _) = tokio::join!(answer, connection);
    answer.map_err(|error: hyper::Error| io::Error::other(error))
}

fn open(store: &Path) -> io::Result<UnixStream> {
    let dir = socket_dir(store)?;
    UnixStream::connect(socket_path(&dir))
}

/// The store's directory, opened only to reach the socket through it.
pub fn socket_dir(store: &Path) -> io::Result<File> {
    File::options()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
        .open(store)
}

/// The socket's path by way of the open directory: a socket address holds only 108 bytes, a store's path any number.
pub fn socket_path(dir: &File) -> PathBuf {
    Path::new("/proc/self/fd")
        .join(dir.as_raw_fd().to_string())
        .join(store_dir::SOCKET)
}

fn nobody_listens(error: &io::Error) -> bool {
    let code = error.raw_os_error().map(Errno::from_raw);
    matches!(code, Some(Errno::ENOENT | Errno::ECONNREFUSED | Errno::ENOTDIR))
}

fn encoded(part: impl Display) -> String {
    utf8_percent_encode(&part.to_string(), NON_ALPHANUMERIC).to_string()
}
