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
use std::thread;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use nix::errno::Errno;
use pageserver::{BranchName, SnapshotName};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime::{Builder, Runtime};

use crate::api::branches::{Branch, CheckedOut, Checkout, NewBranch};
use crate::api::check::{Checked, NewCheck};
use crate::api::jobs::{Job, RESPOND_ASYNC, State};
use crate::api::mounts::{Mount, NewMount};
use crate::api::peeks::{NewPeek, Peek};
use crate::api::pgs::{Acted, Action, LogText, NewPg, Pg, PgDetails};
use crate::api::problem::Problem;
use crate::api::schedules::{Schedule, Scheduled};
use crate::api::snapshots::{NewSnapshot, Snapshot, SnapshotChange};
use crate::api::status::{Status, Stop, Upgrade};
use crate::api::storages::{NewStorage, Storage, StorageName};
use crate::error::{Error, Kind, Result};
use crate::output::note;
use crate::store_dir;

/// The service of a store, whether it runs or not.
pub struct Client {
    store: PathBuf,
    runtime: Runtime,
    start: Option<Start>,
    verbose: bool,
}

/// What brings a store's service up.
pub type Start = Box<dyn Fn(&Path) -> Result<()>>;

/// How long requests are sent again while services end before they take them.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often to look for the next service.
const PAUSE: Duration = Duration::from_millis(10);

