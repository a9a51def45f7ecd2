//! The scripts, by what they are about, and the world that plays them.

mod interactive;
mod phase_one;
mod phase_two;
mod recovery;
mod resolution;
mod settling;
pub mod world;
