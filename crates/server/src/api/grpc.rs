//! The initiators' API over gRPC: the same requests as over HTTP, through the same checks. This
//! file decides how the unary ones are answered and how a problem looks as a status; the stream of
//! many transactions is `run`'s.

mod run;

use axum::response::Response as HttpResponse;
use http::{HeaderMap, header};
use tokio::sync::watch;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status, Streaming};
use unanimity::core::{self, TransactionId};
use unanimity::view::TransactionView;
use unanimity::{DecisionReply, Told, Wait};
use unanimity_sdk::api::{BranchRequest, TransactionRequest};
use unanimity_sdk::stream::transactions_server::{Transactions, TransactionsServer};
use unanimity_sdk::stream::{
    self, BeginBatch, BeginRequest, CODE_METADATA, CommitRequest, Decision, DecisionAnswer,
    DecisionRequest, EnlistRequest, FIELD_METADATA, FieldError, GetRequest, MESSAGE_BYTES_MAX,
    RollbackRequest, Transaction,
};

use super::convert::{
    self, Planned, problem_of_begin, problem_of_commit, problem_of_enlist, problem_of_unavailable,
};
use super::transactions::{found, if_read, not_read};
use super::{Api, Shared, WAIT_MAX};
use crate::problem::{Problem, code};

/// The service to mount.
pub(super) fn server(api: &Api, stopping: watch::Receiver<bool>) -> TransactionsServer<Grpc> {
    TransactionsServer::new(Grpc { api: api.clone(), stopping })
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
}

/// Whether a request is gRPC.
pub(super) fn asks(headers: &HeaderMap) -> bool {
    let given = headers.get(header::CONTENT_TYPE).map(header::HeaderValue::as_bytes);
    given.is_some_and(|given| given.starts_with(b"application/grpc"))
}

/// A problem as an answer to gRPC.
pub(super) fn refuse(problem: Problem) -> HttpResponse {
    status_of(problem).into_http()
}

/// The API, asked over gRPC.
pub(super) struct Grpc {
    api: Api,
    stopping: watch::Receiver<bool>,
}

/// A problem as a status: gRPC's code by the HTTP status, ours in the metadata.
fn status_of(problem: Problem) -> Status {
    let grpc_code = match problem.status {
        400 | 413 | 415 => Code::InvalidArgument,
        401 => Code::Unauthenticated,
        404 => Code::NotFound,
        408 => Code::DeadlineExceeded,
        409 => Code::FailedPrecondition,
        422 => Code::AlreadyExists,
        429 => Code::ResourceExhausted,
        503 | 507 => Code::Unavailable,
        _ => Code::Internal,
    };
    let mut metadata = MetadataMap::new();
    let mut put = |name: &'static str, value: String| {
        // A field's name that no header can carry is left out; the message has it.
        if let Ok(value) = value.parse() {
            metadata.insert(name, value);
        }
    };
    put(CODE_METADATA, problem.code.to_owned());
    problem.field.into_iter().for_each(|field| put(FIELD_METADATA, field));
    problem.retry_after_s.into_iter().for_each(|after| put("retry-after", after.to_string()));
    Status::with_metadata(grpc_code, problem.detail, metadata)
}

/// A field that means nothing, as the same mistake in JSON would be told.
fn problem_of_field(error: FieldError) -> Problem {
    let doc = if error.json { code::MALFORMED_JSON } else { code::WRONG_TYPE };
    Problem::new(doc, error.detail).with_field(error.field)
}

/// Where a message has the id that it chooses.
const ID_FIELD: &str = "id";
/// What a JSON body adds to a payload's depth: the request, its branches, the branch.
const DEPTH_AROUND_PAYLOAD: usize = 3;

