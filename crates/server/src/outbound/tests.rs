//! Calls against real sockets on loopback: servers that behave, and servers that do not.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use unanimity_core::{BranchPlan, Kind, Operation, TransactionId};

use super::*;

mod batch;
mod breaker;

/// A participant on a port of its own.
struct Participant {
    address: String,
    connections: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
    open_most: Arc<AtomicUsize>,
}

/// Serves every connection with `serve` in a task of its own, and counts them.
async fn participant<F, S>(serve: S) -> Participant
where
    S: Fn(TcpStream) -> F + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let found = Participant {
        address: format!("http://{}", listener.local_addr().unwrap()),
        connections: Arc::default(),
        open: Arc::default(),
        open_most: Arc::default(),
    };
    let (connections, open, open_most) =
        (Arc::clone(&found.connections), Arc::clone(&found.open), Arc::clone(&found.open_most));
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            connections.fetch_add(1, Ordering::SeqCst);
            open_most.fetch_max(open.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            let (open, served) = (Arc::clone(&open), serve(stream));
            tokio::spawn(async move {
                served.await;
                open.fetch_sub(1, Ordering::SeqCst);
            });
        }
    });
    found
}

/// A participant that reads a request's head, then says exactly this and waits for the other side
/// to close.
async fn raw(text: impl Into<String>) -> Participant {
    let text: Arc<str> = text.into().into();
    participant(move |mut stream| {
        let text = Arc::clone(&text);
        async move {
            let mut head = [0; 4096];
            let _ = stream.read(&mut head).await;
            let _ = stream.write_all(text.as_bytes()).await;
            while matches!(stream.read(&mut head).await, Ok(1..)) {}
        }
    })
    .await
}

/// A participant on hyper that answers 200 to everything and passes each request on.
async fn hyper_participant(
    seen: mpsc::UnboundedSender<(http::request::Parts, Bytes)>,
) -> Participant {
    participant(move |stream| {
        let seen = seen.clone();
        async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let seen = seen.clone();
                async move {
                    let (head, body) = request.into_parts();
                    let body = body.collect().await.unwrap().to_bytes();
                    let _ = seen.send((head, body));
                    Ok::<_, std::convert::Infallible>(hyper::Response::new(Full::new(Bytes::new())))
                }
            });
            let http = hyper::server::conn::http1::Builder::new();
            let _ = http.serve_connection(TokioIo::new(stream), service).await;
        }
    })
    .await
}

fn answer_of(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n{headers}\r\n{body}", body.len())
}

fn call_to(participant: &str, operation: Operation) -> Call {
    Call {
        transaction: TransactionId::new("order-4711").unwrap(),
        branch: 1,
        plan: Arc::new(BranchPlan::new("debit", participant, Kind::TwoPhase)),
        operation,
        attempt: 3,
        timeout_ms: 5_000,
        payload: None,
        results: Box::default(),
        outcome: None,
    }
}

async fn prepare(participant: &str) -> Answer {
    let transport = HttpTransport::new(OutboundConfig::default());
    transport.call(call_to(participant, Operation::Prepare)).await
}

/// What a prepare comes to if the participant says exactly this.
async fn check(text: String, expected: Answer) {
    let found = prepare(&raw(text.clone()).await.address).await;
    assert_eq!(found, expected, "{}", &text[..text.len().min(200)]);
}

fn unknown(text: &str) -> Answer {
    Answer::Unknown(text.into())
}

fn unsent(text: &str) -> Answer {
    Answer::Unsent(text.into())
}

fn text_of(answer: Answer) -> String {
    match answer {
        Answer::Unknown(text) => text.into(),
        other => panic!("expected unknown, got {other:?}"),
    }
}

/// What is said of a call of which nothing has left.
fn text_of_unsent(answer: Answer) -> String {
    match answer {
        Answer::Unsent(text) => text.into(),
        other => panic!("expected unsent, got {other:?}"),
    }
}

