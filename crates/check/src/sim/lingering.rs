//! What a shard gives to its outbox, and how long what gathers there waits for more while nobody
//! waits for it: as the program's shard does it.

use std::sync::Arc;

use unanimity_core::{Out, Step};

use super::server::{Answered, Shard};

impl Shard {
    /// Gives the core's step to the outbox; what may leave at once.
    pub fn take(&mut self, step: Step) -> Vec<Out<Answered>> {
        let mut is_watched = false;
        for ended in step.ended() {
            self.ending.insert(ended.id.clone(), Arc::clone(ended));
            is_watched |= self.waiting.contains_key(&ended.id);
        }
        let out = self.outbox.take(step).into_iter().collect();
        if is_watched {
            self.outbox.press();
        }
        out
    }

    /// Whether what gathers is not to be appended yet.
    pub fn lingers(&mut self, now: u64, linger_ms: u64) -> bool {
        if self.outbox.is_pressing() || !self.outbox.gathers() {
            self.lingers_until = None;
            return false;
        }
        let until = *self.lingers_until.get_or_insert(now + linger_ms);
        if until > now {
            return true;
        }
        self.lingers_until = None;
        false
    }
}
