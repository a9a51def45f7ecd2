//! Decides what a service is whose data are *keys with values*: it says which keys a branch touches
//! and, purely, what follows from the values; the layer here does prepare, commit, rollback,
//! execute and compensate for it, over the guard of a [`SqliteParticipant`], in the same file and
//! the same local transaction. Two ways to meet a conflict are there, [`Concurrency`]: *locking*,
//! where one side waits, and *optimistic*, where nobody does. What the locks mean is
//! left to `service`, how long somebody waits to `waiting`, the SQL to `tables`.
//!
//! # The promise
//!
//! In both ways a yes can always be committed, also after a restart:
//! 1. Prepare checks the plan's keys against the locks of all prepared branches, reads the values,
//!    asks the service for the change, and writes a lock row for each key, with the new value in
//!    it. The guard's row is written in the same local transaction: the vote and the locks are
//!    durable together, or neither is.
//! 2. Nobody else can change a key, or read it for a change of their own, while the row is there.
//!    So what was read at prepare is still true at commit, whatever the decision takes.
//! 3. Commit stores the values, raises the versions and takes the lock rows out. Rollback takes the
//!    rows out. Neither asks anybody, so neither can be refused.
//!
//! It rests on [`Resource::store`] taking every value that [`Resource::change`] has given, and on
//! nobody writing those tables beside the layer.
//!
//! Transactions over several participants are serializable: every branch holds all of its keys from
//! its vote until the decision, also those that it only reads. For this reason a branch that
//! changes nothing is not left out of phase two.
//!
//! # Who waits, and why it ends
//!
//! *Locking* lets transactions wait in one direction of age only ([`WaitOrder`]): in wait-die, a
//! branch that meets a lock of an older transaction is refused at once
//! ([`Conflict::LockConflict`]), and one that meets only younger ones waits. So along every chain
//! of waits the transactions get younger, and there is no circle, also not over several
//! participants: [`Age`] is the same everywhere, and so must be the order. Within one participant a
//! branch takes all of its keys or none, so their order does not matter, and nothing is held while
//! it waits here. Should ages differ after all (an initiator that gives each branch another time),
//! the wait's limit ends the deadlock: [`Conflict::LockTimeout`].
//!
//! Whoever waits costs no thread, no local transaction and no place in a group: its call was undone
//! and is made again when the key is released. A rollback that overtakes a waiting prepare is
//! remembered by the guard, and the prepare is refused when it comes back.
//!
//! Keep the limit below the coordinator's `attempt_timeout_ms` (2,000 by default): a call that the
//! coordinator has given up waits for nobody, and its next attempt waits anew.
//!
//! Branches of two processes on one file see each other's locks, but wakes stay within a process: a
//! wait then ends with the limit, when the branch asks for the last time.
//!
//! *Optimistic* never waits: a key that another prepared branch has, for writing or to be written,
//! refuses at once ([`Conflict::WriteConflict`]). In both ways a plan may name the version that the
//! initiator has read; if the key is no longer at it, the branch is refused
//! ([`Conflict::VersionConflict`]). Where it names none, the version read is the one at prepare.
//!
//! # Execute and compensate
//!
//! An execute meets conflicts as a prepare does, waits or is refused alike, and then changes the
//! values at once and keeps no lock: between the branches of a saga others see its work. A deferred
//! branch that is refused is asked again by the coordinator until it succeeds. A compensation
//! ([`Resource::reverse`]) cannot be refused: where a prepared branch holds the key it waits,
//! whatever its age, and after that (at once, in the optimistic way) it is *busy*, which the
//! coordinator tries again. It sees the values as they are then, not as the execute left them.

mod age;
mod plan;
mod service;
mod tables;
mod waiting;

use std::fmt;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::Connection;
use rusqlite::types::Value;
use unanimity_core::Operation;

pub use self::age::Age;
pub use self::plan::{Access, Change, Conflict, Plan, Values, Writes};
use self::service::ResourceService;
use self::waiting::{Ticket, WaitingRoom};
use crate::participant::{Answering, CallError, Doubting, InDoubt, Participant, Request};
use crate::service::{BranchContext, ServiceResult, unsupported};
use crate::sqlite::{OpenError, SqliteOptions, SqliteParticipant};

