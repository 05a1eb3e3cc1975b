//! Work that takes a while: what it is, how far it is, how it ended.
//!
//! A job goes on although nobody waits for it. The last ones that ended are kept, so that who comes late learns how it
//! went; a restart of the service forgets them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::watch;

use crate::api::jobs::{self as api, State};
use crate::error::{Error, Result};

/// Jobs that have ended and are still known.
const ENDED_MAX: usize = 100;

pub struct Jobs {
    known: Mutex<BTreeMap<u64, Arc<Job>>>,
    next: AtomicU64,
}

pub struct Job {
    state: Mutex<api::Job>,
    /// Counts the changes of `state`.
    changes: watch::Sender<u64>,
}

impl Default for Jobs {
    /// Ids go on from the time in microseconds, so that no id of an earlier service means a job of this one.
    fn default() -> Jobs {
        let now = Timestamp::now().as_microsecond();
        Jobs {
            known: Mutex::default(),
            next: AtomicU64::new(now.unsigned_abs()),
        }
    }
}

impl Jobs {
    pub fn begin(&self, what: String) -> Arc<Job> {
        let mut known = self.known();
        forget_old(&mut known);
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let job = Arc::new(Job::new(id, what));
        known.insert(id, job.clone());
        job
    }

    /// For work that nobody watches.
    pub fn silent(&self) -> Job {
        Job::new(0, String::new())
    }

    pub fn list(&self) -> Vec<api::Job> {
        self.known().values().map(|job| job.now()).collect()
    }

    pub fn get(&self, id: u64) -> Result<Arc<Job>> {
        let found = self.known().get(&id).cloned();
        found.ok_or_else(|| Error::not_found(format!("no job {id}")).hint("only the latest jobs are kept"))
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Job>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn forget_old(known: &mut BTreeMap<u64, Arc<Job>>) {
    let ended: Vec<u64> = known
        .iter()
        .filter(|(_, job)| job.state().state != State::Running)
        .map(|(id, _)| *id)
        .collect();
    for id in ended.iter().take(ended.len().saturating_sub(ENDED_MAX)) {
        known.remove(id);
    }
}

impl Job {
    fn new(id: u64, what: String) -> Job {
        let state = api::Job {
            id,
            what,
            started: Timestamp::now(),
            steps: Vec::new(),
            state: State::Running,
            result: None,
            error: None,
        };
        Job {
            state: Mutex::new(state),
            changes: watch::Sender::new(0),
        }
    }

    /// Tells those who watch what is done next.
    pub fn step(&self, what: impl Into<String>) {
        self.change(|state| state.steps.push(what.into()));
    }

    pub fn end<T: Serialize>(&self, outcome: &Result<T>) {
        self.change(|state| match outcome {
            Ok(result) => {
                state.state = State::Done;
                state.result = serde_json::to_value(result).ok();
            }
            Err(error) => {
                state.state = State::Failed;
                state.error = Some(error.clone().into());
            }
        });
    }

    fn change(&self, edit: impl FnOnce(&mut api::Job)) {
        edit(&mut self.state());
        self.changes.send_modify(|changes| *changes += 1);
    }

    pub fn now(&self) -> api::Job {
        self.state().clone()
    }

    /// Wakes up at every change.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn state(&self) -> MutexGuard<'_, api::Job> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_tells_its_steps_and_its_end_and_old_ones_are_forgotten() {
        let jobs = Jobs::default();
        let running = jobs.begin("long".into());
        let first = jobs.begin("the first to end".into());
        first.end(&Ok::<_, Error>(0));
        for n in 0..ENDED_MAX + 5 {
            let job = jobs.begin(format!("job {n}"));
            job.step("one");
            job.end(&Ok::<_, Error>(n));
        }
        let list = jobs.list();
        assert!(list.len() <= ENDED_MAX + 2, "{}", list.len());
        assert_eq!(jobs.get(running.now().id).expect("runs").now().state, State::Running);
        let last = list.last().expect("the last");
        assert_eq!(
            (last.steps.len(), last.result.clone()),
            (1, Some((ENDED_MAX + 4).into()))
        );
        assert!(jobs.get(first.now().id).is_err());
    }
}
