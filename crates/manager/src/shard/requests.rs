//! What others ask of a live transaction: to be shown, to take a branch, to commit, to believe an
//! operator. Everything that is told waits for the records that it may rest on.

use std::sync::Arc;

use tokio::sync::oneshot;
use unanimity_core::{
    BranchPlan, CloseRefusal, Doing, EnlistRefusal, Event, Outcome, ResolveRefusal, Stage,
    Transaction, TransactionId,
};

use super::Shard;
use crate::error::{EnlistError, ResolveError};
use crate::filter::Filter;
use crate::watchers::{Showing, Shown, Wait, Watcher, WatcherReply, reached};

/// A request for a live transaction.
pub(crate) enum Ask {
    /// Add a branch to an interactive one.
    Enlist(EnlistCommand),
    /// Commit an interactive one.
    Commit { id: TransactionId, wait: Wait, reply: oneshot::Sender<Committing> },
    /// Believe somebody who says how a branch was settled.
    Resolve {
        id: TransactionId,
        branch: String,
        outcome: Outcome,
        by: Box<str>,
        reason: Box<str>,
        reply: oneshot::Sender<Result<(), ResolveError>>,
    },
}

impl Ask {
    /// Which transaction it is for.
    pub(super) const fn transaction(&self) -> &TransactionId {
        match self {
            Self::Enlist(EnlistCommand { id, .. })
            | Self::Commit { id, .. }
            | Self::Resolve { id, .. } => id,
        }
    }
}

/// A branch to be enlisted; others are named here, and numbered by the shard.
pub(crate) struct EnlistCommand {
    pub(crate) id: TransactionId,
    pub(crate) branch: BranchPlan,
    pub(crate) after: Vec<String>,
    pub(crate) refers: Vec<String>,
    pub(crate) branches_max: usize,
    pub(crate) reply: oneshot::Sender<Result<Shown, EnlistError>>,
}

/// What a request to commit came to, before the outcome is known.
pub(crate) enum Committing {
    /// It is not live here.
    Unknown,
    /// It was begun whole.
    Whole,
    /// It is set aside.
    SetAside,
    /// It had been rolled back before this request; so it stands.
    RolledBack(oneshot::Receiver<Option<Shown>>),
    /// The outcome comes here.
    Awaited(oneshot::Receiver<Option<Shown>>),
}

impl Shard {
    pub(super) fn on_ask(&mut self, ask: Ask) {
        match ask {
            Ask::Enlist(command) => self.on_enlist(command),
            Ask::Commit { id, wait, reply } => {
                let committing = self.commit(&id, wait);
                self.has_woken = true;
                // dropped: a caller that has gone away wants no answer; the transaction goes on.
                let _ = reply.send(committing);
            }
            Ask::Resolve { id, branch, outcome, by, reason, reply } => {
                let resolved = self.resolve(&id, &branch, outcome, by, reason);
                self.tell_when_durable(reply, resolved);
            }
        }
    }

