//! A coordinator's own history as a trace for the judge: what it has put on record, asked and been
//! answered, as its views tell it. What a view does not say in so many words is told by what it
//! does: an execute was announced before it was called, and a branch has finished when it has
//! acknowledged.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::sync::Arc;

use unanimity::core::{Kind, Operation, Outcome};
use unanimity::view::{BranchView, EventView, TransactionView};
use unanimity_judge::{BranchLine, Event, FactLine, Line, Sight, TRACE_VERSION, write_line};

/// Lines on their way to a file, in the order of time.
pub(crate) struct Trail<W: Write> {
    output: W,
    /// By time, and in the order in which they came.
    waiting: BTreeMap<(u64, u64), Line>,
    taken: u64,
    written: u64,
}

impl<W: Write> Trail<W> {
    pub(crate) fn new(output: W) -> Self {
        Self { output, waiting: BTreeMap::new(), taken: 0, written: 0 }
    }

    /// Takes one transaction in.
    pub(crate) fn take(
        &mut self,
        view: &TransactionView,
        events: &[EventView],
        dropped: u32,
    ) -> anyhow::Result<()> {
        for line in lines(view, events, dropped)? {
            self.waiting.insert((line.at, self.taken), line);
            self.taken += 1;
        }
        Ok(())
    }

    /// Nothing earlier than this comes any more: everything before it can be written.
    pub(crate) fn passed(&mut self, at: u64) -> anyhow::Result<()> {
        let later = self.waiting.split_off(&(at, 0));
        let before = std::mem::replace(&mut self.waiting, later);
        before.into_values().try_for_each(|line| self.write(&line))
    }

    /// Writes the rest; says how many lines there are.
    pub(crate) fn finish(mut self) -> anyhow::Result<u64> {
        self.passed(u64::MAX)?;
        if self.written == 0 {
            self.write_head(0)?;
        }
        self.output.flush()?;
        Ok(self.written)
    }

    fn write(&mut self, line: &Line) -> anyhow::Result<()> {
        if self.written == 0 {
            self.write_head(line.at)?;
        }
        self.written += 1;
        Ok(writeln!(self.output, "{}", write_line(line)?)?)
    }

    fn write_head(&mut self, at: u64) -> anyhow::Result<()> {
        let source = concat!("unanimity ", env!("CARGO_PKG_VERSION"), " audit trace").into();
        let event = Event::Trace { version: TRACE_VERSION, source, sees: vec![Sight::Coordinator] };
        self.written += 1;
        Ok(writeln!(self.output, "{}", write_line(&Line { at, event })?)?)
    }
}

/// One transaction as lines, in its own order; their times never run backwards.
///
/// # Errors
/// If a word in the view is not known, as in the answer of another program.
pub(crate) fn lines(
    view: &TransactionView,
    events: &[EventView],
    dropped: u32,
) -> anyhow::Result<Vec<Line>> {
    let mut telling = Telling::new(view, events)?;
    for event in events {
        telling.event(event, dropped)?;
    }
    if view.outcome.is_none() {
        telling.enlist_up_to(view.branches.len());
    }
    Ok(telling.lines)
}

/// A transaction that is being told.
struct Telling<'a> {
    view: &'a TransactionView,
    id: Arc<str>,
    branches: Vec<BranchLine>,
    /// Branches of which the timeline shows when they were enlisted.
    enlisted: BTreeSet<u16>,
    /// How many of the branches are on record so far.
    on_record: usize,
    /// Branches whose execute the timeline does not show, but whose compensation it does.
    executed_unseen: BTreeSet<u16>,
    announced: BTreeSet<u16>,
    finished: BTreeSet<u16>,
    resolved: BTreeSet<u16>,
    /// The last attempt of each call, and the operation that a branch was last asked to vote on.
    attempts: BTreeMap<(u16, Operation), u32>,
    votes_on: BTreeMap<u16, Operation>,
    decided: bool,
    at: u64,
    lines: Vec<Line>,
}

impl<'a> Telling<'a> {
    fn new(view: &'a TransactionView, events: &[EventView]) -> anyhow::Result<Self> {
        let mut telling = Self {
            view,
            id: view.id.as_str().into(),
            branches: plans(view)?,
            enlisted: BTreeSet::new(),
            on_record: 0,
            executed_unseen: BTreeSet::new(),
            announced: BTreeSet::new(),
            finished: BTreeSet::new(),
            resolved: BTreeSet::new(),
            attempts: BTreeMap::new(),
            votes_on: BTreeMap::new(),
            decided: false,
            at: view.begun_at_ms,
            lines: Vec::new(),
        };
        let enlisted = events.iter().filter(|event| event.event == "enlisted");
        telling.enlisted = enlisted.map(|event| telling.number(event)).collect::<Result<_, _>>()?;
        let called = |operation: &str| {
            let calls = events.iter().filter(|event| event.event == "called");
            let calls = calls.filter(|event| event.operation.as_deref() == Some(operation));
            calls.map(|event| telling.number(event)).collect::<anyhow::Result<BTreeSet<u16>>>()
        };
        let unseen = called("compensate")?.difference(&called("execute")?).copied().collect();
        telling.executed_unseen = unseen;
        Ok(telling)
    }

