//! The face of the manager: passes requests to the shard that an id names, and merges what the
//! shards and the history know. How a transaction begins is `beginning`'s; how the manager starts,
//! `starting`'s; what a shard does, `shard`'s.

use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use unanimity_core::{BranchPlan, Event, Outcome, TransactionId};

use crate::admission::Door;
use crate::beginning::shard_of;
use crate::error::{StartError, Unavailable};
use crate::explain::Explanation;
use crate::filter::{Cursor, Filter};
use crate::history::{Ended, HistoryPlace, HistoryReader};
use crate::near::ManagerNumber;
use crate::panics;
use crate::shard::Command;
use crate::starting::{Internals, ManagerConfig, start};
use crate::transport::Transport;
use crate::view::{TimelineView, TransactionView};
use crate::watchers::{Shown, Wait};

/// What a participant in doubt is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecisionReply {
    /// Commit.
    Commit,
    /// Roll back; also for a transaction that nobody has a record of (presumed abort).
    Rollback,
    /// Not decided: ask again.
    Pending,
    /// It is set aside, and its records could not be read: it may be decided. Ask again.
    NotRead,
}

/// A page of a list.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// The transactions, latest first, with their timelines if they were asked for.
    pub transactions: Vec<(TransactionView, Option<TimelineView>)>,
    /// Where the next page begins, if there may be one.
    pub next: Option<Cursor>,
}

/// The embeddable transaction manager. Cloning gives another handle to the same one.
#[derive(Clone)]
pub struct TransactionManager {
    pub(crate) inner: Arc<Inner>,
    /// One to each shard.
    pub(crate) ways: Arc<[Arc<Way>]>,
}

/// To what every handle shares, by one shard. Who begins transactions holds it meanwhile, many
/// hundred thousand times a second: they are counted by shard, so that cores which each begin in a
/// shard of their own do not write the same line of memory.
#[repr(align(128))]
pub(crate) struct Way {
    inner: Arc<Inner>,
    pub(crate) shard: usize,
}

impl Deref for Way {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.inner
    }
}

pub(crate) struct Inner {
    pub(crate) running: Running,
    pub(crate) stopping: AtomicBool,
    /// Whose turn it is to say whether somebody is let in.
    pub(crate) turn: AtomicUsize,
}

/// A manager's moving parts, as `starting` hands them over.
pub(crate) struct Running {
    pub(crate) coordinator: u64,
    pub(crate) number: ManagerNumber,
    pub(crate) shards: Vec<mpsc::Sender<Command>>,
    /// Where beginnings wait, by shard.
    pub(crate) doors: Vec<Arc<Door>>,
    /// Counts the beginnings that were refused before they came to wait.
    pub(crate) turned_away: metrics::Counter,
    pub(crate) history: Arc<HistoryReader>,
    pub(crate) place: HistoryPlace,
    pub(crate) transport: Arc<dyn Transport>,
    /// The message of a shard that has failed.
    pub(crate) failed: watch::Receiver<Option<String>>,
    /// How many shards are running.
    pub(crate) count: watch::Receiver<usize>,
    /// The threads that write the journals and the history.
    pub(crate) threads: Mutex<Vec<JoinHandle<()>>>,
}

impl TransactionManager {
    /// Opens the journals, recovers what they hold, and starts working. To be called within a tokio
    /// runtime, unless the configuration names those that the shards run in.
    ///
    /// # Errors
    /// [`StartError`] if the folder is used by another coordinator, or anything in it cannot be
    /// read or written. Nothing is overwritten then.
    pub fn start(config: ManagerConfig, transport: Arc<dyn Transport>) -> Result<Self, StartError> {
        start(config, transport, Internals::default())
    }

    /// The same with parts of it replaced, for tests.
    #[doc(hidden)]
    pub fn start_with(
        config: ManagerConfig,
        transport: Arc<dyn Transport>,
        internals: Internals,
    ) -> Result<Self, StartError> {
        start(config, transport, internals)
    }

