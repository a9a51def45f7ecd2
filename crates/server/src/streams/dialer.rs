//! Decides how a participant at `grpc://` is dialed: when the first call for it comes, and again
//! when one comes after its stream has broken. After a failure nobody dials for a while that grows
//! from 15 ms to a second; calls meanwhile end unsent, as if the connection had been refused. So
//! a service that is gone costs one connection a second, whatever waits for it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_core::Stream;
use http::Uri;
use tokio::time::{Duration, Instant, MissedTickBehavior, interval};
use tonic::{Request, Streaming};
use unanimity_sdk::stream::participant_client::ParticipantClient;
use unanimity_sdk::stream::{Answers, Calls, MESSAGE_BYTES_MAX, PARTICIPANT_METADATA};

use super::address::Address;
use super::lane::Lane;
use super::{Http2, Peer, PeerState, StreamTransport};

/// Between two pings on a connection.
pub(super) const PING_INTERVAL: Duration = Duration::from_secs(5);
/// Without an answer to a ping for so long a connection counts as broken.
pub(super) const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// How many bytes may be under way in one direction.
pub(super) const WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// How often it is looked for calls whose time is over: so late may one be told.
const EXPIRY_TICK: Duration = Duration::from_millis(50);
/// The first time without dialing; each doubles, up to the last.
const PAUSE_MS: u64 = 15;
const PAUSE_MS_MAX: u64 = 1_000;
/// A stream that has stood for so long had not failed.
const STOOD: Duration = Duration::from_secs(1);

/// How the last attempts to dial went.
#[derive(Debug, Default)]
pub(super) struct Dialing {
    failures: u32,
    /// Until when nobody dials, and why.
    pause: Option<(Instant, String)>,
}

impl Dialing {
    /// Why there is no stream, and when it is dialed again.
    pub(super) fn standing(&self, now: Instant) -> Option<String> {
        let (until, why) = self.pause.as_ref()?;
        let left_ms = until.saturating_duration_since(now).as_millis();
        let failures = self.failures;
        Some(format!("{why}; {failures} in a row, dialed again in {left_ms} ms at the earliest"))
    }

    fn failed(&mut self, now: Instant, why: String) {
        let pause_ms = PAUSE_MS.saturating_mul(1 << self.failures.min(16)).min(PAUSE_MS_MAX);
        self.failures = self.failures.saturating_add(1);
        self.pause = Some((now + Duration::from_millis(pause_ms), why));
    }
}

impl StreamTransport {
    /// A new stream to a participant that has none: a call may be given to it at once.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) fn open(
        &self,
        peer: &Arc<Peer>,
        state: &mut PeerState,
    ) -> Result<Arc<Lane>, String> {
        let (origin, name) = match Address::parse(&peer.name) {
            Ok(Address::Dialed { origin, name }) => (origin, name),
            Ok(Address::Dials(name)) => {
                return Err(format!("no service serves {name} over a stream now"));
            }
            Err(error) => return Err(format!("the participant's address {error}")),
        };
        let now = Instant::now();
        if let Some((until, why)) = &state.dialing.pause
            && *until > now
        {
            return Err(why.clone());
        }
        let unusable = |error: &dyn std::fmt::Display| format!("cannot be dialed: {error}");
        let origin: Uri = origin.parse().map_err(|error| unusable(&error))?;
        let lane = Arc::new(Lane::new(self.limits()));
        let mut request = Request::new(Outgoing(Arc::clone(&lane)));
        let name = name.parse().map_err(|error| unusable(&error))?;
        request.metadata_mut().insert(PARTICIPANT_METADATA, name);
        state.lanes.push(Arc::clone(&lane));
        let dial = Dial {
            peer: Arc::clone(peer),
            lane: Arc::clone(&lane),
            connections: self.shared.connections.clone(),
            origin,
            idle: Duration::from_millis(self.shared.config.idle_timeout_ms),
        };
        tokio::spawn(dial.run(request));
        Ok(lane)
    }
}

/// The calls of a stream that the coordinator opens.
struct Outgoing(Arc<Lane>);

impl Stream for Outgoing {
    type Item = Calls;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Calls>> {
        self.0.poll_batch(context)
    }
}

struct Dial {
    peer: Arc<Peer>,
    lane: Arc<Lane>,
    connections: Http2,
    origin: Uri,
    idle: Duration,
}

impl Dial {
    async fn run(self, request: Request<Outgoing>) {
        let mut ending = Ending { dial: self, began: None, why: None };
        let dial = &ending.dial;
        let mut client =
            ParticipantClient::with_origin(dial.connections.clone(), dial.origin.clone())
                .max_decoding_message_size(MESSAGE_BYTES_MAX);
        let lane = Arc::clone(&dial.lane);
        let opened = with_expiry(&lane, client.serve(request)).await;
        match opened {
            Ok(opened) => {
                ending.began = Some(Instant::now());
                tracing::info!(participant = %ending.dial.peer.name, "a stream to it is open");
                let idle = ending.dial.idle;
                ending.why = receive(opened.into_inner(), &lane, Some(idle)).await;
            }
            Err(status) => ending.why = Some(words_of(&status)),
        }
    }
}

/// However a stream ends, a panic included, its calls are answered and nobody waits for it.
struct Ending {
    dial: Dial,
    began: Option<Instant>,
    why: Option<String>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        let now = Instant::now();
        let Dial { peer, lane, .. } = &self.dial;
        let stood = self.began.is_some_and(|began| now.duration_since(began) >= STOOD);
        let mut state = peer.lock();
        state.lanes.retain(|known| !Arc::ptr_eq(known, lane));
        match &self.why {
            Some(why) => {
                if stood {
                    state.dialing = Dialing::default();
                }
                // Once, and not for each attempt: `held_back` tells the rest.
                if state.dialing.failures == 0 {
                    tracing::warn!(participant = %peer.name, why, "no stream to it");
                }
                state.dialing.failed(now, why.clone());
            }
            None => state.dialing = Dialing::default(),
        }
        drop(state);
        lane.close(self.why.as_deref().unwrap_or("the stream has ended"));
    }
}

/// Waits for something while calls may run out of time.
async fn with_expiry<T>(lane: &Lane, waited: impl Future<Output = T>) -> T {
    let mut tick = interval(EXPIRY_TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tokio::pin!(waited);
    loop {
        tokio::select! {
            biased;
            value = &mut waited => return value,
            now = tick.tick() => lane.expire(now),
        }
    }
}

/// Takes in answers until the stream ends; says why, unless it ended as it should. With `idle` it
/// also ends when there was nothing to do for so long.
pub(super) async fn receive(
    mut incoming: Streaming<Answers>,
    lane: &Lane,
    idle: Option<Duration>,
) -> Option<String> {
    let mut tick = interval(EXPIRY_TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            batch = incoming.message() => match batch {
                Ok(Some(Answers { answers, stopping })) => lane.answered(&answers, stopping),
                Ok(None) => return Some("the participant has ended the stream".to_owned()),
                Err(status) => return Some(words_of(&status)),
            },
            now = tick.tick() => {
                lane.expire(now);
                let then = idle.and_then(|idle| now.checked_sub(idle));
                if then.is_some_and(|then| lane.is_idle_since(then)) {
                    return None;
                }
            }
        }
    }
}

/// What went wrong with a stream, in words that an operator knows.
fn words_of(status: &tonic::Status) -> String {
    let mut text = format!("the stream: {}: {}", status.code().description(), status.message());
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    unanimity_sdk::contract::clean(&text)
}
