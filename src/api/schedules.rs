//! `/schedules`: snapshots that are taken, and go, by themselves.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use pageserver::{BranchName, Tag};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Answer, Body, Done, Named, blocking, done, schema};
use crate::error::{Error, Result};
use crate::service::Service;

/// How often snapshots of a branch are taken, and which of them stay.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// From one to the next, in seconds: at the multiples of it since 1970, UTC.
    #[schema(minimum = 1)]
    pub every: u64,
    /// Those that stay, by each rule; all of them when there is none.
    pub keep: Vec<Rule>,
}

/// Of the last `count` periods that have snapshots the newest of each stays.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    pub period: Period,
    #[schema(minimum = 1)]
    pub count: u32,
}

/// In UTC; weeks begin on Monday. `last` counts snapshots, whenever they were taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Period {
    Last,
    Hourly,
    Daily,
    Weekly,
    Monthly,
    Yearly,
}

/// A branch with its schedule.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Scheduled {
    #[schema(value_type = schema::Name)]
    pub branch: BranchName,
    pub schedule: Schedule,
    /// When the newest of its snapshots was taken.
    pub last: Option<Timestamp>,
    /// How many of them there are.
    pub snapshots: usize,
}

const PERIODS: [(Period, &str); 6] = [
    (Period::Last, "last"),
    (Period::Hourly, "hourly"),
    (Period::Daily, "daily"),
    (Period::Weekly, "weekly"),
    (Period::Monthly, "monthly"),
    (Period::Yearly, "yearly"),
];

/// What the tags of a schedule's snapshots begin with; the moment follows.
const PREFIX: &str = "auto-";
const MOMENT: &str = "%Y%m%dT%H%M%SZ";

impl Period {
    fn name(self) -> &'static str {
        PERIODS
            .iter()
            .find(|(period, _)| *period == self)
            .map_or("", |(_, name)| name)
    }

    /// A number that two moments share if they lie in the same period.
    fn number(self, at: Timestamp) -> i64 {
        const MONDAY: i64 = 3;
        let (day, date) = (at.as_second().div_euclid(86_400), at.to_zoned(TimeZone::UTC).date());
        match self {
            Period::Last => at.as_second(),
            Period::Hourly => at.as_second().div_euclid(3600),
            Period::Daily => day,
            Period::Weekly => (day + MONDAY).div_euclid(7),
            Period::Monthly => i64::from(date.year()) * 12 + i64::from(date.month()),
            Period::Yearly => date.year().into(),
        }
    }
}

impl FromStr for Rule {
    type Err = String;

    /// As `hourly:24`.
    fn from_str(text: &str) -> std::result::Result<Rule, String> {
        let (name, count) = text.split_once(':').unwrap_or((text, ""));
        let period = PERIODS.iter().find(|(_, known)| *known == name);
        let count = count.parse().ok().filter(|count| *count > 0);
        match (period, count) {
            (Some((period, _)), Some(count)) => Ok(Rule { period: *period, count }),
            _ => Err("a rule is last, hourly, daily, weekly, monthly or yearly with a number, as in hourly:24".into()),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.period.name(), self.count)
    }
}

impl Schedule {
    pub fn check(&self) -> Result<()> {
        match self.every > 0 && self.keep.iter().all(|rule| rule.count > 0) {
            true => Ok(()),
            false => Err(Error::usage("a schedule of nothing").hint("give a time and numbers above 0")),
        }
    }

    /// Whether the newest snapshot is of an earlier turn than this moment.
    pub fn is_due(&self, newest: Option<Timestamp>, now: Timestamp) -> bool {
        let turn = |at: Timestamp| at.as_second().div_euclid(i64::try_from(self.every).unwrap_or(i64::MAX));
        newest.is_none_or(|newest| turn(newest) < turn(now))
    }

    /// Which of the moments, newest first, no rule keeps.
    pub fn superfluous(&self, taken: &[Timestamp]) -> Vec<Timestamp> {
        if self.keep.is_empty() {
            return Vec::new();
        }
        let is_kept = |at: &Timestamp| self.keep.iter().any(|rule| rule.keeps(taken, *at));
        taken.iter().filter(|at| !is_kept(at)).copied().collect()
    }

    pub fn every(&self) -> Duration {
        Duration::from_secs(self.every)
    }
}

impl Rule {
    fn keeps(&self, taken: &[Timestamp], at: Timestamp) -> bool {
        let number = |at: &Timestamp| self.period.number(*at);
        let mut newer: Vec<i64> = taken.iter().filter(|other| **other > at).map(number).collect();
        newer.dedup();
        newer.last() != Some(&number(&at)) && newer.len() < self.count as usize
    }
}

