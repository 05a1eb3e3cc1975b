//! `/jobs`: work that takes a while.
//!
//! Whatever may take a while runs as a job. Who asks with `Prefer: respond-async` (RFC 7240) gets 202 and the job at once,
//! anybody else the result when it is there. `/jobs/{id}/events` tells the steps as server-sent events: `step` with
//! a sentence, and at the end `done` with the result or `failed` with a problem.

use std::convert::Infallible;
use std::str::FromStr;
use std::sync::Arc;

use axum::Json;
use axum::extract::State as Shared;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, NoContent, Response};
use futures_util::Stream;
use futures_util::stream::unfold;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::problem::Problem;
use super::{Answer, Named, blocking, schema};
use crate::error::{Error, Result};
use crate::service::{Service, jobs};

/// What asks for a job instead of its result.
pub const RESPOND_ASYNC: &str = "respond-async";

/// Told of the header of that name.
pub const PREFER: &str = "`respond-async` asks for a job at once instead of the result when it is there.";

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Job {
    pub id: u64,
    pub what: String,
    pub started: Timestamp,
    /// What was done so far, as sentences.
    pub steps: Vec<String>,
    pub state: State,
    /// When it is done: what the request would have answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Problem>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    Running,
    Done,
    Failed,
}

pub fn routes() -> OpenApiRouter<Arc<Service>> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(show))
        .routes(routes!(events))
}

/// Which job is meant.
struct Id(u64);

impl FromStr for Id {
    type Err = Error;

    fn from_str(id: &str) -> Result<Id> {
        let number = id.parse();
        number
            .map(Id)
            .map_err(|_| Error::usage(format!("{id:?} is no number of a job")))
    }
}

/// What is to be done as a job.
pub struct Task {
    /// What people are told that it is.
    pub what: String,
    /// What its result is answered with.
    pub status: StatusCode,
}

/// Does work as a job and answers as the caller prefers. What has no result answers with 204.
pub async fn as_job<T, F>(service: Arc<Service>, headers: &HeaderMap, task: Task, work: F) -> Result<Response>
where
    T: Serialize + Send + 'static,
    F: FnOnce(&Arc<Service>, &jobs::Job) -> Result<T> + Send + 'static,
{
    let job = service.jobs.begin(task.what);
    let done = {
        let job = job.clone();
        tokio::task::spawn_blocking(move || {
            let outcome = work(&service, &job);
            job.end(&outcome);
            outcome
        })
    };
    if prefers_async(headers) {
        return Ok((StatusCode::ACCEPTED, Json(job.now())).into_response());
    }
    match done.await {
        Ok(outcome) => {
            let result = outcome?;
            Ok(match task.status {
                StatusCode::NO_CONTENT => NoContent.into_response(),
                status => (status, Json(result)).into_response(),
            })
        }
        Err(died) => Err(Error::failure(format!("the service failed to answer: {died}"))),
    }
}

fn prefers_async(headers: &HeaderMap) -> bool {
    let preferred = headers.get_all(header::HeaderName::from_static("prefer"));
    preferred
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.split(',').any(|part| part.trim() == RESPOND_ASYNC))
}

/// The jobs that run, and the last ones that ended.
#[utoipa::path(get, path = "/jobs", responses((status = 200, body = Vec<Job>)))]
async fn list(Shared(service): Shared<Arc<Service>>) -> Answer<Vec<Job>> {
    blocking(move || Ok(service.jobs.list())).await
}

/// One job.
#[utoipa::path(
    get, path = "/jobs/{id}",
    params(("id" = u64, Path)),
    responses((status = 200, body = Job))
)]
async fn show(Shared(service): Shared<Arc<Service>>, Named(Id(id)): Named<Id>) -> Answer<Job> {
    blocking(move || Ok(service.jobs.get(id)?.now())).await
}

/// The steps of a job as they are done: events `step`, and at the end `done` or `failed`.
#[utoipa::path(
    get, path = "/jobs/{id}/events",
    params(("id" = u64, Path)),
    responses((status = 200, body = schema::JobEvent, content_type = "text/event-stream"))
)]
async fn events(
    Shared(service): Shared<Arc<Service>>,
    Named(Id(id)): Named<Id>,
) -> Result<Sse<impl Stream<Item = std::result::Result<Event, Infallible>>>> {
    let told = Told::new(service.jobs.get(id)?);
    Ok(Sse::new(unfold(told, Told::next)).keep_alive(KeepAlive::default()))
}

/// How much of a job one listener has heard.
struct Told {
    job: Arc<jobs::Job>,
    changes: watch::Receiver<u64>,
    steps: usize,
    ended: bool,
}

impl Told {
    fn new(job: Arc<jobs::Job>) -> Told {
        let changes = job.watch();
        Told {
            job,
            changes,
            steps: 0,
            ended: false,
        }
    }

    async fn next(mut self) -> Option<(std::result::Result<Event, Infallible>, Told)> {
        while !self.ended {
            self.changes.mark_unchanged();
            if let Some(event) = self.unheard() {
                return Some((Ok(event), self));
            }
            // The job is held here, so its sender is there.
            self.changes.changed().await.ok()?;
        }
        None
    }

    fn unheard(&mut self) -> Option<Event> {
        let job = self.job.now();
        if let Some(step) = job.steps.get(self.steps) {
            self.steps += 1;
            return Some(Event::default().event("step").data(step));
        }
        self.ended = job.state != State::Running;
        match job.state {
            State::Running => None,
            State::Done => Some(ended("done", &job.result)),
            State::Failed => Some(ended("failed", &job.error)),
        }
    }
}

fn ended(how: &str, with: &impl Serialize) -> Event {
    // What serves here was made from JSON, or holds strings only.
    let data = serde_json::to_string(with).unwrap_or_default();
    Event::default().event(how).data(data)
}
