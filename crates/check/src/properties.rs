//! What must hold in every reachable state, one function each. Those that speak of one transaction
//! and of nothing inside the coordinator are the judge's ([`unanimity_judge::rules`]), asked here
//! of every state; the others are in this file.

use unanimity_core::guard::Contradiction;
use unanimity_core::guard::GuardState;
use unanimity_core::{Fact, Kind, Operation, Outcome, TimerPurpose, Transaction};
pub use unanimity_judge::rules::{
    self, Verdict, agreement, at_most_once, commit_validity, deferred_iff_committed,
    exactly_matched, forgotten_last, forward, in_order, plan_order, saga_undone,
    settled_stays_settled, stability,
};
use unanimity_judge::{Evidence, Outcomes};

use crate::participant::Said;
use crate::world::{CallMessage, World};

impl Evidence for World {
    fn branches(&self) -> usize {
        self.participants.len()
    }

    fn on_record(&self) -> usize {
        self.journal.branches()
    }

    fn kind(&self, branch: usize) -> Kind {
        self.setup().branches[branch].kind
    }

    fn after(&self, branch: usize) -> &[u16] {
        self.setup().branches[branch].after
    }

    fn by_initiator(&self, branch: usize) -> bool {
        self.setup().branches[branch].by_initiator
    }

    fn also_on_rollback(&self, branch: usize) -> bool {
        self.setup().branches[branch].notice
    }

    fn comes_last(&self, branch: usize) -> bool {
        self.setup().branches[branch].last
    }

    fn by_hand(&self, branch: usize) -> bool {
        u16::try_from(branch).is_ok_and(|branch| self.resolved.contains(&branch))
    }

    fn forgot(&self, branch: usize) -> bool {
        self.participants[branch].forgot
    }

    fn state(&self, branch: usize) -> Option<GuardState> {
        self.participants[branch].state()
    }

    fn settled(&self, branch: usize) -> Option<GuardState> {
        self.participants[branch].settled
    }

    fn applied(&self, branch: usize, operation: Operation) -> u8 {
        self.participants[branch].applied(operation)
    }

    fn out_of_order(&self, branch: usize) -> bool {
        self.participants[branch].out_of_order
    }

    fn recorded(&self) -> Outcomes {
        let live = self.live().and_then(Transaction::outcome);
        self.journal.decisions().chain(live).collect()
    }

    fn told(&self) -> Outcomes {
        self.told.outcomes.iter().chain(&self.told.completed).copied().collect()
    }

    fn sent(&self) -> Outcomes {
        self.sent.iter().copied().collect()
    }

    fn begun(&self) -> bool {
        self.journal.has_durable_beginning()
    }

    fn told_begun(&self) -> bool {
        self.told.begun
    }

    fn ended(&self) -> bool {
        self.journal.has_end()
    }

    fn durable_decision(&self) -> Option<Outcome> {
        self.journal.durable_decision()
    }
}

/// The names of all properties, as reports and [`crate::mutants`] use them.
pub mod names {
    #![allow(missing_docs, reason = "each is explained at the function of the same name")]
    pub use unanimity_judge::rules::names::*;

    pub const NON_TRIVIALITY: &str = "AC4 all yes and no fault commits";
    pub const TERMINATION: &str = "AC5 termination from every state";
    pub const NEXT_ACTION: &str = "a live transaction has a next action";
    pub const NO_CONTRADICTION: &str = "no participant reports a contradiction";
    pub const RECOVERY_RESTORES: &str = "recovery restores the facts";
    pub const ONE_CALL: &str = "one call at a time";
    pub const UNBROKEN: &str = "the journal can be read back";
}

fn check(holds: bool, problem: impl FnOnce() -> String) -> Verdict {
    if holds { Ok(()) } else { Err(problem()) }
}

/// AC4: if nothing fails, nobody asks for a rollback and every vote is yes, the decision is commit.
///
/// # Errors
/// If it is a rollback nevertheless.
pub fn non_triviality(world: &World) -> Verdict {
    if !(world.setup().is_free_of_faults() && world.setup().is_all_willing()) {
        return Ok(());
    }
    let rolled_back = world.journal.decisions().any(|outcome| outcome == Outcome::Rollback);
    check(!rolled_back, || "rolled back without any reason".to_owned())
}

