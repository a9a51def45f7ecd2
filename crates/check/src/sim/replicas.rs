//! The processes of a service. Several of them serve one database: the guard's rows, the accounts
//! and the locks of the rows are its own; each process lives, stands still and dies on its own, and
//! what it keeps in memory no other sees. What a call does is `service`'s, when it comes is
//! `participants`'.

use std::collections::BTreeMap;

use unanimity_core::TransactionId;
use unanimity_core::guard::GuardRow;
use unanimity_judge::Event as Seen;

use super::options::FaultKind;
use super::world::{CallOnItsWay, Happening, Simulation, StoreBug};

/// How long a local transaction waits for a row that another one has locked, in milliseconds.
const LOCK_WAIT_MS: u64 = 600;
/// How soon one that waits looks again, in milliseconds.
const LOOK_AGAIN_MS: u64 = 20;
/// A balancer that finds a process down sends the call to another so often, in a million.
const ELSEWHERE_RATE: u64 = 750_000;

/// The branch that a row is about.
pub type Key = (TransactionId, u16);

/// One process of a service.
#[derive(Clone, Debug, Default)]
pub struct Replica {
    /// Whether it is up.
    pub up: bool,
    /// Stopped until then.
    pub paused_until: u64,
    /// No call reaches it until then.
    pub cut_in_until: u64,
    /// No answer of it comes through until then.
    pub cut_out_until: u64,
    /// How often it has died: what one life has begun, no later one finishes.
    pub life: u64,
    /// Whether it is a copy that does not know the commit in one phase yet.
    pub is_older: bool,
    /// Rows that a broken store keeps here and not in the database.
    pub memory: BTreeMap<Key, GuardRow>,
}

/// A local transaction under way: who has locked the row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lock {
    /// Which of the service's processes.
    pub replica: usize,
    /// In which of its lives.
    pub life: u64,
}

/// A local transaction that is begun.
#[derive(Clone, Debug)]
pub struct Begun {
    /// The call that it is for.
    pub call: CallOnItsWay,
    /// In which life of its process.
    pub life: u64,
    /// The row as it was read at the beginning.
    pub read: Option<GuardRow>,
}

impl Simulation {
    /// The process of a service that a call is sent to.
    pub(super) fn pick_replica(&mut self, service: usize) -> usize {
        let replicas = &self.services[service].replicas;
        if replicas.len() == 1 {
            return 0;
        }
        let picked = usize::try_from(self.network.below(replicas.len() as u64)).unwrap_or(0);
        if replicas[picked].up || !self.network.chance(ELSEWHERE_RATE) {
            return picked;
        }
        replicas.iter().position(|one| one.up).unwrap_or(picked)
    }

    /// Begins the local transaction of a call: it locks the branch's row, waits if another process
    /// has it, and ends after a while. Where it takes no time it is not begun apart.
    pub(super) fn begin_local(&mut self, mut call: CallOnItsWay) -> Option<CallOnItsWay> {
        let mean = self.options.local_ms;
        if mean == 0 {
            return Some(call);
        }
        let key = (call.key.0.clone(), call.key.1);
        let locks = self.planted.store != Some(StoreBug::RowNotLocked);
        let service = &mut self.services[call.service];
        if locks && service.locks.contains_key(&key) {
            if call.waits_since.is_none() {
                self.situations.count("waited for a locked row");
            }
            let since = *call.waits_since.get_or_insert(self.now);
            if self.now - since > LOCK_WAIT_MS {
                self.situations.count("gave up waiting for a locked row");
                let answer = unanimity_core::Answer::Unknown("the row is locked".into());
                self.send_answer(call, answer);
            } else {
                self.later(LOOK_AGAIN_MS, Happening::CallArrives(call));
            }
            return None;
        }
        let replica = call.replica;
        let life = service.replicas[replica].life;
        let read = service.row(replica, &key).cloned();
        service.locks.insert(key, Lock { replica, life });
        let delay = self.disk_random.delay(mean);
        self.later(delay, Happening::LocalEnds(Box::new(Begun { call, life, read })));
        None
    }

    /// A local transaction comes to its commit, unless its process is gone or stands still.
    pub(super) fn local_ends(&mut self, begun: Box<Begun>) {
        let call = &begun.call;
        let replica = &self.services[call.service].replicas[call.replica];
        if replica.life != begun.life {
            return; // It died, and the database rolls back what it had begun.
        }
        if replica.paused_until > self.now {
            let delay = replica.paused_until - self.now;
            self.later(delay, Happening::LocalEnds(begun));
            return;
        }
        let key = (call.key.0.clone(), call.key.1);
        self.services[call.service].locks.remove(&key);
        let Begun { call, read, .. } = *begun;
        let seen = (self.planted.store == Some(StoreBug::RowNotLocked)).then_some(read);
        self.handle_call(call, seen);
    }

    /// Ends a process of a service for a while. The database finds out, and frees its locks.
    pub(super) fn kill_replica(&mut self, number: usize, replica: usize, down_ms: u64) {
        let service = &mut self.services[number];
        let one = &mut service.replicas[replica];
        if !one.up {
            return;
        }
        one.up = false;
        one.life += 1;
        one.memory.clear();
        let life = one.life;
        let process = format!("service {number}, process {replica}");
        self.see(Seen::Crashed { process: process.into() });
        let held = |lock: &Lock| lock.replica == replica && lock.life < life;
        if self.services[number].locks.values().any(held) {
            self.situations.count("a process died within a local transaction");
            let delay = self.disk_random.below(2_000);
            self.later(delay, Happening::LocksFreed(number, replica, life));
        }
        self.later(down_ms, Happening::ServiceStarts(number, replica));
    }

    pub(super) fn locks_freed(&mut self, number: usize, replica: usize, life: u64) {
        let service = &mut self.services[number];
        service.locks.retain(|_, lock| lock.replica != replica || lock.life >= life);
    }

    /// Whether a process that gets a call is replaced, or another one of its service ends.
    pub(super) fn replicas_change(&mut self, number: usize, replica: usize) -> bool {
        let several = self.services[number].replicas.len() > 1;
        if several && self.strikes(FaultKind::ReplicaDown) {
            let count = self.services[number].replicas.len();
            let down_ms = self.faults.random().between(1_000, 12_000);
            self.kill_replica(number, (replica + 1) % count, down_ms);
        }
        if self.strikes(FaultKind::ServiceUpgraded) {
            let down_ms = self.faults.random().between(20, 1_000);
            let one = &mut self.services[number].replicas[replica];
            one.is_older = !one.is_older;
            self.kill_replica(number, replica, down_ms);
            return true;
        }
        false
    }

    /// What is worth counting where several processes serve one database.
    pub(super) fn count_replica(&mut self, call: &CallOnItsWay, worked: bool) {
        let service = &mut self.services[call.service];
        if service.replicas.len() == 1 {
            return;
        }
        if service.replicas.iter().any(|one| !one.up) {
            self.situations.count("one process is down, and another answers");
        }
        let key = (call.key.0.clone(), call.key.1);
        let before = service.worked_at.insert(key, call.replica);
        if before.is_some_and(|before| before != call.replica) {
            self.situations.count(if worked {
                "a branch goes on at another process"
            } else {
                "a duplicate answered by another process"
            });
        }
    }
}
