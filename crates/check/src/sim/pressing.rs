//! What a shard gives to its outbox, and for whom that is pressing: as the program's shard does it.

use unanimity_core::{Out, Step};

use super::server::{Answered, Shard};

impl Shard {
    /// Gives the core's step to the outbox; what may leave at once.
    pub fn take(&mut self, step: Step) -> Vec<Out<Answered>> {
        let mut is_watched = false;
        for ended in step.ended() {
            self.ending.insert(ended);
            is_watched |= self.waiting.contains_key(&ended.id);
        }
        let out = self.outbox.take(step).into_iter().collect();
        if is_watched {
            self.outbox.press();
        }
        out
    }
}
