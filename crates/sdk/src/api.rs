//! Decides the JSON that the coordinator speaks with initiators and participants. The server and
//! the client share these very types. Requests refuse unknown fields, so that a misspelt timeout is
//! an error and not a default; answers tolerate them, so that an old client understands a newer
//! server.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

pub use self::json::Json;
pub use self::set_aside::SetAsideStatus;
pub use crate::problem::Problem;

mod json;
mod set_aside;

/// What is written as a JSON object and as nothing else. serde alone would also take an array that
/// holds the fields in their order.
#[doc(hidden)]
#[derive(Debug)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Fields(PhantomData)).map(Self)
    }
}

struct Fields<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
    type Value = T;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map))
    }
}

fn objects<'de, T, D>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    let objects = Vec::<Object<T>>::deserialize(deserializer)?;
    Ok(objects.into_iter().map(|Object(object)| object).collect())
}

/// A whole transaction, as an initiator asks for it. All times are in milliseconds; those left out
/// are the coordinator's defaults.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct TransactionRequest {
    /// Its name: 1 to 128 of `A-Z a-z 0-9 . _ : -`. Without one the coordinator chooses; an
    /// initiator that may have to ask again should choose itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(pattern = "^[A-Za-z0-9._:-]{1,128}$"))]
    pub id: Option<String>,
    /// Its branches: 1 to 256; those of an interactive one may all come later.
    #[serde(deserialize_with = "objects")]
    #[cfg_attr(feature = "openapi", schema(max_items = 256))]
    pub branches: Vec<BranchRequest>,
    /// Whether branches may be enlisted until the initiator asks to commit.
    #[serde(default, skip_serializing_if = "is_default")]
    pub interactive: bool,
    /// Of an interactive one: where the initiator's own database is asked whether its local work is
    /// there, if the initiator falls silent. It becomes a branch named `initiator`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inquiry: Option<String>,
    /// Who is told when everything else is complete. It becomes a deferred branch named `notice`
    /// that comes last, also after branches that are enlisted later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notice: Option<NoticeRequest>,
    /// Of an interactive one: how long it waits for its initiator, from the beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 2_592_000_000_i64))]
    pub open_timeout_ms: Option<u64>,
    /// Whether a single two-phase branch may commit in one phase; yes if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub one_phase: Option<bool>,
    /// What the answer waits for; `outcome` if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait: Option<Wait>,
    /// From the beginning until every prepare has voted; then the transaction rolls back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 2_592_000_000_i64))]
    pub prepare_timeout_ms: Option<u64>,
    /// From the first execute until every compensable branch has executed; then it rolls back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 2_592_000_000_i64))]
    pub execute_timeout_ms: Option<u64>,
    /// From the beginning until everything is complete: undecided by then, it rolls back; decided,
    /// it is shown as overdue. 0: no such limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(maximum = 2_592_000_000_i64))]
    pub timeout_ms: Option<u64>,
    /// How long one call after the decision may take; one before it has what is left of its phase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 2_592_000_000_i64))]
    pub attempt_timeout_ms: Option<u64>,
    /// The first delay before a call is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 2_592_000_000_i64))]
    pub retry_delay_ms: Option<u64>,
    /// What that delay grows to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 2_592_000_000_i64))]
    pub retry_delay_max_ms: Option<u64>,
}

/// One participant's part in a transaction, as an initiator asks for it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct BranchRequest {
    /// Its name, unique within the transaction; formed as an id.
    #[cfg_attr(feature = "openapi", schema(pattern = "^[A-Za-z0-9._:-]{1,128}$"))]
    pub name: String,
    /// The participant's URL; the operation's name is appended to its path.
    pub participant: String,
    /// What sort of promise it makes.
    #[serde(default, skip_serializing_if = "is_default")]
    pub kind: Kind,
    /// The names of the branches that must have voted yes or executed before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<String>,
    /// What the participant is given, byte for byte: any JSON, at most 1 MiB.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Object))]
    pub payload: Json,
    /// Whether commit and rollback carry the payload too.
    #[serde(default, skip_serializing_if = "is_default")]
    pub payload_in_phase_two: bool,
    /// Who prepares or executes it: the initiator may, in an interactive transaction.
    #[serde(default, skip_serializing_if = "is_default")]
    pub phase_one_by: PhaseOneBy,
    /// Of a deferred branch: not before so long after the decision.
    #[serde(default, skip_serializing_if = "is_default")]
    #[cfg_attr(feature = "openapi", schema(maximum = 2_592_000_000_i64))]
    pub delay_ms: u64,
    /// Of a deferred branch: also after a rollback, when everything is undone.
    #[serde(default, skip_serializing_if = "is_default")]
    pub also_on_rollback: bool,
}

