//! A counterexample as a numbered story.

use std::sync::Arc;

use unanimity_core::{Outcome, TimerPurpose};

use crate::fairness;
use crate::model::Protocol;
use crate::properties::names;
use crate::run::Counterexample;
use crate::setup::Setup;
use crate::world::{Action, World};

/// A schedule that never ends is told up to here.
const FAIR_STEPS_TOLD: usize = 40;

/// Tells a counterexample: what happens, step by step, and what is wrong at its end.
#[must_use]
pub fn tell(setup: &Setup, example: &Counterexample) -> String {
    let setup = Setup { symmetry: false, ..setup.clone() };
    let protocol = Protocol::new(setup.clone(), &[]);
    let mut world = World::new(&Arc::new(setup));
    let mut story = Vec::new();
    for (number, action) in (1..).zip(&example.actions) {
        story.push(format!("  {number}. {}", happens(&mut world, action)));
    }
    if example.property == names::TERMINATION {
        tell_fair_schedule(&mut world, &mut story);
    }
    let wrong = protocol.verdict(example.property, &world).and_then(Result::err);
    let wrong = wrong.unwrap_or_else(|| "holds after all".to_owned());
    story.push(format!("  => {}: {wrong}\n", example.property));
    story.join("\n")
}

/// Makes an action happen, and tells it.
fn happens(world: &mut World, action: &Action) -> String {
    let before = world.clone();
    world.apply(action);
    format!("{}{}", line(action), consequence(&before, world))
}

/// Termination looks ahead: what it saw is part of the story.
fn tell_fair_schedule(world: &mut World, story: &mut Vec<String>) {
    story.push("  and then, without any further fault:".to_owned());
    for _ in 0..FAIR_STEPS_TOLD {
        let Some(action) = fairness::next(world) else { return };
        story.push(format!("  - {}", happens(world, &action)));
    }
    story.push("  - and so on".to_owned());
}

fn line(action: &Action) -> String {
    match action {
        Action::Begin => "the initiator asks for the transaction".to_owned(),
        Action::Sync => "the oldest step becomes durable, and its effects leave".to_owned(),
        Action::Crash => "the coordinator crashes".to_owned(),
        Action::Recover => "a coordinator recovers from the journal".to_owned(),
        Action::DeliverCall(call) => {
            format!("branch {} gets {:?} number {}", call.branch, call.operation, call.attempt)
        }
        Action::DeliverAnswer(answer) => format!(
            "the coordinator hears {:?} from branch {} to {:?} number {}",
            answer.said, answer.call.branch, answer.call.operation, answer.call.attempt
        ),
        Action::GiveUp(call) => format!(
            "{:?} number {} of branch {} is given up",
            call.operation, call.attempt, call.branch
        ),
        Action::Fire(timer) => match timer.purpose {
            TimerPurpose::PhaseOneDeadline => "phase one's deadline passes".to_owned(),
            TimerPurpose::Overdue => "the limit for the whole passes".to_owned(),
            TimerPurpose::Retry(number) => format!("branch {number} is due to be tried again"),
        },
        Action::DeliverToOldCopy(call) => format!(
            "an old copy of branch {}'s service gets {:?} number {}, which it does not know",
            call.branch, call.operation, call.attempt
        ),
        Action::Refuse(call) => format!(
            "branch {} cannot be connected to: {:?} number {} was never sent",
            call.branch, call.operation, call.attempt
        ),
        Action::Enlist(number) => format!("the initiator enlists branch {number}"),
        Action::Work(number) => format!("the initiator does the work of branch {number} itself"),
        Action::RequestCommit => "the initiator asks to commit".to_owned(),
        Action::Resolve(number, outcome) => {
            format!("an operator says that branch {number} is settled: {}", outcome.as_str())
        }
        Action::RequestRollback => "somebody asks to roll back".to_owned(),
        Action::Checkpoint => "the coordinator writes a checkpoint".to_owned(),
        Action::RestartParticipant(number) => {
            format!("branch {number} restarts, and its answers on the way are lost")
        }
        Action::Forget(number) => format!("branch {number} loses its memory"),
        Action::Ask(number) => format!("branch {number} asks for the decision"),
        Action::DeliverWord(word) => {
            format!("branch {} is told: {}", word.branch, word.outcome.as_str())
        }
    }
}

/// What a step has changed that matters to the reader.
fn consequence(before: &World, after: &World) -> String {
    let mut changes = Vec::new();
    let decided = |world: &World| world.live().and_then(|transaction| transaction.outcome());
    if let (old, Some(outcome)) = (decided(before), decided(after))
        && old != Some(outcome)
    {
        changes.push(format!("decides {}", outcome.as_str()));
    }
    let told = |outcome: &&Outcome| !before.told.outcomes.contains(outcome);
    for outcome in after.told.outcomes.iter().filter(told) {
        changes.push(format!("the initiator is told {}", outcome.as_str()));
    }
    for call in after.calls.difference(&before.calls) {
        changes.push(format!("calls {:?} of branch {}", call.operation, call.branch));
    }
    for (number, (old, new)) in before.participants.iter().zip(&after.participants).enumerate() {
        if old.state() != new.state() {
            let now = new.state().map_or("without memory".to_owned(), |s| format!("{s:?}"));
            changes.push(format!("branch {number} is now {now}"));
        }
    }
    if changes.is_empty() { String::new() } else { format!(" ({})", changes.join("; ")) }
}
