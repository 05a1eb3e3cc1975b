//! What stores do for themselves while nobody waits: checksums of what was sealed, flattening, packing in a compressed storage, merging of what
//! nobody names.
//!
//! One thread with the lowest priority there is, which pauses after each piece of work, so that neither a processor nor a disk is
//! taken from who uses a mount. What it has not finished when the service ends the next one begins anew.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use pageserver::{Store, Tending};

use super::Service;
use super::mounts::log_failure;
use crate::api::storages::StorageName;

/// How often to look for work.
const EVERY: Duration = Duration::from_secs(1);

/// How long to leave a storage alone after an error.
const REST: Duration = Duration::from_secs(60);

/// So many bytes more are free where somebody has made room on a full disk.
const ROOM: u64 = 8 << 20;

/// Bytes a second, at most.
const SPEED: u64 = 256 << 20;

pub struct Upkeep(Option<JoinHandle<()>>);

impl Upkeep {
    pub fn start(service: Arc<Service>) -> Upkeep {
        let thread = thread::Builder::new()
            .name("upkeep".into())
            .spawn(move || run(&service));
        match thread {
            Ok(thread) => Upkeep(Some(thread)),
            Err(error) => {
                log_failure("start the upkeep of the stores", Err(error));
                Upkeep(None)
            }
        }
    }

    /// Waits for its end: it ends when the service is stopped.
    pub fn join(self) {
        if let Some(thread) = self.0 {
            thread.thread().unpark();
            // A panic was logged by the thread.
            let _ended = thread.join();
        }
    }
}

fn run(service: &Service) {
    give_way();
    let mut resting: BTreeMap<StorageName, Rest> = BTreeMap::new();
    while !service.is_stopped() {
        // Each is held only while it is its turn, so that the others can be detached meanwhile.
        let names: Vec<StorageName> = service.storages.stores().into_iter().map(|(name, _)| name).collect();
        for name in names {
            let Ok(store) = service.storages.named(&name) else {
                continue;
            };
            if resting.get(&name).is_some_and(|rest| !rest.is_over(&store)) {
                continue;
            }
            resting.remove(&name);
            let error = tend(service, &name, &store).err();
            if let Some(error) = &error {
                tracing::error!("upkeep of the storage {name}: {error}");
                resting.insert(name.clone(), Rest::after(error, &store));
            }
            let told = error.map(|error| error.to_string()).or_else(|| store.passed_over());
            service.storages.tended(&name, told);
        }
        thread::park_timeout(EVERY);
    }
}

/// A storage is left alone.
struct Rest {
    until: Instant,
    /// What was free when its disk was full.
    full_at: Option<u64>,
}

impl Rest {
    fn after(error: &pageserver::Error, store: &Store) -> Rest {
        let available = store.space().map(|space| space.available).ok();
        Rest {
            until: Instant::now() + REST,
            full_at: available.filter(|_| error.is_full()),
        }
    }

    fn is_over(&self, store: &Store) -> bool {
        let has_room = |at| store.space().is_ok_and(|space| space.available >= at + ROOM);
        Instant::now() >= self.until || self.full_at.is_some_and(has_room)
    }
}

fn tend(service: &Service, name: &StorageName, store: &Store) -> pageserver::Result<()> {
    let mut pace = |bytes: u64| {
        thread::sleep(Duration::from_secs_f64(bytes as f64 / SPEED as f64));
        !service.is_stopped() && service.storages.named(name).is_ok()
    };
    let tending = Tending {
        packing: service.storages.packing(name),
        ..Tending::default()
    };
    while store.tend(&tending, &mut pace)? {}
    Ok(())
}

/// Of processor and disk, to everybody else.
fn give_way() {
    #[cfg(target_os = "linux")]
    {
        const IOPRIO_WHO_PROCESS: libc::c_int = 1;
        const IOPRIO_CLASS_IDLE: libc::c_int = 3 << 13;
        // SAFETY: these calls take numbers; 0 is this thread.
        let done = unsafe {
            [
                i64::from(libc::setpriority(libc::PRIO_PROCESS, 0, 19)),
                libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, IOPRIO_CLASS_IDLE),
            ]
        };
        if done.contains(&-1) {
            tracing::warn!("the upkeep of the stores has no lower priority than the rest");
        }
    }
}
