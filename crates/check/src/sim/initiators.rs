//! What happens at initiators: they begin, ask again as the SDK's retry logic says, do their own
//! work, give up, or die.

use std::sync::Arc;

use unanimity_core::{Answer, Kind, Operation, Outcome, Unheard};

use super::initiator::{Current, Next, REQUEST_TIMEOUT_MS, Stage, Then};
use super::options::FaultKind;
use super::server::{Answered, Ask, Asker, Say};
use super::world::{BackTo, Happening, Simulation, payload_of};

/// What a refusal of a coordinator looks like over HTTP.
const fn refusal(say: &Say) -> Option<Unheard<'static>> {
    let (status, code) = match say {
        Say::Busy => (503, "at_capacity"),
        Say::SetAside => (409, "set_aside"),
        Say::NotOpen => (409, "not_open"),
        Say::Decided => (409, "already_decided"),
        Say::Begun
        | Say::Enlisted(_)
        | Say::Unknown
        | Say::Pending
        | Say::Outcome(..)
        | Say::Refused(_) => return None,
    };
    Some(Unheard::Refused { status, code })
}

impl Simulation {
    pub(super) fn initiator_hears(&mut self, number: usize, request: u64, answered: &Answered) {
        let initiator = &mut self.initiators[number];
        if initiator.vanished || initiator.request != request {
            return;
        }
        let about = initiator.current.as_ref().map(|current| &current.work.id);
        if about != Some(&answered.id) {
            return;
        }
        if let Say::Refused(code) = answered.say {
            self.fail("a good plan is accepted", code.to_owned());
            return;
        }
        // A request has one answer: a second one, to a copy of it, finds nobody.
        initiator.request += 1;
        let request = initiator.request;
        if let Some(refusal) = refusal(&answered.say) {
            self.unheard(number, request, refusal);
            return;
        }
        initiator.answered(&answered.say);
        let pause = self.network.delay(3);
        self.later(pause, Happening::InitiatorWakes(number, request));
    }

    /// No answer came in time.
    pub(super) fn request_times_out(&mut self, number: usize, request: u64) {
        let initiator = &mut self.initiators[number];
        if !initiator.vanished && initiator.request == request {
            initiator.request += 1;
            let request = initiator.request;
            self.unheard(number, request, Unheard::NoAnswer);
        }
    }

    /// A request has no usable answer.
    fn unheard(&mut self, number: usize, request: u64, unheard: Unheard<'_>) {
        let now = self.now;
        let initiator = &mut self.initiators[number];
        let waits = initiator.current.as_ref().is_some_and(|one| one.stage == Stage::Waiting);
        let then = initiator.unheard(now, unheard);
        let delay = match then {
            Then::Again(delay) => delay,
            Then::AsksStatus | Then::GaveUp => self.network.delay(3),
        };
        let what = match then {
            Then::Again(_) if unheard == Unheard::NoAnswer => "asked again after no answer",
            Then::Again(_) => "asked again after a refusal that passes",
            Then::AsksStatus => "decided already, and asked what",
            Then::GaveUp if unheard == Unheard::NoAnswer => {
                "an initiator gave up without an answer"
            }
            Then::GaveUp => "an initiator gave up, refused",
        };
        if !waits {
            self.situations.count(what);
        }
        self.later(delay, Happening::InitiatorWakes(number, request));
    }

    /// What initiators believe can never have been committed was not. A request of which somebody
    /// between sends a copy may be refused, and its copy acted on: nobody could know.
    pub(super) fn what_is_believed_is_true(&mut self) {
        let believed = self.initiators.iter().flat_map(|one| &one.never_committed);
        let believed = believed.filter(|id| !self.doubled.contains(*id));
        let wrong = believed.filter_map(|id| self.disk.history.get(id)).find(|ended| {
            let by_hand = ended.heuristic().is_some();
            ended.outcome() == Some(Outcome::Commit) && !by_hand
        });
        if let Some(id) = wrong.map(|ended| ended.id.to_string()) {
            let problem = format!("{id} was committed, and its initiator believes that it was not");
            self.fail("what an initiator is told is true", problem);
        }
    }

    pub(super) fn initiator_wakes(&mut self, number: usize, request: u64) {
        let initiator = &mut self.initiators[number];
        if initiator.vanished || initiator.request != request {
            return;
        }
        initiator.request += 1;
        if !initiator.begins() {
            return;
        }
        if self.strikes(FaultKind::InitiatorVanishes) {
            self.initiators[number].vanished = true;
            return;
        }
        if self.strikes(FaultKind::InitiatorRollsBack)
            && let Some(current) = &self.initiators[number].current
            && current.stage == Stage::Waiting
        {
            self.initiators[number].enter(Stage::RollingBack);
        }
        self.initiator_acts(number);
        let request = self.initiators[number].request;
        self.later(REQUEST_TIMEOUT_MS, Happening::RequestTimesOut(number, request));
    }

    fn initiator_acts(&mut self, number: usize) {
        let now = self.now;
        let initiator = &mut self.initiators[number];
        let request = initiator.request;
        if let Some(current) = &mut initiator.current {
            current.asks(now);
        }
        let initiator = &self.initiators[number];
        let Some(Current { work, .. }) = &initiator.current else { return };
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
