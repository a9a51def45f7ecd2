//! Group commit: steps come in, batches for the journal and effects that may leave come out. It
//! decides which batch a step's records go into, what waits for which batch, and what the journal
//! may forget; when an append is carried out, and by whom, is the driver's.
//!
//! One append is under way at a time; what comes meanwhile gathers in the next batch, so that
//! batches grow with the load (DeWitt and others, "Implementation Techniques for Main Memory
//! Database Systems", SIGMOD 1984: group commit).

use std::collections::VecDeque;

use crate::homes::Homes;
use crate::{
    Durable, Effect, Encoded, Fact, Millis, Mutation, Mutations, Record, Sealed, Step,
    TransactionId,
};

mod stragglers;

/// A batch that has grown to this many bytes is closed and the next one begun.
const BATCH_BYTES_MAX: usize = 4 << 20;
/// When the journal is asked to forget, in batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutboxBounds {
    /// It is asked when at least this many batches can go.
    pub truncate_batches_min: u64,
    /// It is asked sooner when what can go is about this many bytes: to forget takes as long as
    /// what is forgotten is large, and whoever waits for an append waits for it.
    pub truncate_bytes_min: u64,
    /// A transaction that keeps more batches than this from being forgotten is written anew.
    pub straggler_batches: u64,
}

/// A batch of encoded records for one position.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gathered {
    /// Where in the shard's journal it goes.
    pub position: u64,
    /// Its records.
    pub records: Encoded,
    /// Whether a beginning is among them, for labelled crash points.
    pub has_begun: bool,
    /// Whether a decision is among them, for labelled crash points.
    pub has_decided: bool,
}

impl Gathered {
    fn push(&mut self, record: &Record) {
        self.records.push(record);
        self.has_begun |= matches!(record.fact, Fact::Begun { .. });
        self.has_decided |= matches!(record.fact, Fact::Decided { .. });
    }
}

/// Something that may leave now.
#[derive(Debug)]
pub enum Out<R> {
    /// What the core wants done.
    Effects(Vec<Effect>),
    /// An answer of the driver's own.
    Reply(R),
}

/// Something that may leave only when a position is durable.
#[derive(Clone, Debug)]
enum Held<R> {
    Effects(Sealed),
    Reply(u64, R),
}

impl<R> Held<R> {
    fn position(&self) -> u64 {
        match self {
            Self::Effects(sealed) => sealed.position(),
            Self::Reply(position, _) => *position,
        }
    }

    fn release(self, durable: Durable) -> Out<R> {
        match self {
            Self::Effects(sealed) => Out::Effects(sealed.release(durable)),
            Self::Reply(_, reply) => Out::Reply(reply),
        }
    }
}

/// What one shard has on its way to the journal. `R` is what the driver answers with: whatever
/// rests on what the core knows has to wait for the disk as the core's own effects do.
#[derive(Clone, Debug)]
pub struct Outbox<R> {
    /// Batches that wait for the append under way; the last one gathers.
    gathered: VecDeque<Gathered>,
    append_under_way: bool,
    /// Whether somebody waits for a batch that gathers.
    is_pressing: bool,
    /// Until when what gathers, and is not pressing, waits for more.
    lingers_until: Option<Millis>,
    next_position: u64,
    first_position: u64,
    durable: Durable,
    held: VecDeque<Held<R>>,
    homes: Homes,
    /// How many records were read, and handed out since.
    records: u64,
    /// The bytes of a batch, as the last few had them.
    batch_bytes: u64,
    bounds: OutboxBounds,
    mutations: Mutations,
}

impl<R> Outbox<R> {
    /// An outbox over a journal that was read from `first_position` up to, and without,
    /// `next_position`, and in which `homes` says where each transaction was last written whole.
    #[must_use]
    pub fn new(
        (first_position, next_position): (u64, u64),
        (homes, records): (Homes, u64),
        bounds: OutboxBounds,
        mutations: Mutations,
    ) -> Self {
        Self {
            gathered: VecDeque::new(),
            append_under_way: false,
            is_pressing: false,
            lingers_until: None,
            next_position,
            first_position,
            durable: Durable::up_to(next_position - 1),
            held: VecDeque::new(),
            homes,
            records,
            batch_bytes: 0,
            bounds,
            mutations,
        }
    }

    /// Puts a step's records into the batch that gathers, and keeps its effects back until they
    /// are durable. Gives back effects that may leave at once.
    pub fn take(&mut self, step: Step) -> Option<Out<R>> {
        if step.is_empty() {
            return None;
        }
        let position = if step.has_records() { self.gathering() } else { self.last_position() };
        let (is_awaited, has_effects) = (step.is_awaited(), step.has_effects());
        let (records, sealed) = step.seal(position);
        for record in records {
            self.records += 1;
            let (id, count) = (&record.transaction, self.records);
            match record.fact {
                Fact::Begun { .. } => self.homes.settle(id.clone(), position, count),
                Fact::Snapshot(_) => self.homes.move_to(id, position, count),
                Fact::Enlisted { .. }
                | Fact::Resolved { .. }
                | Fact::Executing { .. }
                | Fact::Decided { .. }
                | Fact::Finished { .. }
                | Fact::Ended => {}
            }
            if let Some(batch) = self.gathered.back_mut() {
                batch.push(&record);
            }
        }
        if !has_effects {
            return None;
        }
        self.hold(Held::Effects(sealed), is_awaited)
    }

    /// Keeps an answer back until everything that it may rest on is durable. Gives it back if that
    /// is so already.
    pub fn reply(&mut self, reply: R) -> Option<Out<R>> {
        if self.mutations.has(Mutation::RepliesBeforeSync) {
            return Some(Out::Reply(reply));
        }
        self.hold(Held::Reply(self.last_position(), reply), true)
    }

