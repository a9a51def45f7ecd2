//! Decides when a participant that is addressed over HTTP is called otherwise than with a request
//! for each call: after it has said in an answer that it serves a stream (header `Unanimity-Stream:
//! grpc://HOST:PORT/NAME`), or takes several calls in one request (`Unanimity-Batch: 256`). The
//! stream goes first. Where it cannot be opened, calls go over HTTP again for a while; what holds
//! batches back is `lane`'s. Nothing rests on an offer: a restart forgets all of them, and one that
//! nobody has used lately makes room for another. An offer of fewer than two calls takes it back.

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
/// How long an offer is kept at least, where there are too many.
const ROOM_EVERY: Duration = Duration::from_secs(1);

/// What participants have offered, by the address that initiators name.
#[derive(Debug)]
pub struct Offers {
    /// At most so many offers are known.
    participants_max: usize,
    /// The most calls of one request; with fewer than two there are no batches.
    batch_calls_max: usize,
    /// Whether there is any: most coordinators have none, and look no further.
    any: AtomicBool,
    known: RwLock<Table>,
}

#[derive(Debug, Default)]
struct Table {
    offers: HashMap<Arc<str>, Offer>,
    /// When offers were last looked through for some to forget.
    made_room_at: Option<Instant>,
}

impl Table {
    /// Forgets what nobody has used since the last time. To be asked again soon would be too often:
    /// nothing would have had the time to be used.
    fn make_room(&mut self, now: Instant) {
        if self.made_room_at.is_some_and(|last| now < last + ROOM_EVERY) {
            return;
        }
        self.made_room_at = Some(now);
        self.offers.retain(|_, offer| std::mem::take(offer.used.get_mut()));
    }
}

#[derive(Debug, Default)]
struct Offer {
    stream: Option<Arc<str>>,
    suspended_until: Option<Instant>,
    lane: Option<Arc<Lane>>,
    /// Whether anybody has asked for it lately.
    used: AtomicBool,
}

impl Offer {
    /// Takes note of what is offered, if nothing is new but a number.
    fn agrees(&self, stream: Option<&str>, calls_max: Option<usize>) -> bool {
        if stream.is_some() && self.stream.as_deref() != stream {
            return false;
        }
        match (&self.lane, calls_max) {
            (Some(lane), Some(calls_max)) => {
                lane.allow(calls_max);
                true
            }
            (None, Some(calls_max)) => calls_max < 2,
            (_, None) => true,
        }
    }
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
        let calls_max = text(BATCH_HEADER).and_then(|calls| calls.parse::<usize>().ok());
        let calls_max = calls_max.map(|calls_max| calls_max.min(self.batch_calls_max));
        if stream.is_none() && calls_max.is_none() {
            return;
        }
        // Two copies of a service that say different numbers must not have everybody wait.
        let table = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let offers_some = stream.is_some() || calls_max >= Some(2);
        match table.offers.get(participant) {
            Some(offer) if offer.agrees(stream, calls_max) => return,
            None if !offers_some => return,
            Some(_) | None => drop(table),
        }
        let mut table = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if table.offers.len() >= self.participants_max && !table.offers.contains_key(participant) {
            table.make_room(Instant::now());
            if table.offers.len() >= self.participants_max {
                return;
            }
        }
        let offer = table.offers.entry(Arc::clone(participant)).or_default();
        if let Some(stream) = stream
            && offer.stream.as_deref() != Some(stream)
        {
            (offer.stream, offer.suspended_until) = (Some(Arc::from(stream)), None);
        }
        if let Some(calls_max) = calls_max.filter(|calls_max| *calls_max >= 2) {
            let new = || Arc::new(Lane::new(Arc::clone(participant), Arc::clone(known)));
            offer.lane.get_or_insert_with(new).allow(calls_max);
        }
        self.any.store(true, Ordering::Release);
    }

    /// What a participant has offered, as far as it is to be used now.
    pub(crate) fn of(&self, participant: &str) -> Offered {
        if !self.any.load(Ordering::Acquire) {
            return Offered::default();
        }
        let table = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let Some(offer) = table.offers.get(participant) else { return Offered::default() };
        if !offer.used.load(Ordering::Relaxed) {
            offer.used.store(true, Ordering::Relaxed);
        }
        let suspended = offer.suspended_until.is_some_and(|until| Instant::now() < until);
        let stream = offer.stream.as_ref().filter(|_| !suspended);
        let lane = offer.lane.as_ref().filter(|lane| lane.calls_max() >= 2);
        Offered { stream: stream.map(Arc::clone), lane: lane.map(Arc::clone) }
    }

    /// The stream cannot be used: HTTP, for a while.
    pub fn suspend(&self, participant: &str) {
        let mut table = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(offer) = table.offers.get_mut(participant) {
            offer.suspended_until = Some(Instant::now() + SUSPENDED);
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::outbound::target::Target;

    fn note(offers: &Offers, participant: &str, batch: &'static str) {
        let target = Target::parse("http://localhost:1").unwrap();
        let known = Arc::new(Known { target, verdict: Ok(()) });
        let batch = HeaderValue::from_static(batch);
        let headers = HeaderMap::from_iter([(BATCH_HEADER, batch)]);
        offers.note(&participant.into(), &known, &headers);
    }

    fn calls_max(offers: &Offers, participant: &str) -> Option<usize> {
        offers.of(participant).lane.map(|lane| lane.calls_max())
    }

    #[test]
    fn the_last_number_counts_and_less_than_two_takes_the_offer_back() {
        let offers = Offers::new(8, 256);
        for (said, expected) in [
            ("1", None),
            ("16", Some(16)),
            ("1000", Some(256)),
            ("many", Some(256)),
            ("1", None),
            ("4", Some(4)),
            ("0", None),
        ] {
            note(&offers, "a", said);
            assert_eq!(calls_max(&offers, "a"), expected, "{said}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_offer_that_nobody_uses_makes_room_for_another() {
        let offers = Offers::new(2, 256);
        note(&offers, "used", "8");
        note(&offers, "unused", "8");
        // Once asked for each, as whoever learns of an offer does.
        for participant in ["used", "unused"] {
            assert_eq!(calls_max(&offers, participant), Some(8));
        }
        note(&offers, "third", "8");
        assert_eq!(calls_max(&offers, "third"), None, "all were used");
        for _ in 0..3 {
            tokio::time::advance(ROOM_EVERY).await;
            assert_eq!(calls_max(&offers, "used"), Some(8));
            note(&offers, "third", "8");
            assert_eq!(calls_max(&offers, "third"), Some(8));
        }
        assert_eq!(calls_max(&offers, "unused"), None);
    }
}
