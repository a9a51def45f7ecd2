//! What is written is read back, other bytes are refused, and no bytes at all bring the core down.

use std::collections::BTreeSet;

use super::*;
use crate::branch::Progress;
use crate::{
    Answer, Coordinator, CoordinatorConfig, Decision, Durable, Effect, Event, Observation, Plan,
    Timeline, Transaction, splitmix64,
};
use samples::*;

mod samples;

fn bytes_of(record: &Record) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_record(record, &mut bytes);
    bytes
}

#[test]
fn every_record_is_read_back_as_it_was_written() {
    for record in samples() {
        read_whole(&bytes_of(&record));
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
    branch.last_error = Some(Box::new("refused".into()));
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

/// What recovery makes of a record that says all of a transaction is what applying it makes.
fn read_whole(bytes: &[u8]) {
    let read = RecordReader::default().whole(bytes);
    let decoded = decode_record(bytes);
    let (Some(read), Ok(record)) = (&read, &decoded) else {
        let is_whole =
            |record: &Record| matches!(record.fact, Fact::Begun { .. } | Fact::Snapshot(_));
        assert!(read.is_some() || !decoded.as_ref().is_ok_and(is_whole));
        assert!(read.is_none_or(|read| read.err() == decoded.err()));
        return;
    };
    let whole = read.as_ref().unwrap();
    assert_eq!(whole.id.as_ref(), Some(&record.transaction));
    assert_eq!(
        (whole.at, whole.spread),
        (record.at, whole.transaction.as_ref().unwrap().id.spread())
    );
    let mut coordinator = Coordinator::new(CoordinatorConfig::default());
    coordinator.apply(record).unwrap();
    let made = coordinator.iter().map(|one| Transaction { dormant: true, ..one.clone() });
    assert!(made.eq(whole.transaction.iter().map(|whole| (**whole).clone())));
}

/// What recovery would do with bytes: whatever decodes must also be safe to apply and to take up.
fn recover_from(bytes: &[u8]) {
    read_whole(bytes);
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
    unknown.branches[0].after = [3].into();
    for (plan, expected) in [(none, "branches"), (unknown, "after")] {
        let read =
            decode_record(&bytes_of(&record(Fact::Begun { fingerprint: 1, plan: Box::new(plan) })));
        assert_eq!(read, Err(DecodeError::Malformed(expected)));
    }
    refused(|transaction| transaction.branches.clear(), "branches");
    refused(
        |transaction| Arc::make_mut(&mut transaction.branches[1].plan).after = [3].into(),
        "after",
    );
    refused(|transaction| transaction.branches[1].progress = Progress::Undecided, "progress");
    refused(|transaction| transaction.decision = None, "progress");
    let mut unknown_branch = observations();
    unknown_branch[0].branch = Some(3);
    refused(|transaction| transaction.timeline = timeline(unknown_branch), "branch");
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
        let mut seen_there = observations();
        seen_there[0].branch = Some(seen);
        record.observations = seen_there.into_iter().collect();
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

/// The checkers' encoder of version 1 writes what version 1 wrote, and refuses what it never knew.
#[test]
fn what_stands_in_for_version_1_writes_its_bytes() {
    for (line, record) in include_str!("golden_version_1.hex").lines().zip(old_samples()) {
        let mut bytes = Vec::new();
        assert!(encode_version_1(&record, &mut bytes), "{record:?}");
        assert_eq!(bytes, from_hex(line), "{record:?}");
    }
    let later = Fact::Begun { fingerprint: 1, plan: Box::new(open_plan()) };
    let record = Record { fact: later, ..old_samples()[0].clone() };
    assert!(!encode_version_1(&record, &mut Vec::new()));
    assert_eq!(plan_of_version_1(&open_plan()), None);
    let asked = Plan { options: Options { one_phase: true, ..options() }, ..plan() };
    assert_eq!(plan_of_version_1(&asked), Some(plan()));
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

/// A request's fingerprint is a digest of these bytes, and stays in data folders.
#[test]
fn what_is_digested_tells_plans_apart_and_says_nothing_of_what_they_do_not_use() {
    let branch = |change: fn(&mut BranchPlan)| {
        let mut plan = plan();
        plan.options = Options { one_phase: true, ..plan.options };
        change(&mut plan.branches[2]);
        plan
    };
    let options = |change: fn(&mut Options)| {
        let mut plan = branch(|_| {});
        change(&mut plan.options);
        plan
    };
    let usual = branch(|_| {});
    let changed = [
        usual.clone(),
        Plan { open: true, ..usual.clone() },
        options(|options| options.open_timeout_ms += 1),
        options(|options| options.one_phase = false),
        options(|options| options.timeout_ms += 1),
        branch(|branch| branch.by_initiator = true),
        branch(|branch| branch.delay_ms = 1),
        branch(|branch| branch.also_on_rollback = true),
        branch(|branch| branch.comes_last = true),
        branch(|branch| branch.refers = [0].into()),
        branch(|branch| branch.payload = Arc::from(&[1][..])),
    ];
    let digested: BTreeSet<Vec<u8>> = changed.iter().map(digested_bytes).collect();
    assert_eq!(digested.len(), changed.len());
    // A record of version 1 from its time on, without its fingerprint and its observations.
    let old = from_hex(include_str!("golden_version_1.hex").lines().next().unwrap());
    let (start, plan_ends) = (1 + 1 + "T-1:x.y_Z".len() + 6, old.len());
    let digested = digested_bytes(&usual);
    let fields = &digested[2 + 16..digested.len() - 1];
    assert!(old[start..plan_ends].windows(fields.len()).any(|bytes| bytes == fields));
}

#[test]
fn what_is_packed_is_what_was_ended() {
    let mut open = decided(Reason::Abandoned);
    (open.open, open.closed_at, open.executing_since) = (true, None, None);
    let mut settled = decided(Reason::Settled);
    settled.branches[0].resolution = Some(Box::new(resolution()));
    settled.branches[1].payload = None;
    let mut all: Vec<Transaction> = reasons().into_iter().map(decided).collect();
    all.extend([open, settled, undecided()]);
    for one in &mut all {
        one.ended_at = Some(1_700_000_000_012);
    }
    let mut packed = PackedTransactions::default();
    let mut pack = |one| {
        packed.break_off();
        packed.push(one)
    };
    let places: Vec<usize> = all.iter().map(&mut pack).collect();
    assert_eq!((packed.len(), packed.is_empty()), (all.len(), false));
    let mut reader = RecordReader::default();
    let found: Vec<Transaction> = packed.iter().map(|one| one.unpack(&mut reader)).collect();
    assert_eq!(found, all);
    for (place, one) in places.into_iter().zip(&all) {
        assert_eq!(packed.at(place).id(), &one.id);
        assert_eq!(&packed.at(place).unpack(&mut reader), one);
    }
}

/// The same, of another name, with every time changed.
fn at_other_times(one: &Transaction, change: impl Fn(u64) -> u64) -> Transaction {
    let mut one = one.clone();
    one.id = TransactionId::new("another").unwrap();
    one.begun_at = change(one.begun_at);
    let decided = one.decision.as_mut().map(|decision| &mut decision.at);
    let others = [one.closed_at.as_mut(), one.ended_at.as_mut(), one.executing_since.as_mut()];
    others.into_iter().chain([decided]).flatten().for_each(|at| *at = change(*at));
    let seen = one.timeline.iter().map(|seen| Observation { at: change(seen.at), ..seen });
    one.timeline = Timeline::of_saved(seen.collect(), one.timeline.dropped());
    one
}

#[test]
fn what_is_packed_fits_the_mold_of_what_says_the_same_at_other_times() {
    let mut all: Vec<Transaction> = reasons().into_iter().map(decided).collect();
    let mut executing = decided(Reason::AllYes);
    executing.executing_since = Some(1_700_000_000_002);
    let mut owing = executing.clone();
    owing.branches[0].result = None;
    all.extend([executing, owing, undecided()]);
    all.iter_mut().for_each(|one| one.ended_at = Some(1_700_000_000_012));
    let others: Vec<Transaction> =
        all.iter().map(|one| at_other_times(one, |at| at + at % 7 * 1_000)).collect();
    let mut packed = PackedTransactions::default();
    let places: Vec<usize> = all.iter().chain(&others).map(|one| packed.push(one)).collect();
    let mut times = MoldTimes::default();
    for (number, place) in places[..all.len()].iter().enumerate() {
        let mold = packed.at(*place).mold();
        for (other, place) in places.iter().enumerate() {
            let fits = packed.at(*place).fits(&mold, &mut times);
            let one = all.iter().chain(&others).nth(other).unwrap();
            let says = |one: &Transaction| at_other_times(one, |_| 0);
            assert_eq!(fits, says(one) == says(&all[number]), "{number} and {other}");
            let expected = MoldTimes {
                begun_at: one.begun_at,
                decided_at: one.decision.as_ref().map_or(0, |decision| decision.at),
                ended_at: one.ended_at.unwrap(),
                seen: one.timeline.iter().map(|seen| seen.at).collect(),
            };
            assert!(!fits || times == expected, "{times:?} and not {expected:?}");
        }
    }
    // A time that needs other room than that of the mold is no time of the mold's.
    let mut early = all[0].clone();
    early.begun_at = 1;
    let place = packed.push(&early);
    assert!(!packed.at(place).fits(&packed.at(places[0]).mold(), &mut times));
}
