//! Reads a trace line by line and says what is wrong with it. It decides which rule is asked when;
//! the rules of one transaction are `rules`'.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use unanimity_core::Outcome;

use crate::case::Case;
use crate::evidence::Evidence;
use crate::rules::{self, Verdict, check};
use crate::trace::{Event, FactLine, Line, Move, Sight, ToldLine};

/// The names of the rules that speak of more than one transaction, or of none.
pub mod names {
    #![allow(missing_docs, reason = "each is explained at the function that asks it")]
    pub const ANSWERED: &str = "an answer follows its call";
    pub const AUDIT: &str = "audit one-to-one with state changes";
    pub const BALLOTS: &str = "commit counts every ballot";
    pub const BOUNDS: &str = "bounds hold at all times";
    pub const CALL_ORDER: &str = "calls leave in the plan's order";
    pub const CONSERVATION: &str = "money is conserved";
    pub const ENDED_LAST: &str = "ended only when all have acknowledged";
    pub const LINEARIZABLE: &str = "status is a write-once register";
    pub const NOTHING_LEFT: &str = "nothing is left at rest";
    pub const TRACE: &str = "the trace makes sense";
    pub const WRITE_ONCE: &str = "the decision is written once";
}

/// Something that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// In which line it showed, counted from 1.
    pub line: usize,
    /// At which moment of the trace, in milliseconds.
    pub at: u64,
    /// Of which transaction, if of one.
    pub transaction: Option<Arc<str>>,
    /// Which rule.
    pub rule: &'static str,
    /// What is wrong.
    pub problem: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "line {}, {} ms", self.line, self.at)?;
        if let Some(transaction) = &self.transaction {
            write!(formatter, ", transaction {transaction}")?;
        }
        write!(formatter, ": {}: {}", self.rule, self.problem)
    }
}

/// What clients were told of one transaction's state.
#[derive(Clone, Copy, Debug, Default)]
struct Reads {
    /// When it was first told that the transaction is there.
    known_at: Option<u64>,
    /// When an outcome was first told.
    outcome_at: Option<u64>,
}

