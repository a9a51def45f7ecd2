//! Plays one line of a script at a time against the real coordinator, tells what follows, and
//! checks after each line what must hold always.

use std::collections::BTreeMap;

use unanimity_core::guard::Contradiction;
use unanimity_core::{
    Answer, BranchPlan, Coordinator, CoordinatorConfig, Durable, Effect, EnlistRefusal, Event,
    Fact, Kind, Operation, Options, Outcome, Plan, Progress, Record, Refusal, Step, TimerPurpose,
    Transaction, TransactionId, decode_record, encode_record,
};

/// One coordinator, its journal, and the calls that have left.
pub struct World {
    coordinator: Coordinator,
    journal: Vec<Vec<u8>>,
    now: u64,
    /// The branches of the transaction that began last, by number.
    names: Vec<String>,
    /// The latest call to each branch.
    calls: BTreeMap<String, (Operation, u32)>,
}

impl Default for World {
    fn default() -> Self {
        Self::with(CoordinatorConfig::default())
    }
}

pub fn id(name: &str) -> TransactionId {
    TransactionId::new(name).unwrap()
}

/// A plan from words such as `b:compensable<a` and `limit=30`.
pub fn plan(words: &[&str]) -> Plan {
    let defaults = Options { prepare_timeout_ms: 5_000, ..Options::default() };
    let mut options = Options { one_phase: false, ..defaults };
    let mut open = false;
    let mut branches: Vec<BranchPlan> = Vec::new();
    for word in words {
        if let Some((option, value)) = word.split_once('=') {
            let value: u64 = value.parse().unwrap();
            match option {
                "limit" => options.timeout_ms = value,
                "one-phase" => options.one_phase = value == 1,
                "open" => (open, options.open_timeout_ms) = (true, value),
                "park" => options.retry.park_after_attempts = u16::try_from(value).unwrap(),
                _ => panic!("no option {option}"),
            }
            continue;
        }
        let branch = branch(word, &branches);
        branches.push(branch);
    }
    Plan { open, branches, options }
}

/// A branch from a word such as `b:compensable<a`, `b!` (the initiator works), `m:deferred+50`
/// (after a delay), `n:deferred*` (also on rollback) or `l:deferred$` (comes last).
fn branch(word: &str, before: &[BranchPlan]) -> BranchPlan {
    let (word, after) = word.split_once('<').unwrap_or((word, ""));
    let (word, delay) = word.split_once('+').unwrap_or((word, "0"));
    let (word, comes_last) = (word.trim_end_matches('$'), word.ends_with('$'));
    let (word, also_on_rollback) = (word.trim_end_matches('*'), word.ends_with('*'));
    let (word, tried) = (word.trim_end_matches('!'), word.ends_with('!'));
    let (name, kind) = word.split_once(':').unwrap_or((word, "two_phase"));
    let kinds = [Kind::TwoPhase, Kind::Compensable, Kind::Deferred, Kind::Local];
    let number = |name: &str| before.iter().position(|branch| &*branch.name == name);
    let after = after.split(',').filter(|name| !name.is_empty());
    let kind = kinds.into_iter().find(|one| one.as_str() == kind).unwrap();
    BranchPlan {
        after: after.map(|name| u16::try_from(number(name).unwrap()).unwrap()).collect(),
        payload: name.as_bytes().into(),
        by_initiator: tried || kind == Kind::Local,
        delay_ms: delay.parse().unwrap(),
        also_on_rollback,
        comes_last,
        ..BranchPlan::new(name, format!("at-{name}"), kind)
    }
}

fn answer(word: &str) -> Answer {
    match word {
        "yes" => Answer::Yes(Some("1".into())),
        "readonly" => Answer::ReadOnly,
        "read" => Answer::Read("1".into()),
        "no" => Answer::No("refused".into()),
        "ack" => Answer::Acknowledged,
        "lost" => Answer::Unknown("lost".into()),
        "unsent" => Answer::Unsent("refused".into()),
        "unsupported" => Answer::Unsupported,
        "already-committed" => {
            Answer::Contradiction(Contradiction::AlreadyCommitted, "said so".into())
        }
        "already-rolled-back" => {
            Answer::Contradiction(Contradiction::AlreadyRolledBack, "said so".into())
        }
        _ => panic!("no answer {word}"),
    }
}

