//! Decides how an initiator does a branch's phase-one work itself (TCC's try): it puts the branch
//! on record first, and then calls the participant as the coordinator would.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, header};
use http_body_util::Full;
use unanimity_core::{Answer, Operation, own_work_again_ms};

use crate::api::{BranchRequest, Json, Kind, PhaseOneBy};
use crate::client::{ClientError, check_base_url};
use crate::contract::{
    ANSWER_BYTES_MAX, ATTEMPT_HEADER, BRANCH_HEADER, JSON, Response, TRANSACTION_HEADER, judge,
};
use crate::interactive::OpenTransaction;

/// Why the phase-one work of an initiator is not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PhaseOneError {
    /// The branch is not on record, and its participant was not called.
    #[error("the branch is not enlisted: {0}")]
    NotEnlisted(#[from] ClientError),
    /// The participant refuses. Nothing of the branch is done there.
    #[error("the participant says no: {0}")]
    No(String),
    /// Whether it is done is not known. A rollback undoes it; who calls again gets the answer of
    /// the first time.
    #[error("whether it is done is not known: {0}")]
    Unknown(String),
}

impl OpenTransaction {
    /// Does a branch's phase-one work as its initiator (TCC's try): enlists the branch so, and then
    /// calls `prepare` at the participant of a two-phase branch, or `execute` at that of a
    /// compensable one. Gives the result that the participant answers with, if it does.
    ///
    /// A call without a decisive answer is made again, a few times. Whatever the error, the
    /// transaction must not be asked to commit, because that says that the work is done: give it
    /// up. In a scope the error does that.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use unanimity_sdk::api::{BranchRequest, Json, TransactionRequest};
    /// use unanimity_sdk::{Client, PhaseOneError};
    /// let client = Client::new("http://127.0.0.1:7171", None)?;
    /// client
    ///     .transaction(TransactionRequest::default(), |open| async move {
    ///         let seat = open
    ///             .call_phase_one(&BranchRequest {
    ///                 name: "seat".into(),
    ///                 participant: "http://127.0.0.1:7001/seats".into(),
    ///                 payload: Json::from_text(r#"{"row": 7}"#.into()).unwrap_or_default(),
    ///                 ..BranchRequest::default()
    ///             })
    ///             .await?;
    ///         println!("reserved: {:?}", seat.as_ref().map(Json::as_str));
    ///         Ok::<_, PhaseOneError>(())
    ///     })
    ///     .await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`PhaseOneError`] says whether the work may be there.
    pub async fn call_phase_one(
        &self,
        branch: &BranchRequest,
    ) -> Result<Option<Json>, PhaseOneError> {
        let branch = BranchRequest { phase_one_by: PhaseOneBy::Initiator, ..branch.clone() };
        let operation = match branch.kind {
            Kind::TwoPhase => Operation::Prepare,
            Kind::Compensable => Operation::Execute,
            Kind::Deferred | Kind::Local => {
                let what = "a deferred or local branch has no phase-one work at a participant";
                return Err(ClientError::Unusable(what.to_owned()).into());
            }
        };
        let participant = check_base_url(&branch.participant)?;
        self.enlist(&branch).await?;
        let limit = self.client.request_timeout();
        let calls = self.until_decisive(&branch, operation, &participant);
        let answer = tokio::time::timeout(limit, calls).await.unwrap_or_else(|_| {
            Err(PhaseOneError::Unknown(format!("no answer within {} ms", limit.as_millis())))
        })?;
        Ok(answer.and_then(|result| Json::from_text(result).ok()))
    }

    async fn until_decisive(
        &self,
        branch: &BranchRequest,
        operation: Operation,
        participant: &str,
    ) -> Result<Option<String>, PhaseOneError> {
        let mut attempt = 1;
        loop {
            let error = match self.call_once(branch, operation, participant, attempt).await {
                Ok(Answer::Yes(result)) => return Ok(result.map(|result| result.to_string())),
                Ok(Answer::ReadOnly) => return Ok(None),
                Ok(Answer::Read(result)) => return Ok(Some(result.to_string())),
                Ok(Answer::No(reason)) => return Err(PhaseOneError::No(reason.into())),
                Ok(Answer::Unknown(error) | Answer::Unsent(error)) => error.into(),
                Ok(Answer::Acknowledged | Answer::Unsupported | Answer::Contradiction(..)) => {
                    "answered something else than asked".to_owned()
                }
                Err(error) => error.to_string(),
            };
            let Some(pause_ms) = own_work_again_ms(attempt) else {
                return Err(PhaseOneError::Unknown(error));
            };
            tokio::time::sleep(Duration::from_millis(pause_ms)).await;
            attempt += 1;
        }
    }

    /// One call. The coordinator's token stays with the coordinator.
    async fn call_once(
        &self,
        branch: &BranchRequest,
        operation: Operation,
        participant: &str,
        attempt: u32,
    ) -> Result<Answer, ClientError> {
        let payload = Bytes::copy_from_slice(branch.payload.as_str().as_bytes());
        let request = Request::post(format!("{participant}/{}", operation.as_str()))
            .header(TRANSACTION_HEADER, self.id.as_str())
            .header(BRANCH_HEADER, &branch.name)
            .header(ATTEMPT_HEADER, attempt)
            .header(header::CONTENT_TYPE, JSON)
            .header(header::ACCEPT_ENCODING, "identity")
            .body(Full::new(payload))
            .map_err(|error| ClientError::Unusable(error.to_string()))?;
        let (head, body) = self.client.exchange(request, ANSWER_BYTES_MAX, None).await?;
        Ok(judge(operation, Response::new(head.status, &head.headers, &body)))
    }
}
