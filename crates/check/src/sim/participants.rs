//! What happens at services: calls arrive, local transactions are done or fail, answers are lost,
//! processes die and come back and ask.

use unanimity_core::guard::{GuardRow, LATE_REASON};
use unanimity_core::{Answer, Kind, Operation, Outcome, TransactionId};
use unanimity_judge::Event as Seen;

use super::lines::word;
use super::options::FaultKind;
use super::server::{Answered, Ask, Asker, Say};
use super::service::{Handled, Service};
use super::world::{BackTo, CallOnItsWay, Happening, Simulation, StoreBug};

/// How often a broken store shows what it is, in a million calls.
const STORE_BUG_RATE: u64 = 60_000;
/// How long a service that is in doubt waits before it asks again, in milliseconds.
const IN_DOUBT_MS: u64 = 1_500;

impl Simulation {
    pub(super) fn call_arrives(&mut self, call: CallOnItsWay) {
        let (number, replica) = (call.service, call.replica);
        let one = &self.services[number].replicas[replica];
        if !one.up {
            return; // The connection breaks; the caller will find out by its own clock.
        }
        if one.paused_until > self.now {
            let delay = one.paused_until - self.now;
            self.later(delay, Happening::CallArrives(call));
            return;
        }
        if self.strikes(FaultKind::Partition) {
            let until = self.now + self.faults.random().between(200, 8_000);
            let which = self.faults.random().below(3);
            let one = &mut self.services[number].replicas[replica];
            if which != 0 {
                one.cut_in_until = until;
            }
            if which != 1 {
                one.cut_out_until = until;
            }
        }
        if self.replicas_change(number, replica) {
            return;
        }
        if let Some(call) = self.begin_local(call) {
            self.handle_call(call, None);
        }
    }

    /// A call's local transaction ends, and its answer leaves, unless the process ends or stands
    /// still before. `read` is the row as it was once, for a store that does not lock it.
    pub(super) fn handle_call(&mut self, call: CallOnItsWay, read: Option<Option<GuardRow>>) {
        let (number, replica) = (call.service, call.replica);
        self.service_may_forget(number);
        let answer = self.local_transaction(&call, read);
        if self.strikes(FaultKind::ServiceKilled) {
            let down = self.faults.random().between(20, 4_000);
            self.kill_replica(number, replica, down);
            return;
        }
        if self.strikes(FaultKind::ServicePaused) {
            let until = self.now + self.faults.random().between(200, 8_000);
            self.services[number].replicas[replica].paused_until = until;
        }
        self.send_answer(call, answer);
    }

    /// Does what a call asks for, or fails to in one of several ways.
    fn local_transaction(&mut self, call: &CallOnItsWay, read: Option<Option<GuardRow>>) -> Answer {
        let (id, branch, operation, _) = &call.key;
        if self.strikes(FaultKind::ServiceFails) {
            return Answer::Unknown("internal error".into());
        }
        if *operation == Operation::CommitOnePhase && self.is_old_copy(call) {
            return Answer::Unsupported;
        }
        let willing = !self.strikes(FaultKind::ServiceUnwilling);
        let fails_before = self.strikes(FaultKind::CommitFailsBefore);
        let fails_after = self.strikes(FaultKind::CommitFailsAfter);
        let key = (id.clone(), *branch);
        let service = &mut self.services[call.service];
        let undone = fails_before || self.planted.store.is_some();
        let before = undone.then(|| service.clone());
        let read = read.unwrap_or_else(|| service.row(call.replica, &key).cloned());
        let handled =
            service.handle(key, read.as_ref(), *operation, call.payload.as_deref(), willing);
        let Handled { answer, worked } = match handled {
            Ok(handled) => handled,
            Err(problem) => {
                self.fail("a call makes sense", problem);
                return Answer::Unknown("nonsense".into());
            }
        };
        if let Some(before) = &before
            && fails_before
            && worked.is_some()
        {
            self.services[call.service].undo(before, false);
            return Answer::Unknown("the local commit failed".into());
        }
        self.count_answer(&answer, worked.is_some(), *operation);
        self.count_replica(call, worked.is_some());
        if let Some(worked) = worked {
            self.see(worked);
            before.iter().for_each(|before| self.break_store(call, before));
        }
        if fails_after {
            return Answer::Unknown("the local commit's outcome is unknown".into());
        }
        answer
    }

    /// Whether the process is of a version that has no commit in one phase. It has none for local
    /// work either; but that is the initiator's own code, and of one version.
    fn is_old_copy(&mut self, call: &CallOnItsWay) -> bool {
        let strikes = self.strikes(FaultKind::ServiceOldCopy);
        let plan = self.plan_of(&call.key.0, call.key.1);
        let local = plan.is_some_and(|plan| plan.kind == Kind::Local);
        let older = self.services[call.service].replicas[call.replica].is_older;
        if older && !local {
            self.situations.count("an older copy was asked for what it does not know");
        }
        (strikes || older) && !local
    }

