//! What happens at the coordinator's process while it runs: its appends finish, its effects leave
//! one by one, and anything may kill it between two of them. `starting` has how it starts and ends.

use std::sync::Arc;

use unanimity_core::{
    Answer, Doing, Effect, Encoded, Event, Out, PackedTransactions, RecordReader, Transaction,
    TransactionId, decode_record,
};
use unanimity_journal::{AppendFault, Engine, JournalError};
use unanimity_judge::{Event as Seen, ToldLine};

use super::archiving::first_of;
use super::lines::fact_line;
use super::options::FaultKind;
use super::poison::breaks;
use super::server::{self, Answered, Ask, Asker, CallKey, Process, Say, Shard};
use super::upgrade::of_version_1;
use super::workload::service_of;
use super::world::{BackTo, CallOnItsWay, Happening, Simulation, answer_word, payload_of};

/// A clock may be set back by at most this, in milliseconds.
pub(super) const STEP_MS: u64 = 3_600_000;

impl Simulation {
    /// Writes a batch's records into the trace, as they are read back.
    pub(super) fn write_down(&mut self, shard: u16, position: u64, records: &Encoded) {
        for bytes in records.slices() {
            match decode_record(bytes) {
                Ok(record) => {
                    let transaction: Arc<str> = record.transaction.as_str().into();
                    let fact = fact_line(&record.fact);
                    self.see(Seen::Recorded { transaction, shard, position, fact });
                }
                Err(error) => self.fail("the journal can be read back", error.to_string()),
            }
        }
    }

    pub(super) fn append_done(&mut self, generation: u64, number: usize) {
        if let Some(delay) = self.sleeps(generation) {
            self.later(delay, Happening::AppendDone(generation, number));
            return;
        }
        let fault = if self.strikes(FaultKind::AppendLost) {
            Some(AppendFault::Lost)
        } else if self.strikes(FaultKind::AppendDurableAndFailed) {
            Some(AppendFault::Durable)
        } else if self.strikes(FaultKind::AppendUnsynced) {
            Some(AppendFault::Unsynced)
        } else {
            None
        };
        let Some(shard) = self.shard(generation, number) else { return };
        let Some(batch) = shard.appending.take() else { return };
        if let Some(fault) = fault {
            shard.engine.fail_append(1, fault);
        }
        let (of_shard, forgets) = (shard.number, shard.forgettable.is_some());
        let result = shard.append(&batch);
        match result {
            Ok(receipt) => {
                if forgets {
                    self.situations.count("journal forgot batches");
                }
                self.write_down(of_shard, batch.position, &batch.records);
                let position = receipt.position();
                self.see(Seen::Durable { shard: of_shard, position });
                let Some(shard) = self.shard(generation, number) else { return };
                shard.outbox.receipt(unanimity_core::Durable::up_to(position));
                self.start_append(generation, number);
                self.let_out_what_is_durable(generation, number);
                self.forget(generation, number);
                self.settle(generation, number);
            }
            Err(error) => {
                let conflict = matches!(error, JournalError::Conflict { .. });
                self.note(if conflict { "fenced" } else { "a failed append ended the shard" });
                if fault.is_some_and(|fault| fault != AppendFault::Lost) && !conflict {
                    self.write_down(of_shard, batch.position, &batch.records);
                }
                self.kill(generation, false);
            }
        }
    }

    fn let_out_what_is_durable(&mut self, generation: u64, number: usize) {
        while let Some(out) =
            self.shard(generation, number).and_then(|shard| shard.outbox.release())
        {
            self.let_out(generation, number, vec![out]);
        }
    }

    fn forget(&mut self, generation: u64, number: usize) {
        let Some(shard) = self.shard(generation, number) else { return };
        if let Some(before) = shard.outbox.forgettable() {
            shard.forgettable = Some(before);
        }
        let of_shard = shard.number;
        let Some(before) = shard.forgettable.take_if(|_| shard.outbox.is_idle()) else { return };
        if shard.engine.truncate(of_shard, before).is_err() {
            self.kill(generation, false);
        } else {
            self.situations.count("journal forgot batches by itself");
        }
    }

