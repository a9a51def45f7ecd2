//! Decides what becomes of the calls that go in one request: each ends in exactly one answer, in
//! its own time, whatever happens to the others. Answers come as lines in any order, each judged as
//! one that came alone; what a batch and a line look like is the SDK's.
//!
//! What is said if no line comes: a batch that was handed to the connection may have been taken, so
//! nothing is known of its calls. If the answer says that none was taken, each is made alone.

use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue};
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::Response as HttpResponse;
use hyper::body::Incoming;
use serde_json::value::RawValue;
use tokio::sync::SemaphorePermit;
use tokio::time::{Instant, timeout_at};
use unanimity_sdk::contract::batch::{
    BATCH_BYTES, Entry, LINE_BYTES_MORE, Line, NDJSON, Writer, took_none,
};
use unanimity_sdk::contract::{JSON, Response, judge};

use super::breakers::Pass;
use super::lane::{Lane, PAYLOAD_BYTES_MAX, Waiting};
use super::lines::Lines;
use super::pool::{Connection, Origin};
use super::{Failure, HttpTransport, conclude, describe, payload, post, settle, trace};

/// How many calls went in one request.
const BATCH_CALLS: &str = "unanimity_participant_batch_calls";

/// A call of the batch that has no answer yet.
struct Open<'a> {
    waiting: Waiting,
    pass: Pass<'a>,
}

/// A batch on its way.
struct Batch<'a> {
    transport: &'a Arc<HttpTransport>,
    lane: &'a Lane,
    /// By number.
    calls: Vec<Option<Open<'a>>>,
    /// How many have no answer yet.
    open: usize,
    /// No open call's time ends before this.
    earliest: Instant,
    /// Every call's time ends by this.
    last: Instant,
    /// Whether it was handed to a connection.
    left: bool,
    /// How many lines have come.
    lines: usize,
}

