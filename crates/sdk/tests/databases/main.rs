//! The guard in PostgreSQL and MariaDB, on real servers that the tests start themselves. A binary
//! of its own, so that its tests share the servers.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod contract;
mod crowds;
#[path = "../sdk/house.rs"]
mod house;
mod kills;
mod local_work;
mod place;
mod prune;
mod service;
#[allow(dead_code, reason = "not all of what the other tests need is needed here")]
#[path = "../sdk/support.rs"]
mod support;
mod xa;