    pub(crate) fn from_running(running: Running) -> Self {
        let (stopping, turn) = (AtomicBool::new(false), AtomicUsize::new(0));
        let inner = Arc::new(Inner { running, stopping, turn });
        let way = |shard| Arc::new(Way { inner: Arc::clone(&inner), shard });
        let ways = (0..inner.running.shards.len()).map(way).collect();
        Self { inner, ways }
    }

    /// The coordinator's own id: random, made with the first use of its data folder, and kept
    /// there. A manager in memory has a new one each time.
    #[must_use]
    pub fn coordinator_id(&self) -> u64 {
        self.inner.running.coordinator
    }

    /// An id that nobody has used: time-ordered (UUID version 7), so that neighbours in time are
    /// neighbours in the history.
    #[must_use]
    pub fn generate_id() -> TransactionId {
        crate::generate::generate_id()
    }

    /// Shows a transaction; `None` if nobody has a record of it.
    ///
    /// # Errors
    /// If the manager does not work any more.
    pub async fn get(&self, id: &TransactionId) -> Result<Option<TransactionView>, Unavailable> {
        match self.show(id, None).await? {
            Some(live) => Ok(Some(TransactionView::of(&live))),
            None => Ok(self.in_history(id, false).await?.map(|ended| ended.view)),
        }
    }

    /// Shows a transaction once it has come as far as `wait`, or after `patience` as it is then.
    ///
    /// # Errors
    /// If the manager does not work any more.
    pub async fn wait_for(
        &self,
        id: &TransactionId,
        wait: Wait,
        patience: Duration,
    ) -> Result<Option<TransactionView>, Unavailable> {
        match tokio::time::timeout(patience, self.show(id, Some(wait))).await {
            Ok(Ok(Some(live))) => Ok(Some(TransactionView::of(&live))),
            Ok(Err(unavailable)) => Err(unavailable),
            Ok(Ok(None)) | Err(_) => self.get(id).await,
        }
    }

    /// Shows a transaction's course; `None` if nobody has a record of it.
    ///
    /// # Errors
    /// If the manager does not work any more.
    pub async fn timeline(&self, id: &TransactionId) -> Result<Option<TimelineView>, Unavailable> {
        match self.show(id, None).await? {
            Some(live) => Ok(Some(TimelineView::of(&live))),
            None => Ok(self.in_history(id, true).await?.and_then(|ended| ended.timeline)),
        }
    }

    /// Explains a transaction in words; `None` if it is not live. One that has ended needs no
    /// explanation: see [`Self::get`].
    ///
    /// # Errors
    /// If the manager does not work any more.
    pub async fn explain(&self, id: &TransactionId) -> Result<Option<Explanation>, Unavailable> {
        let mut explanation = self.show(id, None).await?.map(|live| Explanation::of(&live));
        for awaited in explanation.iter_mut().flat_map(|explanation| &mut explanation.awaited) {
            if let Some(reason) = self.inner.running.transport.held_back(&awaited.participant) {
                awaited.next = format!("{}; {reason}", awaited.next);
            }
        }
        Ok(explanation)
    }

    /// Answers a participant in doubt. Of a transaction that nobody has a record of, it is told to
    /// roll back: had it been committed, its record would be kept until this participant knew.
    ///
    /// # Errors
    /// If the manager does not work any more.
    pub async fn decision(&self, id: &TransactionId) -> Result<DecisionReply, Unavailable> {
        let outcome = match self.show(id, None).await? {
            Some(live) if live.set_aside.as_ref().is_some_and(|why| !why.read) => {
                return Ok(DecisionReply::NotRead);
            }
            Some(live) => match live.outcome() {
                None => return Ok(DecisionReply::Pending),
                Some(outcome) => outcome == Outcome::Commit,
            },
            None => self.in_history(id, false).await?.is_some_and(|ended| ended.view.committed()),
        };
        Ok(if outcome { DecisionReply::Commit } else { DecisionReply::Rollback })
    }

