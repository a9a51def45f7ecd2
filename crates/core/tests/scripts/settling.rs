//! What happens where one participant alone decides: a commit in one phase, and an initiator's own
//! database.

use crate::check;

#[test]
fn a_single_branch_is_one_call() {
    check(
        "begin one-phase=1 a => [begun] tell-begun commit_one_phase(a)
         a yes => [commit all_yes] [ended] tell-commit tell-ended",
    );
    check(
        "begin one-phase=1 a => [begun] tell-begun commit_one_phase(a)
         a readonly => [commit all_yes] [ended] tell-commit tell-ended",
    );
    check(
        "begin one-phase=1 a => [begun] tell-begun commit_one_phase(a)
         a no => [rollback voted_no] tell-rollback rollback(a)
         a ack => [ended] tell-ended",
    );
    check("begin one-phase=1 a b => [begun] tell-begun prepare(a) prepare(b)");
    check("begin one-phase=1 a m:deferred => [begun] tell-begun prepare(a)");
}

#[test]
fn one_who_does_not_know_it_is_asked_to_prepare() {
    check(
        "begin one-phase=1 a => [begun] tell-begun commit_one_phase(a)
         a unsupported => prepare(a)#2
         a yes => [commit all_yes] tell-commit commit(a)",
    );
}

#[test]
fn not_to_know_it_says_nothing_about_another_copy_of_the_call() {
    check(
        "begin one-phase=1 a => [begun] tell-begun commit_one_phase(a)
         a lost =>
         tick => retry a: commit_one_phase(a)#2
         a unsupported => prepare(a)#3
         tick => deadline: tell-settling rollback(a)
         a already-committed => [commit settled_by_participant] [ended] tell-commit tell-ended",
    );
}

#[test]
fn a_deadline_decides_nothing_that_the_participant_may_have_decided() {
    check(
        "begin one-phase=1 a => [begun] tell-begun commit_one_phase(a)
         tick => deadline: tell-settling rollback(a)
         a lost =>
         rollback =>
         tick => retry a: rollback(a)#2
         a already-committed => [commit settled_by_participant] [ended] tell-commit tell-ended",
    );
    check(
        "begin one-phase=1 a => [begun] tell-begun commit_one_phase(a)
         tick => deadline: tell-settling rollback(a)
         a commit_one_phase 1 yes =>
         a ack => [rollback prepare_timeout] [ended] tell-rollback tell-ended",
    );
}

#[test]
fn a_restart_asks_what_became_of_it() {
    check(
        "begin one-phase=1 a => [begun] tell-begun commit_one_phase(a)
         crash => tell-settling rollback(a)
         a already-committed => [commit settled_by_participant] [ended] tell-commit tell-ended",
    );
    check(
        "begin one-phase=1 a => [begun] tell-begun commit_one_phase(a)
         crash => tell-settling rollback(a)
         a ack => [rollback coordinator_restarted] [ended] tell-rollback tell-ended",
    );
}

#[test]
fn one_that_answers_nothing_is_asked_until_it_does_and_parked() {
    check(
        "begin one-phase=1 park=2 a => [begun] tell-begun commit_one_phase(a)
         tick => deadline: tell-settling rollback(a)
         a lost =>
         tick => retry a: rollback(a)#2
         a lost => parked(a)
         tick => retry a: rollback(a)#3
         a ack => [rollback prepare_timeout] [ended] tell-rollback tell-ended",
    );
}

#[test]
fn a_limit_for_the_whole_decides_nothing_either() {
    check(
        "begin one-phase=1 limit=100 a => [begun] tell-begun commit_one_phase(a)
         tick => limit: tell-settling rollback(a)
         a already-committed => [commit settled_by_participant] [ended] tell-commit tell-ended",
    );
    check(
        "begin one-phase=1 limit=5001 a => [begun] tell-begun commit_one_phase(a)
         tick => deadline: tell-settling rollback(a)
         tick => limit: tell-overdue
         a ack => [rollback prepare_timeout] [ended] tell-rollback tell-ended",
    );
}

#[test]
fn a_message_goes_out_after_the_initiators_own_commit() {
    check(
        "begin open=60000 l:local m:deferred => [begun] tell-begun
         commit => [commit all_yes] tell-commit execute(m)
         m yes => [finished m] [ended] tell-ended",
    );
}

#[test]
fn a_silent_initiators_database_decides() {
    check(
        "begin open=60000 l:local m:deferred => [begun] tell-begun
         tick => deadline: tell-settling inquire(l)
         l lost =>
         tick => retry l: inquire(l)#2
         l yes => [commit settled_by_participant] tell-commit execute(m)",
    );
    check(
        "begin open=60000 l:local m:deferred => [begun] tell-begun
         tick => deadline: tell-settling inquire(l)
         l no => [rollback abandoned] [ended] tell-rollback tell-ended",
    );
}

#[test]
fn an_initiator_that_comes_back_while_its_database_is_asked_is_heard() {
    check(
        "begin open=60000 l:local m:deferred => [begun] tell-begun
         tick => deadline: tell-settling inquire(l)
         enlist n:deferred => not open: settling
         commit => [commit all_yes] tell-commit execute(m)
         l no =>",
    );
}

#[test]
fn a_rollback_of_local_work_asks_first() {
    check(
        "begin open=60000 l:local m:deferred => [begun] tell-begun
         rollback => tell-settling inquire(l)
         l no => [rollback requested] [ended] tell-rollback tell-ended",
    );
    check(
        "begin open=60000 l:local m:deferred => [begun] tell-begun
         crash =>
         tick => deadline: tell-settling inquire(l)
         crash =>
         tick => deadline: tell-settling inquire(l)
         l yes => [commit settled_by_participant] tell-commit execute(m)",
    );
}

#[test]
fn what_was_never_sent_is_rolled_back_without_asking() {
    check(
        "begin one-phase=1 a => [begun] tell-begun commit_one_phase(a)
         a unsent =>
         tick => retry a: commit_one_phase(a)#2
         a unsent =>
         rollback => [rollback requested] tell-rollback rollback(a)",
    );
    check(
        "begin one-phase=1 a => [begun] tell-begun commit_one_phase(a)
         a unsent =>
         tick => retry a: commit_one_phase(a)#2
         a lost =>
         rollback => tell-settling rollback(a)",
    );
}
