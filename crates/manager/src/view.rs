//! How a transaction looks to people and programs: the shape that the HTTP API answers with and the
//! history keeps. Decides names; payloads never appear.

use serde::{Deserialize, Serialize};
use unanimity_core::{
    Ballot, Branch, Kind, Observation, Operation, Outcome, Progress, Reason, Resolution, SetAside,
    Stage, Transaction, What,
};

/// A transaction's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransactionView {
    /// Its name.
    pub id: String,
    /// `open`, `preparing`, `executing`, `settling`, `committing`, `rolling_back`, `set_aside` or
    /// `ended`.
    pub stage: String,
    /// Whether it was begun to have branches enlisted.
    #[serde(default)]
    pub interactive: bool,
    /// Whether its only branch may commit in one phase, and so decides alone.
    #[serde(default, skip_serializing_if = "is_false")]
    pub one_phase: bool,
    /// What an operator's word made of the outcome, if anybody gave one: `committed`,
    /// `rolled_back`, `mixed` or `hazard`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heuristic: Option<String>,
    /// `commit` or `rollback`, once decided.
    pub outcome: Option<String>,
    /// Whether every participant has acknowledged.
    pub completed: bool,
    /// Why the decision was what it was.
    pub reason: Option<ReasonView>,
    /// Whether the limit for the whole has passed although the decision is taken.
    pub overdue: bool,
    /// Why it is set aside, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set_aside: Option<SetAsideView>,
    /// When it began, in milliseconds since the Unix epoch.
    pub begun_at_ms: u64,
    /// When it was decided.
    pub decided_at_ms: Option<u64>,
    /// When it was complete.
    pub ended_at_ms: Option<u64>,
    /// Its branches.
    pub branches: Vec<BranchView>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for this form")]
const fn is_false(value: &bool) -> bool {
    !*value
}

/// Why the decision was what it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReasonView {
    /// Stable: `all_yes`, `voted_no`, `prepare_timeout`, `execute_timeout`, `timeout`,
    /// `coordinator_restarted`, `requested`, `abandoned`, `settled_by_participant`.
    pub code: String,
    /// The branch that said no.
    pub branch: Option<String>,
    /// In the words of the participant or of whoever asked.
    pub detail: Option<String>,
}

/// One branch's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BranchView {
    /// Its name.
    pub name: String,
    /// Where its participant is.
    pub participant: String,
    /// `two_phase`, `compensable`, `deferred` or `local`.
    pub kind: String,
    /// The names of the branches that come before it. Not there in a history that an older version
    /// has written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Vec<String>>,
    /// `initiator`, if that does the phase-one work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase_one_by: Option<String>,
    /// Whether it is deferred work that is done after a rollback too.
    #[serde(default, skip_serializing_if = "is_false")]
    pub also_on_rollback: bool,
    /// Whether it comes after all other deferred work.
    #[serde(default, skip_serializing_if = "is_false")]
    pub comes_last: bool,
    /// How an operator says that it was settled, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolution: Option<ResolutionView>,
    /// `yes`, `read_only` or `no`, once it has voted.
    pub vote: Option<String>,
    /// `waiting`, `called`, `voted`, `finishing` or `done`.
    pub state: String,
    /// How often its current operation was called.
    pub attempt: u32,
    /// Whether it failed so often that it is tried only rarely: somebody should look.
    pub parked: bool,
    /// What went wrong last.
    pub last_error: Option<String>,
    /// When it is tried again, in milliseconds since the Unix epoch.
    pub retry_at_ms: Option<u64>,
    /// What its prepare or execute gave back, if it is JSON.
    pub result: Option<serde_json::Value>,
}

/// Why a transaction is set aside: the program broke on it, again and again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetAsideView {
    /// During what it broke: `replaying`, `handling`, `writing_anew` or `archiving`.
    pub doing: String,
    /// How often; 0: somebody has asked to take it up again, and the next start will.
    pub panics: u32,
    /// What the last panic said.
    pub message: String,
    /// When the last one was, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// Whether its records could be read. If not, only its name is known.
    pub read: bool,
}

impl SetAsideView {
    fn of(why: &SetAside) -> Self {
        Self {
            doing: why.doing.as_str().to_owned(),
            panics: why.panics,
            message: why.message.to_string(),
            at_ms: why.at,
            read: why.read,
        }
    }
}

/// An operator's word on a branch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolutionView {
    /// `committed` or `rolled_back`.
    pub settled_as: String,
    /// Who says so.
    pub by: String,
    /// Why.
    pub reason: String,
    /// When, in milliseconds since the Unix epoch.
    pub at_ms: u64,
}

impl ResolutionView {
    pub(crate) fn of(resolution: &Resolution) -> Self {
        Self {
            settled_as: settled_as(resolution.outcome).to_owned(),
            by: resolution.by.to_string(),
            reason: resolution.reason.to_string(),
            at_ms: resolution.at,
        }
    }
}

/// How a branch was settled, in a word.
pub(crate) const fn settled_as(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Commit => "committed",
        Outcome::Rollback => "rolled_back",
    }
}

