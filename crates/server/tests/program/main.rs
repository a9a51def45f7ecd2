//! The program as its users meet it: real processes, real sockets, real files. One binary, because
//! linking is what takes long.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may stop where it stands")]

mod actor;
mod api;
mod ask;
mod bad_input;
mod batches;
mod battery;
mod bench;
mod breaker;
mod commands;
mod crashes;
mod crowd;
mod databases;
mod described;
mod faults;
mod grpc;
mod interactive;
mod interactive_settled;
mod limits;
mod moments;
mod setup;
mod shapes;
mod starting;
mod stopping;
mod streams;
mod traces;
