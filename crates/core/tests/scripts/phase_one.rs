//! Beginning, voting, and the decision.

use unanimity_core::CoordinatorConfig;

use super::world::{World, plan};
use crate::check;

#[test]
fn two_yes_commit() {
    check(
        "begin a b => [begun] tell-begun prepare(a) prepare(b)
         b yes =>
         a yes => [commit all_yes] tell-commit commit(a) commit(b)
         b ack =>
         a ack => [ended] tell-ended",
    );
}

#[test]
fn three_yes_commit() {
    check(
        "begin a b c => [begun] tell-begun prepare(a) prepare(b) prepare(c)
         b yes =>
         a yes =>
         c yes => [commit all_yes] tell-commit commit(a) commit(b) commit(c)
         a ack =>
         c ack =>
         b ack => [ended] tell-ended",
    );
}

#[test]
fn one_branch_commits_too() {
    check(
        "begin a => [begun] tell-begun prepare(a)
         a yes => [commit all_yes] tell-commit commit(a)
         a ack => [ended] tell-ended",
    );
}

#[test]
fn a_no_rolls_everybody_back_at_once() {
    check(
        "begin a b c => [begun] tell-begun prepare(a) prepare(b) prepare(c)
         a yes =>
         b no => [rollback voted_no] tell-rollback rollback(a) rollback(b) rollback(c)
         a ack =>
         b ack =>
         c ack => [ended] tell-ended",
    );
}

#[test]
fn read_only_branches_are_left_out_of_phase_two() {
    check(
        "begin a b => [begun] tell-begun prepare(a) prepare(b)
         a readonly =>
         b yes => [commit all_yes] tell-commit commit(b)
         b ack => [ended] tell-ended",
    );
    check(
        "begin a b => [begun] tell-begun prepare(a) prepare(b)
         a readonly =>
         b no => [rollback voted_no] tell-rollback rollback(b)
         b ack => [ended] tell-ended",
    );
}

#[test]
fn all_read_only_ends_at_once() {
    check(
        "begin a b => [begun] tell-begun prepare(a) prepare(b)
         a readonly =>
         b readonly => [commit all_yes] [ended] tell-commit tell-ended",
    );
}

#[test]
fn one_that_gives_back_what_it_has_read_is_read_only() {
    check(
        "begin a b => [begun] tell-begun prepare(a) prepare(b)
         a read =>
         b yes => [commit all_yes] tell-commit commit(b)
         b ack => [ended] tell-ended",
    );
}

#[test]
fn silence_rolls_back_everybody_that_was_called() {
    check(
        "begin a b => [begun] tell-begun prepare(a) prepare(b)
         a yes =>
         tick => deadline: [rollback prepare_timeout] tell-rollback rollback(a) rollback(b)
         a ack =>
         b ack => [ended] tell-ended",
    );
}

#[test]
fn a_prepare_without_an_answer_is_asked_again_until_the_deadline() {
    check(
        "begin a => [begun] tell-begun prepare(a)
         a lost =>
         tick => retry a: prepare(a)#2
         a lost =>
         tick => retry a: prepare(a)#3
         a yes => [commit all_yes] tell-commit commit(a)
         a ack => [ended] tell-ended",
    );
    check(
        "begin a => [begun] tell-begun prepare(a)
         a lost =>
         tick => retry a: prepare(a)#2
         tick => deadline: [rollback prepare_timeout] tell-rollback rollback(a)
         a ack => [ended] tell-ended",
    );
}

#[test]
fn what_is_no_vote_is_not_counted_as_one() {
    check(
        "begin a b => [begun] tell-begun prepare(a) prepare(b)
         a yes =>
         b ack =>
         tick => retry b: prepare(b)#2
         b yes => [commit all_yes] tell-commit commit(a) commit(b)",
    );
    check(
        "begin a:compensable => [begun] [executing a] tell-begun execute(a)
         a ack =>
         tick => retry a: execute(a)#2
         a yes => [commit all_yes] [ended] tell-commit tell-ended",
    );
}

#[test]
fn late_and_repeated_answers_change_nothing() {
    check(
        "begin a b => [begun] tell-begun prepare(a) prepare(b)
         a yes =>
         a prepare 1 yes =>
         a prepare 1 no =>
         b no => [rollback voted_no] tell-rollback rollback(a) rollback(b)
         b prepare 1 yes =>
         a prepare 1 yes =>
         a ack =>
         a rollback 1 ack =>
         a rollback 1 lost =>
         b ack => [ended] tell-ended
         b rollback 1 ack =>
         b prepare 1 no =>",
    );
}

#[test]
fn an_answer_to_an_older_attempt_counts_and_a_failure_of_one_does_not() {
    check(
        "begin a => [begun] tell-begun prepare(a)
         a lost =>
         tick => retry a: prepare(a)#2
         a prepare 1 lost =>
         a prepare 1 yes => [commit all_yes] tell-commit commit(a)
         a prepare 2 yes =>
         a prepare 2 lost =>
         a ack => [ended] tell-ended",
    );
}

