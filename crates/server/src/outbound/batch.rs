//! Decides what becomes of the calls that go in one request: each ends in exactly one answer, in
//! its own time, whatever happens to the others. Answers come as lines in any order, each judged as
//! one that came alone; what a batch and a line look like is the SDK's.
//!
//! First there is a connection, then the calls that are still in time are written, and nothing lies
//! between that and handing them over. So what was answered *unsent* is in no body; and of what was
//! in one that may have left nobody says again that nothing has. If the participant says that it
//! has taken none of the calls, each is made alone.

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
use super::lane::{Before, CALL_BYTES, Lane, PAYLOAD_BYTES_MAX, Waiting};
use super::lines::Lines;
use super::pool::{Connection, Origin, Place, keep_room};
use super::{Failure, HttpTransport, conclude, describe, payload, post, settle, shows_life, trace};

/// How many calls went in one request.
const BATCH_CALLS: &str = "unanimity_participant_batch_calls";

/// A call of the batch that has no answer yet.
struct Open<'a> {
    waiting: Waiting,
    payload: Option<Bytes>,
    pass: Pass<'a>,
}

/// What is left to do for a batch's calls that have no answer.
enum End {
    Nothing,
    /// The participant has taken none of them.
    Refused,
    /// One alone is in time, and nothing has left.
    One,
}

/// A batch that was sent and whose answer begins, or how it ended before.
enum Sent {
    Answered(Connection, HttpResponse<Incoming>),
    One,
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
    /// Whether the breaker was told that it failed.
    failed: bool,
    /// For every call whose line has not come, whether or not its time is over: the participant
    /// has it.
    room: SemaphorePermit<'a>,
}

/// Carries calls together, on the connection that the permit stands for.
pub(super) async fn carry(
    transport: &Arc<HttpTransport>,
    lane: &Lane,
    origin: &Origin,
    Place { room, permit }: Place<'_>,
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
        failed: false,
        room,
    };
    batch.take(calls);
    let end = match batch.exchange(origin).await {
        Some(Ok(end)) => end,
        Some(Err(failure)) => {
            batch.fail(&failure);
            End::Nothing
        }
        None => End::Nothing,
    };
    if batch.left && batch.lines == 0 {
        lane.suspend();
    }
    match end {
        End::Nothing => {}
        End::Refused => {
            drop(permit);
            batch.each_alone();
        }
        End::One => batch.one_alone(origin, permit).await,
    }
}

impl<'a> Batch<'a> {
    /// Takes the calls that can go together; the others go alone, or end.
    fn take(&mut self, calls: Vec<Waiting>) {
        let mut bytes_all = 0;
        for waiting in calls {
            let payload = match payload(&waiting.call) {
                Ok(payload) => payload,
                Err(missing) => {
                    waiting.owed.settle(unanimity_core::Answer::No(missing.into()));
                    continue;
                }
            };
            let bytes = payload.as_ref().map_or(0, Bytes::len);
            // What results are put into it may have grown.
            let fits = bytes_all + bytes <= BATCH_BYTES + PAYLOAD_BYTES_MAX;
            if !fits || raw(payload.as_ref()).is_err() {
                self.transport.carry_alone([waiting], Before::Nothing);
                continue;
            }
            match self.transport.breakers.admit(&self.lane.known.target.origin) {
                Ok(pass) => {
                    bytes_all += bytes + CALL_BYTES;
                    self.last = self.last.max(waiting.deadline);
                    self.calls.push(Some(Open { waiting, payload, pass }));
                }
                Err(why) => settle(waiting.owed, Failure::Unsent(why)),
            }
        }
        self.open = self.calls.len();
        keep_room(&mut self.room, self.open);
        self.note_earliest();
    }

    /// Writes the calls that have no answer; from now on they may have left. Their numbers are
    /// their places.
    fn write(&mut self) -> Result<Request<Full<Bytes>>, String> {
        self.calls.retain(Option::is_some);
        let mut writer = Writer::default();
        for Open { waiting: Waiting { call, .. }, payload, pass } in self.calls.iter_mut().flatten()
        {
            writer.push(&Entry {
                operation: call.operation,
                transaction: call.transaction.as_str(),
                branch: &call.plan.name,
                attempt: call.attempt,
                traceparent: &trace::traceparent(call),
                outcome: call.outcome.map(|outcome| outcome.as_str()),
                payload: raw(payload.as_ref()).map_err(|error| error.to_string())?,
            });
            pass.leaves();
        }
        let request = self.request(writer.finish()).map_err(|error| error.to_string())?;
        metrics::histogram!(BATCH_CALLS).record(self.open as f64);
        self.left = true;
        Ok(request)
    }

    fn request(&self, text: Vec<u8>) -> Result<Request<Full<Bytes>>, http::Error> {
        let target = &self.lane.known.target;
        let mut request = post(target, target.batch_uri()?, text.into());
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
        headers.insert(ACCEPT, HeaderValue::from_static(NDJSON));
        Ok(request)
    }

