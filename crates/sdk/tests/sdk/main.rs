//! The SDK's integration tests, in one binary because linking is what costs.

mod client;
mod groups;
mod guard;
mod http;
mod inquiry;
mod support;
