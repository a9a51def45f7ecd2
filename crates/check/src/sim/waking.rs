//! How a coordinator that has started takes up what it has read: a part of it at once, the rest in
//! turns at moments of their own, while everything else happens; and what somebody asks for before
//! its turn comes. How one is taken up is the core's.

use unanimity_core::{Coordinator, TransactionId};

use super::world::{Happening, Simulation};

/// So many are taken up in one turn at most.
const IN_A_TURN_MAX: u64 = 3;

/// All that were read back and are still to be taken up, as the program looks through them.
fn dormant(coordinator: &Coordinator) -> Vec<TransactionId> {
    (0..coordinator.parts()).flat_map(|part| coordinator.dormant(part)).collect()
}

/// Whether any is still to be taken up, whatever the program would find.
pub(super) fn has_dormant(coordinator: &Coordinator) -> bool {
    coordinator.iter().any(|live| coordinator.is_dormant(&live.id))
}

impl Simulation {
    /// Takes up so many of those that are still to be taken up. Says whether the process lives on.
    pub(super) fn take_up_some(&mut self, (generation, number): (u64, usize), most: usize) -> bool {
        let Some(shard) = self.shard(generation, number) else { return false };
        let mut ids = dormant(&shard.coordinator);
        ids.truncate(most);
        ids.iter().all(|id| self.take_up_one((generation, number), id))
    }

    fn take_up_one(&mut self, (generation, number): (u64, usize), id: &TransactionId) -> bool {
        if self.breaks_now((generation, number), id) {
            return false;
        }
        let clock = self.clock(generation);
        let Some(shard) = self.shard(generation, number) else { return false };
        let step = shard.coordinator.resume_transaction(clock, id);
        let out = shard.take(step);
        self.let_out(generation, number, out);
        self.shard(generation, number).is_some()
    }

    /// Plans the next turn of a shard in which some are still to be taken up: by this moment, all
    /// must have been.
    pub(super) fn plan_turn(&mut self, (generation, number): (u64, usize), by: u64) {
        let Some(shard) = self.shard(generation, number) else { return };
        if !dormant(&shard.coordinator).is_empty() {
            let delay = self.disk_random.below(by.saturating_sub(self.now) + 1);
            self.later(delay, Happening::TakesUp(generation, number, by));
        }
    }

    /// A turn: some are taken up, or all, if it is time.
    pub(super) fn takes_up(&mut self, (generation, number): (u64, usize), by: u64) {
        if let Some(delay) = self.sleeps(generation) {
            self.later(delay, Happening::TakesUp(generation, number, by));
            return;
        }
        let some = usize::try_from(self.disk_random.between(1, IN_A_TURN_MAX)).unwrap_or(1);
        let most = if self.now < by { some } else { usize::MAX };
        let Some(shard) = self.shard(generation, number) else { return };
        let taken = dormant(&shard.coordinator).len().min(most);
        for _ in 0..taken {
            self.situations.count("taken up later, in its turn");
        }
        if self.take_up_some((generation, number), most) {
            self.settle(generation, number);
            self.plan_turn((generation, number), by);
            self.may_die(generation);
        }
    }

    /// Somebody asks for a transaction, to see it or to have something done: one that is still to
    /// be taken up does not wait for its turn. To show it is to take it up first; whatever else is
    /// asked, the core does so. Says whether the process lives on.
    pub(super) fn is_asked_for(
        &mut self,
        (generation, number): (u64, usize),
        id: &TransactionId,
        only_shown: bool,
    ) -> bool {
        let Some(shard) = self.shard(generation, number) else { return false };
        if !shard.coordinator.is_dormant(id) {
            return true;
        }
        self.situations.count(if only_shown {
            "taken up because somebody looked at it"
        } else {
            "taken up because something happened to it"
        });
        !only_shown || self.take_up_one((generation, number), id)
    }
}