    /// Sends it and takes in the answers; none if the time of all was over before.
    async fn exchange(&mut self, origin: &Origin) -> Option<Result<End, Failure>> {
        let (connection, response) = match self.send(origin).await? {
            Ok(Sent::Answered(connection, response)) => (connection, response),
            Ok(Sent::One) => return Some(Ok(End::One)),
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
        Some(read.map(|()| End::Nothing).map_err(Failure::Unknown))
    }

    /// Has a connection, sends on it what is in time then, and waits for the answer's head.
    async fn send(&mut self, origin: &Origin) -> Option<Result<Sent, Failure>> {
        let transport = self.transport;
        loop {
            let connection = transport.connection(origin, &self.lane.known.target);
            let (mut connection, reused) = match self.meanwhile(connection).await? {
                Ok(found) => found,
                Err(text) => return Some(Err(Failure::Unsent(text))),
            };
            self.expire(Instant::now());
            if self.open < 2 {
                origin.give_back(connection);
                return (self.open == 1).then_some(Ok(Sent::One));
            }
            let request = match self.write() {
                Ok(request) => request,
                Err(error) => {
                    return Some(Err(Failure::Unsent(format!("cannot be asked: {error}"))));
                }
            };
            let sent = self.meanwhile(connection.sender.try_send_request(request)).await?;
            match sent {
                Ok(response) => return Some(Ok(Sent::Answered(connection, response))),
                // As for one call: none of it was written on a connection that was closed before.
                // Whose time is over by now is in no later body.
                Err(mut error) => match error.take_message() {
                    Some(_) if reused => self.left = false,
                    Some(_) | None => return Some(Err(describe(error.error()).into())),
                },
            }
        }
    }

    /// A status that is none of a batch's answer.
    fn not_answered(&mut self, status: StatusCode) -> Result<End, Failure> {
        if took_none(status) {
            return Ok(End::Refused);
        }
        let phrase = status.canonical_reason().unwrap_or_default();
        let text = format!("HTTP {} {phrase} to a batch of calls", status.as_u16());
        let failure = Failure::Unknown(text);
        if !shows_life(status) {
            return Err(failure);
        }
        for Open { waiting, pass, .. } in self.calls.iter_mut().filter_map(Option::take) {
            pass.answered();
            settle(waiting.owed, failure.clone());
        }
        self.open = 0;
        Ok(End::Nothing)
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
            // For all that came together at once, so that as many may follow together.
            keep_room(&mut self.room, self.calls.len().saturating_sub(self.lines));
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
        for place in 0..self.calls.len() {
            let late = |open: &mut Open<'_>| open.waiting.deadline <= now;
            let Some(open) = self.calls[place].take_if(late) else { continue };
            self.open -= 1;
            let limit = open.waiting.call.timeout_ms;
            let failure = match self.left {
                true => Failure::Unknown(format!("no answer within {limit} ms")),
                false => Failure::Unsent("not connected within the call's time".to_owned()),
            };
            self.end(open, failure);
        }
        self.note_earliest();
    }

    fn note_earliest(&mut self) {
        let deadlines = self.calls.iter().flatten().map(|open| open.waiting.deadline);
        self.earliest = deadlines.min().unwrap_or(self.last);
    }

    /// Ends every open call the same way.
    fn fail(&mut self, failure: &Failure) {
        for open in std::mem::take(&mut self.calls).into_iter().flatten() {
            self.end(open, failure.clone());
        }
        self.open = 0;
    }

    /// Ends a call without an answer. To the breaker a batch is one failure, however many of its
    /// calls come to nothing: a connection that is lost says as much with one call on it.
    fn end(&mut self, Open { waiting, pass, .. }: Open<'_>, failure: Failure) {
        if std::mem::replace(&mut self.failed, true) {
            pass.withdraw();
        } else {
            pass.failed(failure.text());
        }
        settle(waiting.owed, failure);
    }

    /// Makes every open call alone: somebody was there, and has taken none.
    fn each_alone(self) {
        let open = self.calls.into_iter().flatten().map(|Open { waiting, pass, .. }| {
            pass.answered();
            waiting
        });
        self.transport.carry_alone(open, Before::Batch);
    }

    /// Makes the one call alone that is left, on the connection that the permit stands for.
    async fn one_alone(self, origin: &Origin, permit: SemaphorePermit<'_>) {
        let Some(Open { waiting, pass, .. }) = self.calls.into_iter().flatten().next() else {
            return;
        };
        pass.withdraw();
        let Waiting { call, owed, deadline } = waiting;
        owed.settle(self.transport.carry(&call, deadline, Some((origin, permit))).await);
    }

    fn participant(&self) -> &'a Arc<str> {
        &self.lane.participant
    }
}

/// A payload as it stands in a batch.
fn raw(payload: Option<&Bytes>) -> serde_json::Result<Option<&RawValue>> {
    payload.map(|payload| serde_json::from_slice(payload)).transpose()
}
