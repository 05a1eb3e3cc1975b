//! Lets operations in until the service stops.

use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use crate::error::{Error, Result};

/// Operations hold the shared side; stopping holds the other and leaves the gate closed.
#[derive(Default)]
pub struct Gate {
    closed: RwLock<bool>,
}

/// Held for as long as an operation runs.
pub type Inside<'a> = RwLockReadGuard<'a, bool>;

impl Gate {
    pub fn enter(&self) -> Result<Inside<'_>> {
        let closed = self.closed.read().unwrap_or_else(PoisonError::into_inner);
        match *closed {
            false => Ok(closed),
            true => Err(Error::no_service("the service is stopping").hint("try again in a moment")),
        }
    }

    /// Waits until nothing runs, does the last work, and closes if that succeeded.
    pub fn close(&self, last: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut closed = self.closed.write().unwrap_or_else(PoisonError::into_inner);
        if !*closed {
            last()?;
            *closed = true;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_closing_nothing_gets_in() {
        let gate = Gate::default();
        assert!(gate.close(|| Err(Error::refused("busy"))).is_err());
        assert!(gate.enter().is_ok());
        gate.close(|| Ok(())).expect("closes");
        assert!(gate.enter().is_err());
        gate.close(|| Err(Error::refused("not run again")))
            .expect("closed already");
    }
}