    /// Answers once everything handed out so far is durable.
    fn tell_when_durable<T: Send + 'static>(&mut self, reply: oneshot::Sender<T>, value: T) {
        // dropped: a caller that has gone away wants no answer.
        let send = move || drop(reply.send(value));
        self.reply(Box::new(send));
    }

    fn on_enlist(&mut self, command: EnlistCommand) {
        let EnlistCommand { id, branch, after, refers, branches_max, reply } = command;
        let enlisted = self.numbered(&id, branch, (&after, &refers)).and_then(|branch| {
            self.check_room(&id, &branch, branches_max)?;
            let event = Event::Enlist { transaction: id.clone(), branch: Box::new(branch) };
            let refused = self.on(&id, Doing::Handling, |shard| {
                let step = shard.coordinator.handle(shard.now_ms(), event);
                let refused = step.enlist_refusal().cloned();
                shard.take(step);
                refused
            });
            match (refused, self.coordinator.get(&id)) {
                (Some(refusal), _) => Err(refusal.into()),
                (None, Some(enlisted)) => Ok(Arc::new(enlisted.clone())),
                (None, None) => Err(EnlistRefusal::Unknown.into()),
            }
        });
        self.tell_when_durable(reply, enlisted);
    }

    /// The branch with the numbers of those that it names.
    fn numbered(
        &self,
        id: &TransactionId,
        branch: BranchPlan,
        (after, refers): (&[String], &[String]),
    ) -> Result<BranchPlan, EnlistError> {
        let after = self.numbers(id, after, "after")?;
        let refers = self.numbers(id, refers, "payload")?;
        Ok(BranchPlan { after: after.into(), refers: refers.into(), ..branch })
    }

    /// A branch that is there already needs no room.
    fn check_room(
        &self,
        id: &TransactionId,
        branch: &BranchPlan,
        branches_max: usize,
    ) -> Result<(), EnlistError> {
        let Some(transaction) = self.coordinator.get(id) else { return Ok(()) };
        let there = transaction.branches.iter().any(|known| known.plan.name == branch.name);
        if there || transaction.branches.len() < branches_max || !transaction.accepts_branches() {
            return Ok(());
        }
        Err(EnlistError::too_many_branches(branches_max))
    }

    /// The numbers of branches that are named.
    fn numbers(
        &self,
        id: &TransactionId,
        names: &[String],
        field: &'static str,
    ) -> Result<Vec<u16>, EnlistError> {
        let transaction = self.coordinator.get(id).ok_or(EnlistRefusal::Unknown)?;
        let number = |name: &String| {
            let mut numbered = transaction.numbered();
            let found = numbered.find(|(_, branch)| *branch.plan.name == **name);
            found.map(|(number, _)| number).ok_or_else(|| EnlistError::unknown_branch(field, name))
        };
        names.iter().map(number).collect()
    }

    /// Takes up a transaction that is set aside, if that is possible before the next start.
    pub(super) fn take_up(&mut self, id: &TransactionId) {
        self.refused.remove(id);
        self.on(id, Doing::Handling, |shard| {
            let Some(step) = shard.coordinator.take_up(shard.now_ms(), id) else { return };
            tracing::warn!(transaction = %id, "a transaction that was set aside is taken up again");
            metrics::gauge!("unanimity_transactions_set_aside").decrement(1.0);
            shard.take(step);
        });
    }

    fn commit(&mut self, id: &TransactionId, wait: Wait) -> Committing {
        let rolled_back = match self.coordinator.check_close(id) {
            Err(CloseRefusal::Whole) => return Committing::Whole,
            Err(CloseRefusal::SetAside) => return Committing::SetAside,
            Err(CloseRefusal::Unknown) => match self.ending.get(id) {
                Some(ended) if !ended.open => return Committing::Whole,
                Some(ended) => ended.outcome() == Some(Outcome::Rollback),
                None => return Committing::Unknown,
            },
            Ok(()) => {
                let decided = self.coordinator.get(id).and_then(Transaction::outcome);
                self.handle(Event::CommitRequested { transaction: id.clone() });
                decided == Some(Outcome::Rollback)
            }
        };
        let (reply, replied) = oneshot::channel();
        self.show(id, wait, true, WatcherReply::Get(reply));
        if rolled_back { Committing::RolledBack(replied) } else { Committing::Awaited(replied) }
    }

    fn resolve(
        &mut self,
        id: &TransactionId,
        branch: &str,
        outcome: Outcome,
        by: Box<str>,
        reason: Box<str>,
    ) -> Result<(), ResolveError> {
        let transaction = self.coordinator.get(id).ok_or(ResolveRefusal::Unknown)?;
        let found = transaction.numbered().find(|(_, known)| *known.plan.name == *branch);
        let branch = found.map(|(number, _)| number).ok_or(ResolveRefusal::NoSuchBranch)?;
        self.coordinator.check_resolve(id, branch, outcome, !reason.is_empty())?;
        let transaction = id.clone();
        tracing::warn!(transaction = %id, branch, outcome = outcome.as_str(), by = &*by,
            "a branch was settled by hand");
        metrics::counter!("unanimity_branches_resolved_total").increment(1);
        self.handle(Event::ResolveRequested { transaction, branch, outcome, by, reason });
        Ok(())
    }

    pub(super) fn list(&self, filter: &Filter, limit: usize) -> Vec<Shown> {
        let live = self.coordinator.iter().filter(|live| filter.passes(live));
        let wanted = filter.stage.as_deref().is_none_or(|stage| stage == Stage::Ended.as_str());
        let limit_of_ended = if wanted { limit } else { 0 };
        let ended = self.ending.latest(limit_of_ended, |ended| filter.passes(ended));
        let mut found: Vec<&Transaction> = live.chain(ended.iter().map(|one| &**one)).collect();
        // By name, as the history does.
        found.sort_by(|a, b| (b.begun_at, b.id.as_str()).cmp(&(a.begun_at, a.id.as_str())));
        found.into_iter().take(limit).map(|found| Arc::new(found.clone())).collect()
    }

    /// Shows a transaction once what is waited for has come. Everything that is told waits for the
    /// records that it may rest on.
    pub(super) fn show(
        &mut self,
        id: &TransactionId,
        wait: Wait,
        may_wait: bool,
        reply: WatcherReply,
    ) {
        let watcher = Watcher { wait, existed: true, reply };
        let shown = self.coordinator.get(id).map(|live| (reached(live), Arc::new(live.clone())));
        let ended = || self.ending.get(id).map(|ended| (Wait::Completed, ended));
        match shown.or_else(ended) {
            Some((reached, transaction)) if !may_wait || reached >= wait => {
                let send = move || watcher.answer(&mut Showing::Shared(transaction));
                self.reply(Box::new(send));
            }
            Some(_) => self.watchers.add(id.clone(), watcher),
            None => {
                if let WatcherReply::Get(reply) = watcher.reply {
                    self.has_woken = true;
                    drop(reply.send(None));
                }
            }
        }
    }
}
