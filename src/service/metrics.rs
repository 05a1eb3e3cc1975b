//! What Prometheus is told: how the service stands now, and what it was asked so far.
//!
//! The text format is written here. The exporters there are keep what they were told once, so a storage that is
//! gone would be reported for ever; and they want to be called now and then for their memory not to grow.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};
use std::fs;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use nix::unistd::{SysconfVar, sysconf};

use super::Service;
use crate::error::{Error, Result};
use crate::postgres::server;

/// Upper bounds of the times that requests take, in seconds: reads take a millisecond, a new cluster some seconds.
const BOUNDS: [f64; 9] = [0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 30.0, 120.0];

const PG_STATUSES: [(server::Status, &str); 4] = [
    (server::Status::Stopped, "stopped"),
    (server::Status::Starting, "starting"),
    (server::Status::Running, "running"),
    (server::Status::Stopping, "stopping"),
];

/// Requests that were answered, by method and route.
#[derive(Default)]
pub struct Requests {
    answered: Mutex<BTreeMap<(String, String), Answered>>,
}

#[derive(Default)]
struct Answered {
    by_status: BTreeMap<u16, u64>,
    /// How many took as long as each of the bounds or less.
    within: [u64; BOUNDS.len()],
    /// In seconds.
    total: f64,
}

impl Requests {
    /// `route` is the pattern of the path, so that there are few.
    pub fn note(&self, method: &str, route: &str, status: u16, took: Duration) {
        let mut answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        let route = answered.entry((method.into(), route.into())).or_default();
        let took = took.as_secs_f64();
        *route.by_status.entry(status).or_default() += 1;
        route.total += took;
        for (count, _) in route.within.iter_mut().zip(BOUNDS).filter(|(_, bound)| took <= *bound) {
            *count += 1;
        }
    }

    fn tell(&self, text: &mut Text) {
        let answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        let count = "zenith_http_requests_total";
        text.family(count, "counter", "Requests that were answered.");
        for ((method, route), answers) in &*answered {
            for (status, number) in &answers.by_status {
                let labels = [
                    ("method", method.as_str()),
                    ("route", route),
                    ("status", &status.to_string()),
                ];
                text.sample(count, &labels, number);
            }
        }
        let took = "zenith_http_request_duration_seconds";
        text.family(took, "histogram", "How long the answers took.");
        for ((method, route), answers) in &*answered {
            answers.tell_times(text, took, [("method", method), ("route", route)]);
        }
    }
}

impl Answered {
    fn tell_times(&self, text: &mut Text, name: &str, [method, route]: [(&str, &str); 2]) {
        let number: u64 = self.by_status.values().sum();
        let bounds = BOUNDS.iter().map(f64::to_string).chain(["+Inf".into()]);
        for (bound, count) in bounds.zip(self.within.into_iter().chain([number])) {
            text.sample(&format!("{name}_bucket"), &[method, route, ("le", &bound)], count);
        }
        text.sample(&format!("{name}_sum"), &[method, route], self.total);
        text.sample(&format!("{name}_count"), &[method, route], number);
    }
}

impl Service {
    /// In Prometheus' text format, version 0.0.4.
    pub fn metrics(&self) -> Result<String> {
        let mut text = Text::default();
        self.tell_process(&mut text)?;
        self.tell_contents(&mut text)?;
        self.tell_storages(&mut text)?;
        self.requests.tell(&mut text);
        Ok(text.0)
    }

    fn tell_process(&self, text: &mut Text) -> Result<()> {
        let build = "zenith_build_info";
        text.family(build, "gauge", "The version that runs.");
        text.sample(build, &[("version", env!("CARGO_PKG_VERSION"))], 1);
        let up = Timestamp::now().duration_since(self.started).as_secs_f64();
        text.gauge("zenith_uptime_seconds", "Time since the service was started.", up);
        let memory = resident().map_err(Error::io("read the size of the process"))?;
        text.gauge(
            "zenith_resident_memory_bytes",
            "Memory of the service's process.",
            memory,
        );
        Ok(())
    }

    fn tell_contents(&self, text: &mut Text) -> Result<()> {
        let stores = self.storages.stores();
        let branches: usize = stores.iter().map(|(_, store)| store.branches().len()).sum();
        let snapshots: usize = stores.iter().map(|(_, store)| store.snapshots(None).len()).sum();
        text.gauge("zenith_branches", "Branches.", branches);
        text.gauge("zenith_snapshots", "Snapshots.", snapshots);
        text.gauge(
            "zenith_mounts",
            "Mounts, also those that did not come back.",
            self.mounts()?.len(),
        );
        let pgs = self.pgs()?;
        let name = "zenith_pgs";
        text.family(name, "gauge", "pgs by the state of their servers.");
        for (status, label) in PG_STATUSES {
            let number = pgs.iter().filter(|pg| pg.status == status).count();
            text.sample(name, &[("status", label)], number);
        }
        Ok(())
    }

    fn tell_storages(&self, text: &mut Text) -> Result<()> {
        let storages = self.storages()?;
        let (used, available) = ("zenith_storage_used_bytes", "zenith_storage_available_bytes");
        text.family(used, "gauge", "What branches and snapshots hold.");
        for storage in &storages {
            text.sample(used, &[("storage", &storage.name.to_string())], storage.used);
        }
        text.family(available, "gauge", "What the filesystem can still take.");
        for storage in &storages {
            text.sample(available, &[("storage", &storage.name.to_string())], storage.available);
        }
        Ok(())
    }
}

/// The process's memory that is not swapped out, in bytes.
fn resident() -> std::io::Result<u64> {
    let sizes = fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = sizes
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse().ok())
        .unwrap_or(0);
    let page = sysconf(SysconfVar::PAGE_SIZE)?.unwrap_or(0);
    Ok(pages * page.unsigned_abs())
}

#[derive(Default)]
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}"));
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let labels: Vec<String> = labels
            .iter()
            .map(|(label, value)| format!("{label}=\"{}\"", escaped(value)))
            .collect();
        match labels.is_empty() {
            true => self.line(format_args!("{name} {value}")),
            false => self.line(format_args!("{name}{{{}}} {value}", labels.join(","))),
        }
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, "gauge", help);
        self.sample(name, &[], value);
    }

    fn line(&mut self, line: impl Display) {
        // A string takes everything.
        let _written = writeln!(self.0, "{line}").is_ok();
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_what_they_asked_and_how_long_they_took() {
        let requests = Requests::default();
        for (status, milliseconds) in [(200, 1), (200, 20), (404, 200_000)] {
            requests.note("GET", "/a\"b", status, Duration::from_millis(milliseconds));
        }
        let mut text = Text::default();
        requests.tell(&mut text);
        let labels = r#"method="GET",route="/a\"b""#;
        for line in [
            format!("zenith_http_requests_total{{{labels},status=\"200\"}} 2"),
            format!("zenith_http_requests_total{{{labels},status=\"404\"}} 1"),
            format!("zenith_http_request_duration_seconds_bucket{{{labels},le=\"0.001\"}} 1"),
            format!("zenith_http_request_duration_seconds_bucket{{{labels},le=\"120\"}} 2"),
            format!("zenith_http_request_duration_seconds_bucket{{{labels},le=\"+Inf\"}} 3"),
            format!("zenith_http_request_duration_seconds_count{{{labels}}} 3"),
        ] {
            assert!(text.0.lines().any(|told| told == line), "{line} in {}", text.0);
        }
    }
}
