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

mod clock;
mod crash_point;
mod error;
mod filter;
mod history;
mod homes;
mod journal_thread;
mod local;
mod manager;
mod operation;
mod recovery;
mod shard;
mod transport;
pub mod view;

pub use crash_point::CRASH_POINTS;
pub use error::{BeginError, StartError, Unavailable};
pub use filter::{Cursor, Filter};
pub use history::HistoryError;
pub use local::{ExecuteError, Executed, LocalTransactionManager, Service, Vote};
pub use manager::{
    BeginReply, BeginRequest, DecisionReply, ManagerConfig, Page, Storage, TransactionManager,
};
pub use operation::{
    Operation, RecordService, Records, Undo, UpdateAccountBalance, UpdateUserProfile,
};
pub use shard::Wait;
pub use transport::{CallFuture, Transport};
pub use unanimity_core as core;
