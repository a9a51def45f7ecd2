//! The parts of the program `unanimity`: configuration, the listening side, the calls to participants,
//! and the problem documents that it answers with. `main.rs` puts them together.

pub mod outbound;
pub mod problem;