    fn start_append(&mut self, generation: u64, number: usize) {
        let mean = self.options.sync_ms;
        let (now, linger) = (self.clock(generation), self.options.linger_ms);
        let Some(shard) = self.shard(generation, number) else { return };
        let lingered = shard.outbox.lingers_until().is_some();
        if shard.appending.is_some() || shard.outbox.lingers(now, linger) {
            return;
        }
        let pressed = lingered && shard.outbox.is_pressing();
        let Some(mut batch) = shard.outbox.next_append() else { return };
        if shard.is_older {
            let Some(records) = of_version_1(&batch.records.slices()) else {
                self.fail("an older version writes what it knows", format!("{batch:?}"));
                return;
            };
            batch.records = records;
        }
        shard.appending = Some(batch);
        if pressed {
            self.situations.count("an end went with what came next");
        }
        let mut delay = self.disk_random.delay(mean);
        if self.strikes(FaultKind::AppendSlow) {
            delay += self.faults.random().between(500, 6_000);
        }
        self.later(delay, Happening::AppendDone(generation, number));
    }

    /// Looks after everything that a shard does between two events.
    pub(super) fn settle(&mut self, generation: u64, number: usize) {
        let now = self.clock(generation);
        let poisoned = self.poisoned.clone();
        let Some(shard) = self.shard(generation, number) else { return };
        let (out, broke) = shard.fire(now, &poisoned);
        let reached = shard.reached.take();
        self.let_out(generation, number, out);
        if let Some(id) = broke {
            self.broke(generation, &id, Doing::Handling);
            return;
        }
        if let Some(id) = reached {
            self.fail("nothing reaches what is set aside", id.to_string());
        }
        let Some(shard) = self.shard(generation, number) else { return };
        for id in shard.outbox.stragglers(&shard.coordinator) {
            if breaks(&poisoned, &shard.coordinator, &id, Doing::WritingAnew) {
                self.broke(generation, &id, Doing::WritingAnew);
                return;
            }
            shard.outbox.write_anew(now, &mut shard.coordinator, &id);
        }
        self.start_append(generation, number);
        let Some(shard) = self.shard(generation, number) else { return };
        let done: Vec<_> = std::iter::from_fn(|| shard.to_archive()).collect();
        let timer = shard.coordinator.next_timer().map(|timer| timer.at);
        let due = timer.into_iter().chain(shard.outbox.lingers_until()).min();
        // One that could not be read may have ended: it is not counted.
        let read = |live: &&Transaction| live.set_aside.as_ref().is_none_or(|why| why.read);
        let live = shard.coordinator.iter().filter(read).count() as u64;
        let heights = (live, shard.live_most);
        self.situations.height(heights.0);
        if heights.0 > heights.1 {
            let what = "live transactions".into();
            self.see(Seen::Height { what, value: heights.0, most: heights.1 });
        }
        for done in done {
            self.archive(generation, number, done);
        }
        let Some(shard) = self.shard(generation, number) else { return };
        if let Some(at) = due
            && shard.wakes_at.is_none_or(|planned| at < planned)
        {
            shard.wakes_at = Some(at);
            let delay = at.saturating_sub(now);
            self.later(delay, Happening::ShardWakes(generation, number));
        }
    }

    fn archive(&mut self, generation: u64, number: usize, done: Arc<PackedTransactions>) {
        let mut delay = self.disk_random.delay(5);
        if self.strikes(FaultKind::HistorySlow) {
            delay += self.faults.random().between(500, 5_000);
        }
        self.later(delay, Happening::Archived(generation, number, done));
    }

