//! How a request becomes a plan, and an error of the manager a problem document.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderMap;
use unanimity::core::{BranchPlan, Options, Plan, TransactionId};
use unanimity::{BeginError, Unavailable, Wait};
use unanimity_sdk::api::{TransactionRequest, Wait as WaitRequest};

use super::{Shared, WAIT_MAX};
use crate::problem::{self, Problem, code};

/// The longest idempotency key, in bytes.
const KEY_BYTES_MAX: usize = 255;
const KEY_HEADER: &str = "idempotency-key";

/// The plan that a request asks for.
pub(super) fn plan(shared: &Shared, request: &TransactionRequest) -> Result<Plan, Problem> {
    if request.branches.len() > shared.limits.branches_max {
        let (found, most) = (request.branches.len(), shared.limits.branches_max);
        let detail = format!("the request has {found} branches; at most {most} are allowed");
        return Err(Problem::new(code::TOO_MANY_BRANCHES, detail).with_field("branches"));
    }
    let mut places = HashMap::new();
    for (place, branch) in (0_u16..).zip(&request.branches) {
        places.entry(branch.name.as_str()).or_insert(place);
    }
    let mut branches = Vec::with_capacity(request.branches.len());
    for (index, branch) in request.branches.iter().enumerate() {
        let mut after = Vec::with_capacity(branch.after.len());
        for name in &branch.after {
            let Some(place) = places.get(name.as_str()) else {
                let detail = format!("there is no branch named {name:?}");
                let field = format!("branches[{index}].after");
                return Err(Problem::new(code::AFTER_UNKNOWN, detail).with_field(field));
            };
            after.push(*place);
        }
        if let Err((code, message)) = shared.manager.check_participant(&branch.participant) {
            let doc = problem::find(code).copied().unwrap_or(code::PARTICIPANT_INVALID);
            let field = format!("branches[{index}].participant");
            return Err(Problem::new(doc, message).with_field(field));
        }
        branches.push(BranchPlan {
            name: Arc::from(branch.name.as_str()),
            participant: Arc::from(branch.participant.as_str()),
            kind: branch.kind.into(),
            after,
            payload: Arc::from(branch.payload.as_str().as_bytes()),
            payload_in_phase_two: branch.payload_in_phase_two,
        });
    }
    let plan = Plan { branches, options: options(&shared.defaults, request) };
    plan.check()?;
    Ok(plan)
}

/// The options that a request names, whatever the configuration says about the others: what makes
/// two requests the same.
pub(super) fn asked_options(request: &TransactionRequest) -> Options {
    options(&Options::default(), request)
}

fn options(defaults: &Options, request: &TransactionRequest) -> Options {
    let mut options = defaults.clone();
    let asked = [
        (&mut options.prepare_timeout_ms, request.prepare_timeout_ms),
        (&mut options.execute_timeout_ms, request.execute_timeout_ms),
        (&mut options.timeout_ms, request.timeout_ms),
        (&mut options.attempt_timeout_ms, request.attempt_timeout_ms),
        (&mut options.retry.delay_ms, request.retry_delay_ms),
        (&mut options.retry.delay_max_ms, request.retry_delay_max_ms),
    ];
    for (option, asked) in asked {
        *option = asked.unwrap_or(*option);
    }
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

pub(super) fn problem_of_begin(error: BeginError, request: &TransactionRequest) -> Problem {
    match error {
        BeginError::Id(error) => {
            Problem::new(code::TRANSACTION_ID_INVALID, format!("the transaction id {error}"))
                .with_field("id")
        }
        BeginError::Plan(error) => error.into(),
        BeginError::IdReused(_) => {
            let field = if request.id.is_some() { "id" } else { "Idempotency-Key" };
            Problem::new(code::ID_REUSED, error.to_string()).with_field(field)
        }
        BeginError::AtCapacity => {
            Problem::new(code::AT_CAPACITY, error.to_string()).with_retry_after_s(1)
        }
        BeginError::Unavailable(unavailable) => problem_of_unavailable(unavailable),
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
