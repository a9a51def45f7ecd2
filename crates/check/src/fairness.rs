//! Termination (AC5; Bernstein, Hadzilacos and Goodman 1987, chapter 7), stronger and simpler than
//! an "eventually" property: from *every* reachable state one deterministic schedule without
//! further faults leads to rest, and at rest everything is settled. The schedule is fair: what is
//! down comes back, what is written is synced, what is on its way arrives, what waits for a retry
//! is retried.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use unanimity_core::TimerPurpose;

use crate::digest;
use crate::participant::Said;
use crate::properties::exactly_matched;
use crate::world::{Action, CallMessage, Word, World};

/// No state of any setup is further from rest than this many steps.
pub const STEPS_MAX: usize = 120;

/// The next step of the fair schedule; `None` at rest.
#[must_use]
pub fn next(world: &World) -> Option<Action> {
    if world.broken.is_some() {
        return None;
    }
    let Some(coordinator) = &world.coordinator else { return Some(Action::Recover) };
    if !world.journal.pending.is_empty() {
        return Some(Action::Sync);
    }
    if let Some(call) = world.open.first() {
        return Some(finish_call(world, *call));
    }
    let mut timers = coordinator.timers();
    if let Some(timer) = timers.find(|timer| matches!(timer.purpose, TimerPurpose::Retry(_))) {
        return Some(Action::Fire(timer.clone()));
    }
    let stray = world.calls.iter().find(|call| changes_something(world, **call));
    stray.copied().map(Action::DeliverCall).or_else(|| settle_doubt(world)).or_else(|| {
        // Nothing is left but deadlines: they fire in the end.
        coordinator.timers().next().cloned().map(Action::Fire)
    })
}

/// Brings a call under way to its end: by what the participant says now, if it is or can be on its
/// way, else by any answer there is, else by giving up.
fn finish_call(world: &World, call: CallMessage) -> Action {
    let now = would_say(world, call);
    let mut answers = world.answers.iter().filter(|answer| answer.call == call);
    if let Some(answer) = answers.clone().find(|answer| answer.said == now) {
        return Action::DeliverAnswer(*answer);
    }
    if world.calls.contains(&call) {
        return Action::DeliverCall(call);
    }
    answers.next().copied().map_or(Action::GiveUp(call), Action::DeliverAnswer)
}

fn would_say(world: &World, call: CallMessage) -> Said {
    let number = usize::from(call.branch);
    let says = world.setup().branches[number].says;
    world.participants[number].would_say(call.operation, says, world.setup().mutations)
}

/// Whether a call that nobody waits for any more would still change its participant.
fn changes_something(world: &World, call: CallMessage) -> bool {
    let number = usize::from(call.branch);
    let mut participant = world.participants[number].clone();
    participant.handle(
        call.operation,
        world.setup().branches[number].says,
        world.setup().mutations,
    );
    participant != world.participants[number]
}

/// A participant that has restarted asks, and obeys the word.
fn settle_doubt(world: &World) -> Option<Action> {
    let (outcome, presumed) = world.word()?;
    let mut asking = (0..).zip(&world.participants).filter(|(_, p)| p.asks && p.is_in_doubt());
    let (branch, _) = asking.next()?;
    let word = Word { branch, outcome, presumed };
    let there = world.words.contains(&word);
    Some(if there { Action::DeliverWord(word) } else { Action::Ask(branch) })
}

/// What must be true at rest: the coordinator is done, nobody is in doubt, and each participant did
/// exactly what the outcome asks for.
///
/// # Errors
/// Says what is not.
pub fn settled(world: &World) -> Result<(), String> {
    if let Some(transaction) = world.live() {
        return Err(format!("nothing more can happen, and it is still {:?}", transaction.stage()));
    }
    let mut numbered = (0..).zip(&world.participants);
    let in_doubt =
        numbered.position(|(number, p)| p.is_in_doubt() && !world.resolved.contains(&number));
    if let Some(number) = in_doubt {
        return Err(format!("branch {number} stays in doubt, and nobody will ever tell it"));
    }
    match world.journal.durable_decision() {
        Some(outcome) => (0..)
            .zip(&world.participants)
            .try_for_each(|(number, _)| exactly_matched(world, number, outcome)),
        None => Ok(()),
    }
}

/// How many maps share the memory, so that two threads seldom want the same one.
const SHARDS: usize = 64;

/// From how many states the schedule has been followed already, and how far each is from rest: the
/// schedule's every step is itself a reachable state, so each is followed only once.
#[derive(Debug)]
pub struct Memory {
    shards: Vec<Mutex<HashMap<u64, u16>>>,
}

impl Default for Memory {
    fn default() -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }
}

impl Memory {
    fn shard(&self, fingerprint: u64) -> MutexGuard<'_, HashMap<u64, u16>> {
        let shard = &self.shards[fingerprint as usize % SHARDS];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The longest way to rest that was met.
    #[must_use]
    pub fn steps_max(&self) -> u16 {
        let longest = |shard: &Mutex<HashMap<u64, u16>>| {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            shard.values().copied().max().unwrap_or(0)
        };
        self.shards.iter().map(longest).max().unwrap_or(0)
    }
}

/// Follows the fair schedule from `world` to rest, or to a state that is known to come to rest.
/// `normal` gives the state that stands for all that count as the same; `world` is one already.
///
/// # Errors
/// If rest is not reached within [`STEPS_MAX`], or is not as it must be.
pub fn terminates(
    world: &World,
    memory: &Memory,
    normal: impl Fn(World) -> World,
) -> Result<(), String> {
    let mut world = Cow::Borrowed(world);
    let mut trail = Vec::new();
    let mut known = loop {
        let fingerprint = digest::of(&*world);
        if let Some(steps) = memory.shard(fingerprint).get(&fingerprint) {
            break *steps;
        }
        let Some(action) = next(&world) else {
            settled(&world)?;
            memory.shard(fingerprint).insert(fingerprint, 0);
            break 0;
        };
        trail.push(fingerprint);
        if trail.len() > STEPS_MAX {
            return Err(format!("no rest within {STEPS_MAX} fault-free steps"));
        }
        let mut next = world.into_owned();
        next.apply(&action);
        world = Cow::Owned(normal(next));
    };
    while let Some(fingerprint) = trail.pop() {
        known += 1;
        memory.shard(fingerprint).insert(fingerprint, known);
    }
    Ok(())
}
