//! Decides, inside the local transaction of a call, whether a branch may have the keys of its plan,
//! and turns the resource's change into lock rows, values and versions. It runs on the writer's
//! thread, one call after the other, so what it reads stays true until it has written. How a
//! branch that must wait does so is left to the waiting room and to [`super::ResourceParticipant`].

use std::sync::Arc;

use rusqlite::Connection;
use rusqlite::types::Value;

use super::age::Age;
use super::plan::{Access, Change, Conflict, Plan, Values, Writes};
use super::waiting::{Wait, WaitingRoom};
use super::{Concurrency, Resource, tables};
use crate::service::{BranchContext, Busy, ServiceError, ServiceResult, Vote};
use crate::sqlite::SqliteService;

pub(super) struct ResourceService<R> {
    resource: R,
    concurrency: Concurrency,
    room: Arc<WaitingRoom>,
}

/// A branch that has got past all conflicts.
struct Entered {
    plan: Plan,
    age: Age,
    values: Values,
}

/// The keys of a plan, seen against the locks.
enum Keys {
    Free,
    /// Held only by transactions that this one may wait for.
    Held(String),
    No(Conflict, String),
}

impl<R: Resource> ResourceService<R> {
    pub(super) fn new(resource: R, concurrency: Concurrency, room: Arc<WaitingRoom>) -> Self {
        Self { resource, concurrency, room }
    }

    /// Gets a prepare or an execute past all conflicts, or says no. An error that is [`Busy`] means
    /// that the branch waits.
    fn enter(
        &self,
        database: &Connection,
        branch: &BranchContext,
        payload: &[u8],
    ) -> ServiceResult<Result<Entered, String>> {
        let plan = match self.resource.plan(branch, payload)? {
            Ok(plan) => plan,
            Err(reason) => return Ok(Err(reason)),
        };
        if plan.keys.is_empty() {
            return Err("the service's plan names no key".into());
        }
        let age = Age::of(&branch.transaction, plan.since_ms);
        match self.keys(database, &plan, &age)? {
            Keys::Free => {}
            Keys::No(conflict, key) => return Ok(Err(conflict.reason(&key))),
            Keys::Held(key) => match self.wait(&key, &age, branch) {
                Wait::Begun => return Err(busy(&key)),
                Wait::Expired => return Ok(Err(Conflict::LockTimeout.reason(&key))),
                Wait::Refused => return Ok(Err(Conflict::LockConflict.reason(&key))),
            },
        }
        let values = self.values(database, &plan)?;
        let stale = plan.versions.iter().find(|(key, version)| values.version(key) != **version);
        if let Some((key, _)) = stale {
            return Ok(Err(Conflict::VersionConflict.reason(key)));
        }
        Ok(Ok(Entered { plan, age, values }))
    }

    /// A refusal for good goes before a wait that may turn out to be for nothing.
    fn keys(&self, database: &Connection, plan: &Plan, age: &Age) -> ServiceResult<Keys> {
        let mut held = None;
        for (key, access) in &plan.keys {
            for holder in tables::holders(database, key)? {
                if !access.excludes(holder.access) {
                    continue;
                }
                let same = holder.age.transaction() == age.transaction();
                let no = |conflict| Ok(Keys::No(conflict, key.clone()));
                match self.concurrency {
                    _ if same => return no(Conflict::SameTransaction),
                    Concurrency::Optimistic => return no(Conflict::WriteConflict),
                    Concurrency::Locking { order, .. } if order.may_wait(age, &holder.age) => {
                        held.get_or_insert_with(|| key.clone());
                    }
                    Concurrency::Locking { .. } => return no(Conflict::LockConflict),
                }
            }
        }
        Ok(held.map_or(Keys::Free, Keys::Held))
    }

    fn wait(&self, key: &str, age: &Age, branch: &BranchContext) -> Wait {
        match self.concurrency {
            Concurrency::Optimistic => Wait::Expired,
            Concurrency::Locking { waiters_max, .. } => {
                self.room.wait(key, age, &branch.branch, waiters_max)
            }
        }
    }

    fn values(&self, database: &Connection, plan: &Plan) -> ServiceResult<Values> {
        let mut values = Values::default();
        for key in plan.keys.keys() {
            let value = self.resource.load(database, key)?;
            values.0.insert(key.clone(), (value, tables::version(database, key)?));
        }
        Ok(values)
    }

