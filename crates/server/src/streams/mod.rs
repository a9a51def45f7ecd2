//! The second carriage: calls to participants in batches over long-lived streams. An address says
//! who opens the stream: `grpc://HOST:PORT/NAME` is dialed by the coordinator, `stream:NAME` is a
//! service that has dialed the coordinator.
//!
//! This file decides which stream takes a call: of those that stand, the one with the fewest calls.
//! What becomes of it there is `lane`'s, what an address may look like `address`'s, how a service
//! is dialed `dialer`'s, how one that dials is let in `desk`'s. What an answer means is the SDK's.

mod address;
mod desk;
mod dialer;
mod lane;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use bytes::Bytes;
use foldhash::HashMap;
use hyper_util::client::legacy::Client as Connections;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::{Duration, Instant};
use unanimity::core::{Answer, Call, Operation, TIMEOUT_MS_MAX};
use unanimity::{CallFuture, Owed, Transport};
use unanimity_sdk::stream;

use self::address::{Address, DIALS};
pub use self::desk::Desk;
use self::dialer::Dialing;
use self::lane::{Lane, LaneLimits, Waiting};
use crate::outbound::{self, Connector, Policy, trace};

/// How streams are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamConfig {
    /// Which addresses may be dialed.
    pub policy: Policy,
    /// Within this many milliseconds a name must have resolved and a connection stand.
    pub connect_timeout_ms: u64,
    /// The most calls on one stream that are sent and not answered.
    pub calls_per_stream_max: usize,
    /// The most calls that wait for one stream.
    pub queue_per_stream_max: usize,
    /// The most participants that streams are kept for.
    pub participants_max: usize,
    /// The most streams of one participant, and so of its replicas.
    pub streams_per_participant_max: usize,
    /// A dialed stream without calls for so many milliseconds is closed.
    pub idle_timeout_ms: u64,
}

impl Default for StreamConfig {
    fn default() -> Self {
        Self {
            policy: Policy::default(),
            connect_timeout_ms: 2_000,
            calls_per_stream_max: 4_096,
            queue_per_stream_max: 32_768,
            participants_max: 4_096,
            streams_per_participant_max: 64,
            idle_timeout_ms: 300_000,
        }
    }
}

type Http2 = Connections<Connector, tonic::body::Body>;

/// Calls participants over streams. Cheap to clone; clones are one.
#[derive(Clone, Debug)]
pub struct StreamTransport {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: StreamConfig,
    connections: Http2,
    peers: RwLock<HashMap<Arc<str>, Arc<Peer>>>,
}

/// A participant: its streams, and how it is reached if none stands.
#[derive(Debug)]
struct Peer {
    name: Arc<str>,
    /// Whether its address has been checked: every request names it, and asks.
    checked: AtomicBool,
    state: Mutex<PeerState>,
}

#[derive(Debug, Default)]
struct PeerState {
    lanes: Vec<Arc<Lane>>,
    dialing: Dialing,
}

impl Peer {
    fn lock(&self) -> MutexGuard<'_, PeerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remove(&self, lane: &Arc<Lane>) {
        self.lock().lanes.retain(|known| !Arc::ptr_eq(known, lane));
    }
}

impl PeerState {
    /// The stream with the fewest calls.
    fn freest(&self) -> Option<&Arc<Lane>> {
        let loads = self.lanes.iter().filter_map(|lane| Some((lane.load()?, lane)));
        loads.min_by_key(|(load, _)| *load).map(|(_, lane)| lane)
    }

    /// Gives a call to a stream; has it back if none takes any.
    fn give(&self, mut waiting: Waiting) -> Option<Waiting> {
        if let [only] = self.lanes.as_slice() {
            return only.push(waiting);
        }
        while let Some(lane) = self.freest() {
            waiting = lane.push(waiting)?; // It closed meanwhile; `freest` sees that.
        }
        Some(waiting)
    }
}

impl StreamTransport {
    /// Makes a transport; nothing is connected yet.
    #[must_use]
    pub fn new(config: StreamConfig) -> Self {
        let connector = Connector::new(Arc::new(config.policy.clone()), config.connect_timeout_ms);
        let connections = Connections::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .timer(TokioTimer::new())
            .http2_only(true)
            .http2_keep_alive_interval(dialer::PING_INTERVAL)
            .http2_keep_alive_timeout(dialer::PING_TIMEOUT)
            .http2_initial_stream_window_size(dialer::WINDOW_BYTES)
            .http2_initial_connection_window_size(dialer::WINDOW_BYTES)
            .build(connector);
        Self { shared: Arc::new(Shared { config, connections, peers: RwLock::default() }) }
    }

    /// Where services that dial are let in.
    #[must_use]
    pub fn desk(&self) -> Desk {
        Desk::new(self.clone())
    }

    fn limits(&self) -> LaneLimits {
        LaneLimits {
            in_flight_max: self.shared.config.calls_per_stream_max,
            queue_max: self.shared.config.queue_per_stream_max,
        }
    }

