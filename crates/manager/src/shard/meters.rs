//! What a shard counts. The counters are looked up once: by name, in the recorder's tables, each
//! costs as much as a step of the core. What happens to every transaction is counted here first and
//! published once a turn.

use metrics::{Counter, Histogram};
use unanimity_core::{Outcome, Reason, Transaction};

/// The counters of a shard. A recorder must be there before the shard.
pub(super) struct Meters {
    begun: Counted,
    ended: Counted,
    pub(super) parked: Counter,
    pub(super) batch_records: Histogram,
    seconds: Histogram,
    /// By outcome and reason; few are ever met.
    decided: Vec<(Outcome, &'static str, Counted)>,
}

/// A counter, and what it has not been told yet.
struct Counted {
    counter: Counter,
    unpublished: u64,
}

impl From<Counter> for Counted {
    fn from(counter: Counter) -> Self {
        Self { counter, unpublished: 0 }
    }
}

impl Counted {
    fn publish(&mut self) {
        if self.unpublished > 0 {
            self.counter.increment(std::mem::take(&mut self.unpublished));
        }
    }
}

impl Meters {
    pub(super) fn new() -> Self {
        Self {
            begun: metrics::counter!("unanimity_transactions_begun_total").into(),
            ended: metrics::counter!("unanimity_transactions_ended_total").into(),
            parked: metrics::counter!("unanimity_branches_parked_total"),
            batch_records: metrics::histogram!("unanimity_journal_batch_records"),
            seconds: metrics::histogram!("unanimity_transaction_seconds"),
            decided: Vec::new(),
        }
    }

    pub(super) const fn begun(&mut self) {
        self.begun.unpublished += 1;
    }

    pub(super) fn decided(&mut self, outcome: Outcome, reason: &Reason) {
        let code = reason.code();
        let known = self.decided.iter_mut().find(|(o, c, _)| *o == outcome && *c == code);
        if let Some((_, _, counted)) = known {
            counted.unpublished += 1;
            return;
        }
        let counter = metrics::counter!(
            "unanimity_transactions_decided_total",
            "outcome" => outcome.as_str(), "reason" => code
        );
        self.decided.push((outcome, code, Counted { counter, unpublished: 1 }));
    }

    pub(super) fn ended(&mut self, transaction: &Transaction) {
        self.ended.unpublished += 1;
        let duration_ms = transaction.ended_at.unwrap_or(0).saturating_sub(transaction.begun_at);
        self.seconds.record(duration_ms as f64 / 1_000.0);
    }

    /// Tells the recorder what has been counted.
    pub(super) fn publish(&mut self) {
        self.begun.publish();
        self.ended.publish();
        self.decided.iter_mut().for_each(|(_, _, counted)| counted.publish());
    }
}

impl Drop for Meters {
    fn drop(&mut self) {
        self.publish();
    }
}
