//! Decides when a participant that is addressed over HTTP is called otherwise than with a request
//! for each call: after it has said in an answer that it serves a stream (header `Unanimity-Stream:
//! grpc://HOST:PORT/NAME`), or takes several calls in one request (`Unanimity-Batch: 256`). The
//! stream goes first. Where it cannot be opened, calls go over HTTP again for a while; what holds
//! batches back is `lane`'s. Nothing rests on an offer, and a restart forgets all of them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use http::HeaderMap;
use tokio::time::{Duration, Instant};
use unanimity_sdk::contract::STREAM_HEADER;
use unanimity_sdk::contract::batch::BATCH_HEADER;

use super::lane::Lane;
use super::targets::Known;

/// How long calls go over HTTP after the stream could not be opened.
const SUSPENDED: Duration = Duration::from_secs(30);

/// What participants have offered, by the address that initiators name.
#[derive(Debug)]
pub struct Offers {
    /// At most so many offers are known.
    participants_max: usize,
    /// The most calls of one request; with fewer than two there are no batches.
    batch_calls_max: usize,
    /// Whether there is any: most coordinators have none, and look no further.
    any: AtomicBool,
    known: RwLock<HashMap<Arc<str>, Offer>>,
}

#[derive(Debug, Default)]
struct Offer {
    stream: Option<Arc<str>>,
    suspended_until: Option<Instant>,
    lane: Option<Arc<Lane>>,
}

/// What a participant offers now.
#[derive(Debug, Default)]
pub(crate) struct Offered {
    /// Where it serves a stream.
    pub(crate) stream: Option<Arc<str>>,
    /// Where calls gather that go in one request.
    pub(crate) lane: Option<Arc<Lane>>,
}

impl Offers {
    pub(super) fn new(participants_max: usize, batch_calls_max: usize) -> Self {
        let (any, known) = (AtomicBool::new(false), RwLock::default());
        Self { participants_max, batch_calls_max, any, known }
    }

    /// Takes note of what an answer offers.
    pub(super) fn note(&self, participant: &Arc<str>, known: &Arc<Known>, headers: &HeaderMap) {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let stream = text(STREAM_HEADER).filter(|stream| stream.starts_with("grpc://"));
        let calls = text(BATCH_HEADER).and_then(|calls| calls.parse().ok()).unwrap_or(0);
        let calls_max = self.batch_calls_max.min(calls);
        if (stream.is_none() && calls_max < 2) || self.is_known(participant, stream, calls_max) {
            return;
        }
        let mut offers = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if offers.len() >= self.participants_max && !offers.contains_key(participant) {
            return;
        }
        let offer = offers.entry(Arc::clone(participant)).or_default();
        if let Some(stream) = stream
            && offer.stream.as_deref() != Some(stream)
        {
            (offer.stream, offer.suspended_until) = (Some(Arc::from(stream)), None);
        }
        if calls_max >= 2 {
            let new = || Arc::new(Lane::new(Arc::clone(participant), Arc::clone(known)));
            offer.lane.get_or_insert_with(new).allow(calls_max);
        }
        self.any.store(true, Ordering::Release);
    }

    fn is_known(&self, participant: &str, stream: Option<&str>, calls_max: usize) -> bool {
        let offers = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let Some(offer) = offers.get(participant) else { return false };
        let calls_known = offer.lane.as_ref().map_or(0, |lane| lane.calls_max());
        (stream.is_none() || offer.stream.as_deref() == stream)
            && (calls_max < 2 || calls_known == calls_max)
    }

    /// What a participant has offered, as far as it is to be used now.
    pub(crate) fn of(&self, participant: &str) -> Offered {
        if !self.any.load(Ordering::Acquire) {
            return Offered::default();
        }
        let offers = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let Some(offer) = offers.get(participant) else { return Offered::default() };
        let suspended = offer.suspended_until.is_some_and(|until| Instant::now() < until);
        let stream = offer.stream.as_ref().filter(|_| !suspended);
        Offered { stream: stream.map(Arc::clone), lane: offer.lane.clone() }
    }

    /// The stream cannot be used: HTTP, for a while.
    pub fn suspend(&self, participant: &str) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(offer) = known.get_mut(participant) {
            offer.suspended_until = Some(Instant::now() + SUSPENDED);
        }
    }
}
