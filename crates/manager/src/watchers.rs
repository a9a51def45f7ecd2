//! Who waits for what of a transaction, and when they are answered. Nobody is told more than what
//! is durable: a watcher whose transaction has already gone further than the effect that reaches it
//! waits for the effect that tells of that.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use tokio::sync::oneshot;
use unanimity_core::{Outcome, Reason, Transaction, TransactionId};

use crate::error::BeginError;
use crate::generate::Spread;
use crate::view::{ReasonView, TransactionView};

/// Until when a caller waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wait {
    /// Until the beginning is durable.
    Accepted,
    /// Until the decision is durable.
    Outcome,
    /// Until every participant has acknowledged, or the limit for the whole has passed.
    Completed,
}

/// A transaction as it was at one moment, for a reply.
pub(crate) type Shown = Arc<Transaction>;

/// What a request to begin came to.
pub(crate) enum Begun {
    /// It is known here, and what was waited for has come.
    Shown { transaction: Shown, existed: bool },
    /// The history holds an ended transaction of this id.
    InHistory(TransactionId),
}

/// What became of a transaction, without its branches: all that most initiators ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// The transaction's name.
    pub id: TransactionId,
    /// The decision, once it is durable.
    pub outcome: Option<Outcome>,
    /// Why it was taken.
    pub reason: Option<ReasonView>,
    /// Whether every participant has acknowledged.
    pub completed: bool,
    /// Whether it had begun before, by the same request.
    pub existed: bool,
}

impl Told {
    fn of(transaction: &Transaction, existed: bool) -> Self {
        Self {
            id: transaction.id.clone(),
            outcome: transaction.outcome(),
            reason: transaction
                .decision
                .as_ref()
                .map(|decision| ReasonView::of(transaction, &decision.reason)),
            completed: transaction.ended_at.is_some(),
            existed,
        }
    }

    /// The same of a transaction that the history holds.
    pub(crate) fn of_view(id: TransactionId, view: TransactionView) -> Self {
        let outcome = if view.committed() { Outcome::Commit } else { Outcome::Rollback };
        let (reason, completed) = (view.reason, view.completed);
        Self { id, outcome: Some(outcome), reason, completed, existed: true }
    }

    /// Whether the outcome is commit.
    #[must_use]
    pub fn committed(&self) -> bool {
        self.outcome == Some(Outcome::Commit)
    }
}

/// Takes what became of many transactions without a task or a channel for each
/// ([`Admitted::begin_and_tell_to`](crate::Admitted::begin_and_tell_to)), which is the fastest way
/// to have thousands of them under way: it is told from within the shard, so it must return at once
/// and wait for nothing. A shard holds it for as long as it owes it something: one that holds a
/// [`TransactionManager`](crate::TransactionManager) keeps that from ending by itself when its
/// other handles are gone, but not from being stopped.
///
/// ```
/// use std::sync::Arc;
/// use std::time::Duration;
///
/// use tokio::sync::mpsc;
/// use unanimity::core::{Answer, BranchPlan, Call, Kind, Operation, Options, Plan};
/// use unanimity::{BeginError, BeginRequest, CallFuture, ManagerConfig, Storage, Told, ToldSink};
/// use unanimity::{TransactionManager, Transport, Wait};
///
/// /// Participants that agree to everything.
/// struct Agreeing;
///
/// impl Transport for Agreeing {
///     fn call(&self, call: Call) -> CallFuture<'_> {
///         let votes = call.operation == Operation::Prepare;
///         let answer = if votes { Answer::Yes(None) } else { Answer::Acknowledged };
///         Box::pin(std::future::ready(answer))
///     }
///
///     fn check(&self, _participant: &str) -> Result<(), (&'static str, String)> {
///         Ok(())
///     }
/// }
///
/// /// Whether each has committed, by its number.
/// struct Outcomes(mpsc::UnboundedSender<(u64, bool)>);
///
/// impl ToldSink for Outcomes {
///     fn tell(&self, number: u64, told: Result<Told, BeginError>) {
///         let committed = told.is_ok_and(|told| told.committed());
///         self.0.send((number, committed)).unwrap_or(()); // Nobody may listen any more.
///     }
///
///     fn lose(&self, number: u64) {
///         self.0.send((number, false)).unwrap_or(());
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let config = ManagerConfig { storage: Storage::Memory, ..ManagerConfig::default() };
/// let manager = TransactionManager::start(config, Arc::new(Agreeing))?;
/// let (sender, mut outcomes) = mpsc::unbounded_channel();
/// let sink: Arc<dyn ToldSink> = Arc::new(Outcomes(sender));
/// for number in 0..100 {
///     let branch = |name: &str| BranchPlan::new(name, "in-process", Kind::TwoPhase);
///     let branches = vec![branch("debit"), branch("credit")];
///     let plan = Plan { open: false, branches, options: Options::default() };
///     let request = BeginRequest::new(plan, Wait::Outcome);
///     let to = (Arc::clone(&sink), number);
///     manager.admit()?.begin_and_tell_to(request, to, Duration::from_secs(30));
/// }
/// for _ in 0..100 {
///     let (number, committed) = outcomes.recv().await.ok_or("all are told of")?;
///     assert!(committed, "{number}");
/// }
/// manager.stop(Duration::from_secs(5)).await;
/// # Ok(())
/// # }
/// ```
pub trait ToldSink: Send + Sync + 'static {
    /// What became of the transaction that was begun under `number`, or why it did not begin.
    fn tell(&self, number: u64, told: Result<Told, BeginError>);

    /// Nobody will say what became of it: its shard has ended. Whether it began is not known, and
    /// [`TransactionManager::unavailable`](crate::TransactionManager::unavailable) says why.
    fn lose(&self, number: u64);
}

