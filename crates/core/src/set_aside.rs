//! Decides what may still happen to a transaction that is set aside: one that the program broke on
//! so often that it is left alone until somebody has it taken up again. It stays live, it is shown,
//! and no event reaches it. How often is too often, and where that is kept, is the driver's.

use crate::{Coordinator, Effect, Event, Millis, Mutation, Step, Transaction, TransactionId};

/// What was being done with a transaction when the program broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Doing {
    /// Its records were read back.
    Replaying,
    /// Something had happened to it.
    Handling,
    /// It was written anew, so that older batches could be forgotten.
    WritingAnew,
    /// It had ended, and went into the history.
    Archiving,
}

impl Doing {
    /// Everything that may be done with a transaction.
    pub const ALL: [Self; 4] =
        [Self::Replaying, Self::Handling, Self::WritingAnew, Self::Archiving];

    /// The word on the wire and on disk.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Replaying => "replaying",
            Self::Handling => "handling",
            Self::WritingAnew => "writing_anew",
            Self::Archiving => "archiving",
        }
    }
}

/// Why a transaction is set aside.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SetAside {
    /// During what the program broke last.
    pub doing: Doing,
    /// How often it did; 0: somebody has asked to take it up again, and the next start will.
    pub panics: u32,
    /// In which words.
    pub message: Box<str>,
    /// When it did last.
    pub at: Millis,
    /// Whether what is known of it was read. If not, its records are in the journal and nowhere
    /// else, and nothing of it is shown but its name.
    pub read: bool,
}

impl SetAside {
    /// Whether it can be written anew. If not, it keeps everything that was written after it from
    /// being forgotten.
    #[must_use]
    pub const fn can_be_rewritten(&self) -> bool {
        match self.doing {
            Doing::Handling => self.read,
            Doing::Replaying | Doing::WritingAnew | Doing::Archiving => false,
        }
    }
}

impl Event {
    /// The transaction that this is about.
    #[must_use]
    pub const fn transaction(&self) -> &TransactionId {
        match self {
            Self::Timer(timer) => &timer.transaction,
            Self::Begin { transaction, .. }
            | Self::Answer { transaction, .. }
            | Self::Enlist { transaction, .. }
            | Self::CommitRequested { transaction }
            | Self::ResolveRequested { transaction, .. }
            | Self::RollbackRequested { transaction, .. }
            | Self::RetryRequested { transaction } => transaction,
        }
    }
}

impl Effect {
    /// The transaction that this is about.
    #[must_use]
    pub fn transaction(&self) -> &TransactionId {
        match self {
            Self::Call(call) => &call.transaction,
            Self::Ended(ended) => &ended.id,
            Self::Begun(id)
            | Self::Refused(id, _)
            | Self::Enlisted(id, _)
            | Self::EnlistRefused(id, _)
            | Self::Resolved(id, _)
            | Self::Decided(id, ..)
            | Self::Settling(id)
            | Self::Overdue(id)
            | Self::Parked(id, _) => id,
        }
    }
}

impl Coordinator {
    /// Sets a transaction aside, before it is taken up. One that was read is live; of one that
    /// could not be read the name is known, and when its records say that it began.
    pub fn set_aside(&mut self, id: &TransactionId, begun_at: Millis, why: SetAside) {
        if !why.read && self.config.mutations.has(Mutation::UnreadForgotten) {
            return;
        }
        self.disarm_all(id);
        if !self.transactions.contains(id) {
            self.transactions.insert(Transaction::unread(id.clone(), begun_at));
        }
        let Some(transaction) = self.transactions.get_mut(id) else { return };
        transaction.set_aside = Some(Box::new(why));
        self.aside.insert(id.clone());
    }

    /// Whether this transaction is set aside.
    #[must_use]
    pub fn is_set_aside(&self, id: &TransactionId) -> bool {
        !self.aside.is_empty() && self.aside.contains(id)
    }

    /// The transactions that are set aside.
    pub fn aside(&self) -> impl Iterator<Item = &TransactionId> {
        self.aside.iter()
    }

    /// Whether every live transaction is set aside: nothing moves by itself.
    #[must_use]
    pub fn is_at_rest(&self) -> bool {
        self.aside.len() == self.transactions.len()
    }

    /// Takes a transaction up that was set aside, as recovery would have. `None`: it is not set
    /// aside, or it could not be read, and only the next start can do it.
    pub fn take_up(&mut self, now: Millis, id: &TransactionId) -> Option<Step> {
        let transaction = self.transactions.get_mut(id)?;
        let why = transaction.set_aside.as_deref_mut()?;
        why.panics = 0;
        if !why.read {
            return None;
        }
        transaction.set_aside = None;
        self.aside.remove(id);
        Some(self.resume_transaction(now, id))
    }

    /// Whether the records of a transaction are to stay where they are: it cannot be written anew.
    pub(crate) fn stays(&self, id: &TransactionId) -> bool {
        if self.aside.is_empty() || self.config.mutations.has(Mutation::UnreadWrittenAnew) {
            return false;
        }
        let why = self.get(id).and_then(|transaction| transaction.set_aside.as_ref());
        why.is_some_and(|why| !why.can_be_rewritten())
    }