    /// Ends every stream that a service has opened.
    fn close_those_that_dialed(&self, why: &str) {
        let peers = self.shared.peers.read().unwrap_or_else(PoisonError::into_inner);
        let dialed = peers.values().filter(|peer| peer.name.starts_with(DIALS));
        let lanes: Vec<_> = dialed.flat_map(|peer| peer.lock().lanes.clone()).collect();
        drop(peers);
        lanes.iter().for_each(|lane| lane.close(why));
    }

    fn known(&self, participant: &str) -> Option<Arc<Peer>> {
        let peers = self.shared.peers.read().unwrap_or_else(PoisonError::into_inner);
        peers.get(participant).map(Arc::clone)
    }

    /// The participant, new if it must be; `None` if there are too many.
    fn peer(&self, participant: &Arc<str>) -> Option<Arc<Peer>> {
        if let Some(peer) = self.known(participant) {
            return Some(peer);
        }
        let mut peers = self.shared.peers.write().unwrap_or_else(PoisonError::into_inner);
        if peers.len() >= self.shared.config.participants_max {
            peers.retain(|_, peer| !peer.lock().lanes.is_empty());
        }
        if peers.len() >= self.shared.config.participants_max && !peers.contains_key(participant) {
            return None;
        }
        let new = || {
            Arc::new(Peer {
                name: Arc::clone(participant),
                checked: AtomicBool::new(false),
                state: Mutex::default(),
            })
        };
        Some(Arc::clone(peers.entry(Arc::clone(participant)).or_insert_with(new)))
    }

    /// Gives a call to a stream.
    fn carry(&self, participant: &Arc<str>, waiting: Waiting) {
        let refuse = |waiting: Waiting, text: String| {
            waiting.owed.settle(Answer::Unsent(text.into()));
        };
        // Nearly always it is known and has a stream.
        let peers = self.shared.peers.read().unwrap_or_else(PoisonError::into_inner);
        let left = match peers.get(participant) {
            Some(peer) => peer.lock().give(waiting),
            None => Some(waiting),
        };
        drop(peers);
        let Some(waiting) = left else { return };
        let Some(peer) = self.peer(participant) else {
            let most = self.shared.config.participants_max;
            return refuse(waiting, format!("{most} participants are being called already"));
        };
        let mut state = peer.lock();
        let Some(waiting) = state.give(waiting) else { return };
        match self.open(&peer, &mut state) {
            Ok(lane) => {
                drop(state);
                if let Some(waiting) = lane.push(waiting) {
                    refuse(waiting, "the stream was closed again at once".to_owned());
                }
            }
            Err(why) => {
                drop(state);
                refuse(waiting, why);
            }
        }
    }
}

impl Transport for StreamTransport {
    fn call(&self, call: Call) -> CallFuture<'_> {
        // Nobody asks like this: `submit` takes every call.
        let text = format!("a call to {} has to be submitted", call.plan.participant);
        Box::pin(std::future::ready(Answer::Unsent(text.into())))
    }

    fn submit(&self, call: Call, owed: Owed) -> Option<(Call, Owed)> {
        let payload = match outbound::payload(&call) {
            Ok(payload) => payload.unwrap_or_default(),
            Err(missing) => {
                owed.settle(Answer::No(missing.into()));
                return None;
            }
        };
        let timeout = Duration::from_millis(call.timeout_ms.min(TIMEOUT_MS_MAX));
        let deadline = Instant::from_std(owed.since()) + timeout;
        let (participant, call) = framed(call, payload);
        self.carry(&participant, Waiting { call, owed, deadline });
        None
    }

    fn check(&self, participant: &str) -> Result<(), (&'static str, String)> {
        let known = self.known(participant);
        if known.as_ref().is_some_and(|peer| peer.checked.load(Ordering::Relaxed)) {
            return Ok(());
        }
        let address = Address::parse(participant);
        let checked = address.and_then(|address| address.check(&self.shared.config.policy));
        if let (Ok(()), Some(peer)) = (&checked, known) {
            peer.checked.store(true, Ordering::Relaxed);
        }
        checked.map_err(|error| (error.code, error.message))
    }

    fn held_back(&self, participant: &str) -> Option<String> {
        let peer = self.known(participant)?;
        let state = peer.lock();
        if state.freest().is_some() { None } else { state.dialing.standing(Instant::now()) }
    }
}

/// To whom a call goes, and how it goes out; its number is the stream's to give.
fn framed(call: Call, payload: Bytes) -> (Arc<str>, stream::Call) {
    let framed = stream::Call {
        number: 0,
        operation: number_of(call.operation),
        attempt: call.attempt,
        timeout_ms: call.timeout_ms,
        payload,
        outcome: call.outcome.map_or(0, |outcome| outcome as u32),
        trace: trace::parts(&call),
        transaction: call.transaction.into_shared(),
        branch: Arc::clone(&call.plan.name),
    };
    (Arc::clone(&call.plan.participant), framed)
}

const fn number_of(operation: Operation) -> u32 {
    operation as u32
}
