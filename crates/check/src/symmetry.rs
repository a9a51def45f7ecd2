//! Which states count as one: those that differ only in the numbers of interchangeable branches
//! (same kind, same answer, no place in any order). The representative is exact, one per class, so
//! that the count of states does not depend on the order in which they are met.

use std::hash::{Hash, Hasher};

use stateright::Representative;
use unanimity_core::{Fact, TimerPurpose};

use crate::digest::{self, Folding};
use crate::setup::Setup;
use crate::world::World;

/// The groups of branches that may change places; a group of one may not.
#[must_use]
pub fn groups(setup: &Setup) -> Vec<Vec<u16>> {
    let mut groups: Vec<Vec<u16>> = Vec::new();
    let branches = setup.branches;
    for (number, branch) in (0_u16..).zip(branches) {
        let in_an_order =
            !branch.after.is_empty() || branches.iter().any(|other| other.after.contains(&number));
        let alike = groups.iter_mut().find(|group| {
            let other = &branches[usize::from(group[0])];
            !in_an_order
                && other == branch
                && !branches.iter().any(|third| third.after.contains(&group[0]))
        });
        match alike {
            Some(group) => group.push(number),
            None => groups.push(vec![number]),
        }
    }
    groups
}

impl Representative for World {
    fn representative(&self) -> Self {
        let groups = groups(self.setup());
        if groups.len() == self.participants.len() {
            return self.clone();
        }
        let keys: Vec<u64> = (0..).zip(&self.participants).map(|(n, _)| key(self, n)).collect();
        let orders = orders(&groups, &keys);
        if let [only] = &*orders {
            return self.with_branches_permuted(only);
        }
        // Branches that look alike by themselves may still be told apart by what stands between
        // them (the order of records): the least of all orders decides.
        let worlds = orders.iter().map(|order| self.with_branches_permuted(order));
        worlds.min_by_key(digest::of).unwrap_or_else(|| self.clone())
    }
}

/// A number for everything that is a branch's own, whatever its place.
fn key(world: &World, number: u16) -> u64 {
    let mut hasher = Folding::default();
    world.participants[usize::from(number)].hash(&mut hasher);
    for call in world.open.iter().filter(|call| call.branch == number) {
        (1_u8, call.operation, call.attempt).hash(&mut hasher);
    }
    for call in world.calls.iter().filter(|call| call.branch == number) {
        (2_u8, call.operation, call.attempt).hash(&mut hasher);
    }
    for answer in world.answers.iter().filter(|answer| answer.call.branch == number) {
        (3_u8, answer.call.operation, answer.call.attempt, answer.said).hash(&mut hasher);
    }
    for word in world.words.iter().filter(|word| word.branch == number) {
        (4_u8, word.outcome).hash(&mut hasher);
    }
    if let Some(transaction) = world.live() {
        let branch = transaction.branch(number);
        (5_u8, branch.ballot, branch.progress, branch.in_flight).hash(&mut hasher);
        (branch.attempt, branch.failures, branch.retry_at).hash(&mut hasher);
        branch.last_error.hash(&mut hasher);
    }
    for timer in world.coordinator.iter().flat_map(|coordinator| coordinator.timers()) {
        if timer.purpose == TimerPurpose::Retry(number) {
            (6_u8, timer.at).hash(&mut hasher);
        }
    }
    for fact in world.journal.facts() {
        if let Fact::Decided { ballots, .. } = fact {
            (7_u8, ballots[usize::from(number)]).hash(&mut hasher);
        }
    }
    hasher.finish()
}

/// The orders that sort each group by its keys: one if all keys differ, else one for each way to
/// arrange those with equal keys.
fn orders(groups: &[Vec<u16>], keys: &[u64]) -> Vec<Vec<u16>> {
    let identity: Vec<u16> = (0..).zip(keys).map(|(number, _)| number).collect();
    let mut orders = vec![identity];
    for group in groups.iter().filter(|group| group.len() > 1) {
        let mut arranged = Vec::new();
        for arrangement in arrangements(group, keys) {
            for order in &orders {
                let mut order = order.clone();
                for (place, number) in group.iter().zip(&arrangement) {
                    order[usize::from(*place)] = *number;
                }
                arranged.push(order);
            }
        }
        orders = arranged;
    }
    orders
}

/// Every order of a group in which its keys do not fall.
fn arrangements(group: &[u16], keys: &[u64]) -> Vec<Vec<u16>> {
    let key = |number: &u16| keys[usize::from(*number)];
    let Some(least) = group.iter().map(key).min() else { return vec![Vec::new()] };
    let mut all = Vec::new();
    for first in group.iter().filter(|number| key(number) == least) {
        let rest: Vec<u16> = group.iter().copied().filter(|number| number != first).collect();
        for mut arrangement in arrangements(&rest, keys) {
            arrangement.insert(0, *first);
            all.push(arrangement);
        }
    }
    all
}
