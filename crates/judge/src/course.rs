//! What a coordinator's own calls and answers must obey, whatever the participants did: the rules
//! by which a history is judged that nobody else has seen. Each is asked at the one event that can
//! break it. A transaction whose writer did not keep every call is not judged here.

use unanimity_core::{Kind, Operation, Outcome};

use crate::case::{BranchCase, Case};
use crate::evidence::Evidence;
use crate::rules::{Verdict, check};
use crate::trace::FactLine;

/// What one branch's participant was asked, and said. Of a restarted coordinator's former life too.
#[derive(Clone, Debug, Default)]
pub(crate) struct Course {
    called: [bool; 8],
    /// It answered in favour: yes, nothing to commit, or that it has committed.
    in_favour: bool,
    reads_only: bool,
    /// It has committed without being told to: in one phase.
    in_one: bool,
    acknowledged: [bool; 8],
}

impl Course {
    /// Takes an answer's word in.
    fn answered(&mut self, operation: Operation, answer: &str) {
        let asks_vote = matches!(
            operation,
            Operation::Prepare
                | Operation::Execute
                | Operation::CommitOnePhase
                | Operation::Inquire
        );
        let votes = asks_vote && matches!(answer, "yes" | "read_only");
        // Who alone decides was asked what is final.
        let committed = operation == Operation::Rollback && answer == "already_committed";
        self.in_favour |= votes || committed;
        self.reads_only |= operation != Operation::Execute && answer == "read_only";
        self.in_one |= committed || votes && operation == Operation::CommitOnePhase;
        self.acknowledged[operation as usize] |=
            matches!(answer, "yes" | "read_only" | "acknowledged");
    }
}

impl Case {
    /// An answer follows a call: nobody is heard who was not asked.
    ///
    /// # Errors
    /// Names the operation that was never called.
    pub(crate) fn answered(&mut self, number: u16, operation: Operation, answer: &str) -> Verdict {
        let is_cut = self.is_cut;
        let branch = self.branches.get_mut(usize::from(number));
        let branch = branch.ok_or("a branch that is not on record answers")?;
        branch.course.answered(operation, answer);
        check(is_cut || branch.course.called[operation as usize], || {
            format!("branch {number} answers {operation:?}, which was never called")
        })
    }

    /// Calls leave in the plan's order, as far as answers show it: visible work after every vote,
    /// compensations only of what was to execute and in the reverse order (Garcia-Molina and Salem,
    /// "Sagas", SIGMOD 1987), deferred work after everything else is acknowledged.
    ///
    /// # Errors
    /// Names the call that was out of its turn.
    pub(crate) fn calls_in_order(&mut self, number: u16, operation: Operation) -> Verdict {
        let Some(branch) = self.branches.get_mut(usize::from(number)) else { return Ok(()) };
        branch.course.called[operation as usize] = true;
        if self.is_cut {
            return Ok(());
        }
        let kind = self.branches[usize::from(number)].plan.kind;
        match (operation, kind) {
            (Operation::Prepare, _) => self.follows(number, operation, Self::is_in_favour),
            (Operation::Execute, Kind::Compensable) => {
                self.follows(number, operation, Self::is_in_favour)?;
                let votes = |case: &Self, other: u16| {
                    case.kind(usize::from(other)) != Kind::TwoPhase || case.is_in_favour(other)
                };
                self.all(
                    |case, other| votes(case, other),
                    |other| {
                        format!(
                            "execute of branch {number} is called before branch {other} has voted"
                        )
                    },
                )
            }
            (Operation::Execute, _) => self.deferred_in_turn(number),
            (Operation::Compensate, _) => self.undoes_in_turn(number),
            (
                Operation::Commit
                | Operation::Rollback
                | Operation::CommitOnePhase
                | Operation::Inquire,
                _,
            ) => Ok(()),
        }
    }

    /// A commit counts every ballot: each branch that has one answered in favour first, or its work
    /// is the initiator's; and so do the ballots that the record holds, where the trace has them
    /// (AC3, as far as a coordinator can know).
    ///
    /// # Errors
    /// Names the branch whose ballot is missing.
    pub(crate) fn counts_every_ballot(&self, fact: &FactLine) -> Verdict {
        let FactLine::Decided { outcome: Outcome::Commit, ballots, .. } = fact else {
            return Ok(());
        };
        for (number, branch) in self.ordinary() {
            if branch.plan.kind == Kind::Deferred {
                continue;
            }
            if let Some(ballot) = ballots.get(usize::from(number)) {
                let counts = matches!(&**ballot, "yes" | "read_only" | "committed");
                check(counts, || {
                    format!("it commits, and the ballot of branch {number} is {ballot}")
                })?;
            }
            let others = branch.plan.by_initiator || branch.plan.kind == Kind::Local;
            check(self.is_cut || others || branch.course.in_favour, || {
                format!("it commits, and branch {number} has not answered in favour")
            })?;
        }
        Ok(())
    }

