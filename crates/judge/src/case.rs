//! One transaction as a trace tells it: the events folded into the evidence that the rules ask for.

use unanimity_core::guard::GuardState;
use unanimity_core::{Kind, Operation, Outcome};

use crate::course::Course;
use crate::evidence::{Evidence, Outcomes};
use crate::rules::{Verdict, check};
use crate::trace::{BranchLine, FactLine, Move, ToldLine};

/// Counting stops here: once would be right, twice is already wrong.
const APPLIED_MAX: u8 = 2;

/// One branch and what became of it at its participant.
#[derive(Clone, Debug)]
pub(crate) struct BranchCase {
    pub(crate) plan: BranchLine,
    /// What its participant was asked, and said.
    pub(crate) course: Course,
    state: Option<GuardState>,
    settled: Option<GuardState>,
    applied: [u8; 8],
    by_hand: bool,
    forgot: bool,
    out_of_order: bool,
}

impl BranchCase {
    fn new(plan: BranchLine) -> Self {
        Self {
            plan,
            course: Course::default(),
            state: None,
            settled: None,
            applied: [0; 8],
            by_hand: false,
            forgot: false,
            out_of_order: false,
        }
    }

    fn worked(&mut self, operation: Operation, state: GuardState, effect: bool) {
        if effect {
            let done = |operation: Operation| self.applied[operation as usize] > 0;
            let unprepared = matches!(operation, Operation::Commit | Operation::Rollback)
                && !done(Operation::Prepare);
            let unexecuted = operation == Operation::Compensate && !done(Operation::Execute);
            self.out_of_order |= unprepared || unexecuted || self.settled.is_some();
            let count = &mut self.applied[operation as usize];
            *count = (*count + 1).min(APPLIED_MAX);
        }
        // A refused execute is asked again; only a refused prepare is the last word.
        let asked_again = operation == Operation::Execute && state == GuardState::VotedNo;
        let is_final = !matches!(state, GuardState::Prepared | GuardState::Executed);
        if self.settled.is_none() && is_final && !asked_again {
            self.settled = Some(state);
        }
        self.state = Some(state);
    }

    /// What was final cannot be asked for again, so it is not spoken of any more.
    fn forget(&mut self) {
        let was_final = self.settled.is_some() || self.state == Some(GuardState::Executed);
        let course = std::mem::take(&mut self.course);
        *self = Self { course, forgot: true, by_hand: was_final, ..Self::new(self.plan.clone()) };
    }
}

/// A fact and where it is on record.
#[derive(Clone, Debug)]
struct Recorded {
    place: Option<(u16, u64)>,
    fact: FactLine,
    durable: bool,
}

/// One transaction.
#[derive(Clone, Debug, Default)]
pub(crate) struct Case {
    pub(crate) branches: Vec<BranchCase>,
    records: Vec<Recorded>,
    told: Outcomes,
    sent: Outcomes,
    told_begun: bool,
    pub(crate) told_ended: bool,
    told_mixed: bool,
    /// Whether the writer did not keep all of its calls and answers.
    pub(crate) is_cut: bool,
    /// What its local transactions have changed, in all accounts together.
    pub(crate) net: i64,
}

impl Case {
    /// Takes a fact in. `None` as its place: it is durable at once. What should not have been
    /// written counts all the same: it was.
    ///
    /// # Errors
    /// If a coordinator that works as it should could not have written it here.
    pub(crate) fn record(&mut self, place: Option<(u16, u64)>, fact: &FactLine) -> Verdict {
        let mut verdict = self.check_order(fact);
        match fact {
            FactLine::Begun { .. } if self.has(|one| matches!(one, FactLine::Begun { .. })) => {
                return verdict;
            }
            FactLine::Begun { branches, .. } => {
                self.branches = branches.iter().cloned().map(BranchCase::new).collect();
            }
            FactLine::Enlisted { branch } => self.branches.push(BranchCase::new(branch.clone())),
            FactLine::Resolved { branch, .. } => {
                match self.branches.get_mut(usize::from(*branch)) {
                    Some(branch) => branch.by_hand = true,
                    None => verdict = Err("it names a branch that is not there".to_owned()),
                }
            }
            FactLine::Executing { .. }
            | FactLine::Decided { .. }
            | FactLine::Finished { .. }
            | FactLine::Ended => {}
            // It says nothing new, and a long life has many of it.
            FactLine::Rewritten => return verdict,
        }
        let durable = place.is_none();
        self.records.push(Recorded { place, fact: fact.clone(), durable });
        verdict
    }

