//! How records change what a coordinator knows: the same for live operation, recovery and the
//! checkers. What a fact changes in its transaction is `transaction`'s.

use std::fmt;
use std::sync::Arc;

use crate::transaction::Ballot;
use crate::{Coordinator, Fact, Millis, Plan, Record, Transaction, TransactionId};

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
    pub fn apply(&mut self, record: &Record) -> Result<Option<Transaction>, ApplyError> {
        let id = &record.transaction;
        match &record.fact {
            Fact::Begun { fingerprint, plan } => {
                let new = (id.clone(), record.at, *fingerprint);
                self.begun(new, plan.clone(), false).map(|()| None)
            }
            Fact::Snapshot(transaction) => {
                self.written_anew((**transaction).clone(), false);
                Ok(None)
            }
            fact => {
                let error = |problem| ApplyError { transaction: id.clone(), problem };
                let Some(transaction) = self.transactions.get_mut(id) else {
                    return Err(error("has a record but no beginning"));
                };
                if !fits(transaction, record) {
                    return Err(error("has a record for branches that it does not have"));
                }
                transaction.apply(record, self.config.mutations);
                let ended = matches!(fact, Fact::Ended);
                Ok(if ended { self.transactions.remove(id) } else { None })
            }
        }
    }

    /// As [`Coordinator::apply`], of a record that was read back, and that nobody else needs: what
    /// it holds is not copied, and what it begins is still to be taken up.
    pub(crate) fn take_over(&mut self, record: Record) -> Result<Option<Transaction>, ApplyError> {
        match record.fact {
            Fact::Begun { fingerprint, plan } => {
                let new = (record.transaction, record.at, fingerprint);
                self.begun(new, plan, true).map(|()| None)
            }
            Fact::Snapshot(transaction) => {
                self.written_anew(*transaction, true);
                Ok(None)
            }
            _ => self.apply(&record), // Every other fact is small.
        }
    }

    fn begun(
        &mut self,
        (id, at, fingerprint): (TransactionId, Millis, u128),
        mut plan: Plan,
        dormant: bool,
    ) -> Result<(), ApplyError> {
        if self.transactions.contains(&id) {
            return Err(ApplyError { transaction: id, problem: "begins twice" });
        }
        plan.branches.iter_mut().for_each(|branch| self.shared.branch(branch));
        let options = self.shared.options(plan.options);
        let (open, branches) = (plan.open, plan.branches);
        let new = Transaction::new(id, at, fingerprint, (open, branches), options);
        self.transactions.insert(Transaction { dormant, ..new });
        Ok(())
    }

    fn written_anew(&mut self, mut transaction: Transaction, dormant: bool) {
        transaction.dormant = dormant;
        transaction.branches.iter_mut().for_each(|branch| self.shared.branch(&mut branch.plan));
        transaction.options = self.shared.options((*transaction.options).clone());
        self.transactions.insert(transaction);
    }
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