    /// What a planted bug leaves of a local transaction that was said to be done.
    fn break_store(&mut self, call: &CallOnItsWay, before: &Service) {
        let Some(bug) = self.planted.store else { return };
        if bug == StoreBug::RowNotLocked || !self.disk_random.chance(STORE_BUG_RATE) {
            return;
        }
        let service = &mut self.services[call.service];
        if bug == StoreBug::RowInMemory {
            service.keep_in_memory(call.replica, &(call.key.0.clone(), call.key.1));
        } else {
            service.undo(before, bug == StoreBug::RowApart);
        }
    }

    fn count_answer(&mut self, answer: &Answer, worked: bool, operation: Operation) {
        let situations = &mut self.situations;
        match answer {
            Answer::No(reason) if &**reason == LATE_REASON => situations.count("late refused"),
            Answer::Contradiction(..) => situations.count("contradiction reported"),
            Answer::Yes(_) | Answer::Acknowledged | Answer::ReadOnly | Answer::Read(_)
                if !worked =>
            {
                situations.count(if operation == Operation::Commit {
                    "duplicate commit answered"
                } else {
                    "duplicate answered"
                });
            }
            _ => {} // The rest is counted from the trace.
        }
    }

    fn service_may_forget(&mut self, number: usize) {
        if self.services[number].in_doubt().next().is_none()
            || !self.strikes(FaultKind::ServiceForgets)
        {
            return;
        }
        // A row that somebody works on just now is not restored under their hands.
        let service = &self.services[number];
        let key = service.in_doubt().find(|key| !service.locks.contains_key(key)).cloned();
        let event = key.as_ref().and_then(|key| self.services[number].forget(key));
        self.forgotten.extend(key);
        event.into_iter().for_each(|event| self.see(event));
    }

    pub(super) fn send_answer(&mut self, call: CallOnItsWay, answer: Answer) {
        let cut = self.services[call.service].replicas[call.replica].cut_out_until > self.now;
        if call.back_to == BackTo::Nobody || cut || self.strikes(FaultKind::AnswerLost) {
            return;
        }
        let garbled = self.strikes(FaultKind::AnswerGarbled);
        let answer = if garbled { Answer::Unknown("garbled".into()) } else { answer };
        let delay = self.network.delay(self.options.message_ms);
        self.later(delay, Happening::AnswerArrives(call.key, call.back_to, answer));
    }

    /// A service comes back, and asks about what it finds in doubt.
    pub(super) fn service_starts(&mut self, number: usize, replica: usize) {
        let one = &mut self.services[number].replicas[replica];
        one.up = true;
        one.paused_until = 0;
        let process = format!("service {number}, process {replica}");
        self.see(Seen::Started { process: process.into() });
        self.service_asks(number, replica);
    }

    /// Each process asks on its own: about everything that the database holds in doubt.
    pub(super) fn service_asks(&mut self, number: usize, replica: usize) {
        if !self.services[number].replicas[replica].up {
            return;
        }
        let in_doubt: Vec<(TransactionId, u16)> =
            self.services[number].in_doubt().cloned().collect();
        if in_doubt.is_empty() {
            return;
        }
        for (id, branch) in in_doubt {
            self.ask(Asker::Service(number, replica, branch), id, Ask::Decision);
        }
        self.later(IN_DOUBT_MS, Happening::ServiceAsks(number, replica));
    }

    /// Sends a question to the coordinator.
    pub(super) fn ask(&mut self, to: Asker, id: TransactionId, ask: Ask) {
        let since = self.now;
        if self.strikes(FaultKind::RequestTwice) {
            self.doubled.insert(id.clone());
            let delay = self.faults.random().below(3_000);
            self.later(delay, Happening::AskArrives(to, id.clone(), since, ask.clone()));
        }
        if self.strikes(FaultKind::RequestLost) {
            return;
        }
        let delay = self.network.delay(self.options.message_ms);
        self.later(delay, Happening::AskArrives(to, id, since, ask));
    }

    pub(super) fn say_arrives(&mut self, answered: Answered) {
        match answered.to {
            Asker::Initiator(number, request) => self.initiator_hears(number, request, &answered),
            Asker::Service(number, replica, branch) => {
                let outcome = match answered.say {
                    Say::Outcome(outcome, ..) => outcome,
                    Say::Unknown => Outcome::Rollback,
                    _ => return, // It asks again later.
                };
                self.obey((number, replica), &answered.id, branch, outcome);
            }
            Asker::Operator => {}
        }
    }

    /// A service in doubt does what it was told.
    fn obey(
        &mut self,
        (number, replica): (usize, usize),
        id: &TransactionId,
        branch: u16,
        outcome: Outcome,
    ) {
        let service = &self.services[number];
        let key = (id.clone(), branch);
        let in_doubt = service.in_doubt().any(|one| *one == key);
        // What another local transaction has locked is asked about again.
        if !service.replicas[replica].up || !in_doubt || service.locks.contains_key(&key) {
            return;
        }
        self.situations.count(match outcome {
            Outcome::Commit => "asked, told to commit",
            Outcome::Rollback => "asked, told to roll back",
        });
        let read = service.row(replica, &key).cloned();
        match self.services[number].handle(key, read.as_ref(), word(outcome), None, true) {
            Ok(handled) => handled.worked.into_iter().for_each(|worked| self.see(worked)),
            Err(problem) => self.fail("a decision makes sense", problem),
        }
    }
}
