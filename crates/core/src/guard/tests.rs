//! The guard's rules, played: what each sequence of operations answers, and how often it works.

use super::*;
use Operation::{Commit, CommitOnePhase, Compensate, Execute, Inquire, Prepare, Rollback};

/// Plays operations against one branch whose service does what `work` says, and writes down
/// each answer and how often the service really worked.
fn play(work: &Work, operations: &[Operation]) -> (String, usize) {
    let (mut row, mut applied, mut answers) = (None, 0, Vec::new());
    for operation in operations {
        let reply = match judge(row.as_ref(), *operation, Mutations::default()) {
            Verdict::Apply => {
                applied += 1;
                let done = match operation {
                    Prepare | Execute | CommitOnePhase => work.clone(),
                    Commit | Rollback | Compensate | Inquire => Work::Done(None),
                };
                let (next, reply) = settle(*operation, done);
                row = Some(next);
                Ok(reply)
            }
            Verdict::Remember(next, reply) => {
                row = Some(next);
                Ok(reply)
            }
            Verdict::Repeat(reply) => Ok(reply),
            Verdict::Refuse(contradiction) => Err(contradiction),
        };
        answers.push(match reply {
            Ok(Reply::Yes(_)) => "yes".to_owned(),
            Ok(Reply::ReadOnly) => "read_only".to_owned(),
            Ok(Reply::No(reason)) => format!("no({reason})"),
            Ok(Reply::Acknowledged) => "ack".to_owned(),
            Err(contradiction) => contradiction.code().to_owned(),
        });
    }
    (answers.join(" "), applied)
}

fn check(work: &Work, operations: &[Operation], expected: &str, applied: usize) {
    let (answers, times) = play(work, operations);
    assert_eq!((answers.as_str(), times), (expected, applied), "{operations:?}");
}

fn yes() -> Work {
    Work::Done(None)
}

#[test]
fn repeated_operations_answer_alike_and_work_once() {
    check(&yes(), &[Prepare, Prepare, Commit, Commit, Commit], "yes yes ack ack ack", 2);
    check(&yes(), &[Prepare, Rollback, Rollback], "yes ack ack", 2);
    check(&yes(), &[Execute, Execute, Compensate, Compensate], "yes yes ack ack", 2);
}

#[test]
fn a_rollback_that_overtakes_its_prepare_is_remembered() {
    let late = format!("ack no({LATE_REASON}) ack");
    check(&yes(), &[Rollback, Prepare, Rollback], &late, 0);
    check(&yes(), &[Compensate, Execute, Compensate], &late, 0);
}

#[test]
fn a_no_is_repeated_with_its_reason() {
    let no = Work::No("overdrawn".to_owned());
    check(&no, &[Prepare, Prepare, Rollback], "no(overdrawn) no(overdrawn) ack", 1);
    check(&no, &[Execute, Compensate, Execute], "no(overdrawn) ack no(overdrawn)", 1);
}

#[test]
fn a_refused_execute_asks_the_service_again_until_it_is_compensated() {
    let no = Work::No("closed".to_owned());
    check(&no, &[Execute, Execute, Execute], "no(closed) no(closed) no(closed)", 3);
    check(&no, &[Execute, Compensate, Compensate, Execute], "no(closed) ack ack no(closed)", 1);
}

#[test]
fn contradictions_are_reported_never_acknowledged() {
    check(&yes(), &[Commit], "never_prepared", 0);
    check(&yes(), &[Rollback, Commit], "ack already_rolled_back", 0);
    check(&yes(), &[Prepare, Commit, Rollback], "yes ack already_committed", 2);
    check(&yes(), &[Prepare, Execute], "yes wrong_kind", 1);
    check(&yes(), &[Execute, Commit], "yes wrong_kind", 1);
}

#[test]
fn read_only_has_no_phase_two_but_tolerates_one() {
    check(&Work::ReadOnly, &[Prepare, Prepare, Commit], "read_only read_only ack", 1);
    check(&Work::ReadOnly, &[Prepare, Rollback], "read_only ack", 1);
}

#[test]
fn one_phase_commits_once_and_tells_who_asks_later() {
    check(&yes(), &[CommitOnePhase, CommitOnePhase, Prepare, Commit], "yes yes yes ack", 1);
    check(&yes(), &[CommitOnePhase, Rollback], "yes already_committed", 1);
    let late = format!("ack no({LATE_REASON})");
    check(&yes(), &[Rollback, CommitOnePhase], &late, 0);
    let no = Work::No("overdrawn".to_owned());
    check(&no, &[CommitOnePhase, CommitOnePhase, Rollback], "no(overdrawn) no(overdrawn) ack", 1);
    check(&Work::ReadOnly, &[CommitOnePhase, Rollback], "read_only ack", 1);
    check(&yes(), &[Prepare, CommitOnePhase, Commit], "yes wrong_kind ack", 2);
}

#[test]
fn an_inquiry_is_right_for_ever() {
    check(&yes(), &[CommitOnePhase, Inquire, Inquire], "yes yes yes", 1);
    let refused = format!("no({NOT_THERE_REASON}) no({LATE_REASON}) no({LATE_REASON})");
    check(&yes(), &[Inquire, CommitOnePhase, Inquire], &refused, 0);
}
