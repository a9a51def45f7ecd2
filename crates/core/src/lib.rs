//! The protocol of Unanimity: what a coordinator decides and what a participant's guard answers.
//!
//! This crate is pure. It does no I/O, reads no clock, draws no random number, owns no channel,
//! spawns nothing and depends on nothing; time, ids and seeds come in as arguments. That is why
//! the very same code runs in the shipped program, in the model checker and in a simulator.
//!
//! Two machines live here:
//! - [`Coordinator`]: one shard's transactions. Its face is [`Coordinator::handle`], which turns an
//!   [`Event`] into a [`Step`]: records to make durable, and effects that come out of the step only
//!   against a receipt for those records.
//! - [`guard`]: what a participant remembers of a branch, and what it answers to any operation on
//!   it, however late, repeated or out of order that operation comes.
//!
//! The protocol is two-phase commit with presumed abort (Mohan, Lindsay and Obermarck: "Transaction
//! Management in the R* Distributed Database Management System", ACM TODS 11(4), 1986), widened by
//! compensable branches (Garcia-Molina and Salem: "Sagas", SIGMOD 1987) and deferred ones.

mod answers;
mod asking;
mod branch;
mod by_id;
mod codec;
mod coordinator;
mod decision;
mod ending;
mod event;
mod facts;
pub mod guard;
mod homes;
mod ids;
mod interactive;
mod kind;
mod live;
mod mutation;
mod one_phase;
mod options;
mod outbox;
#[cfg(feature = "mutations")]
mod permute;
mod phase_one;
mod phase_two;
mod plan;
mod record;
mod recovery;
mod replay;
mod resolution;
mod safety;
mod schedule;
mod set_aside;
mod shared;
mod stage;
mod timeline;
mod timers;
mod transaction;
mod wire;

pub use asking::{
    AskNext, AskPolicy, Asked, Asking, OWN_WORK_ATTEMPTS_MAX, Unheard, asks_status,
    own_work_again_ms,
};
pub use branch::{Ballot, Branch, Progress};
pub use codec::{
    DecodeError, Encoded, Mold, MoldTimes, PackedTransaction, PackedTransactions, RECORD_VERSION,
    RecordHead, RecordReader, Whole, decode_head, decode_record, digested_bytes, encode_record,
};
#[cfg(any(test, feature = "mutations"))]
pub use codec::{encode_version_1, plan_of_version_1};
pub use coordinator::{Coordinator, CoordinatorConfig};
pub use decision::{Decision, Outcome, Reason};
pub use ending::Ending;
pub use event::{Answer, Call, Durable, Effect, Event, NamedResult, Refusal, Sealed, Step};
pub use facts::ApplyError;
pub use homes::Homes;
pub use ids::{ID_BYTES_MAX, IdError, TransactionId, check_id};
pub use interactive::{CloseRefusal, EnlistRefusal};
pub use kind::{Kind, Operation};
pub use mutation::{Mutation, Mutations};
pub use options::Options;
pub use outbox::{Gathered, Out, Outbox, OutboxBounds};
pub use plan::{
    BRANCHES_MAX, BranchPlan, PARTICIPANT_BYTES_MAX, PAYLOAD_BYTES_MAX, PAYLOADS_BYTES_MAX, Plan,
    PlanError, REASON_BYTES_MAX, RESULT_BYTES_MAX, TIMEOUT_MS_MAX,
};
pub use record::{Fact, Record};
pub use replay::{Replay, ReplayError, Replayed};
pub use resolution::{Heuristic, Resolution, ResolveRefusal};
pub use schedule::{RetryPolicy, Timer, TimerPurpose, splitmix64};
pub use set_aside::{Doing, SetAside};
pub use stage::Stage;
pub use timeline::{Observation, Observations, Timeline, What};
pub use transaction::Transaction;

/// Milliseconds since the Unix epoch, as the driver tells them. The core never reads a clock.
pub type Millis = u64;