impl World {
    pub fn with(config: CoordinatorConfig) -> Self {
        let coordinator = Coordinator::new(config);
        let (names, calls) = (Vec::new(), BTreeMap::new());
        Self { coordinator, journal: Vec::new(), now: 1_000_000, names, calls }
    }

    /// What follows from one line of a script.
    pub fn play(&mut self, line: &str) -> String {
        let words: Vec<&str> = line.split_whitespace().collect();
        let follows = match words[..] {
            ["begin", ref words @ ..] => self.begin("T", 7, plan(words)),
            ["tick"] => self.tick(),
            ["crash"] => self.crash(0),
            ["crash", "losing", count] => self.crash(count.parse().unwrap()),
            ["rewrite"] => self.rewrite(),
            ["rollback"] => {
                let (transaction, reason) = (id("T"), "by hand".into());
                self.handle(Event::RollbackRequested { transaction, reason })
            }
            ["commit"] => self.handle(Event::CommitRequested { transaction: id("T") }),
            ["enlist", word] => self.enlist(word),
            ["resolve", branch, how] => self.resolve(branch, how, ""),
            ["resolve", branch, how, reason] => self.resolve(branch, how, reason),
            ["retry"] => self.handle(Event::RetryRequested { transaction: id("T") }),
            [branch, operation, attempt, word] => {
                let about = (Operation::from_word(operation).unwrap(), attempt.parse().unwrap());
                self.answer(branch, about, word)
            }
            [branch, word] => {
                let about = self.calls[branch];
                self.answer(branch, about, word)
            }
            _ => panic!("no line {line}"),
        };
        self.check();
        follows
    }

    pub fn begin(&mut self, name: &str, fingerprint: u128, plan: Plan) -> String {
        self.names = plan.branches.iter().map(|branch| branch.name.to_string()).collect();
        self.handle(Event::Begin { transaction: id(name), fingerprint, plan: Box::new(plan) })
    }

    /// The transaction, while it is live.
    pub fn live(&self) -> Option<&Transaction> {
        self.coordinator.get(&id("T"))
    }

    /// How long until the next timer.
    pub fn next_in_ms(&self) -> u64 {
        self.coordinator.next_timer().unwrap().at - self.now
    }

    fn enlist(&mut self, word: &str) -> String {
        let plans = |live: &Transaction| live.branches.iter().map(|b| b.whole_plan()).collect();
        let live: Option<Vec<BranchPlan>> = self.live().map(plans);
        let branch = branch(word, &live.unwrap_or_default());
        let is_new = !self.names.iter().any(|name| **name == *branch.name);
        self.names.extend(is_new.then(|| branch.name.to_string()));
        let told = self.handle(Event::Enlist { transaction: id("T"), branch: Box::new(branch) });
        if is_new && !told.contains("enlisted(") {
            self.names.pop();
        }
        told
    }

    fn resolve(&mut self, branch: &str, how: &str, reason: &str) -> String {
        let number = self.names.iter().position(|name| name == branch).unwrap();
        let branch = u16::try_from(number).unwrap();
        let outcome = match how {
            "committed" => Outcome::Commit,
            "rolled_back" => Outcome::Rollback,
            _ => panic!("not an outcome: {how}"),
        };
        let transaction = id("T");
        let has_reason = !reason.is_empty();
        let checked = self.coordinator.check_resolve(&transaction, branch, outcome, has_reason);
        if let Err(refusal) = checked {
            return format!("refused: {refusal:?}");
        }
        let (by, reason) = ("ann".into(), reason.into());
        self.handle(Event::ResolveRequested { transaction, branch, outcome, by, reason })
    }

