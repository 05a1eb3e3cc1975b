//! A file that is changed, cut and grown in hundreds of layers which all have a name reads right through the head and through each of them,
//! as it is in memory and after it was loaded anew.

#[path = "support/random.rs"]
mod random;
#[path = "support/store.rs"]
mod store;

use std::sync::Arc;

use pageserver::*;
use random::Random;
use store::Scratch;

const LAYERS: u64 = 300;
const SIZE_MAX: u64 = 100 * BLOCK;
const NOW: Time = Time {
    secs: 1_700_000_000,
    nanos: 5,
};

fn read(view: &View, ino: Ino) -> Vec<u8> {
    let mut bytes = vec![0; view.getattr(ino).expect("there").size as usize];
    assert_eq!(view.read(ino, 0, &mut bytes), Ok(bytes.len()));
    bytes
}

fn tag(nth: u64) -> SnapshotName {
    format!("main@n{nth}").parse().expect("a name")
}

/// Of ten places in the file the one to write to, and where to cut it before, if at all.
fn chosen(nth: u64, random: &mut Random) -> (u64, Option<u64>) {
    match nth {
        // What the oldest layer has goes with a cut in another, of which later ones hide all the rest.
        0 => (5, None),
        1 => (1, None),
        2 => (9, Some(3 * SIZE_MAX / 10)),
        3..100 => (9, None),
        _ => (random.below(10), (random.below(4) == 0).then(|| random.below(SIZE_MAX))),
    }
}

fn change(timeline: &Timeline, ino: Ino, model: &mut Vec<u8>, (place, cut): (u64, Option<u64>), byte: u8) {
    if let Some(size) = cut {
        let set = SetAttr {
            size: Some(size),
            ..SetAttr::default()
        };
        timeline.setattr(ino, set, NOW).expect("resized");
        model.resize(size as usize, 0);
    }
    let (offset, bytes) = (place * SIZE_MAX / 10, [byte; 9000]);
    timeline.write(ino, offset, &bytes, Some(NOW)).expect("written");
    let end = offset as usize + bytes.len();
    model.resize(model.len().max(end), 0);
    model[offset as usize..end].copy_from_slice(&bytes);
}

/// The newest first: their trees are in memory still.
fn compare(store: &Arc<Store>, timeline: &Timeline, ino: Ino, models: &[Vec<u8>]) {
    let head = models.last().expect("the head's");
    assert!(read(timeline.view(), ino) == *head, "the head");
    for (nth, model) in models.iter().enumerate().rev().step_by(7) {
        let view = store.snapshot_view(&tag(nth as u64)).expect("loads");
        assert!(read(&view, ino) == *model, "snapshot {nth}");
    }
}

#[test]
fn hundreds_of_layers_read_as_they_were() {
    let scratch = Scratch::new("many-layers");
    let mut store = scratch.open(Disk::new());
    let main: BranchName = "main".parse().expect("a name");
    store
        .create_branch(&main, &Start::Empty, (0, 0), NOW)
        .expect("a branch");
    let mut timeline = store.timeline(&main).expect("loads");
    let ino = store::file(&timeline, "file", NOW);
    let (mut random, mut model, mut models) = (Random::new(1), Vec::new(), Vec::new());
    for nth in 0..LAYERS {
        change(
            &timeline,
            ino,
            &mut model,
            chosen(nth, &mut random),
            1 + nth as u8 % 250,
        );
        store.create_snapshot(&tag(nth), Keep::default(), NOW).expect("taken");
        models.push(model.clone());
        match nth {
            // Some of them are packed, some have checksums, some neither.
            100 => {
                while store
                    .tend(
                        &Tending {
                            packing: Some(1),
                            ..Tending::default()
                        },
                        &mut |_| true,
                    )
                    .expect("upkeep")
                {}
            }
            200 => while store.tend(&Tending::default(), &mut |_| true).expect("upkeep") {},
            _ => {}
        }
    }
    compare(&store, &timeline, ino, &models);
    drop((timeline, store));
    store = scratch.open(Disk::new());
    timeline = store.timeline(&main).expect("loads");
    compare(&store, &timeline, ino, &models);
    let findings = store.check(Checks::default(), &mut |_| {}).expect("checked");
    let damage = findings.iter().find(|finding| finding.severity == Severity::Damage);
    assert!(damage.is_none(), "{damage:?}");
}
