//! Judges a history of distributed transactions. One trace format ([`trace`]) is written by the
//! model, the simulator, the crash tests and the program's own export; one [`Judge`] reads any of
//! them. The rules of one transaction ([`rules`]) are functions of whoever has the [`Evidence`], so
//! that the model checker asks the very same in every state that it reaches.
//!
//! ```
//! use unanimity_judge::{Judge, read_line};
//! let trace = [
//!     r#"{"at":0,"event":"trace","version":1,"source":"by hand","sees":["coordinator"]}"#,
//!     r#"{"at":1,"event":"recorded","transaction":"t","fact":"begun","branches":[]}"#,
//!     r#"{"at":2,"event":"told","transaction":"t","told":"outcome","outcome":"commit"}"#,
//! ];
//! let mut judge = Judge::new();
//! for (number, line) in (1..).zip(trace) {
//!     judge.take(&read_line(number, line).unwrap());
//! }
//! let found = judge.found()[0].to_string();
//! assert_eq!(
//!     found,
//!     "line 3, 2 ms, transaction t: durable before visible: commit was told, and is not durable"
//! );
//! ```

mod case;
mod course;
pub mod evidence;
mod judge;
pub mod rules;
pub mod trace;
mod words;

pub use evidence::{Evidence, Outcomes};
pub use judge::{Finding, Judge, names};
pub use trace::{BranchLine, Event, FactLine, Line, Move, Sight, TRACE_VERSION, ToldLine};
pub use trace::{TraceError, read_line, write_line};
pub use words::state_word;

/// The rules that the model checker asks of its states as well.
pub const MODEL_RULES: &[&str] = RULES.split_at(11).0;

/// Every rule there is; those that the model asks too come first.
pub const RULES: [&str; 22] = [
    rules::names::AGREEMENT,
    rules::names::STABILITY,
    rules::names::SETTLED_STAYS,
    rules::names::COMMIT_VALIDITY,
    rules::names::DURABLE_FIRST,
    rules::names::AT_MOST_ONCE,
    rules::names::IN_ORDER,
    rules::names::PLAN_ORDER,
    rules::names::SAGA,
    rules::names::DEFERRED,
    rules::names::FORGOTTEN_LAST,
    names::ANSWERED,
    names::AUDIT,
    names::BALLOTS,
    names::BOUNDS,
    names::CALL_ORDER,
    names::CONSERVATION,
    names::ENDED_LAST,
    names::LINEARIZABLE,
    names::NOTHING_LEFT,
    names::TRACE,
    names::WRITE_ONCE,
];
