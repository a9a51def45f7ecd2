//! Gives the branches of a transaction other numbers, consistently, wherever a number stands. Only
//! for the model checker, which takes two states that differ in nothing but numbers for one state;
//! which branches may change places at all is the checker's to decide.
//!
//! `order[place]` is the old number of the branch that stands at `place` afterwards. Names and
//! participants' addresses stay with the place, so that interchangeable branches end up equal.

use std::sync::Arc;

use crate::live::Live;
use crate::schedule::Schedule;
use crate::shared::Shared;
use crate::{
    BranchPlan, Coordinator, Durable, Effect, Fact, Kind, Observation, Reason, Record, Sealed,
    Step, Timer, TimerPurpose, Transaction,
};

impl Coordinator {
    /// This coordinator with the branches of every transaction in another order.
    ///
    /// # Panics
    /// If `order` is not a permutation of the branches of every live transaction.
    #[doc(hidden)]
    #[must_use]
    pub fn with_branches_permuted(&self, order: &[u16]) -> Self {
        let mut schedule = Schedule::default();
        for timer in self.schedule.iter() {
            schedule.arm(permuted_timer(timer, order));
        }
        let mut transactions = Live::default();
        for transaction in self.transactions.values() {
            transactions.insert(permuted_transaction(transaction, order));
        }
        let (config, aside) = (self.config.clone(), self.aside.clone());
        Self { config, transactions, aside, schedule, shared: Shared::default() }
    }
}

impl Record {
    /// This record as it would be had the branches stood in another order.
    #[doc(hidden)]
    #[must_use]
    pub fn with_branches_permuted(&self, order: &[u16]) -> Self {
        let mut record = self.clone();
        permute_fact(&mut record.fact, order);
        let seen = self.observations.iter().map(|seen| permuted_observation(seen, order));
        record.observations = seen.collect();
        record
    }
}

impl Sealed {
    /// These effects as they would be had the branches stood in another order.
    #[doc(hidden)]
    #[must_use]
    pub fn with_branches_permuted(&self, order: &[u16]) -> Self {
        let position = self.position();
        let mut effects = self.clone().release(Durable::up_to(position));
        effects.iter_mut().for_each(|effect| permute_effect(effect, order));
        // Calls that leave together leave in the order of their branches.
        effects.sort_by_key(|effect| match effect {
            Effect::Call(call) => Some(call.branch),
            _ => None, // Everything else keeps its place before the calls.
        });
        Step { records: Vec::new(), effects }.seal(position).1
    }
}

fn new_number(old: u16, order: &[u16]) -> u16 {
    match (0..).zip(order).find(|(_, from)| **from == old) {
        Some((place, _)) => place,
        None => panic!("no place for branch {old} in {order:?}"),
    }
}

fn permuted_list<T: Clone>(list: &[T], order: &[u16]) -> Vec<T> {
    assert_eq!(list.len(), order.len(), "an order names each branch once");
    order.iter().map(|old| list[usize::from(*old)].clone()).collect()
}

fn permuted_timer(timer: &Timer, order: &[u16]) -> Timer {
    let purpose = match timer.purpose {
        TimerPurpose::Retry(number) => TimerPurpose::Retry(new_number(number, order)),
        other => other,
    };
    Timer { purpose, ..timer.clone() }
}

fn permuted_transaction(transaction: &Transaction, order: &[u16]) -> Transaction {
    let mut permuted = transaction.clone();
    permuted.branches = permuted_list(&transaction.branches, order);
    for (new, old) in permuted.branches.iter_mut().zip(&transaction.branches) {
        keep_name(Arc::make_mut(&mut new.plan), &old.plan, order);
    }
    if let Some(decision) = &mut permuted.decision {
        permute_reason(&mut decision.reason, order);
    }
    permuted.timeline = transaction.timeline.changed(|seen| permuted_observation(seen, order));
    permuted
}

fn keep_name(new: &mut BranchPlan, old_at_this_place: &BranchPlan, order: &[u16]) {
    new.name.clone_from(&old_at_this_place.name);
    new.participant.clone_from(&old_at_this_place.participant);
    let numbers = new.after.iter_mut().chain(&mut new.refers);
    numbers.for_each(|number| *number = new_number(*number, order));
}

fn permute_reason(reason: &mut Reason, order: &[u16]) {
    if let Reason::No { branch, .. } = reason {
        *branch = new_number(*branch, order);
    }
}

fn permuted_observation(mut observation: Observation, order: &[u16]) -> Observation {
    observation.branch = observation.branch.map(|number| new_number(number, order));
    observation
}

fn permute_fact(fact: &mut Fact, order: &[u16]) {
    match fact {
        Fact::Begun { plan, .. } => {
            let old = std::mem::take(&mut plan.branches);
            plan.branches = permuted_list(&old, order);
            for (new, old) in plan.branches.iter_mut().zip(&old) {
                keep_name(new, old, order);
            }
        }
        Fact::Executing { branches, ballots, results } => {
            branches.iter_mut().for_each(|number| *number = new_number(*number, order));
            branches.sort_unstable();
            *ballots = permuted_list(ballots, order);
            results.iter_mut().for_each(|(number, _)| *number = new_number(*number, order));
            results.sort_unstable();
        }
        Fact::Decided { reason, ballots, results, .. } => {
            permute_reason(reason, order);
            *ballots = permuted_list(ballots, order);
            results.iter_mut().for_each(|(number, _)| *number = new_number(*number, order));
            results.sort_unstable();
        }
        Fact::Finished { branch } | Fact::Resolved { branch, .. } => {
            *branch = new_number(*branch, order);
        }
        // The checker enlists into worlds whose branches keep their places.
        Fact::Enlisted { .. } | Fact::Ended => {}
        Fact::Snapshot(transaction) => **transaction = permuted_transaction(transaction, order),
    }
}

fn permute_effect(effect: &mut Effect, order: &[u16]) {
    match effect {
        // A call's name and address would have to stay with the place, which only the transaction
        // knows; the checker's world reads neither, so they are blanked instead.
        Effect::Call(call) => {
            call.branch = new_number(call.branch, order);
            call.plan = Arc::new(BranchPlan::new("", "", Kind::TwoPhase));
        }
        Effect::Parked(_, number) | Effect::Enlisted(_, number) | Effect::Resolved(_, number) => {
            *number = new_number(*number, order)
        }
        Effect::Ended(transaction) => {
            *transaction = permuted_transaction(transaction, order).into();
        }
        Effect::Begun(_)
        | Effect::Refused(..)
        | Effect::EnlistRefused(..)
        | Effect::Decided(..)
        | Effect::Settling(_)
        | Effect::Overdue(_) => {}
    }
}