/// An answer that is owed to a sink, and is given in the end, whatever happens.
pub(crate) struct OwedTold {
    sink: Option<Arc<dyn ToldSink>>,
    number: u64,
}

impl OwedTold {
    pub(crate) fn new(sink: Arc<dyn ToldSink>, number: u64) -> Self {
        Self { sink: Some(sink), number }
    }

    pub(crate) fn settle(mut self, told: Result<Told, BeginError>) {
        if let Some(sink) = self.sink.take() {
            sink.tell(self.number, told);
        }
    }

    /// Nobody waits for it any more.
    pub(crate) fn forgive(mut self) {
        self.sink = None;
    }
}

impl Drop for OwedTold {
    fn drop(&mut self) {
        if let Some(sink) = self.sink.take() {
            sink.lose(self.number);
        }
    }
}

/// Who waits for the outcome alone is told that, or that the history holds the transaction.
pub(crate) type ToldReply = Result<Result<Told, TransactionId>, BeginError>;

/// Somebody who waits.
pub(crate) struct Watcher {
    pub(crate) wait: Wait,
    pub(crate) existed: bool,
    pub(crate) reply: WatcherReply,
}

/// How somebody who waits is answered.
pub(crate) enum WatcherReply {
    Begin(BeginAnswer),
    Get(oneshot::Sender<Option<Shown>>),
}

/// How somebody who asked to begin is answered.
pub(crate) enum BeginAnswer {
    /// With the whole transaction.
    Whole(oneshot::Sender<Result<Begun, BeginError>>),
    /// With its outcome.
    Told(oneshot::Sender<ToldReply>),
    /// With its outcome, among many; the history holds none of these ids.
    Sink(OwedTold),
}

impl BeginAnswer {
    fn is_gone(&self) -> bool {
        match self {
            Self::Whole(reply) => reply.is_closed(),
            Self::Told(reply) => reply.is_closed(),
            Self::Sink(_) => false,
        }
    }

    /// It did not begin.
    pub(crate) fn refuse(self, error: BeginError) {
        let error = error.counted();
        // dropped: a caller that has gone away wants no answer.
        let _ = match self {
            Self::Whole(reply) => reply.send(Err(error)).map_err(drop),
            Self::Told(reply) => reply.send(Err(error)).map_err(drop),
            Self::Sink(owed) => {
                owed.settle(Err(error));
                Ok(())
            }
        };
    }

    /// The history holds it.
    pub(crate) fn in_history(self, id: TransactionId) {
        // dropped: as above.
        let _ = match self {
            Self::Whole(reply) => reply.send(Ok(Begun::InHistory(id))).map_err(drop),
            Self::Told(reply) => reply.send(Ok(Err(id))).map_err(drop),
            Self::Sink(_) => unreachable!("{id} was made up for this request"),
        };
    }

    fn show(self, transaction: &mut Showing<'_>, existed: bool) {
        // dropped: as above; the transaction goes on.
        let _ = match self {
            Self::Whole(reply) => {
                let transaction = transaction.shared();
                reply.send(Ok(Begun::Shown { transaction, existed })).map_err(drop)
            }
            Self::Told(reply) => {
                reply.send(Ok(Ok(Told::of(transaction.get(), existed)))).map_err(drop)
            }
            Self::Sink(owed) => {
                owed.settle(Ok(Told::of(transaction.get(), existed)));
                Ok(())
            }
        };
    }
}

