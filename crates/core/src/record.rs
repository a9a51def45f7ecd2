//! The facts that survive a crash, and nothing else does. How they look on disk is `codec`'s; what
//! they change is `transaction`'s.

use std::sync::Arc;

use crate::branch::Ballot;
use crate::{
    BranchPlan, Millis, Observations, Outcome, Plan, Reason, Resolution, Transaction, TransactionId,
};

/// One fact about one transaction, as the journal keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Record {
    /// Of which transaction.
    pub transaction: TransactionId,
    /// When.
    pub at: Millis,
    /// What.
    pub fact: Fact,
    /// What was seen since this transaction's last record; decides nothing.
    pub observations: Observations,
}

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Fact {
    /// The transaction exists. Durable before its first call leaves.
    Begun {
        /// A digest of the request.
        fingerprint: u128,
        /// What is to be done.
        plan: Box<Plan>,
    },
    /// A branch of an interactive transaction. Durable before anybody works for it.
    Enlisted {
        /// What it is asked for.
        branch: BranchPlan,
    },
    /// Somebody settled a branch without the coordinator, and says how (a heuristic outcome).
    /// Durable before it counts.
    Resolved {
        /// Which branch.
        branch: u16,
        /// How, by whom, why.
        resolution: Resolution,
    },
    /// Every prepare has voted yes or read-only, and these compensable branches are called now.
    /// Durable before they are: work that shows must be known to whoever recovers.
    Executing {
        /// Which branches are called.
        branches: Vec<u16>,
        /// Where every branch stands.
        ballots: Vec<Ballot>,
        /// Results that no earlier record holds.
        results: Vec<(u16, Arc<str>)>,
    },
    /// The decision. Durable before anybody is told.
    Decided {
        /// Which.
        outcome: Outcome,
        /// Why.
        reason: Reason,
        /// Where every branch stood.
        ballots: Vec<Ballot>,
        /// Results that no earlier record holds.
        results: Vec<(u16, Arc<str>)>,
    },
    /// This branch has done its part of phase two. Losing it costs a repeated call.
    Finished {
        /// Which branch.
        branch: u16,
    },
    /// Everything is complete; the transaction leaves the core. Losing it costs repeated calls.
    Ended,
    /// All that is known of a live transaction, written anew so that older batches can be
    /// forgotten.
    Snapshot(Box<Transaction>),
}
