//! Whether the catalog's records agree with each other.

use std::collections::{BTreeMap, BTreeSet};

use super::layers::place;
use super::{Finding, Repair, Severity};
use crate::catalog::{Catalog, TimelineRecord};
use crate::names::{BranchName, Tag};
use crate::types::{LayerId, TimelineId};

pub fn problems(catalog: &Catalog) -> Vec<Finding> {
    let timelines = catalog
        .timelines()
        .flat_map(|(id, record)| timeline(catalog, id, record));
    let mut findings: Vec<Finding> = layers(catalog).into_iter().chain(timelines).collect();
    findings.extend(twins(catalog));
    findings.extend(snapshots(catalog));
    let unneeded = catalog.unneeded().into_iter();
    findings.extend(unneeded.map(|id| {
        let what = "nothing needs it: it goes when the store is opened the next time";
        Finding::new(Severity::Leftover, place(id), what)
    }));
    findings
}

fn layers(catalog: &Catalog) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (id, record) in catalog.layers() {
        if !catalog.is_past(id.0) {
            findings.push(Finding::damage(place(id), "its number was never given"));
        }
        // Numbers rise from parent to child, so there is no cycle either.
        let what = match record.parent {
            Some(parent) if catalog.layer(parent).is_err() => format!("its parent, layer {parent}, does not exist"),
            Some(parent) if parent >= id => format!("its parent, layer {parent}, is younger"),
            _ => continue,
        };
        findings.push(Finding::damage(place(id), what));
    }
    findings
}

fn timeline(catalog: &Catalog, id: TimelineId, record: &TimelineRecord) -> Vec<Finding> {
    let head = record.head;
    let mut whats = Vec::new();
    if !catalog.is_past(id.0) {
        whats.push("its number was never given".to_owned());
    }
    if catalog.layer(head).is_err() {
        whats.push(format!("its head, layer {head}, does not exist"));
    }
    if let Some((child, _)) = catalog.layers().find(|(_, layer)| layer.parent == Some(head)) {
        whats.push(format!("its head, layer {head}, is the parent of layer {child}"));
    }
    let origin = record.origin.as_ref();
    if let Some(origin) = origin.filter(|origin| catalog.origin_name(origin).is_none()) {
        whats.push(format!(
            "what it was made from, timeline {:x}, does not exist",
            origin.timeline.0
        ));
    }
    let place = format!("branch {}", record.name);
    whats.into_iter().map(|what| Finding::damage(&place, what)).collect()
}

/// Branches that share a name or a head.
fn twins(catalog: &Catalog) -> Vec<Finding> {
    let (mut names, mut heads) = (BTreeSet::new(), BTreeSet::new());
    let mut findings = Vec::new();
    for (_, record) in catalog.timelines() {
        let place = format!("branch {}", record.name);
        if !names.insert(&record.name) {
            findings.push(Finding::damage(&place, "there are two of that name"));
        }
        if !heads.insert(record.head) {
            findings.push(Finding::damage(
                &place,
                format!("another branch has its head, layer {}", record.head),
            ));
        }
    }
    findings
}

fn snapshots(catalog: &Catalog) -> Vec<Finding> {
    let branches: BTreeMap<TimelineId, &BranchName> =
        catalog.timelines().map(|(id, record)| (id, &record.name)).collect();
    let heads: BTreeSet<LayerId> = catalog.timelines().map(|(_, record)| record.head).collect();
    let mut findings = Vec::new();
    for (timeline, tag, record) in catalog.snapshots() {
        let place = match branches.get(&timeline) {
            Some(branch) => format!("snapshot {branch}@{tag}"),
            None => format!("snapshot @{tag} of timeline {:x}", timeline.0),
        };
        let dropped = Repair::DropSnapshot(timeline, Tag::clone(tag));
        if catalog.layer(record.layer).is_err() {
            let what = format!("its layer {} does not exist: what it held is gone", record.layer);
            findings.push(Finding::damage(place, what).repair(dropped));
        } else if !branches.contains_key(&timeline) {
            findings.push(Finding::damage(place, "its branch does not exist").repair(dropped));
        } else if heads.contains(&record.layer) {
            findings.push(Finding::damage(
                place,
                format!("its layer {} is not sealed", record.layer),
            ));
        }
    }
    findings
}