    fn answer(&mut self, branch: &str, about: (Operation, u32), word: &str) -> String {
        let number = self.names.iter().position(|name| name == branch).unwrap();
        self.handle(Event::Answer {
            transaction: id("T"),
            branch: u16::try_from(number).unwrap(),
            operation: about.0,
            attempt: about.1,
            answer: answer(word),
        })
    }

    fn tick(&mut self) -> String {
        let timer = self.coordinator.next_timer().unwrap().clone();
        self.now = self.now.max(timer.at);
        let purpose = match timer.purpose {
            TimerPurpose::PhaseOneDeadline => "deadline:".to_owned(),
            TimerPurpose::Overdue => "limit:".to_owned(),
            TimerPurpose::Retry(number) => format!("retry {}:", self.name(number)),
        };
        format!("{purpose} {}", self.handle(Event::Timer(timer)))
    }

    /// Everything but the journal is lost, and perhaps the journal's last records.
    fn crash(&mut self, losing: usize) -> String {
        self.journal.truncate(self.journal.len() - losing);
        self.coordinator = self.recovered();
        let step = self.coordinator.resume(self.now);
        self.write_and_tell(step)
    }

    fn rewrite(&mut self) -> String {
        let step = self.coordinator.rewrite(self.now, &id("T")).unwrap();
        self.journal.clear();
        self.write_and_tell(step)
    }

    /// What recovery would find now.
    fn recovered(&self) -> Coordinator {
        let mut recovered = Coordinator::new(CoordinatorConfig::default());
        for bytes in &self.journal {
            recovered.apply(&decode_record(bytes).unwrap()).unwrap();
        }
        recovered
    }

    pub fn handle(&mut self, event: Event) -> String {
        let step = self.coordinator.handle(self.now, event);
        self.write_and_tell(step)
    }

    fn write_and_tell(&mut self, step: Step) -> String {
        let (records, sealed) = step.seal(self.journal.len() as u64);
        let mut told: Vec<String> = Vec::new();
        for record in &records {
            told.push(format!("[{}]", self.record(record)));
            let mut bytes = Vec::new();
            encode_record(record, &mut bytes);
            self.journal.push(bytes);
        }
        let position = sealed.position();
        for effect in sealed.release(Durable::up_to(position)) {
            told.push(self.effect(effect));
        }
        told.join(" ")
    }

    fn name(&self, number: u16) -> &str {
        &self.names[usize::from(number)]
    }

    fn record(&self, record: &Record) -> String {
        let names = |numbers: &[u16]| {
            numbers.iter().map(|number| self.name(*number)).collect::<Vec<_>>().join(" ")
        };
        match &record.fact {
            Fact::Begun { .. } => "begun".to_owned(),
            Fact::Executing { branches, .. } => format!("executing {}", names(branches)),
            Fact::Decided { outcome, reason, .. } => {
                format!("{} {}", outcome.as_str(), reason.code())
            }
            Fact::Finished { branch } => format!("finished {}", names(&[*branch])),
            Fact::Ended => "ended".to_owned(),
            Fact::Enlisted { branch } => format!("enlisted {}", branch.name),
            Fact::Resolved { branch, resolution } => {
                let disputed = if resolution.disputed { " disputed" } else { "" };
                format!("resolved {} {}{disputed}", names(&[*branch]), resolution.outcome.as_str())
            }
            Fact::Snapshot(_) => "snapshot".to_owned(),
        }
    }