/// Carries calls together, on the connection that the permit stands for.
pub(super) async fn carry(
    transport: &Arc<HttpTransport>,
    lane: &Lane,
    (origin, permit): (&Origin, SemaphorePermit<'_>),
    calls: Vec<Waiting>,
) {
    let mut batch = Batch {
        transport,
        lane,
        calls: Vec::with_capacity(calls.len()),
        open: 0,
        earliest: Instant::now(),
        last: Instant::now(),
        left: false,
        lines: 0,
    };
    let Some(text) = batch.write(calls) else { return };
    metrics::histogram!(BATCH_CALLS).record(batch.open as f64);
    let refused = match batch.request(text) {
        Ok(request) => match batch.exchange(origin, request).await {
            Some(Ok(ended)) => ended,
            Some(Err(failure)) => {
                batch.fail(&failure);
                false
            }
            None => false,
        },
        Err(error) => {
            batch.fail(&Failure::Unsent(format!("cannot be asked: {error}")));
            false
        }
    };
    drop(permit);
    if batch.left && batch.lines == 0 {
        lane.suspend();
    }
    if refused {
        batch.each_alone();
    }
}

impl<'a> Batch<'a> {
    /// Writes the calls that can go together; none if no call can.
    fn write(&mut self, calls: Vec<Waiting>) -> Option<Vec<u8>> {
        let mut writer = Writer::default();
        for waiting in calls {
            let payload = match payload(&waiting.call) {
                Ok(payload) => payload,
                Err(missing) => {
                    waiting.owed.settle(unanimity_core::Answer::No(missing.into()));
                    continue;
                }
            };
            let raw = payload.as_deref().map(serde_json::from_slice::<&RawValue>).transpose();
            let bytes = payload.as_ref().map_or(0, Bytes::len);
            // What results are put into it may have grown.
            let fits = writer.bytes() + bytes <= BATCH_BYTES + PAYLOAD_BYTES_MAX;
            let (Ok(raw), true) = (raw, fits) else {
                self.transport.carry_alone([waiting]);
                continue;
            };
            let mut pass = match self.transport.breakers.admit(&self.lane.known.target.origin) {
                Ok(pass) => pass,
                Err(why) => {
                    settle(waiting.owed, Failure::Unsent(why));
                    continue;
                }
            };
            let call = &waiting.call;
            writer.push(&Entry {
                operation: call.operation,
                transaction: call.transaction.as_str(),
                branch: &call.branch_name,
                attempt: call.attempt,
                traceparent: &trace::traceparent(call),
                outcome: call.outcome.map(|outcome| outcome.as_str()),
                payload: raw,
            });
            pass.leaves();
            self.last = self.last.max(waiting.deadline);
            self.calls.push(Some(Open { waiting, pass }));
        }
        self.open = self.calls.len();
        self.note_earliest();
        (self.open > 0).then(|| writer.finish())
    }

    fn request(&self, text: Vec<u8>) -> Result<Request<Full<Bytes>>, http::Error> {
        let target = &self.lane.known.target;
        let mut request = post(target, target.batch_uri()?, text.into());
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
        headers.insert(ACCEPT, HeaderValue::from_static(NDJSON));
        Ok(request)
    }

    /// Sends it and takes in the answers. Whether the participant has taken none of the calls; none
    /// if the time of all was over before.
    async fn exchange(
        &mut self,
        origin: &Origin,
        request: Request<Full<Bytes>>,
    ) -> Option<Result<bool, Failure>> {
        let (connection, response) = match self.send(origin, request).await? {
            Ok(sent) => sent,
            Err(failure) => return Some(Err(failure)),
        };
        let (head, body) = response.into_parts();
        if head.status != StatusCode::OK {
            return Some(self.not_answered(head.status));
        }
        if head.headers.get_all(CONTENT_ENCODING).iter().any(|value| value != "identity") {
            return Some(Err("the batch's answer is compressed".to_owned().into()));
        }
        self.transport.offers.note(self.participant(), &self.lane.known, &head.headers);
        let read = self.read(body).await?;
        if read.is_ok() {
            origin.give_back(connection);
        }
        Some(read.map(|()| false).map_err(Failure::Unknown))
    }

    /// Sends the request and waits for the answer's head.
    async fn send(
        &mut self,
        origin: &Origin,
        mut request: Request<Full<Bytes>>,
    ) -> Option<Result<(Connection, HttpResponse<Incoming>), Failure>> {
        let transport = self.transport;
        loop {
            let connection = transport.connection(origin, &self.lane.known.target);
            let (mut connection, reused) = match self.meanwhile(connection).await? {
                Ok(found) => found,
                Err(text) => return Some(Err(Failure::Unsent(text))),
            };
            self.left = true;
            let sent = self.meanwhile(connection.sender.try_send_request(request)).await?;
            match sent {
                Ok(response) => return Some(Ok((connection, response))),
                // As for one call: none of it was written on a connection that was closed before.
                Err(mut error) => match error.take_message() {
                    Some(unsent) if reused => (request, self.left) = (unsent, false),
                    Some(_) | None => return Some(Err(describe(error.error()).into())),
                },
            }
        }
    }

    /// A status that is none of a batch's answer.
    fn not_answered(&mut self, status: StatusCode) -> Result<bool, Failure> {
        if took_none(status) {
            return Ok(true);
        }
        let phrase = status.canonical_reason().unwrap_or_default();
        let text = format!("HTTP {} {phrase} to a batch of calls", status.as_u16());
        Err(Failure::Unknown(text))
    }

    /// Reads the answers to their end. None if the time of all open calls was over before.
    async fn read(&mut self, mut body: Incoming) -> Option<Result<(), String>> {
        let mut lines = Lines::new(self.transport.config.answer_bytes_max + LINE_BYTES_MORE);
        loop {
            let frame = match self.open {
                // All are answered; only for its end, so that the connection can be kept.
                0 => timeout_at(self.last, body.frame()).await.ok()?,
                _ => self.meanwhile(body.frame()).await?,
            };
            let data = match frame {
                None => break,
                Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
                Some(Err(error)) => {
                    return Some(Err(format!("the answer broke off: {}", describe(&error))));
                }
            };
            lines.feed(data);
            loop {
                match lines.next() {
                    Ok(None) => break,
                    Ok(Some(line)) => {
                        if let Err(text) = self.line(&line) {
                            return Some(Err(text));
                        }
                    }
                    Err(_) => return Some(Err(self.too_large())),
                }
            }
        }
        let rest = lines.rest();
        let last = if rest.is_empty() { Ok(()) } else { self.line(&rest) };
        let missing = || Err("the answer ended without this call's".to_owned());
        Some(last.and_then(|()| if self.open == 0 { Ok(()) } else { missing() }))
    }

    fn too_large(&self) -> String {
        let most = self.transport.config.answer_bytes_max;
        format!("a line of the answer has more than {most} bytes")
    }

    /// Takes in a line. After one that is not understood nothing is believed: what follows it could
    /// be part of somebody's result. A line for a call that has its answer, or whose time is over,
    /// is dropped; there are no more lines than calls.
    fn line(&mut self, line: &[u8]) -> Result<(), String> {
        let line = Line::read(line).ok_or("a line of the answer is not understood")?;
        if self.lines == 0 {
            self.lane.works();
        }
        self.lines += 1;
        if self.lines > self.calls.len() {
            return Err("the answer has more lines than there were calls".to_owned());
        }
        let place = usize::try_from(line.number).unwrap_or(usize::MAX);
        let Some(open) = self.calls.get_mut(place).and_then(Option::take) else { return Ok(()) };
        self.open -= 1;
        let (status, none) = (line.status(), HeaderMap::new());
        let response = Response::new(status, &none, line.body());
        let answer = judge(open.waiting.owed.operation(), response);
        conclude(open.pass, status, &answer);
        open.waiting.owed.settle(answer);
        Ok(())
    }

    /// Goes on with a step while calls end whose time is over; none when all have.
    async fn meanwhile<T>(&mut self, step: impl Future<Output = T>) -> Option<T> {
        let mut step = pin!(step);
        while self.open > 0 {
            match timeout_at(self.earliest, &mut step).await {
                Ok(done) => return Some(done),
                Err(_) => self.expire(Instant::now()),
            }
        }
        None
    }

    /// Ends every call whose time is over.
    fn expire(&mut self, now: Instant) {
        for place in &mut self.calls {
            let Some(open) = place.take_if(|open| open.waiting.deadline <= now) else { continue };
            self.open -= 1;
            let limit = open.waiting.call.timeout_ms;
            end(
                open,
                match self.left {
                    true => Failure::Unknown(format!("no answer within {limit} ms")),
                    false => Failure::Unsent("not connected within the call's time".to_owned()),
                },
            );
        }
        self.note_earliest();
    }

    fn note_earliest(&mut self) {
        let deadlines = self.calls.iter().flatten().map(|open| open.waiting.deadline);
        self.earliest = deadlines.min().unwrap_or(self.last);
    }

    /// Ends every open call the same way.
    fn fail(&mut self, failure: &Failure) {
        for open in self.calls.iter_mut().filter_map(Option::take) {
            end(open, failure.clone());
        }
        self.open = 0;
    }

    /// Makes every open call alone: somebody was there, and has taken none.
    fn each_alone(self) {
        let open = self.calls.into_iter().flatten().map(|Open { waiting, pass }| {
            pass.answered();
            waiting
        });
        self.transport.carry_alone(open);
    }

    fn participant(&self) -> &'a Arc<str> {
        &self.lane.participant
    }
}

/// Ends a call without an answer.
fn end(open: Open<'_>, failure: Failure) {
    open.pass.failed(failure.text());
    settle(open.waiting.owed, failure);
}
