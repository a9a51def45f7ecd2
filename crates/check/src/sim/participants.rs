//! What happens at services and initiators: calls arrive, local transactions are done or fail,
//! answers are lost, processes die and come back and ask.

use std::sync::Arc;

use unanimity_core::guard::LATE_REASON;
use unanimity_core::{Answer, Kind, Operation, Outcome, TransactionId};
use unanimity_judge::Event as Seen;

use super::initiator::{ASK_AGAIN_MS, Next, Stage};
use super::lines::word;
use super::options::FaultKind;
use super::server::{Answered, Ask, Asker, Say};
use super::service::Handled;
use super::world::{BackTo, CallOnItsWay, Happening, Simulation, StoreBug, payload_of};

/// How often a broken store shows what it is, in a million calls.
const STORE_BUG_RATE: u64 = 60_000;
/// How long a service that is in doubt waits before it asks again, in milliseconds.
const IN_DOUBT_MS: u64 = 1_500;

impl Simulation {
    pub(super) fn call_arrives(&mut self, call: CallOnItsWay) {
        let number = call.service;
        let service = &self.services[number];
        if !service.up {
            return; // The connection breaks; the caller will find out by its own clock.
        }
        if service.paused_until > self.now {
            let delay = service.paused_until - self.now;
            self.later(delay, Happening::CallArrives(call));
            return;
        }
        if self.strikes(FaultKind::Partition) {
            let until = self.now + self.faults.random().between(200, 8_000);
            let which = self.faults.random().below(3);
            let service = &mut self.services[number];
            if which != 0 {
                service.cut_in_until = until;
            }
            if which != 1 {
                service.cut_out_until = until;
            }
        }
        self.service_may_forget(number);
        let answer = self.local_transaction(&call);
        if self.strikes(FaultKind::ServiceKilled) {
            self.services[number].up = false;
            self.see(Seen::Crashed { process: format!("service {number}").into() });
            let down = self.faults.random().between(20, 4_000);
            self.later(down, Happening::ServiceStarts(number));
            return;
        }
        if self.strikes(FaultKind::ServicePaused) {
            let until = self.now + self.faults.random().between(200, 8_000);
            self.services[number].paused_until = until;
        }
        self.send_answer(call, answer);
    }

    /// Does what a call asks for, or fails to in one of several ways.
    fn local_transaction(&mut self, call: &CallOnItsWay) -> Answer {
        let (id, branch, operation, _) = &call.key;
        if self.strikes(FaultKind::ServiceFails) {
            return Answer::Unknown("internal error".into());
        }
        if *operation == Operation::CommitOnePhase && self.strikes(FaultKind::ServiceOldCopy) {
            // A service that has no commit in one phase has none for local work either; but that
            // is the initiator's own code, and of one version.
            let local = self.plan_of(id, *branch).is_some_and(|plan| plan.kind == Kind::Local);
            if !local {
                return Answer::Unsupported;
            }
        }
        let willing = !self.strikes(FaultKind::ServiceUnwilling);
        let fails_before = self.strikes(FaultKind::CommitFailsBefore);
        let fails_after = self.strikes(FaultKind::CommitFailsAfter);
        let service = &mut self.services[call.service];
        let before = service.clone();
        let handled = service.handle((id, *branch), *operation, call.payload.as_deref(), willing);
        let Handled { answer, worked } = match handled {
            Ok(handled) => handled,
            Err(problem) => {
                self.fail("a call makes sense", problem);
                return Answer::Unknown("nonsense".into());
            }
        };
        if fails_before && worked.is_some() {
            self.services[call.service] = before;
            return Answer::Unknown("the local commit failed".into());
        }
        self.count_answer(&answer, worked.is_some(), *operation);
        if let Some(worked) = worked {
            self.see(worked);
            if let Some(bug) = self.planted.store
                && self.disk_random.chance(STORE_BUG_RATE)
            {
                self.services[call.service].undo(&before, bug == StoreBug::RowApart);
            }
        }
        if fails_after {
            return Answer::Unknown("the local commit's outcome is unknown".into());
        }
        answer
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
        let key = self.services[number].in_doubt().next().cloned();
        let event = key.as_ref().and_then(|key| self.services[number].forget(key));
        self.forgotten.extend(key);
        event.into_iter().for_each(|event| self.see(event));
    }

    fn send_answer(&mut self, call: CallOnItsWay, answer: Answer) {
        let cut = self.services[call.service].cut_out_until > self.now;
        if call.back_to == BackTo::Nobody || cut || self.strikes(FaultKind::AnswerLost) {
            return;
        }
        let garbled = self.strikes(FaultKind::AnswerGarbled);
        let answer = if garbled { Answer::Unknown("garbled".into()) } else { answer };
        let delay = self.network.delay(self.options.message_ms);
        self.later(delay, Happening::AnswerArrives(call.key, call.back_to, answer));
    }

    /// A service comes back, and asks about what it finds in doubt.
    pub(super) fn service_starts(&mut self, number: usize) {
        self.services[number].up = true;
        self.services[number].paused_until = 0;
        self.see(Seen::Started { process: format!("service {number}").into() });
        self.service_asks(number);
    }