/// Who does a branch's phase-one work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum PhaseOneBy {
    /// The coordinator calls prepare or execute when it is asked to commit.
    #[default]
    Coordinator,
    /// The initiator, or the service itself, does it (TCC's try).
    Initiator,
}

/// Who is told when a transaction is complete.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NoticeRequest {
    /// A participant's URL; it is asked to `execute`.
    pub url: String,
    /// Whether it is told of a rollback too.
    #[serde(default, skip_serializing_if = "is_default")]
    pub on_rollback: bool,
}

/// An operator's word on a branch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ResolveRequest {
    /// How it was settled.
    #[serde(rename = "as")]
    pub settled_as: SettledAs,
    /// Who says so.
    #[cfg_attr(feature = "openapi", schema(min_length = 1))]
    pub by: String,
    /// Why; needed where it contradicts the decision.
    #[serde(default)]
    pub reason: String,
}

/// How a branch was settled by hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum SettledAs {
    /// Its work is there.
    Committed,
    /// Its work is not there, or was undone.
    RolledBack,
}

/// An operator's word on a branch, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ResolutionStatus {
    /// How it was settled.
    pub settled_as: SettledAs,
    /// Who says so.
    pub by: String,
    /// Why.
    pub reason: String,
    /// When, in milliseconds since the Unix epoch.
    pub at_ms: u64,
}

/// Whether a field says nothing that leaving it out would not say.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// What sort of promise a branch makes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Prepare, then commit or rollback.
    #[default]
    TwoPhase,
    /// Execute, and compensate if the rest fails.
    Compensable,
    /// Execute only after the decision to commit, until it succeeds.
    Deferred,
    /// The initiator's own database, which is asked if the initiator falls silent.
    Local,
}

impl From<Kind> for unanimity_core::Kind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::TwoPhase => Self::TwoPhase,
            Kind::Compensable => Self::Compensable,
            Kind::Deferred => Self::Deferred,
            Kind::Local => Self::Local,
        }
    }
}

impl From<unanimity_core::Kind> for Kind {
    fn from(kind: unanimity_core::Kind) -> Self {
        match kind {
            unanimity_core::Kind::TwoPhase => Self::TwoPhase,
            unanimity_core::Kind::Compensable => Self::Compensable,
            unanimity_core::Kind::Deferred => Self::Deferred,
            unanimity_core::Kind::Local => Self::Local,
        }
    }
}

/// What the answer to a new transaction waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Wait {
    /// The decision is durable.
    #[default]
    Outcome,
    /// Every participant has acknowledged.
    Completed,
    /// The beginning is durable.
    Accepted,
}

/// Where a transaction stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TransactionStatus {
    /// Its name.
    pub id: String,
    /// What is under way.
    pub stage: Stage,
    /// Whether it was begun to have branches enlisted.
    #[serde(default)]
    pub interactive: bool,
    /// Whether its only branch may commit in one phase, and so decides alone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub one_phase: bool,
    /// What operators' words made of the outcome: `committed`, `rolled_back`, `mixed`, `hazard`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heuristic: Option<String>,
    /// The decision, once there is one. It never changes.
    pub outcome: Option<Outcome>,
    /// Whether every participant has acknowledged the decision.
    pub completed: bool,
    /// Why it was decided as it was, once it is.
    pub reason: Option<ReasonStatus>,
    /// Whether its limit for the whole has passed before it was complete.
    pub overdue: bool,
    /// Why it is set aside, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set_aside: Option<SetAsideStatus>,
    /// When it began, in milliseconds since the Unix epoch.
    pub begun_at_ms: u64,
    /// When it was decided, in milliseconds since the Unix epoch.
    pub decided_at_ms: Option<u64>,
    /// When it was complete, in milliseconds since the Unix epoch.
    pub ended_at_ms: Option<u64>,
    /// Its branches, in the order of the request.
    pub branches: Vec<BranchStatus>,
}

/// What is under way in a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Branches may be enlisted; the initiator's request to commit is awaited.
    Open,
    /// Its time is over, and the participant that alone decides is asked.
    Settling,
    /// Two-phase branches are being prepared.
    Preparing,
    /// Compensable branches are being executed.
    Executing,
    /// Commit is decided and being told to the participants.
    Committing,
    /// Rollback is decided and being told to the participants.
    RollingBack,
    /// The coordinator broke on it again and again, and leaves it alone.
    SetAside,
    /// Everything is acknowledged.
    Ended,
}

