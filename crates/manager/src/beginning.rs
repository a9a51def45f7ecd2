//! The manager's face for beginning a transaction: decides whether it is let in, and hands it to
//! the shard that its id names. Whether too much is waiting there is asked first, before anything
//! is done for a request: a refusal must cost as little as it can. How that is judged is
//! `admission`'s.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use unanimity_core::{Options, Plan, PlanError, TransactionId, digested_bytes, splitmix64};

use crate::admission::Waiting;
use crate::error::{BeginError, Unavailable};
use crate::generate::{generate_id, generate_id_where};
use crate::manager::{Inner, TransactionManager, Way};
use crate::shard::{BeginCommand, Command};
use crate::view::TransactionView;
use crate::watchers::{BeginAnswer, Begun, OwedTold, Told, ToldSink, Wait};

/// A request to begin a transaction.
#[derive(Clone, Debug)]
pub struct BeginRequest {
    /// The id, if the caller chooses it.
    pub id: Option<TransactionId>,
    /// What to do. (Boxed, because a request is moved several times on its way.)
    pub plan: Box<Plan>,
    /// Until when to wait.
    pub wait: Wait,
    /// Whether the id was made up just now, so that nobody can have used it.
    fresh: bool,
    /// The options as the caller asked for them, if the plan's were filled up from elsewhere.
    asked: Option<Box<Options>>,
    /// Whether the caller has checked the plan and its participants.
    checked: bool,
}

impl BeginRequest {
    /// A request under an id of the manager's choice.
    #[must_use]
    pub fn new(plan: Plan, wait: Wait) -> Self {
        Self { id: None, plan: Box::new(plan), wait, fresh: true, asked: None, checked: false }
    }

    /// A request under an id of the caller's choice: making it again gives the same transaction.
    #[must_use]
    pub fn with_id(id: TransactionId, plan: Plan, wait: Wait) -> Self {
        Self { id: Some(id), plan: Box::new(plan), wait, fresh: false, asked: None, checked: false }
    }

    /// A request under an id from [`TransactionManager::generate_id`], used for nothing before.
    #[must_use]
    pub fn fresh(id: TransactionId, plan: Plan, wait: Wait) -> Self {
        Self { id: Some(id), plan: Box::new(plan), wait, fresh: true, asked: None, checked: false }
    }

    /// The options that the caller asked for, where the plan's own were filled up from a
    /// configuration: so that the same request is the same also after that has changed.
    #[must_use]
    pub fn asking(self, options: Options) -> Self {
        Self { asked: Some(Box::new(options)), ..self }
    }