/// A service over keys and values. Every call runs on the participant's one thread.
pub trait Resource: Send + 'static {
    /// Creates or updates the service's own tables, if it has any. Runs at every start, in one
    /// transaction, after the layer's own tables were brought up to date.
    ///
    /// # Errors
    /// Any; the participant does not open.
    fn migrate(&self, _database: &Connection) -> ServiceResult<()> {
        Ok(())
    }

    /// Called before the work for any operation, in its local transaction; a prepare that waits
    /// comes again. For counting, and for faults in tests.
    fn begins(&self, _branch: &BranchContext) {}

    /// Reads the payload of a prepare, an execute or a compensate: which keys does it touch? The
    /// inner error is a no, with its reason.
    ///
    /// # Errors
    /// Anything that is not a no: this call is undone, and the coordinator tries again.
    fn plan(&self, branch: &BranchContext, payload: &[u8]) -> ServiceResult<Result<Plan, String>>;

    /// What follows from the values; nothing but they and the payload may matter.
    ///
    /// # Errors
    /// Anything that is not a no: this call is undone, and the coordinator tries again.
    fn change(
        &self,
        branch: &BranchContext,
        payload: &[u8],
        values: &Values,
    ) -> ServiceResult<Change>;

    /// What takes an executed change back, from the values as they are now. It has no way to say
    /// no. Not supported unless the service offers it.
    ///
    /// # Errors
    /// This call is undone, and the coordinator tries again until it succeeds.
    fn reverse(
        &self,
        _branch: &BranchContext,
        _payload: &[u8],
        _values: &Values,
    ) -> ServiceResult<Writes> {
        unsupported("compensate")
    }

    /// A key's value now; [`Value::Null`] if there is none. From the layer's own table unless the
    /// service keeps its values elsewhere in the same file.
    ///
    /// # Errors
    /// This call is undone, and the coordinator tries again.
    fn load(&self, database: &Connection, key: &str) -> ServiceResult<Value> {
        Ok(tables::value(database, key)?)
    }

    /// Gives a key its value, or takes it away ([`Value::Null`]). Must take whatever
    /// [`Resource::change`] has given: at commit there is no way back.
    ///
    /// # Errors
    /// This call is undone, and the coordinator tries again until it succeeds.
    fn store(&self, database: &Connection, key: &str, value: &Value) -> ServiceResult<()> {
        Ok(tables::set_value(database, key, value)?)
    }
}

/// How conflicts between branches are met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Concurrency {
    /// A conflict is waited out by one side, and refused to the other.
    Locking {
        /// How long a call waits at most, in milliseconds.
        wait_max_ms: u64,
        /// How many branches may wait at a time; further ones are refused at once.
        waiters_max: usize,
        /// Who waits for whom.
        order: WaitOrder,
    },
    /// Nobody waits.
    Optimistic,
}

impl Concurrency {
    /// Locking with its default limits: 1,000 ms and 1,024 branches.
    #[must_use]
    pub const fn locking(order: WaitOrder) -> Self {
        Self::Locking { wait_max_ms: 1_000, waiters_max: 1_024, order }
    }
}

/// Who waits for whom. Every participant of a transaction must have the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WaitOrder {
    /// Wait-die: older transactions wait for younger ones, and younger ones are refused. A
    /// transaction that is begun anew with the time of its first try ([`Plan::since_ms`]) grows
    /// older until it is never refused. But whoever comes later is younger as a rule, so that most
    /// conflicts are refused.
    #[default]
    OlderWaits,
    /// The reverse: younger transactions wait for older ones, and older ones are refused. Whoever
    /// comes later waits, as a rule, in the order of coming, and refused is only who would have to
    /// wait for one that came after it. Work that is begun anew should count as new, without
    /// [`Plan::since_ms`]: it then waits for all that are there.
    YoungerWaits,
}

impl WaitOrder {
    fn may_wait(self, waiter: &Age, holder: &Age) -> bool {
        match self {
            Self::OlderWaits => waiter.is_older_than(holder),
            Self::YoungerWaits => holder.is_older_than(waiter),
        }
    }
}

/// Something that is ready when so much time has passed.
pub type Alarm = Arc<dyn Fn(Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// A resource participant's limits.
#[derive(Clone)]
pub struct ResourceOptions {
    /// How conflicts are met.
    pub concurrency: Concurrency,
    /// The limits of the participant below.
    pub sqlite: SqliteOptions,
    /// For tests only: what a wait's limit is measured with, rather than tokio's clock.
    pub alarm: Option<Alarm>,
}

impl ResourceOptions {
    /// The default limits.
    #[must_use]
    pub fn new(concurrency: Concurrency) -> Self {
        Self { concurrency, sqlite: SqliteOptions::default(), alarm: None }
    }
}

impl fmt::Debug for ResourceOptions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ResourceOptions")
            .field("concurrency", &self.concurrency)
            .field("sqlite", &self.sqlite)
            .finish_non_exhaustive()
    }
}