    fn hold(&mut self, held: Held<R>, is_awaited: bool) -> Option<Out<R>> {
        if self.mutations.has(Mutation::EffectsBeforeSync) {
            let durable = Durable::up_to(held.position());
            return Some(held.release(durable));
        }
        if self.held.is_empty() && Durable::up_to(held.position()) <= self.durable {
            return Some(held.release(self.durable));
        }
        self.held.push_back(held);
        self.is_pressing |= is_awaited && self.gathers();
        None
    }

    /// The position of the batch that gathers, begun if there is none with room.
    fn gathering(&mut self) -> u64 {
        let room =
            self.gathered.back().is_some_and(|batch| batch.records.bytes() < BATCH_BYTES_MAX);
        if !room {
            let (position, records) = (self.next_position, Encoded::like(self.batch_bytes));
            self.gathered.push_back(Gathered { position, records, ..Gathered::default() });
            self.next_position += 1;
        }
        self.last_position()
    }

    /// The last position that was handed out, durable or not: where the records are that were
    /// taken last.
    #[must_use]
    pub const fn last_position(&self) -> u64 {
        self.next_position - 1
    }

    /// The next batch to append, unless an append is under way. Answer with [`Outbox::receipt`].
    pub fn next_append(&mut self) -> Option<Gathered> {
        if self.append_under_way {
            return None;
        }
        let batch = self.gathered.pop_front()?;
        self.append_under_way = true;
        self.is_pressing &= self.gathers();
        self.batch_bytes = (self.batch_bytes.saturating_mul(7) + batch.records.bytes() as u64) / 8;
        Some(batch)
    }

    /// Whether there is a batch to append, now or after the append under way.
    #[must_use]
    pub fn gathers(&self) -> bool {
        !self.gathered.is_empty()
    }

    /// Whether somebody waits for what gathers: a participant for a call, or somebody for an
    /// answer. An end alone is awaited by nobody, and a driver may let more come to it before it
    /// appends: a transaction then costs two syncs instead of three.
    #[must_use]
    pub fn is_pressing(&self) -> bool {
        self.is_pressing || self.gathered.len() > 1
    }

    /// Whether what gathers is to wait for more, for `linger_ms` at most: nobody waits for it, and
    /// each append that is saved is a sync that the next transaction need not wait for. To be asked
    /// before [`Outbox::next_append`].
    pub fn lingers(&mut self, now: Millis, linger_ms: Millis) -> bool {
        let waits = self.gathers() && !self.is_pressing();
        let until = now.saturating_add(linger_ms);
        let until = waits.then(|| self.lingers_until.map_or(until, |since| since.min(until)));
        self.lingers_until = until.filter(|until| *until > now);
        self.lingers_until.is_some()
    }

    /// Until when [`Outbox::lingers`] has said that it is to wait.
    #[must_use]
    pub const fn lingers_until(&self) -> Option<Millis> {
        self.lingers_until
    }

    /// The append under way is done. What may leave now is to be had from [`Outbox::release`]; the
    /// next append can be started before.
    pub fn receipt(&mut self, durable: Durable) {
        self.append_under_way = false;
        self.durable = durable;
        self.homes.durable(durable.position());
    }

    /// The next thing that may leave now, in the order in which it came.
    pub fn release(&mut self) -> Option<Out<R>> {
        let ready = |held: &Held<R>| Durable::up_to(held.position()) <= self.durable;
        if !self.held.front().is_some_and(ready) {
            return None;
        }
        self.held.pop_front().map(|held| held.release(self.durable))
    }

    /// Whether nothing waits for the journal.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.gathered.is_empty() && !self.append_under_way
    }

    /// Up to where everything is durable.
    #[must_use]
    pub fn durable(&self) -> Durable {
        if self.mutations.has(Mutation::EndArchivedBeforeSync) {
            return Durable::up_to(self.last_position());
        }
        self.durable
    }

    /// What may be noted once the history has all that ended up to this position.
    #[must_use]
    pub fn archived_mark(&self, position: u64) -> u64 {
        if self.mutations.has(Mutation::ArchivedMarkTooHigh) {
            return self.last_position();
        }
        position
    }

    /// How many records gather, whether or not anything is held back for them.
    #[must_use]
    pub fn gathered_records(&self) -> usize {
        self.gathered.iter().map(|batch| batch.records.len()).sum()
    }

    /// How many things are held back.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Whether the transaction is live, or has ended and [`Outbox::ended`] was not told.
    #[must_use]
    pub fn knows(&self, id: &TransactionId) -> bool {
        self.homes.knows(id)
    }

    /// The transaction has ended: it is not known here any more. The journal keeps it until
    /// [`Outbox::archived`] is told the position that is given back.
    pub fn ended(&mut self, id: &TransactionId) -> Option<u64> {
        self.homes.end(id)
    }

    /// So many for which [`Outbox::ended`] gave this position are in the history.
    pub fn archived(&mut self, position: u64, count: usize) {
        self.homes.leave(position, count);
    }

    /// The position before which the journal may forget everything, if it is worth asking.
    pub fn forgettable(&mut self) -> Option<u64> {
        let low_water = self.homes.low_water(self.durable.position() + 1);
        let batches = low_water.saturating_sub(self.first_position);
        let is_small = batches.saturating_mul(self.batch_bytes) < self.bounds.truncate_bytes_min;
        if batches == 0 || (batches < self.bounds.truncate_batches_min && is_small) {
            return None;
        }
        self.first_position = low_water;
        Some(low_water)
    }
}

#[cfg(test)]
mod tests;