    /// Lists live and ended transactions, latest first, at most `limit` (1 or more) of them.
    ///
    /// # Errors
    /// If the manager does not work any more.
    pub async fn list(&self, filter: Filter, limit: usize) -> Result<Page, Unavailable> {
        let mut found: Vec<(TransactionView, Option<TimelineView>)> = Vec::new();
        for shard in &self.inner.running.shards {
            let (reply, replied) = oneshot::channel();
            let command =
                Command::List { filter: Box::new(filter.clone()), limit: limit + 1, reply };
            shard.send(command).await.map_err(|_| self.unavailable())?;
            let live = replied.await.map_err(|_| self.unavailable())?;
            found.extend(live.iter().map(|live| {
                let timeline = filter.with_timeline.then(|| TimelineView::of(live));
                (TransactionView::of(live), timeline)
            }));
        }
        let (history, asked) = (Arc::clone(&self.inner.running.history), filter);
        let ended = blocking(move || history.list(&asked, limit + 1)).await?;
        found.extend(ended.into_iter().map(|ended| (ended.view, ended.timeline)));
        Ok(page(found, limit))
    }

    /// Whether anything is live, or has ended and is not in the history yet.
    ///
    /// # Errors
    /// If the manager does not work any more.
    pub async fn has_live(&self) -> Result<bool, Unavailable> {
        for shard in &self.inner.running.shards {
            let (reply, replied) = oneshot::channel();
            let command = Command::List { filter: Box::default(), limit: 1, reply };
            shard.send(command).await.map_err(|_| self.unavailable())?;
            if !replied.await.map_err(|_| self.unavailable())?.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Rolls a transaction back if it is not decided yet; shows what became of it.
    ///
    /// # Errors
    /// If the manager does not work any more.
    pub async fn rollback(
        &self,
        id: &TransactionId,
        reason: &str,
    ) -> Result<Option<TransactionView>, Unavailable> {
        let event = Event::RollbackRequested { transaction: id.clone(), reason: reason.into() };
        self.tell(id, event).await?;
        self.get(id).await
    }

    /// Tries a transaction's waiting branches again now. One that is set aside is taken up again,
    /// as if the program had never broken on it: now, or at the next start if its records could
    /// not be read (it is shown as set aside still, with no panics counted).
    ///
    /// # Errors
    /// If the manager does not work any more.
    pub async fn retry(&self, id: &TransactionId) -> Result<Option<TransactionView>, Unavailable> {
        let shown = self.show(id, None).await?;
        if shown.is_none_or(|shown| shown.set_aside.is_some()) {
            let (place, set_aside) = (self.inner.running.place.clone(), id.clone());
            let forget = move || panics::forget(&place, &set_aside).map_err(|e| place.error(e));
            blocking(forget).await?;
            let (reply, replied) = oneshot::channel();
            self.send(id, Command::TakeUp { id: id.clone(), reply }).await?;
            replied.await.map_err(|_| self.unavailable())?;
            return self.get(id).await;
        }
        self.tell(id, Event::RetryRequested { transaction: id.clone() }).await?;
        self.get(id).await
    }

    /// Whether a branch's participant may be called, and can do what the branch asks of it.
    ///
    /// # Errors
    /// A stable code, and what is wrong with it.
    pub fn check_branch(&self, branch: &BranchPlan) -> Result<(), (&'static str, String)> {
        self.inner.running.transport.check_branch(branch)
    }

    /// Returns when a shard has failed, with what failed. The process should then end: recovery is
    /// the repair.
    pub async fn failed(&self) -> String {
        let mut failed = self.inner.running.failed.clone();
        let message = failed.wait_for(Option::is_some).await.ok().and_then(|told| told.clone());
        match message {
            Some(message) => message,
            None => std::future::pending().await, // Stopped in good order.
        }
    }

    /// Whether the manager takes requests.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        !self.inner.stopping.load(Ordering::Relaxed) && self.inner.running.failed.borrow().is_none()
    }

    /// Takes nothing new, finishes what is live for at most `patience`, and closes the files. What
    /// is live still then is taken up by the next start. The runtimes that the shards run in must
    /// be driven meanwhile.
    pub async fn stop(&self, patience: Duration) {
        self.inner.stopping.store(true, Ordering::Relaxed);
        self.tell_all(|| Command::Stop).await;
        let mut running = self.inner.running.count.clone();
        if tokio::time::timeout(patience, none_left(&mut running)).await.is_err() {
            self.tell_all(|| Command::Abandon).await;
            none_left(&mut running).await;
        }
        let threads = {
            let mut threads =
                self.inner.running.threads.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *threads)
        };
        let joined = tokio::task::spawn_blocking(|| {
            threads.into_iter().filter_map(|thread| thread.join().err()).count()
        });
        if joined.await.unwrap_or(1) > 0 {
            tracing::error!("a storage thread ended by a panic");
        }
    }