/// What was said: of which transaction, by which rule, and, if of none, in which words.
type Said = (Option<Arc<str>>, &'static str, Option<String>);

/// Reads a trace and keeps what it found.
#[derive(Clone, Debug, Default)]
pub struct Judge {
    sees: BTreeSet<Sight>,
    cases: BTreeMap<Arc<str>, Case>,
    reads: BTreeMap<Arc<str>, Reads>,
    accounts: BTreeMap<Arc<str>, (i64, i64)>,
    /// Transactions with records that are not durable, by shard.
    waiting: BTreeMap<u16, BTreeSet<Arc<str>>>,
    /// The last position that each shard has written.
    positions: BTreeMap<u16, u64>,
    /// The last position of each shard that is durable.
    durable: BTreeMap<u16, u64>,
    line: usize,
    at: u64,
    found: Vec<Finding>,
    /// What need not be said again: each rule is broken once per transaction, and said once.
    said: BTreeSet<Said>,
}

impl Judge {
    /// A judge that sees everything, until the trace says otherwise.
    #[must_use]
    pub fn new() -> Self {
        let sees = [Sight::Coordinator, Sight::Participants, Sight::Disk, Sight::Money];
        Self { sees: sees.into(), ..Self::default() }
    }

    /// How many lines it has read.
    #[must_use]
    pub const fn lines(&self) -> usize {
        self.line
    }

    /// How many transactions it knows.
    #[must_use]
    pub fn transactions(&self) -> usize {
        self.cases.len()
    }

    /// What it has found so far.
    #[must_use]
    pub fn found(&self) -> &[Finding] {
        &self.found
    }

    /// Reads the next line. Whether it has found something new.
    pub fn take(&mut self, line: &Line) -> bool {
        let before = self.found.len();
        self.line += 1;
        let backwards = line.at < self.at;
        self.at = self.at.max(line.at);
        self.note(None, names::TRACE, check(!backwards, || "time runs backwards".to_owned()));
        match line.event.transaction() {
            Some(transaction) => self.take_of_one(&Arc::clone(transaction), &line.event),
            None => self.take_of_all(&line.event),
        }
        self.found.len() > before
    }

    fn sees(&self, sight: Sight) -> bool {
        self.sees.contains(&sight)
    }

    fn note(&mut self, transaction: Option<&Arc<str>>, rule: &'static str, verdict: Verdict) {
        let Err(problem) = verdict else { return };
        let transaction = transaction.cloned();
        let words = transaction.is_none().then(|| problem.clone());
        if self.said.insert((transaction.clone(), rule, words)) {
            let (line, at) = (self.line, self.at);
            self.found.push(Finding { line, at, transaction, rule, problem });
        }
    }

    fn take_of_one(&mut self, id: &Arc<str>, event: &Event) {
        let sees_disk = self.sees(Sight::Disk);
        if let Event::Recorded { shard, position, fact, .. } = event {
            let begins = matches!(fact, FactLine::Begun { .. });
            let known = self.cases.contains_key(id);
            let verdict = check(begins || known, || "a record, and no beginning".to_owned());
            self.note(Some(id), names::AUDIT, verdict);
            if sees_disk {
                self.write(id, *shard, *position);
            }
        }
        let sees_calls = self.sees(Sight::Coordinator);
        let case = self.cases.entry(Arc::clone(id)).or_default();
        let write_once = match event {
            Event::Recorded { fact, .. } => case.writes_once(fact),
            _ => Ok(()), // Nothing else is a record.
        };
        let (rule, verdict) = match event {
            Event::Recorded { shard, position, fact, .. } => {
                let place = sees_disk.then_some((*shard, *position));
                (names::AUDIT, case.record(place, fact))
            }
            Event::Called { branch, operation, asks, .. } => {
                (rules::names::DURABLE_FIRST, case.called(*branch, *operation, *asks))
            }
            Event::Answered { branch, operation, answer, .. } if sees_calls => {
                (names::ANSWERED, case.answered(*branch, *operation, answer))
            }
            Event::Worked { branch, operation, state, effect, moved, .. } => {
                keep_accounts(&mut self.accounts, moved);
                (names::TRACE, case.worked(*branch, *operation, (*state, *effect), moved))
            }
            Event::Forgot { branch, moved, .. } => {
                keep_accounts(&mut self.accounts, moved);
                case.forget(*branch, moved);
                (names::TRACE, Ok(()))
            }
            Event::Cut { .. } => {
                case.is_cut = true;
                (names::TRACE, Ok(()))
            }
            Event::Told { what, .. } => (rules::names::DURABLE_FIRST, case.tell(what)),
            _ => (names::TRACE, Ok(())), // A read is judged below; an answer here is not seen.
        };
        let (course_rule, course) = match event {
            _ if !sees_calls => (names::TRACE, Ok(())),
            Event::Called { branch, operation, .. } => {
                (names::CALL_ORDER, case.calls_in_order(*branch, *operation))
            }
            Event::Recorded { fact: FactLine::Ended, .. } => {
                (names::ENDED_LAST, case.ends_acknowledged())
            }
            Event::Recorded { fact, .. } => (names::BALLOTS, case.counts_every_ballot(fact)),
            _ => (names::TRACE, Ok(())), // Nothing else is the coordinator's own course.
        };
        self.note(Some(id), names::WRITE_ONCE, write_once);
        self.note(Some(id), rule, verdict);
        self.note(Some(id), course_rule, course);
        self.watch_status(id, event);
        self.judge_case(id);
    }

    /// Positions of a shard's journal have no gap and never go back, but by a crash.
    fn write(&mut self, id: &Arc<str>, shard: u16, position: u64) {
        let last = *self.positions.entry(shard).or_insert(position);
        let verdict = check(position == last || position == last + 1, || {
            format!("shard {shard} writes position {position} after {last}")
        });
        self.note(Some(id), names::AUDIT, verdict);
        self.positions.insert(shard, position);
        self.waiting.entry(shard).or_default().insert(Arc::clone(id));
    }

    fn judge_case(&mut self, id: &Arc<str>) {
        let Some(case) = self.cases.get(id) else { return };
        let broken: Vec<(&'static str, Verdict)> = if self.sees(Sight::Participants) {
            rules::each(case).into_iter().filter(|(_, verdict)| verdict.is_err()).collect()
        } else {
            let each = rules::each_of_the_coordinator(case).into_iter();
            each.filter(|(_, verdict)| verdict.is_err()).collect()
        };
        for (rule, verdict) in broken {
            self.note(Some(id), rule, verdict);
        }
    }

    /// The state that clients read is linearizable to a write-once register (Herlihy and Wing,
    /// "Linearizability", ACM TOPLAS 12(3), 1990): once anybody was told an outcome, nobody who
    /// asks later is told that there is none; and what was acknowledged is there (FAULTS I10).
    fn watch_status(&mut self, id: &Arc<str>, event: &Event) {
        let at = self.at;
        let reads = self.reads.entry(Arc::clone(id)).or_default();
        let (asked_at, unknown, outcome) = match event {
            Event::Read { since, unknown, outcome, .. } => (*since, *unknown, *outcome),
            Event::Told { what: ToldLine::Begun, .. } => {
                reads.known_at.get_or_insert(at);
                return;
            }
            Event::Told {
                what: ToldLine::Outcome { outcome } | ToldLine::Ended { outcome, .. },
                ..
            } => (at, false, Some(*outcome)),
            _ => return, // Nothing else tells a client anything.
        };
        let was = *reads;
        if outcome.is_some() {
            reads.outcome_at.get_or_insert(at);
        }
        if !unknown {
            reads.known_at.get_or_insert(at);
        }
        let late = outcome.is_none() && was.outcome_at.is_some_and(|told| told < asked_at);
        let lost = unknown && was.known_at.is_some_and(|told| told < asked_at);
        self.note(
            Some(id),
            names::LINEARIZABLE,
            check(!late, || {
                "an outcome was told, and a later reader was told that there is none".to_owned()
            }),
        );
        self.note(
            Some(id),
            names::LINEARIZABLE,
            check(!lost, || {
                "its beginning was acknowledged, and a later reader was told that it is unknown"
                    .to_owned()
            }),
        );
        if let (Some(outcome), Event::Read { .. }) = (outcome, event)
            && let Some(case) = self.cases.get_mut(id)
        {
            let verdict = case.tell(&ToldLine::Outcome { outcome });
            self.note(Some(id), rules::names::DURABLE_FIRST, verdict);
        }
    }

    fn take_of_all(&mut self, event: &Event) {
        match event {
            Event::Trace { sees, .. } => self.sees = sees.iter().copied().collect(),
            Event::Durable { shard, position } => self.durable(*shard, *position),
            Event::Lost { shard, position } => self.lost(*shard, *position),
            Event::Height { what, value, most } => {
                let verdict = check(value <= most, || format!("{value} {what}; at most {most}"));
                self.note(None, names::BOUNDS, verdict);
            }
            Event::Left { what, count } => {
                let verdict = check(*count == 0, || format!("{count} {what} are left"));
                self.note(None, names::NOTHING_LEFT, verdict);
            }
            Event::Holds { account, before, available, reserved } => {
                self.holds(account, *before, *available, *reserved);
            }
            Event::AtRest => self.at_rest(),
            _ => {} // Processes and notes are for people.
        }
    }

    fn durable(&mut self, shard: u16, position: u64) {
        let last = self.durable.entry(shard).or_default();
        *last = position.max(*last);
        let Some(waiting) = self.waiting.get_mut(&shard) else { return };
        for id in std::mem::take(waiting) {
            let Some(case) = self.cases.get_mut(&id) else { continue };
            case.durable(shard, position);
        }
        // What lies beyond waits on; it is found again by its own records.
        let beyond = self.positions.get(&shard).is_some_and(|last| *last > position);
        if beyond {
            let cases = self.cases.iter().filter(|(_, case)| case.waits());
            let ids: Vec<Arc<str>> = cases.map(|(id, _)| Arc::clone(id)).collect();
            self.waiting.entry(shard).or_default().extend(ids);
        }
    }

    fn lost(&mut self, shard: u16, position: u64) {
        let durable = self.durable.get(&shard).copied().unwrap_or_default();
        let verdict = check(position >= durable, || {
            format!("shard {shard} was durable up to {durable}, and is lost beyond {position}")
        });
        self.note(None, rules::names::DURABLE_FIRST, verdict);
        for id in self.waiting.remove(&shard).unwrap_or_default() {
            let is_left = self.cases.get_mut(&id).is_none_or(|case| case.lost(shard, position));
            if !is_left && let Some(case) = self.cases.remove(&id) {
                let told = case.was_told_begun();
                let verdict = check(!told, || "it was acknowledged, and is lost".to_owned());
                self.note(Some(&id), rules::names::DURABLE_FIRST, verdict);
            } else {
                let waits = self.cases.get(&id).is_some_and(Case::waits);
                self.judge_case(&id);
                if waits {
                    self.waiting.entry(shard).or_default().insert(id);
                }
            }
        }
        self.positions.insert(shard, position);
    }

    /// Per account, what it holds is what it held and what the transactions have changed; nothing
    /// stays set aside (FAULTS I15).
    fn holds(&mut self, account: &Arc<str>, before: i64, available: i64, reserved: i64) {
        let (changed, set_aside) = self.accounts.get(account).copied().unwrap_or_default();
        let verdict = check(before + changed == available && set_aside == reserved, || {
            format!(
                "{account} holds {available} and {reserved} set aside; by what was done to it, \
                 it must hold {} and {set_aside}",
                before + changed
            )
        });
        self.note(None, names::CONSERVATION, verdict);
        let verdict = check(reserved == 0, || format!("{account} has {reserved} set aside"));
        self.note(None, names::NOTHING_LEFT, verdict);
    }

    fn at_rest(&mut self) {
        let ids: Vec<Arc<str>> = self.cases.keys().cloned().collect();
        for id in ids {
            let Some(case) = self.cases.get(&id) else { continue };
            let (ended, conserves) = (case.at_rest(), case.conserves());
            self.note(Some(&id), names::NOTHING_LEFT, ended);
            self.note(Some(&id), names::CONSERVATION, conserves);
        }
    }

    /// How many of the transactions that it knows were decided how: commits, rollbacks, undecided.
    #[must_use]
    pub fn tally(&self) -> (usize, usize, usize) {
        let decided = |outcome: Outcome| {
            self.cases.values().filter(|case| case.durable_decision() == Some(outcome)).count()
        };
        let (commits, rollbacks) = (decided(Outcome::Commit), decided(Outcome::Rollback));
        (commits, rollbacks, self.cases.len() - commits - rollbacks)
    }
}

fn keep_accounts(accounts: &mut BTreeMap<Arc<str>, (i64, i64)>, moved: &[Move]) {
    for one in moved {
        let account = accounts.entry(Arc::clone(&one.account)).or_default();
        account.0 += one.available;
        account.1 += one.reserved;
    }
}