impl Watcher {
    /// One, if it waits for a beginning alone.
    fn for_begin(&self) -> usize {
        usize::from(self.wait == Wait::Accepted)
    }

    fn is_gone(&self) -> bool {
        match &self.reply {
            WatcherReply::Begin(answer) => answer.is_gone(),
            WatcherReply::Get(reply) => reply.is_closed(),
        }
    }

    pub(crate) fn answer(self, transaction: &mut Showing<'_>) {
        match self.reply {
            WatcherReply::Begin(answer) => answer.show(transaction, self.existed),
            // dropped: a caller that has gone away wants no answer.
            WatcherReply::Get(reply) => drop(reply.send(Some(transaction.shared()))),
        }
    }
}

/// A transaction to be shown: copied only for those who want all of it, and once for all of them.
pub(crate) enum Showing<'a> {
    Live(&'a Transaction),
    Shared(Shown),
}

impl Showing<'_> {
    fn get(&self) -> &Transaction {
        match self {
            Self::Live(transaction) => transaction,
            Self::Shared(transaction) => transaction,
        }
    }

    fn shared(&mut self) -> Shown {
        if let Self::Live(transaction) = self {
            *self = Self::Shared(Arc::new((*transaction).clone()));
        }
        match self {
            Self::Shared(transaction) => Arc::clone(transaction),
            Self::Live(_) => unreachable!("shared just now"),
        }
    }
}

/// Everybody who waits, by transaction.
#[derive(Default)]
pub(crate) struct Watchers {
    by_id: HashMap<TransactionId, Waiting, Spread>,
    /// How many wait for a beginning alone.
    for_begin: usize,
}

/// Those who wait for one transaction: nearly always one alone.
pub(crate) struct Waiting {
    first: Watcher,
    others: Vec<Watcher>,
}

impl Watchers {
    pub(crate) fn add(&mut self, id: TransactionId, watcher: Watcher) {
        self.for_begin += watcher.for_begin();
        match self.by_id.entry(id) {
            Entry::Vacant(place) => {
                place.insert(Waiting { first: watcher, others: Vec::new() });
            }
            Entry::Occupied(mut found) => {
                let Waiting { first, others } = found.get_mut();
                let gone = others.extract_if(.., |watcher| watcher.is_gone());
                self.for_begin -= gone.map(|watcher| watcher.for_begin()).sum::<usize>();
                if first.is_gone() {
                    self.for_begin -= first.for_begin();
                    *first = watcher;
                } else {
                    others.push(watcher);
                }
            }
        }
    }

    /// For how many transactions somebody waits.
    pub(crate) fn waited_for(&self) -> usize {
        self.by_id.len()
    }

    /// It is durable that the transaction has come as far as `told`: answers those who wait for no
    /// more. `live` is how it stands now; if that is further, then the effect that tells of it is
    /// on its way and answers them. (If it has ended they have left, and are owed an answer.)
    /// 1. A beginning is being written; before it is, the time to prepare runs out.
    /// 2. The beginning is durable. Whoever waits for it must not hear "rolled back": that record
    ///    is still to be written.
    /// 3. The decision is durable, and answers them too.
    ///
    /// Says whether it answered anybody.
    pub(crate) fn notify<'a>(
        &mut self,
        id: &TransactionId,
        told: Wait,
        live: impl FnOnce() -> Option<&'a Transaction>,
    ) -> bool {
        if told == Wait::Accepted && self.for_begin == 0 {
            return false; // So it is with most beginnings, and to look is a wait for memory.
        }
        let Some(Waiting { first, others }) = self.by_id.get_mut(id) else { return false };
        if first.wait > told && others.is_empty() {
            return false;
        }
        let Some(live) = live().filter(|live| reached(live) <= told) else { return false };
        let (mut showing, waiting) = (Showing::Live(live), others.len());
        for watcher in others.extract_if(.., |watcher| watcher.wait <= told) {
            self.for_begin -= watcher.for_begin();
            watcher.answer(&mut showing);
        }
        if first.wait > told {
            return others.len() < waiting;
        }
        let first = match others.pop() {
            Some(other) => Some(std::mem::replace(first, other)),
            None => self.by_id.remove(id).map(|waiting| waiting.first),
        };
        if let Some(first) = first {
            self.for_begin -= first.for_begin();
            first.answer(&mut showing);
        }
        true
    }

    /// The transaction has ended: whoever waits is to be answered when that is durable.
    pub(crate) fn leave(&mut self, id: &TransactionId) -> Option<Waiting> {
        let waiting = self.by_id.remove(id)?;
        self.for_begin -= waiting.all().map(Watcher::for_begin).sum::<usize>();
        Some(waiting)
    }
}

