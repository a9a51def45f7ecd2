//! The bank's tests, in one binary because linking is what costs.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod battery;
mod conservation;
mod faults;
mod keyed;
mod money;
mod support;