    /// A transaction ends only when every participant has acknowledged what it owed (Mohan, Lindsay
    /// and Obermarck 1986, section 3.1).
    ///
    /// # Errors
    /// Names the branch whose acknowledgement is missing.
    pub(crate) fn ends_acknowledged(&self) -> Verdict {
        let Some(outcome) = self.recorded().iter().next() else { return Ok(()) };
        if self.is_cut {
            return Ok(());
        }
        self.all(
            |case, number| case.has_done(number, outcome),
            |number| {
                format!(
                    "it ends, and branch {number} has not acknowledged the {}",
                    outcome.as_str()
                )
            },
        )
    }

    fn deferred_in_turn(&self, number: u16) -> Verdict {
        let Some(outcome) = self.durable_decision() else {
            return Err(format!("deferred branch {number} is called before the decision"));
        };
        let first = |case: &Self, other: u16| {
            case.kind(usize::from(other)) == Kind::Deferred || case.has_done(other, outcome)
        };
        self.all(first, |other| {
            format!("deferred branch {number} is called before branch {other} has acknowledged")
        })?;
        if self.comes_last(usize::from(number)) {
            let earlier = |case: &Self, other: u16| {
                let deferred = case.kind(usize::from(other)) == Kind::Deferred;
                !deferred || case.comes_last(usize::from(other)) || case.has_done(other, outcome)
            };
            self.all(earlier, |other| {
                format!("branch {number} comes last, and is called before branch {other} has done")
            })?;
        }
        let done = |case: &Self, other: u16| {
            case.kind(usize::from(other)) != Kind::Deferred || case.has_done(other, outcome)
        };
        self.follows(number, Operation::Execute, done)
    }

    fn undoes_in_turn(&self, number: u16) -> Verdict {
        check(self.may_have_executed(number), || {
            format!("branch {number} is compensated, and was never to execute")
        })?;
        let later = |case: &Self, other: u16| {
            let other_plan = &case.branches[usize::from(other)].plan;
            let waits = other_plan.kind == Kind::Compensable && other_plan.after.contains(&number);
            !waits || case.has_done(other, Outcome::Rollback)
        };
        self.all(later, |other| {
            format!("branch {number} is compensated before branch {other}, which came after it")
        })
    }

    /// Whether all branches before one are what they must be for it to be called.
    fn follows(
        &self,
        number: u16,
        operation: Operation,
        holds: impl Fn(&Self, u16) -> bool,
    ) -> Verdict {
        let before = &self.branches[usize::from(number)].plan.after;
        let is_there = |other: &&u16| usize::from(**other) < self.branches.len();
        let open = before
            .iter()
            .filter(is_there)
            .find(|other| !self.by_hand(usize::from(**other)) && !holds(self, **other));
        open.map_or(Ok(()), |other| {
            Err(format!(
                "{operation:?} of branch {number} is called before branch {other} is through"
            ))
        })
    }

    fn all(&self, holds: impl Fn(&Self, u16) -> bool, problem: impl Fn(u16) -> String) -> Verdict {
        let open = self.ordinary().find(|(number, _)| !holds(self, *number));
        open.map_or(Ok(()), |(number, _)| Err(problem(number)))
    }

    /// The branches that no operator has settled, and whose participant has kept its memory.
    fn ordinary(&self) -> impl Iterator<Item = (u16, &BranchCase)> {
        let excused =
            |number: u16| self.by_hand(usize::from(number)) || self.forgot(usize::from(number));
        (0..).zip(&self.branches).filter(move |(number, _)| !excused(*number))
    }

    fn is_in_favour(&self, number: u16) -> bool {
        let branch = &self.branches[usize::from(number)];
        branch.plan.by_initiator || branch.course.in_favour
    }

    fn may_have_executed(&self, number: u16) -> bool {
        self.is_announced(number) || self.branches[usize::from(number)].plan.by_initiator
    }

    /// Whether nothing is owed by a branch any more after this outcome, as far as answers and
    /// records show it.
    fn has_done(&self, number: u16, outcome: Outcome) -> bool {
        let branch = &self.branches[usize::from(number)];
        let course = &branch.course;
        let acknowledged = |operation: Operation| course.acknowledged[operation as usize];
        let was_asked = || {
            let asked = |operation: Operation| course.called[operation as usize];
            branch.plan.by_initiator
                || asked(Operation::Prepare)
                || asked(Operation::CommitOnePhase)
        };
        match (branch.plan.kind, outcome) {
            (Kind::Local, _) | (Kind::Compensable, Outcome::Commit) => true,
            (Kind::TwoPhase, Outcome::Commit) => {
                course.reads_only || course.in_one || acknowledged(Operation::Commit)
            }
            (Kind::TwoPhase, Outcome::Rollback) => {
                course.reads_only || !was_asked() || acknowledged(Operation::Rollback)
            }
            (Kind::Compensable, Outcome::Rollback) => {
                !self.may_have_executed(number)
                    || acknowledged(Operation::Compensate)
                    || self.is_finished(number)
            }
            (Kind::Deferred, Outcome::Rollback) if !branch.plan.also_on_rollback => true,
            (Kind::Deferred, _) => acknowledged(Operation::Execute) || self.is_finished(number),
        }
    }
}
