//! What an initiator may do with an interactive transaction, and what becomes of one that is left.

use crate::check;

#[test]
fn branches_are_enlisted_and_committed() {
    check(
        "begin open=60000 => [begun] tell-begun
         enlist a => [enlisted a] enlisted(a)
         enlist b! => [enlisted b] enlisted(b)
         enlist m:deferred => [enlisted m] enlisted(m)
         commit => prepare(a)
         commit =>
         a yes => [commit all_yes] tell-commit commit(a) commit(b)
         b ack =>
         a ack => execute(m)
         m yes => [finished m] [ended] tell-ended",
    );
}

#[test]
fn the_same_branch_twice_is_one_branch_and_another_content_is_refused() {
    check(
        "begin open=60000 => [begun] tell-begun
         enlist a => [enlisted a] enlisted(a)
         enlist a => enlisted(a)
         enlist a:compensable => conflict
         enlist b:deferred! => phase_one_by_unsafe",
    );
}

#[test]
fn nothing_is_enlisted_after_the_request_to_commit_or_the_decision() {
    check(
        "enlist a => unknown
         begin open=60000 a => [begun] tell-begun
         commit => prepare(a)
         enlist b => not open: preparing
         a yes => [commit all_yes] tell-commit commit(a)
         enlist b => not open: committing
         a ack => [ended] tell-ended
         enlist b => unknown",
    );
    check(
        "begin a b => [begun] tell-begun prepare(a) prepare(b)
         enlist c => not open: preparing
         commit =>",
    );
}

#[test]
fn an_abandoned_one_rolls_back_what_its_initiator_may_have_done() {
    check(
        "begin open=60000 a! b s:compensable! => [begun] tell-begun
         tick => deadline: [rollback abandoned] tell-rollback rollback(a) compensate(s)
         a ack =>
         s ack => [finished s] [ended] tell-ended",
    );
}

#[test]
fn nothing_to_do_is_committed_at_once() {
    check(
        "begin open=60000 => [begun] tell-begun
         commit => [commit all_yes] [ended] tell-commit tell-ended",
    );
}

#[test]
fn an_open_one_survives_a_restart_and_its_initiator_asks_again() {
    check(
        "begin open=60000 a b! => [begun] tell-begun
         commit => prepare(a)
         crash =>
         enlist c => [enlisted c] enlisted(c)
         commit => prepare(a) prepare(c)
         a yes =>
         c yes => [commit all_yes] tell-commit commit(a) commit(b) commit(c)",
    );
    check(
        "begin open=60000 a b! => [begun] tell-begun
         commit => prepare(a)
         crash =>
         rollback => [rollback requested] tell-rollback rollback(a) rollback(b)",
    );
}

#[test]
fn a_rollback_is_told_to_whoever_may_have_worked() {
    check(
        "begin open=60000 a! b n:deferred* => [begun] tell-begun
         rollback => [rollback requested] tell-rollback rollback(a)
         a lost =>
         tick => retry a: rollback(a)#2
         a ack => execute(n)
         n yes => [finished n] [ended] tell-ended",
    );
}

#[test]
fn deferred_work_waits_for_its_delay() {
    check(
        "begin a m:deferred+50 n:deferred<m => [begun] tell-begun prepare(a)
         a yes => [commit all_yes] tell-commit commit(a)
         retry =>
         a ack =>
         tick => retry m: execute(m)
         m yes => [finished m] execute(n)
         n yes => [finished n] [ended] tell-ended",
    );
    check(
        "begin a m:deferred+50 => [begun] tell-begun prepare(a)
         a yes => [commit all_yes] tell-commit commit(a)
         crash => commit(a)
         tick => retry m:
         a ack => execute(m)
         crash => commit(a)
         a ack =>
         tick => retry m: execute(m)",
    );
}

#[test]
fn what_comes_last_waits_for_deferred_work_that_is_enlisted_after_it() {
    check(
        "begin open=60000 l:deferred$ => [begun] tell-begun
         enlist m:deferred => [enlisted m] enlisted(m)
         enlist n:deferred<l => after_unsafe
         commit => [commit all_yes] tell-commit execute(m)
         m lost =>
         crash => execute(m)
         m yes => [finished m] execute(l)
         l yes => [finished l] [ended] tell-ended",
    );
    check(
        "begin open=60000 l:deferred*$ => [begun] tell-begun
         enlist m:deferred => [enlisted m] enlisted(m)
         enlist n:deferred* => [enlisted n] enlisted(n)
         enlist a! => [enlisted a] enlisted(a)
         rollback => [rollback requested] tell-rollback rollback(a)
         a ack => execute(n)
         n yes => [finished n] execute(l)
         l yes => [finished l] [ended] tell-ended",
    );
}