impl Waiting {
    fn all(&self) -> impl Iterator<Item = &Watcher> {
        std::iter::once(&self.first).chain(&self.others)
    }

    /// It is durable that the transaction has ended: answers everybody.
    pub(crate) fn answer(self, transaction: Shown) {
        let mut showing = Showing::Shared(transaction);
        for watcher in std::iter::once(self.first).chain(self.others) {
            watcher.answer(&mut showing);
        }
    }
}

/// How far a live transaction has come. One that rolls back because the limit for the whole has
/// passed is at the same time as far as anybody waits for.
pub(crate) fn reached(transaction: &Transaction) -> Wait {
    match &transaction.decision {
        _ if transaction.overdue => Wait::Completed,
        // Nothing moves it: nobody is kept waiting.
        _ if transaction.set_aside.is_some() => Wait::Completed,
        // The outcome may take long to come, and whoever waits should know that it is not known.
        None if transaction.settling.is_some() => Wait::Outcome,
        None => Wait::Accepted,
        Some(decision) => told_by(&decision.reason),
    }
}

/// How far a decision for this reason brings whoever waits.
pub(crate) const fn told_by(reason: &Reason) -> Wait {
    match reason {
        Reason::Timeout => Wait::Completed,
        Reason::AllYes
        | Reason::No { .. }
        | Reason::PrepareTimeout
        | Reason::ExecuteTimeout
        | Reason::Restarted
        | Reason::Requested(_)
        | Reason::Abandoned
        | Reason::Settled => Wait::Outcome,
    }
}

#[cfg(test)]
mod tests {
    use unanimity_core::{BranchPlan, Coordinator, CoordinatorConfig, Event, Kind, Options, Plan};

    use super::*;

    /// A watcher, and where its answer comes.
    fn watcher(wait: Wait) -> (Watcher, oneshot::Receiver<Option<Shown>>) {
        let (reply, replied) = oneshot::channel();
        (Watcher { wait, existed: true, reply: WatcherReply::Get(reply) }, replied)
    }

    /// Most beginnings are looked for by nobody, because nobody waits for one: the count of those
    /// who do must be right whichever way they leave.
    #[test]
    fn who_waits_for_a_beginning_is_told_of_it_whoever_else_waits_or_has_gone() {
        let id = TransactionId::new("t").unwrap();
        let branches = vec![BranchPlan::new("a", "p", Kind::TwoPhase)];
        let plan = Box::new(Plan { open: false, branches, options: Options::default() });
        let event = Event::Begin { transaction: id.clone(), fingerprint: 0, plan };
        let mut coordinator = Coordinator::new(CoordinatorConfig::default());
        assert!(coordinator.handle(1, event).has_records());
        let live = || coordinator.get(&id);

        let mut watchers = Watchers::default();
        let (first, gone) = watcher(Wait::Accepted);
        watchers.add(id.clone(), first);
        drop(gone);
        let (second, mut outcome) = watcher(Wait::Outcome);
        watchers.add(id.clone(), second); // In the place of the one that has gone.
        assert!(!watchers.notify(&id, Wait::Accepted, live));
        let (third, gone) = watcher(Wait::Accepted);
        watchers.add(id.clone(), third);
        drop(gone);
        let (fourth, mut begun) = watcher(Wait::Accepted);
        watchers.add(id.clone(), fourth);
        assert_eq!(watchers.for_begin, 1);
        assert!(watchers.notify(&id, Wait::Accepted, live));
        assert!(begun.try_recv().is_ok() && outcome.try_recv().is_err());
        let (fifth, mut ended) = watcher(Wait::Accepted);
        watchers.add(id.clone(), fifth);
        watchers.leave(&id).unwrap().answer(Arc::new(live().unwrap().clone()));
        assert!(outcome.try_recv().is_ok() && ended.try_recv().is_ok());
        assert_eq!((watchers.for_begin, watchers.waited_for()), (0, 0));
        let (alone, mut begun) = watcher(Wait::Accepted);
        watchers.add(id.clone(), alone);
        assert!(watchers.notify(&id, Wait::Accepted, live) && begun.try_recv().is_ok());
        assert_eq!((watchers.for_begin, watchers.waited_for()), (0, 0));
    }
}
