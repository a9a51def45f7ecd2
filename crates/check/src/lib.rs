//! Proof that the protocol keeps its promises: the *real* coordinator and the *real* guard of
//! `unanimity-core`, put into a small world whose every schedule is tried.
//!
//! - [`world`]: coordinator process, journal, network and participants, with [`World::enabled`] and
//!   [`World::apply`]; it knows no checker, so that a simulator can drive it too.
//! - [`properties`]: what must always hold, one function each, with its citation.
//! - [`model`]: the same world as stateright sees it; [`symmetry`] takes interchangeable branches
//!   for one, [`fairness`] proves termination from every state.
//! - [`configurations`]: which worlds are explored to exhaustion, and how many states each has.
//! - [`mutants`]: deliberate bugs, and which property catches each.
//! - [`traces`]: any path through a world, written down for the judge.
//! - [`run`] and [`story`]: exploring, and telling a counterexample.

pub mod configurations;
pub mod digest;
pub mod fairness;
pub mod initiator;
pub mod journal;
pub mod milestones;
pub mod model;
pub mod mutants;
pub mod operator;
pub mod participant;
pub mod properties;
pub mod run;
pub mod setup;
pub mod sim;
pub mod story;
pub mod symmetry;
pub mod traces;
pub mod world;

pub use setup::Setup;
pub use world::{Action, World};

#[cfg(test)]
mod tests;
