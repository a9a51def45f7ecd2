//! Knows which shard has the thread that asks. What begins there had better begin in that shard:
//! nobody is woken on another core then, and what the one has written is in the cache of the other.
//! It is a hint: any shard will do.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::runtime::{Handle, RuntimeFlavor};

thread_local! {
    /// The last to run here, if it still does.
    static NEAREST: Cell<Option<Place>> = const { Cell::new(None) };
}

/// A manager of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ManagerNumber(u64);

impl ManagerNumber {
    /// One that no other has.
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        Self(COUNT.fetch_add(1, Ordering::Relaxed))
    }

    /// Its shard on this thread.
    pub(crate) fn shard_here(self) -> Option<usize> {
        NEAREST.get().filter(|place| place.manager == self).map(|place| place.shard)
    }
}

/// A shard that stays on one thread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    manager: ManagerNumber,
    shard: usize,
}

impl Place {
    /// Of a shard that is alone in this runtime. `None`: one with several threads moves it about.
    pub(crate) fn alone_in(runtime: &Handle, manager: ManagerNumber, shard: usize) -> Option<Self> {
        let stays = runtime.runtime_flavor() == RuntimeFlavor::CurrentThread;
        stays.then_some(Self { manager, shard })
    }

    /// It runs on this thread.
    pub(crate) fn is_here(self) {
        NEAREST.set(Some(self));
    }
}