impl Client {
    /// Requests fail with [`Kind::NoService`] when none runs.
    pub fn new(store: &Path) -> Result<Client> {
        let runtime = Builder::new_current_thread().enable_all().build();
        Ok(Client {
            store: store.into(),
            runtime: runtime.map_err(Error::io("start a client"))?,
            start: None,
            verbose: false,
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

    /// Tells people each request, with how it was answered and the time that took.
    pub fn verbose(self, verbose: bool) -> Client {
        Client { verbose, ..self }
    }

    pub fn status(&self) -> Result<Status> {
        self.get("/status")
    }

    pub fn stop(&self, stop: &Stop) -> Result<()> {
        self.post("/stop", stop)
    }

    pub fn upgrade(&self, upgrade: &Upgrade) -> Result<()> {
        self.post("/upgrade", upgrade)
    }

    pub fn branches(&self) -> Result<Vec<Branch>> {
        self.get("/branches")
    }

    pub fn create_branch(&self, new: &NewBranch) -> Result<Branch> {
        self.post("/branches", new)
    }

    pub fn destroy_branch(&self, name: &BranchName) -> Result<()> {
        self.delete(&format!("/branches/{}", encoded(name)))
    }

    /// Whether it could be destroyed now; so do the other checks.
    pub fn check_destroy_branch(&self, name: &BranchName) -> Result<()> {
        self.try_delete(&format!("/branches/{}", encoded(name)))
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

    pub fn check_destroy_snapshot(&self, name: &SnapshotName) -> Result<()> {
        self.try_delete(&format!("/snapshots/{}", encoded(name)))
    }

    pub fn change_snapshot(&self, name: &SnapshotName, change: &SnapshotChange) -> Result<Snapshot> {
        self.with_body(Method::PATCH, &format!("/snapshots/{}", encoded(name)), change)
    }

    pub fn schedules(&self) -> Result<Vec<Scheduled>> {
        self.get("/schedules")
    }

    pub fn set_schedule(&self, branch: &BranchName, schedule: &Schedule) -> Result<()> {
        self.with_body(Method::PUT, &format!("/schedules/{}", encoded(branch)), schedule)
    }

    pub fn unset_schedule(&self, branch: &BranchName) -> Result<()> {
        self.delete(&format!("/schedules/{}", encoded(branch)))
    }

    /// Opens a temporary server over a snapshot, which lives until what is held is dropped.
    pub fn peek(&self, name: &SnapshotName, new: &NewPeek) -> Result<(Peek, Held)> {
        // One of its requests starts the service where it isn't running.
        self.snapshot(name)?;
        let stream = open(&self.store).map_err(|error| self.not_reached(error))?;
        let asked = Asked {
            method: Method::POST,
            path: &format!("/snapshots/{}/peeks", encoded(name)),
            body: body_of(new)?,
        };
        let begun = Instant::now();
        let opened = self.runtime.block_on(hold(stream, asked.request()?));
        self.tell(&asked, opened.as_ref().ok().map(|(status, ..)| *status), begun);
        let (status, line, held) = opened.map_err(|error| self.broken(&error))?;
        if status.is_success() {
            let peek = serde_json::from_slice(&line).map_err(|error| self.broken(&error))?;
            return Ok((peek, held));
        }
        let problem: Problem = serde_json::from_slice(&line).map_err(|error| self.broken(&error))?;
        Err(problem.into())
    }

    pub fn storages(&self) -> Result<Vec<Storage>> {
        self.get("/storages")
    }

    pub fn storage(&self, name: &StorageName) -> Result<Storage> {
        self.get(&format!("/storages/{}", encoded(name)))
    }

    pub fn attach_storage(&self, name: &StorageName, new: &NewStorage) -> Result<Storage> {
        self.with_body(Method::PUT, &format!("/storages/{}", encoded(name)), new)
    }

    pub fn detach_storage(&self, name: &StorageName) -> Result<()> {
        self.delete(&format!("/storages/{}", encoded(name)))
    }

    pub fn check_detach_storage(&self, name: &StorageName) -> Result<()> {
        self.try_delete(&format!("/storages/{}", encoded(name)))
    }

    pub fn check(&self, asked: &NewCheck, watcher: &mut dyn Watcher) -> Result<Checked> {
        self.job(Method::POST, "/check", body_of(asked)?, watcher)
    }

    pub fn pgs(&self) -> Result<Vec<Pg>> {
        self.get("/pgs")
    }

    pub fn pg(&self, name: &BranchName) -> Result<PgDetails> {
        self.get(&pg_path(name))
    }

    pub fn pg_log(&self, name: &BranchName, from: u64) -> Result<LogText> {
        self.get(&format!("{}/log?from={from}", pg_path(name)))
    }

    /// Without a name the service chooses one.
    pub fn create_pg(&self, name: Option<&BranchName>, new: &NewPg, watcher: &mut dyn Watcher) -> Result<Pg> {
        let path = name.map_or("/pgs".into(), pg_path);
        self.job(Method::PUT, &path, body_of(new)?, watcher)
    }

    pub fn destroy_pg(&self, name: &BranchName, watcher: &mut dyn Watcher) -> Result<()> {
        self.job(Method::DELETE, &pg_path(name), Bytes::new(), watcher)
    }

    pub fn check_destroy_pg(&self, name: &BranchName) -> Result<()> {
        self.try_delete(&pg_path(name))
    }

    pub fn act(&self, name: &BranchName, action: &Action, watcher: &mut dyn Watcher) -> Result<Acted> {
        let path = format!("{}/actions", pg_path(name));
        self.job(Method::POST, &path, body_of(action)?, watcher)
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
        self.with_body(Method::POST, path, body)
    }

    fn with_body<B: Serialize, T: DeserializeOwned>(&self, method: Method, path: &str, body: &B) -> Result<T> {
        self.send(method, path, body_of(body)?)
    }

    fn delete(&self, path: &str) -> Result<()> {
        self.send(Method::DELETE, path, Bytes::new())
    }

    fn try_delete(&self, path: &str) -> Result<()> {
        self.delete(&format!("{path}?dry_run=true"))
    }

    fn send<T: DeserializeOwned>(&self, method: Method, path: &str, body: Bytes) -> Result<T> {
        let answer = self.exchange(&Asked { method, path, body })?;
        // What has nothing to tell answers with nothing.
        let answer: &[u8] = if answer.is_empty() { b"null" } else { &answer };
        serde_json::from_slice(answer).map_err(|error| self.broken(&error))
    }

    /// Has work done as a job, and tells the steps while it goes on.
    fn job<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        watcher: &mut dyn Watcher,
    ) -> Result<T> {
        let job: Job = self.send(method, path, body)?;
        let events = format!("/jobs/{}/events", job.id);
        let (mut lines, mut outcome) = (Vec::new(), None);
        let mut told = |part: &[u8]| {
            lines.extend_from_slice(part);
            while let Some(end) = lines.windows(2).position(|two| two == b"\n\n") {
                let event: Vec<u8> = lines.drain(..end + 2).collect();
                match parse_event(&String::from_utf8_lossy(&event)) {
                    Some(("step", what)) => watcher.step(&what),
                    Some(("done", result)) => outcome = Some(Ok(result)),
                    Some(("failed", problem)) => outcome = Some(Err(problem)),
                    _ => {}
                }
            }
        };
        let asked = Asked {
            method: Method::GET,
            path: &events,
            body: Bytes::new(),
        };
        // A lost connection says nothing of the job.
        let _listened = self.exchange_once(&asked, &mut told).is_ok();
        watcher.done();
        match outcome {
            Some(Ok(result)) => serde_json::from_str(&result).map_err(|error| self.broken(&error)),
            Some(Err(problem)) => {
                let problem: Problem = serde_json::from_str(&problem).map_err(|error| self.broken(&error))?;
                Err(problem.into())
            }
            None => self.outcome_of(&job),
        }
    }

    /// Of a job whose end was not heard.
    fn outcome_of<T: DeserializeOwned>(&self, job: &Job) -> Result<T> {
        let ended: Job = self
            .get(&format!("/jobs/{}", job.id))
            .map_err(|_| self.ended_within(job))?;
        match (ended.state, ended.error) {
            (State::Done, _) => {
                let result = ended.result.unwrap_or_default();
                serde_json::from_value(result).map_err(|error| self.broken(&error))
            }
            (State::Failed, Some(problem)) => Err(problem.into()),
            _ => Err(self.ended_within(job)),
        }
    }

    /// A job is forgotten by the next service, which has undone what can't stay as it was.
    fn ended_within(&self, job: &Job) -> Error {
        Error::failure(format!("the service ended while it was to {}", job.what))
            .hint("see how far that came (`zenith pg list`, `zenith branch`), or ask for it again")
    }

    fn exchange(&self, asked: &Asked) -> Result<Bytes> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut whole = Vec::new();
            let mut keep = |part: &[u8]| whole.extend_from_slice(part);
            let answer = self.exchange_once(asked, &mut keep);
            if let Err(error) = &answer
                && error.kind == Kind::NoService
                && let Some(other) = store_dir::holder(&self.store)
            {
                return Err(is_a_storage(&self.store, &other));
            }
            match (answer, &self.start) {
                (Err(error), Some(start)) if error.kind == Kind::NoService && Instant::now() < deadline => {
                    start(&self.store)?;
                }
                // The next service is about to answer, or this one to end.
                (Err(error), None)
                    if error.kind == Kind::NoService
                        && store_dir::is_held(&self.store)
                        && Instant::now() < deadline =>
                {
                    thread::sleep(PAUSE);
                }
                (answer, _) => return answer.map(|()| whole.into()),
            }
        }
    }

    /// [`Kind::NoService`] says that the request has changed nothing. `heard` gets the answer as it comes in.
    fn exchange_once(&self, asked: &Asked, heard: &mut dyn FnMut(&[u8])) -> Result<()> {
        let begun = Instant::now();
        let answer = self.ask(asked, heard);
        self.tell(asked, answer.as_ref().ok().map(|(status, _)| *status), begun);
        let (status, refusal) = answer?;
        if status.is_success() {
            return Ok(());
        }
        let problem: Problem = serde_json::from_slice(&refusal).map_err(|error| self.broken(&error))?;
        Err(problem.into())
    }

    fn tell(&self, asked: &Asked, status: Option<StatusCode>, begun: Instant) {
        if self.verbose {
            note(&asked.told(status, begun.elapsed()));
        }
    }

    /// The status of the answer, and its body if it is a refusal.
    fn ask(&self, asked: &Asked, heard: &mut dyn FnMut(&[u8])) -> Result<(StatusCode, Vec<u8>)> {
        let stream = open(&self.store).map_err(|error| self.not_reached(error))?;
        let request = asked.request()?;
        let mut refusal = Vec::new();
        let answer = self
            .runtime
            .block_on(exchange(stream, request, |status, part| match status.is_success() {
                true => heard(part),
                false => refusal.extend_from_slice(part),
            }));
        let status = answer.map_err(|error| match asked.method == Method::GET {
            true => self.no_service(),
            false => self.broken(&error),
        })?;
        Ok((status, refusal))
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

/// A request as it is sent, perhaps more than once.
struct Asked<'a> {
    method: Method,
    path: &'a str,
    body: Bytes,
}

impl Asked<'_> {
    /// As `GET /pgs 200 2.1 ms`.
    fn told(&self, status: Option<StatusCode>, took: Duration) -> String {
        let outcome = status.as_ref().map_or("no answer", StatusCode::as_str);
        let millis = took.as_secs_f64() * 1000.0;
        format!("{} {} {outcome} {millis:.1} ms", self.method, self.path)
    }

    fn request(&self) -> Result<Request<Full<Bytes>>> {
        Request::builder()
            .method(self.method.clone())
            .uri(self.path)
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json")
            .header("prefer", RESPOND_ASYNC)
            .body(Full::new(self.body.clone()))
            .map_err(|error| Error::usage(error.to_string()))
    }
}

/// An answer that isn't at its end: the connection stays for as long as this does.
pub struct Held(#[allow(dead_code, reason = "only held")] (SendRequest<Full<Bytes>>, Incoming));

/// Hears of the steps of work that takes a while.
pub trait Watcher {
    fn step(&mut self, what: &str);
    fn done(&mut self);
}

fn body_of(body: &impl Serialize) -> Result<Bytes> {
    let json = serde_json::to_vec(body).map_err(|error| Error::usage(error.to_string()))?;
    Ok(json.into())
}

fn pg_path(name: &BranchName) -> String {
    format!("/pgs/{}", encoded(name))
}

/// The kind and data of a server-sent event; comments have none.
fn parse_event(text: &str) -> Option<(&str, String)> {
    let field = |name: &'static str| {
        let values = text
            .lines()
            .filter_map(move |line| line.strip_prefix(name)?.strip_prefix(':'));
        values.map(|value| value.strip_prefix(' ').unwrap_or(value))
    };
    let data: Vec<&str> = field("data").collect();
    Some((field("event").next()?, data.join("\n")))
}

/// One request; `heard` gets the parts of its answer.
async fn exchange(
    stream: UnixStream,
    request: Request<Full<Bytes>>,
    mut heard: impl FnMut(StatusCode, &[u8]),
) -> io::Result<StatusCode> {
    stream.set_nonblocking(true)?;
    let stream = TokioIo::new(tokio::net::UnixStream::from_std(stream)?);
    let (mut sender, connection) = http1::handshake(stream).await.map_err(io::Error::other)?;
    let answer = async move {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            if let Ok(part) = frame?.into_data() {
                heard(status, &part);
            }
        }
        Ok(status)
    };
    let (answer, _) = tokio::join!(answer, connection);
    answer.map_err(|error: hyper::Error| io::Error::other(error))
}

