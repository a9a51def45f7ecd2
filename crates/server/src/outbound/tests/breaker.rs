//! Participants that die, hang and come back: how often they are really called meanwhile. The clock
//! of the breakers stands still unless a test moves it, and nothing is waited for but events.

use std::sync::atomic::AtomicU64;

use tokio::task::JoinSet;

use super::super::breaker::BreakerConfig;
use super::super::breakers::{Breakers, Clock};
use super::*;

/// A clock that the test moves, and a transport that goes by it.
struct Bench {
    now_ms: &'static AtomicU64,
    transport: Arc<HttpTransport>,
}

impl Bench {
    fn new(breaker: BreakerConfig) -> Self {
        let now_ms: &'static AtomicU64 = Box::leak(Box::default());
        let config = OutboundConfig { breaker, ..OutboundConfig::default() };
        let transport = Arc::new(HttpTransport::with_clock(config, Clock::at(now_ms)));
        Self { now_ms, transport }
    }

    fn pass(&self, ms: u64) {
        self.now_ms.fetch_add(ms, Ordering::SeqCst);
    }

    async fn call(&self, service: &Moody) -> Answer {
        self.transport.call(call_to(&service.inner.address, Operation::Commit)).await
    }

    /// So many calls at once; how many were answered. The others must have been held back for this
    /// reason.
    async fn at_once(&self, service: &Moody, calls: usize, reason: &str) -> usize {
        let mut under_way = JoinSet::new();
        for _ in 0..calls {
            let call = call_to(&service.inner.address, Operation::Commit);
            let transport = Arc::clone(&self.transport);
            under_way.spawn(async move { transport.call(call).await });
        }
        let answers = under_way.join_all().await;
        let answered = answers.iter().filter(|answer| **answer == Answer::Acknowledged).count();
        for answer in answers.into_iter().filter(|answer| *answer != Answer::Acknowledged) {
            let text = said(answer);
            assert!(text.contains(reason), "{text}");
        }
        answered
    }
}

/// What is said of a call without an answer. Held back means unsent, and nothing else here does.
fn said(answer: Answer) -> String {
    match answer {
        Answer::Unsent(text) if text.starts_with("held back: ") => text.into(),
        Answer::Unknown(text) if !text.starts_with("held back: ") => text.into(),
        other => panic!("neither held back nor unknown: {other:?}"),
    }
}

const CLOSED: &str = "the connection was closed without a complete answer";
const DEAD: usize = 0;
const WELL: usize = 1;
const HANGS: usize = 2;

/// A participant that closes the connection without a word, answers, or is silent until it is well.
struct Moody {
    inner: Participant,
    mood: Arc<AtomicUsize>,
    asked: Arc<AtomicUsize>,
}

impl Moody {
    async fn start(mood: usize, status: &'static str) -> Self {
        let mood = Arc::new(AtomicUsize::new(mood));
        let asked: Arc<AtomicUsize> = Arc::default();
        let (current, count) = (Arc::clone(&mood), Arc::clone(&asked));
        let inner = participant(move |mut stream| {
            let (mood, asked) = (Arc::clone(&current), Arc::clone(&count));
            async move {
                let mut bytes = [0; 4096];
                while matches!(stream.read(&mut bytes).await, Ok(1..)) {
                    if mood.load(Ordering::SeqCst) == DEAD {
                        return;
                    }
                    asked.fetch_add(1, Ordering::SeqCst);
                    while mood.load(Ordering::SeqCst) == HANGS {
                        tokio::task::yield_now().await;
                    }
                    let sent = stream.write_all(answer_of(status, "", "").as_bytes()).await;
                    sent.unwrap_or_default();
                }
            }
        })
        .await;
        Self { inner, mood, asked }
    }

    fn turns(&self, mood: usize) {
        self.mood.store(mood, Ordering::SeqCst);
    }

