//! What must hold of one transaction at any moment, one function each, for whoever has the
//! evidence. AC1 to AC5 are the atomic commitment properties of Bernstein, Hadzilacos and Goodman,
//! "Concurrency Control and Recovery in Database Systems", 1987, chapter 7. They bind processes
//! that keep their promises: a participant that lost its memory while prepared is excused from
//! what it can no longer know, and nobody speaks of a branch that an operator has settled.

use unanimity_core::guard::GuardState;
use unanimity_core::{Kind, Operation, Outcome};

use crate::evidence::{Evidence, Outcomes};

/// A rule's verdict: what is wrong, if anything.
pub type Verdict = Result<(), String>;

/// The names of the rules of this file, as reports use them.
pub mod names {
    #![allow(missing_docs, reason = "each is explained at the function of the same name")]
    pub const AGREEMENT: &str = "AC1 agreement";
    pub const STABILITY: &str = "AC2 stability";
    pub const SETTLED_STAYS: &str = "AC2 settled stays settled";
    pub const COMMIT_VALIDITY: &str = "AC3 commit needs every yes";
    pub const DURABLE_FIRST: &str = "durable before visible";
    pub const AT_MOST_ONCE: &str = "each effect at most once";
    pub const IN_ORDER: &str = "commit excludes rollback, and follows prepare";
    pub const PLAN_ORDER: &str = "work runs in the plan's order";
    pub const SAGA: &str = "a saga's compensations are complete and in order";
    pub const DEFERRED: &str = "deferred if and only if committed";
    pub const FORGOTTEN_LAST: &str = "forgotten only when settled everywhere";
}

pub(crate) fn check(holds: bool, problem: impl FnOnce() -> String) -> Verdict {
    if holds { Ok(()) } else { Err(problem()) }
}

/// The branches that no operator has settled: rules speak of no others.
fn ordinary<E: Evidence + ?Sized>(evidence: &E) -> impl Iterator<Item = usize> {
    (0..evidence.branches()).filter(move |branch| !evidence.by_hand(*branch))
}