    /// The history has written what it was given. A process that died meanwhile will give it again.
    pub(super) fn archived(
        &mut self,
        generation: u64,
        number: usize,
        done: Arc<PackedTransactions>,
    ) {
        if let Some(delay) = self.sleeps(generation) {
            self.later(delay, Happening::Archived(generation, number, done));
            return;
        }
        if self.shard(generation, number).is_none() {
            return;
        }
        let mut reader = RecordReader::default();
        for one in done.iter() {
            let ended = one.unpack(&mut reader);
            self.disk.history.insert(ended.id.clone(), Arc::new(ended));
        }
        let Some(shard) = self.shard(generation, number) else { return };
        let noted = shard.archived(first_of(&done).as_ref());
        let of = shard.number;
        self.disk.archived_up_to.extend(noted.map(|up_to| (of, up_to)));
        self.forget(generation, number);
        self.settle(generation, number);
    }

    pub(super) fn shard_wakes(&mut self, generation: u64, number: usize) {
        if let Some(delay) = self.sleeps(generation) {
            self.later(delay, Happening::ShardWakes(generation, number));
            return;
        }
        let Some(shard) = self.shard(generation, number) else { return };
        shard.wakes_at = None;
        self.settle(generation, number);
        self.may_die(generation);
    }

    /// Any moment may be a coordinator's last, or the beginning of a long sleep. Whether it died.
    pub(super) fn may_die(&mut self, generation: u64) -> bool {
        if self.strikes(FaultKind::CoordinatorKilled) {
            self.kill(generation, false);
            return true;
        }
        if self.strikes(FaultKind::CoordinatorLosesPower) {
            self.kill(generation, true);
            return true;
        }
        if self.may_be_upgraded(generation) {
            return true;
        }
        let replaced = self.strikes(FaultKind::CoordinatorReplaced);
        if replaced || self.strikes(FaultKind::CoordinatorPaused) {
            let until = self.now + self.faults.random().between(500, 15_000);
            let mut processes = self.processes.iter_mut();
            if let Some(process) = processes.find(|one| one.generation == generation) {
                process.paused_until = until;
            }
            if replaced {
                self.later(300, Happening::CoordinatorStarts);
            }
        }
        false
    }

    /// Lets out what may leave, one effect after the other: the process may die between any two.
    pub(super) fn let_out(&mut self, generation: u64, number: usize, out: Vec<Out<Answered>>) {
        let shard = self.shard(generation, number);
        for ended in shard.map(|shard| std::mem::take(&mut shard.has_ended)).unwrap_or_default() {
            self.situations.ended(&ended);
            self.measure_timeline(&ended);
        }
        for one in out {
            match one {
                Out::Reply(answered) => self.say(answered),
                Out::Effects(effects) => {
                    for effect in effects {
                        self.carry_out(generation, number, effect);
                        if self.may_die(generation) {
                            return;
                        }
                    }
                }
            }
        }
    }

    fn carry_out(&mut self, generation: u64, number: usize, effect: Effect) {
        match effect {
            Effect::Call(call) => {
                let key = Shard::key(&call);
                let Some(shard) = self.shard(generation, number) else { return };
                shard.open.insert(key.clone());
                let live = shard.coordinator.get(&call.transaction);
                let asks = live.is_some_and(|live| live.settling.is_some());
                self.see(Seen::Called {
                    transaction: call.transaction.as_str().into(),
                    branch: call.branch,
                    operation: call.operation,
                    attempt: call.attempt,
                    asks,
                });
                let timeout = call.timeout_ms;
                let back_to = BackTo::Coordinator(generation, number);
                self.later(timeout, Happening::CallTimesOut(generation, number, key.clone()));
                self.check_payload(&call);
                self.send_call(key, call.payload, back_to);
            }
            Effect::Begun(id) => self.tell(generation, number, &id, None),
            Effect::Decided(id, ..) => {
                let Some(shard) = self.shard(generation, number) else { return };
                let live = shard.coordinator.get(&id).map(server::said);
                let said = live.or_else(|| shard.ending.get(&id).map(|one| server::said(&one)));
                self.tell(generation, number, &id, said);
            }
            Effect::Parked(..) => self.situations.count("parked"),
            Effect::Ended(ended) => unreachable!("{}: taken out of its step", ended.id),
            // Told by whoever took the request in, or only shown.
            Effect::Refused(..)
            | Effect::Enlisted(..)
            | Effect::EnlistRefused(..)
            | Effect::Resolved(..)
            | Effect::Settling(_)
            | Effect::Overdue(_) => {}
        }
    }

