//! How a request becomes a plan, and an error of the manager a problem document.

use std::borrow::Cow;
use std::cell::LazyCell;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderMap;
use unanimity::core::{BranchPlan, EnlistRefusal, Options, Plan, PlanError, TransactionId};
use unanimity::{
    BeginError, BeginRequest, CommitError, EnlistError, EnlistRequest, ResolveError,
    TransactionManager, Unavailable, Wait,
};
use unanimity_sdk::INITIATOR_BRANCH;
use unanimity_sdk::api::{
    BranchRequest, Kind, PhaseOneBy, TransactionRequest, Wait as WaitRequest,
};

use super::{Shared, WAIT_MAX};
use crate::problem::{self, Problem, code};

/// The longest idempotency key, in bytes.
const KEY_BYTES_MAX: usize = 255;
const KEY_HEADER: &str = "idempotency-key";
/// The branch that a request's `notice` becomes.
const NOTICE_BRANCH: &str = "notice";

/// A request to begin, checked.
pub(super) struct Planned {
    pub(super) id: TransactionId,
    pub(super) begin: BeginRequest,
    /// What the answer waits for.
    pub(super) wait: Wait,
}

/// Checks a request to begin, whichever way it came.
pub(super) fn planned(
    shared: &Shared,
    request: &TransactionRequest,
    headers: &HeaderMap,
) -> Result<Planned, Problem> {
    let chosen = chosen_id(request, headers)?;
    let plan = plan(shared, request)?;
    // An interactive one is begun when it is open: the request to commit waits for its outcome.
    let wait = match request.interactive {
        true => Wait::Accepted,
        false => wait(request.wait),
    };
    let fresh = chosen.is_none();
    let id = chosen.unwrap_or_else(TransactionManager::generate_id);
    let begin = if fresh {
        BeginRequest::fresh(id.clone(), plan, wait)
    } else {
        BeginRequest::with_id(id.clone(), plan, wait).asking(asked_options(request))
    };
    let begin = begin.checked();
    Ok(Planned { id, begin, wait })
}

/// The plan that a request asks for.
pub(super) fn plan(shared: &Shared, request: &TransactionRequest) -> Result<Plan, Problem> {
    let branches = with_its_own(request);
    if branches.len() > shared.limits.branches_max {
        let (found, most) = (branches.len(), shared.limits.branches_max);
        let detail = format!("the request has {found} branches; at most {most} are allowed");
        return Err(Problem::new(code::TOO_MANY_BRANCHES, detail).with_field("branches"));
    }
    // Hardly any branch names another.
    let places = LazyCell::new(|| {
        let mut places = HashMap::new();
        for (place, branch) in (0_u16..).zip(&*branches) {
            places.entry(branch.name.as_str()).or_insert(place);
        }
        places
    });
    let mut planned = Vec::with_capacity(branches.len());
    for (index, branch) in branches.iter().enumerate() {
        let field = |name: &str| format!("branches[{index}].{name}");
        let numbers = |names: &[String], doc, name: &str| {
            let number = |wanted: &String| {
                let unknown = || {
                    let detail = format!("there is no branch named {wanted:?}");
                    Problem::new(doc, detail).with_field(field(name))
                };
                places.get(wanted.as_str()).copied().ok_or_else(unknown)
            };
            each_once(names).map(number).collect::<Result<Vec<u16>, Problem>>()
        };
        let after = numbers(&branch.after, code::AFTER_UNKNOWN, "after")?;
        let named = references(branch).map_err(|problem| problem.with_field(field("payload")))?;
        let refers = numbers(&named, code::REFERENCE_UNKNOWN, "payload")?;
        let branch = branch_plan(branch);
        check_branch(shared, &branch, field)?;
        planned.push(BranchPlan { after: after.into(), refers: refers.into(), ..branch });
    }
    if request.notice.is_some() {
        planned.iter_mut().last().into_iter().for_each(|notice| notice.comes_last = true);
    }
    let options = options(&shared.defaults, request);
    let plan = Plan { open: request.interactive, branches: planned, options };
    plan.check()?;
    Ok(plan)
}