    fn event(&mut self, event: &EventView, dropped: u32) -> anyhow::Result<()> {
        self.at = self.at.max(event.at_ms);
        match event.event.as_str() {
            "begun" => self.begun(dropped),
            "enlisted" => {
                let number = self.number_of(event)?;
                self.enlist_up_to(usize::from(number) + 1);
            }
            "decided" => self.decide(event)?,
            "ended" => {
                self.resolve_the_rest()?;
                self.record(FactLine::Ended);
            }
            "resolved" => {
                let number = self.number_of(event)?;
                self.resolve(number, event.detail.as_deref())?;
            }
            "called" => self.called(event)?,
            "yes" | "read_only" | "no" | "acknowledged" | "failed" | "unsupported" => {
                self.answered(event)?;
            }
            // What people like to know, and no rule speaks of.
            "parked" | "recovered" | "overdue" | "commit_requested" => {}
            other => anyhow::bail!("transaction {}: what is the event {other:?}?", self.id),
        }
        Ok(())
    }

    fn begun(&mut self, dropped: u32) {
        let first = self.enlisted.first().map(|first| usize::from(*first));
        self.on_record = first.unwrap_or(self.branches.len());
        let fact = FactLine::Begun {
            branches: self.branches[..self.on_record].to_vec(),
            open: self.view.interactive,
            alone: self.view.one_phase,
        };
        self.record(fact);
        let knows_plan = self.view.branches.iter().all(|branch| branch.after.is_some());
        if dropped > 0 || !knows_plan {
            let transaction = Arc::clone(&self.id);
            self.write(Event::Cut { transaction, dropped: u64::from(dropped) });
        }
    }

    /// Puts branches on record up to this many, and those behind them of which a crash took the
    /// moment: they were enlisted at some time after that, so nothing can be before it.
    fn enlist_up_to(&mut self, count: usize) {
        let shown = |number: usize| u16::try_from(number).is_ok_and(|n| self.enlisted.contains(&n));
        let next = (count..self.branches.len()).find(|number| shown(*number));
        let count = next.unwrap_or(self.branches.len());
        for branch in self.on_record..count {
            let branch = self.branches[branch].clone();
            self.record(FactLine::Enlisted { branch });
        }
        self.on_record = self.on_record.max(count);
    }

    fn decide(&mut self, event: &EventView) -> anyhow::Result<()> {
        self.enlist_up_to(self.branches.len());
        for number in std::mem::take(&mut self.executed_unseen) {
            self.announce(number);
        }
        let outcome = outcome(event.detail.as_deref())?;
        let reason = self.view.reason.as_ref().map_or("", |reason| reason.code.as_str()).into();
        let votes = self.view.branches.iter().map(|branch| branch.vote.as_deref());
        let ballots = votes.map(|vote| vote.unwrap_or("unanswered").into()).collect();
        self.decided = true;
        self.record(FactLine::Decided { outcome, reason, ballots });
        Ok(())
    }

    fn called(&mut self, event: &EventView) -> anyhow::Result<()> {
        let (branch, operation) = (self.number_of(event)?, operation(event)?);
        let kind = self.branches[usize::from(branch)].kind;
        if operation == Operation::Execute && kind == Kind::Compensable {
            self.announce(branch);
        }
        if matches!(operation, Operation::Prepare | Operation::CommitOnePhase) {
            self.votes_on.insert(branch, operation);
        }
        let attempt = event.attempt.unwrap_or(1);
        self.attempts.insert((branch, operation), attempt);
        // Who alone decides is asked to roll back before anything is decided.
        let asks = operation == Operation::Rollback && self.view.one_phase;
        let transaction = Arc::clone(&self.id);
        self.write(Event::Called { transaction, branch, operation, attempt, asks });
        Ok(())
    }

