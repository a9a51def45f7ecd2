//! The trace format: what happened, one JSON object a line, in the order in which it happened. The
//! model, the simulator, the crash tests and the program's own export all write it, and one judge
//! reads it. Format version 1; a reader refuses a newer one.
//!
//! A trace says first what its writer could see ([`Event::Trace`]). A coordinator's own export sees
//! only its records, calls and answers: rules that speak of participants are then not judged.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use unanimity_core::guard::GuardState;
use unanimity_core::{Kind, Operation, Outcome};

use crate::words;

/// The version of the format that this crate writes, and the newest that it reads.
pub const TRACE_VERSION: u32 = 1;

/// One line of a trace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Line {
    /// When, in milliseconds; never runs backwards within one trace.
    pub at: u64,
    /// What.
    #[serde(flatten)]
    pub event: Event,
}

/// A branch as its transaction's plan has it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BranchLine {
    /// Its name.
    pub name: Arc<str>,
    /// What sort of promise it makes.
    #[serde(with = "words::kind")]
    pub kind: Kind,
    /// The numbers of the branches that come before it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<u16>,
    /// Whether the initiator does the phase-one work.
    #[serde(default, skip_serializing_if = "is_false")]
    pub by_initiator: bool,
    /// Whether it is deferred work that is done after a rollback too.
    #[serde(default, skip_serializing_if = "is_false")]
    pub also_on_rollback: bool,
    /// Whether it is deferred work that comes when all other deferred work is done.
    #[serde(default, skip_serializing_if = "is_false")]
    pub comes_last: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for this form")]
const fn is_false(value: &bool) -> bool {
    !*value
}

/// A fact that a coordinator puts on record.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "fact", rename_all = "snake_case")]
pub enum FactLine {
    /// The transaction begins.
    Begun {
        /// What it is made of.
        branches: Vec<BranchLine>,
        /// Whether it is interactive.
        #[serde(default, skip_serializing_if = "is_false")]
        open: bool,
        /// Whether its only branch may commit in one phase, and so decides alone.
        #[serde(default, skip_serializing_if = "is_false")]
        alone: bool,
    },
    /// A branch is added.
    Enlisted {
        /// Which.
        branch: BranchLine,
    },
    /// These executes may leave.
    Executing {
        /// The branches' numbers.
        branches: Vec<u16>,
    },
    /// The decision.
    Decided {
        /// Which.
        #[serde(with = "words::outcome")]
        outcome: Outcome,
        /// Why: the reason's code.
        reason: Arc<str>,
        /// The ballot of each branch, as the coordinator had counted it, where the writer knows.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        ballots: Vec<Arc<str>>,
    },
    /// A branch has done its part after the decision.
    Finished {
        /// Its number.
        branch: u16,
    },
    /// An operator says how a branch was settled.
    Resolved {
        /// Its number.
        branch: u16,
        /// How.
        #[serde(with = "words::outcome")]
        outcome: Outcome,
    },
    /// The transaction is complete.
    Ended,
    /// Everything known of it was written anew; changes nothing.
    Rewritten,
}

/// What somebody was told about a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "told", rename_all = "snake_case")]
pub enum ToldLine {
    /// That it has begun.
    Begun,
    /// That a branch is enlisted.
    Enlisted {
        /// Its number.
        branch: u16,
    },
    /// Its outcome.
    Outcome {
        /// Which.
        #[serde(with = "words::outcome")]
        outcome: Outcome,
    },
    /// That it is complete.
    Ended {
        /// With which outcome.
        #[serde(with = "words::outcome")]
        outcome: Outcome,
        /// Whether it was told that a branch was settled against the decision.
        #[serde(default, skip_serializing_if = "is_false")]
        mixed: bool,
    },
    /// A participant in doubt was told that nobody has a record: presumed rolled back.
    Presumed,
}

/// What a local transaction changed in an account, in its smallest unit.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Move {
    /// The account, unique over all participants.
    pub account: Arc<str>,
    /// Change of what can be spent.
    #[serde(default)]
    pub available: i64,
    /// Change of what is set aside.
    #[serde(default)]
    pub reserved: i64,
}

