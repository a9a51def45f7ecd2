//! Decides who waits for which key, and who is woken when: a waiting room in memory, beside the
//! locks, which are rows. It holds no lock and makes no promise. Whoever is woken asks the writer
//! again, and only the rows in the file say whether the key is free; a wake too many costs one
//! question, and one too few ends with the wait's limit.
//!
//! 1. Before its call is queued, a branch arrives and takes a [`Ticket`].
//! 2. The service finds the key held by younger transactions only and puts the branch down as
//!    waiting for it. This happens on the writer's thread, as every release does, so no release can
//!    fall in between.
//! 3. A key that is released wakes the one waiter that all others may go on waiting for: where the
//!    older wait, the youngest of them, and where the younger wait, the oldest. If another came
//!    first, some would have to give way to it.
//! 4. A key that is taken wakes the waiters that must not wait for the new holder: they ask again,
//!    and are refused. Without this, a transaction that slips in would turn the order round.
//! 5. Whoever was woken and does not take the key in the end (its caller has gone, another key is
//!    in its way, it says no) wakes the next one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use unanimity_core::TransactionId;

use super::WaitOrder;
use super::age::Age;
use super::plan::Access;

type Name = (TransactionId, Arc<str>);

/// One branch with a call under way.
struct Entry {
    /// How many calls: duplicates share an entry.
    tickets: usize,
    wakes: watch::Sender<u64>,
    /// For which key it waits, and how old it is.
    waits_for: Option<(String, Age)>,
    /// The released key that it was woken for and has not taken.
    offered: Option<String>,
    /// Whether its time is over: the next conflict refuses it.
    expired: bool,
}

struct Room {
    order: WaitOrder,
    entries: BTreeMap<Name, Entry>,
    /// For each key, the branches that wait for it, the oldest first.
    queues: BTreeMap<String, BTreeSet<(Age, Arc<str>)>>,
    waiting: usize,
}

/// The branches of one participant that wait for a key.
pub(super) struct WaitingRoom(Mutex<Room>);

/// A branch's place in the room, for as long as its call is under way.
pub(super) struct Ticket {
    room: Arc<WaitingRoom>,
    name: Name,
    wakes: watch::Receiver<u64>,
}

/// What became of an attempt to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// It waits, and is woken.
    Begun,
    /// Its time is over.
    Expired,
    /// So many wait already, or nobody would hear the wake: the call came without a ticket.
    Refused,
}

impl WaitingRoom {
    pub(super) fn new(order: WaitOrder) -> Self {
        let (entries, queues) = (BTreeMap::new(), BTreeMap::new());
        Self(Mutex::new(Room { order, entries, queues, waiting: 0 }))
    }

    fn room(&self) -> MutexGuard<'_, Room> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn arrive(
        self: &Arc<Self>,
        transaction: &TransactionId,
        branch: &Arc<str>,
    ) -> Ticket {
        let name = (transaction.clone(), Arc::clone(branch));
        let mut room = self.room();
        let entry = room.entries.entry(name.clone()).or_insert_with(|| Entry {
            tickets: 0,
            wakes: watch::Sender::new(0),
            waits_for: None,
            offered: None,
            expired: false,
        });
        entry.tickets += 1;
        let wakes = entry.wakes.subscribe();
        drop(room);
        Ticket { room: Arc::clone(self), name, wakes }
    }

    /// Puts a branch down as waiting for a key.
    pub(super) fn wait(&self, key: &str, age: &Age, branch: &Arc<str>, waiters_max: usize) -> Wait {
        self.room().wait(key, age, branch, waiters_max)
    }

    /// The key is free, or freer than it was.
    pub(super) fn released(&self, key: &str) {
        self.room().wake_next(key);
    }

    /// The branch has the key now.
    pub(super) fn taken(&self, key: &str, access: Access, age: &Age, branch: &Arc<str>) {
        let mut room = self.room();
        room.wake_misplaced(key, age);
        let name = (age.transaction().clone(), Arc::clone(branch));
        let Some(entry) = room.entries.get_mut(&name) else { return };
        if entry.offered.as_deref() != Some(key) {
            return;
        }
        entry.offered = None;
        // Where one reads, the next one may read as well.
        if access == Access::Read {
            room.wake_next(key);
        }
    }

    /// The branch is settled, or about to be, so it has nothing to wait for.
    pub(super) fn settled(&self, transaction: &TransactionId, branch: &Arc<str>) {
        self.room().wake(&(transaction.clone(), Arc::clone(branch)), None);
    }

    /// How many branches wait.
    pub(super) fn waiting(&self) -> usize {
        self.room().waiting
    }
}

