//! The simulator: one thread and one seed; the core, the guard, the outbox and the journal contract
//! that ship; networks, disks, clocks and people that are modelled and fail. FoundationDB (Zhou and
//! others, SIGMOD 2021, section 4) and TigerBeetle showed the way.

mod archiving;
pub mod command;
pub mod coordinator;
pub mod initiator;
mod initiators;
pub mod lines;
pub mod options;
pub mod participants;
pub mod planted;
mod poison;
pub mod random;
pub mod replicas;
pub mod run;
pub mod server;
pub mod service;
pub mod shrink;
pub mod situations;
mod starting;
pub mod story;
mod taking;
pub mod upgrade;
mod waking;
pub mod workload;
pub mod world;

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says so by panicking")]
mod tests;
