//! Decides how a service's word becomes the guard's: the vote, its limits, and what a panic in the
//! service counts as. Shared by every guard store.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use unanimity_core::guard::Work;
use unanimity_core::{Operation, REASON_BYTES_MAX, TransactionId};

use crate::contract::{RESULT_BYTES_MAX, cut};
use crate::participant::{CallError, Request};

/// An error of the service itself: nothing of the call remains, and the coordinator tries again.
/// Anything that is an error, and any text, converts into it with `?` or `.into()`.
pub type ServiceError = Box<dyn std::error::Error + Send + Sync>;

/// The error of a service that could do the work but for somebody else who holds what it needs.
/// Like any other error, except that it reaches the coordinator as [`CallError::Busy`] and is not
/// counted as a failure.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Busy(
    /// What is held.
    pub String,
);

/// What a service's functions return.
pub type ServiceResult<T> = Result<T, ServiceError>;

/// Which branch of which transaction a service works for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BranchContext {
    /// The transaction.
    pub transaction: TransactionId,
    /// The branch, unique within its transaction.
    pub branch: Arc<str>,
    /// What is asked for.
    pub operation: Operation,
    /// The how-manieth time the coordinator asks, from 1; 0 where an inquiry found the decision
    /// out.
    pub attempt: u32,
}

impl From<&Request> for BranchContext {
    fn from(request: &Request) -> Self {
        Self {
            transaction: request.transaction.clone(),
            branch: Arc::clone(&request.branch),
            operation: request.operation,
            attempt: request.attempt,
        }
    }
}

/// What a service answers to a prepare or an execute.
#[derive(Clone, Debug, PartialEq)]
pub enum Vote {
    /// Prepared (it can commit, and it can roll back, whatever happens), or executed.
    Yes,
    /// The same, with a result for the initiator: at most 32 KiB of JSON, and dropped if it is
    /// longer.
    YesWith(serde_json::Value),
    /// Prepare only: there is nothing to commit, leave this branch out of phase two. The changes of
    /// this call are undone.
    ReadOnly,
    /// No, with the reason that reaches the initiator, cut to 512 bytes. The changes of this call
    /// are undone.
    No(String),
}

impl Vote {
    /// A no with its reason.
    #[must_use]
    pub fn no(reason: impl Into<String>) -> Self {
        Self::No(reason.into())
    }

    pub(crate) fn into_work(self, operation: Operation) -> ServiceResult<Work> {
        match self {
            Self::Yes => Ok(Work::Done(None)),
            Self::YesWith(result) => {
                let text = result.to_string();
                if text.len() <= RESULT_BYTES_MAX {
                    return Ok(Work::Done(Some(text)));
                }
                // The work is done, and doing it again would give the same result: an error here
                // would be repeated for ever.
                tracing::error!(bytes = text.len(), RESULT_BYTES_MAX, "the result is dropped");
                Ok(Work::Done(None))
            }
            Self::ReadOnly if operation == Operation::Execute => {
                Err("the service said read-only to an execute".into())
            }
            Self::ReadOnly => Ok(Work::ReadOnly),
            Self::No(reason) => Ok(Work::No(cut(&reason, REASON_BYTES_MAX))),
        }
    }
}

/// Runs a service's code. A panic in it counts as an error of this one call.
pub(crate) fn isolated<T>(work: impl FnOnce() -> ServiceResult<T>) -> Result<T, CallError> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(done) => done.map_err(|error| match error.downcast::<Busy>() {
            Ok(busy) => CallError::Busy(busy.0),
            Err(error) => CallError::Failed(error.to_string()),
        }),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            let text = text.unwrap_or("no message");
            Err(CallError::Failed(format!("the service panicked: {text}")))
        }
    }
}

/// The default of an operation that a service does not offer.
pub(crate) fn unsupported<T>(operation: &str) -> ServiceResult<T> {
    Err(format!("this service does not support {operation}").into())
}
