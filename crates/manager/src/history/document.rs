//! How an ended transaction looks in the history beside its searchable columns: one JSON document,
//! written straight from the core's transaction. Decides which names stand there and what is left
//! out because the columns or the end of the transaction already say it.
//!
//! `{"branches": [...], "events": [...]}` and, only where they say something: `interactive`,
//! `one_phase`, `heuristic`, `overdue`, `reason_branch`, `dropped`. An event is a list:
//! milliseconds since the beginning, what, the branch's place, the operation, the attempt, a
//! detail, how often. What is missing at its end is null; so are the milliseconds in a document
//! that many transactions share, which have a list of times and one of results each. Whole views,
//! as the API answers with, cost several times the processor time and the bytes.

use serde::ser::{SerializeMap as _, SerializeSeq as _};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;
use unanimity_core::{Branch, Observation, Reason, Transaction, What};

use crate::view::{
    BranchView, EventView, Moment, ReasonView, ResolutionView, TimelineView, TransactionView,
    settled_as, vote,
};

/// The document of a transaction that has ended, and whose course this is.
pub(super) fn whole(transaction: &Transaction, course: &[Moment]) -> String {
    json(&Document { transaction, course, is_own: true })
}

/// The document that it shares with others: it has no results, and each event has null where its
/// time would be.
pub(super) fn shared(transaction: &Transaction, course: &[Moment]) -> String {
    json(&Document { transaction, course, is_own: false })
}

/// The results alone, as a list: one for each branch, null where there is none. `None` if there is
/// none at all.
pub(super) fn results(transaction: &Transaction) -> Option<Vec<Option<&RawValue>>> {
    let any = transaction.branches.iter().any(|branch| branch.result.is_some());
    any.then(|| transaction.branches.iter().map(result).collect())
}

/// What a branch's prepare or execute gave back, if it is JSON.
fn result(branch: &Branch) -> Option<&RawValue> {
    branch.result.as_deref().and_then(|text| serde_json::from_str(text).ok())
}

/// Anything as JSON.
pub(super) fn json(value: &impl Serialize) -> String {
    match serde_json::to_string(value) {
        Ok(text) => text,
        Err(error) => panic!("what we know of a transaction is always JSON: {error}"),
    }
}

/// Appends anything as JSON.
pub(super) fn put(value: &impl Serialize, out: &mut Vec<u8>) {
    if let Err(error) = serde_json::to_writer(out, value) {
        panic!("what we know of a transaction is always JSON: {error}");
    }
}

/// The times alone, as a list: for each event the milliseconds since the beginning, which was then.
pub(super) struct Times<T>(pub(super) u64, pub(super) T);

impl<T: Iterator<Item = u64> + Clone> Serialize for Times<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.1.clone().map(|at| since(at, self.0)))
    }
}

struct Document<'a> {
    transaction: &'a Transaction,
    course: &'a [Moment],
    is_own: bool,
}

impl Serialize for Document<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { transaction, course, is_own } = *self;
        let mut map = serializer.serialize_map(None)?;
        if transaction.open {
            map.serialize_entry("interactive", &true)?;
        }
        if transaction.is_one_phase() {
            map.serialize_entry("one_phase", &true)?;
        }
        if let Some(heuristic) = transaction.heuristic() {
            map.serialize_entry("heuristic", heuristic.as_str())?;
        }
        if transaction.overdue {
            map.serialize_entry("overdue", &true)?;
        }
        if let Some(Reason::No { branch, .. }) =
            transaction.decision.as_ref().map(|decision| &decision.reason)
        {
            map.serialize_entry("reason_branch", &*transaction.branch(*branch).plan.name)?;
        }
        if transaction.timeline.dropped() > 0 {
            map.serialize_entry("dropped", &transaction.timeline.dropped())?;
        }
        map.serialize_entry("branches", &Branches(transaction, is_own))?;
        let begun_at = is_own.then_some(transaction.begun_at);
        map.serialize_entry("events", &Events(begun_at, course))?;
        map.end()
    }
}

struct Branches<'a>(&'a Transaction, bool);

impl Serialize for Branches<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(transaction, is_own) = self;
        let branches = transaction.branches.iter();
        serializer.collect_seq(branches.map(|branch| OneBranch(transaction, branch, *is_own)))
    }
}

struct OneBranch<'a>(&'a Transaction, &'a Branch, bool);

