//! Knows which transaction a shard works on: if the program breaks, that one is blamed.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use unanimity_core::{Doing, TransactionId};

use super::Shard;
use crate::crash_point::panic_point;

impl Shard {
    /// Works on a transaction. If the program breaks on it, it is known on which.
    pub(super) fn on<T>(
        &mut self,
        id: &TransactionId,
        doing: Doing,
        work: impl FnOnce(&mut Self) -> T,
    ) -> T {
        self.turn_to(id);
        self.on_this(doing, work)
    }

    /// Says which transaction is worked on from now on. Its name is copied: to share it would cost
    /// more than twice as much, each time.
    pub(super) fn turn_to(&mut self, id: &TransactionId) {
        self.at_work.clear();
        self.at_work.push_str(id.as_str());
    }

    /// Works on the transaction that was turned to.
    pub(super) fn on_this<T>(&mut self, doing: Doing, work: impl FnOnce(&mut Self) -> T) -> T {
        let name = std::mem::take(&mut self.at_work);
        // What the work leaves half done is seen by nobody: the panic goes on.
        let done = catch_unwind(AssertUnwindSafe(|| {
            if cfg!(feature = "crash-points")
                && let Ok(id) = TransactionId::new(&name)
                && !self.coordinator.is_set_aside(&id)
            {
                panic_point(doing.as_str(), &id);
            }
            work(self)
        }));
        match done {
            Ok(done) => {
                self.at_work = name;
                done
            }
            Err(panic) => match TransactionId::new(&name) {
                Ok(id) => self.blame.note(&id, doing, panic),
                Err(_) => resume_unwind(panic), // It was an id.
            },
        }
    }
}
