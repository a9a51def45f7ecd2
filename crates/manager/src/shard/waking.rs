//! Takes up what recovery found, a little at a time: decides how much of it comes before the next
//! look at everything else, and what comes first because somebody asks for it.

use unanimity_core::{Coordinator, Doing, TransactionId};

use super::Shard;

/// How many that were read back are taken up in each turn: few, because their answers come before
/// new requests do.
pub(super) const RESUMED_BESIDE: usize = 16;
/// How many more, in a turn in which there is nothing else to do.
pub(super) const RESUMED_ALONE: usize = 256;

/// How many requests are served in each turn until all are taken up.
const SERVED_BESIDE: usize = 64;

/// How far a shard has come with taking up what was read back.
#[derive(Default)]
pub(super) struct Waking {
    /// Those of the part that is looked through, the last first.
    ids: Vec<TransactionId>,
    /// The part that comes next, of so many: where there are more of them than before, it begins
    /// anew.
    next: (usize, usize),
    pub(super) is_over: bool,
}

impl Waking {
    fn next(&mut self, coordinator: &Coordinator) -> Option<TransactionId> {
        while self.ids.is_empty() && !self.is_over {
            let parts = coordinator.parts();
            let part = if self.next.1 == parts { self.next.0 } else { 0 };
            self.is_over = part == parts;
            if !self.is_over {
                self.ids = coordinator.dormant(part);
                self.ids.reverse();
                self.next = (part + 1, parts);
            }
        }
        self.ids.pop()
    }
}

impl Shard {
    /// Takes up some of what recovery found, each transaction in a step of its own. Others are
    /// served meanwhile: a million that are live keep nobody waiting who wants to begin the next.
    pub(super) fn resume_some(&mut self, waking: &mut Waking, most: usize) {
        for _ in 0..most {
            let Some(id) = waking.next(&self.coordinator) else { return };
            if self.coordinator.is_dormant(&id) {
                self.take_up_dormant(&id);
            }
        }
    }

    /// Serves a few of those who wait meanwhile. Says whether the shard is to end at once.
    pub(super) fn serve_beside(&mut self) -> bool {
        for _ in 0..SERVED_BESIDE {
            if let Ok(looked_up) = self.looked_up.try_recv() {
                self.on_looked_up(looked_up);
            }
            let Ok(command) = self.commands.try_recv() else { return false };
            if self.on_command(command) {
                return true;
            }
        }
        false
    }

    /// Takes up one that is still to be taken up, because somebody asks for it: also what has
    /// become due while nobody ran comes before what is asked.
    pub(super) fn resume(&mut self, id: &TransactionId) {
        if self.coordinator.is_dormant(id) {
            self.take_up_dormant(id);
            self.fire_timers();
        }
    }

    fn take_up_dormant(&mut self, id: &TransactionId) {
        self.on(id, Doing::Handling, |shard| {
            let step = shard.coordinator.resume_transaction(shard.now_ms(), id);
            shard.take(step);
        });
    }
}
