//! What a shard counts. The counters are looked up once: by name, in the recorder's tables, each
//! costs as much as a step of the core.

use metrics::{Counter, Histogram};
use unanimity_core::{Outcome, Reason, Transaction};

/// The counters of a shard. A recorder must be there before the shard.
pub(super) struct Meters {
    pub(super) begun: Counter,
    pub(super) ended: Counter,
    pub(super) parked: Counter,
    pub(super) batch_records: Histogram,
    seconds: Histogram,
    /// By outcome and reason; few are ever met.
    decided: Vec<(Outcome, &'static str, Counter)>,
}

impl Meters {
    pub(super) fn new() -> Self {
        Self {
            begun: metrics::counter!("unanimity_transactions_begun_total"),
            ended: metrics::counter!("unanimity_transactions_ended_total"),
            parked: metrics::counter!("unanimity_branches_parked_total"),
            batch_records: metrics::histogram!("unanimity_journal_batch_records"),
            seconds: metrics::histogram!("unanimity_transaction_seconds"),
            decided: Vec::new(),
        }
    }

    pub(super) fn decided(&mut self, outcome: Outcome, reason: &Reason) {
        let code = reason.code();
        let known = self.decided.iter().find(|(o, c, _)| *o == outcome && *c == code);
        if let Some((_, _, counter)) = known {
            counter.increment(1);
            return;
        }
        let counter = metrics::counter!(
            "unanimity_transactions_decided_total",
            "outcome" => outcome.as_str(), "reason" => code
        );
        counter.increment(1);
        self.decided.push((outcome, code, counter));
    }

    pub(super) fn ended(&self, transaction: &Transaction) {
        self.ended.increment(1);
        let duration_ms = transaction.ended_at.unwrap_or(0).saturating_sub(transaction.begun_at);
        self.seconds.record(duration_ms as f64 / 1_000.0);
    }
}
