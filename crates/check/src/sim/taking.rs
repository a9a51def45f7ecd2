//! What becomes of a step of the core, and who is told of an end: as in the program's shard.

use unanimity_core::{Out, Step};

use super::server::{Answered, Shard, said};

impl Shard {
    /// Gives the core's step to the outbox; what may leave at once. A transaction that ends with it
    /// is packed for the history, and whoever waits for it is owed an answer.
    pub fn take(&mut self, mut step: Step) -> Vec<Out<Answered>> {
        let ended = step.take_ended();
        let mut out: Vec<Out<Answered>> = self.outbox.take(step).into_iter().collect();
        if let Some(ended) = ended {
            let (id, home) = (&ended.id, self.outbox.ended(&ended.id));
            self.ending.insert(&ended, self.outbox.last_position(), home);
            for waiting in self.told(id, true) {
                let (to, since, say) = (waiting.to, waiting.since, said(&ended));
                out.extend(self.outbox.reply(Answered { to, id: id.clone(), since, say }));
            }
            self.has_ended.push(ended);
        }
        out
    }
}