    fn answered(&mut self, event: &EventView) -> anyhow::Result<()> {
        let branch = self.number_of(event)?;
        let voted = self.votes_on.get(&branch).copied().unwrap_or(Operation::Prepare);
        let operation = event.operation.as_ref().map_or(Ok(voted), |_| operation(event))?;
        let answer = match (event.event.as_str(), operation) {
            ("yes", Operation::Rollback) => "already_committed",
            ("failed", _) => "unknown",
            (word, _) => word,
        };
        let attempt = self.attempts.get(&(branch, operation)).copied().unwrap_or(1);
        let (transaction, answer) = (Arc::clone(&self.id), answer.into());
        let finishes = event.event == "acknowledged"
            && self.decided
            && matches!(operation, Operation::Execute | Operation::Compensate);
        self.write(Event::Answered { transaction, branch, operation, attempt, answer });
        if finishes && self.finished.insert(branch) {
            self.record(FactLine::Finished { branch });
        }
        Ok(())
    }

    fn announce(&mut self, number: u16) {
        if !self.decided && self.announced.insert(number) {
            self.record(FactLine::Executing { branches: vec![number] });
        }
    }

    fn resolve(&mut self, branch: u16, settled_as: Option<&str>) -> anyhow::Result<()> {
        let outcome = match settled_as {
            Some("committed") => Outcome::Commit,
            Some("rolled_back") => Outcome::Rollback,
            other => anyhow::bail!("transaction {}: settled as {other:?}?", self.id),
        };
        self.resolved.insert(branch);
        self.record(FactLine::Resolved { branch, outcome });
        Ok(())
    }

    /// Words of operators that the timeline had no room for.
    fn resolve_the_rest(&mut self) -> anyhow::Result<()> {
        let view = self.view;
        for (number, branch) in (0_u16..).zip(&view.branches) {
            if let Some(resolution) = &branch.resolution
                && !self.resolved.contains(&number)
            {
                self.resolve(number, Some(&resolution.settled_as))?;
            }
        }
        Ok(())
    }

    fn record(&mut self, fact: FactLine) {
        let transaction = Arc::clone(&self.id);
        self.write(Event::Recorded { transaction, shard: 0, position: 0, fact });
    }

    fn write(&mut self, event: Event) {
        self.lines.push(Line { at: self.at, event });
    }

    /// The branch that an event is about, which is on record by now at the latest.
    fn number_of(&mut self, event: &EventView) -> anyhow::Result<u16> {
        let number = self.number(event)?;
        if event.event != "enlisted" {
            self.enlist_up_to(usize::from(number) + 1);
        }
        Ok(number)
    }

    fn number(&self, event: &EventView) -> anyhow::Result<u16> {
        let name = event.branch.as_deref();
        let number = self.branches.iter().position(|branch| Some(&*branch.name) == name);
        let number = number.and_then(|number| u16::try_from(number).ok());
        number.ok_or_else(|| {
            anyhow::anyhow!("transaction {}: {:?} names no branch of it", self.id, event.event)
        })
    }
}

/// The branches as a trace has them.
///
/// # Errors
/// If a kind is not known.
pub(crate) fn plans(view: &TransactionView) -> anyhow::Result<Vec<BranchLine>> {
    view.branches.iter().map(|branch| plan(view, branch)).collect()
}

fn plan(view: &TransactionView, branch: &BranchView) -> anyhow::Result<BranchLine> {
    let kinds = [Kind::TwoPhase, Kind::Compensable, Kind::Deferred, Kind::Local];
    let kind = kinds.into_iter().find(|kind| kind.as_str() == branch.kind);
    let number = |name: &String| {
        let number = view.branches.iter().position(|other| other.name == *name);
        number.and_then(|number| u16::try_from(number).ok())
    };
    Ok(BranchLine {
        name: branch.name.as_str().into(),
        kind: kind.ok_or_else(|| anyhow::anyhow!("what is the kind {:?}?", branch.kind))?,
        after: branch.after.iter().flatten().filter_map(number).collect(),
        by_initiator: branch.phase_one_by.is_some(),
        also_on_rollback: branch.also_on_rollback,
        comes_last: branch.comes_last,
    })
}

fn operation(event: &EventView) -> anyhow::Result<Operation> {
    let name = event.operation.as_deref().unwrap_or_default();
    let operation = Operation::ALL.into_iter().find(|operation| operation.as_str() == name);
    operation.ok_or_else(|| anyhow::anyhow!("what is the operation {name:?}?"))
}

fn outcome(word: Option<&str>) -> anyhow::Result<Outcome> {
    let outcome = [Outcome::Commit, Outcome::Rollback].into_iter();
    let outcome = outcome.into_iter().find(|outcome| Some(outcome.as_str()) == word);
    outcome.ok_or_else(|| anyhow::anyhow!("what is the outcome {word:?}?"))
}