    fn effect(&mut self, effect: Effect) -> String {
        match effect {
            Effect::Begun(_) => "tell-begun".to_owned(),
            Effect::Refused(_, refusal) => match *refusal {
                Refusal::Plan(error) => format!("refused {}", error.code),
                Refusal::Exists { same: true } => "refused same".to_owned(),
                Refusal::Exists { same: false } => "refused other".to_owned(),
                Refusal::AtCapacity => "refused capacity".to_owned(),
                Refusal::SetAside => "refused set aside".to_owned(),
            },
            Effect::Call(call) => {
                let about = (call.operation, call.attempt);
                self.calls.insert(call.plan.name.to_string(), about);
                let carries = call.operation.carries_payload();
                assert_eq!(call.payload.is_some(), carries, "{call:?}");
                let intact = call.payload.is_none_or(|bytes| *bytes == *call.plan.name.as_bytes());
                assert!(intact, "the payload of {} was lost", call.plan.name);
                let again = if call.attempt > 1 { format!("#{}", call.attempt) } else { "".into() };
                format!("{}({}){again}", call.operation.as_str(), call.plan.name)
            }
            Effect::Decided(_, Outcome::Commit, _) => "tell-commit".to_owned(),
            Effect::Decided(_, Outcome::Rollback, _) => "tell-rollback".to_owned(),
            Effect::Ended(transaction) => match transaction.heuristic() {
                None => "tell-ended".to_owned(),
                Some(heuristic) => format!("tell-ended {}", heuristic.as_str()),
            },
            Effect::EnlistRefused(_, refusal) => match *refusal {
                EnlistRefusal::Unknown => "unknown".to_owned(),
                EnlistRefusal::NotOpen(stage) => format!("not open: {}", stage.as_str()),
                EnlistRefusal::Conflict => "conflict".to_owned(),
                EnlistRefusal::Plan(error) => error.code.to_owned(),
            },
            Effect::Enlisted(_, number) => format!("enlisted({})", self.name(number)),
            Effect::Resolved(_, number) => format!("resolved({})", self.name(number)),
            Effect::Settling(_) => "tell-settling".to_owned(),
            Effect::Overdue(_) => "tell-overdue".to_owned(),
            Effect::Parked(_, number) => format!("parked({})", self.name(number)),
        }
    }

    /// What must hold after every line.
    fn check(&self) {
        for live in self.coordinator.iter() {
            self.check_live(live);
        }
        let live_only = self.coordinator.timers().all(|t| self.coordinator.knows(&t.transaction));
        assert!(live_only, "a timer of a transaction that has ended");
        self.check_recoverable();
    }

    /// A live transaction has a next action: while undecided, a deadline; once decided, a call
    /// under way or a planned retry.
    fn check_live(&self, live: &Transaction) {
        let armed = |at: u64, purpose: TimerPurpose| {
            let mut timers = self.coordinator.timers();
            timers.any(|t| t.transaction == live.id && t.at == at && t.purpose == purpose)
        };
        for (number, branch) in live.numbered() {
            let planned = branch.retry_at.is_none_or(|at| armed(at, TimerPurpose::Retry(number)));
            assert!(planned, "a retry that nobody waits for: {live:?}");
            assert!(!(branch.in_flight && branch.retry_at.is_some()), "two next actions: {live:?}");
        }
        let next = match live.decision {
            None if live.settling.is_none() => {
                armed(live.phase_one_deadline(), TimerPurpose::PhaseOneDeadline)
            }
            None => live.branches.iter().any(|b| b.in_flight || b.retry_at.is_some()),
            Some(_) => live.branches.iter().any(|branch| {
                matches!(branch.progress, Progress::Owes(_))
                    && (branch.in_flight || branch.retry_at.is_some())
            }),
        };
        assert!(next, "no next action: {live:?}");
    }

    /// What the journal holds is what was told: recovery finds the same transactions, decisions
    /// and visible work.
    fn check_recoverable(&self) {
        let recovered = self.recovered();
        assert_eq!(recovered.len(), self.coordinator.len());
        for (found, live) in recovered.iter().zip(self.coordinator.iter()) {
            assert_eq!((&found.id, found.fingerprint), (&live.id, live.fingerprint));
            assert_eq!(found.decision, live.decision);
            assert_eq!(found.executing_since, live.executing_since);
            for (found, live) in found.branches.iter().zip(&live.branches) {
                let compensable = live.plan.kind == Kind::Compensable;
                assert!(!compensable || found.progress == live.progress, "{found:?} {live:?}");
                let called = |ballot| ballot != unanimity_core::Ballot::NotCalled;
                assert!(!compensable || called(found.ballot) == called(live.ballot), "{live:?}");
            }
        }
    }
}
