//! Operations on records in memory, and a service that keeps such records: the documented examples
//! of a participant in this process, complete with the guard and with locks.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use unanimity_core::guard::{self, GuardRow, Reply, Verdict, Work};
use unanimity_core::{Mutations, Operation as Asked, TransactionId};

use crate::local::{Service, Vote};

/// Named records, each any JSON value: `account/A` a number, `user/7` an object.
pub type Records = BTreeMap<String, serde_json::Value>;

/// Puts records back as they were before an operation.
pub type Undo = Box<dyn FnOnce(&mut Records) + Send>;

/// One change that can be done and undone.
pub trait Operation: fmt::Debug + Send + Sync {
    /// The records that it touches. They are locked from prepare to the end of phase two.
    fn touches(&self) -> Vec<String>;

    /// Does it, and says how to undo it.
    ///
    /// # Errors
    /// The reason why it cannot be done. It must have changed nothing then.
    fn execute(&self, records: &mut Records) -> Result<Undo, String>;
}

/// Adds an amount to an account, which may not fall below zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpdateAccountBalance {
    /// The account's name; its record is `account/NAME`, a whole number.
    pub account: String,
    /// What to add, in the smallest unit of the currency; negative to take.
    pub amount: i64,
}

impl Operation for UpdateAccountBalance {
    fn touches(&self) -> Vec<String> {
        vec![format!("account/{}", self.account)]
    }

    fn execute(&self, records: &mut Records) -> Result<Undo, String> {
        let key = format!("account/{}", self.account);
        let Some(balance) = records.get(&key).and_then(serde_json::Value::as_i64) else {
            return Err(format!("there is no account {}", self.account));
        };
        let after = balance.checked_add(self.amount).filter(|after| *after >= 0);
        let Some(after) = after else {
            let needed = self.amount.unsigned_abs();
            return Err(format!("account {} has {balance}, needs {needed}", self.account));
        };
        records.insert(key.clone(), after.into());
        Ok(Box::new(move |records| drop(records.insert(key, balance.into()))))
    }
}

/// Sets one field of a user's profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpdateUserProfile {
    /// The user's name; its record is `user/NAME`, an object.
    pub user: String,
    /// Which field, such as `address`.
    pub field: String,
    /// Its new value.
    pub value: String,
}

impl Operation for UpdateUserProfile {
    fn touches(&self) -> Vec<String> {
        vec![format!("user/{}", self.user)]
    }

    fn execute(&self, records: &mut Records) -> Result<Undo, String> {
        let key = format!("user/{}", self.user);
        let Some(profile) = records.get_mut(&key).and_then(serde_json::Value::as_object_mut) else {
            return Err(format!("there is no user {}", self.user));
        };
        let before = serde_json::Value::Object(profile.clone());
        profile.insert(self.field.clone(), self.value.clone().into());
        Ok(Box::new(move |records| drop(records.insert(key, before))))
    }
}

/// A service that keeps records in memory. Between prepare and the decision its records are locked:
/// another transaction that touches one is refused at once, so nobody waits and nobody reads what
/// may still be undone.
#[derive(Default)]
pub struct RecordService {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    records: Records,
    locks: BTreeMap<String, TransactionId>,
    undo: BTreeMap<TransactionId, Vec<Undo>>,
    guard: BTreeMap<TransactionId, GuardRow>,
}

impl RecordService {
    /// A service with these records to begin with.
    #[must_use]
    pub fn new(records: impl IntoIterator<Item = (String, serde_json::Value)>) -> Self {
        let state = State { records: records.into_iter().collect(), ..State::default() };
        Self { state: Mutex::new(state) }
    }

    /// A record as it is now, with what is prepared and undecided.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<serde_json::Value> {
        self.lock().records.get(key).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guard first, then the work, both under one lock: the local transaction of a service
    /// that keeps everything in memory.
    fn guarded(
        &self,
        id: &TransactionId,
        asked: Asked,
        work: impl FnOnce(&mut State) -> Work,
    ) -> Result<Reply, String> {
        let mut state = self.lock();
        match guard::judge(state.guard.get(id), asked, Mutations::default()) {
            Verdict::Repeat(reply) => Ok(reply),
            Verdict::Refuse(contradiction) => Err(contradiction.code().to_owned()),
            Verdict::Remember(row, reply) => {
                state.guard.insert(id.clone(), row);
                Ok(reply)
            }
            Verdict::Apply => {
                let done = work(&mut state);
                let (row, reply) = guard::settle(asked, done);
                state.guard.insert(id.clone(), row);
                Ok(reply)
            }
        }
    }
}

impl State {
    fn prepare(&mut self, id: &TransactionId, operations: &[Arc<dyn Operation>]) -> Work {
        let touched: Vec<String> = operations.iter().flat_map(|one| one.touches()).collect();
        if let Some(busy) = touched.iter().find(|key| self.locks.contains_key(*key)) {
            return Work::No(format!("{busy} is in use by another transaction"));
        }
        let mut undo = Vec::new();
        for operation in operations {
            match operation.execute(&mut self.records) {
                Ok(one) => undo.push(one),
                Err(reason) => {
                    self.undo_all(undo);
                    return Work::No(reason);
                }
            }
        }
        self.undo.insert(id.clone(), undo);
        self.locks.extend(touched.into_iter().map(|key| (key, id.clone())));
        Work::Done(None)
    }

    fn undo_all(&mut self, undo: Vec<Undo>) {
        for one in undo.into_iter().rev() {
            one(&mut self.records);
        }
    }

    fn unlock(&mut self, id: &TransactionId) {
        self.locks.retain(|_, owner| owner != id);
    }
}

impl Service for RecordService {
    fn prepare(&self, id: &TransactionId, operations: &[Arc<dyn Operation>]) -> Vote {
        match self.guarded(id, Asked::Prepare, |state| state.prepare(id, operations)) {
            Ok(Reply::Yes(_)) => Vote::Yes,
            Ok(Reply::ReadOnly) => Vote::ReadOnly,
            Ok(Reply::No(reason)) | Err(reason) => Vote::No(reason),
            Ok(Reply::Acknowledged) => Vote::No("a prepare cannot be acknowledged".to_owned()),
        }
    }

    fn commit(&self, id: &TransactionId) -> Result<(), String> {
        let committed = self.guarded(id, Asked::Commit, |state| {
            state.undo.remove(id);
            state.unlock(id);
            Work::Done(None)
        });
        committed.map(drop)
    }

    fn rollback(&self, id: &TransactionId) -> Result<(), String> {
        let rolled_back = self.guarded(id, Asked::Rollback, |state| {
            let undo = state.undo.remove(id).unwrap_or_default();
            state.undo_all(undo);
            state.unlock(id);
            Work::Done(None)
        });
        rolled_back.map(drop)
    }
}

impl fmt::Debug for RecordService {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("RecordService").finish_non_exhaustive()
    }
}
