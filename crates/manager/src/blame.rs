//! Which transaction the program breaks on: when a broken invariant panics while one is worked on,
//! its name is noted beside the panic, which then goes on as any other. What follows from it is
//! `panics`' and `starting`'s.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use unanimity_core::{Doing, TransactionId};

/// A panic, and the transaction that was worked on.
#[derive(Clone, Debug)]
pub(crate) struct Blamed {
    pub(crate) id: TransactionId,
    pub(crate) doing: Doing,
    pub(crate) message: String,
}

/// Where the first such panic of a manager is noted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Blame(Arc<Mutex<Option<Blamed>>>);

impl Blame {
    /// Works on a transaction. Costs nothing unless it panics.
    pub(crate) fn on<T>(&self, id: &TransactionId, doing: Doing, work: impl FnOnce() -> T) -> T {
        // What the work leaves half done is seen by nobody: the panic goes on.
        catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| self.note(id, doing, panic))
    }

    /// Notes a panic and lets it go on.
    pub(crate) fn note(&self, id: &TransactionId, doing: Doing, panic: Box<dyn Any + Send>) -> ! {
        let message = text_of(panic.as_ref());
        let blamed = Blamed { id: id.clone(), doing, message };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(blamed);
        resume_unwind(panic)
    }

    /// What was noted, for whoever comes first.
    pub(crate) fn take(&self) -> Option<Blamed> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// What a panic says.
pub(crate) fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "a panic without words".to_owned())
}