    /// A timeline holds as many observations as it may, under the limit before an upgrade or after.
    fn measure_timeline(&mut self, transaction: &Transaction) {
        let value = transaction.timeline.iter().count() as u64;
        let most = [false, true].map(|upgraded| self.options.limits(upgraded).observations_max);
        let most = u64::from(most[0].max(most[1]));
        if value > most {
            self.see(Seen::Height { what: "observations".into(), value, most });
        }
    }

    /// A call carries what the initiator gave, whole.
    fn check_payload(&mut self, call: &unanimity_core::Call) {
        let plan = self.plan_of(&call.transaction, call.branch);
        let Some(plan) = plan else { return };
        let planned = payload_of(plan, call.operation);
        let same = planned == call.payload && service_of(plan) < self.services.len();
        if !same {
            self.fail("a call carries its payload", format!("{call:?}"));
        }
    }

    fn tell(&mut self, generation: u64, number: usize, id: &TransactionId, said: Option<Say>) {
        let Some(shard) = self.shard(generation, number) else { return };
        let all = shard.told(id, said.is_some());
        for waiting in all {
            let say = said.clone().unwrap_or(Say::Begun);
            let (to, since) = (waiting.to, waiting.since);
            self.say(Answered { to, id: id.clone(), since, say });
        }
    }

    /// An answer leaves the coordinator: from now on it is known outside.
    fn say(&mut self, answered: Answered) {
        let transaction: Arc<str> = answered.id.as_str().into();
        let since = answered.since;
        let told = |what| Seen::Told { transaction: Arc::clone(&transaction), what };
        let read = |unknown, outcome| {
            let transaction = Arc::clone(&transaction);
            Seen::Read { transaction, since, unknown, outcome }
        };
        let seen = match (&answered.say, answered.to) {
            (Say::Begun, _) => Some(told(ToldLine::Begun)),
            (Say::Enlisted(branch), _) => Some(told(ToldLine::Enlisted { branch: *branch })),
            (Say::Unknown, Asker::Service(..)) => Some(told(ToldLine::Presumed)),
            (Say::Unknown, _) => Some(read(true, None)),
            (Say::Pending, _) => Some(read(false, None)),
            (Say::Outcome(outcome, true, mixed), _) => {
                Some(told(ToldLine::Ended { outcome: *outcome, mixed: *mixed }))
            }
            (Say::Outcome(outcome, false, _), _) => Some(read(false, Some(*outcome))),
            (Say::NotOpen | Say::Decided | Say::Busy | Say::SetAside | Say::Refused(_), _) => None,
        };
        if let Some(seen) = seen {
            self.see(seen);
        }
        let initiator = matches!(answered.to, Asker::Initiator(..));
        if initiator && self.strikes(FaultKind::ReplyLost) {
            return;
        }
        let delay = self.network.delay(self.options.message_ms);
        self.later(delay, Happening::SayArrives(answered));
    }