/// Bounds what came as a message by what a body may be.
fn check_bounds(shared: &Shared, branches: &[BranchRequest]) -> Result<(), Problem> {
    let bytes_max = shared.limits.body_bytes_max;
    let bytes: usize = branches.iter().map(|branch| branch.payload.as_str().len()).sum();
    if bytes > bytes_max {
        let detail = format!("the payloads have more than {bytes_max} bytes");
        return Err(Problem::new(code::BODY_TOO_LARGE, detail));
    }
    let depth_max = shared.limits.json_depth_max;
    let levels = depth_max.saturating_sub(DEPTH_AROUND_PAYLOAD);
    let deep = |branch: &BranchRequest| branch.payload.is_deeper_than(levels);
    if branches.iter().any(deep) {
        let detail = format!("the body's JSON is nested deeper than {depth_max} levels");
        return Err(Problem::new(code::JSON_TOO_DEEP, detail));
    }
    Ok(())
}

/// Checks a request to begin.
fn planned(shared: &Shared, message: BeginRequest) -> Result<Planned, Problem> {
    let request = TransactionRequest::try_from(message).map_err(problem_of_field)?;
    check_bounds(shared, &request.branches)?;
    convert::planned(shared, &request, &HeaderMap::new())
}

/// Begins, and waits as the request says, for a minute at most.
async fn begin(api: &Api, message: BeginRequest) -> Result<TransactionView, Problem> {
    let shared = &api.shared;
    let Planned { id, begin, .. } = planned(shared, message)?;
    match tokio::time::timeout(WAIT_MAX, shared.manager.begin(begin)).await {
        Ok(begun) => Ok(begun.map_err(|error| problem_of_begin(error, ID_FIELD))?.transaction),
        Err(_) => found(shared.manager.get(&id).await.map_err(problem_of_unavailable)?, &id),
    }
}

/// How a transaction stands whose request has waited for as long as it may.
async fn standing(api: &Api, id: &TransactionId) -> Result<Transaction, Problem> {
    let shown = api.shared.manager.get(id).await.map_err(problem_of_unavailable)?;
    Ok(brief_of_view(&found(shown, id)?))
}

/// What became of a transaction.
fn brief(told: Told) -> Transaction {
    let (code, detail) =
        told.reason.map_or_else(Default::default, |reason| (reason.code, reason.detail));
    Transaction {
        id: told.id.as_str().to_owned(),
        outcome: decision_of(told.outcome) as i32,
        completed: told.completed,
        reason_code: code,
        reason_detail: detail.unwrap_or_default(),
        ..Transaction::default()
    }
}

/// The facts of a transaction as it is shown.
fn brief_of_view(view: &TransactionView) -> Transaction {
    let reason = view.reason.clone();
    let outcome = match view.outcome.as_deref() {
        Some("commit") => Decision::Commit,
        Some(_) => Decision::Rollback,
        None => Decision::Unspecified,
    };
    Transaction {
        id: view.id.clone(),
        outcome: outcome as i32,
        completed: view.completed,
        stage: view.stage.clone(),
        reason_code: reason.as_ref().map(|reason| reason.code.clone()).unwrap_or_default(),
        reason_detail: reason.and_then(|reason| reason.detail).unwrap_or_default(),
        json: String::new(),
    }
}

const fn decision_of(outcome: Option<core::Outcome>) -> Decision {
    match outcome {
        Some(core::Outcome::Commit) => Decision::Commit,
        Some(core::Outcome::Rollback) => Decision::Rollback,
        None => Decision::Unspecified,
    }
}

/// The whole, as HTTP shows it.
fn whole(view: &TransactionView) -> Transaction {
    Transaction { json: serde_json::to_string(view).unwrap_or_default(), ..brief_of_view(view) }
}

fn answered(view: Result<TransactionView, Problem>) -> Result<Response<Transaction>, Status> {
    view.map(|view| Response::new(whole(&view))).map_err(status_of)
}

fn id_of(id: &str) -> Result<TransactionId, Status> {
    convert::parse_id(id).map_err(status_of)
}

