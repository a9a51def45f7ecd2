//! The second carriage of the participant's contract, and the initiators' API over gRPC: the
//! messages of `proto/unanimity/v1/`, and both ends of a stream.
//!
//! A service mounts a [`router`] to be dialed at `grpc://HOST:PORT/NAME`, or [`dial`]s the
//! coordinator itself and is then called as `stream:NAME`. Either serves the same
//! [`crate::Participant`] as [`crate::router`] does over HTTP.

mod answers;

mod client;
mod codec;
mod connection;
mod dialing;
mod frames;
#[allow(missing_docs, clippy::all, clippy::unwrap_used, clippy::expect_used)]
#[rustfmt::skip]
mod generated;

mod requests;
mod serving;

pub use answers::{judge, write_answer};

pub use client::{StreamClient, StreamClientOptions};
pub use codec::Codec;
pub use dialing::{DialOptions, Dialed, dial};
pub use frames::{BeginBatch, Call, Calls};
pub use generated::*;
pub use requests::{FieldError, wait};
pub use serving::router;

/// The metadata that carries a participant's name.
pub const PARTICIPANT_METADATA: &str = "unanimity-participant";
/// The metadata that carries the stable code of a refusal.
pub const CODE_METADATA: &str = "unanimity-code";
/// The metadata that carries the place in the request.
pub const FIELD_METADATA: &str = "unanimity-field";
/// The most bytes of one message: a batch closes at [`BATCH_BYTES`], and one call more may hold as
/// much as a payload may have.
pub const MESSAGE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// A batch that has as many bytes as this is closed.
pub const BATCH_BYTES: usize = 1024 * 1024;
/// The most entries of one batch.
pub const BATCH_ENTRIES_MAX: usize = 1_024;