impl Room {
    fn wait(&mut self, key: &str, age: &Age, branch: &Arc<str>, waiters_max: usize) -> Wait {
        let name = (age.transaction().clone(), Arc::clone(branch));
        self.leave_queue(&name);
        let waiting = self.waiting;
        let Some(entry) = self.entries.get_mut(&name) else { return Wait::Refused };
        // What it was woken for is somebody else's now, or is of no use to it as long as it waits.
        let offered = entry.offered.take().filter(|offered| offered != key);
        let wait = match (entry.expired, waiting < waiters_max) {
            (true, _) => Wait::Expired,
            (false, false) => Wait::Refused,
            (false, true) => Wait::Begun,
        };
        if wait == Wait::Begun {
            entry.waits_for = Some((key.to_owned(), age.clone()));
            self.waiting += 1;
            let queue = self.queues.entry(key.to_owned()).or_default();
            queue.insert((age.clone(), Arc::clone(branch)));
        }
        if let Some(offered) = offered {
            self.wake_next(&offered);
        }
        wait
    }

    fn wake_next(&mut self, key: &str) {
        let Some(queue) = self.queues.get(key) else { return };
        let next = match self.order {
            WaitOrder::OlderWaits => queue.last(),
            WaitOrder::YoungerWaits => queue.first(),
        };
        if let Some((age, branch)) = next {
            let name = (age.transaction().clone(), Arc::clone(branch));
            self.wake(&name, Some(key));
        }
    }

    fn wake_misplaced(&mut self, key: &str, holder: &Age) {
        let Some(queue) = self.queues.get(key) else { return };
        let misplaced = queue.iter().filter(|(age, _)| !self.order.may_wait(age, holder));
        let names: Vec<Name> = misplaced
            .map(|(age, branch)| (age.transaction().clone(), Arc::clone(branch)))
            .collect();
        for name in names {
            self.wake(&name, None);
        }
    }

    fn wake(&mut self, name: &Name, offered: Option<&str>) {
        self.leave_queue(name);
        let Some(entry) = self.entries.get_mut(name) else { return };
        if let Some(key) = offered {
            entry.offered = Some(key.to_owned());
        }
        entry.wakes.send_modify(|wakes| *wakes = wakes.wrapping_add(1));
    }

    fn leave_queue(&mut self, name: &Name) {
        let waits_for = self.entries.get_mut(name).and_then(|entry| entry.waits_for.take());
        let Some((key, age)) = waits_for else { return };
        self.waiting -= 1;
        if let Some(queue) = self.queues.get_mut(&key) {
            queue.remove(&(age, Arc::clone(&name.1)));
            if queue.is_empty() {
                self.queues.remove(&key);
            }
        }
    }
}

impl Ticket {
    /// Ready when the branch was woken since this was last asked.
    pub(super) async fn woken(&mut self) {
        // dropped: the sender lives in the entry, and the entry as long as this ticket.
        let _ = self.wakes.changed().await;
    }

    /// From now on a conflict refuses the branch.
    pub(super) fn expire(&self) {
        if let Some(entry) = self.room.room().entries.get_mut(&self.name) {
            entry.expired = true;
        }
    }

    pub(super) fn is_expired(&self) -> bool {
        self.room.room().entries.get(&self.name).is_some_and(|entry| entry.expired)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut room = self.room.room();
        room.leave_queue(&self.name);
        let Some(entry) = room.entries.get_mut(&self.name) else { return };
        entry.tickets -= 1;
        if entry.tickets > 0 {
            // A duplicate is still there; what became of this call may be its answer too.
            room.wake(&self.name, None);
            return;
        }
        let offered = entry.offered.take();
        room.entries.remove(&self.name);
        if let Some(key) = offered {
            room.wake_next(&key);
        }
    }
}
