//! What an operator's word on a branch changes.

use crate::check;

#[test]
fn a_word_as_decided_ends_what_is_owed() {
    check(
        "begin a b => [begun] tell-begun prepare(a) prepare(b)
         a yes =>
         b yes => [commit all_yes] tell-commit commit(a) commit(b)
         a ack =>
         b lost =>
         resolve b committed => [resolved b commit] [ended] resolved(b) tell-ended committed
         resolve b committed => refused: Unknown",
    );
}

#[test]
fn a_word_against_the_decision_needs_a_reason_and_makes_it_mixed() {
    check(
        "begin a b m:deferred => [begun] tell-begun prepare(a) prepare(b)
         a yes =>
         b yes => [commit all_yes] tell-commit commit(a) commit(b)
         a ack =>
         resolve b rolled_back => refused: ReasonMissing
         resolve a committed => refused: Settled
         resolve b rolled_back lost => [resolved b rollback] resolved(b) execute(m)
         b ack =>
         m yes => [finished m] [ended] tell-ended mixed",
    );
}

#[test]
fn a_word_against_the_participants_is_a_hazard() {
    check(
        "begin a b => [begun] tell-begun prepare(a) prepare(b)
         a yes =>
         b yes => [commit all_yes] tell-commit commit(a) commit(b)
         a ack =>
         b already-rolled-back =>
         resolve b committed => [resolved b commit disputed] [ended] resolved(b) tell-ended hazard",
    );
}

#[test]
fn before_the_decision_only_the_one_that_alone_decides_can_be_settled() {
    check(
        "begin a b => [begun] tell-begun prepare(a) prepare(b)
         resolve a committed why => refused: Undecided",
    );
    check(
        "begin one-phase=1 a => [begun] tell-begun commit_one_phase(a)
         resolve a committed => refused: Undecided
         tick => deadline: tell-settling rollback(a)
         resolve a committed => [resolved a commit] [commit settled_by_participant] [ended] \
            resolved(a) tell-commit tell-ended committed",
    );
    check(
        "begin open=60000 l:local m:deferred => [begun] tell-begun
         tick => deadline: tell-settling inquire(l)
         l lost =>
         resolve l rolled_back gone => [resolved l rollback] [rollback abandoned] [ended] \
            resolved(l) tell-rollback tell-ended rolled_back",
    );
}

#[test]
fn a_word_survives_a_crash() {
    check(
        "begin a b m:deferred => [begun] tell-begun prepare(a) prepare(b)
         a yes =>
         b yes => [commit all_yes] tell-commit commit(a) commit(b)
         resolve b rolled_back lost => [resolved b rollback] resolved(b)
         crash => commit(a)
         rewrite => [snapshot]
         crash => commit(a)
         a ack => execute(m)
         m yes => [finished m] [ended] tell-ended mixed",
    );
}