    pub(super) fn answer_arrives(&mut self, key: CallKey, back_to: BackTo, answer: Answer) {
        let (generation, number) = match back_to {
            BackTo::Coordinator(generation, number) => (generation, number),
            BackTo::Initiator(initiator, request) => {
                self.own_work_answered(initiator, request, &answer);
                return;
            }
            BackTo::Nobody => return,
        };
        if let Some(delay) = self.sleeps(generation) {
            self.later(delay, Happening::AnswerArrives(key, back_to, answer));
            return;
        }
        let now = self.clock(generation);
        let Some(shard) = self.shard(generation, number) else { return };
        if !shard.open.remove(&key) {
            return; // Given up, or answered already: the driver owes one answer for a call.
        }
        let (transaction, branch, operation, attempt) = key;
        let seen = Seen::Answered {
            transaction: transaction.as_str().into(),
            branch,
            operation,
            attempt,
            answer: answer_word(&answer).into(),
        };
        let id = transaction.clone();
        let event = Event::Answer { transaction, branch, operation, attempt, answer };
        self.see(seen);
        self.may_be_poison(&id);
        if self.breaks_now((generation, number), &id) {
            return;
        }
        let Some(shard) = self.shard(generation, number) else { return };
        let out = shard.handle(now, event);
        self.let_out(generation, number, out);
        self.settle(generation, number);
        self.may_die(generation);
    }

    pub(super) fn ask_arrives(&mut self, to: Asker, id: &TransactionId, since: u64, ask: Ask) {
        // Whoever has taken over has taken the address as well: an older one is asked nothing. (It
        // would presume things of transactions that it never knew; the folder's lock keeps two
        // from running at all.)
        let Some(newest) = self.processes.last() else { return };
        let generation = newest.generation;
        if generation != self.generations {
            return;
        }
        if let Some(delay) = self.sleeps(generation) {
            self.later(delay, Happening::AskArrives(to, id.clone(), since, ask));
            return;
        }
        let number = server::shard_of(id, newest.shards.len());
        if self.breaks_on_ask((generation, number), id, &ask) {
            return;
        }
        let only_shown = matches!(ask, Ask::Status { .. } | Ask::Decision);
        let begins = matches!(ask, Ask::Begin(_));
        if !begins && !self.is_asked_for((generation, number), id, only_shown) {
            return;
        }
        let now = self.clock(generation);
        let mut processes = self.processes.iter_mut();
        let process: Option<&mut Process> = processes.find(|one| one.generation == generation);
        let Some(shard) = process.and_then(|one| one.shards.get_mut(number)) else { return };
        let out = shard.asked(now, &self.disk.history, (to, id, since), ask);
        self.let_out(generation, number, out);
        self.settle(generation, number);
        self.may_die(generation);
    }

    /// Sends a call over the network.
    pub(super) fn send_call(&mut self, key: CallKey, payload: Option<Arc<[u8]>>, back_to: BackTo) {
        let plan = self.plan_of(&key.0, key.1);
        let Some(service) = plan.map(service_of) else { return };
        let replica = self.pick_replica(service);
        let waits_since = None;
        let call = CallOnItsWay { service, replica, waits_since, key, payload, back_to };
        let one = &self.services[service].replicas[replica];
        let (down, cut) = (!one.up, one.cut_in_until > self.now);
        if down || self.strikes(FaultKind::ConnectionRefused) {
            self.situations.count("connection refused");
            let answer = Answer::Unsent("connection refused".into());
            self.later(1, Happening::AnswerArrives(call.key, back_to, answer));
            return;
        }
        if cut || self.strikes(FaultKind::CallLost) {
            return;
        }
        let mut delay = self.network.delay(self.options.message_ms);
        if self.strikes(FaultKind::CallLate) {
            delay += self.faults.random().between(300, 8_000);
        }
        for (kind, again) in [(FaultKind::CallTwice, 2_000), (FaultKind::CallReplayed, STEP_MS)] {
            if self.strikes(kind) {
                // A message that is sent again may reach another process.
                let replica = self.pick_replica(service);
                let copy = CallOnItsWay { back_to: BackTo::Nobody, replica, ..call.clone() };
                let later = self.faults.random().below(again);
                self.later(delay + later, Happening::CallArrives(copy));
            }
        }
        self.later(delay, Happening::CallArrives(call));
    }
}
