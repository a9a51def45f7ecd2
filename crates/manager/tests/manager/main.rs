//! The manager as a whole, against participants that do as they are told. Nothing here sleeps: a
//! test waits for what it wants to see, and gates decide what happens in which order.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that fails should panic; helpers are tests too"
)]

mod at_once;
mod beginning;
mod durability;
mod fake;
mod folder;
mod gated;
mod history;
mod listing;
mod local;
mod overload;
mod recovering;
mod sinks;
mod stragglers;
mod threads;
