//! The initiator of an interactive transaction: it enlists branch after branch, does the work that
//! is its own once it was told that the branch is on record, and asks to commit when everything is
//! done. It may also do nothing at all, at any moment and for ever.

use std::collections::BTreeSet;

use unanimity_core::{Event, Kind, Operation};

use crate::participant::Said;
use crate::properties::forward;
use crate::world::{Action, World};

/// What the initiator knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Initiator {
    /// The branches that it was told are on record.
    pub enlisted: BTreeSet<u16>,
    /// Whether an answer to a request to enlist is awaited; it is lost in a crash.
    pub asking: bool,
    /// The branches whose phase-one work it has done.
    pub worked: BTreeSet<u16>,
    /// Whether work of its own was refused: then it never asks to commit.
    pub refused: bool,
}

impl World {
    /// Whether the initiator was told that this branch is on record.
    fn is_on_record(&self, branch: u16) -> bool {
        let begun_with = usize::from(branch) < self.setup().begun_with;
        self.told.begun && (begun_with || self.initiator.enlisted.contains(&branch))
    }

    /// What the initiator may do next.
    pub(crate) fn enabled_at_the_initiator(&self, actions: &mut Vec<Action>) {
        let setup = self.setup();
        if !setup.open || !self.told.begun {
            return;
        }
        let mut numbers = 0..u16::try_from(setup.branches.len()).unwrap_or(u16::MAX);
        // Local work is the last word: whatever it is to bring with it is enlisted before.
        let all_on_record = numbers.clone().all(|number| self.is_on_record(number));
        let works = |number: &u16| {
            let branch = &setup.branches[usize::from(*number)];
            let open = branch.by_initiator && !self.initiator.worked.contains(number);
            open && self.is_on_record(*number) && (branch.kind != Kind::Local || all_on_record)
        };
        if !self.initiator.refused {
            actions.extend(numbers.clone().filter(works).map(Action::Work));
        }
        if self.coordinator.is_none() {
            return;
        }
        let next = numbers.find(|number| !self.is_on_record(*number));
        let all_worked = (0..).zip(setup.branches).all(|(number, branch)| {
            !branch.by_initiator || self.initiator.worked.contains(&number)
        });
        let may_ask = self.budget.commit_requests > 0 && !self.initiator.refused;
        match next {
            Some(_) if self.initiator.asking => {}
            Some(number) => actions.push(Action::Enlist(number)),
            None if all_worked && may_ask => actions.push(Action::RequestCommit),
            None => {}
        }
    }

    pub(crate) fn enlist(&mut self, number: u16) {
        let branch = self.setup().branch_plan(number);
        let open = self.live().is_some_and(unanimity_core::Transaction::accepts_branches);
        self.initiator.asking = open;
        if open {
            let transaction = self.transaction.clone();
            self.happened(Event::Enlist { transaction, branch: Box::new(branch) });
        }
    }

    /// The initiator calls the participant itself; of local work it is its own participant.
    pub(crate) fn initiator_works(&mut self, number: u16) {
        let kind = self.setup().branches[usize::from(number)].kind;
        let operation = match kind {
            Kind::Local => Operation::CommitOnePhase,
            Kind::TwoPhase | Kind::Compensable | Kind::Deferred => forward(kind),
        };
        match self.participant_handles(number, operation) {
            Said::Yes | Said::ReadOnly => {
                self.initiator.worked.insert(number);
            }
            _ => self.initiator.refused = true, // Whatever it is, the work is not there.
        }
    }

    pub(crate) fn request_commit(&mut self) {
        self.budget.commit_requests -= 1;
        let transaction = self.transaction.clone();
        self.happened(Event::CommitRequested { transaction });
    }
}
