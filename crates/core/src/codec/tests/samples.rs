//! A sample of everything that can be written: what version 1 knew, and what version 2 added.

use std::sync::Arc;

use crate::branch::{Branch, Progress};
use crate::codec::Results;
use crate::timeline::Timeline;
use crate::*;

pub(super) fn branch_plan(kind: Kind, after: &[u16]) -> BranchPlan {
    BranchPlan {
        after: after.into(),
        payload: Arc::from(&[7_u8, 0, 255][..]),
        payload_in_phase_two: kind == Kind::TwoPhase,
        ..BranchPlan::new(format!("b{}", kind as u8), "http://p/1", kind)
    }
}

pub(super) fn options() -> Options {
    Options {
        prepare_timeout_ms: 5_001,
        execute_timeout_ms: 30_001,
        timeout_ms: 60_001,
        attempt_timeout_ms: 2_001,
        retry: RetryPolicy {
            delay_ms: 51,
            delay_max_ms: 10_001,
            park_after_attempts: 13,
            parked_delay_ms: 60_002,
        },
        open_timeout_ms: Options::default().open_timeout_ms,
        one_phase: false,
    }
}

pub(super) fn plan() -> Plan {
    let branches = vec![
        branch_plan(Kind::TwoPhase, &[]),
        branch_plan(Kind::Compensable, &[0]),
        branch_plan(Kind::Deferred, &[0, 1]),
    ];
    Plan { open: false, branches, options: options() }
}

/// What version 2 added.
pub(super) fn open_plan() -> Plan {
    let special = BranchPlan {
        by_initiator: true,
        refers: [0].into(),
        ..branch_plan(Kind::Compensable, &[0])
    };
    let late =
        BranchPlan { delay_ms: 300, also_on_rollback: true, ..branch_plan(Kind::Deferred, &[]) };
    let mut branches = plan().branches;
    branches.extend([special, late, branch_plan(Kind::Local, &[])]);
    let options = Options { open_timeout_ms: 70_001, one_phase: true, ..options() };
    Plan { open: true, branches, options }
}

pub(super) fn resolution() -> Resolution {
    let (by, reason) = ("ann".into(), "paid by hand".into());
    Resolution { outcome: Outcome::Commit, by, reason, at: 1_700_000_000_011, disputed: true }
}

pub(super) fn whats() -> Vec<What> {
    let operation = Operation::Commit;
    vec![
        What::Called { operation: Operation::Prepare, attempt: 300 },
        What::Yes(Operation::Execute),
        What::ReadOnly,
        What::No(Operation::Prepare, "overdrawn".into()),
        What::Acknowledged(Operation::Rollback),
        What::Failed { operation, error: "refused ü".into(), times: 70_000 },
        What::Parked,
        What::Recovered,
        What::Overdue,
    ]
}

pub(super) fn new_whats() -> Vec<What> {
    vec![
        What::Enlisted,
        What::CommitRequested,
        What::Unsupported(Operation::CommitOnePhase),
        What::Resolved(Outcome::Rollback),
    ]
}

/// Does not compile when something new is not listed; then add it to [`new_whats`] too.
pub(super) fn number_of_what(what: &What) -> u8 {
    match what {
        What::Called { operation: _, attempt: _ } => 1,
        What::Yes(_) => 2,
        What::ReadOnly => 3,
        What::No(_, _) => 4,
        What::Acknowledged(_) => 5,
        What::Failed { operation: _, error: _, times: _ } => 6,
        What::Parked => 7,
        What::Recovered => 8,
        What::Overdue => 9,
        What::Enlisted => 10,
        What::CommitRequested => 11,
        What::Unsupported(_) => 12,
        What::Resolved(_) => 13,
    }
}

pub(super) fn reasons() -> Vec<Reason> {
    vec![
        Reason::AllYes,
        Reason::No { branch: 1, text: "no stock".into() },
        Reason::PrepareTimeout,
        Reason::ExecuteTimeout,
        Reason::Timeout,
        Reason::Restarted,
        Reason::Requested("by hand".into()),
    ]
}

/// Does not compile when something new is not listed; then add it to [`new_facts`] too.
pub(super) fn number_of_reason(reason: &Reason) -> u8 {
    match reason {
        Reason::AllYes => 1,
        Reason::No { branch: _, text: _ } => 2,
        Reason::PrepareTimeout => 3,
        Reason::ExecuteTimeout => 4,
        Reason::Timeout => 5,
        Reason::Restarted => 6,
        Reason::Requested(_) => 7,
        Reason::Abandoned => 8,
        Reason::Settled => 9,
    }
}

pub(super) fn timeline(observations: Vec<Observation>) -> Timeline {
    Timeline::of_saved(observations.into_iter().collect(), 3)
}

pub(super) fn observations() -> Vec<Observation> {
    let seen = |(at, what)| Observation { at, branch: Some((at % 3) as u16), what };
    let mut all: Vec<_> = (1_700_000_000_000..).zip(whats()).map(seen).collect();
    all[7].branch = None;
    all
}

