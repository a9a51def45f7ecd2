//! The journal as a list with a synced prefix: what survives a crash, what does not, and which
//! effects wait for it. What the records mean is the core's.

use std::collections::VecDeque;
use std::sync::Arc;

use unanimity_core::{Durable, Effect, Fact, Outcome, Record, Sealed, Step};
use unanimity_core::{decode_record, encode_record};

/// One step whose records are not durable yet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pending {
    /// Its records.
    pub records: Vec<Arc<Record>>,
    /// What it wants done once they are durable.
    pub sealed: Sealed,
}

/// The records of one shard.
///
/// Every step is its own batch here. A real journal puts several into one: that is the same as
/// syncing one after the other with nothing in between, and so already among the schedules tried.
/// So is a crash after which unsynced records turn out to be on the disk: it is a sync whose
/// effects are all delayed forever.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Journal {
    /// What survives a crash, in order.
    pub durable: Vec<Arc<Record>>,
    /// What does not.
    pub pending: VecDeque<Pending>,
    /// How many records a checkpoint has replaced.
    pub forgotten: u64,
}

impl Journal {
    /// Takes a step in, its records as the codec reads them back. Gives back the effects that may
    /// leave at once: those that rest on nothing which is still on its way to the disk, or all of
    /// them if the driver is deliberately broken.
    ///
    /// # Errors
    /// If the codec cannot read what it wrote.
    pub fn accept(&mut self, step: Step, effects_before_sync: bool) -> Result<Vec<Effect>, String> {
        if step.is_empty() {
            return Ok(Vec::new());
        }
        let (records, _) = step.clone().seal(0);
        let position = self.end() + records.len() as u64;
        let (records, sealed) = step.seal(position);
        if effects_before_sync {
            let effects = sealed.release(Durable::up_to(position));
            self.push(&records, Step::default().seal(position).1)?;
            return Ok(effects);
        }
        if records.is_empty() && self.pending.is_empty() {
            return Ok(sealed.release(Durable::up_to(position)));
        }
        self.push(&records, sealed)?;
        Ok(Vec::new())
    }

    fn push(&mut self, records: &[Record], sealed: Sealed) -> Result<(), String> {
        let records = records.iter().map(through_the_codec).collect::<Result<_, _>>()?;
        self.pending.push_back(Pending { records, sealed });
        Ok(())
    }

    /// Where the next record goes.
    fn end(&self) -> u64 {
        let pending: usize = self.pending.iter().map(|step| step.records.len()).sum();
        self.forgotten + (self.durable.len() + pending) as u64
    }

    /// Makes the oldest pending step durable, and lets its effects out against that receipt. A
    /// transaction written anew replaces everything before it.
    pub fn sync(&mut self) -> Vec<Effect> {
        let Some(Pending { records, sealed }) = self.pending.pop_front() else {
            return Vec::new();
        };
        for record in records {
            if matches!(record.fact, Fact::Snapshot(_)) {
                self.forgotten += self.durable.len() as u64;
                self.durable.clear();
            }
            self.durable.push(record);
        }
        sealed.release(Durable::up_to(self.forgotten + self.durable.len() as u64))
    }

    /// The facts that survive a crash.
    pub fn durable_facts(&self) -> impl Iterator<Item = &Fact> {
        self.durable.iter().map(|record| &record.fact)
    }

    /// All facts, whether durable already or not.
    pub fn facts(&self) -> impl Iterator<Item = &Fact> {
        let pending = self.pending.iter().flat_map(|step| &step.records);
        self.durable.iter().chain(pending).map(|record| &record.fact)
    }

    /// The decision that would survive a crash now.
    #[must_use]
    pub fn durable_decision(&self) -> Option<Outcome> {
        self.durable_facts().find_map(decision)
    }

    /// Every decision on record, durable or not: one, if all is well.
    pub fn decisions(&self) -> impl Iterator<Item = Outcome> {
        self.facts().filter_map(decision)
    }

    /// Whether the transaction's beginning is durable.
    #[must_use]
    pub fn has_durable_beginning(&self) -> bool {
        self.durable_facts().any(is_beginning)
    }

    /// Whether there is a beginning on record at all.
    #[must_use]
    pub fn has_beginning(&self) -> bool {
        self.facts().any(is_beginning)
    }

    /// How many branches the transaction has on durable record.
    #[must_use]
    pub fn durable_branches(&self) -> usize {
        self.durable_facts().fold(0, count_branches)
    }

    /// How many branches the transaction has on record, durable or not.
    #[must_use]
    pub fn branches(&self) -> usize {
        self.facts().fold(0, count_branches)
    }

    /// Whether the transaction's end is on record, durable or not.
    #[must_use]
    pub fn has_end(&self) -> bool {
        self.facts().any(|fact| matches!(fact, Fact::Ended))
    }
}

fn through_the_codec(record: &Record) -> Result<Arc<Record>, String> {
    let mut bytes = Vec::new();
    encode_record(record, &mut bytes);
    decode_record(&bytes).map(Arc::new).map_err(|error| error.to_string())
}

fn is_beginning(fact: &Fact) -> bool {
    matches!(fact, Fact::Begun { .. } | Fact::Snapshot(_))
}

fn count_branches(count: usize, fact: &Fact) -> usize {
    match fact {
        Fact::Begun { plan, .. } => plan.branches.len(),
        Fact::Snapshot(transaction) => transaction.branches.len(),
        Fact::Enlisted { .. } => count + 1,
        Fact::Executing { .. }
        | Fact::Decided { .. }
        | Fact::Finished { .. }
        | Fact::Resolved { .. }
        | Fact::Ended => count,
    }
}

/// The decision that a fact holds.
#[must_use]
pub fn decision(fact: &Fact) -> Option<Outcome> {
    match fact {
        Fact::Decided { outcome, .. } => Some(*outcome),
        Fact::Snapshot(transaction) => transaction.outcome(),
        Fact::Begun { .. }
        | Fact::Enlisted { .. }
        | Fact::Executing { .. }
        | Fact::Finished { .. }
        | Fact::Resolved { .. }
        | Fact::Ended => None,
    }
}
