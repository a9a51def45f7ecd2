//! How a transaction looks to people and programs: the shape that the HTTP API answers with and the
//! history keeps. Decides names; payloads never appear.

use serde::{Deserialize, Serialize};
use unanimity_core::{
    Ballot, Branch, Kind, Observation, Operation, Outcome, Progress, Reason, Resolution, Stage,
    Transaction, What,
};

/// A transaction's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransactionView {
    /// Its name.
    pub id: String,
    /// `open`, `preparing`, `executing`, `settling`, `committing`, `rolling_back` or `ended`.
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
    fn of(resolution: &Resolution) -> Self {
        Self {
            settled_as: settled_as(resolution.outcome).to_owned(),
            by: resolution.by.to_string(),
            reason: resolution.reason.to_string(),
            at_ms: resolution.at,
        }
    }
}

/// How a branch was settled, in a word.
const fn settled_as(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Commit => "committed",
        Outcome::Rollback => "rolled_back",
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
    fn of(transaction: &Transaction, reason: &Reason) -> Self {
        let (branch, detail) = match reason {
            Reason::No { branch, text } => {
                (Some(transaction.branch(*branch).plan.name.to_string()), Some(text.to_string()))
            }
            Reason::Requested(text) => (None, Some(text.to_string())),
            Reason::AllYes
            | Reason::PrepareTimeout
            | Reason::ExecuteTimeout
            | Reason::Timeout
            | Reason::Restarted
            | Reason::Abandoned
            | Reason::Settled => (None, None),
        };
        Self { code: reason.code().to_owned(), branch, detail }
    }
}

impl BranchView {
    fn of(transaction: &Transaction, branch: &Branch, park_after_attempts: u16) -> Self {
        let settling = transaction.settling.is_some();
        let name = |number: &u16| transaction.branch(*number).plan.name.to_string();
        let vote = match branch.ballot {
            Ballot::NotCalled | Ballot::Unanswered | Ballot::RolledBack => None,
            Ballot::Committed => Some(Ballot::Yes.as_str().to_owned()),
            Ballot::Yes | Ballot::ReadOnly | Ballot::No => Some(branch.ballot.as_str().to_owned()),
        };
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
            resolution: branch.resolution.as_ref().map(ResolutionView::of),
            vote,
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
        // Equal failures are folded into the first, which then bears the time of the last.
        let mut seen: Vec<&Observation> = transaction.timeline.iter().collect();
        seen.sort_by_key(|observation| observation.at);
        let mut events = vec![EventView::plain(transaction.begun_at, "begun")];
        let decided = transaction.decision.as_ref();
        let before = decided.map_or(seen.len(), |decision| {
            let first = seen.iter().position(|seen| follows(seen, decision.at, transaction));
            first.unwrap_or(seen.len())
        });
        events.extend(seen[..before].iter().map(|seen| EventView::of(seen, &name)));
        events.extend(decided.map(|decision| EventView {
            detail: Some(decision.outcome.as_str().to_owned()),
            ..EventView::plain(decision.at, "decided")
        }));
        events.extend(seen[before..].iter().map(|seen| EventView::of(seen, &name)));
        if let Some(at) = transaction.ended_at {
            events.push(EventView::plain(at, "ended"));
        }
        let id = transaction.id.as_str().to_owned();
        Self { id, events, dropped: transaction.timeline.dropped() }
    }
}

/// Whether something was seen after the decision, also where both fell into one millisecond.
fn follows(seen: &Observation, decided_at_ms: u64, transaction: &Transaction) -> bool {
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
    fn plain(at_ms: u64, event: &str) -> Self {
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
        let mut view = Self::plain(observation.at, "");
        view.branch = observation.branch.map(name);
        let (event, operation) = match &observation.what {
            What::Called { operation, attempt } => {
                view.attempt = Some(*attempt);
                ("called", Some(*operation))
            }
            What::Yes(operation) => ("yes", Some(*operation)),
            What::ReadOnly => ("read_only", None),
            What::No(operation, reason) => {
                view.detail = Some(reason.to_string());
                ("no", Some(*operation))
            }
            What::Acknowledged(operation) => ("acknowledged", Some(*operation)),
            What::Failed { operation, error, times } => {
                view.detail = Some(error.to_string());
                view.times = Some(*times);
                ("failed", Some(*operation))
            }
            What::Parked => ("parked", None),
            What::Recovered => ("recovered", None),
            What::Overdue => ("overdue", None),
            What::Enlisted => ("enlisted", None),
            What::CommitRequested => ("commit_requested", None),
            What::Unsupported(operation) => ("unsupported", Some(*operation)),
            What::Resolved(outcome) => {
                view.detail = Some(settled_as(*outcome).to_owned());
                ("resolved", None)
            }
        };
        event.clone_into(&mut view.event);
        view.operation = operation.map(|operation| operation.as_str().to_owned());
        view
    }
}
