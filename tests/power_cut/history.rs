//! What was done to whom between which positions of the disk, and what a cut may therefore leave.
//!
//! A subject is anything with a name that can be looked at: a snapshot, a file, a pg, a table. Its state is a text, or
//! nothing where it is not there. An operation that had returned before the cut must be seen; one that had begun may be.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use crate::random::Random;

/// The state of a subject; `None` when it is not there.
pub type State = Option<String>;

/// What an operation makes of a subject.
#[derive(Clone, Debug)]
struct Step {
    begun: u64,
    done: u64,
    state: State,
    /// Whether something between old and new may be seen until it is done.
    in_place: bool,
}

#[derive(Default)]
pub struct History(Mutex<Record>);

#[derive(Default)]
struct Record {
    subjects: BTreeMap<String, Vec<Step>>,
    /// Each operation's name, and when it was under way.
    operations: Vec<(&'static str, u64, u64)>,
}

/// What may be seen of a subject.
#[derive(Debug)]
pub struct Allowed {
    states: Vec<State>,
    /// Anything that is there will do.
    anything: bool,
}

impl Allowed {
    pub fn check(&self, subject: &str, seen: &State) -> Result<(), String> {
        match self.states.contains(seen) || self.anything && seen.is_some() {
            true => Ok(()),
            false => Err(format!("{subject} is {seen:?}, and may be one of {:?}", self.states)),
        }
    }
}

impl History {
    fn record(&self) -> std::sync::MutexGuard<'_, Record> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes an operation that is over.
    pub fn operation(&self, name: &'static str, begun: u64, done: u64) {
        self.record().operations.push((name, begun, done));
    }

    /// Notes what became of a subject.
    pub fn step(&self, subject: String, begun: u64, done: u64, state: State) {
        self.push(subject, begun, done, state, false);
    }

    /// As [`History::step`], for what is not all or nothing.
    pub fn step_in_place(&self, subject: String, begun: u64, done: u64, state: State) {
        self.push(subject, begun, done, state, true);
    }

    fn push(&self, subject: String, begun: u64, done: u64, state: State, in_place: bool) {
        let step = Step {
            begun,
            done,
            state,
            in_place,
        };
        self.record().subjects.entry(subject).or_default().push(step);
    }

    /// What may be seen, when the power was cut there, of each subject with a name that begins so.
    pub fn allowed(&self, prefix: &str, position: u64) -> BTreeMap<String, Allowed> {
        let record = self.record();
        let subjects = record.subjects.iter();
        subjects
            .filter_map(|(subject, steps)| Some((subject.strip_prefix(prefix)?.to_owned(), allowed(steps, position))))
            .collect()
    }

    /// What a subject was made to be when it last was there.
    pub fn last_state(&self, subject: &str) -> State {
        let record = self.record();
        let steps = record.subjects.get(subject)?;
        steps.iter().rev().find_map(|step| step.state.clone())
    }

    pub fn operations(&self) -> usize {
        self.record().operations.len()
    }

    /// The name of an operation, and when it was under way. Each name has its turn.
    pub fn some_operation(&self, turn: u64, random: &mut Random) -> Option<(&'static str, u64, u64)> {
        let record = self.record();
        let names: BTreeSet<&str> = record.operations.iter().map(|(name, ..)| *name).collect();
        let name = names.iter().nth(turn as usize % names.len().max(1))?;
        let those: Vec<_> = record.operations.iter().filter(|(other, ..)| other == name).collect();
        random.pick(&those).map(|operation| **operation)
    }
}

fn allowed(steps: &[Step], position: u64) -> Allowed {
    let mut allowed = Allowed {
        states: vec![None],
        anything: false,
    };
    for step in steps.iter().filter(|step| step.begun < position) {
        if step.done <= position {
            allowed.states.clear();
        } else {
            allowed.anything |= step.in_place;
        }
        allowed.states.push(step.state.clone());
    }
    allowed
}

/// Compares what was seen of all subjects with what may be.
pub fn compare(what: &str, allowed: &BTreeMap<String, Allowed>, seen: &BTreeMap<String, String>) -> Result<(), String> {
    for (subject, allowed) in allowed {
        allowed.check(&format!("{what} {subject}"), &seen.get(subject).cloned())?;
    }
    match seen.keys().find(|subject| !allowed.contains_key(*subject)) {
        Some(subject) => Err(format!("{what} {subject} is there, and never was")),
        None => Ok(()),
    }
}
