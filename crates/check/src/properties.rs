//! What must hold in every reachable state, one function each. AC1 to AC5 are the atomic commitment
//! properties of Bernstein, Hadzilacos and Goodman, "Concurrency Control and Recovery in Database
//! Systems", 1987, chapter 7. They bind processes that keep their promises: a participant that lost
//! its memory while prepared is excused from what it can no longer know (see FAULTS, F28).

use std::collections::BTreeSet;

use unanimity_core::guard::{Contradiction, GuardState};
use unanimity_core::{Fact, Kind, Operation, Outcome, TimerPurpose, Transaction};

use crate::participant::{Participant, Said};
use crate::world::{CallMessage, World};

/// A property's verdict on one state: what is wrong, if anything.
pub type Verdict = Result<(), String>;

/// The names of all properties, as reports and [`crate::mutants`] use them.
pub mod names {
    #![allow(missing_docs, reason = "each is explained at the function of the same name")]
    pub const AGREEMENT: &str = "AC1 agreement";
    pub const STABILITY: &str = "AC2 stability";
    pub const SETTLED_STAYS: &str = "AC2 settled stays settled";
    pub const COMMIT_VALIDITY: &str = "AC3 commit needs every yes";
    pub const NON_TRIVIALITY: &str = "AC4 all yes and no fault commits";
    pub const TERMINATION: &str = "AC5 termination from every state";
    pub const DURABLE_FIRST: &str = "durable before visible";
    pub const AT_MOST_ONCE: &str = "each effect at most once";
    pub const IN_ORDER: &str = "commit excludes rollback, and follows prepare";
    pub const PLAN_ORDER: &str = "work runs in the plan's order";
    pub const NEXT_ACTION: &str = "a live transaction has a next action";
    pub const FORGOTTEN_LAST: &str = "forgotten only when settled everywhere";
    pub const NO_CONTRADICTION: &str = "no participant reports a contradiction";
    pub const RECOVERY_RESTORES: &str = "recovery restores the facts";
    pub const ONE_CALL: &str = "one call at a time";
    pub const UNBROKEN: &str = "the journal can be read back";
}

fn check(holds: bool, problem: impl FnOnce() -> String) -> Verdict {
    if holds { Ok(()) } else { Err(problem()) }
}

/// The outcome that a participant's row stands for, if it stands for one.
fn decided_here(participant: &Participant) -> Option<Outcome> {
    match participant.state()? {
        GuardState::Committed => Some(Outcome::Commit),
        GuardState::RolledBack | GuardState::Compensated => Some(Outcome::Rollback),
        GuardState::Prepared
        | GuardState::VotedNo
        | GuardState::ReadOnly
        | GuardState::Executed => None,
    }
}

/// The branches that no operator has settled, with their numbers: properties speak of no others.
fn ordinary(world: &World) -> impl Iterator<Item = (usize, &Participant)> {
    let settled_by_hand =
        |number: usize| u16::try_from(number).is_ok_and(|number| world.resolved.contains(&number));
    let all = world.participants.iter().enumerate();
    all.filter(move |(number, _)| !settled_by_hand(*number))
}

/// AC1: all processes that reach a decision reach the same one: participants, coordinator, journal,
/// initiator.
///
/// # Errors
/// Names the decisions.
pub fn agreement(world: &World) -> Verdict {
    let mut outcomes: BTreeSet<Outcome> = world.told.outcomes.clone();
    outcomes.extend(&world.told.completed);
    outcomes.extend(world.journal.decisions());
    outcomes.extend(world.live().and_then(Transaction::outcome));
    outcomes.extend(ordinary(world).filter_map(|(_, participant)| decided_here(participant)));
    check(outcomes.len() <= 1, || format!("both decisions are in force: {outcomes:?}"))
}

/// AC2: no decision is ever reversed, and nobody is even *told* two different ones.
///
/// # Errors
/// Says who was told, or what is on record.
pub fn stability(world: &World) -> Verdict {
    let recorded: BTreeSet<Outcome> = world.journal.decisions().collect();
    check(recorded.len() <= 1, || "both decisions are on record".to_owned())?;
    check(world.sent.len() <= 1, || "participants were sent both decisions".to_owned())?;
    check(world.told.outcomes.len() <= 1, || "the initiator was told both outcomes".to_owned())
}

/// AC2 at the participant: once its row is final, it stays what it is.
///
/// # Errors
/// Names the branch.
pub fn settled_stays_settled(world: &World) -> Verdict {
    for (number, participant) in world.participants.iter().enumerate() {
        let (first, now) = (participant.settled, participant.state());
        check(first.is_none() || first == now, || {
            format!("branch {number} was {first:?} and is {now:?}")
        })?;
    }
    Ok(())
}

