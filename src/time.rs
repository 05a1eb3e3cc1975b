//! Moments: the page store's [`Time`], RFC 3339 for programs, local time for people.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use pageserver::Time;

/// The clock. The page store itself never reads one.
pub fn now() -> Time {
    let now = Timestamp::now();
    Time {
        secs: now.as_second(),
        nanos: now.subsec_nanosecond().unsigned_abs(),
    }
}

/// The same moment for the API; one that no calendar has becomes 1970.
pub fn timestamp(time: Time) -> Timestamp {
    let nanos = i32::try_from(time.nanos).unwrap_or(0);
    Timestamp::new(time.secs, nanos).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// A moment of the API for the page store.
pub fn time(at: Timestamp) -> Time {
    Time {
        secs: at.as_second(),
        nanos: at.subsec_nanosecond().unsigned_abs(),
    }
}

/// Local time, to the second.
pub fn human(at: Timestamp) -> String {
    let local = at.to_zoned(TimeZone::system());
    local.strftime("%Y-%m-%d %H:%M:%S").to_string()
}