    fn connections(&self) -> usize {
        self.inner.connections.load(Ordering::SeqCst)
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

#[tokio::test]
async fn a_dead_participant_is_left_alone_and_another_is_served() {
    let bench = Bench::new(BreakerConfig::default());
    let (dead, well) = (Moody::start(DEAD, "").await, Moody::start(WELL, "200 OK").await);
    let mut texts = std::collections::BTreeSet::new();
    for number in 0..1_000 {
        texts.insert(said(bench.call(&dead).await));
        if number % 10 == 0 {
            assert_eq!(bench.call(&well).await, Answer::Acknowledged);
        }
        bench.pass(10);
    }
    // Until it opens 20; for five seconds 4 at growing intervals and 8 a second; then 1 a second.
    assert!((20 + 30..=20 + 4 + 40 + 7).contains(&dead.connections()), "{}", dead.connections());
    assert_eq!((well.asked(), well.connections()), (100, 1));
    // Equal words for equal things: a timeline folds them into one event.
    let error = CLOSED;
    let origin = &dead.inner.address;
    let held = format!(
        "held back: {origin} has failed since 1970-01-01T00:00:00Z and is probed every 1000 ms; \
         last error: {error}"
    );
    assert_eq!(texts.into_iter().collect::<Vec<_>>(), [held, error.to_owned()]);
}

#[tokio::test]
async fn calls_that_wait_for_a_connection_see_it_open_too() {
    let bench = Bench::new(BreakerConfig::default());
    let dead = Moody::start(DEAD, "").await;
    bench.at_once(&dead, 1_000, "").await;
    // 20 to open it, and at most 64 that had a connection by then.
    assert!((20..=20 + 64).contains(&dead.connections()), "{}", dead.connections());
    assert_eq!(bench.transport.breakers.known(), (1, 1));
}

#[tokio::test]
async fn a_participant_that_is_back_is_given_its_calls_at_a_bounded_rate() {
    let config = BreakerConfig { drain_per_second: 64, ..BreakerConfig::default() };
    let bench = Bench::new(config);
    let moody = Moody::start(DEAD, "200 OK").await;
    bench.at_once(&moody, 20, CLOSED).await;
    bench.pass(6_000);
    moody.turns(WELL);
    assert_eq!(bench.call(&moody).await, Answer::Acknowledged);
    let (mut rate, mut answered) = (1, 1);
    for second in 0..9 {
        let mut went = 0;
        for _ in 0..20 {
            bench.pass(50);
            went += bench.at_once(&moody, 40, "is back; it is given its calls").await;
        }
        assert!(went <= rate + rate / 10 + 1, "second {second}: {went} of {rate}");
        assert!(went + 1 >= rate, "second {second}: {went} of {rate}");
        answered += went;
        rate = (rate * 2).min(64);
    }
    assert_eq!(moody.asked(), answered);
    // What is asked now is less than it may have, for a second: over.
    bench.pass(1_000);
    bench.pass(1_000);
    assert_eq!(bench.at_once(&moody, 1_000, "").await, 1_000);
    assert_eq!(bench.transport.breakers.known(), (0, 0));
}

#[tokio::test]
async fn a_probe_that_hangs_keeps_nobody_waiting() {
    let bench = Bench::new(BreakerConfig::default());
    let moody = Moody::start(DEAD, "200 OK").await;
    bench.at_once(&moody, 20, CLOSED).await;
    moody.turns(HANGS);
    bench.pass(6_000);
    let probe = {
        let call = call_to(&moody.inner.address, Operation::Commit);
        let transport = Arc::clone(&bench.transport);
        tokio::spawn(async move { transport.call(call).await })
    };
    while moody.asked() == 0 {
        tokio::task::yield_now().await;
    }
    for _ in 0..50 {
        bench.pass(100);
        assert_eq!(bench.at_once(&moody, 1, "held back").await, 0);
    }
    assert_eq!(moody.asked(), 1);
    moody.turns(WELL);
    assert_eq!(probe.await.unwrap(), Answer::Acknowledged);
}

#[tokio::test]
async fn a_call_that_is_given_up_counts_as_failed() {
    let bench = Bench::new(BreakerConfig { failures: 1, ..BreakerConfig::default() });
    let moody = Moody::start(HANGS, "200 OK").await;
    let call = {
        let call = call_to(&moody.inner.address, Operation::Commit);
        let transport = Arc::clone(&bench.transport);
        tokio::spawn(async move { transport.call(call).await })
    };
    while moody.asked() == 0 {
        tokio::task::yield_now().await;
    }
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    assert_eq!(bench.at_once(&moody, 9, "last error: no answer in time").await, 0);
    moody.turns(WELL);
}

#[tokio::test]
async fn who_refuses_a_call_is_there() {
    for (status, held_back) in [
        ("404 Not Found", false),
        ("409 Conflict", false),
        ("401 Unauthorized", false),
        ("408 Request Timeout", true),
        ("429 Too Many Requests", true),
        ("500 Internal Server Error", true),
        ("503 Service Unavailable", true),
        ("302 Found", true),
    ] {
        let bench = Bench::new(BreakerConfig::default());
        let moody = Moody::start(WELL, status).await;
        for _ in 0..100 {
            said(bench.call(&moody).await);
        }
        assert_eq!(moody.asked(), if held_back { 20 } else { 100 }, "{status}");
    }
}

#[tokio::test]
async fn breakers_are_bounded_and_forgotten() {
    let now_ms: &'static AtomicU64 = Box::leak(Box::default());
    let config = BreakerConfig { failures: 1, ..BreakerConfig::default() };
    let breakers = Breakers::new(config, 2, Clock::at(now_ms));
    for (number, origin) in ["http://a:1", "http://b:1", "http://c:1"].into_iter().enumerate() {
        now_ms.fetch_add(1, Ordering::SeqCst);
        breakers.admit(origin).unwrap().failed("refused");
        assert_eq!(breakers.known(), ((number + 1).min(2), (number + 1).min(2)));
    }
    // The one that was not called for the longest time had to go.
    assert!(breakers.admit("http://a:1").is_ok());
    assert!(breakers.admit("http://b:1").is_err() && breakers.admit("http://c:1").is_err());
    now_ms.fetch_add(599_999, Ordering::SeqCst);
    breakers.sweep();
    assert_eq!(breakers.known(), (2, 2));
    drop(breakers.admit("http://b:1"));
    now_ms.fetch_add(10, Ordering::SeqCst);
    breakers.sweep();
    assert_eq!(breakers.known(), (1, 1));
    assert!(breakers.admit("http://c:1").is_ok());
}