#[test]
fn prepares_wait_for_those_before_them() {
    check(
        "begin a b<a c<a,b => [begun] tell-begun prepare(a)
         a yes => prepare(b)
         b readonly => prepare(c)
         c yes => [commit all_yes] tell-commit commit(a) commit(c)",
    );
}

#[test]
fn those_who_were_never_called_are_never_rolled_back() {
    check(
        "begin a b<a => [begun] tell-begun prepare(a)
         a no => [rollback voted_no] tell-rollback rollback(a)
         a ack => [ended] tell-ended",
    );
}

#[test]
fn visible_work_starts_when_every_prepare_has_voted() {
    check(
        "begin x:compensable a b => [begun] tell-begun prepare(a) prepare(b)
         a yes =>
         b yes => [executing x] execute(x)
         x yes => [commit all_yes] tell-commit commit(a) commit(b)
         a ack =>
         b ack => [ended] tell-ended",
    );
}

#[test]
fn visible_work_never_starts_after_a_no() {
    check(
        "begin x:compensable a => [begun] tell-begun prepare(a)
         a no => [rollback voted_no] tell-rollback rollback(a)
         a ack => [ended] tell-ended",
    );
}

#[test]
fn visible_work_has_a_deadline_of_its_own() {
    check(
        "begin a x:compensable => [begun] tell-begun prepare(a)
         a yes => [executing x] execute(x)
         tick => deadline: [rollback execute_timeout] tell-rollback rollback(a) compensate(x)
         a ack =>
         x ack => [finished x] [ended] tell-ended",
    );
}

#[test]
fn a_rollback_can_be_asked_for_until_the_decision() {
    check(
        "begin a b => [begun] tell-begun prepare(a) prepare(b)
         a yes =>
         rollback => [rollback requested] tell-rollback rollback(a) rollback(b)
         rollback =>
         a ack =>
         b ack => [ended] tell-ended
         rollback =>",
    );
    check(
        "begin a => [begun] tell-begun prepare(a)
         a yes => [commit all_yes] tell-commit commit(a)
         rollback =>
         a ack => [ended] tell-ended",
    );
}

#[test]
fn the_limit_for_the_whole_rolls_back_what_is_undecided() {
    check(
        "begin a limit=100 => [begun] tell-begun prepare(a)
         tick => limit: [rollback timeout] tell-rollback rollback(a)
         a ack => [ended] tell-ended",
    );
}

#[test]
fn an_id_is_begun_once() {
    check(
        "begin a => [begun] tell-begun prepare(a)
         begin a => refused same
         a yes => [commit all_yes] tell-commit commit(a)
         begin a => refused same",
    );
    let mut world = World::default();
    assert_eq!(world.begin("T", 1, plan(&["a"])), "[begun] tell-begun prepare(a)");
    assert_eq!(world.begin("T", 2, plan(&["a"])), "refused other");
}

#[test]
fn a_plan_that_is_not_acceptable_is_refused() {
    check("begin => refused no_branches");
    check("begin a a => refused branch_name_repeated");
}

#[test]
fn no_more_transactions_are_live_than_allowed() {
    let mut world =
        World::with(CoordinatorConfig { live_transactions_max: 1, ..Default::default() });
    assert_eq!(world.begin("T", 1, plan(&["a"])), "[begun] tell-begun prepare(a)");
    assert_eq!(world.begin("U", 1, plan(&["b"])), "refused capacity");
    assert_eq!(world.begin("T", 1, plan(&["a"])), "refused same");
    assert_eq!(world.play("a readonly"), "[commit all_yes] [ended] tell-commit tell-ended");
    assert_eq!(world.begin("U", 1, plan(&["b"])), "[begun] tell-begun prepare(b)");
}

#[test]
fn results_are_kept_unless_they_are_too_large() {
    use unanimity_core::{Answer, Event, Operation, RESULT_BYTES_MAX};
    let answers: [fn(String) -> Answer; 2] =
        [|text| Answer::Yes(Some(text.into())), |text| Answer::Read(text.into())];
    let sizes = [(RESULT_BYTES_MAX, true), (RESULT_BYTES_MAX + 1, false)];
    for ((bytes, kept), answer) in sizes.into_iter().flat_map(|size| answers.map(|one| (size, one)))
    {
        let mut world = World::default();
        world.play("begin a b");
        world.handle(Event::Answer {
            transaction: super::world::id("T"),
            branch: 0,
            operation: Operation::Prepare,
            attempt: 1,
            answer: answer("x".repeat(bytes)),
        });
        world.play("b yes");
        assert_eq!(world.live().unwrap().branch(0).result.is_some(), kept, "{bytes}");
        world.play("crash");
        assert_eq!(world.live().unwrap().branch(0).result.is_some(), kept, "{bytes}");
    }
}