/// The names without repetitions, which say nothing new: a request has room for 100,000 of them.
fn each_once(names: &[String]) -> impl Iterator<Item = &String> {
    let mut seen = HashSet::new();
    names.iter().filter(move |name| seen.insert(name.as_str()))
}

/// The branches of a request, and those that its inquiry and its notice become; the notice is the
/// last of them.
fn with_its_own(request: &TransactionRequest) -> Cow<'_, [BranchRequest]> {
    if request.inquiry.is_none() && request.notice.is_none() {
        return Cow::Borrowed(&request.branches);
    }
    let mut branches = Vec::with_capacity(request.branches.len() + 2);
    branches.extend(request.inquiry.iter().map(|url| BranchRequest {
        name: INITIATOR_BRANCH.to_owned(),
        participant: url.clone(),
        kind: Kind::Local,
        ..BranchRequest::default()
    }));
    branches.extend(request.branches.iter().cloned());
    if let Some(notice) = &request.notice {
        branches.push(BranchRequest {
            name: NOTICE_BRANCH.to_owned(),
            participant: notice.url.clone(),
            kind: Kind::Deferred,
            also_on_rollback: notice.on_rollback,
            ..BranchRequest::default()
        });
    }
    Cow::Owned(branches)
}

/// A branch as the core knows it, but for the numbers of others.
fn branch_plan(branch: &BranchRequest) -> BranchPlan {
    let kind = branch.kind.into();
    BranchPlan {
        payload: Arc::from(branch.payload.as_str().as_bytes()),
        payload_in_phase_two: branch.payload_in_phase_two,
        by_initiator: branch.phase_one_by == PhaseOneBy::Initiator || branch.kind == Kind::Local,
        delay_ms: branch.delay_ms,
        also_on_rollback: branch.also_on_rollback,
        ..BranchPlan::new(branch.name.as_str(), branch.participant.as_str(), kind)
    }
}

fn references(branch: &BranchRequest) -> Result<Vec<String>, Problem> {
    let names = crate::outbound::references::names(branch.payload.as_str());
    names.map_err(|error| Problem::new(code::REFERENCE_INVALID, error))
}

/// Whether its carriage takes the branch; `field` says how a field of it is called in the request.
fn check_branch(
    shared: &Shared,
    branch: &BranchPlan,
    field: impl Fn(&str) -> String,
) -> Result<(), Problem> {
    shared.manager.check_branch(branch).map_err(|(code, message)| {
        let doc = problem::find(code).copied().unwrap_or(code::PARTICIPANT_INVALID);
        Problem::new(doc, message).with_field(field(field_of(code)))
    })
}

/// Which field of a branch a carriage's refusal speaks of.
fn field_of(code: &str) -> &'static str {
    match code {
        "database_two_phase_only" => "kind",
        "statements_invalid" | "statement_not_allowed" => "payload",
        _ => "participant", // Every other refusal is about the address.
    }
}

/// The branch that a request to enlist asks for.
pub(super) fn enlist(shared: &Shared, branch: &BranchRequest) -> Result<EnlistRequest, Problem> {
    let refers = references(branch).map_err(|problem| problem.with_field("payload"))?;
    let (after, branches_max) =
        (each_once(&branch.after).cloned().collect(), shared.limits.branches_max);
    let branch = branch_plan(branch);
    check_branch(shared, &branch, str::to_owned)?;
    Ok(EnlistRequest { branch, after, refers, branches_max })
}

/// The options that a request names, whatever the configuration says about the others: what makes
/// two requests the same.
fn asked_options(request: &TransactionRequest) -> Options {
    options(&Options::default(), request)
}