impl Serialize for OneBranch<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(transaction, branch, is_own) = self;
        let plan = &branch.plan;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("name", &*plan.name)?;
        map.serialize_entry("participant", &*plan.participant)?;
        map.serialize_entry("kind", plan.kind.as_str())?;
        if let Some(vote) = vote(branch.ballot) {
            map.serialize_entry("vote", vote)?;
        }
        if !plan.after.is_empty() {
            let names = plan.after.iter().map(|number| &*transaction.branch(*number).plan.name);
            map.serialize_entry("after", &names.collect::<Vec<&str>>())?;
        }
        for (name, says) in [
            ("by_initiator", plan.by_initiator),
            ("also_on_rollback", plan.also_on_rollback),
            ("comes_last", plan.comes_last),
        ] {
            if says {
                map.serialize_entry(name, &true)?;
            }
        }
        if let Some(resolution) = &branch.resolution {
            map.serialize_entry("resolution", &ResolutionView::of(resolution))?;
        }
        if *is_own && let Some(result) = result(branch) {
            map.serialize_entry("result", result)?;
        }
        map.end()
    }
}

/// With when the transaction began, if the times are to be there.
struct Events<'a>(Option<u64>, &'a [Moment]);

impl Serialize for Events<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.1.iter().map(|moment| OneEvent(self.0, moment)))
    }
}

struct OneEvent<'a>(Option<u64>, &'a Moment);

impl Serialize for OneEvent<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(begun_at, moment) = self;
        let mut list = serializer.serialize_seq(None)?;
        list.serialize_element(&begun_at.map(|begun_at| since(moment.at(), begun_at)))?;
        match moment {
            Moment::Decided { .. } => list.serialize_element("decided")?,
            Moment::Seen(seen) => {
                list.serialize_element(seen.what.word())?;
                put_observation(&mut list, seen)?;
            }
        }
        list.end()
    }
}

/// How long after the beginning, in milliseconds. A clock may have been set back.
pub(super) const fn since(at: u64, begun_at: u64) -> i64 {
    at.cast_signed().wrapping_sub(begun_at.cast_signed())
}

/// The rest of an event, up to the last thing that is there.
fn put_observation<S: serde::ser::SerializeSeq>(
    list: &mut S,
    seen: &Observation,
) -> Result<(), S::Error> {
    let (attempt, detail, times) = match &seen.what {
        What::Called { attempt, .. } => (Some(*attempt), None, None),
        What::No(_, reason) => (None, Some(&**reason), None),
        What::Failed { error, times, .. } => (None, Some(&**error), Some(*times)),
        What::Resolved(outcome) => (None, Some(settled_as(*outcome)), None),
        What::Yes(_)
        | What::ReadOnly
        | What::Acknowledged(_)
        | What::Parked
        | What::Recovered
        | What::Overdue
        | What::Enlisted
        | What::CommitRequested
        | What::Unsupported(_) => (None, None, None),
    };
    let operation = seen.what.operation().map(|operation| operation.as_str());
    let there = [
        seen.branch.is_some(),
        operation.is_some(),
        attempt.is_some(),
        detail.is_some(),
        times.is_some(),
    ];
    let last = there.iter().rposition(|there| *there).map_or(0, |place| place + 1);
    for place in 0..last {
        match place {
            0 => list.serialize_element(&seen.branch)?,
            1 => list.serialize_element(&operation)?,
            2 => list.serialize_element(&attempt)?,
            3 => list.serialize_element(&detail)?,
            _ => list.serialize_element(&times)?, // The last of five.
        }
    }
    Ok(())
}

/// The columns of a row, without the document.
#[derive(Debug)]
pub(super) struct Columns {
    pub(super) id: String,
    pub(super) begun_at_ms: u64,
    pub(super) decided_at_ms: Option<u64>,
    pub(super) ended_at_ms: u64,
    pub(super) outcome: String,
    pub(super) reason: String,
    pub(super) reason_detail: Option<String>,
}

#[derive(Deserialize)]
struct Read {
    #[serde(default)]
    interactive: bool,
    #[serde(default)]
    one_phase: bool,
    heuristic: Option<String>,
    #[serde(default)]
    overdue: bool,
    reason_branch: Option<String>,
    #[serde(default)]
    dropped: u32,
    branches: Vec<ReadBranch>,
    events: Vec<ReadEvent>,
}