    fn has(&self, what: fn(&FactLine) -> bool) -> bool {
        self.records.iter().any(|one| what(&one.fact))
    }

    /// The decision is a register that is written once: a second one, also of the same word, would
    /// be somebody deciding what was decided (Gray and Lamport, "Consensus on Transaction Commit",
    /// ACM TODS 31(1), 2006, section 2: a decided value never changes).
    ///
    /// # Errors
    /// If it is decided already.
    pub(crate) fn writes_once(&self, fact: &FactLine) -> Verdict {
        let decided = self.has(|fact| matches!(fact, FactLine::Decided { .. }));
        let again = decided && matches!(fact, FactLine::Decided { .. });
        check(!again, || "it is decided twice".to_owned())
    }

    /// The audit is gap-free and one-to-one with state changes: one beginning, first; a decision
    /// before the end; nothing after the end (FAULTS I17).
    fn check_order(&self, fact: &FactLine) -> Verdict {
        let begun = self.has(|fact| matches!(fact, FactLine::Begun { .. }));
        let decided = self.has(|fact| matches!(fact, FactLine::Decided { .. }));
        let says = |problem: &str| Err(problem.to_owned());
        if self.has(|fact| matches!(fact, FactLine::Ended)) {
            return says("there is a record after the end");
        }
        match fact {
            FactLine::Begun { .. } if begun => says("it begins twice"),
            FactLine::Begun { .. } => Ok(()),
            _ if !begun => says("there is a record before the beginning"),
            FactLine::Enlisted { .. } | FactLine::Executing { .. } if decided => {
                says("there is work of phase one after the decision")
            }
            FactLine::Finished { branch } => {
                let twice = self.records.iter().any(|one| one.fact == *fact);
                if !decided {
                    says("a branch is finished before the decision")
                } else if twice {
                    Err(format!("branch {branch} is finished twice"))
                } else {
                    Ok(())
                }
            }
            FactLine::Ended if !decided => says("it ends without a decision"),
            FactLine::Enlisted { .. }
            | FactLine::Executing { .. }
            | FactLine::Decided { .. }
            | FactLine::Resolved { .. }
            | FactLine::Ended
            | FactLine::Rewritten => Ok(()),
        }
    }

    /// Everything of the shard up to this position is durable.
    pub(crate) fn durable(&mut self, shard: u16, position: u64) {
        for record in self.records.iter_mut().rev().take_while(|record| !record.durable) {
            record.durable = record.place.is_some_and(|(its, at)| its == shard && at <= position);
        }
    }

    /// Everything of the shard beyond this position is gone; whether anything of it is left.
    pub(crate) fn lost(&mut self, shard: u16, position: u64) -> bool {
        let gone = |place: Option<(u16, u64)>| {
            place.is_some_and(|(its, at)| its == shard && at > position)
        };
        let enlisted = |record: &&Recorded| {
            gone(record.place) && matches!(record.fact, FactLine::Enlisted { .. })
        };
        let forgotten = self.records.iter().filter(enlisted).count();
        self.branches.truncate(self.branches.len() - forgotten);
        self.records.retain(|record| !gone(record.place));
        !self.records.is_empty()
    }

    pub(crate) fn worked(
        &mut self,
        branch: u16,
        operation: Operation,
        (state, effect): (GuardState, bool),
        moved: &[Move],
    ) -> Result<(), String> {
        self.net += net(moved);
        let branch = self.branches.get_mut(usize::from(branch));
        branch.ok_or("a branch that is not on record worked")?.worked(operation, state, effect);
        Ok(())
    }