/// What a request to commit waits for; the outcome if it does not say.
fn wait_of(number: i32) -> Result<Wait, Problem> {
    let unknown = |error| Problem { code: code::WAIT_INVALID.code, ..problem_of_field(error) };
    Ok(convert::wait(stream::wait(number).map_err(unknown)?))
}

impl Grpc {
    async fn shown(&self, message: GetRequest) -> Result<TransactionView, Problem> {
        let id = convert::parse_id(&message.id)?;
        let patience = std::time::Duration::from_millis(message.wait_ms);
        let manager = &self.api.shared.manager;
        let shown = if patience.is_zero() {
            manager.get(&id).await
        } else if patience <= WAIT_MAX {
            manager.wait_for(&id, Wait::Completed, patience).await
        } else {
            let detail = format!("wait_ms is at most {}", WAIT_MAX.as_millis());
            return Err(Problem::new(code::WAIT_INVALID, detail).with_field("wait"));
        };
        if_read(found(shown.map_err(problem_of_unavailable)?, &id)?, &id)
    }

    async fn enlisted(&self, message: EnlistRequest) -> Result<TransactionView, Problem> {
        let shared = &self.api.shared;
        let id = convert::parse_id(&message.id)?;
        let branch = message.branch.unwrap_or_default();
        let branch = BranchRequest::try_from(branch).map_err(problem_of_field)?;
        check_bounds(shared, std::slice::from_ref(&branch))?;
        let enlist = convert::enlist(shared, &branch)?;
        shared.manager.enlist(&id, enlist).await.map_err(problem_of_enlist)
    }

    async fn committed(&self, message: CommitRequest) -> Result<TransactionView, Problem> {
        let manager = &self.api.shared.manager;
        let id = convert::parse_id(&message.id)?;
        let wait = wait_of(message.wait)?;
        match tokio::time::timeout(WAIT_MAX, manager.commit(&id, wait)).await {
            Ok(committed) => committed.map_err(problem_of_commit),
            Err(_) => found(manager.get(&id).await.map_err(problem_of_unavailable)?, &id),
        }
    }
}

#[tonic::async_trait]
impl Transactions for Grpc {
    type RunStream = run::Written;

    async fn begin(&self, request: Request<BeginRequest>) -> Result<Response<Transaction>, Status> {
        answered(begin(&self.api, request.into_inner()).await)
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<Transaction>, Status> {
        answered(self.shown(request.into_inner()).await)
    }

    async fn rollback(
        &self,
        request: Request<RollbackRequest>,
    ) -> Result<Response<Transaction>, Status> {
        let id = id_of(&request.into_inner().id)?;
        answered(super::transactions::rolled_back(&self.api, &id).await)
    }

    async fn enlist(
        &self,
        request: Request<EnlistRequest>,
    ) -> Result<Response<Transaction>, Status> {
        answered(self.enlisted(request.into_inner()).await)
    }

    async fn commit(
        &self,
        request: Request<CommitRequest>,
    ) -> Result<Response<Transaction>, Status> {
        answered(self.committed(request.into_inner()).await)
    }

    async fn decision(
        &self,
        request: Request<DecisionRequest>,
    ) -> Result<Response<DecisionAnswer>, Status> {
        let id = id_of(&request.into_inner().id)?;
        let decided = self.api.shared.manager.decision(&id).await;
        let decision = match decided.map_err(problem_of_unavailable).map_err(status_of)? {
            DecisionReply::Commit => Decision::Commit,
            DecisionReply::Rollback => Decision::Rollback,
            DecisionReply::Pending => Decision::Pending,
            DecisionReply::NotRead => return Err(status_of(not_read(&id))),
        };
        Ok(Response::new(DecisionAnswer { decision: decision as i32 }))
    }

    async fn run(
        &self,
        request: Request<Streaming<BeginBatch>>,
    ) -> Result<Response<run::Written>, Status> {
        Ok(Response::new(run::start(&self.api, request.into_inner(), self.stopping.clone())))
    }
}