#[derive(Deserialize)]
struct ReadBranch {
    name: String,
    participant: String,
    kind: String,
    vote: Option<String>,
    #[serde(default)]
    after: Vec<String>,
    #[serde(default)]
    by_initiator: bool,
    #[serde(default)]
    also_on_rollback: bool,
    #[serde(default)]
    comes_last: bool,
    resolution: Option<ResolutionView>,
    result: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
#[serde(from = "Vec<serde_json::Value>")]
struct ReadEvent(Vec<serde_json::Value>);

impl From<Vec<serde_json::Value>> for ReadEvent {
    fn from(list: Vec<serde_json::Value>) -> Self {
        Self(list)
    }
}

/// Reads a document back, with the columns beside it: the times and the results, too, if it is one
/// that many share.
///
/// # Errors
/// What is wrong with the JSON.
pub(super) fn read(
    columns: Columns,
    document: &str,
    (times, results): (Option<&str>, Option<&str>),
) -> Result<(TransactionView, TimelineView), serde_json::Error> {
    let mut read: Read = serde_json::from_str(document)?;
    if let Some(times) = times {
        let times: Vec<serde_json::Value> = serde_json::from_str(times)?;
        for (event, at) in read.events.iter_mut().zip(times) {
            event.0.splice(..1, [at]);
        }
    }
    if let Some(results) = results {
        let results: Vec<Option<Box<RawValue>>> = serde_json::from_str(results)?;
        for (branch, result) in read.branches.iter_mut().zip(results) {
            branch.result = result;
        }
    }
    let names: Vec<String> = read.branches.iter().map(|branch| branch.name.clone()).collect();
    let events = read.events.iter().map(|event| event.view(&columns, &names));
    let mut timeline = vec![EventView::plain(columns.begun_at_ms, "begun")];
    timeline.extend(events);
    timeline.push(EventView::plain(columns.ended_at_ms, "ended"));
    let timeline = TimelineView { id: columns.id.clone(), events: timeline, dropped: read.dropped };
    let reason = (!columns.reason.is_empty()).then_some(ReasonView {
        code: columns.reason,
        branch: read.reason_branch,
        detail: columns.reason_detail,
    });
    let view = TransactionView {
        id: columns.id,
        stage: "ended".to_owned(),
        interactive: read.interactive,
        one_phase: read.one_phase,
        heuristic: read.heuristic,
        outcome: Some(columns.outcome),
        completed: true,
        reason,
        set_aside: None,
        overdue: read.overdue,
        begun_at_ms: columns.begun_at_ms,
        decided_at_ms: columns.decided_at_ms,
        ended_at_ms: Some(columns.ended_at_ms),
        branches: read.branches.into_iter().map(ReadBranch::view).collect(),
    };
    Ok((view, timeline))
}

impl ReadBranch {
    fn view(self) -> BranchView {
        BranchView {
            name: self.name,
            participant: self.participant,
            kind: self.kind,
            after: Some(self.after),
            phase_one_by: self.by_initiator.then(|| "initiator".to_owned()),
            also_on_rollback: self.also_on_rollback,
            comes_last: self.comes_last,
            resolution: self.resolution,
            vote: self.vote,
            state: "done".to_owned(),
            attempt: 0,
            parked: false,
            last_error: None,
            retry_at_ms: None,
            // As a live one is shown: JSON that no value can hold, such as 1e400, is no result.
            result: self.result.and_then(|result| serde_json::from_str(result.get()).ok()),
        }
    }
}

impl ReadEvent {
    fn view(&self, columns: &Columns, names: &[String]) -> EventView {
        let at = |place: usize| self.0.get(place);
        let text = |place| at(place).and_then(|value| value.as_str()).map(str::to_owned);
        let number = |place| {
            at(place)
                .and_then(serde_json::Value::as_u64)
                .and_then(|found| u32::try_from(found).ok())
        };
        let since = at(0).and_then(serde_json::Value::as_i64).unwrap_or(0);
        let event = text(1).unwrap_or_default();
        let place = at(2).and_then(serde_json::Value::as_u64);
        let decided = event == "decided";
        EventView {
            at_ms: columns.begun_at_ms.wrapping_add_signed(since),
            branch: place.and_then(|place| names.get(usize::try_from(place).ok()?).cloned()),
            operation: text(3),
            attempt: number(4),
            detail: if decided { Some(columns.outcome.clone()) } else { text(5) },
            times: number(6),
            event,
        }
    }
}

#[cfg(test)]
mod tests {
    use unanimity_core::{
        Answer, BranchPlan, Coordinator, CoordinatorConfig, Effect, Event, Kind, Operation,
        Options, Plan, TransactionId,
    };

