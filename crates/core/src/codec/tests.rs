//! What is written is read back, other bytes are refused, and no bytes at all bring the core down.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::*;
use crate::timeline::Timeline;
use crate::transaction::{Branch, Progress};
use crate::{
    Answer, Coordinator, CoordinatorConfig, Decision, Durable, Effect, Event, Observation,
    Transaction, What, splitmix64,
};

fn branch_plan(kind: Kind, after: &[u16]) -> BranchPlan {
    BranchPlan {
        after: after.to_vec(),
        payload: Arc::from(&[7_u8, 0, 255][..]),
        payload_in_phase_two: kind == Kind::TwoPhase,
        ..BranchPlan::new(format!("b{}", kind as u8), "http://p/1", kind)
    }
}

fn options() -> Options {
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

fn plan() -> Plan {
    let branches = vec![
        branch_plan(Kind::TwoPhase, &[]),
        branch_plan(Kind::Compensable, &[0]),
        branch_plan(Kind::Deferred, &[0, 1]),
    ];
    Plan { open: false, branches, options: options() }
}

/// What version 2 added.
fn open_plan() -> Plan {
    let special =
        BranchPlan { by_initiator: true, refers: vec![0], ..branch_plan(Kind::Compensable, &[0]) };
    let late =
        BranchPlan { delay_ms: 300, also_on_rollback: true, ..branch_plan(Kind::Deferred, &[]) };
    let mut branches = plan().branches;
    branches.extend([special, late, branch_plan(Kind::Local, &[])]);
    let options = Options { open_timeout_ms: 70_001, one_phase: true, ..options() };
    Plan { open: true, branches, options }
}

fn resolution() -> Resolution {
    let (by, reason) = ("ann".into(), "paid by hand".into());
    Resolution { outcome: Outcome::Commit, by, reason, at: 1_700_000_000_011, disputed: true }
}

fn whats() -> Vec<What> {
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

fn new_whats() -> Vec<What> {
    vec![
        What::Enlisted,
        What::CommitRequested,
        What::Unsupported(Operation::CommitOnePhase),
        What::Resolved(Outcome::Rollback),
    ]
}

/// Does not compile when something new is not listed; then add it to [`new_whats`] too.
fn number_of_what(what: &What) -> u8 {
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

fn reasons() -> Vec<Reason> {
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
fn number_of_reason(reason: &Reason) -> u8 {
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

fn observations() -> Vec<Observation> {
    let seen = |(at, what)| Observation { at, branch: Some((at % 3) as u16), what };
    let mut all: Vec<_> = (1_700_000_000_000..).zip(whats()).map(seen).collect();
    all[7].branch = None;
    all
}

fn undecided() -> Transaction {
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
        options: options(),
        branches,
        executing_since: Some(1_700_000_000_005),
        decision: None,
        ended_at: None,
        overdue: false,
        timeline: Timeline { unsaved: Vec::new(), saved: observations(), dropped: 3 },
        open: false,
        closed_at: Some(1_700_000_000_000),
        settling: None,
    }
}

fn decided(reason: Reason) -> Transaction {
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

fn facts() -> Vec<Fact> {
    let ballots = vec![Ballot::NotCalled, Ballot::Unanswered, Ballot::Yes];
    let results: Results = vec![(0, "1".into()), (2, "\"two\"".into())];
    let mut facts = vec![
        Fact::Begun { fingerprint: 0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10, plan: plan() },
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
fn new_facts() -> Vec<Fact> {
    let mut open = undecided();
    (open.open, open.closed_at, open.executing_since) = (true, None, None);
    open.branches.extend(open_plan().branches.into_iter().map(Branch::new));
    let mut settled = decided(Reason::Settled);
    settled.branches[0].resolution = Some(resolution());
    settled.branches[1].ballot = Ballot::Committed;
    settled.branches[2].ballot = Ballot::RolledBack;
    let abandoned = Fact::Decided {
        outcome: Outcome::Rollback,
        reason: Reason::Abandoned,
        ballots: vec![Ballot::Committed, Ballot::RolledBack, Ballot::Yes],
        results: Vec::new(),
    };
    vec![
        Fact::Begun { fingerprint: 9, plan: open_plan() },
        Fact::Enlisted { branch: open_plan().branches.remove(3) },
        Fact::Resolved { branch: 1, resolution: resolution() },
        abandoned,
        Fact::Snapshot(Box::new(open)),
        Fact::Snapshot(Box::new(settled)),
    ]
}

/// Does not compile when something new is not listed; then add it to [`new_facts`] too.
fn number_of_fact(fact: &Fact) -> u8 {
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

fn record(fact: Fact) -> Record {
    let transaction = TransactionId::new("T-1:x.y_Z").unwrap();
    Record { transaction, at: 1_700_000_000_007, fact, observations: observations() }
}

fn old_samples() -> Vec<Record> {
    facts().into_iter().map(record).collect()
}

fn new_samples() -> Vec<Record> {
    let mut records: Vec<Record> = new_facts().into_iter().map(record).collect();
    for record in &mut records {
        let whats = new_whats().into_iter();
        record.observations = whats.map(|what| Observation { at: 5, branch: None, what }).collect();
    }
    records
}

fn samples() -> Vec<Record> {
    let mut all = old_samples();
    all.extend(new_samples());
    all
}

fn bytes_of(record: &Record) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_record(record, &mut bytes);
    bytes
}

#[test]
fn every_record_is_read_back_as_it_was_written() {
    for record in samples() {
        assert_eq!(decode_record(&bytes_of(&record)), Ok(record));
    }
    let numbers = |all: &mut dyn Iterator<Item = u8>| all.collect::<BTreeSet<u8>>();
    let facts = || samples().into_iter().map(|record| record.fact);
    assert_eq!(numbers(&mut facts().map(|fact| number_of_fact(&fact))), (1..=8).collect());
    let whats = || whats().into_iter().chain(new_whats());
    assert_eq!(numbers(&mut whats().map(|what| number_of_what(&what))), (1..=13).collect());
    let reasons = facts().filter_map(|fact| match fact {
        Fact::Decided { reason, .. } => Some(number_of_reason(&reason)),
        Fact::Snapshot(whole) => Some(number_of_reason(&whole.decision?.reason)),
        _ => None, // Nothing else has a reason.
    });
    assert_eq!(numbers(&mut { reasons }), (1..=9).collect());
}

#[test]
fn a_snapshot_leaves_out_what_a_crash_may_take() {
    let mut busy = undecided();
    let branch = &mut busy.branches[0];
    branch.in_flight = true;
    branch.attempt = 9;
    branch.failures = 8;
    branch.last_error = Some("refused".into());
    branch.retry_at = Some(5);
    branch.result_unsaved = true;
    let read = decode_record(&bytes_of(&record(Fact::Snapshot(Box::new(busy)))));
    assert_eq!(read, Ok(record(Fact::Snapshot(Box::new(undecided())))));
}

#[test]
fn every_truncated_record_is_refused() {
    for bytes in samples().iter().map(bytes_of) {
        for length in 0..bytes.len() {
            assert!(decode_record(&bytes[..length]).is_err(), "{length} of {bytes:?}");
        }
    }
}

#[test]
fn bytes_after_a_record_are_refused() {
    for mut bytes in samples().iter().map(bytes_of) {
        bytes.push(0);
        assert_eq!(decode_record(&bytes), Err(DecodeError::Malformed("end")));
    }
}

#[test]
fn another_version_is_told_from_damage() {
    for mut bytes in samples().iter().map(bytes_of) {
        bytes[0] = 3;
        assert_eq!(decode_record(&bytes), Err(DecodeError::NewerVersion(3)));
        bytes[0] = 0;
        assert_eq!(decode_record(&bytes), Err(DecodeError::Malformed("version")));
    }
}

/// What recovery would do with bytes: whatever decodes must also be safe to apply and to take up.
fn recover_from(bytes: &[u8]) {
    let Ok(read) = decode_record(bytes) else { return };
    let begun = record(facts().remove(0));
    for first in [None, Some(begun)] {
        let mut coordinator = Coordinator::new(CoordinatorConfig::default());
        let known = first.iter().all(|first| coordinator.apply(first).is_ok());
        if !known || coordinator.apply(&read).is_err() {
            continue;
        }
        let mut step = coordinator.resume(0);
        for _ in 0..8 {
            for effect in step.seal(0).1.release(Durable::up_to(0)) {
                if let Effect::Call(call) = effect {
                    let (branch, operation, attempt) = (call.branch, call.operation, call.attempt);
                    let (transaction, answer) = (call.transaction, Answer::Unknown("?".into()));
                    let event = Event::Answer { transaction, branch, operation, attempt, answer };
                    drop(coordinator.handle(0, event));
                }
            }
            let Some(timer) = coordinator.next_timer().cloned() else { break };
            step = coordinator.handle(timer.at, Event::Timer(timer));
        }
    }
}

#[test]
fn no_flipped_bit_brings_the_core_down() {
    for mut bytes in samples().iter().map(bytes_of) {
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            recover_from(&bytes);
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

#[test]
fn no_random_bytes_bring_the_core_down() {
    let samples: Vec<Vec<u8>> = samples().iter().map(bytes_of).collect();
    let mut state = 1;
    let mut random = |below: usize| {
        state += 1;
        (splitmix64(state) % below as u64) as usize
    };
    for _ in 0..200_000 {
        let length = random(64);
        let mut bytes: Vec<u8> = (0..length).map(|_| random(256) as u8).collect();
        let _ = decode_record(&bytes).is_ok(); // As it comes.
        bytes.insert(0, RECORD_VERSION);
        recover_from(&bytes);
    }
    for _ in 0..200_000 {
        let mut bytes = samples[random(samples.len())].clone();
        for _ in 0..=random(3) {
            let place = random(bytes.len());
            bytes[place] = random(256) as u8;
        }
        recover_from(&bytes);
    }
}

fn refused(change: impl FnOnce(&mut Transaction), expected: &'static str) {
    let mut transaction = decided(Reason::No { branch: 2, text: "no".into() });
    change(&mut transaction);
    let read = decode_record(&bytes_of(&record(Fact::Snapshot(Box::new(transaction)))));
    assert_eq!(read, Err(DecodeError::Malformed(expected)));
}

#[test]
fn numbers_of_branches_that_are_not_there_are_refused() {
    let mut none = plan();
    none.branches.clear();
    let mut unknown = plan();
    unknown.branches[0].after = vec![3];
    for (plan, expected) in [(none, "branches"), (unknown, "after")] {
        let read = decode_record(&bytes_of(&record(Fact::Begun { fingerprint: 1, plan })));
        assert_eq!(read, Err(DecodeError::Malformed(expected)));
    }
    refused(|transaction| transaction.branches.clear(), "branches");
    refused(|transaction| transaction.branches[1].plan.after = vec![3], "after");
    refused(|transaction| transaction.branches[1].progress = Progress::Undecided, "progress");
    refused(|transaction| transaction.decision = None, "progress");
    refused(|transaction| transaction.timeline.saved[0].branch = Some(3), "branch");
    refused(
        |transaction| {
            let reason = Reason::No { branch: 3, text: "no".into() };
            transaction.decision = Some(Decision { outcome: Outcome::Rollback, reason, at: 0 });
        },
        "branch",
    );
}

#[test]
fn records_that_do_not_fit_their_transaction_are_refused() {
    let fits = |fact, seen: u16| {
        let mut coordinator = Coordinator::new(CoordinatorConfig::default());
        coordinator.apply(&record(facts().remove(0))).unwrap();
        let mut record = record(fact);
        record.observations[0].branch = Some(seen);
        coordinator.apply(&record).is_ok()
    };
    let decided = |ballots: usize, number: u16, reason| Fact::Decided {
        outcome: Outcome::Rollback,
        reason,
        ballots: vec![Ballot::No; ballots],
        results: vec![(number, "1".into())],
    };
    let no = |branch| Reason::No { branch, text: "no".into() };
    assert!(fits(decided(3, 2, no(2)), 2));
    assert!(!fits(decided(3, 2, no(2)), 3));
    assert!(!fits(decided(3, 2, no(3)), 2));
    assert!(!fits(decided(3, 3, no(2)), 2));
    assert!(!fits(decided(2, 1, no(1)), 1));
    assert!(!fits(Fact::Finished { branch: 3 }, 0));
}

/// Records that are on somebody's disk must be read for ever: these bytes are never changed, only
/// added to.
#[test]
fn what_version_1_wrote_is_read_for_ever() {
    let written = include_str!("golden_version_1.hex");
    let samples = old_samples();
    assert_eq!(written.lines().count(), samples.len());
    for (line, expected) in written.lines().zip(samples) {
        assert_eq!(decode_record(&from_hex(line)), Ok(expected), "{line}");
    }
}

fn from_hex(line: &str) -> Vec<u8> {
    let digits: Vec<char> = line.chars().collect();
    let byte = |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

#[test]
fn the_bytes_of_version_2_never_change() {
    let hex = |record: &Record| {
        let bytes = bytes_of(record);
        bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}")) + "\n"
    };
    let written: String = samples().iter().map(hex).collect();
    let same = written == include_str!("golden_version_2.hex");
    assert!(same, "the format of version 2 has changed; written now:\n{written}");
}