/// AC3: commit is decided only if every process has voted yes, durably and before: judged by the
/// participants' own rows, not by the coordinator's ballots.
///
/// # Errors
/// Names the branch that had not.
pub fn commit_validity(world: &World) -> Verdict {
    if !world.journal.decisions().any(|outcome| outcome == Outcome::Commit) {
        return Ok(());
    }
    for (number, participant) in ordinary(world).take(world.journal.branches()) {
        let voted_yes = match (world.setup().branches[number].kind, participant.state()) {
            (Kind::Deferred, _) => true,
            (Kind::Local, state) => state == Some(GuardState::Committed),
            (Kind::TwoPhase, Some(state)) => {
                matches!(state, GuardState::Prepared | GuardState::Committed | GuardState::ReadOnly)
            }
            (Kind::Compensable, Some(state)) => state == GuardState::Executed,
            (Kind::TwoPhase | Kind::Compensable, None) => false,
        };
        check(voted_yes || participant.forgot, || {
            format!("commit is decided, and branch {number} is {:?}", participant.state())
        })?;
    }
    Ok(())
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

/// Nothing that a crash could undo is visible outside: no prepare before the beginning is durable,
/// no execute before it is announced, no decision before it is decided (Gray and Lamport,
/// "Consensus on Transaction Commit", ACM TODS 31(1), 2006, section 2; Mohan, Lindsay and
/// Obermarck, "Transaction Management in the R* Distributed Database Management System", ACM TODS
/// 11(4), 1986, section 3).
///
/// # Errors
/// Names what was seen too early.
pub fn durable_before_visible(world: &World) -> Verdict {
    let durable = world.journal.durable_decision();
    let begun = world.journal.has_durable_beginning();
    check(begun || !world.told.begun, || "the beginning was told, and is not durable".to_owned())?;
    let on_record = world.journal.durable_branches();
    for number in &world.initiator.enlisted {
        check(usize::from(*number) < on_record || world.journal.has_end(), || {
            format!("branch {number} was told to be enlisted, and is not on durable record")
        })?;
    }
    let told = world.told.outcomes.iter().chain(&world.told.completed).chain(&world.sent);
    for outcome in told {
        check(durable == Some(*outcome) || presumed(world, *outcome), || {
            format!("{} was told, and is not durable", outcome.as_str())
        })?;
    }
    for call in &world.calls {
        check(begun, || format!("{:?} left before the beginning was durable", call.operation))?;
        check(may_execute(world, *call), || {
            format!("execute of branch {} left before that was durable", call.branch)
        })?;
    }
    Ok(())
}

/// A rollback may be presumed of what nobody has a record of.
fn presumed(world: &World, outcome: Outcome) -> bool {
    outcome == Outcome::Rollback && !world.journal.has_durable_beginning()
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

/// The guard applies each operation's business effect at most once, whatever the number and order
/// of deliveries (Helland, "Life beyond Distributed Transactions", CIDR 2007: idempotence).
///
/// # Errors
/// Names the operation.
pub fn at_most_once(world: &World) -> Verdict {
    for (number, participant) in world.participants.iter().enumerate() {
        for operation in Operation::ALL {
            check(participant.applied(operation) <= 1, || {
                format!("{operation:?} was applied twice at branch {number}")
            })?;
        }
    }
    Ok(())
}

/// The guard applies either commit or rollback, and either only to prepared work.
///
/// # Errors
/// Names the branch.
pub fn in_order(world: &World) -> Verdict {
    for (number, participant) in world.participants.iter().enumerate() {
        let both = participant.applied(Operation::Commit) > 0
            && participant.applied(Operation::Rollback) > 0;
        check(!both, || format!("branch {number} both committed and rolled back"))?;
        check(!participant.out_of_order, || {
            format!("branch {number} worked after its end, or on what was never prepared")
        })?;
    }
    Ok(())
}

/// Branches work in the order that the plan asks for, compensations in its reverse (Garcia-Molina
/// and Salem, "Sagas", SIGMOD 1987). Visible work follows every vote, deferred work everything
/// else, and what comes last all other deferred work.
///
/// # Errors
/// Names the branch that was out of its turn.
pub fn plan_order(world: &World) -> Verdict {
    for (number, participant) in ordinary(world) {
        let branch = &world.setup().branches[number];
        let has_worked = participant.applied(forward(branch.kind)) > 0;
        for before in branch.after {
            let earlier = &world.participants[usize::from(*before)];
            check(!has_worked || earlier.row.is_some(), || {
                format!("branch {number} worked before branch {before}")
            })?;
            let stands = participant.state() == Some(GuardState::Executed)
                && branch.kind == Kind::Compensable;
            check(!stands || earlier.applied(Operation::Compensate) == 0, || {
                format!("branch {before} was compensated before branch {number}")
            })?;
        }
        let shows = branch.kind == Kind::Compensable && !branch.by_initiator && has_worked;
        check(!shows || has_every_vote(world), || {
            format!("branch {number} worked visibly before every prepare had voted")
        })?;
        let deferred = branch.kind == Kind::Deferred && has_worked;
        check(!deferred || is_everything_else_done(world), || {
            format!("deferred branch {number} worked before everything else was done")
        })?;
        check(!(branch.last && has_worked) || is_all_deferred_done(world), || {
            format!("branch {number} comes last, and worked before other deferred work was done")
        })?;
    }
    Ok(())
}

fn has_every_vote(world: &World) -> bool {
    let two_phase = |number: usize| world.setup().branches[number].kind == Kind::TwoPhase;
    ordinary(world).all(|(number, participant)| !two_phase(number) || participant.row.is_some())
}

/// Everything that is not deferred is final: committed, or undone.
fn is_everything_else_done(world: &World) -> bool {
    let rolled_back = world.journal.decisions().any(|outcome| outcome == Outcome::Rollback);
    ordinary(world).all(|(number, participant)| {
        let state = participant.state();
        match world.setup().branches[number].kind {
            Kind::Deferred | Kind::Local => true,
            Kind::TwoPhase if rolled_back => !participant.is_in_doubt(),
            Kind::Compensable => !rolled_back || state != Some(GuardState::Executed),
            Kind::TwoPhase => {
                matches!(state, Some(GuardState::Committed | GuardState::ReadOnly))
            }
        }
    })
}

/// All deferred work on record that does not come last is done, as far as the outcome asks for it.
fn is_all_deferred_done(world: &World) -> bool {
    let rolled_back = world.journal.decisions().any(|outcome| outcome == Outcome::Rollback);
    ordinary(world).take(world.journal.branches()).all(|(number, participant)| {
        let branch = &world.setup().branches[number];
        let owed = branch.kind == Kind::Deferred && (branch.notice || !rolled_back);
        !owed || branch.last || participant.applied(Operation::Execute) > 0
    })
}

/// The operation that does a branch's work.
#[must_use]
pub const fn forward(kind: Kind) -> Operation {
    match kind {
        Kind::TwoPhase => Operation::Prepare,
        Kind::Compensable | Kind::Deferred => Operation::Execute,
        Kind::Local => Operation::CommitOnePhase,
    }
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

/// A transaction is forgotten only after every participant has settled: what makes presumption safe
/// (Mohan, Lindsay and Obermarck 1986, section 3.1; FAULTS I9 and I12).
///
/// # Errors
/// Names the branch that has not.
pub fn forgotten_last(world: &World) -> Verdict {
    if !world.journal.has_end() {
        return Ok(());
    }
    let Some(outcome) = world.journal.decisions().next() else { return Ok(()) };
    for (number, participant) in ordinary(world) {
        check(!participant.is_in_doubt(), || format!("it ended with branch {number} in doubt"))?;
        exactly_matched(world, number, outcome)?;
    }
    Ok(())
}

/// Each branch's business effects match the outcome: all of it, or nothing that is not undone.
///
/// # Errors
/// Names the branch and the effect that does not match.
pub fn exactly_matched(world: &World, number: usize, outcome: Outcome) -> Result<(), String> {
    let participant = &world.participants[number];
    let by_hand = u16::try_from(number).is_ok_and(|number| world.resolved.contains(&number));
    if by_hand || number >= world.journal.branches() {
        return Ok(());
    }
    let applied = |operation| participant.applied(operation);
    let branch = &world.setup().branches[number];
    let kind = branch.kind;
    let in_one = kind == Kind::TwoPhase && applied(Operation::CommitOnePhase) > 0;
    let forward = if in_one { Operation::CommitOnePhase } else { forward(kind) };
    let (finishes, undoes) = match kind {
        Kind::TwoPhase if in_one => (None, Some(Operation::Rollback)),
        Kind::Local => (None, None),
        Kind::TwoPhase => (Some(Operation::Commit), Some(Operation::Rollback)),
        Kind::Compensable => (None, Some(Operation::Compensate)),
        Kind::Deferred => (None, None),
    };
    let done = applied(forward);
    let (finished, undone) = (finishes.map(applied), undoes.map(applied));
    let reads_only = participant.state() == Some(GuardState::ReadOnly);
    let right = match outcome {
        Outcome::Commit => {
            reads_only || (done == 1 && finished.unwrap_or(1) == 1 && undone.unwrap_or(0) == 0)
        }
        Outcome::Rollback if branch.notice => done == 1,
        Outcome::Rollback => finished.unwrap_or(0) == 0 && undone.unwrap_or(0) == done,
    };
    if right {
        return Ok(());
    }
    Err(format!(
        "branch {number} after {}: {forward:?} was applied {done} times, finished {finished:?}, \
         undone {undone:?}",
        outcome.as_str()
    ))
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