fn options(defaults: &Options, request: &TransactionRequest) -> Options {
    let mut options = defaults.clone();
    let asked = [
        (&mut options.prepare_timeout_ms, request.prepare_timeout_ms),
        (&mut options.execute_timeout_ms, request.execute_timeout_ms),
        (&mut options.open_timeout_ms, request.open_timeout_ms),
        (&mut options.timeout_ms, request.timeout_ms),
        (&mut options.attempt_timeout_ms, request.attempt_timeout_ms),
        (&mut options.retry.delay_ms, request.retry_delay_ms),
        (&mut options.retry.delay_max_ms, request.retry_delay_max_ms),
    ];
    for (option, asked) in asked {
        *option = asked.unwrap_or(*option);
    }
    options.one_phase = request.one_phase.unwrap_or(options.one_phase);
    options
}

/// The id that a request chooses, by name or by its idempotency key.
pub(super) fn chosen_id(
    request: &TransactionRequest,
    headers: &HeaderMap,
) -> Result<Option<TransactionId>, Problem> {
    let mut keys = headers.get_all(KEY_HEADER).iter();
    let key = keys.next().map(|value| value.to_str().unwrap_or_default());
    if keys.next().is_some() {
        let detail = "the key is given more than once, and which was meant cannot be known";
        return Err(
            Problem::new(code::IDEMPOTENCY_KEY_INVALID, detail).with_field("Idempotency-Key")
        );
    }
    match (&request.id, key) {
        (None, None) => Ok(None),
        (Some(_), Some(_)) => {
            let detail = "choose an id or send an Idempotency-Key, not both";
            Err(Problem::new(code::ID_AND_KEY_BOTH, detail).with_field("id"))
        }
        (Some(id), None) => parse_id(id).map(Some),
        (None, Some(key)) => id_of_key(key).map(Some),
    }
}

/// A key names its transaction: the same key always gives the same id.
fn id_of_key(key: &str) -> Result<TransactionId, Problem> {
    let printable = key.bytes().all(|byte| byte.is_ascii_graphic());
    if key.is_empty() || key.len() > KEY_BYTES_MAX || !printable {
        let detail = format!("the key must be 1 to {KEY_BYTES_MAX} printable ASCII characters");
        return Err(
            Problem::new(code::IDEMPOTENCY_KEY_INVALID, detail).with_field("Idempotency-Key")
        );
    }
    let digest = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, key.as_bytes());
    parse_id(&format!("key-{}", digest.simple()))
}

pub(super) fn parse_id(id: &str) -> Result<TransactionId, Problem> {
    let invalid = |error: String| {
        let detail = format!("the transaction id {error}");
        Problem::new(code::TRANSACTION_ID_INVALID, detail).with_field("id")
    };
    if matches!(id, "." | "..") {
        return Err(invalid(format!("is {id:?}, which means another place in a path")));
    }
    TransactionId::new(id).map_err(|error| invalid(error.to_string()))
}

pub(super) fn wait(asked: Option<WaitRequest>) -> Wait {
    match asked {
        None | Some(WaitRequest::Outcome) => Wait::Outcome,
        Some(WaitRequest::Completed) => Wait::Completed,
        Some(WaitRequest::Accepted) => Wait::Accepted,
    }
}

/// A time such as `500ms`, `30s` or `1m`, at most [`WAIT_MAX`].
pub(super) fn patience(text: &str) -> Result<Duration, Problem> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: Option<u64> = number.parse().ok();
    let waited = number.and_then(|number| match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" | "" => Some(Duration::from_secs(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs),
        _ => None, // Any other unit is refused below.
    });
    let detail = || {
        let most = WAIT_MAX.as_secs();
        format!("{text:?} is no time to wait; write for example 500ms or 30s, at most {most}s")
    };
    let waited = waited.filter(|waited| *waited <= WAIT_MAX);
    waited.ok_or_else(|| Problem::new(code::WAIT_INVALID, detail()).with_field("wait"))
}