/// A decision that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It happens everywhere.
    Commit,
    /// It happens nowhere.
    Rollback,
}

/// Why a transaction was decided as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ReasonStatus {
    /// Stable, snake case.
    pub code: String,
    /// The branch that was the reason, if one was.
    pub branch: Option<String>,
    /// The participant's own words, if it had any.
    pub detail: Option<String>,
}

/// Where a branch stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct BranchStatus {
    /// Its name.
    pub name: String,
    /// The participant's URL.
    pub participant: String,
    /// What sort of promise it makes.
    pub kind: Kind,
    /// The names of the branches that come before it, where the coordinator still knows them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Vec<String>>,
    /// `initiator`, if that does the phase-one work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase_one_by: Option<String>,
    /// Whether it is deferred work that is done after a rollback too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub also_on_rollback: bool,
    /// Whether it comes after all other deferred work.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub comes_last: bool,
    /// How an operator says that it was settled, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolution: Option<ResolutionStatus>,
    /// Its vote, once it has voted.
    pub vote: Option<BranchVote>,
    /// What it is doing.
    pub state: BranchState,
    /// How often the operation under way was asked for.
    pub attempt: u32,
    /// Whether it has failed so often that it now waits for a longer retry or a person.
    pub parked: bool,
    /// What went wrong last.
    pub last_error: Option<String>,
    /// When it is tried again, in milliseconds since the Unix epoch.
    pub retry_at_ms: Option<u64>,
    /// What it returned with its vote.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Object>))]
    pub result: Option<Json>,
}

/// A branch's vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum BranchVote {
    /// Prepared, or executed.
    Yes,
    /// Nothing to commit.
    ReadOnly,
    /// Refused.
    No,
}

/// What a branch is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum BranchState {
    /// Its turn has not come.
    Waiting,
    /// It was asked and has not answered.
    Called,
    /// It has voted, and waits for the decision.
    Voted,
    /// It is being told the decision.
    Finishing,
    /// Nothing more to do.
    Done,
}

/// One page of transactions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TransactionList {
    /// The page.
    pub transactions: Vec<TransactionStatus>,
    /// What to ask for the next page with; none on the last one.
    pub next_cursor: Option<String>,
}

/// What is known of a transaction's course.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Timeline {
    /// The transaction's name.
    pub id: String,
    /// What happened, the oldest first.
    pub events: Vec<TimelineEvent>,
    /// How many events were dropped because the timeline was full.
    pub dropped: u32,
}

/// One thing that happened to a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TimelineEvent {
    /// When it was last seen, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// `begun`, `called`, `yes`, `read_only`, `no`, `acknowledged`, `failed`, `parked`,
    /// `recovered`, `overdue`, `enlisted`, `commit_requested`, `unsupported`, `resolved`,
    /// `decided`, `finished` or `ended`; later versions may add words.
    pub event: String,
    /// On which branch.
    pub branch: Option<String>,
    /// Of which operation.
    pub operation: Option<String>,
    /// Of which attempt, from 1.
    pub attempt: Option<u32>,
    /// The decision, the reason or the error.
    pub detail: Option<String>,
    /// How often in a row it was seen, where equal events were folded into one.
    pub times: Option<u32>,
}

/// What a participant in doubt is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DecisionAnswer {
    /// What was decided. A transaction that nobody has a record of is rolled back: presumed abort.
    pub decision: Decision,
}

/// What is decided about a transaction, for a participant in doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// Commit.
    Commit,
    /// Roll back.
    Rollback,
    /// Nothing yet: ask again.
    Pending,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_request_gets_every_default() {
        let text = r#"{"branches":[{"name":"a","participant":"http://x"}]}"#;
        let request: TransactionRequest = serde_json::from_str(text).unwrap();
        let (name, participant) = ("a".to_owned(), "http://x".to_owned());
        let branch = BranchRequest { name, participant, ..BranchRequest::default() };
        let expected = TransactionRequest { branches: vec![branch], ..Default::default() };
        assert_eq!(request, expected);
        assert_eq!(request.branches[0].payload.as_str(), "null");
        assert_eq!(request.branches[0].kind, Kind::TwoPhase);
    }

    #[test]
    fn a_misspelt_field_is_an_error_that_names_it() {
        for text in [
            r#"{"branches":[],"prepare_timeout":5}"#,
            r#"{"branches":[{"name":"a","participant":"http://x","paylod":1}]}"#,
        ] {
            let error = serde_json::from_str::<TransactionRequest>(text).unwrap_err().to_string();
            assert!(error.contains("prepare_timeout") || error.contains("paylod"), "{error}");
        }
    }
}
