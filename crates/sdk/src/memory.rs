//! Decides nothing that the guard does not: a guard store in memory, for tests and for services
//! that have no database. What it remembers is gone after a restart, so a service that makes
//! promises which outlive its process needs [`crate::SqliteParticipant`] or a store of its own.

use std::collections::VecDeque;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::HashMap;
use unanimity_core::guard::{GuardRow, GuardState, Reply, Verdict, Work, judge, settle};
use unanimity_core::{Mutations, Operation, TransactionId};

use crate::participant::{
    Answering, CallError, Doubting, InDoubt, OwedAnswer, Participant, Request, now_ms,
};
use crate::service::{BranchContext, ServiceResult, Vote, isolated, unsupported};

/// How many settled branches are remembered unless the service says otherwise.
const SETTLED_MAX: usize = 100_000;

/// A service without a database. Calls come one at a time. An error or a panic must leave nothing
/// of its call behind; so must a no.
pub trait MemoryService: Send + Sync + 'static {
    /// Does the work so that it can be committed and can be undone, and votes.
    ///
    /// # Errors
    /// Anything that is not a no: the coordinator tries again.
    fn prepare(&self, branch: &BranchContext, payload: &[u8]) -> ServiceResult<Vote>;

    /// Makes the prepared work final.
    ///
    /// # Errors
    /// The coordinator tries again, until it succeeds.
    fn commit(&self, branch: &BranchContext, payload: &[u8]) -> ServiceResult<()>;

    /// Undoes the prepared work.
    ///
    /// # Errors
    /// The coordinator tries again, until it succeeds.
    fn rollback(&self, branch: &BranchContext, payload: &[u8]) -> ServiceResult<()>;

    /// Does the work, visibly. Not supported unless the service offers it.
    ///
    /// # Errors
    /// Anything that is not a no: the coordinator tries again.
    fn execute(&self, _branch: &BranchContext, _payload: &[u8]) -> ServiceResult<Vote> {
        unsupported("execute")
    }

    /// Undoes executed work. Not supported unless the service offers it.
    ///
    /// # Errors
    /// The coordinator tries again, until it succeeds.
    fn compensate(&self, _branch: &BranchContext, _payload: &[u8]) -> ServiceResult<()> {
        unsupported("compensate")
    }
}

type Key = (TransactionId, Arc<str>);

#[derive(Debug, Default)]
struct Memory {
    rows: HashMap<Key, (GuardRow, u64)>,
    /// Settled branches in the order of settling; the oldest are forgotten first.
    settled: VecDeque<Key>,
}

/// A participant whose guard is in memory.
#[derive(Debug)]
pub struct MemoryParticipant<S> {
    service: S,
    memory: Mutex<Memory>,
    settled_max: usize,
}

impl<S: MemoryService> MemoryParticipant<S> {
    /// Puts the guard before a service.
    pub fn new(service: S) -> Self {
        Self::with_settled_max(service, SETTLED_MAX)
    }

    /// The same, with a number of settled branches to remember. A message that arrives after its
    /// branch was forgotten is taken for a new one, so remember more than can be under way.
    pub fn with_settled_max(service: S, settled_max: usize) -> Self {
        Self { service, memory: Mutex::default(), settled_max }
    }

    /// The service behind the guard.
    pub const fn service(&self) -> &S {
        &self.service
    }

    /// A panic in the service is caught before it reaches the lock, so poison means nothing here.
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, request: &Request) -> Result<Reply, CallError> {
        let mut memory = self.memory();
        let key = (request.transaction.clone(), Arc::clone(&request.branch));
        let row = memory.rows.get(&key).map(|(row, _)| row);
        let (row, reply) = match judge(row, request.operation, Mutations::default()) {
            Verdict::Repeat(reply) => return Ok(reply),
            Verdict::Refuse(contradiction) => return Err(CallError::Contradiction(contradiction)),
            Verdict::Remember(row, reply) => (row, reply),
            Verdict::Apply => {
                let work = isolated(|| self.work(request))?;
                settle(request.operation, work)
            }
        };
        memory.remember(key, row, self.settled_max);
        Ok(reply)
    }

    fn work(&self, request: &Request) -> ServiceResult<Work> {
        let (branch, payload) = (BranchContext::from(request), &request.payload);
        let done = |()| Work::Done(None);
        match request.operation {
            Operation::Prepare => {
                self.service.prepare(&branch, payload)?.into_work(Operation::Prepare)
            }
            Operation::Execute => {
                self.service.execute(&branch, payload)?.into_work(Operation::Execute)
            }
            Operation::Commit => self.service.commit(&branch, payload).map(done),
            Operation::Rollback => self.service.rollback(&branch, payload).map(done),
            Operation::Compensate => self.service.compensate(&branch, payload).map(done),
            Operation::CommitOnePhase => {
                let work = self.service.prepare(&branch, payload)?.into_work(Operation::Prepare)?;
                if matches!(work, Work::Done(_)) {
                    self.service.commit(&branch, payload)?;
                }
                Ok(work)
            }
            Operation::Inquire => Err("an inquiry does no work".into()),
        }
    }
}

impl Memory {
    fn remember(&mut self, key: Key, row: GuardRow, settled_max: usize) {
        // Prepared and executed work can still be undone, so its row is never forgotten.
        let open = matches!(row.state, GuardState::Prepared | GuardState::Executed);
        let row = (row, now_ms());
        // The names are those of the first call: one copy of them for a branch, not two.
        let key = match self.rows.entry(key) {
            Entry::Occupied(mut known) => {
                known.insert(row);
                known.key().clone()
            }
            Entry::Vacant(place) => place.insert_entry(row).key().clone(),
        };
        if !open {
            self.settled.push_back(key);
        }
        while self.settled.len() > settled_max
            && let Some(oldest) = self.settled.pop_front()
        {
            self.rows.remove(&oldest);
        }
    }
}

impl<S: MemoryService> Participant for MemoryParticipant<S> {
    fn call(&self, request: Request) -> Answering<'_> {
        Box::pin(async move { self.answer(&request) })
    }

    fn take(&self, request: Request, owed: OwedAnswer) -> Option<(Request, OwedAnswer)> {
        owed.settle(self.answer(&request));
        None
    }
}

impl<S: MemoryService> Doubting for MemoryParticipant<S> {
    fn in_doubt(&self) -> Answering<'_, Vec<InDoubt>> {
        Box::pin(async move {
            let memory = self.memory();
            let prepared =
                memory.rows.iter().filter(|(_, (row, _))| row.state == GuardState::Prepared);
            let mut found: Vec<InDoubt> = prepared
                .map(|((transaction, branch), (_, since_ms))| InDoubt {
                    transaction: transaction.clone(),
                    branch: Arc::clone(branch),
                    since_ms: *since_ms,
                })
                .collect();
            found.sort_by(|a, b| {
                (a.since_ms, &a.transaction, &a.branch).cmp(&(
                    b.since_ms,
                    &b.transaction,
                    &b.branch,
                ))
            });
            Ok(found)
        })
    }
}