    use super::*;
    use crate::view::course;

    /// Runs a transaction to its end; `answer` says what each call comes to.
    fn ended(branches: Vec<BranchPlan>, answer: impl Fn(&str, Operation) -> Answer) -> Transaction {
        let mut coordinator = Coordinator::new(CoordinatorConfig::default());
        let id = TransactionId::new("t-1").unwrap();
        let plan = Plan { open: false, branches, options: Options::default() };
        let mut now = 1_000;
        let event = Event::Begin { transaction: id, fingerprint: 7, plan: Box::new(plan) };
        let mut steps = vec![coordinator.handle(now, event)];
        while let Some(step) = steps.pop() {
            now += 3;
            let (_, sealed) = step.seal(1);
            for effect in sealed.release(unanimity_core::Durable::up_to(1)) {
                match effect {
                    Effect::Call(call) => steps.push(coordinator.handle(
                        now,
                        Event::Answer {
                            answer: answer(&call.plan.name, call.operation),
                            transaction: call.transaction,
                            branch: call.branch,
                            operation: call.operation,
                            attempt: call.attempt,
                        },
                    )),
                    Effect::Ended(transaction) => return (*transaction).clone(),
                    _ => {} // Nobody waits here.
                }
            }
        }
        panic!("it must end")
    }

    fn check(transaction: &Transaction) {
        let course = course(transaction);
        let whole = whole(transaction, &course);
        let shared = shared(transaction, &course);
        let times = json(&Times(transaction.begun_at, course.iter().map(Moment::at)));
        let results = results(transaction).map(|results| json(&results));
        let view = TransactionView::of(transaction);
        let reason = view.reason.clone();
        let columns = || Columns {
            id: view.id.clone(),
            begun_at_ms: view.begun_at_ms,
            decided_at_ms: view.decided_at_ms,
            ended_at_ms: view.ended_at_ms.unwrap(),
            outcome: view.outcome.clone().unwrap(),
            reason: reason.as_ref().map_or_else(String::new, |reason| reason.code.clone()),
            reason_detail: reason.as_ref().and_then(|reason| reason.detail.clone()),
        };
        let timeline = TimelineView::of(transaction);
        let found = read(columns(), &whole, (None, None)).unwrap();
        assert_eq!((&found.0, &found.1), (&view, &timeline));
        let found = read(columns(), &shared, (Some(&times), results.as_deref())).unwrap();
        assert_eq!((&found.0, &found.1), (&view, &timeline));
    }

    #[test]
    fn what_is_read_is_what_the_views_say() {
        let branch = |name: &str, kind, after: &[u16]| BranchPlan {
            after: after.into(),
            ..BranchPlan::new(name, "http://p\"quoted\"", kind)
        };
        let three = || {
            let note = BranchPlan { also_on_rollback: true, ..branch("note", Kind::Deferred, &[]) };
            vec![
                branch("a", Kind::TwoPhase, &[]),
                branch("b", Kind::Compensable, &[0]),
                branch("c", Kind::Compensable, &[1]),
                note,
            ]
        };
        check(&ended(three(), |name, operation| match operation {
            Operation::Prepare => Answer::ReadOnly,
            Operation::Execute if name == "b" => Answer::Yes(Some("{\"n\": 1.10}".into())),
            // JSON, and no value.
            Operation::Execute => Answer::Yes(Some("[1e400, \"\\ud800\"]".into())),
            _ => Answer::Acknowledged,
        }));
        check(&ended(three(), |name, operation| match operation {
            Operation::Prepare => Answer::Yes(None),
            Operation::Execute if name == "c" => Answer::No("sold \"out\"\n".into()),
            Operation::Execute => Answer::Yes(Some("not JSON".into())),
            _ => Answer::Acknowledged,
        }));
        let one = vec![branch("a", Kind::TwoPhase, &[])];
        check(&ended(one, |_, operation| match operation {
            Operation::CommitOnePhase => Answer::Unsupported,
            Operation::Prepare => Answer::Yes(None),
            _ => Answer::Acknowledged,
        }));
    }
}
