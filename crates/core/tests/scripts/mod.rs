//! The scripts, by what they are about, and the world that plays them.

mod phase_one;
mod phase_two;
mod recovery;
pub mod world;
