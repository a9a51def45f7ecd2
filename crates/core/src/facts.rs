//! How records change what a coordinator knows: the same for live operation, recovery and the
//! checkers. What a fact changes in its transaction is `transaction`'s.

use std::fmt;
use std::sync::Arc;

use crate::branch::Ballot;
use crate::{Coordinator, Fact, Millis, Plan, Record, Transaction, TransactionId, Whole};

/// A journal that contradicts itself: the records cannot be what a coordinator wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApplyError {
    /// Which transaction.
    pub transaction: TransactionId,
    /// What does not fit.
    pub problem: &'static str,
}

impl fmt::Display for ApplyError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "transaction {}: {}", self.transaction, self.problem)
    }
}

impl std::error::Error for ApplyError {}

impl Coordinator {
    /// Takes a fact from the journal during recovery, or hands it on from live operation: the only
    /// way in which facts change. Gives back a transaction that this record ended.
    ///
    /// # Errors
    /// [`ApplyError`] if the record does not fit what is known. A caller that reads a journal whose
    /// oldest batches were forgotten meets records of transactions that ended or were written anew
    /// later; see [`Coordinator::knows`].
    pub fn apply(&mut self, record: &Record) -> Result<Option<Box<Transaction>>, ApplyError> {
        let id = &record.transaction;
        match &record.fact {
            Fact::Begun { fingerprint, plan } => {
                let new = (id.clone(), record.at, *fingerprint);
                self.begun(new, plan).map(|()| None)
            }
            Fact::Snapshot(transaction) => {
                self.written_anew((**transaction).clone());
                Ok(None)
            }
            _ => {
                let mutations = self.config.mutations;
                self.fitting(record)?.apply(record, mutations);
                self.share_enlisted(record);
                Ok(self.ended_by(record))
            }
        }
    }

    /// As [`Coordinator::apply`], of what was read back from a record that says all of a
    /// transaction; it is taken from there, and still to be taken up.
    pub(crate) fn take_whole(&mut self, whole: &mut Whole) -> Result<(), ApplyError> {
        let Whole { id, begins, spread, transaction, .. } = whole;
        let (Some(id), Some(transaction)) = (id, transaction.take()) else { return Ok(()) };
        if !*begins {
            self.transactions.insert_as(*spread, transaction);
        } else if self.transactions.insert_new(*spread, transaction).is_some() {
            return Err(begins_twice(id.clone()));
        }
        Ok(())
    }

    /// As [`Coordinator::apply`], of any other record that was read back, and that nobody else
    /// needs: its observations are not copied.
    pub(crate) fn take_later(
        &mut self,
        record: &mut Record,
    ) -> Result<Option<Box<Transaction>>, ApplyError> {
        let mutations = self.config.mutations;
        self.fitting(record)?.take_over(record, mutations);
        self.share_enlisted(record);
        Ok(self.ended_by(record))
    }

    /// Lets a branch that was enlisted share what was planned for it.
    fn share_enlisted(&mut self, record: &Record) {
        let Fact::Enlisted { branch } = &record.fact else { return };
        let enlisted = self.transactions.get_mut_there(&record.transaction);
        if let Some(last) = enlisted.and_then(|enlisted| enlisted.branches.last_mut()) {
            last.plan = self.shared.plan(branch);
        }
    }

    /// The transaction that a record other than its first says something about.
    fn fitting(&mut self, record: &Record) -> Result<&mut Transaction, ApplyError> {
        let id = &record.transaction;
        let error = |problem| ApplyError { transaction: id.clone(), problem };
        let found = self.transactions.get_mut_there(id);
        let transaction = found.ok_or_else(|| error("has a record but no beginning"))?;
        if !fits(transaction, record) {
            return Err(error("has a record for branches that it does not have"));
        }
        Ok(transaction)
    }

    fn ended_by(&mut self, record: &Record) -> Option<Box<Transaction>> {
        let ended = matches!(record.fact, Fact::Ended);
        ended.then(|| self.transactions.remove(&record.transaction)).flatten()
    }

    fn begun(
        &mut self,
        (id, at, fingerprint): (TransactionId, Millis, u128),
        plan: &Plan,
    ) -> Result<(), ApplyError> {
        if self.transactions.contains(&id) {
            return Err(begins_twice(id));
        }
        let options = self.shared.options(&plan.options);
        let branch = |plan| self.shared.branch(plan);
        let branches = plan.branches.iter().map(branch).collect();
        let new = Transaction::new(id, at, fingerprint, (plan.open, branches), options);
        self.transactions.take_to_hand(Box::new(new));
        Ok(())
    }

    fn written_anew(&mut self, mut transaction: Transaction) {
        for branch in &mut transaction.branches {
            branch.plan = self.shared.plan(&branch.plan);
        }
        transaction.options = self.shared.options(&transaction.options);
        self.transactions.insert(transaction);
    }
}

const fn begins_twice(transaction: TransactionId) -> ApplyError {
    ApplyError { transaction, problem: "begins twice" }
}

/// Whether a record speaks only of branches that the transaction has.
fn fits(transaction: &Transaction, record: &Record) -> bool {
    let known = |number: &u16| transaction.has(Some(*number));
    let all_known = |results: &[(u16, Arc<str>)]| results.iter().all(|(number, _)| known(number));
    let complete = |ballots: &[Ballot]| ballots.len() == transaction.branches.len();
    let fact = match &record.fact {
        Fact::Executing { branches, ballots, results } => {
            complete(ballots) && branches.iter().all(known) && all_known(results)
        }
        Fact::Decided { reason, ballots, results, .. } => {
            complete(ballots) && all_known(results) && transaction.has(reason.branch())
        }
        Fact::Finished { branch } | Fact::Resolved { branch, .. } => known(branch),
        Fact::Enlisted { branch } => {
            transaction.decision.is_none() && branch.after.iter().chain(&branch.refers).all(known)
        }
        Fact::Begun { .. } | Fact::Ended | Fact::Snapshot(_) => true,
    };
    fact && record.observations.branches() as usize <= transaction.branches.len()
}
