//! `zenith snapshot schedule`: snapshots that come and go by themselves.

use std::collections::BTreeSet;

use crate::sandbox::{Sandbox, text, until};

fn tags(sandbox: &Sandbox) -> BTreeSet<String> {
    let list = sandbox.json(&["snapshot", "list", "main"]);
    let names = list.as_array().into_iter().flatten();
    names
        .filter_map(|snapshot| Some(snapshot["name"].as_str()?.to_owned()))
        .collect()
}

#[test]
fn a_schedule_takes_snapshots_and_keeps_those_that_its_rules_name() {
    let sandbox = Sandbox::new("schedule");
    sandbox.ok(&["branch", "main", "--empty"]);
    sandbox.ok(&["snapshot", "create", "main@mine"]);
    sandbox.ok(&["snapshot", "schedule", "main", "--every", "1s", "--keep", "last:2"]);
    until("it has taken some", || tags(&sandbox).len() == 3);
    let first = tags(&sandbox);
    let protected = first
        .iter()
        .find(|name| name.contains("@auto-2"))
        .expect("one of it")
        .clone();
    sandbox.ok(&["snapshot", "protect", &protected]);
    until("the others have gone", || {
        tags(&sandbox).intersection(&first).count() == 2
    });
    let now = tags(&sandbox);
    assert!(now.contains("main@mine") && now.contains(&protected), "{now:?}");
    assert!((3..=5).contains(&now.len()), "{now:?}");
    let list = sandbox.ok(&["snapshot", "schedule"]);
    assert!(list.contains("main    1s     last:2"), "{list}");

    sandbox.ok(&["stop"]);
    until("the next service goes on with it", || {
        tags(&sandbox).intersection(&now).count() == 2
    });
    sandbox.ok(&["snapshot", "schedule", "main", "--off"]);
    let left = tags(&sandbox);
    std::thread::sleep(std::time::Duration::from_millis(2500));
    assert_eq!(tags(&sandbox), left);
    sandbox.refused(
        3,
        &["snapshot", "schedule", "main", "--off"],
        "no schedule for main",
        "lists them",
    );
}

#[test]
fn a_schedule_of_nothing_is_refused_and_one_goes_with_its_branch() {
    let sandbox = Sandbox::new("schedule-bad");
    for (bad, why) in [
        (&["main", "--every", "0s"][..], "a time is a number"),
        (&["main", "--every", "1h", "--keep", "hourly:0"], "a rule is last"),
        (&["main", "--every", "1h", "--keep", "often:3"], "a rule is last"),
        (&["main", "--keep", "hourly:3"], "--every"),
        (&["--every", "1h"], "NAME"),
    ] {
        let output = sandbox.run(&[&["snapshot", "schedule"][..], bad].concat());
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(text(&output.stderr).contains(why), "{output:?}");
    }
    sandbox.refused(
        3,
        &["snapshot", "schedule", "nobody", "--every", "1h"],
        "no branch named nobody",
        "there are no branches yet",
    );
    sandbox.ok(&["branch", "going", "--empty"]);
    sandbox.ok(&["snapshot", "schedule", "going", "--every", "1h"]);
    assert!(sandbox.ok(&["snapshot", "schedule"]).contains("going"));
    sandbox.ok(&["branch", "-d", "going", "--yes"]);
    assert!(sandbox.ok(&["snapshot", "schedule"]).contains("no schedules yet"));
}
