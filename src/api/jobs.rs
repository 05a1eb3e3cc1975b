//! `/jobs`: work that takes a while.
//!
//! Whatever may take a while runs as a job. Who asks with `Prefer: respond-async` (RFC 7240) gets 202 and the job at once,
//! anybody else the result when it is there. `/jobs/{id}/events` tells the steps as server-sent events: `step` with
//! a sentence, and at the end `done` with the result or `failed` with a problem.

use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::{Path, State as Shared};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use futures_util::Stream;
use futures_util::stream::unfold;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::problem::Problem;
use super::{Answer, blocking};
use crate::error::{Error, Result};
use crate::service::{Service, jobs};

/// What asks for a job instead of its result.
pub const RESPOND_ASYNC: &str = "respond-async";

#[derive(Clone, Debug, Serialize, Deserialize)]
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

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    Running,
    Done,
    Failed,
}

pub fn routes() -> Router<Arc<Service>> {
    Router::new()
        .route("/jobs", get(list))
        .route("/jobs/{id}", get(show))
        .route("/jobs/{id}/events", get(events))
}

/// Does work as a job and answers as the caller prefers.
pub async fn as_job<T, F>(service: Arc<Service>, headers: &HeaderMap, what: String, work: F) -> Result<Response>
where
    T: Serialize + Send + 'static,
    F: FnOnce(&Arc<Service>, &jobs::Job) -> Result<T> + Send + 'static,
{
    let job = service.jobs.begin(what);
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
        Ok(outcome) => Ok(Json(outcome?).into_response()),
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

async fn list(Shared(service): Shared<Arc<Service>>) -> Answer<Vec<Job>> {
    blocking(move || Ok(service.jobs.list())).await
}

async fn show(Shared(service): Shared<Arc<Service>>, Path(id): Path<String>) -> Answer<Job> {
    blocking(move || Ok(found(&service, &id)?.now())).await
}

fn found(service: &Service, id: &str) -> Result<Arc<jobs::Job>> {
    let number = id
        .parse()
        .map_err(|_| Error::usage(format!("{id:?} is no number of a job")))?;
    service.jobs.get(number)
}

async fn events(
    Shared(service): Shared<Arc<Service>>,
    Path(id): Path<String>,
) -> Result<Sse<impl Stream<Item = std::result::Result<Event, Infallible>>>> {
    let told = Told::new(found(&service, &id)?);
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