pub(super) fn undecided() -> Transaction {
    let mut branches: Vec<Branch> = plan().branches.into_iter().map(Branch::new).collect();
    let ballots = [Ballot::Yes, Ballot::Unanswered, Ballot::NotCalled];
    for (branch, ballot) in branches.iter_mut().zip(ballots) {
        branch.ballot = ballot;
    }
    branches[0].result = Some("{\"n\":1}".into());
    Transaction {
        id: TransactionId::new("T-1:x.y_Z").unwrap(),
        begun_at: 1_700_000_000_000,
        fingerprint: 0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10,
        options: Arc::new(options()),
        branches,
        executing_since: Some(1_700_000_000_005),
        decision: None,
        ended_at: None,
        overdue: false,
        set_aside: None,
        timeline: timeline(observations()),
        dormant: false,
        open: false,
        closed_at: Some(1_700_000_000_000),
        settling: None,
    }
}

pub(super) fn decided(reason: Reason) -> Transaction {
    let mut transaction = undecided();
    let outcome = Outcome::Rollback;
    transaction.decision = Some(Decision { outcome, reason, at: 1_700_000_000_009 });
    transaction.overdue = true;
    transaction.branches[0].progress = Progress::Owes(Operation::Rollback);
    transaction.branches[1].progress = Progress::Owes(Operation::Compensate);
    transaction.branches[1].ballot = Ballot::No;
    transaction.branches[2].progress = Progress::Done;
    transaction.branches[2].ballot = Ballot::ReadOnly;
    transaction
}

pub(super) fn facts() -> Vec<Fact> {
    let ballots = vec![Ballot::NotCalled, Ballot::Unanswered, Ballot::Yes];
    let results: Results = vec![(0, "1".into()), (2, "\"two\"".into())];
    let mut facts = vec![
        Fact::Begun {
            fingerprint: 0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10,
            plan: Box::new(plan()),
        },
        Fact::Executing {
            branches: vec![1, 2],
            ballots: ballots.clone(),
            results: results.clone(),
        },
        Fact::Finished { branch: 2 },
        Fact::Ended,
        Fact::Snapshot(Box::new(undecided())),
        Fact::Snapshot(Box::new(decided(Reason::AllYes))),
    ];
    for (reason, last) in reasons().into_iter().zip([Ballot::ReadOnly, Ballot::No].repeat(4)) {
        let outcome = if reason == Reason::AllYes { Outcome::Commit } else { Outcome::Rollback };
        let ballots = vec![Ballot::Yes, Ballot::Unanswered, last];
        facts.push(Fact::Decided { outcome, reason, ballots, results: results.clone() });
    }
    facts
}

/// What version 2 added.
pub(super) fn new_facts() -> Vec<Fact> {
    let mut open = undecided();
    (open.open, open.closed_at, open.executing_since) = (true, None, None);
    open.branches.extend(open_plan().branches.into_iter().map(Branch::new));
    let mut settled = decided(Reason::Settled);
    settled.branches[0].resolution = Some(Box::new(resolution()));
    settled.branches[1].ballot = Ballot::Committed;
    settled.branches[2].ballot = Ballot::RolledBack;
    let abandoned = Fact::Decided {
        outcome: Outcome::Rollback,
        reason: Reason::Abandoned,
        ballots: vec![Ballot::Committed, Ballot::RolledBack, Ballot::Yes],
        results: Vec::new(),
    };
    let last = BranchPlan {
        comes_last: true,
        also_on_rollback: true,
        ..branch_plan(Kind::Deferred, &[0])
    };
    vec![
        Fact::Begun { fingerprint: 9, plan: Box::new(open_plan()) },
        Fact::Enlisted { branch: open_plan().branches.remove(3) },
        Fact::Resolved { branch: 1, resolution: resolution() },
        abandoned,
        Fact::Snapshot(Box::new(open)),
        Fact::Snapshot(Box::new(settled)),
        Fact::Enlisted { branch: last },
    ]
}

/// Does not compile when something new is not listed; then add it to [`new_facts`] too.
pub(super) fn number_of_fact(fact: &Fact) -> u8 {
    match fact {
        Fact::Begun { fingerprint: _, plan: _ } => 1,
        Fact::Executing { branches: _, ballots: _, results: _ } => 2,
        Fact::Decided { outcome: _, reason: _, ballots: _, results: _ } => 3,
        Fact::Finished { branch: _ } => 4,
        Fact::Ended => 5,
        Fact::Snapshot(_) => 6,
        Fact::Enlisted { branch: _ } => 7,
        Fact::Resolved { branch: _, resolution: _ } => 8,
    }
}

pub(super) fn record(fact: Fact) -> Record {
    let transaction = TransactionId::new("T-1:x.y_Z").unwrap();
    Record {
        transaction,
        at: 1_700_000_000_007,
        fact,
        observations: observations().into_iter().collect(),
    }
}

pub(super) fn old_samples() -> Vec<Record> {
    facts().into_iter().map(record).collect()
}

pub(super) fn new_samples() -> Vec<Record> {
    let mut records: Vec<Record> = new_facts().into_iter().map(record).collect();
    for record in &mut records {
        let whats = new_whats().into_iter();
        record.observations = whats.map(|what| Observation { at: 5, branch: None, what }).collect();
    }
    records
}

pub(super) fn samples() -> Vec<Record> {
    let mut all = old_samples();
    all.extend(new_samples());
    all
}
