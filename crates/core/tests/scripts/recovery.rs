//! What a crash takes, and how recovery goes on.

use crate::check;

#[test]
fn what_was_preparing_rolls_back_everywhere() {
    check(
        "begin a b<a => [begun] tell-begun prepare(a)
         crash => [rollback coordinator_restarted] tell-rollback rollback(a) rollback(b)
         a ack =>
         b ack => [ended] tell-ended",
    );
    check(
        "begin a b => [begun] tell-begun prepare(a) prepare(b)
         a yes =>
         crash => [rollback coordinator_restarted] tell-rollback rollback(a) rollback(b)
         b prepare 1 yes =>
         a ack =>
         b ack => [ended] tell-ended",
    );
}

#[test]
fn a_beginning_that_was_not_durable_never_was() {
    check(
        "begin a => [begun] tell-begun prepare(a)
         crash losing 1 =>
         a yes =>
         begin a => [begun] tell-begun prepare(a)",
    );
}

#[test]
fn a_decision_that_was_not_durable_was_none() {
    check(
        "begin a => [begun] tell-begun prepare(a)
         a yes => [commit all_yes] tell-commit commit(a)
         crash losing 1 => [rollback coordinator_restarted] tell-rollback rollback(a)
         a ack => [ended] tell-ended",
    );
}

#[test]
fn a_commit_is_sent_again_until_acknowledged() {
    check(
        "begin a b => [begun] tell-begun prepare(a) prepare(b)
         a yes =>
         b yes => [commit all_yes] tell-commit commit(a) commit(b)
         a ack =>
         crash => commit(a) commit(b)
         b lost =>
         crash => commit(a) commit(b)
         a ack =>
         b ack => [ended] tell-ended
         crash =>",
    );
}

#[test]
fn a_rollback_is_sent_again_until_acknowledged() {
    check(
        "begin a b<a => [begun] tell-begun prepare(a)
         a no => [rollback voted_no] tell-rollback rollback(a)
         crash => rollback(a)
         a ack => [ended] tell-ended",
    );
}

#[test]
fn an_end_that_was_not_durable_costs_repeated_calls() {
    check(
        "begin a => [begun] tell-begun prepare(a)
         a yes => [commit all_yes] tell-commit commit(a)
         a ack => [ended] tell-ended
         crash losing 1 => commit(a)
         a ack => [ended] tell-ended",
    );
}

#[test]
fn read_only_votes_survive_with_the_decision() {
    check(
        "begin a b => [begun] tell-begun prepare(a) prepare(b)
         a readonly =>
         b yes => [commit all_yes] tell-commit commit(b)
         crash => commit(b)
         b ack => [ended] tell-ended",
    );
}

#[test]
fn visible_work_goes_on_where_it_was() {
    check(
        "begin a x:compensable y:compensable<x => [begun] tell-begun prepare(a)
         a yes => [executing x] execute(x)
         crash => execute(x)
         x yes => [executing y] execute(y)
         crash => execute(y)
         y yes => [commit all_yes] tell-commit commit(a)",
    );
}

#[test]
fn an_answer_that_was_not_durable_is_asked_for_again() {
    check(
        "begin x:compensable y:compensable \
         => [begun] [executing x y] tell-begun execute(x) execute(y)
         x yes =>
         crash => execute(x) execute(y)
         y no => [rollback voted_no] tell-rollback compensate(x) compensate(y)",
    );
}

#[test]
fn the_deadline_of_visible_work_is_armed_again() {
    check(
        "begin x:compensable => [begun] [executing x] tell-begun execute(x)
         crash => execute(x)
         tick => deadline: [rollback execute_timeout] tell-rollback compensate(x)
         crash => compensate(x)
         x ack => [finished x] [ended] tell-ended",
    );
}

#[test]
fn compensation_goes_on_where_it_was() {
    check(
        "begin x:compensable y:compensable<x => [begun] [executing x] tell-begun execute(x)
         x yes => [executing y] execute(y)
         y no => [rollback voted_no] tell-rollback compensate(y)
         y ack => [finished y] compensate(x)
         crash => compensate(x)
         x ack => [finished x] [ended] tell-ended",
    );
}

#[test]
fn deferred_work_goes_on_where_it_was() {
    check(
        "begin a d:deferred e:deferred<d => [begun] tell-begun prepare(a)
         a yes => [commit all_yes] tell-commit commit(a)
         a ack => execute(d)
         crash => commit(a)
         a ack => execute(d)
         d yes => [finished d] execute(e)
         crash => commit(a)
         a ack => execute(e)
         e yes => [finished e] [ended] tell-ended",
    );
}

#[test]
fn the_limit_for_the_whole_is_armed_again() {
    check(
        "begin a limit=100 => [begun] tell-begun prepare(a)
         a yes => [commit all_yes] tell-commit commit(a)
         tick => limit: tell-overdue
         crash => commit(a)
         tick => limit: tell-overdue
         a ack => [ended] tell-ended",
    );
}

#[test]
fn a_rewritten_transaction_goes_on_in_every_state() {
    check(
        "begin a b => [begun] tell-begun prepare(a) prepare(b)
         a yes =>
         rewrite => [snapshot]
         b yes => [commit all_yes] tell-commit commit(a) commit(b)
         rewrite => [snapshot]
         a lost =>
         crash => commit(a) commit(b)
         a ack =>
         b ack => [ended] tell-ended",
    );
    check(
        "begin a => [begun] tell-begun prepare(a)
         rewrite => [snapshot]
         crash => [rollback coordinator_restarted] tell-rollback rollback(a)
         rewrite => [snapshot]
         crash => rollback(a)",
    );
    check(
        "begin x:compensable y:compensable<x d:deferred \
         => [begun] [executing x] tell-begun execute(x)
         x yes => [executing y] execute(y)
         rewrite => [snapshot]
         crash => execute(y)
         y no => [rollback voted_no] tell-rollback compensate(y)
         rewrite => [snapshot]
         crash => compensate(y)
         y ack => [finished y] compensate(x)
         rewrite => [snapshot]
         crash => compensate(x)",
    );
}