#[tokio::test]
async fn answers_mean_what_the_contract_says() {
    check(answer_of("200 OK", "", ""), Answer::Yes(None)).await;
    check(answer_of("200 OK", "", r#"{"vote":"read_only"}"#), Answer::ReadOnly).await;
    check(
        answer_of("409 Conflict", "", r#"{"reason":"overdrawn"}"#),
        Answer::No("overdrawn".into()),
    )
    .await;
    let html = "content-type: text/html; charset=utf-8\r\n";
    check(
        answer_of("200 OK", html, "<html>sign in</html>"),
        unknown("HTTP 200 OK: the body is neither empty nor a JSON object"),
    )
    .await;
    let early = "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(5);
    check(early + &answer_of("200 OK", "", ""), Answer::Yes(None)).await;
    let gzip = "content-encoding: gzip\r\n";
    check(
        answer_of("200 OK", gzip, "{}"),
        unknown("HTTP 200 OK: the body is neither empty nor a JSON object"),
    )
    .await;
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let elsewhere = raw(answer_of("200 OK", "", "")).await;
    let location = format!("location: {}/prepare\r\n", elsewhere.address);
    for status in ["301 Moved Permanently", "302 Found", "307 Temporary Redirect"] {
        let expected = unknown(&format!("HTTP {status}: redirects are not followed"));
        check(answer_of(status, &location, ""), expected).await;
    }
    assert_eq!(elsewhere.connections.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn large_answers_are_refused() {
    let limit = 64 * 1024;
    check(answer_of("200 OK", "", &" ".repeat(limit)), Answer::Yes(None)).await;
    let refused = unknown("the answer has more than 65536 bytes");
    check(answer_of("200 OK", "", &" ".repeat(limit + 1)), refused.clone()).await;
    // Announced only: the limit must not wait for the bytes.
    check("HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n".into(), refused.clone()).await;
    let chunk = format!("{:x}\r\n{}\r\n", 4096, " ".repeat(4096));
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_owned();
    check(chunked + &chunk.repeat(17), refused).await;
    let headers = format!("x: {}\r\n", "y".repeat(HEADER_BYTES_MAX));
    check(
        answer_of("200 OK", &headers, ""),
        unknown("the answer's headers have more than 16384 bytes"),
    )
    .await;
}

#[tokio::test]
async fn broken_answers_are_unknown() {
    for text in ["garbage\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n", "\0\0\0\0"] {
        text_of(prepare(&raw(text).await.address).await);
    }
    let closing = participant(|mut stream| async move {
        let _ = stream.read(&mut [0; 4096]).await;
    })
    .await;
    let expected = unknown("the connection was closed without a complete answer");
    assert_eq!(prepare(&closing.address).await, expected);
    let half = participant(|mut stream| async move {
        let _ = stream.read(&mut [0; 4096]).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{").await;
    })
    .await;
    let found = text_of(prepare(&half.address).await);
    assert!(found.starts_with("the answer broke off: "), "{found}");
}

#[tokio::test]
async fn nothing_listening_means_unsent() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let found = text_of_unsent(prepare(&address).await);
    assert!(found.contains("Connection refused"), "{found}");
    // TLS to a server that speaks plain HTTP.
    let plain = raw(answer_of("200 OK", "", "")).await;
    let found = text_of_unsent(prepare(&plain.address.replace("http", "https")).await);
    assert!(found.starts_with("cannot connect: "), "{found}");
}

#[tokio::test]
async fn silence_and_dripping_end_with_the_calls_time() {
    let silent = raw("").await;
    let half_a_head = raw("HTTP/1.1 200").await;
    let storm = participant(|mut stream| async move {
        let _ = stream.read(&mut [0; 4096]).await;
        while stream.write_all(b"HTTP/1.1 103 Early Hints\r\n\r\n").await.is_ok() {}
    })
    .await;
    let dripping = participant(|mut stream| async move {
        let _ = stream.read(&mut [0; 4096]).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 60000\r\n\r\n").await;
        let mut beat = tokio::time::interval(Duration::from_millis(5));
        while stream.write_all(b" ").await.is_ok() {
            beat.tick().await;
        }
    })
    .await;
    let transport = HttpTransport::new(OutboundConfig::default());
    for bad in [silent, half_a_head, dripping, storm] {
        let call = Call { timeout_ms: 60, ..call_to(&bad.address, Operation::Prepare) };
        assert_eq!(transport.call(call).await, unknown("no answer within 60 ms"));
    }
}

#[tokio::test]
async fn a_call_carries_its_headers_and_its_payload_once() {
    let (sender, mut seen) = mpsc::unbounded_channel();
    let service = hyper_participant(sender).await;
    let transport = HttpTransport::new(OutboundConfig::default());
    let payload: Arc<[u8]> = Arc::from(&br#"{"amount": 1}"#[..]);
    let base = format!("{}/accounts/", service.address);
    let call = Call { payload: Some(payload), ..call_to(&base, Operation::Prepare) };
    assert_eq!(transport.call(call).await, Answer::Yes(None));
    let (head, body) = seen.recv().await.unwrap();
    assert_eq!((head.method, head.uri.path()), (Method::POST, "/accounts/prepare"));
    assert_eq!(body, r#"{"amount": 1}"#);
    let header = |name: &str| head.headers.get(name).unwrap().to_str().unwrap();
    assert_eq!(header("host"), service.address.strip_prefix("http://").unwrap());
    assert_eq!(header("unanimity-transaction"), "order-4711");
    assert_eq!(header("unanimity-branch"), "debit");
    assert_eq!(header("unanimity-attempt"), "3");
    assert_eq!(header("content-type"), "application/json");
    assert_eq!(header("content-length"), "13");
    let parts: Vec<&str> = header("traceparent").split('-').collect();
    assert_eq!(parts.iter().map(|part| part.len()).collect::<Vec<_>>(), [2, 32, 16, 2]);
    assert_eq!(parts[1], trace::trace_id("order-4711").simple().to_string());

    transport.call(call_to(&base, Operation::Commit)).await;
    let (head, body) = seen.recv().await.unwrap();
    assert_eq!((head.uri.path(), body.len()), ("/accounts/commit", 0));
    assert_eq!(head.headers.get("content-type"), None);
    assert_eq!(head.headers.get("content-length").unwrap(), "0");
}

#[test]
fn a_trace_is_named_after_its_transaction() {
    let id = "f47ac10b-58cc-4372-a567-0e02b2c3d479";
    assert_eq!(trace::trace_id(id).to_string(), id);
    assert_eq!(trace::trace_id("order-4711").to_string(), "b5d3f2d4-6e2d-5911-a198-540f64134616");
    let nil = "00000000-0000-0000-0000-000000000000";
    assert!(!trace::trace_id(nil).is_nil());
    let first = call_to("http://h", Operation::Prepare);
    let again = Call { attempt: 4, ..first.clone() };
    assert_eq!(trace::traceparent(&first), trace::traceparent(&first.clone()));
    assert_ne!(trace::traceparent(&first), trace::traceparent(&again));
}

#[tokio::test]
async fn connections_are_kept_alive() {
    let (sender, _seen) = mpsc::unbounded_channel();
    let service = hyper_participant(sender).await;
    let transport = HttpTransport::new(OutboundConfig::default());
    for _ in 0..20 {
        let call = call_to(&service.address, Operation::Commit);
        assert_eq!(transport.call(call).await, Answer::Acknowledged);
    }
    assert_eq!(service.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_connection_that_was_closed_while_idle_costs_no_call() {
    let once = participant(|mut stream| async move {
        let _ = stream.read(&mut [0; 4096]).await;
        let _ = stream.write_all(answer_of("200 OK", "", "").as_bytes()).await;
    })
    .await;
    let transport = HttpTransport::new(OutboundConfig::default());
    for _ in 0..20 {
        let answer = transport.call(call_to(&once.address, Operation::Commit)).await;
        assert_eq!(answer, Answer::Acknowledged);
        // The other side closes its end without a word; wait until that has happened.
        while once.open.load(Ordering::SeqCst) > 0 {
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(once.connections.load(Ordering::SeqCst), 20);
}

#[tokio::test]
async fn connections_are_bounded_and_calls_wait_for_one() {
    let (sender, _seen) = mpsc::unbounded_channel();
    let service = hyper_participant(sender).await;
    let config = OutboundConfig { connections_per_participant_max: 3, ..OutboundConfig::default() };
    let transport = Arc::new(HttpTransport::new(config));
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..200 {
        let (transport, call) =
            (Arc::clone(&transport), call_to(&service.address, Operation::Commit));
        calls.spawn(async move { transport.call(call).await });
    }
    while let Some(answer) = calls.join_next().await {
        assert_eq!(answer.unwrap(), Answer::Acknowledged);
    }
    assert_eq!(service.connections.load(Ordering::SeqCst), 3);
    assert_eq!(service.open_most.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_hanging_participant_delays_nobody_else() {
    let (hanging, (sender, _seen)) = (raw("").await, mpsc::unbounded_channel());
    let well = hyper_participant(sender).await;
    let config = OutboundConfig { connections_per_participant_max: 1, ..OutboundConfig::default() };
    let transport = Arc::new(HttpTransport::new(config));
    let stuck = |timeout_ms| {
        let call = Call { timeout_ms, ..call_to(&hanging.address, Operation::Prepare) };
        let transport = Arc::clone(&transport);
        tokio::spawn(async move { transport.call(call).await })
    };
    let (first, second) = (stuck(60_000), stuck(50));
    let found = transport.call(call_to(&well.address, Operation::Prepare)).await;
    assert_eq!(found, Answer::Yes(None));
    let expected = "none of the 1 connections to it became free within 50 ms";
    assert_eq!(second.await.unwrap(), unsent(expected));
    first.abort();
}

#[tokio::test]
async fn idle_connections_are_closed_and_origins_forgotten() {
    let (closed, mut closes) = mpsc::unbounded_channel();
    let service = participant(move |mut stream| {
        let closed = closed.clone();
        async move {
            let mut bytes = [0; 4096];
            let _ = stream.read(&mut bytes).await;
            let _ = stream.write_all(answer_of("200 OK", "", "").as_bytes()).await;
            let _ = closed.send(stream.read(&mut bytes).await.unwrap());
        }
    })
    .await;
    let config = OutboundConfig { idle_timeout_ms: 20, ..OutboundConfig::default() };
    let transport = HttpTransport::new(config);
    transport.call(call_to(&service.address, Operation::Commit)).await;
    assert_eq!(closes.recv().await, Some(0));
    while transport.pool.origins() > 0 {
        tokio::time::timeout(Duration::from_secs(10), tokio::task::yield_now()).await.unwrap();
    }
}

#[tokio::test]
async fn origins_are_bounded() {
    let config = OutboundConfig { participants_max: 2, ..OutboundConfig::default() };
    let transport = Arc::new(HttpTransport::new(config));
    for _ in 0..4 {
        let service = raw(answer_of("200 OK", "", "")).await;
        let answer = transport.call(call_to(&service.address, Operation::Commit)).await;
        assert_eq!(answer, Answer::Acknowledged);
        assert!(transport.pool.origins() <= 2);
    }
    let (one, two) = (raw("").await, raw("").await);
    let mut stuck = Vec::new();
    for hanging in [&one, &two] {
        let call = call_to(&hanging.address, Operation::Commit);
        let transport = Arc::clone(&transport);
        stuck.push(tokio::spawn(async move { transport.call(call).await }));
        while hanging.connections.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
    }
    let third = raw(answer_of("200 OK", "", "")).await;
    let found = transport.call(call_to(&third.address, Operation::Commit)).await;
    assert_eq!(found, unsent("2 participants are being called already"));
    for task in stuck {
        task.abort();
    }
}

#[tokio::test]
async fn the_policy_is_asked_when_a_connection_is_made() {
    let (sender, _seen) = mpsc::unbounded_channel();
    let service = hyper_participant(sender).await;
    let port = service.address.rsplit_once(':').unwrap().1;
    let call = |allow: &'static [&str], host: &str| {
        let policy = Policy::parse(allow.iter().copied()).unwrap();
        let transport = HttpTransport::new(OutboundConfig { policy, ..OutboundConfig::default() });
        let address = format!("http://{host}:{port}");
        async move {
            let static_check = transport.check(&address).map_err(|error| error.code);
            let answer = transport.call(call_to(&address, Operation::Commit)).await;
            (static_check, answer)
        }
    };
    for host in ["localhost", "LocalHost"] {
        assert_eq!(call(&["loopback"], host).await, (Ok(()), Answer::Acknowledged));
        assert_eq!(call(&["localhost"], host).await, (Ok(()), Answer::Acknowledged));
        // A name that the static check cannot judge is judged by what it resolves to.
        let (checked, answer) = call(&["private", "public"], host).await;
        assert_eq!(checked, Ok(()));
        let text = text_of_unsent(answer);
        assert!(text.contains("is a loopback address, and participants.allow"), "{text}");
    }
    for host in ["127.0.0.1", "0x7f.1", "2130706433", "[::ffff:7f00:1]"] {
        assert_eq!(call(&["loopback"], host).await, (Ok(()), Answer::Acknowledged), "{host}");
        let (checked, answer) = call(&["private", "public"], host).await;
        assert_eq!(checked, Err("participant_not_allowed"));
        assert!(text_of_unsent(answer).contains("participants.allow"));
    }
    let (_, answer) = call(&["loopback", "private", "public"], "0.0.0.0").await;
    assert!(text_of_unsent(answer).contains("participants.allow"));
    assert_eq!(service.connections.load(Ordering::SeqCst), 8);
}

/// The child of the next test: a call while the environment names a proxy.
#[tokio::test]
async fn a_call_goes_to_the_participant_itself() {
    let (sender, mut seen) = mpsc::unbounded_channel();
    let service = hyper_participant(sender).await;
    let transport = HttpTransport::new(OutboundConfig::default());
    transport.call(call_to(&service.address, Operation::Commit)).await;
    let (head, _) = seen.recv().await.unwrap();
    assert_eq!(head.uri, "/commit");
}

#[tokio::test]
async fn proxies_in_the_environment_are_ignored() {
    let proxy = raw(answer_of("200 OK", "", "")).await;
    let mut child = tokio::process::Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "outbound::tests::a_call_goes_to_the_participant_itself"]);
    for name in ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"] {
        child.env(name, &proxy.address);
    }
    let output = child.env_remove("NO_PROXY").env_remove("no_proxy").output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
    assert_eq!(proxy.connections.load(Ordering::SeqCst), 0);
}
