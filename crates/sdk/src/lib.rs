//! What a service links to take part in a transaction, and an initiator to begin one.
//!
//! **A participant** is a [`SqliteService`] (its own tables in a SQLite file) behind a
//! [`SqliteParticipant`] (the guard, in the same file and the same local transaction) behind a
//! [`router`] (the operations over HTTP). With the features `postgres` and `mariadb` the tables lie
//! in such a database (modules of these names), or the database itself prepares the branches
//! ([`xa`]). After a restart an [`inquiry`] asks the coordinator
//! what became of the branches still in doubt. A service without a database uses
//! [`MemoryParticipant`]; one with a database of another make implements [`Participant`] over the
//! pure rules in [`guard`]. One whose data are keys with values, and that wants no two transactions
//! to get in each other's way, says only which keys it touches and what follows from them: see
//! [`resource`].
//!
//! **An initiator** uses [`Client`].
//!
//! A whole participant, runnable as `cargo run -p unanimity-sdk --example participant`:
//!
//! ```no_run
#![doc = include_str!("../examples/participant.rs")]
//! ```

// What all stores share is used in part by a service that takes one of them.
#![cfg_attr(
    not(all(feature = "sqlite", feature = "postgres", feature = "mariadb")),
    allow(dead_code)
)]

mod answer;
pub mod api;
pub mod battery;
mod client;
pub mod contract;
mod guard_rows;
pub mod inquiry;
mod interactive;
#[cfg(feature = "sqlite")]
mod local_work;
#[cfg(feature = "mariadb")]
pub mod mariadb;
mod memory;
mod moment;
mod pace;
mod participant;
mod phase_one;
#[cfg(feature = "postgres")]
pub mod postgres;
mod problem;
pub mod prune;
#[cfg(feature = "sqlite")]
pub mod resource;
mod restraint;
mod router;
mod service;
#[cfg(any(feature = "postgres", feature = "mariadb"))]
pub mod sql;
#[cfg(feature = "sqlite")]
mod sqlite;
#[cfg(feature = "stream")]
pub mod stream;
mod tally;
pub mod xa;

pub use axum;
pub use client::{Client, ClientError, ClientOptions};
pub use guard_rows::{GuardCounts, GuardEntry};
pub use interactive::{OpenTransaction, TransactionError};
#[cfg(feature = "sqlite")]
pub use local_work::{LocalWorkError, create_local_work_table, inquiry_router, record_local_work};
pub use memory::{MemoryParticipant, MemoryService};
pub use moment::{Moment, MomentHook};
pub use participant::{
    AnswerSink, Answering, CallError, Doubting, InDoubt, OwedAnswer, Participant, Request, now_ms,
};
pub use phase_one::PhaseOneError;
#[cfg(feature = "sqlite")]
pub use resource::ResourceParticipant;
pub use router::{RouterOptions, router, router_with_options, router_with_stream};
#[cfg(feature = "sqlite")]
pub use rusqlite;
pub use service::{BranchContext, Busy, ServiceError, ServiceResult, Vote};
#[cfg(feature = "sqlite")]
pub use sqlite::{OpenError, SqliteOptions, SqliteParticipant, SqliteService};
pub use tally::Counters;
pub use unanimity_core::{Answer, Operation, TransactionId, check_id, guard, splitmix64};

/// The name of the branch that a request's `inquiry` becomes.
pub const INITIATOR_BRANCH: &str = "initiator";
