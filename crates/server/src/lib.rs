//! The parts of the program `unanimity`: its API, its commands, its demo, its configuration, the
//! listening side, and the calls to participants. `main.rs` only starts it.

pub mod api;
pub mod carriage;
pub mod commands;
pub mod config;
pub mod databases;
pub mod demo;
mod draw;
pub mod error_pages;
pub mod inbound;
pub mod outbound;
pub mod problem;
mod slots;
pub mod streams;
mod trail;