    /// For who has asked [`Plan::check`] and, of each branch, [`TransactionManager::check_branch`],
    /// to tell what is wrong in words of their own: neither is asked again on the way. A plan that
    /// cannot be is refused by its shard all the same.
    #[must_use]
    pub const fn checked(mut self) -> Self {
        self.checked = true;
        self
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

/// A beginning that is let in, and counts as waiting already.
pub struct Admitted {
    /// To where it begins, unless its id names another.
    way: Arc<Way>,
    /// None: it comes to wait when it is begun.
    waiting: Option<Waiting>,
}

impl Admitted {
    /// Does not count until it is begun: while its request comes from a client that may be slow,
    /// others must not be refused for that.
    #[must_use]
    pub fn stand_aside(self) -> Self {
        Self { waiting: None, ..self }
    }

    /// An id that nobody has used, as [`TransactionManager::generate_id`] makes them, for what is
    /// begun here ([`BeginRequest::fresh`]): where shards have threads of their own it names the
    /// shard on this thread, as it does where none is chosen.
    #[must_use]
    pub fn generate_id(&self) -> TransactionId {
        id_in(self.way.shard, self.way.running.shards.len())
    }

    /// As [`TransactionManager::begin`].
    ///
    /// # Errors
    /// As [`TransactionManager::begin`].
    pub async fn begin(self, request: BeginRequest) -> Result<BeginReply, BeginError> {
        let (reply, replied) = oneshot::channel();
        let asked = self.ask_to_begin(request, BeginAnswer::Whole(reply))?;
        let Asked { way, fingerprint, sending } = asked;
        wait_for_room(sending).await;
        let id = match replied.await.map_err(|_| way.unavailable())?? {
            Begun::Shown { transaction, existed } => {
                let transaction = TransactionView::of(&transaction);
                return Ok(BeginReply { transaction, existed });
            }
            Begun::InHistory(id) => id,
        };
        let transaction = Box::pin(way.begun_before(&id, fingerprint)).await?;
        Ok(BeginReply { transaction, existed: true })
    }

    /// As [`TransactionManager::begin_and_tell`].
    ///
    /// # Errors
    /// As [`TransactionManager::begin`].
    pub async fn begin_and_tell(self, request: BeginRequest) -> Result<Told, BeginError> {
        let (reply, replied) = oneshot::channel();
        let asked = self.ask_to_begin(request, BeginAnswer::Told(reply))?;
        let Asked { way, fingerprint, sending } = asked;
        wait_for_room(sending).await;
        let id = match replied.await.map_err(|_| way.unavailable())?? {
            Ok(told) => return Ok(told),
            Err(id) => id,
        };
        let view = Box::pin(way.begun_before(&id, fingerprint)).await?;
        Ok(Told::of_view(id, view))
    }

    /// As [`Self::begin_and_tell`], for who begins a great many: returns at once, and `sink` is
    /// told under `number`, now or later, once. An id that was chosen takes a task, as the history
    /// may have to be asked; after `patience` nothing is told of it any more. To be called within a
    /// tokio runtime.
    pub fn begin_and_tell_to(
        self,
        request: BeginRequest,
        (sink, number): (Arc<dyn ToldSink>, u64),
        patience: Duration,
    ) {
        let owed = OwedTold::new(sink, number);
        if !request.fresh {
            tokio::spawn(async move {
                match tokio::time::timeout(patience, self.begin_and_tell(request)).await {
                    Ok(told) => owed.settle(told),
                    // Who asks again and again for what takes long must not wait here ever longer.
                    Err(_) => owed.forgive(),
                }
            });
            return;
        }
        let ready = match self.made_ready(request) {
            Ok(ready) => ready,
            Err(error) => return owed.settle(Err(error)),
        };
        let Ready { way, shard, waiting, command } = ready;
        let command = command.answered(BeginAnswer::Sink(owed), &waiting);
        let shard = &way.running.shards[shard];
        if let Some(sending) = hand_over(shard, command, waiting) {
            tokio::spawn(sending);
        }
    }

    /// Checks a request and sends it to its shard, if there is room. Not within the caller's own
    /// future, of which there may be many thousand: there it would leave its place behind.
    fn ask_to_begin(self, request: BeginRequest, reply: BeginAnswer) -> Result<Asked, BeginError> {
        let Ready { way, shard, waiting, command } = self.made_ready(request)?;
        let fingerprint = command.fingerprint;
        let command = command.answered(reply, &waiting);
        let sending = hand_over(&way.running.shards[shard], command, waiting);
        Ok(Asked { way, fingerprint, sending })
    }

    /// Checks a request, and makes of it what is sent to its shard.
    fn made_ready(self, request: BeginRequest) -> Result<Ready, BeginError> {
        let Self { way, waiting } = self;
        // Its shard checks the plan in any case. Here it is for what costs much before that, and to
        // tell of two mistakes the first.
        if !request.checked {
            let participants = way.check_participants(&request.plan);
            if participants.is_err() || !request.fresh {
                request.plan.check()?;
            }
            participants?;
        }
        way.check_busy(&request.plan)?;
        let may_be_used = !request.fresh;
        let fingerprint = match request.asked {
            _ if !may_be_used => 0,
            None => fingerprint(&request.plan),
            Some(options) => {
                let (open, branches) = (request.plan.open, request.plan.branches.clone());
                fingerprint(&Plan { open, branches, options: *options })
            }
        };
        let shards = way.running.shards.len();
        let (id, shard) = match request.id {
            Some(id) => {
                let shard = shard_of(&id, shards);
                (id, shard)
            }
            None => (id_in(way.shard, shards), way.shard),
        };
        let door = &way.running.doors[shard];
        let others = shards > 1;
        let elsewhere = others && waiting.as_ref().is_none_or(|waiting| !waiting.is_at(door));
        if elsewhere && door.refuses_next(Instant::now()) {
            return Err(way.overloaded());
        }
        let waiting = match waiting {
            Some(waiting) => waiting.moves_to(door),
            None => door.enter(Instant::now()),
        };
        let (plan, wait) = (request.plan, request.wait);
        let command = Unanswered { id, fingerprint, plan, may_be_used, wait };
        Ok(Ready { way, shard, waiting, command })
    }
}

/// A beginning on its way to a shard that has no room yet. If the shard has ended the beginning is
/// dropped, and with it what would answer.
type Sending = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A beginning that was sent, or waits for room.
struct Asked {
    way: Arc<Way>,
    fingerprint: u128,
    sending: Option<Sending>,
}

/// Sends a beginning to its shard; gives back what remains to be waited for, if there is no room:
/// what has come before has its turn.
fn hand_over(shard: &mpsc::Sender<Command>, command: Command, waiting: Waiting) -> Option<Sending> {
    match shard.try_send(command) {
        Ok(()) => waiting.hand_over(),
        Err(TrySendError::Closed(_)) => {}
        Err(TrySendError::Full(command)) => {
            let shard = shard.clone();
            return Some(Box::pin(async move {
                if shard.send(command).await.is_ok() {
                    waiting.hand_over();
                }
            }));
        }
    }
    None
}

async fn wait_for_room(sending: Option<Sending>) {
    if let Some(sending) = sending {
        sending.await;
    }
}

/// A beginning that can be sent to its shard.
struct Ready {
    way: Arc<Way>,
    shard: usize,
    waiting: Waiting,
    command: Unanswered,
}

/// What a shard is asked, without who is answered.
struct Unanswered {
    id: TransactionId,
    fingerprint: u128,
    plan: Box<Plan>,
    may_be_used: bool,
    wait: Wait,
}

impl Unanswered {
    fn answered(self, reply: BeginAnswer, waiting: &Waiting) -> Command {
        let (Self { id, fingerprint, plan, may_be_used, wait }, came_at) =
            (self, waiting.came_at());
        let command = BeginCommand { id, fingerprint, plan, may_be_used, came_at, wait, reply };
        Command::Begin(Box::new(command))
    }
}

impl TransactionManager {
    /// Begins a transaction and waits as the request says.
    ///
    /// # Errors
    /// [`BeginError`] says why it did not begin. While too much is begun, or a participant is busy,
    /// that may be told of a plan that could not be carried out anyway: its shard looks at it.
    /// [`Unavailable::ShardFailed`] is different: whether it began is not known, and the same id
    /// can safely be used to ask again.
    pub async fn begin(&self, request: BeginRequest) -> Result<BeginReply, BeginError> {
        self.admit_at(self.shard_for(request.id.as_ref()))?.begin(request).await
    }

    /// The same, told no more than the outcome: for initiators with so many transactions that
    /// copying the branches of each matters.
    ///
    /// # Errors
    /// As [`Self::begin`].
    pub async fn begin_and_tell(&self, request: BeginRequest) -> Result<Told, BeginError> {
        self.admit_at(self.shard_for(request.id.as_ref()))?.begin_and_tell(request).await
    }

    /// Lets somebody in who will begin a transaction, or refuses them because too many wait: for
    /// those who have to read or make up their request first.
    ///
    /// # Errors
    /// [`BeginError::Overloaded`], or that the manager is stopping.
    pub fn admit(&self) -> Result<Admitted, BeginError> {
        self.admit_at(self.shard_for(None))
    }

    /// Where what has this id begins. Without one it is the shard on this thread, where shards have
    /// threads; else each has its turn. (What is let in there, and then has an id that names
    /// another, moves on to that one's door.)
    fn shard_for(&self, id: Option<&TransactionId>) -> usize {
        let running = &self.inner.running;
        match (id, running.doors.len()) {
            (_, 1) => 0,
            (Some(id), count) => shard_of(id, count),
            (None, count) => running
                .number
                .shard_here()
                .unwrap_or_else(|| self.inner.turn.fetch_add(1, Ordering::Relaxed) % count),
        }
    }

    fn admit_at(&self, shard: usize) -> Result<Admitted, BeginError> {
        let (running, now) = (&self.inner.running, Instant::now());
        if self.inner.stopping.load(Ordering::Relaxed) {
            return Err(Unavailable::Stopping.into());
        }
        let door = &running.doors[shard];
        if door.refuses_next(now) {
            return Err(self.inner.overloaded());
        }
        let way = Arc::clone(&self.ways[shard]);
        Ok(Admitted { way, waiting: Some(door.enter(now)) })
    }
}

impl Inner {
    fn overloaded(&self) -> BeginError {
        self.running.turned_away.increment(1);
        BeginError::Overloaded
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

    fn check_participants(&self, plan: &Plan) -> Result<(), PlanError> {
        for (index, branch) in plan.branches.iter().enumerate() {
            if let Err((code, message)) = self.running.transport.check_branch(branch) {
                let field = format!("branches[{index}].participant");
                return Err(PlanError { code, field, message });
            }
        }
        Ok(())
    }

    /// Refuses a plan that names a participant which is asked for more than it does already.
    fn check_busy(&self, plan: &Plan) -> Result<(), BeginError> {
        let transport = &self.running.transport;
        let busy = plan.branches.iter().find(|branch| transport.is_busy(&branch.participant));
        busy.map_or(Ok(()), |busy| {
            Err(BeginError::ParticipantBusy(busy.participant.to_string()).counted())
        })
    }
}

/// Which shard an id names. Part of the data format: it must never change.
pub(crate) fn shard_of(id: &TransactionId, shards: usize) -> usize {
    if shards == 1 {
        return 0;
    }
    part_of(hashed(0, id.as_str().as_bytes()), shards)
}

fn hashed(state: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(state, |state, byte| splitmix64(state ^ u64::from(*byte)))
}

fn part_of(hash: u64, shards: usize) -> usize {
    usize::try_from(hash % shards as u64).unwrap_or(0)
}

/// An id that nobody has used, and that names this shard: its last two digits are chosen so.
fn id_in(shard: usize, shards: usize) -> TransactionId {
    if shards == 1 {
        return generate_id();
    }
    loop {
        // Of 64 shards, one in fifty has none among them.
        let found = generate_id_where(|start| {
            let state = hashed(0, start);
            move |end| part_of(hashed(state, end), shards) == shard
        });
        if let Some(id) = found {
            return id;
        }
    }
}

/// A digest of a plan: SHA-1 (as UUID version 5 uses it) over bytes that no version changes.
fn fingerprint(plan: &Plan) -> u128 {
    uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, &digested_bytes(plan)).as_u128()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use unanimity_core::{Answer, BranchPlan, Call, Kind};

    use crate::admission::Door;
    use crate::transport::{CallFuture, Transport};
    use crate::{ManagerConfig, TransactionManager};

    use super::*;

    struct Agreeing;

    impl Transport for Agreeing {
        fn call(&self, _call: Call) -> CallFuture<'_> {
            Box::pin(std::future::ready(Answer::ReadOnly))
        }

        fn check(&self, _participant: &str) -> Result<(), (&'static str, String)> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn who_is_let_through_is_told_to_those_who_come() {
        let manager =
            TransactionManager::start(ManagerConfig::default(), Arc::new(Agreeing)).unwrap();
        let branch = BranchPlan::new("a", "in-process", Kind::TwoPhase);
        let plan = Plan { open: false, branches: vec![branch], options: Options::default() };
        for _ in 0..3 {
            let request = BeginRequest::new(plan.clone(), Wait::Completed);
            assert!(manager.begin(request).await.unwrap().transaction.completed);
        }
        let told = async {
            while manager.inner.running.doors[0].waiting() > 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), told).await.expect("one turn later");
    }

    #[tokio::test]
    async fn where_there_is_no_room_one_waits_until_there_is_or_gives_up() {
        let (sender, mut shard) = mpsc::channel(1);
        let (door, _inside) = Door::new(Duration::ZERO);
        let send = || hand_over(&sender, Command::Stop, door.enter(Instant::now()));
        assert!(send().is_none());
        let [given_up, waits] = [(); 2].map(|()| send().unwrap());
        assert_eq!(door.waiting(), 3);
        drop(given_up);
        assert_eq!(door.waiting(), 2, "who gives up is counted no more");
        assert!(shard.recv().await.is_some());
        waits.await;
        assert_eq!(door.waiting(), 2, "who has come there is counted out by the shard");
        let waits = send().unwrap();
        drop(shard);
        waits.await;
        assert!(send().is_none());
        assert_eq!(door.waiting(), 2, "and who finds it ended counts no more");
    }

    /// On one thread, too: there none of them is nearer than the others.
    #[tokio::test]
    async fn what_has_no_id_goes_to_each_shard_in_turn() {
        let config = ManagerConfig { shards: 3, ..ManagerConfig::default() };
        let manager = TransactionManager::start(config, Arc::new(Agreeing)).unwrap();
        let branch = BranchPlan::new("a", "in-process", Kind::TwoPhase);
        let plan = Plan { open: false, branches: vec![branch], options: Options::default() };
        let mut begun = [0; 3];
        for _ in 0..12 {
            let request = BeginRequest::new(plan.clone(), Wait::Completed);
            let told = manager.begin_and_tell(request).await.unwrap();
            begun[shard_of(&told.id, 3)] += 1;
        }
        assert_eq!(begun, [4; 3]);
    }

    #[test]
    fn an_id_is_made_up_for_any_shard() {
        for shards in [1, 2, 3, 64] {
            for shard in (0..shards).chain(0..shards) {
                let id = id_in(shard, shards);
                assert_eq!(shard_of(&id, shards), shard, "{id}, of {shards}");
                assert_eq!((id.as_str().len(), &id.as_str()[12..13]), (32, "7"), "{id}");
            }
        }
    }

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
