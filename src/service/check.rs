//! Checking what the service keeps: its storages and what it remembers.
//!
//! A running service checks its open stores; a command checks closed ones by itself, since a store can be too damaged for
//! a service to come up on it.

use std::collections::BTreeSet;
use std::path::Path;

use pageserver::{BranchName, Disk, check_closed, known_names};

use super::Service;
use super::jobs::Job;
use super::memory::{Memory, Remembered};
use crate::api::check::{Checked, Finding, NewCheck};
use crate::api::storages::StorageName;
use crate::error::{Error, Result};
use crate::store_dir;

impl Service {
    pub fn check(&self, asked: &NewCheck, job: &Job) -> Result<Checked> {
        let _inside = self.gate.enter()?;
        let mut findings = Vec::new();
        for name in self.to_check(asked)? {
            let store = match self.storages.named(&name) {
                Ok(store) => store,
                Err(error) => {
                    findings.push(Finding::damage(&name, "storage", error.message));
                    continue;
                }
            };
            job.step(format!("check the storage {name}"));
            let mut pace = asked.pace();
            let found = store.check(asked.checks(&mut pace), &mut |step| job.step(step))?;
            findings.extend(found.into_iter().map(|found| Finding::new(&name, found)));
        }
        if asked.storage.as_ref().is_none_or(StorageName::is_local) {
            let branches = self.branches().into_iter().map(|branch| branch.name).collect();
            findings.extend(strangers(&self.memory.get(), &branches));
        }
        for finding in &findings {
            tracing::warn!("check: {}: {}: {}", finding.storage, finding.place, finding.what);
        }
        Ok(Checked::of(findings))
    }

    fn to_check(&self, asked: &NewCheck) -> Result<Vec<StorageName>> {
        match &asked.storage {
            Some(name) => self.storages.named(name).map(|_| vec![name.clone()]),
            None => Ok(self.storages.names()),
        }
    }
}

/// Checks the storages of a store that no service runs for.
pub fn closed(dir: &Path, asked: &NewCheck, step: &mut dyn FnMut(&str)) -> Result<Checked> {
    let local = StorageName::local();
    let (remembered, unreadable) = match Memory::load(&dir.join(store_dir::STATE)) {
        Ok(memory) => (memory.get().clone(), None),
        Err(error) => (Remembered::default(), Some(error)),
    };
    let attached = remembered
        .storages
        .iter()
        .map(|(name, record)| (name.clone(), record.path.clone()));
    let mut storages: Vec<_> = [(local.clone(), dir.to_path_buf())]
        .into_iter()
        .chain(attached)
        .collect();
    if let Some(only) = &asked.storage {
        let known: Vec<String> = storages.iter().map(|(name, _)| name.to_string()).collect();
        storages.retain(|(name, _)| name == only);
        if storages.is_empty() {
            return Err(Error::not_found(format!("no storage named {only}")).hint(known_names(
                "storages",
                &only.to_string(),
                &known,
            )));
        }
    }
    let mut findings = Vec::new();
    findings.extend(unreadable.map(|error| Finding::damage(&local, store_dir::STATE, error.message)));
    for (name, path) in storages {
        step(&format!("check the storage {name}"));
        let mut pace = asked.pace();
        match check_closed(&path, &Disk::new(), asked.checks(&mut pace), step) {
            Ok(found) => findings.extend(found.into_iter().map(|found| Finding::new(&name, found))),
            Err(error) if name == local => return Err(error.into()),
            Err(error) => findings.push(Finding::damage(&name, "storage", error.to_string())),
        }
    }
    Ok(Checked::of(findings))
}

/// What is remembered of branches that don't exist.
fn strangers(remembered: &Remembered, branches: &BTreeSet<BranchName>) -> Vec<Finding> {
    let mounts = remembered.mounts.iter().map(|place| {
        let what = format!("the mount on {}", place.dir.display());
        (what, place.view.branch().clone())
    });
    let pgs = remembered
        .pgs
        .keys()
        .map(|name| (format!("the pg {name}"), name.clone()));
    let strangers = mounts.chain(pgs).filter(|(_, branch)| !branches.contains(branch));
    let finding = |(what, branch)| {
        let what = format!("{what} is of the branch {branch}, which no storage has");
        Finding::damage(&StorageName::local(), store_dir::STATE, what)
    };
    strangers.map(finding).collect()
}
