//! An operator, who may say of any branch that it was settled without the coordinator, truly or
//! not.

use unanimity_core::{Coordinator, Event, Outcome};

use crate::world::{Action, World};

impl World {
    pub(crate) fn enabled_resolutions(&self, coordinator: &Coordinator, actions: &mut Vec<Action>) {
        for (number, _) in (0..).zip(&self.participants) {
            for outcome in [Outcome::Commit, Outcome::Rollback] {
                if coordinator.check_resolve(&self.transaction, number, outcome, true).is_ok() {
                    actions.push(Action::Resolve(number, outcome));
                }
            }
        }
    }

    pub(crate) fn resolve(&mut self, branch: u16, outcome: Outcome) {
        self.budget.resolutions -= 1;
        self.resolved.insert(branch);
        let transaction = self.transaction.clone();
        let (by, reason) = ("ann".into(), "seen".into());
        self.happened(Event::ResolveRequested { transaction, branch, outcome, by, reason });
    }
}