/// What a ballot shows of a vote, once there is one.
pub(crate) const fn vote(ballot: Ballot) -> Option<&'static str> {
    match ballot {
        Ballot::NotCalled | Ballot::Unanswered | Ballot::RolledBack => None,
        Ballot::Committed => Some(Ballot::Yes.as_str()),
        Ballot::Yes | Ballot::ReadOnly | Ballot::No => Some(ballot.as_str()),
    }
}

/// One line of a timeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventView {
    /// When, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// `begun`, `called`, `yes`, `read_only`, `no`, `acknowledged`, `failed`, `parked`,
    /// `recovered`, `overdue`, `enlisted`, `commit_requested`, `unsupported`, `resolved`,
    /// `decided` or `ended`.
    pub event: String,
    /// On which branch.
    pub branch: Option<String>,
    /// Of which operation.
    pub operation: Option<String>,
    /// The how-manieth attempt.
    pub attempt: Option<u32>,
    /// A reason, an error, or an outcome.
    pub detail: Option<String>,
    /// How often in a row, where equal failures were folded into one line.
    pub times: Option<u32>,
}

/// A transaction's course, oldest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineView {
    /// The transaction's name.
    pub id: String,
    /// What happened.
    pub events: Vec<EventView>,
    /// How many events were not kept because the timeline was full.
    pub dropped: u32,
}

impl TransactionView {
    /// How this transaction looks now.
    #[must_use]
    pub fn of(transaction: &Transaction) -> Self {
        let decision = transaction.decision.as_ref();
        let park_after = transaction.options.retry.park_after_attempts;
        Self {
            id: transaction.id.as_str().to_owned(),
            stage: transaction.stage().as_str().to_owned(),
            interactive: transaction.open,
            one_phase: transaction.is_one_phase(),
            heuristic: transaction.heuristic().map(|heuristic| heuristic.as_str().to_owned()),
            outcome: transaction.outcome().map(|outcome| outcome.as_str().to_owned()),
            completed: transaction.stage() == Stage::Ended,
            reason: decision.map(|decision| ReasonView::of(transaction, &decision.reason)),
            overdue: transaction.overdue,
            set_aside: transaction.set_aside.as_deref().map(SetAsideView::of),
            begun_at_ms: transaction.begun_at,
            decided_at_ms: decision.map(|decision| decision.at),
            ended_at_ms: transaction.ended_at,
            branches: transaction
                .branches
                .iter()
                .map(|branch| BranchView::of(transaction, branch, park_after))
                .collect(),
        }
    }

    /// Whether the outcome is commit.
    #[must_use]
    pub fn committed(&self) -> bool {
        self.outcome.as_deref() == Some(Outcome::Commit.as_str())
    }
}

impl ReasonView {
    pub(crate) fn of(transaction: &Transaction, reason: &Reason) -> Self {
        let branch = match reason {
            Reason::No { branch, .. } => Some(transaction.branch(*branch).plan.name.to_string()),
            _ => None, // Every other reason is the whole transaction's.
        };
        let detail = reason_detail(reason).map(str::to_owned);
        Self { code: reason.code().to_owned(), branch, detail }
    }
}

/// A reason's own words: the participant's, or those of whoever asked.
pub(crate) fn reason_detail(reason: &Reason) -> Option<&str> {
    match reason {
        Reason::No { text, .. } | Reason::Requested(text) => Some(text),
        Reason::AllYes
        | Reason::PrepareTimeout
        | Reason::ExecuteTimeout
        | Reason::Timeout
        | Reason::Restarted
        | Reason::Abandoned
        | Reason::Settled => None,
    }
}

impl BranchView {
    fn of(transaction: &Transaction, branch: &Branch, park_after_attempts: u16) -> Self {
        let settling = transaction.settling.is_some();
        let name = |number: &u16| transaction.branch(*number).plan.name.to_string();
        let state = match (branch.progress, branch.ballot) {
            (Progress::Done, _) => "done",
            (Progress::Owes(_), _) => "finishing",
            (Progress::Undecided, Ballot::NotCalled) => "waiting",
            (Progress::Undecided, Ballot::Unanswered) if branch.attempt == 0 => "waiting",
            (Progress::Undecided, Ballot::Unanswered) => "called",
            (Progress::Undecided, _) => "voted",
        };
        // Also while one participant that alone decides is asked: then nothing else can decide.
        let owes = matches!(branch.progress, Progress::Owes(_)) || settling;
        Self {
            name: branch.plan.name.to_string(),
            participant: branch.plan.participant.to_string(),
            kind: branch.plan.kind.as_str().to_owned(),
            after: Some(branch.plan.after.iter().map(name).collect()),
            phase_one_by: branch.plan.by_initiator.then(|| "initiator".to_owned()),
            also_on_rollback: branch.plan.also_on_rollback,
            comes_last: branch.plan.comes_last,
            resolution: branch.resolution.as_deref().map(ResolutionView::of),
            vote: vote(branch.ballot).map(str::to_owned),
            state: state.to_owned(),
            attempt: branch.attempt,
            parked: owes && branch.failures >= park_after_attempts,
            last_error: branch.last_error.as_ref().map(|error| error.to_string()),
            retry_at_ms: branch.retry_at,
            result: branch.result.as_ref().and_then(|text| serde_json::from_str(text).ok()),
        }
    }
}