    /// Gets a prepare or an execute in, and asks for the change. An `Err` within is the no; the
    /// vote beside the writes is the yes that is due once they are kept.
    fn change(
        &self,
        database: &Connection,
        branch: &BranchContext,
        payload: &[u8],
    ) -> ServiceResult<Result<(Entered, Writes, Vote), String>> {
        self.resource.begins(branch);
        let entered = match self.enter(database, branch, payload)? {
            Ok(entered) => entered,
            Err(reason) => return Ok(Err(reason)),
        };
        let (writes, vote) = match self.resource.change(branch, payload, &entered.values)? {
            Change::No(reason) => return Ok(Err(reason)),
            Change::Write(writes) => (writes, Vote::Yes),
            Change::WriteWith(writes, result) => (writes, Vote::YesWith(result)),
        };
        covered(&entered.plan, &writes)?;
        Ok(Ok((entered, writes, vote)))
    }

    fn apply(&self, database: &Connection, key: &str, value: &Value) -> ServiceResult<()> {
        self.resource.store(database, key, value)?;
        Ok(tables::raise_version(database, key)?)
    }

    /// Takes a branch's locks out, for its commit or rollback.
    fn unlock(
        &self,
        database: &Connection,
        branch: &BranchContext,
    ) -> ServiceResult<Vec<tables::Held>> {
        let held = tables::unlock(database, branch)?;
        if held.is_empty() {
            return Err(
                "no lock is kept of this branch: it was prepared by another service on the \
                        same file, or its rows were deleted"
                    .into(),
            );
        }
        for lock in &held {
            self.room.released(&lock.key);
        }
        Ok(held)
    }
}

impl<R: Resource> SqliteService for ResourceService<R> {
    fn migrate(&self, database: &Connection) -> ServiceResult<()> {
        tables::create(database)?;
        self.resource.migrate(database)
    }

    fn prepare(
        &self,
        database: &Connection,
        branch: &BranchContext,
        payload: &[u8],
    ) -> ServiceResult<Vote> {
        let (entered, writes, vote) = match self.change(database, branch, payload)? {
            Ok(changed) => changed,
            Err(reason) => return Ok(Vote::No(reason)),
        };
        for (key, access) in &entered.plan.keys {
            let pending = writes.iter().find(|(written, _)| written == key);
            let pending = pending.map(|(_, value)| value);
            tables::lock(database, key, branch, *access, &entered.age, pending)?;
        }
        for (key, access) in &entered.plan.keys {
            self.room.taken(key, *access, &entered.age, &branch.branch);
        }
        Ok(vote)
    }

    fn commit(&self, database: &Connection, branch: &BranchContext, _: &[u8]) -> ServiceResult<()> {
        self.resource.begins(branch);
        for lock in self.unlock(database, branch)? {
            if let Some(value) = &lock.pending {
                self.apply(database, &lock.key, value)?;
            }
        }
        Ok(())
    }

    fn rollback(
        &self,
        database: &Connection,
        branch: &BranchContext,
        _: &[u8],
    ) -> ServiceResult<()> {
        self.resource.begins(branch);
        self.unlock(database, branch).map(|_| ())
    }

    fn execute(
        &self,
        database: &Connection,
        branch: &BranchContext,
        payload: &[u8],
    ) -> ServiceResult<Vote> {
        let (_, writes, vote) = match self.change(database, branch, payload)? {
            Ok(changed) => changed,
            Err(reason) => return Ok(Vote::No(reason)),
        };
        for (key, value) in &writes {
            self.apply(database, key, value)?;
        }
        Ok(vote)
    }

    fn compensate(
        &self,
        database: &Connection,
        branch: &BranchContext,
        payload: &[u8],
    ) -> ServiceResult<()> {
        self.resource.begins(branch);
        let plan = self.resource.plan(branch, payload)?;
        let plan = plan.map_err(|reason| format!("the payload was executed before: {reason}"))?;
        let age = Age::of(&branch.transaction, plan.since_ms);
        for (key, access) in &plan.keys {
            let holders = tables::holders(database, key)?;
            if holders.iter().any(|holder| access.excludes(holder.access)) {
                self.wait(key, &age, branch);
                return Err(busy(key));
            }
        }
        let values = self.values(database, &plan)?;
        let writes = self.resource.reverse(branch, payload, &values)?;
        covered(&plan, &writes)?;
        for (key, value) in &writes {
            self.apply(database, key, value)?;
        }
        Ok(())
    }
}

fn busy(key: &str) -> ServiceError {
    Busy(format!("{key:?} is held by a branch that is prepared")).into()
}

/// A write outside the plan would change a key that somebody else holds.
fn covered(plan: &Plan, writes: &Writes) -> ServiceResult<()> {
    for (key, _) in writes {
        if plan.keys.get(key) != Some(&Access::Write) {
            return Err(format!("the service writes {key:?}, which its plan does not").into());
        }
        if writes.iter().filter(|(other, _)| other == key).count() > 1 {
            return Err(format!("the service writes {key:?} twice").into());
        }
    }
    Ok(())
}
