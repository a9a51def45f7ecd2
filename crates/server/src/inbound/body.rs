//! Decides how long a request's body may take and how large it may be, and counts a request until
//! its answer's body has been taken.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

use super::watch::{Activity, Counted};
use crate::problem::{Problem, code};

/// An answer's body, with the count of its request.
pub(super) struct CountedBody {
    pub(super) body: Body,
    pub(super) _counted: Counted,
}

impl hyper::body::Body for CountedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// How long, and how far, the rest of a body is read that nobody wants.
const REST_TIMEOUT: Duration = Duration::from_secs(2);
const REST_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A body that nobody wants and that is no longer is read at once.
const PASSED_BYTES_MAX: u64 = 16 * 1024;

/// A request's body that must be complete by a deadline. What is left of it when it is dropped is
/// read and thrown away for a while, because of this:
/// 1. A client sends a body that is too large. After the first part it is refused.
/// 2. With bytes unread, closing the connection resets it.
/// 3. The client, still writing, sees its connection broken, and may never read why.
pub(super) struct TimedBody {
    /// Always there until this is dropped.
    inner: Option<Incoming>,
    /// None: it may go on for ever.
    deadline: Option<Instant>,
    /// Made only when the body has to be waited for, which most need not.
    timer: Option<Pin<Box<Sleep>>>,
    takes_rest: bool,
    activity: Arc<Activity>,
}

impl TimedBody {
    /// `takes_rest`: whether the client would be broken off by an answer before its body's end. Not
    /// on HTTP/2, where a stream ends alone, and not where the client waits to be asked for it.
    pub(super) const fn new(
        inner: Incoming,
        deadline: Option<Instant>,
        takes_rest: bool,
        activity: Arc<Activity>,
    ) -> Self {
        Self { inner: Some(inner), deadline, timer: None, takes_rest, activity }
    }
}

impl Drop for TimedBody {
    fn drop(&mut self) {
        if self.timer.is_some() {
            self.activity.body_came();
        }
        let Some(rest) = self.inner.take().filter(|rest| !rest.is_end_stream()) else { return };
        if self.takes_rest {
            tokio::spawn(tokio::time::timeout(REST_TIMEOUT, take_rest(rest)));
        }
    }
}

async fn take_rest(mut rest: Incoming) {
    let mut bytes = 0;
    while let Some(Ok(frame)) = rest.frame().await {
        bytes += frame.data_ref().map_or(0, Bytes::len);
        if bytes > REST_BYTES_MAX {
            return;
        }
    }
}

/// A request's body was not complete in time.
#[derive(Debug, thiserror::Error)]
#[error("the request's body did not come in time")]
pub struct BodyTimeout;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl hyper::body::Body for TimedBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let deadline = self.deadline;
        let Some(inner) = &mut self.inner else { return Poll::Ready(None) };
        if let Poll::Ready(frame) = Pin::new(inner).poll_frame(context) {
            // Also for a client that always has one more byte.
            let late = deadline.is_some_and(|deadline| Instant::now() >= deadline);
            if self.timer.is_some() && late && frame.is_some() {
                return Poll::Ready(Some(Err(BodyTimeout.into())));
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let Some(deadline) = deadline else { return Poll::Pending };
        if self.timer.is_none() {
            self.activity.body_awaited();
        }
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        timer.as_mut().poll(context).map(|()| Some(Err(BodyTimeout.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map(Incoming::size_hint).unwrap_or_default()
    }
}

/// Reads a request's body to its end, and no further than `bytes_max`.
///
/// # Errors
/// `body_too_large`, `request_timeout`, or `malformed_json` if the client breaks off.
pub async fn read_body(body: Body, bytes_max: usize) -> Result<Bytes, Problem> {
    let too_large =
        || Problem::new(code::BODY_TOO_LARGE, format!("the body has more than {bytes_max} bytes"));
    let announced = hyper::body::Body::size_hint(&body).lower();
    if usize::try_from(announced).is_ok_and(|announced| announced > bytes_max) {
        return Err(too_large());
    }
    match Limited::new(body, bytes_max).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if has_cause::<LengthLimitError>(error.as_ref()) => Err(too_large()),
        Err(error) if has_cause::<BodyTimeout>(error.as_ref()) => {
            Err(Problem::new(code::REQUEST_TIMEOUT, BodyTimeout.to_string()))
        }
        Err(error) => {
            Err(Problem::new(code::MALFORMED_JSON, format!("the body broke off: {error}")))
        }
    }
}

/// Lets a short body pass that nobody wants, so that its connection is free for the next request at
/// once. A longer one is left to the dropping: to wait for it could take long.
pub async fn pass_over(mut body: Body) {
    let most = hyper::body::Body::size_hint(&body).upper();
    if most.is_some_and(|bytes| bytes <= PASSED_BYTES_MAX) {
        while let Some(Ok(_)) = body.frame().await {}
    }
}

/// Whether an error is of a type, or was caused by one that is.
fn has_cause<E: std::error::Error + 'static>(error: &(dyn std::error::Error + 'static)) -> bool {
    error.is::<E>() || error.source().is_some_and(has_cause::<E>)
}