/// Nothing that a crash could undo is visible outside: what [`rules::durable_before_visible`] says,
/// and no prepare before the beginning is durable, no execute before it is announced, no
/// enlistment before it is on record.
///
/// # Errors
/// Names what was seen too early.
pub fn durable_before_visible(world: &World) -> Verdict {
    rules::durable_before_visible(world)?;
    let on_record = world.journal.durable_branches();
    for number in &world.initiator.enlisted {
        check(usize::from(*number) < on_record || world.journal.has_end(), || {
            format!("branch {number} was told to be enlisted, and is not on durable record")
        })?;
    }
    let begun = world.journal.has_durable_beginning();
    for call in &world.calls {
        check(begun, || format!("{:?} left before the beginning was durable", call.operation))?;
        check(may_execute(world, *call), || {
            format!("execute of branch {} left before that was durable", call.branch)
        })?;
    }
    Ok(())
}

/// Whether a call, if it is the execute of a compensable branch, is on record as such.
fn may_execute(world: &World, call: CallMessage) -> bool {
    let kind = world.setup().branches[usize::from(call.branch)].kind;
    if call.operation != Operation::Execute || kind != Kind::Compensable {
        return true;
    }
    world.journal.durable_facts().any(|fact| match fact {
        Fact::Executing { branches, .. } => branches.contains(&call.branch),
        Fact::Snapshot(transaction) => transaction.executing_since.is_some(),
        Fact::Begun { .. }
        | Fact::Enlisted { .. }
        | Fact::Resolved { .. }
        | Fact::Decided { .. }
        | Fact::Finished { .. }
        | Fact::Ended => false,
    })
}

/// Rule 6: a live transaction without a next action cannot exist. A next action is a call under
/// way, a planned retry, something to sync or, while undecided, a deadline.
///
/// # Errors
/// Says where it is stuck.
pub fn next_action(world: &World) -> Verdict {
    let (Some(coordinator), Some(transaction)) = (&world.coordinator, world.live()) else {
        return Ok(());
    };
    let armed = coordinator.timers().any(|timer| match timer.purpose {
        TimerPurpose::Retry(_) => true,
        TimerPurpose::PhaseOneDeadline | TimerPurpose::Overdue => {
            transaction.decision.is_none() && transaction.settling.is_none()
        }
    });
    let moves = armed || !world.open.is_empty() || !world.journal.pending.is_empty();
    check(moves, || format!("nothing will ever move it on: {:?}", transaction.stage()))
}

/// A participant that keeps its promises never has to report a contradiction.
///
/// # Errors
/// Repeats the contradiction.
pub fn no_contradiction(world: &World) -> Verdict {
    for answer in &world.answers {
        let forgot = world.participants[usize::from(answer.call.branch)].forgot;
        // A rollback that asks what is final, and a late copy of the call before it.
        let expected = match answer.call.operation {
            Operation::Rollback => answer.said == Said::Error(Contradiction::AlreadyCommitted),
            Operation::CommitOnePhase => answer.said == Said::Error(Contradiction::WrongKind),
            _ => false, // Nothing else is ever asked in doubt.
        };
        if world.setup().one_phase && expected || world.resolved.contains(&answer.call.branch) {
            continue;
        }
        if let Said::Error(contradiction) = answer.said {
            check(forgot, || format!("branch {}: {}", answer.call.branch, contradiction.code()))?;
        }
    }
    Ok(())
}

/// What a live coordinator holds for fact is what recovery would find: facts change only through
/// records, and reading them again restores them (FAULTS I18).
///
/// # Errors
/// Names the fact that differs.
pub fn recovery_restores(world: &World) -> Verdict {
    let Some(coordinator) = &world.coordinator else { return Ok(()) };
    if !world.journal.pending.is_empty() {
        return Ok(());
    }
    let replayed = world.replay()?;
    check(replayed.len() == coordinator.len(), || "another number is live".to_owned())?;
    for (live, found) in coordinator.iter().zip(replayed.iter()) {
        let same = live.id == found.id
            && live.decision == found.decision
            && live.executing_since == found.executing_since
            && live.fingerprint == found.fingerprint
            && live.options == found.options
            && live.open == found.open
            && live.branches.len() == found.branches.len()
            && live.heuristic() == found.heuristic();
        check(same, || format!("recovery would find {found:?}"))?;
    }
    Ok(())
}

/// A driver that keeps its word has at most one call under way for each thing that a branch owes.
///
/// # Errors
/// If a second one left.
pub fn one_call_at_a_time(world: &World) -> Verdict {
    check(!world.doubled, || "a call left while one for the same was under way".to_owned())
}

/// The coordinator can read what it wrote.
///
/// # Errors
/// Says why it cannot.
pub fn unbroken(world: &World) -> Verdict {
    world.broken.clone().map_or(Ok(()), Err)
}
