//! `/check`: whether the stores are what they should be.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use pageserver::{Checks, LayerId, Pace};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::jobs::{Job, PREFER, Task, as_job};
use super::storages::StorageName;
use super::{Body, schema};
use crate::error::{Error, Result};
use crate::service::Service;

/// What to check.
#[derive(Clone, Default, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewCheck {
    /// Only this storage; all of them when there is none.
    #[schema(value_type = Option<schema::Name>)]
    pub storage: Option<StorageName>,
    /// Do what can be done about it.
    #[serde(default)]
    pub repair: bool,
    /// Read all sealed blocks, and compare them with their checksums.
    #[serde(default)]
    pub read_data: bool,
    /// The layer to begin with, as the steps of an earlier check have told it.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub from: Option<LayerId>,
    /// Most bytes to read in a second.
    #[serde(default)]
    #[schema(value_type = Option<u64>, minimum = 1)]
    pub bytes_per_second: Option<NonZeroU64>,
}

impl NewCheck {
    /// Waits as long as it takes to stay below the limit.
    pub fn pace(&self) -> impl FnMut(u64) -> bool {
        let (limit, begun) = (self.bytes_per_second, Instant::now());
        let mut read = 0;
        move |bytes| {
            read += bytes;
            if let Some(limit) = limit {
                let due = Duration::from_secs_f64(read as f64 / limit.get() as f64);
                thread::sleep(due.saturating_sub(begun.elapsed()));
            }
            true
        }
    }

    pub fn checks<'a>(&self, pace: Pace<'a>) -> Checks<'a> {
        Checks {
            blocks_from: self.read_data.then(|| self.from.unwrap_or(LayerId(0))),
            pace: Some(pace),
            repair: self.repair,
        }
    }
}

/// What a check has found.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Checked {
    /// Whether nothing is damaged, or all of it was repaired.
    pub sound: bool,
    pub findings: Vec<Finding>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Finding {
    #[schema(value_type = schema::Name)]
    pub storage: StorageName,
    /// A layer, a branch, a part of the database.
    #[serde(rename = "where")]
    pub place: String,
    /// What is the matter, as a sentence.
    pub what: String,
    pub severity: Severity,
    /// What a repair does about it.
    pub repair: Option<String>,
    pub repaired: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// To be known, and nothing wrong.
    Note,
    /// Left by a crash; takes space, and nobody finds it.
    Leftover,
    /// Something is not there any more, or not as it was.
    Damage,
}

impl Finding {
    pub fn new(storage: &StorageName, found: pageserver::Finding) -> Finding {
        use pageserver::Severity as S;
        Finding {
            storage: storage.clone(),
            place: found.place,
            what: found.what,
            severity: match found.severity {
                S::Note => Severity::Note,
                S::Leftover => Severity::Leftover,
                S::Damage => Severity::Damage,
            },
            repair: found.repair.map(|repair| repair.to_string()),
            repaired: found.repaired,
        }
    }

    /// Damage that no check repairs.
    pub fn damage(storage: &StorageName, place: impl Into<String>, what: impl Into<String>) -> Finding {
        Finding {
            storage: storage.clone(),
            place: place.into(),
            what: what.into(),
            severity: Severity::Damage,
            repair: None,
            repaired: false,
        }
    }

    fn is_damage(&self) -> bool {
        self.severity == Severity::Damage && !self.repaired
    }
}

impl Checked {
    pub fn of(findings: Vec<Finding>) -> Checked {
        Checked {
            sound: !findings.iter().any(Finding::is_damage),
            findings,
        }
    }

    /// What a command ends with when it has told all that was found.
    pub fn verdict(&self) -> Result<()> {
        let damaged = self.findings.iter().filter(|finding| finding.is_damage());
        let (count, mendable) = damaged.fold((0, false), |(count, mendable), finding| {
            (count + 1, mendable || finding.repair.is_some())
        });
        let hint = match mendable {
            true => "`zenith check --repair` does what it says above; copy the store elsewhere first",
            false => "restore what is hit from a backup, or go back to a snapshot that is not hit",
        };
        match count {
            0 => Ok(()),
            1 => Err(Error::failure("there is damage in 1 place").hint(hint)),
            count => Err(Error::failure(format!("there is damage in {count} places")).hint(hint)),
        }
    }
}

pub fn routes() -> OpenApiRouter<Arc<Service>> {
    OpenApiRouter::new().routes(routes!(check))
}

/// Checks the storages, and repairs what can be. Branches in use stay usable.
#[utoipa::path(
    post, path = "/check",
    params(("prefer" = Option<String>, Header, description = PREFER)),
    request_body = NewCheck,
    responses((status = 200, body = Checked), (status = 202, body = Job))
)]
async fn check(
    State(service): State<Arc<Service>>,
    headers: HeaderMap,
    Body(asked): Body<NewCheck>,
) -> Result<Response> {
    let task = Task {
        what: "check the storages".into(),
        status: StatusCode::OK,
    };
    as_job(service, &headers, task, move |service, job| service.check(&asked, job)).await
}
