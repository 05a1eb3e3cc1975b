//! Log lines that a broken or a full disk would ask for with every request: no more than some of them a minute.

use std::sync::Mutex;
use std::time::{Duration, Instant};

const LINES_MAX: u32 = 100;
const WINDOW: Duration = Duration::from_secs(60);

/// Counts the lines of the current minute.
pub struct BoundedLog(Mutex<(Option<Instant>, u32)>);

impl BoundedLog {
    pub const fn new() -> BoundedLog {
        BoundedLog(Mutex::new((None, 0)))
    }

    /// Calls `tell`, unless that was done often enough for now; says when lines begin to be left out.
    pub fn tell(&self, tell: impl FnOnce()) {
        match self.count(Instant::now()) {
            ..=LINES_MAX => tell(),
            count if count == LINES_MAX + 1 => {
                tracing::warn!("{LINES_MAX} failures were told within a minute: more of it are left out");
            }
            _ => {}
        }
    }

    fn count(&self, now: Instant) -> u32 {
        let mut window = self.0.lock().unwrap_or_else(|e| e.into_inner());
        if window.0.is_none_or(|since| now.duration_since(since) >= WINDOW) {
            *window = (Some(now), 0);
        }
        window.1 = window.1.saturating_add(1);
        window.1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_has_so_many_lines() {
        let log = BoundedLog::new();
        let start = Instant::now();
        for nth in 1..=300 {
            assert_eq!(log.count(start + Duration::from_millis(nth * 100)), nth as u32);
        }
        assert_eq!(log.count(start + Duration::from_secs(61)), 1);
    }
}