/// A participant whose service is a [`Resource`].
pub struct ResourceParticipant {
    file: Arc<SqliteParticipant>,
    room: Arc<WaitingRoom>,
    concurrency: Concurrency,
    alarm: Alarm,
}

impl fmt::Debug for ResourceParticipant {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ResourceParticipant")
            .field("concurrency", &self.concurrency)
            .finish_non_exhaustive()
    }
}

impl ResourceParticipant {
    /// Opens or creates the file, with the default limits.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(
        path: impl AsRef<Path>,
        resource: impl Resource,
        concurrency: Concurrency,
    ) -> Result<Self, OpenError> {
        Self::open_with(path, resource, ResourceOptions::new(concurrency))
    }

    /// The same, with limits of its own. A file may be opened one time in one way and the next time
    /// in the other.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open_with(
        path: impl AsRef<Path>,
        resource: impl Resource,
        options: ResourceOptions,
    ) -> Result<Self, OpenError> {
        let ResourceOptions { concurrency, sqlite, alarm } = options;
        let order = match concurrency {
            Concurrency::Locking { order, .. } => order,
            Concurrency::Optimistic => WaitOrder::default(),
        };
        let room = Arc::new(WaitingRoom::new(order));
        let service = ResourceService::new(resource, concurrency, Arc::clone(&room));
        let file = Arc::new(SqliteParticipant::open_with(path, service, sqlite)?);
        let alarm = alarm.unwrap_or_else(|| Arc::new(|time| Box::pin(tokio::time::sleep(time))));
        Ok(Self { file, room, concurrency, alarm })
    }

    /// The participant below, for reading. A call made through it is judged alike, but never waits:
    /// it is busy where it would.
    #[must_use]
    pub fn file(&self) -> Arc<SqliteParticipant> {
        Arc::clone(&self.file)
    }

    /// How many branches wait for a key now.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.room.waiting()
    }

    /// How often a key was changed. For use inside [`SqliteParticipant::read`], beside the
    /// service's own numbers: what an initiator reads for [`Plan::expects`].
    ///
    /// # Errors
    /// SQLite's error.
    pub fn version(database: &Connection, key: &str) -> rusqlite::Result<i64> {
        tables::version(database, key)
    }

    /// How many locks are held. For use inside [`SqliteParticipant::read`].
    ///
    /// # Errors
    /// SQLite's error, also if the file has never been a resource's.
    pub fn count_locks(database: &Connection) -> rusqlite::Result<u64> {
        tables::locked_keys(database)
    }

    /// Asks, and asks again whenever the branch is woken, until there is an answer.
    async fn patiently(
        &self,
        request: Request,
        mut ticket: Ticket,
        first: Answering<'_>,
        wait_max_ms: u64,
    ) -> <Answering<'_> as Future>::Output {
        let mut answer = first.await;
        let mut alarm = None;
        while matches!(answer, Err(CallError::Busy(_))) && !ticket.is_expired() {
            let limit = || (self.alarm)(Duration::from_millis(wait_max_ms));
            let alarm = alarm.get_or_insert_with(limit);
            tokio::select! {
                () = ticket.woken() => {}
                () = alarm => ticket.expire(),
            }
            answer = self.file.call(request.clone()).await;
        }
        answer
    }
}

impl Participant for ResourceParticipant {
    fn call(&self, request: Request) -> Answering<'_> {
        let (transaction, branch) = (request.transaction.clone(), Arc::clone(&request.branch));
        let answering = match (self.concurrency, request.operation) {
            (
                Concurrency::Locking { wait_max_ms, .. },
                Operation::Prepare
                | Operation::CommitOnePhase
                | Operation::Execute
                | Operation::Compensate,
            ) => {
                let ticket = self.room.arrive(&transaction, &branch);
                let first = self.file.call(request.clone());
                Box::pin(self.patiently(request.clone(), ticket, first, wait_max_ms))
            }
            (Concurrency::Optimistic, _)
            | (_, Operation::Commit | Operation::Rollback | Operation::Inquire) => {
                self.file.call(request.clone())
            }
        };
        // It is queued before the branch's own prepare or execute, if one waits, can come back; the
        // guard refuses that one then.
        if matches!(request.operation, Operation::Rollback | Operation::Compensate) {
            self.room.settled(&transaction, &branch);
        }
        answering
    }
}

impl Doubting for ResourceParticipant {
    fn in_doubt(&self) -> Answering<'_, Vec<InDoubt>> {
        Box::pin(self.file.in_doubt())
    }
}