/// The tag of the snapshot that a schedule takes at a moment.
pub fn tag_at(at: Timestamp) -> Result<Tag> {
    let moment = at.to_zoned(TimeZone::UTC).strftime(MOMENT).to_string();
    Ok(format!("{PREFIX}{moment}").parse()?)
}

/// When a schedule has taken a snapshot; none if no schedule has.
pub fn moment_of(tag: &Tag) -> Option<Timestamp> {
    let moment = tag.as_str().strip_prefix(PREFIX)?;
    let civil = jiff::civil::DateTime::strptime(MOMENT, moment).ok()?;
    Some(civil.to_zoned(TimeZone::UTC).ok()?.timestamp())
}

pub fn routes() -> OpenApiRouter<Arc<Service>> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(set, unset))
}

/// All schedules.
#[utoipa::path(
    get, path = "/schedules", operation_id = "schedules_list",
    responses((status = 200, body = Vec<Scheduled>))
)]
async fn list(State(service): State<Arc<Service>>) -> Answer<Vec<Scheduled>> {
    blocking(move || Ok(service.schedules())).await
}

/// Has snapshots of a branch be taken by themselves, as `auto-` and the moment in UTC.
#[utoipa::path(
    put, path = "/schedules/{name}", operation_id = "schedules_set",
    params(("name" = schema::Name, Path)),
    request_body = Schedule,
    responses((status = 204))
)]
async fn set(
    State(service): State<Arc<Service>>,
    Named(name): Named<BranchName>,
    Body(schedule): Body<Schedule>,
) -> Done {
    done(move || service.set_schedule(&name, Some(schedule))).await
}

/// Ends a branch's schedule. The snapshots stay.
#[utoipa::path(
    delete, path = "/schedules/{name}", operation_id = "schedules_unset",
    params(("name" = schema::Name, Path)),
    responses((status = 204))
)]
async fn unset(State(service): State<Arc<Service>>, Named(name): Named<BranchName>) -> Done {
    done(move || service.set_schedule(&name, None)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a moment")
    }

    #[test]
    fn a_tag_tells_its_moment_and_others_tell_none() {
        let moment = at("2026-11-21T22:05:07Z");
        let tag = tag_at(moment).expect("a tag");
        assert_eq!(tag.as_str(), "auto-20261121T220507Z");
        assert_eq!(moment_of(&tag), Some(moment));
        for other in ["auto-", "auto-x", "before", "auto-20261121"] {
            assert_eq!(moment_of(&other.parse().expect("a tag")), None);
        }
    }

    #[test]
    fn of_each_of_the_last_periods_the_newest_stays() {
        // Every half hour for ten days, newest first.
        let newest = at("2026-11-21T22:30:00Z");
        let taken: Vec<Timestamp> = (0..480)
            .map(|n| newest - jiff::SignedDuration::from_mins(30 * n))
            .collect();
        let kept = |keep: &[&str]| {
            let keep = keep.iter().map(|rule| rule.parse().expect("a rule")).collect();
            let schedule = Schedule { every: 1800, keep };
            let gone = schedule.superfluous(&taken);
            let kept = taken.iter().filter(|at| !gone.contains(at));
            kept.map(|at| at.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(kept(&[]).len(), 480);
        assert_eq!(kept(&["last:2"]), ["2026-11-21T22:30:00Z", "2026-11-21T22:00:00Z"]);
        assert_eq!(kept(&["hourly:2"]), ["2026-11-21T22:30:00Z", "2026-11-21T21:30:00Z"]);
        assert_eq!(
            kept(&["daily:3", "weekly:2"]),
            [
                "2026-11-21T22:30:00Z",
                "2026-11-20T23:30:00Z",
                "2026-11-19T23:30:00Z",
                "2026-11-15T23:30:00Z"
            ]
        );
        assert_eq!(kept(&["monthly:12", "yearly:9"]).len(), 1);
        assert_eq!(kept(&["hourly:1000"]).len(), 240);
    }

    #[test]
    fn a_turn_comes_once() {
        let schedule = Schedule {
            every: 3600,
            keep: vec![],
        };
        let now = at("2026-11-21T22:00:01Z");
        assert!(schedule.is_due(None, now));
        assert!(schedule.is_due(Some(at("2026-11-21T21:59:59Z")), now));
        assert!(!schedule.is_due(Some(at("2026-11-21T22:00:00Z")), now));
    }
}