    pub(crate) fn forget(&mut self, branch: u16, moved: &[Move]) {
        self.net += net(moved);
        if let Some(branch) = self.branches.get_mut(usize::from(branch)) {
            branch.forget();
        }
    }

    /// A call left. It may only if its transaction has begun, and a visible execute only if it was
    /// announced.
    pub(crate) fn called(
        &mut self,
        number: u16,
        operation: Operation,
        asks: bool,
    ) -> Result<(), String> {
        let named = self.branches.get(usize::from(number)).map(|branch| branch.plan.clone());
        let branch = named.ok_or("a branch that is not on record is called")?;
        if !self.begun() {
            return Err(format!("{operation:?} left before the beginning was durable"));
        }
        let visible = operation == Operation::Execute && branch.kind == Kind::Compensable;
        if visible && !self.is_announced(number) {
            return Err(format!("execute of branch {number} left before that was durable"));
        }
        let gives_away = match operation {
            Operation::Commit => Some(Outcome::Commit),
            Operation::Rollback if asks => None,
            Operation::Rollback | Operation::Compensate => Some(Outcome::Rollback),
            Operation::Execute if branch.kind == Kind::Deferred && !branch.also_on_rollback => {
                Some(Outcome::Commit)
            }
            Operation::Prepare
            | Operation::Execute
            | Operation::CommitOnePhase
            | Operation::Inquire => None,
        };
        gives_away.into_iter().for_each(|outcome| self.sent.insert(outcome));
        Ok(())
    }

    /// Whether the execute of a branch is on durable record.
    pub(crate) fn is_announced(&self, number: u16) -> bool {
        self.records.iter().any(|record| {
            record.durable
                && matches!(&record.fact,
                    FactLine::Executing { branches } if branches.contains(&number))
        })
    }

    /// Whether a branch is on record as having done its part after the decision.
    pub(crate) fn is_finished(&self, number: u16) -> bool {
        self.records.iter().any(|record| record.fact == FactLine::Finished { branch: number })
    }

    pub(crate) fn tell(&mut self, what: &ToldLine) -> Result<(), String> {
        match what {
            ToldLine::Begun => self.told_begun = true,
            ToldLine::Enlisted { branch } => {
                let durable = self.records.iter().filter(|record| record.durable);
                let branches: usize = durable.map(|record| branches_of(&record.fact)).sum();
                if usize::from(*branch) >= branches {
                    return Err(format!(
                        "branch {branch} was told to be enlisted, and is not \
                                        on durable record"
                    ));
                }
            }
            ToldLine::Outcome { outcome } => self.told.insert(*outcome),
            ToldLine::Ended { outcome, mixed } => {
                self.told.insert(*outcome);
                self.told_ended = true;
                self.told_mixed |= *mixed;
                if !self.has_durable_end() {
                    return Err("the end was told, and is not durable".to_owned());
                }
            }
            ToldLine::Presumed => {
                if self.begun() && !self.has_durable_end() {
                    return Err("a rollback was presumed of a live transaction".to_owned());
                }
                if self.durable_decision() == Some(Outcome::Commit) {
                    self.told.insert(Outcome::Rollback);
                }
            }
        }
        self.check_mixed()
    }

    /// A mixed result is shown if and only if somebody has settled a branch against the decision
    /// (FAULTS I16).
    fn check_mixed(&self) -> Result<(), String> {
        let Some(decision) = self.durable_decision() else { return Ok(()) };
        let against = self.records.iter().any(|record| {
            matches!(&record.fact, FactLine::Resolved { outcome, .. } if *outcome != decision)
        });
        if self.told_mixed && !against {
            return Err("it was shown as mixed, and nobody settled anything".to_owned());
        }
        Ok(())
    }

    /// Whether anything of it is not durable yet.
    pub(crate) fn waits(&self) -> bool {
        self.records.last().is_some_and(|record| !record.durable)
    }

    pub(crate) fn was_told_begun(&self) -> bool {
        self.told_begun
    }

