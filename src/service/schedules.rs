//! Snapshots that are taken and destroyed by themselves.
//!
//! What a schedule has taken its tag tells, and nothing else is remembered of it: a service that was down takes one when it
//! is up again, and none twice. A snapshot that is protected, in use or started from stays until it isn't.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use pageserver::{BranchName, SnapshotName};

use super::Service;
use crate::api::schedules::{Schedule, Scheduled, moment_of, tag_at};
use crate::api::snapshots::NewSnapshot;
use crate::error::{Error, Kind, Result};

/// How long a schedule that could not be kept is left alone.
const REST: Duration = Duration::from_secs(60);

/// Schedules that could not be kept a while ago.
#[derive(Default)]
pub struct Resting(Mutex<BTreeMap<BranchName, Instant>>);

impl Resting {
    fn has(&self, branch: &BranchName) -> bool {
        let mut resting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        resting.retain(|_, since| since.elapsed() < REST);
        resting.contains_key(branch)
    }

    fn add(&self, branch: &BranchName) {
        let mut resting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        resting.insert(branch.clone(), Instant::now());
    }
}

impl Service {
    pub fn schedules(&self) -> Vec<Scheduled> {
        let schedules = self.memory.get().schedules.clone();
        let described = |(branch, schedule): (BranchName, Schedule)| {
            let taken = self.taken(&branch);
            Scheduled {
                last: taken.first().copied(),
                snapshots: taken.len(),
                branch,
                schedule,
            }
        };
        schedules.into_iter().map(described).collect()
    }

    pub fn set_schedule(&self, branch: &BranchName, schedule: Option<Schedule>) -> Result<()> {
        let _inside = self.gate.enter()?;
        self.storages.store_of(branch)?;
        schedule.iter().try_for_each(Schedule::check)?;
        if schedule.is_none() && !self.memory.get().schedules.contains_key(branch) {
            return Err(
                Error::not_found(format!("no schedule for {branch}")).hint("`zenith snapshot schedule` lists them")
            );
        }
        self.memory.change(|memory| match schedule {
            Some(schedule) => drop(memory.schedules.insert(branch.clone(), schedule)),
            None => drop(memory.schedules.remove(branch)),
        })
    }

    /// When the schedule of a branch has taken the snapshots that there are, the newest first.
    fn taken(&self, branch: &BranchName) -> Vec<Timestamp> {
        let Ok(store) = self.storages.store_of(branch) else {
            return Vec::new();
        };
        let snapshots = store.snapshots(Some(branch));
        let mut taken: Vec<Timestamp> = snapshots.iter().filter_map(|info| moment_of(&info.name.tag)).collect();
        taken.sort_by_key(|at| std::cmp::Reverse(*at));
        taken
    }

    /// To be called every now and then.
    pub(super) fn keep_schedules(&self) {
        let schedules = self.memory.get().schedules.clone();
        for (branch, schedule) in schedules {
            if self.resting.has(&branch) {
                continue;
            }
            if let Err(error) = self.keep_schedule(&branch, &schedule) {
                tracing::error!("the schedule of {branch}: {error}");
                self.resting.add(&branch);
            }
        }
    }

    fn keep_schedule(&self, branch: &BranchName, schedule: &Schedule) -> Result<()> {
        let now = Timestamp::now();
        if !schedule.is_due(self.taken(branch).first().copied(), now) {
            return Ok(());
        }
        let tag = tag_at(now)?;
        self.create_snapshot(&NewSnapshot {
            name: SnapshotName {
                branch: branch.clone(),
                tag,
            },
            checkpoint: false,
            protected: false,
            expires: None,
        })?;
        for at in schedule.superfluous(&self.taken(branch)) {
            let (branch, tag) = (branch.clone(), tag_at(at)?);
            match self.destroy_snapshot(&SnapshotName { branch, tag }) {
                Err(error) if error.kind != Kind::Refused => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}