/// Why it did not begin; `id_field` is where its id came from, if it was chosen.
pub(super) fn problem_of_begin(error: BeginError, id_field: &str) -> Problem {
    match error {
        BeginError::Id(error) => {
            Problem::new(code::TRANSACTION_ID_INVALID, format!("the transaction id {error}"))
                .with_field("id")
        }
        BeginError::Plan(error) => error.into(),
        BeginError::IdReused(_) => {
            Problem::new(code::ID_REUSED, error.to_string()).with_field(id_field)
        }
        BeginError::SetAside(_) => Problem::new(code::SET_ASIDE, error.to_string()),
        BeginError::AtCapacity => {
            Problem::new(code::AT_CAPACITY, error.to_string()).with_retry_after_s(1)
        }
        BeginError::Overloaded => overloaded(),
        BeginError::ParticipantBusy(_) => {
            Problem::new(code::PARTICIPANT_BUSY, error.to_string()).with_retry_after_s(1)
        }
        BeginError::DiskNearlyFull => {
            Problem::new(code::DISK_NEARLY_FULL, error.to_string()).with_retry_after_s(5)
        }
        BeginError::Unavailable(unavailable) => problem_of_unavailable(unavailable),
    }
}

/// Why a beginning was not even looked at.
pub(super) fn problem_of_admission(error: BeginError) -> Problem {
    match error {
        BeginError::Unavailable(unavailable) => problem_of_unavailable(unavailable),
        BeginError::Overloaded => overloaded(),
        other => panic!("nobody is refused at the door for this: {other}"),
    }
}

/// More is begun than can be carried out.
fn overloaded() -> Problem {
    Problem::new(code::OVERLOADED, BeginError::Overloaded.to_string()).with_retry_after_s(1)
}

/// A refusal by its code; the table of codes has all of them.
fn problem_of_code(code: &str, detail: String) -> Problem {
    Problem::new(problem::find(code).copied().unwrap_or(code::INTERNAL), detail)
}

pub(super) fn problem_of_enlist(error: EnlistError) -> Problem {
    match error {
        EnlistError::Unavailable(unavailable) => problem_of_unavailable(unavailable),
        // The core names the place in the whole; the request is one branch of it.
        EnlistError::Refused(EnlistRefusal::Plan(error)) => {
            let field = error.field.rsplit("].").next().unwrap_or_default().to_owned();
            PlanError { field, ..error }.into()
        }
        EnlistError::Refused(_) => problem_of_code(error.code(), error.to_string()),
    }
}

pub(super) fn problem_of_commit(error: CommitError) -> Problem {
    match error {
        CommitError::Unavailable(unavailable) => problem_of_unavailable(unavailable),
        CommitError::RolledBack(ref view) => {
            let reason = view.reason.as_ref().map_or("no reason is known", |reason| {
                reason.detail.as_deref().unwrap_or(&reason.code)
            });
            let detail = format!("transaction {} is rolled back: {reason}", view.id);
            Problem::new(code::ALREADY_DECIDED, detail)
        }
        CommitError::Unknown | CommitError::Whole | CommitError::SetAside => {
            problem_of_code(error.code(), error.to_string())
        }
    }
}

pub(super) fn problem_of_resolve(error: ResolveError) -> Problem {
    match error {
        ResolveError::Unavailable(unavailable) => problem_of_unavailable(unavailable),
        ResolveError::Refused(_) | ResolveError::Ended(_) => {
            problem_of_code(error.code(), error.to_string())
        }
    }
}

pub(super) fn problem_of_unavailable(error: Unavailable) -> Problem {
    let doc = match error {
        Unavailable::Stopping => code::STOPPING,
        Unavailable::ShardFailed => code::SHARD_FAILED,
        Unavailable::HistoryFailed => code::INTERNAL,
    };
    Problem::new(doc, error.to_string()).with_retry_after_s(1)
}
