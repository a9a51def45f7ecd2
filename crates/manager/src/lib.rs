//! An embeddable transaction manager: all parts of a business transaction happen, or none.
//!
//! - [`LocalTransactionManager`] is the plain face: services are values in this process, and
//!   [`LocalTransactionManager::execute_transaction`] answers with a yes or no and the reason.
//! - [`TransactionManager`] is the whole one: it calls participants through a [`Transport`] of your
//!   choice, keeps its journal and history in a folder, and takes up again after any crash what it
//!   had begun.
//!
//! The protocol itself is [`core`]; this crate schedules it: one task per shard, one append to the
//! journal under way while the next batch gathers, timers, retries, and bounds on everything.

mod admission;
mod answers;
mod beginning;
mod blame;
mod clock;
mod crash_point;
mod error;
mod explain;
mod filter;
mod generate;
mod history;
mod interactive;
mod journal_thread;
mod local;
mod manager;
mod near;
mod offline;
mod operation;
mod panics;
mod recovery;
mod reserve;
mod rewrite;
mod shard;
mod starting;
mod transport;
pub mod view;
mod watchers;

pub use admission::QueueDelay;
#[doc(hidden)]
pub use answers::{AnswerQueue, Answers, answers};
pub use beginning::{Admitted, BeginReply, BeginRequest};
pub use crash_point::CRASH_POINTS;
pub use error::{BeginError, CommitError, EnlistError, ResolveError, StartError, Unavailable};
pub use explain::{Awaited, Choice, Explanation};
pub use filter::{Cursor, Filter};
pub use history::HistoryError;
pub use interactive::EnlistRequest;
pub use local::{ExecuteError, Executed, LocalTransactionManager, Service, Vote};
pub use manager::{DecisionReply, Page, TransactionManager};
pub use offline::{count_history, read_folder};
pub use operation::{
    Operation, RecordService, Records, Undo, UpdateAccountBalance, UpdateUserProfile,
};
#[doc(hidden)]
pub use shard::Bounds;
#[doc(hidden)]
pub use starting::{Internals, OpenEngine};
pub use starting::{ManagerConfig, SHARDS_MAX, Storage};
pub use transport::{CallFuture, Owed, Transport};
pub use unanimity_core as core;
pub use watchers::{Told, ToldSink, Wait};