impl TimelineView {
    /// The course of this transaction: what was recorded and what was seen, in the order of time.
    #[must_use]
    pub fn of(transaction: &Transaction) -> Self {
        let name = |number: u16| transaction.branch(number).plan.name.to_string();
        let mut events = vec![EventView::plain(transaction.begun_at, "begun")];
        events.extend(course(transaction).into_iter().map(|moment| match moment {
            Moment::Seen(seen) => EventView::of(&seen, &name),
            Moment::Decided { at, outcome } => EventView {
                detail: Some(outcome.as_str().to_owned()),
                ..EventView::plain(at, "decided")
            },
        }));
        if let Some(at) = transaction.ended_at {
            events.push(EventView::plain(at, "ended"));
        }
        let id = transaction.id.as_str().to_owned();
        Self { id, events, dropped: transaction.timeline.dropped() }
    }
}

/// One moment between a transaction's beginning and its end.
#[derive(Clone, Debug)]
pub(crate) enum Moment {
    /// Something was seen.
    Seen(Observation),
    /// The decision was taken.
    Decided { at: u64, outcome: Outcome },
}

impl Moment {
    /// When it was.
    pub(crate) const fn at(&self) -> u64 {
        match self {
            Self::Seen(seen) => seen.at,
            Self::Decided { at, .. } => *at,
        }
    }
}

/// What was recorded and what was seen between beginning and end, in the order of time.
pub(crate) fn course(transaction: &Transaction) -> Vec<Moment> {
    let seen = transaction.timeline.iter();
    let mut course = Vec::with_capacity(seen.size_hint().0 + 1);
    course.extend(seen.map(Moment::Seen));
    // Equal failures are folded into the first, which then bears the time of the last.
    course.sort_by_key(Moment::at);
    if let Some(decision) = &transaction.decision {
        let follows = |moment: &Moment| match moment {
            Moment::Seen(seen) => follows(seen, decision.at, transaction),
            Moment::Decided { .. } => false,
        };
        let before = course.iter().position(follows).unwrap_or(course.len());
        let moment = Moment::Decided { at: decision.at, outcome: decision.outcome };
        course.insert(before, moment);
    }
    course
}

/// Whether something was seen after the decision, also where both fell into one millisecond.
pub(crate) fn follows(seen: &Observation, decided_at_ms: u64, transaction: &Transaction) -> bool {
    if seen.at != decided_at_ms {
        return seen.at > decided_at_ms;
    }
    // What settled it was asked, and answered, before the decision that followed from it.
    let settled = seen.branch.is_some_and(|number| {
        matches!(transaction.branch(number).ballot, Ballot::Committed | Ballot::RolledBack)
    });
    let operation = match &seen.what {
        What::Resolved(_) if settled => return false,
        What::Called { operation, .. }
        | What::Yes(operation)
        | What::No(operation, _)
        | What::Acknowledged(operation)
        | What::Unsupported(operation)
        | What::Failed { operation, .. } => *operation,
        What::Parked | What::Overdue | What::Resolved(_) => return true,
        What::ReadOnly | What::Recovered | What::Enlisted | What::CommitRequested => return false,
    };
    let deferred = |number: u16| transaction.branch(number).plan.kind == Kind::Deferred;
    match operation {
        Operation::Rollback => !settled,
        Operation::Commit | Operation::Compensate => true,
        Operation::Execute => seen.branch.is_some_and(deferred),
        Operation::Prepare | Operation::CommitOnePhase | Operation::Inquire => false,
    }
}

impl EventView {
    pub(crate) fn plain(at_ms: u64, event: &str) -> Self {
        Self {
            at_ms,
            event: event.to_owned(),
            branch: None,
            operation: None,
            attempt: None,
            detail: None,
            times: None,
        }
    }

    fn of(observation: &Observation, name: &impl Fn(u16) -> String) -> Self {
        let mut view = Self::plain(observation.at, observation.what.word());
        view.branch = observation.branch.map(name);
        match &observation.what {
            What::Called { attempt, .. } => view.attempt = Some(*attempt),
            What::No(_, reason) => view.detail = Some(reason.to_string()),
            What::Failed { error, times, .. } => {
                view.detail = Some(error.to_string());
                view.times = Some(*times);
            }
            What::Resolved(outcome) => view.detail = Some(settled_as(*outcome).to_owned()),
            What::Yes(_)
            | What::ReadOnly
            | What::Acknowledged(_)
            | What::Parked
            | What::Recovered
            | What::Overdue
            | What::Enlisted
            | What::CommitRequested
            | What::Unsupported(_) => {}
        }
        let operation = observation.what.operation();
        view.operation = operation.map(|operation| operation.as_str().to_owned());
        view
    }
}