    /// Whether an event must not reach its transaction. A beginning and an enlistment are refused
    /// by name, as they are for any that cannot take them.
    pub(crate) fn keeps_out(&self, event: &Event) -> bool {
        let refused = matches!(event, Event::Begin { .. } | Event::Enlist { .. })
            || self.config.mutations.has(Mutation::SetAsideHandled);
        !refused && self.is_set_aside(event.transaction())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{
        Answer, BranchPlan, CoordinatorConfig, EnlistRefusal, Kind, Operation, Options, Plan,
        Record, Refusal, Replay, Replayed, Stage, encode_record,
    };

    fn id() -> TransactionId {
        TransactionId::new("poison").unwrap()
    }

    fn why(doing: Doing, read: bool) -> SetAside {
        SetAside { doing, panics: 3, message: "oh".into(), at: 5, read }
    }

    fn branch(name: &str) -> BranchPlan {
        BranchPlan::new(name, "http://127.0.0.1:1/", Kind::TwoPhase)
    }

    fn begin() -> Event {
        let branches = vec![branch("a"), branch("b")];
        let plan = Plan { open: false, branches, options: Options::default() };
        Event::Begin { transaction: id(), fingerprint: 7, plan: Box::new(plan) }
    }

    /// What the journal holds after the transaction has begun.
    fn records() -> Vec<Record> {
        let mut coordinator = Coordinator::new(CoordinatorConfig::default());
        coordinator.handle(1, begin()).records
    }

    fn replayed(passed_over: BTreeSet<TransactionId>) -> Replayed {
        let coordinator = Coordinator::new(CoordinatorConfig::default());
        let mut replay = Replay::new(coordinator).passing_over(passed_over);
        for record in records() {
            let mut bytes = Vec::new();
            encode_record(&record, &mut bytes);
            replay.take(4, &bytes);
        }
        replay.finish(5).unwrap()
    }

    fn aside(doing: Doing) -> Coordinator {
        let mut coordinator = replayed(BTreeSet::new()).coordinator;
        coordinator.set_aside(&id(), 0, why(doing, true));
        coordinator
    }

    #[test]
    fn nothing_reaches_it_and_nothing_moves_it() {
        let mut coordinator = aside(Doing::Handling);
        let before = coordinator.clone();
        assert!(coordinator.is_at_rest());
        assert_eq!(coordinator.get(&id()).unwrap().stage(), Stage::SetAside);
        let answer = Event::Answer {
            transaction: id(),
            branch: 0,
            operation: Operation::Prepare,
            attempt: 1,
            answer: Answer::No("late".into()),
        };
        let rollback = Event::RollbackRequested { transaction: id(), reason: "test".into() };
        for event in [answer, rollback, Event::RetryRequested { transaction: id() }] {
            assert!(coordinator.handle(100_000, event).is_empty());
        }
        let enlist = Event::Enlist { transaction: id(), branch: Box::new(branch("c")) };
        let refused = coordinator.handle(9, enlist).enlist_refusal().cloned();
        assert_eq!(refused, Some(EnlistRefusal::NotOpen(Stage::SetAside)));
        let refused = coordinator.handle(9, begin()).refusal().cloned();
        assert_eq!(refused, Some(Refusal::Exists { same: true }));
        assert_eq!(coordinator, before);
        assert_eq!(coordinator.next_timer(), None);
    }

    #[test]
    fn taken_up_it_goes_on_as_recovery_would_have_it() {
        let mut coordinator = aside(Doing::Handling);
        let step = coordinator.take_up(9, &id()).unwrap();
        let mut recovered = replayed(BTreeSet::new()).coordinator;
        assert_eq!(step, recovered.resume_transaction(9, &id()));
        assert_eq!(coordinator, recovered);
        assert_eq!(coordinator.take_up(9, &id()), None);
    }

    #[test]
    fn one_that_was_not_read_is_at_home_and_is_never_written_anew() {
        let Replayed { mut coordinator, homes, unread, .. } = replayed(BTreeSet::from([id()]));
        assert_eq!((homes.low_water(9), unread.get(&id())), (4, Some(&1)));
        coordinator.set_aside(&id(), 1, why(Doing::Replaying, false));
        assert_eq!(coordinator.rewrite(9, &id()), None);
        assert_eq!(coordinator.handle(9, begin()).refusal(), Some(&Refusal::SetAside));
        assert_eq!(coordinator.take_up(9, &id()), None);
        let left = coordinator.get(&id()).unwrap();
        assert_eq!((left.stage(), left.set_aside.as_ref().unwrap().panics), (Stage::SetAside, 0));
        assert_eq!(aside(Doing::WritingAnew).rewrite(9, &id()), None);
        assert!(aside(Doing::Handling).rewrite(9, &id()).is_some());
    }
}
