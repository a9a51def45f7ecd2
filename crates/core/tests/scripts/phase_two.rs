//! Carrying the decision out: retries, parking, compensation, deferred work.

use unanimity_core::RetryPolicy;

use super::world::World;
use crate::check;

#[test]
fn a_commit_is_sent_until_it_is_acknowledged() {
    check(
        "begin a b => [begun] tell-begun prepare(a) prepare(b)
         a yes =>
         b yes => [commit all_yes] tell-commit commit(a) commit(b)
         a lost =>
         b ack =>
         tick => retry a: commit(a)#2
         a no =>
         tick => retry a: commit(a)#3
         a ack => [ended] tell-ended",
    );
}

#[test]
fn a_branch_that_goes_on_failing_is_parked_once_and_drains_later() {
    check(
        "begin a park=3 => [begun] tell-begun prepare(a)
         a yes => [commit all_yes] tell-commit commit(a)
         a lost =>
         tick => retry a: commit(a)#2
         a lost =>
         tick => retry a: commit(a)#3
         a lost => parked(a)
         tick => retry a: commit(a)#4
         a lost =>
         tick => retry a: commit(a)#5
         a ack => [ended] tell-ended",
    );
}

#[test]
fn delays_grow_to_their_limit_and_are_long_once_parked() {
    let policy = RetryPolicy::default();
    let mut world = World::default();
    world.play("begin a");
    world.play("a yes");
    let mut longest = policy.delay_ms;
    for _ in 1..policy.park_after_attempts {
        world.play("a lost");
        let delay = world.next_in_ms();
        assert!(delay <= longest && delay * 2 >= longest, "{delay} of {longest}");
        longest = (longest * 2).min(policy.delay_max_ms);
        world.play("tick");
    }
    assert_eq!(world.play("a lost"), "parked(a)");
    for _ in 0..3 {
        let delay = world.next_in_ms();
        let parked = policy.parked_delay_ms;
        assert!(delay <= parked && delay * 2 >= parked, "{delay} of {parked}");
        world.play("tick");
        world.play("a lost");
    }
    assert_eq!(world.play("retry"), "commit(a)#16");
    assert_eq!(world.play("a ack"), "[ended] tell-ended");
}

#[test]
fn nothing_is_parked_in_phase_one() {
    check(
        "begin a park=2 => [begun] tell-begun prepare(a)
         a lost =>
         tick => retry a: prepare(a)#2
         a lost =>
         tick => retry a: prepare(a)#3
         a lost =>
         tick => retry a: prepare(a)#4
         a yes => [commit all_yes] tell-commit commit(a)
         a lost =>
         tick => retry a: commit(a)#2",
    );
}

#[test]
fn a_retry_can_be_asked_for() {
    check(
        "begin a b => [begun] tell-begun prepare(a) prepare(b)
         a yes =>
         b yes => [commit all_yes] tell-commit commit(a) commit(b)
         retry =>
         a lost =>
         retry => commit(a)#2
         a ack =>
         b ack => [ended] tell-ended
         retry =>",
    );
}

#[test]
fn the_decision_stands_past_the_limit_for_the_whole() {
    check(
        "begin a limit=100 => [begun] tell-begun prepare(a)
         a yes => [commit all_yes] tell-commit commit(a)
         tick => limit: tell-overdue
         a lost =>
         tick => retry a: commit(a)#2
         a ack => [ended] tell-ended",
    );
}

#[test]
fn compensations_run_in_the_reverse_order() {
    check(
        "begin x:compensable y:compensable<x z:compensable<y \
         => [begun] [executing x] tell-begun execute(x)
         x yes => [executing y] execute(y)
         y yes => [executing z] execute(z)
         z no => [rollback voted_no] tell-rollback compensate(z)
         z ack => [finished z] compensate(y)
         y lost =>
         tick => retry y: compensate(y)#2
         y ack => [finished y] compensate(x)
         x ack => [finished x] [ended] tell-ended",
    );
}

#[test]
fn only_what_was_called_is_compensated() {
    check(
        "begin x:compensable y:compensable<x z:compensable<y \
         => [begun] [executing x] tell-begun execute(x)
         x yes => [executing y] execute(y)
         y no => [rollback voted_no] tell-rollback compensate(y)
         y ack => [finished y] compensate(x)
         x ack => [finished x] [ended] tell-ended",
    );
}

#[test]
fn compensable_work_is_done_once_all_have_voted() {
    check(
        "begin x:compensable y:compensable \
         => [begun] [executing x y] tell-begun execute(x) execute(y)
         y yes =>
         x yes => [commit all_yes] [ended] tell-commit tell-ended",
    );
}

#[test]
fn deferred_work_waits_for_every_commit() {
    check(
        "begin a b d:deferred e:deferred<d => [begun] tell-begun prepare(a) prepare(b)
         a yes =>
         b yes => [commit all_yes] tell-commit commit(a) commit(b)
         b ack =>
         a lost =>
         tick => retry a: commit(a)#2
         a ack => execute(d)
         d no =>
         tick => retry d: execute(d)#2
         d yes => [finished d] execute(e)
         e ack => [finished e] [ended] tell-ended",
    );
}

#[test]
fn deferred_work_is_never_done_for_what_rolls_back() {
    check(
        "begin a d:deferred => [begun] tell-begun prepare(a)
         a no => [rollback voted_no] tell-rollback rollback(a)
         a ack => [ended] tell-ended",
    );
}

#[test]
fn deferred_work_alone_is_committed_at_once() {
    check(
        "begin d:deferred => [begun] [commit all_yes] tell-begun tell-commit execute(d)
         d yes => [finished d] [ended] tell-ended",
    );
}

#[test]
fn all_kinds_in_one_transaction() {
    check(
        "begin a x:compensable<a d:deferred<x => [begun] tell-begun prepare(a)
         a yes => [executing x] execute(x)
         x yes => [commit all_yes] tell-commit commit(a)
         a ack => execute(d)
         d yes => [finished d] [ended] tell-ended",
    );
}