/// Whether a branch holds work that its participant may neither commit nor undo by itself.
fn is_in_doubt<E: Evidence + ?Sized>(evidence: &E, branch: usize) -> bool {
    evidence.state(branch) == Some(GuardState::Prepared)
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

/// The outcome that a participant's row stands for, if it stands for one.
const fn decided_here(state: Option<GuardState>) -> Option<Outcome> {
    match state {
        Some(GuardState::Committed) => Some(Outcome::Commit),
        Some(GuardState::RolledBack | GuardState::Compensated) => Some(Outcome::Rollback),
        Some(
            GuardState::Prepared
            | GuardState::VotedNo
            | GuardState::ReadOnly
            | GuardState::Executed,
        )
        | None => None,
    }
}

/// AC1: all processes that reach a decision reach the same one: participants, coordinator, journal,
/// initiator.
///
/// # Errors
/// Names the decisions.
pub fn agreement<E: Evidence + ?Sized>(evidence: &E) -> Verdict {
    let rows = ordinary(evidence).filter_map(|branch| decided_here(evidence.state(branch)));
    let outcomes = evidence.recorded().and(evidence.told()).and(rows.collect());
    check(!outcomes.are_both(), || "both decisions are in force".to_owned())
}

/// AC2: no decision is ever reversed, and nobody is even *told* two different ones.
///
/// # Errors
/// Says who was told, or what is on record.
pub fn stability<E: Evidence + ?Sized>(evidence: &E) -> Verdict {
    check(!evidence.recorded().are_both(), || "both decisions are on record".to_owned())?;
    check(!evidence.sent().are_both(), || "participants were sent both decisions".to_owned())?;
    check(!evidence.told().are_both(), || "the initiator was told both outcomes".to_owned())
}

/// AC2 at the participant: once its row is final, it stays what it is.
///
/// # Errors
/// Names the branch.
pub fn settled_stays_settled<E: Evidence + ?Sized>(evidence: &E) -> Verdict {
    for branch in 0..evidence.branches() {
        let (first, now) = (evidence.settled(branch), evidence.state(branch));
        check(first.is_none() || first == now, || {
            format!("branch {branch} was {first:?} and is {now:?}")
        })?;
    }
    Ok(())
}

/// AC3: commit is decided only if every process has voted yes, durably and before: judged by the
/// participants' own rows, not by the coordinator's ballots.
///
/// # Errors
/// Names the branch that had not.
pub fn commit_validity<E: Evidence + ?Sized>(evidence: &E) -> Verdict {
    if !evidence.recorded().commit {
        return Ok(());
    }
    for branch in ordinary(evidence).take_while(|branch| *branch < evidence.on_record()) {
        let state = evidence.state(branch);
        let voted_yes = match (evidence.kind(branch), state) {
            (Kind::Deferred, _) => true,
            (Kind::Local, state) => state == Some(GuardState::Committed),
            (Kind::TwoPhase, Some(state)) => {
                matches!(state, GuardState::Prepared | GuardState::Committed | GuardState::ReadOnly)
            }
            (Kind::Compensable, Some(state)) => state == GuardState::Executed,
            (Kind::TwoPhase | Kind::Compensable, None) => false,
        };
        check(voted_yes || evidence.forgot(branch), || {
            format!("commit is decided, and branch {branch} is {state:?}")
        })?;
    }
    Ok(())
}

/// Nothing that a crash could undo is visible outside: neither the beginning nor an outcome (Gray
/// and Lamport, "Consensus on Transaction Commit", ACM TODS 31(1), 2006, section 2; Mohan, Lindsay
/// and Obermarck, "Transaction Management in the R* Distributed Database Management System", ACM
/// TODS 11(4), 1986, section 3). A rollback may be presumed of what nobody has a record of.
///
/// # Errors
/// Names what was seen too early.
pub fn durable_before_visible<E: Evidence + ?Sized>(evidence: &E) -> Verdict {
    let (durable, begun) = (evidence.durable_decision(), evidence.begun());
    check(begun || !evidence.told_begun(), || {
        "the beginning was told, and is not durable".to_owned()
    })?;
    for outcome in evidence.told().and(evidence.sent()).iter() {
        let presumed = outcome == Outcome::Rollback && !begun;
        check(durable == Some(outcome) || presumed, || {
            format!("{} was told, and is not durable", outcome.as_str())
        })?;
    }
    Ok(())
}

/// The guard applies each operation's business effect at most once, whatever the number and order
/// of deliveries (Helland, "Life beyond Distributed Transactions", CIDR 2007: idempotence).
///
/// # Errors
/// Names the operation.
pub fn at_most_once<E: Evidence + ?Sized>(evidence: &E) -> Verdict {
    for branch in 0..evidence.branches() {
        for operation in Operation::ALL {
            check(evidence.applied(branch, operation) <= 1, || {
                format!("{operation:?} was applied twice at branch {branch}")
            })?;
        }
    }
    Ok(())
}

/// The guard applies either commit or rollback, and either only to prepared work.
///
/// # Errors
/// Names the branch.
pub fn in_order<E: Evidence + ?Sized>(evidence: &E) -> Verdict {
    for branch in 0..evidence.branches() {
        let both = evidence.applied(branch, Operation::Commit) > 0
            && evidence.applied(branch, Operation::Rollback) > 0;
        check(!both, || format!("branch {branch} both committed and rolled back"))?;
        check(!evidence.out_of_order(branch), || {
            format!("branch {branch} worked after its end, or on what was never prepared")
        })?;
    }
    Ok(())
}

/// Branches work in the order that the plan asks for. Visible work follows every vote, deferred
/// work everything else, and what comes last all other deferred work.
///
/// # Errors
/// Names the branch that was out of its turn.
pub fn plan_order<E: Evidence + ?Sized>(evidence: &E) -> Verdict {
    for branch in ordinary(evidence) {
        let kind = evidence.kind(branch);
        let has_worked = evidence.applied(branch, forward(kind)) > 0;
        // What tells of a rollback waits for branches that need never have been called.
        let tells = evidence.also_on_rollback(branch) && evidence.recorded().rollback;
        for before in evidence.after(branch) {
            let earlier = usize::from(*before);
            let in_turn = tells || evidence.state(earlier).is_some();
            check(!has_worked || in_turn || evidence.forgot(earlier), || {
                format!("branch {branch} worked before branch {before}")
            })?;
        }
        let shows = kind == Kind::Compensable && !evidence.by_initiator(branch) && has_worked;
        check(!shows || has_every_vote(evidence), || {
            format!("branch {branch} worked visibly before every prepare had voted")
        })?;
        let deferred = kind == Kind::Deferred && has_worked;
        check(!deferred || is_everything_else_done(evidence), || {
            format!("deferred branch {branch} worked before everything else was done")
        })?;
        let last = evidence.comes_last(branch) && has_worked;
        check(!last || is_all_deferred_done(evidence), || {
            format!("branch {branch} comes last, and worked before other deferred work was done")
        })?;
    }
    Ok(())
}

fn has_every_vote<E: Evidence + ?Sized>(evidence: &E) -> bool {
    let two_phase = |branch: usize| evidence.kind(branch) == Kind::TwoPhase;
    ordinary(evidence).all(|branch| {
        !two_phase(branch) || evidence.state(branch).is_some() || evidence.forgot(branch)
    })
}

/// All deferred work on record that does not come last is done, as far as the outcome asks for it.
fn is_all_deferred_done<E: Evidence + ?Sized>(evidence: &E) -> bool {
    let rolled_back = evidence.recorded().rollback;
    ordinary(evidence).take_while(|branch| *branch < evidence.on_record()).all(|branch| {
        let deferred = evidence.kind(branch) == Kind::Deferred;
        let owed = deferred && (evidence.also_on_rollback(branch) || !rolled_back);
        !owed || evidence.comes_last(branch) || evidence.applied(branch, Operation::Execute) > 0
    })
}

/// Everything that is not deferred is final: committed, or undone.
fn is_everything_else_done<E: Evidence + ?Sized>(evidence: &E) -> bool {
    let rolled_back = evidence.recorded().rollback;
    ordinary(evidence).all(|branch| {
        let state = evidence.state(branch);
        match evidence.kind(branch) {
            _ if evidence.forgot(branch) => true,
            Kind::Deferred | Kind::Local => true,
            Kind::TwoPhase if rolled_back => state != Some(GuardState::Prepared),
            Kind::Compensable => !rolled_back || state != Some(GuardState::Executed),
            Kind::TwoPhase => {
                matches!(state, Some(GuardState::Committed | GuardState::ReadOnly))
            }
        }
    })
}

/// A saga that does not commit is undone: compensations run in the reverse of the plan's order, and
/// when the transaction ends none is missing and none was too many (Garcia-Molina and Salem,
/// "Sagas", SIGMOD 1987).
///
/// # Errors
/// Names the branch that was out of its turn, or what is not undone.
pub fn saga_undone<E: Evidence + ?Sized>(evidence: &E) -> Verdict {
    let saga = ordinary(evidence).filter(|one| evidence.kind(*one) == Kind::Compensable);
    for branch in saga {
        let stands = evidence.state(branch) == Some(GuardState::Executed);
        for before in evidence.after(branch) {
            let undone = evidence.applied(usize::from(*before), Operation::Compensate) > 0;
            check(!(stands && undone), || {
                format!("branch {before} was compensated before branch {branch}")
            })?;
        }
        matched_at_the_end(evidence, branch)?;
    }
    Ok(())
}

/// Deferred work is done if and only if the transaction commits (a notice may ask for a rollback as
/// well): never before the decision, and without fail before the end (Helland, "Life beyond
/// Distributed Transactions", CIDR 2007, on messages that leave only with the commit).
///
/// # Errors
/// Names the branch that worked too early, or for nothing, or never.
pub fn deferred_iff_committed<E: Evidence + ?Sized>(evidence: &E) -> Verdict {
    let recorded = evidence.recorded();
    for branch in ordinary(evidence).filter(|one| evidence.kind(*one) == Kind::Deferred) {
        let due = recorded.commit || evidence.also_on_rollback(branch) && recorded.rollback;
        let worked = evidence.applied(branch, Operation::Execute) > 0;
        check(due || !worked, || format!("deferred branch {branch} worked, and nothing commits"))?;
        matched_at_the_end(evidence, branch)?;
    }
    Ok(())
}

/// Of a transaction that has ended, the effects of a branch match the outcome.
fn matched_at_the_end<E: Evidence + ?Sized>(evidence: &E, branch: usize) -> Verdict {
    let outcome = evidence.recorded().iter().next().filter(|_| evidence.ended());
    outcome.map_or(Ok(()), |outcome| exactly_matched(evidence, branch, outcome))
}

/// A transaction is forgotten only after every participant has settled: what makes presumption safe
/// (Mohan, Lindsay and Obermarck 1986, section 3.1). Phase two is exactly matched by then: each
/// branch that voted is committed once or rolled back once, whatever it was sent. What a saga and
/// deferred work owe is [`saga_undone`]'s and [`deferred_iff_committed`]'s.
///
/// # Errors
/// Names the branch that has not.
pub fn forgotten_last<E: Evidence + ?Sized>(evidence: &E) -> Verdict {
    if !evidence.ended() {
        return Ok(());
    }
    let Some(outcome) = evidence.recorded().iter().next() else { return Ok(()) };
    for branch in ordinary(evidence) {
        check(!is_in_doubt(evidence, branch), || {
            format!("it ended with branch {branch} in doubt")
        })?;
        if matches!(evidence.kind(branch), Kind::TwoPhase | Kind::Local) {
            exactly_matched(evidence, branch, outcome)?;
        }
    }
    Ok(())
}

/// Each branch's business effects match the outcome: all of it, or nothing that is not undone.
///
/// # Errors
/// Names the branch and the effect that does not match.
pub fn exactly_matched<E: Evidence + ?Sized>(
    evidence: &E,
    branch: usize,
    outcome: Outcome,
) -> Verdict {
    if branch >= evidence.on_record() || evidence.by_hand(branch) {
        return Ok(());
    }
    let applied = |operation| evidence.applied(branch, operation);
    let kind = evidence.kind(branch);
    let in_one = kind == Kind::TwoPhase && applied(Operation::CommitOnePhase) > 0;
    let forward = if in_one { Operation::CommitOnePhase } else { forward(kind) };
    let (finishes, undoes) = match kind {
        Kind::TwoPhase if in_one => (None, Some(Operation::Rollback)),
        Kind::Local | Kind::Deferred => (None, None),
        Kind::TwoPhase => (Some(Operation::Commit), Some(Operation::Rollback)),
        Kind::Compensable => (None, Some(Operation::Compensate)),
    };
    let done = applied(forward);
    let (finished, undone) = (finishes.map(applied), undoes.map(applied));
    let reads_only = evidence.state(branch) == Some(GuardState::ReadOnly);
    let right = match outcome {
        Outcome::Commit => {
            reads_only || (done == 1 && finished.unwrap_or(1) == 1 && undone.unwrap_or(0) == 0)
        }
        Outcome::Rollback if evidence.also_on_rollback(branch) => done == 1,
        Outcome::Rollback => finished.unwrap_or(0) == 0 && undone.unwrap_or(0) == done,
    };
    check(right, || {
        format!(
            "branch {branch} after {}: {forward:?} was applied {done} times, finished \
             {finished:?}, undone {undone:?}",
            outcome.as_str()
        )
    })
}

/// Every rule of this file, each with what it says of this evidence.
pub fn each<E: Evidence + ?Sized>(evidence: &E) -> [(&'static str, Verdict); 11] {
    [
        (names::AGREEMENT, agreement(evidence)),
        (names::STABILITY, stability(evidence)),
        (names::SETTLED_STAYS, settled_stays_settled(evidence)),
        (names::COMMIT_VALIDITY, commit_validity(evidence)),
        (names::DURABLE_FIRST, durable_before_visible(evidence)),
        (names::AT_MOST_ONCE, at_most_once(evidence)),
        (names::IN_ORDER, in_order(evidence)),
        (names::PLAN_ORDER, plan_order(evidence)),
        (names::SAGA, saga_undone(evidence)),
        (names::DEFERRED, deferred_iff_committed(evidence)),
        (names::FORGOTTEN_LAST, forgotten_last(evidence)),
    ]
}

/// The rules that need no participant's word, each with what it says: what a coordinator's own
/// history can be judged by.
pub fn each_of_the_coordinator<E: Evidence + ?Sized>(evidence: &E) -> [(&'static str, Verdict); 3] {
    let both: Outcomes = evidence.recorded().and(evidence.told());
    let agree = check(!both.are_both(), || "both decisions are in force".to_owned());
    [
        (names::AGREEMENT, agree),
        (names::STABILITY, stability(evidence)),
        (names::DURABLE_FIRST, durable_before_visible(evidence)),
    ]
}

/// Looks at every rule of this file; the first that does not hold, with what is wrong.
///
/// # Errors
/// The rule's name and its words.
pub fn all<E: Evidence + ?Sized>(evidence: &E) -> Result<(), (&'static str, String)> {
    first(each(evidence))
}

/// The same for the rules that need no participant's word.
///
/// # Errors
/// The rule's name and its words.
pub fn of_the_coordinator<E: Evidence + ?Sized>(
    evidence: &E,
) -> Result<(), (&'static str, String)> {
    first(each_of_the_coordinator(evidence))
}

fn first<const N: usize>(
    verdicts: [(&'static str, Verdict); N],
) -> Result<(), (&'static str, String)> {
    verdicts.into_iter().try_for_each(|(name, verdict)| verdict.map_err(|problem| (name, problem)))
}