    fn has_durable_end(&self) -> bool {
        self.records.iter().any(|one| one.durable && matches!(one.fact, FactLine::Ended))
    }

    /// At rest a transaction has ended.
    ///
    /// # Errors
    /// If it has not.
    pub(crate) fn at_rest(&self) -> Verdict {
        check(!self.begun() || self.has_durable_end(), || "it has not ended".to_owned())
    }

    /// At rest a transaction has moved money, and made or lost none, unless somebody has settled a
    /// branch by hand or lost its memory.
    ///
    /// # Errors
    /// Says how much.
    pub(crate) fn conserves(&self) -> Verdict {
        let excused = self.branches.iter().any(|branch| branch.by_hand || branch.forgot);
        check(self.net == 0 || excused || !self.begun(), || {
            format!("it has changed the sum of all accounts by {}", self.net)
        })
    }
}

fn net(moved: &[Move]) -> i64 {
    moved.iter().map(|one| one.available + one.reserved).sum()
}

fn branches_of(fact: &FactLine) -> usize {
    match fact {
        FactLine::Begun { branches, .. } => branches.len(),
        FactLine::Enlisted { .. } => 1,
        FactLine::Executing { .. }
        | FactLine::Decided { .. }
        | FactLine::Finished { .. }
        | FactLine::Resolved { .. }
        | FactLine::Ended
        | FactLine::Rewritten => 0,
    }
}

const fn decision(fact: &FactLine) -> Option<Outcome> {
    match fact {
        FactLine::Decided { outcome, .. } => Some(*outcome),
        FactLine::Begun { .. }
        | FactLine::Enlisted { .. }
        | FactLine::Executing { .. }
        | FactLine::Finished { .. }
        | FactLine::Resolved { .. }
        | FactLine::Ended
        | FactLine::Rewritten => None,
    }
}

impl Evidence for Case {
    fn branches(&self) -> usize {
        self.branches.len()
    }

    fn on_record(&self) -> usize {
        self.branches.len()
    }

    fn kind(&self, branch: usize) -> Kind {
        self.branches[branch].plan.kind
    }

    fn after(&self, branch: usize) -> &[u16] {
        &self.branches[branch].plan.after
    }

    fn by_initiator(&self, branch: usize) -> bool {
        self.branches[branch].plan.by_initiator
    }

    fn also_on_rollback(&self, branch: usize) -> bool {
        self.branches[branch].plan.also_on_rollback
    }

    fn comes_last(&self, branch: usize) -> bool {
        self.branches[branch].plan.comes_last
    }

    fn by_hand(&self, branch: usize) -> bool {
        self.branches[branch].by_hand
    }

    fn forgot(&self, branch: usize) -> bool {
        self.branches[branch].forgot
    }

    fn state(&self, branch: usize) -> Option<GuardState> {
        self.branches.get(branch)?.state
    }

    fn settled(&self, branch: usize) -> Option<GuardState> {
        self.branches[branch].settled
    }

    fn applied(&self, branch: usize, operation: Operation) -> u8 {
        self.branches.get(branch).map_or(0, |branch| branch.applied[operation as usize])
    }

    fn out_of_order(&self, branch: usize) -> bool {
        self.branches[branch].out_of_order
    }

    fn recorded(&self) -> Outcomes {
        self.records.iter().filter_map(|record| decision(&record.fact)).collect()
    }

    fn told(&self) -> Outcomes {
        self.told
    }

    fn sent(&self) -> Outcomes {
        self.sent
    }

    fn begun(&self) -> bool {
        self.records.iter().any(|one| one.durable && matches!(one.fact, FactLine::Begun { .. }))
    }

    fn told_begun(&self) -> bool {
        self.told_begun
    }

    fn ended(&self) -> bool {
        self.records.iter().any(|record| matches!(record.fact, FactLine::Ended))
    }

    fn durable_decision(&self) -> Option<Outcome> {
        let mut durable = self.records.iter().filter(|record| record.durable);
        durable.find_map(|record| decision(&record.fact))
    }
}
