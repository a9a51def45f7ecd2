//! The SDK's integration tests, in one binary because linking is what costs.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod batch;
mod battery;
mod client;
mod groups;
mod guard;
mod house;
mod http;
mod inquiry;
mod keys;
mod local_work;
mod phase_one;
mod resource;
mod resource_runs;
#[cfg(feature = "stream")]
mod stream;
mod support;