/// What a writer of traces can see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sight {
    /// The coordinator's records, calls and answers.
    Coordinator,
    /// What participants did: their local transactions.
    Participants,
    /// When records became durable, and which were lost.
    Disk,
    /// What accounts hold.
    Money,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The first line: who writes, and what it can see.
    Trace {
        /// [`TRACE_VERSION`].
        version: u32,
        /// Who writes, for people.
        source: Arc<str>,
        /// What it can see.
        sees: Vec<Sight>,
    },
    /// A coordinator put a fact on record. Where the writer sees the disk, it is durable only when
    /// a [`Event::Durable`] says so.
    Recorded {
        /// The transaction.
        transaction: Arc<str>,
        /// The coordinator's shard.
        #[serde(default)]
        shard: u16,
        /// The batch's position in that shard's journal.
        #[serde(default)]
        position: u64,
        /// The fact.
        #[serde(flatten)]
        fact: FactLine,
    },
    /// Everything of a shard up to this position is durable.
    Durable {
        /// The shard.
        shard: u16,
        /// The position.
        position: u64,
    },
    /// A crash took everything of a shard beyond this position.
    Lost {
        /// The shard.
        shard: u16,
        /// The last position that is left.
        position: u64,
    },
    /// A call left.
    Called {
        /// The transaction.
        transaction: Arc<str>,
        /// The branch's number.
        branch: u16,
        /// What is asked.
        #[serde(with = "words::operation")]
        operation: Operation,
        /// The how-manieth time.
        attempt: u32,
        /// Whether the call only asks how the branch ended, and gives no decision away.
        #[serde(default, skip_serializing_if = "is_false")]
        asks: bool,
    },
    /// The coordinator took an answer in.
    Answered {
        /// The transaction.
        transaction: Arc<str>,
        /// The branch's number.
        branch: u16,
        /// What was asked.
        #[serde(with = "words::operation")]
        operation: Operation,
        /// Of which attempt.
        attempt: u32,
        /// What came: `yes`, `read_only`, `no`, `acknowledged`, `unsupported`, `unknown`, `unsent`
        /// or a contradiction's code.
        answer: Arc<str>,
    },
    /// A participant's local transaction is durable.
    Worked {
        /// The transaction.
        transaction: Arc<str>,
        /// The branch's number.
        branch: u16,
        /// What it was asked.
        #[serde(with = "words::operation")]
        operation: Operation,
        /// Where the branch stands now.
        #[serde(with = "words::state")]
        state: GuardState,
        /// Whether the service's own work was done, and not only remembered.
        effect: bool,
        /// What it moved.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        moved: Vec<Move>,
    },
    /// A participant lost what it knew of a branch: a disk lost, a backup restored.
    Forgot {
        /// The transaction.
        transaction: Arc<str>,
        /// The branch's number.
        branch: u16,
        /// What that changed in its accounts.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        moved: Vec<Move>,
    },
    /// The writer did not keep every call and answer of this transaction: rules that would have to
    /// see all of them are not judged.
    Cut {
        /// The transaction.
        transaction: Arc<str>,
        /// How many were not kept, where that is known.
        #[serde(default)]
        dropped: u64,
    },
    /// Somebody outside was told something.
    Told {
        /// The transaction.
        transaction: Arc<str>,
        /// What.
        #[serde(flatten)]
        what: ToldLine,
    },
    /// A client read a transaction's state: asked at `since`, answered now.
    Read {
        /// The transaction.
        transaction: Arc<str>,
        /// When it asked.
        since: u64,
        /// Whether it was told that there is no such transaction.
        #[serde(default, skip_serializing_if = "is_false")]
        unknown: bool,
        /// The outcome, if it was told one.
        #[serde(with = "words::maybe_outcome", default)]
        outcome: Option<Outcome>,
    },
    /// A process started, or came back.
    Started {
        /// Which.
        process: Arc<str>,
    },
    /// A process died.
    Crashed {
        /// Which.
        process: Arc<str>,
    },
    /// A fault was injected, or an odd situation met: for people and for counting.
    Noted {
        /// Which, as a short stable word.
        what: Arc<str>,
    },
    /// Something that is bounded has reached a new height.
    Height {
        /// What.
        what: Arc<str>,
        /// How much of it there is.
        value: u64,
        /// How much there may be.
        most: u64,
    },
    /// At rest: what an account holds.
    Holds {
        /// The account.
        account: Arc<str>,
        /// What it held at the beginning.
        before: i64,
        /// What can be spent.
        available: i64,
        /// What is set aside.
        reserved: i64,
    },
    /// At rest: how much is left of something of which nothing may be left.
    Left {
        /// What: `locks`, `timers`, `calls`, `transactions`, ...
        what: Arc<str>,
        /// How many.
        count: u64,
    },
    /// Every fault is repaired and everything has had its time: from here on it is at rest.
    AtRest,
}

impl Event {
    /// The transaction that it is about, if it is about one.
    #[must_use]
    pub fn transaction(&self) -> Option<&Arc<str>> {
        match self {
            Self::Recorded { transaction, .. }
            | Self::Called { transaction, .. }
            | Self::Answered { transaction, .. }
            | Self::Worked { transaction, .. }
            | Self::Forgot { transaction, .. }
            | Self::Cut { transaction, .. }
            | Self::Told { transaction, .. }
            | Self::Read { transaction, .. } => Some(transaction),
            Self::Trace { .. }
            | Self::Durable { .. }
            | Self::Lost { .. }
            | Self::Started { .. }
            | Self::Crashed { .. }
            | Self::Noted { .. }
            | Self::Height { .. }
            | Self::Holds { .. }
            | Self::Left { .. }
            | Self::AtRest => None,
        }
    }
}

/// A line of a trace that cannot be read.
#[derive(Debug)]
pub struct TraceError {
    /// Its number, from 1.
    pub line: usize,
    /// Stable: `trace_invalid` or `trace_newer_version`.
    pub code: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

impl std::fmt::Display for TraceError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "line {}: {} ({})", self.line, self.problem, self.code)
    }
}

impl std::error::Error for TraceError {}

/// Reads one line; `number` is its own, for the message.
///
/// # Errors
/// If it is no JSON object of a known event, or of a newer version.
pub fn read_line(number: usize, text: &str) -> Result<Line, TraceError> {
    let error = |code: &'static str, problem: String| TraceError { line: number, code, problem };
    let read = serde_json::from_str(text);
    let line: Line = read.map_err(|problem| error("trace_invalid", problem.to_string()))?;
    match &line.event {
        Event::Trace { version, .. } if *version > TRACE_VERSION => {
            let problem = format!(
                "the trace has version {version}; this program reads up to {TRACE_VERSION}"
            );
            Err(error("trace_newer_version", problem))
        }
        _ => Ok(line), // Every other event says nothing about versions.
    }
}

/// Writes one line, without its end.
///
/// # Errors
/// Never for a line that this crate made; serde's error otherwise.
pub fn write_line(line: &Line) -> Result<String, serde_json::Error> {
    serde_json::to_string(line)
}