/// One request whose answer begins with a part and then stays open.
async fn hold(stream: UnixStream, request: Request<Full<Bytes>>) -> io::Result<(StatusCode, Bytes, Held)> {
    stream.set_nonblocking(true)?;
    let stream = TokioIo::new(tokio::net::UnixStream::from_std(stream)?);
    let (mut sender, connection) = http1::handshake(stream).await.map_err(io::Error::other)?;
    // It ends with the runtime, or with what is held.
    tokio::spawn(connection);
    let response = sender.send_request(request).await.map_err(io::Error::other)?;
    let status = response.status();
    let mut body = response.into_body();
    let frame = body.frame().await.transpose().map_err(io::Error::other)?;
    let line = frame.and_then(|frame| frame.into_data().ok()).unwrap_or_default();
    Ok((status, line, Held((sender, body))))
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

fn is_a_storage(store: &Path, of: &Path) -> Error {
    let (store, of) = (store.display(), of.display());
    Error::refused(format!("{store} is a storage of the store {of}")).hint(format!(
        "`zenith --store {of} storage list` shows it, as all commands with that store do"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_as_they_are_sent() {
        assert_eq!(
            parse_event("event: step\ndata: one\ndata: two\n\n"),
            Some(("step", "one\ntwo".into()))
        );
        assert_eq!(parse_event("event:done\ndata:{}\n\n"), Some(("done", "{}".into())));
        assert_eq!(parse_event(": still there\n\n"), None);
    }
}
