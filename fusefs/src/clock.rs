//! The one clock that file times come from.

use nix::time::{ClockId, clock_gettime};
use pageserver::Time;

/// The clock the kernel stamps files with. It is some milliseconds behind the exact one, and since the kernel
/// sets the times of written files itself (writeback cache), times of ours must not run ahead of it.
#[cfg(target_os = "linux")]
const CLOCK: ClockId = ClockId::CLOCK_REALTIME_COARSE;
#[cfg(not(target_os = "linux"))]
const CLOCK: ClockId = ClockId::CLOCK_REALTIME;

pub(crate) fn now() -> Time {
    let now = clock_gettime(CLOCK).expect("the system has a real-time clock");
    Time {
        secs: now.tv_sec(),
        nanos: now.tv_nsec() as u32,
    }
}
