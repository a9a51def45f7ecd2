//! How long a transaction waits for what, and which times are acceptable.

use crate::RetryPolicy;
use crate::plan::{PlanError, TIMEOUT_MS_MAX, error};

/// How long a transaction waits for what. All times are in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Options {
    /// From the beginning (of an interactive one: from the request to commit) until every prepare
    /// has voted; then the transaction rolls back.
    pub prepare_timeout_ms: u64,
    /// From the first execute until every compensable branch has executed; then it rolls back.
    pub execute_timeout_ms: u64,
    /// How long an interactive transaction stays open; then its initiator counts as gone, and it
    /// rolls back, or the initiator's database is asked.
    pub open_timeout_ms: u64,
    /// Whether a single two-phase branch may commit in one phase.
    pub one_phase: bool,
    /// From the beginning until everything is complete. Undecided by then: it rolls back. Decided
    /// by then: the decision stands, and the transaction is shown as overdue. 0: no such limit.
    pub timeout_ms: u64,
    /// How long one call after the decision may take. A call before it may take what is left of
    /// its phase.
    pub attempt_timeout_ms: u64,
    /// When a call that got no decisive answer is tried again.
    pub retry: RetryPolicy,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            prepare_timeout_ms: 5_000,
            execute_timeout_ms: 30_000,
            open_timeout_ms: 60_000,
            one_phase: true,
            timeout_ms: 0,
            attempt_timeout_ms: 2_000,
            retry: RetryPolicy::default(),
        }
    }
}

impl Options {
    pub(crate) fn check(&self) -> Result<(), PlanError> {
        let positive = [
            ("prepare_timeout_ms", self.prepare_timeout_ms),
            ("execute_timeout_ms", self.execute_timeout_ms),
            ("open_timeout_ms", self.open_timeout_ms),
            ("attempt_timeout_ms", self.attempt_timeout_ms),
            ("retry_delay_ms", self.retry.delay_ms),
            ("retry_delay_max_ms", self.retry.delay_max_ms),
            ("parked_retry_delay_ms", self.retry.parked_delay_ms),
        ];
        for (field, value) in positive {
            if value == 0 || value > TIMEOUT_MS_MAX {
                let message = format!("is {value}; it must be 1 to {TIMEOUT_MS_MAX} ms (30 days)");
                return Err(error("timeout_invalid", field, message));
            }
        }
        if self.retry.park_after_attempts == 0 {
            let message = "is 0; a branch cannot be parked before it was tried";
            return Err(error("timeout_invalid", "park_after_attempts", message));
        }
        if self.timeout_ms > TIMEOUT_MS_MAX {
            let message = format!("is {}; at most {TIMEOUT_MS_MAX} ms", self.timeout_ms);
            return Err(error("timeout_invalid", "timeout_ms", message));
        }
        Ok(())
    }
}
