//! The face of the manager: passes requests to the shard that an id names, and merges what the
//! shards and the history know. How it starts is `starting`'s; what a shard does is `shard`'s.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};
use unanimity_core::{
    BranchPlan, Event, Options, Outcome, Plan, PlanError, TransactionId, digested_bytes, splitmix64,
};

use crate::admission::QueueDelay;
use crate::error::{BeginError, StartError, Unavailable};
use crate::explain::Explanation;
use crate::filter::{Cursor, Filter};
use crate::history::{Ended, HistoryPlace, HistoryReader};
use crate::panics;
use crate::shard::{BeginCommand, Command};
use crate::starting::{Internals, ManagerConfig, start};
use crate::transport::Transport;
use crate::view::{TimelineView, TransactionView};
use crate::watchers::{BeginAnswer, Begun, Shown, Told, Wait};

/// A request to begin a transaction.
#[derive(Clone, Debug)]
pub struct BeginRequest {
    /// The id, if the caller chooses it.
    pub id: Option<TransactionId>,
    /// What to do.
    pub plan: Plan,
    /// Until when to wait.
    pub wait: Wait,
    /// Whether the id was made up just now, so that nobody can have used it.
    fresh: bool,
    /// The options as the caller asked for them, if the plan's were filled up from elsewhere.
    asked: Option<Options>,
}

impl BeginRequest {
    /// A request under an id of the manager's choice.
    #[must_use]
    pub const fn new(plan: Plan, wait: Wait) -> Self {
        Self { id: None, plan, wait, fresh: true, asked: None }
    }

    /// A request under an id of the caller's choice: making it again gives the same transaction.
    #[must_use]
    pub const fn with_id(id: TransactionId, plan: Plan, wait: Wait) -> Self {
        Self { id: Some(id), plan, wait, fresh: false, asked: None }
    }

    /// A request under an id from [`TransactionManager::generate_id`], used for nothing before.
    #[must_use]
    pub const fn fresh(id: TransactionId, plan: Plan, wait: Wait) -> Self {
        Self { id: Some(id), plan, wait, fresh: true, asked: None }
    }

    /// The options that the caller asked for, where the plan's own were filled up from a
    /// configuration: so that the same request is the same also after that has changed.
    #[must_use]
    pub fn asking(self, options: Options) -> Self {
        Self { asked: Some(options), ..self }
    }
}

/// What a request to begin came to.
#[derive(Clone, Debug)]
pub struct BeginReply {
    /// The transaction, as it was when what was waited for had come.
    pub transaction: TransactionView,
    /// Whether it had begun before, by the same request.
    pub existed: bool,
}

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
    inner: Arc<Inner>,
}

struct Inner {
    running: Running,
    stopping: AtomicBool,
}

/// A manager's moving parts, as `starting` hands them over.
pub(crate) struct Running {
    pub(crate) coordinator: u64,
    pub(crate) shards: Vec<mpsc::Sender<Command>>,
    /// How long beginnings wait, by shard.
    pub(crate) delays: Vec<Arc<QueueDelay>>,
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
    /// runtime.
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
        Self { inner: Arc::new(Inner { running, stopping: AtomicBool::new(false) }) }
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

    /// Begins a transaction and waits as the request says.
    ///
    /// # Errors
    /// [`BeginError`] says why it did not begin. [`Unavailable::ShardFailed`] is different: whether
    /// it began is not known, and the same id can safely be used to ask again.
    pub async fn begin(&self, request: BeginRequest) -> Result<BeginReply, BeginError> {
        let (reply, replied) = oneshot::channel();
        let fingerprint = self.ask_to_begin(request, BeginAnswer::Whole(reply)).await?;
        match replied.await.map_err(|_| self.unavailable())?? {
            Begun::Shown { transaction, existed } => {
                Ok(BeginReply { transaction: TransactionView::of(&transaction), existed })
            }
            Begun::InHistory(id) => {
                let view = self.begun_before(&id, fingerprint).await?;
                Ok(BeginReply { transaction: view, existed: true })
            }
        }
    }

    /// The same, told no more than the outcome: for initiators with so many transactions that
    /// copying the branches of each matters.
    ///
    /// # Errors
    /// As [`Self::begin`].
    pub async fn begin_and_tell(&self, request: BeginRequest) -> Result<Told, BeginError> {
        let (reply, replied) = oneshot::channel();
        let fingerprint = self.ask_to_begin(request, BeginAnswer::Told(reply)).await?;
        match replied.await.map_err(|_| self.unavailable())?? {
            Ok(told) => Ok(told),
            Err(id) => {
                let view = self.begun_before(&id, fingerprint).await?;
                Ok(Told::of_view(id, view))
            }
        }
    }