    async fn tell_all(&self, command: impl Fn() -> Command) {
        for shard in &self.inner.running.shards {
            // dropped: a shard that is gone already needs no telling.
            let _ = shard.send(command()).await;
        }
    }

    fn shard(&self, id: &TransactionId) -> &mpsc::Sender<Command> {
        &self.inner.running.shards[shard_of(id, self.inner.running.shards.len())]
    }

    pub(crate) async fn send(
        &self,
        id: &TransactionId,
        command: Command,
    ) -> Result<(), Unavailable> {
        self.shard(id).send(command).await.map_err(|_| self.unavailable())
    }

    async fn tell(&self, id: &TransactionId, event: Event) -> Result<(), Unavailable> {
        let (reply, replied) = oneshot::channel();
        self.send(id, Command::Tell { event: Box::new(event), reply }).await?;
        replied.await.map_err(|_| self.unavailable())
    }

    async fn show(
        &self,
        id: &TransactionId,
        wait: Option<Wait>,
    ) -> Result<Option<Shown>, Unavailable> {
        let (reply, replied) = oneshot::channel();
        self.send(id, Command::Get { id: id.clone(), wait, reply }).await?;
        replied.await.map_err(|_| self.unavailable())
    }

    async fn in_history(
        &self,
        id: &TransactionId,
        with_timeline: bool,
    ) -> Result<Option<Ended>, Unavailable> {
        self.inner.in_history(id, with_timeline).await
    }

    /// Why a shard did not answer, where [`ToldSink::lose`](crate::ToldSink::lose) has said that it
    /// will not. One that ends without being asked to has failed, also in the moment before that
    /// is known everywhere.
    #[must_use]
    pub fn unavailable(&self) -> Unavailable {
        self.inner.unavailable()
    }
}

impl Inner {
    pub(crate) async fn in_history(
        &self,
        id: &TransactionId,
        with_timeline: bool,
    ) -> Result<Option<Ended>, Unavailable> {
        let (history, id) = (Arc::clone(&self.running.history), id.clone());
        blocking(move || history.get(id.as_str(), with_timeline)).await
    }

    pub(crate) fn unavailable(&self) -> Unavailable {
        let failed = self.running.failed.borrow().is_some();
        if failed || !self.stopping.load(Ordering::Relaxed) {
            Unavailable::ShardFailed
        } else {
            Unavailable::Stopping
        }
    }
}

/// Returns when no shard runs any more.
async fn none_left(running: &mut watch::Receiver<usize>) {
    // dropped: an error says that the count's owners are gone, and with them every shard.
    let _ = running.wait_for(|count| *count == 0).await;
}

async fn blocking<T: Send + 'static>(
    run: impl FnOnce() -> Result<T, crate::history::HistoryError> + Send + 'static,
) -> Result<T, Unavailable> {
    match tokio::task::spawn_blocking(run).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => {
            tracing::error!(%error, "the history cannot be read");
            Err(Unavailable::HistoryFailed)
        }
        Err(error) => {
            tracing::error!(%error, "reading the history panicked");
            Err(Unavailable::HistoryFailed)
        }
    }
}

/// Merges what the shards and the history found. A transaction that was archived in between may
/// come from both.
fn page(mut found: Vec<(TransactionView, Option<TimelineView>)>, limit: usize) -> Page {
    found.sort_by(|(a, _), (b, _)| (b.begun_at_ms, &b.id).cmp(&(a.begun_at_ms, &a.id)));
    found.dedup_by(|(a, _), (b, _)| a.id == b.id);
    let more = found.len() > limit;
    found.truncate(limit);
    let last = found.last().filter(|_| more);
    let next = last.map(|(view, _)| Cursor { begun_at_ms: view.begun_at_ms, id: view.id.clone() });
    Page { transactions: found, next }
}