    pub(super) fn service_asks(&mut self, number: usize) {
        if !self.services[number].up {
            return;
        }
        let in_doubt: Vec<(TransactionId, u16)> =
            self.services[number].in_doubt().cloned().collect();
        if in_doubt.is_empty() {
            return;
        }
        for (id, branch) in in_doubt {
            self.ask(Asker::Service(number, branch), id, Ask::Decision);
        }
        self.later(IN_DOUBT_MS, Happening::ServiceAsks(number));
    }

    /// Sends a question to the coordinator.
    pub(super) fn ask(&mut self, to: Asker, id: TransactionId, ask: Ask) {
        let since = self.now;
        if self.strikes(FaultKind::RequestTwice) {
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
            Asker::Initiator(number, request) => {
                let initiator = &mut self.initiators[number];
                if initiator.vanished || initiator.request != request {
                    return;
                }
                let about = initiator.current.as_ref().map(|(work, _)| &work.id);
                if about != Some(&answered.id) {
                    return;
                }
                if let Say::Refused(code) = answered.say {
                    self.fail("a good plan is accepted", code.to_owned());
                    return;
                }
                initiator.answered(&answered.say);
                // A request has one answer: a second one, to a copy of it, finds nobody.
                initiator.request += 1;
                let request = initiator.request;
                let patience = if answered.say == Say::Busy { ASK_AGAIN_MS } else { 3 };
                let pause = self.network.delay(patience);
                self.later(pause, Happening::InitiatorWakes(number, request));
            }
            Asker::Service(number, branch) => {
                let outcome = match answered.say {
                    Say::Outcome(outcome, ..) => outcome,
                    Say::Unknown => Outcome::Rollback,
                    _ => return, // It asks again later.
                };
                self.obey(number, &answered.id, branch, outcome);
            }
            Asker::Operator => {}
        }
    }

    /// A service in doubt does what it was told.
    fn obey(&mut self, number: usize, id: &TransactionId, branch: u16, outcome: Outcome) {
        let service = &mut self.services[number];
        let in_doubt = service.in_doubt().any(|(its, at)| its == id && *at == branch);
        if !service.up || !in_doubt {
            return;
        }
        self.situations.count(match outcome {
            Outcome::Commit => "asked, told to commit",
            Outcome::Rollback => "asked, told to roll back",
        });
        match self.services[number].handle((id, branch), word(outcome), None, true) {
            Ok(handled) => handled.worked.into_iter().for_each(|worked| self.see(worked)),
            Err(problem) => self.fail("a decision makes sense", problem),
        }
    }

    pub(super) fn initiator_wakes(&mut self, number: usize, request: u64) {
        let initiator = &mut self.initiators[number];
        if initiator.vanished || initiator.request != request {
            return;
        }
        initiator.request += 1;
        if initiator.current.is_none() {
            let Some(work) = initiator.todo.pop_front() else { return };
            initiator.current = Some((work, Stage::Beginning));
        }
        if self.strikes(FaultKind::InitiatorVanishes) {
            self.initiators[number].vanished = true;
            return;
        }
        if self.strikes(FaultKind::InitiatorRollsBack)
            && let Some((_, stage)) = &mut self.initiators[number].current
            && *stage == Stage::Waiting
        {
            *stage = Stage::RollingBack;
        }
        self.initiator_acts(number);
        let request = self.initiators[number].request;
        self.later(ASK_AGAIN_MS, Happening::InitiatorWakes(number, request));
    }

    fn initiator_acts(&mut self, number: usize) {
        let initiator = &self.initiators[number];
        let request = initiator.request;
        let Some((work, _)) = &initiator.current else { return };
        let id = work.id.clone();
        match initiator.next() {
            Next::Ask(ask) => {
                if self.strikes(FaultKind::OperatorRetries) {
                    self.ask(Asker::Operator, id.clone(), Ask::Retry);
                }
                self.ask(Asker::Initiator(number, request), id, ask);
            }
            Next::Try(branch) => {
                let plan = &work.plan.branches[branch];
                let operation = match plan.kind {
                    Kind::TwoPhase => Operation::Prepare,
                    Kind::Compensable | Kind::Deferred => Operation::Execute,
                    Kind::Local => Operation::CommitOnePhase,
                };
                let payload: Option<Arc<[u8]>> = payload_of(plan, operation);
                let branch = u16::try_from(branch).unwrap_or(0);
                let back_to = BackTo::Initiator(number, request);
                self.send_call((id, branch, operation, 0), payload, back_to);
            }
            Next::Done => {}
        }
    }

    /// The initiator hears of its own call. What is not clear it tries again.
    pub(super) fn own_work_answered(&mut self, number: usize, request: u64, answer: &Answer) {
        let initiator = &mut self.initiators[number];
        if initiator.vanished || initiator.request != request {
            return;
        }
        match answer {
            Answer::Yes(_) | Answer::ReadOnly | Answer::Read(_) => initiator.tried(true),
            Answer::No(_) | Answer::Contradiction(..) => initiator.tried(false),
            Answer::Acknowledged | Answer::Unsupported | Answer::Unsent(_) | Answer::Unknown(_) => {
                return;
            }
        }
        self.later(1, Happening::InitiatorWakes(number, request));
    }
}