    /// Checks a request and sends it to its shard; gives back its fingerprint.
    async fn ask_to_begin(
        &self,
        request: BeginRequest,
        reply: BeginAnswer,
    ) -> Result<u128, BeginError> {
        if self.inner.stopping.load(Ordering::Relaxed) {
            return Err(Unavailable::Stopping.into());
        }
        request.plan.check()?;
        self.check_participants(&request.plan)?;
        self.check_busy(&request.plan)?;
        let may_be_used = !request.fresh;
        let fingerprint = match request.asked {
            _ if !may_be_used => 0,
            None => fingerprint(&request.plan),
            Some(options) => {
                let (open, branches) = (request.plan.open, request.plan.branches.clone());
                fingerprint(&Plan { open, branches, options })
            }
        };
        let id = request.id.unwrap_or_else(Self::generate_id);
        let shard = shard_of(&id, self.inner.running.shards.len());
        let (plan, wait) = (request.plan, request.wait);
        if self.is_overloaded(shard) {
            return Err(BeginError::Overloaded.counted());
        }
        let came_at = Instant::now();
        let command = BeginCommand { id, fingerprint, plan, may_be_used, came_at, wait, reply };
        let sent = self.inner.running.shards[shard].send(Command::Begin(command)).await;
        sent.map_err(|_| self.unavailable())?;
        Ok(fingerprint)
    }

    /// A transaction that the history holds, begun by the same request.
    async fn begun_before(
        &self,
        id: &TransactionId,
        fingerprint: u128,
    ) -> Result<TransactionView, BeginError> {
        let ended = self.in_history(id, false).await?;
        let Some(ended) = ended else { return Err(Unavailable::HistoryFailed.into()) };
        if ended.fingerprint != fingerprint {
            return Err(BeginError::IdReused(id.to_string()));
        }
        Ok(ended.view)
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
            let command = Command::List { filter: filter.clone(), limit: limit + 1, reply };
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
            let command = Command::List { filter: Filter::default(), limit: 1, reply };
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

    fn check_participants(&self, plan: &Plan) -> Result<(), PlanError> {
        for (index, branch) in plan.branches.iter().enumerate() {
            if let Err((code, message)) = self.check_branch(branch) {
                let field = format!("branches[{index}].participant");
                return Err(PlanError { code, field, message });
            }
        }
        Ok(())
    }

    /// Refuses a plan that names a participant which is asked for more than it does already.
    fn check_busy(&self, plan: &Plan) -> Result<(), BeginError> {
        let transport = &self.inner.running.transport;
        let busy = plan.branches.iter().find(|branch| transport.is_busy(&branch.participant));
        busy.map_or(Ok(()), |busy| {
            Err(BeginError::ParticipantBusy(busy.participant.to_string()).counted())
        })
    }

    /// Whether a beginning would be refused now, whatever it is: for those who would have to read
    /// it first.
    #[must_use]
    pub fn refuses_all(&self) -> bool {
        (0..self.inner.running.shards.len()).all(|shard| self.is_overloaded(shard))
    }

    fn is_overloaded(&self, shard: usize) -> bool {
        let running = &self.inner.running;
        let queue = &running.shards[shard];
        let waiting = queue.max_capacity() - queue.capacity();
        running.delays[shard].refuses_next(waiting, Instant::now())
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
    /// is live still then is taken up by the next start.
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
        self.send(id, Command::Tell { event, reply }).await?;
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
        let (history, id) = (Arc::clone(&self.inner.running.history), id.clone());
        blocking(move || history.get(id.as_str(), with_timeline)).await
    }

    /// Why a shard did not answer. One that ends without being asked to has failed, also in the
    /// moment before that is known everywhere.
    pub(crate) fn unavailable(&self) -> Unavailable {
        let failed = self.inner.running.failed.borrow().is_some();
        if failed || !self.inner.stopping.load(Ordering::Relaxed) {
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

/// Which shard an id names. Part of the data format: it must never change.
fn shard_of(id: &TransactionId, shards: usize) -> usize {
    let hash = id.as_str().bytes().fold(0, |state, byte| splitmix64(state ^ u64::from(byte)));
    usize::try_from(hash % shards as u64).unwrap_or(0)
}

/// A digest of a plan: SHA-1 (as UUID version 5 uses it) over bytes that no version changes.
fn fingerprint(plan: &Plan) -> u128 {
    uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, &digested_bytes(plan)).as_u128()
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

#[cfg(test)]
mod tests {
    use unanimity_core::{Kind, Options};

    use super::*;

    /// Both are in data folders: were they to change, ids would be looked for in the wrong shard,
    /// and requests that are made again after an upgrade would be refused.
    #[test]
    fn what_names_shards_and_requests_never_changes() {
        let shard = |name: &str| shard_of(&TransactionId::new(name).unwrap(), 64);
        assert_eq!(["a", "b", "order-4711"].map(shard), [49, 21, 21]);
        let address = "http://127.0.0.1:7001/";
        let payload = b"{}".as_slice().into();
        let branch = BranchPlan { payload, ..BranchPlan::new("accounts", address, Kind::TwoPhase) };
        let plan = Plan { open: false, branches: vec![branch], options: Options::default() };
        let digest = |plan: &Plan| format!("{:x}", fingerprint(plan));
        // What records of version 1 hold.
        assert_eq!(digest(&plan), "c74d13f07339534c99c83b443dd9244b");
        let open = Plan { open: true, ..plan.clone() };
        assert_eq!(digest(&open), "b3d115ee8a65b2ab3c73b530bb05c23");
    }
}
