//! The listening side against real sockets, with clients that behave and clients that do not.

use std::sync::atomic::{AtomicUsize, Ordering};

use axum::extract::State;
use axum::routing::{get, post};
use http_body_util::{BodyExt as _, Full};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;

use super::*;

/// Limits of which none is reached by chance.
fn patient() -> InboundLimits {
    InboundLimits {
        connections_max: 1_000,
        header_timeout_ms: 60_000,
        body_timeout_ms: 60_000,
        idle_timeout_ms: 60_000,
        stop_timeout_ms: 60_000,
    }
}

/// Lets a handler say that it has begun, and wait until it may end.
#[derive(Clone, Default)]
struct Gate {
    begun: Arc<Notify>,
    may_end: Arc<Notify>,
    count: Arc<AtomicUsize>,
}

struct Server {
    address: SocketAddr,
    gate: Gate,
    stop: oneshot::Sender<()>,
    task: JoinHandle<io::Result<()>>,
}

async fn echo(body: Body) -> Response<Body> {
    use axum::response::IntoResponse as _;
    read_body(body, 1_000).await.into_response()
}

async fn gated(State(gate): State<Gate>) -> String {
    gate.begun.notify_one();
    gate.may_end.notified().await;
    gate.count.fetch_add(1, Ordering::SeqCst);
    "done".into()
}

/// More than all buffers on the way can hold.
async fn large() -> Vec<u8> {
    vec![b'x'; 64 * 1024 * 1024]
}

async fn start(limits: InboundLimits) -> Server {
    let gate = Gate::default();
    let router = Router::new()
        .route(
            "/",
            get(|ConnectInfo(peer): ConnectInfo<SocketAddr>| async move { peer.ip().to_string() }),
        )
        .route("/echo", post(echo))
        .route("/gated", get(gated))
        .route("/large", get(large))
        .route("/ignore", post(|| async { "ignored" }))
        .with_state(gate.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(serve(listener, router, limits, async {
        let _ = stopped.await;
    }));
    Server { address, gate, stop, task }
}

impl Server {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends bytes and reads until the server closes.
    async fn say(&self, bytes: &str) -> String {
        let mut stream = self.connect().await;
        stream.write_all(bytes.as_bytes()).await.unwrap();
        read_all(&mut stream).await
    }
}

/// Everything until the other side closes, which a reset does too.
async fn read_all(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes).await;
    String::from_utf8(bytes).unwrap()
}

async fn read_some(stream: &mut TcpStream) -> String {
    let mut bytes = vec![0; 4096];
    let count = stream.read(&mut bytes).await.unwrap();
    String::from_utf8(bytes[..count].to_vec()).unwrap()
}

const GET: &str = "GET / HTTP/1.1\r\nhost: h\r\n\r\n";

#[tokio::test]
async fn requests_are_answered_with_http_1_and_2() {
    let server = start(patient()).await;
    let mut stream = server.connect().await;
    for _ in 0..3 {
        stream.write_all(GET.as_bytes()).await.unwrap();
        let answer = read_some(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("127.0.0.1"), "{answer}");
    }
    let io = TokioIo::new(server.connect().await);
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let request =
        Request::post("http://h/echo").body(Full::new(bytes::Bytes::from("hello"))).unwrap();
    let answer = sender.send_request(request).await.unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "hello");
}

#[tokio::test]
async fn headers_must_come_in_time() {
    let server = start(InboundLimits { header_timeout_ms: 50, ..patient() }).await;
    // Nothing, half a request line, half a header, half the preface of HTTP/2.
    for begun in ["", "GET / HT", "GET / HTTP/1.1\r\nhost: ", "PRI * HTTP/2.0\r\n"] {
        let answer = server.say(begun).await;
        assert!(!answer.contains("200 OK"), "{begun:?}: {answer}");
    }
    // One byte after the other must not extend the time.
    let mut stream = server.connect().await;
    let mut beat = tokio::time::interval(Duration::from_millis(5));
    while stream.write_all(b"G").await.is_ok() {
        beat.tick().await;
    }
}

#[tokio::test]
async fn headers_must_come_in_time_on_a_used_connection_too() {
    let server = start(InboundLimits { header_timeout_ms: 50, ..patient() }).await;
    let mut stream = server.connect().await;
    stream.write_all(GET.as_bytes()).await.unwrap();
    assert!(read_some(&mut stream).await.ends_with("127.0.0.1"));
    stream.write_all(b"GET / HT").await.unwrap();
    assert_eq!(read_all(&mut stream).await, "");
}

#[tokio::test]
async fn an_idle_connection_lives_longer_than_a_header_may_take() {
    let limits = InboundLimits { header_timeout_ms: 20, idle_timeout_ms: 300, ..patient() };
    let server = start(limits).await;
    let mut stream = server.connect().await;
    stream.write_all(GET.as_bytes()).await.unwrap();
    assert!(read_some(&mut stream).await.ends_with("127.0.0.1"));
    let idle = Instant::now();
    assert_eq!(read_all(&mut stream).await, "");
    assert!(idle.elapsed() >= Duration::from_millis(250), "{:?}", idle.elapsed());
}

#[tokio::test]
async fn bodies_must_come_in_time() {
    let server = start(InboundLimits { body_timeout_ms: 50, ..patient() }).await;
    let half = "POST /echo HTTP/1.1\r\nhost: h\r\ncontent-length: 100\r\n\r\nhalf";
    let answer = server.say(half).await;
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("request_timeout"), "{answer}");
    let chunked = "POST /echo HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n";
    let mut stream = server.connect().await;
    stream.write_all(chunked.as_bytes()).await.unwrap();
    let (mut reader, mut writer) = stream.into_split();
    tokio::spawn(async move {
        let mut beat = tokio::time::interval(Duration::from_millis(5));
        while writer.write_all(b"1\r\nx\r\n").await.is_ok() {
            beat.tick().await;
        }
    });
    let mut answer = vec![0; 12];
    reader.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, b"HTTP/1.1 408");
}

#[tokio::test]
async fn a_body_that_nobody_reads_does_not_hold_the_connection() {
    let server = start(InboundLimits { header_timeout_ms: 50, ..patient() }).await;
    let answer =
        server.say("POST /ignore HTTP/1.1\r\nhost: h\r\ncontent-length: 9999\r\n\r\nx").await;
    assert!(answer.ends_with("ignored"), "{answer}");
}

#[tokio::test]
async fn large_bodies_and_headers_are_refused() {
    let server = start(patient()).await;
    let announced = "POST /echo HTTP/1.1\r\nhost: h\r\ncontent-length: 99999999999\r\n\r\n";
    let answer = server.say(announced).await;
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("body_too_large"), "{answer}");
    let chunked = "POST /echo HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n";
    let chunk = format!("190\r\n{}\r\n", "x".repeat(400));
    let answer = server.say(&format!("{chunked}{}", chunk.repeat(3))).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    let answer =
        server.say(&format!("GET / HTTP/1.1\r\nx: {}", "y".repeat(HEADER_BYTES_MAX))).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    let many = "x: y\r\n".repeat(HEADERS_MAX + 1);
    let answer = server.say(&format!("GET / HTTP/1.1\r\n{many}\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
}

#[tokio::test]
async fn a_client_that_writes_a_body_that_is_refused_reads_why() {
    let server = start(patient()).await;
    // Much more than the buffers on the way can hold, so that it is written only if it is read.
    let body = "x".repeat(16 * 1024 * 1024);
    let size = body.len();
    for head in [format!("content-length: {size}\r\n\r\n"), chunked(size)] {
        let mut stream = server.connect().await;
        let request = format!("POST /echo HTTP/1.1\r\nhost: h\r\n{head}{body}\r\n0\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let answer = read_some(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    }
}

fn chunked(size: usize) -> String {
    format!("transfer-encoding: chunked\r\n\r\n{size:x}\r\n")
}

#[tokio::test]
async fn a_client_that_does_not_take_its_answer_is_cut_off() {
    let server = start(InboundLimits { idle_timeout_ms: 50, ..patient() }).await;
    let mut stream = server.connect().await;
    stream.write_all(b"GET /large HTTP/1.1\r\nhost: h\r\n\r\n").await.unwrap();
    // That the server has closed shows in that a new write fails, sooner or later.
    let mut beat = tokio::time::interval(Duration::from_millis(5));
    while stream.write_all(b" ").await.is_ok() {
        beat.tick().await;
    }
}

#[tokio::test]
async fn a_slow_handler_is_not_cut_off() {
    let limits = InboundLimits { idle_timeout_ms: 10, header_timeout_ms: 10, ..patient() };
    let server = start(limits).await;
    let gate = server.gate.clone();
    let asked = tokio::spawn(async move {
        let request = "GET /gated HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n";
        server.say(request).await
    });
    gate.begun.notified().await;
    tokio::time::timeout(Duration::from_millis(100), gate.begun.notified()).await.unwrap_err();
    gate.may_end.notify_one();
    assert!(asked.await.unwrap().ends_with("done"));
}

/// Sends the beginning of something, and does not go on.
async fn begin(server: &Server, bytes: &str) -> TcpStream {
    let mut stream = server.connect().await;
    stream.write_all(bytes.as_bytes()).await.unwrap();
    stream
}

const HALF_A_BODY: &str = "POST /echo HTTP/1.1\r\nhost: h\r\ncontent-length: 100\r\n\r\nhalf";
const GATED: &str = "GET /gated HTTP/1.1\r\nhost: h\r\n\r\n";

#[tokio::test]
async fn at_the_bound_connections_that_ask_nothing_make_room() {
    // No limit in time comes to the honest client's help.
    let server = start(InboundLimits { connections_max: 50, ..patient() }).await;
    for crowd in ["", "GET / HT", HALF_A_BODY, GET] {
        let mut streams = Vec::new();
        for _ in 0..100 {
            streams.push(begin(&server, crowd).await);
            let mut honest = begin(&server, GET).await;
            let answer = tokio::time::timeout(Duration::from_secs(20), read_some(&mut honest));
            let answer = answer.await.expect("a place in time");
            assert!(answer.ends_with("127.0.0.1"), "{crowd:?}: {answer}");
        }
        for stream in &mut streams[..50] {
            let closed = tokio::time::timeout(Duration::from_secs(20), read_all(stream)).await;
            assert!(closed.is_ok(), "{crowd:?}");
        }
    }
}

#[tokio::test]
async fn the_one_that_has_been_slow_for_longest_goes_first_and_who_is_served_stays() {
    let server = start(InboundLimits { connections_max: 4, ..patient() }).await;
    let mut busy = begin(&server, GATED).await;
    server.gate.begun.notified().await;
    let mut idle = begin(&server, GET).await;
    read_some(&mut idle).await;
    let mut slow = begin(&server, HALF_A_BODY).await;
    let silent = begin(&server, "").await;
    // Long enough that nobody is thought to be just about to ask.
    let early = tokio::time::timeout(Duration::from_millis(400), slow.read_u8()).await;
    assert!(early.is_err(), "nobody needs a place yet");
    for (number, mut gone) in [("slow", slow), ("silent", silent), ("idle", idle)] {
        let mut next = begin(&server, GATED).await;
        server.gate.begun.notified().await;
        assert_eq!(read_all(&mut gone).await, "", "{number}");
        tokio::spawn(async move { read_all(&mut next).await });
    }
    server.gate.may_end.notify_one();
    assert!(read_some(&mut busy).await.ends_with("done"));
}

/// A connection that is told to go before this side has read what its client has sent.
async fn told_to_go_after(bytes: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (stream, peer) = listener.accept().await.unwrap();
    let (activity, limits) = (Arc::new(Activity::new()), patient());
    let router = Router::new().route("/", get(|| async { "hello" }));
    let (stop, stopping) = watch_channel::channel(false);
    activity.leave();
    let mut sent = client.try_clone().unwrap();
    let carried = tokio::spawn(async move {
        // In one turn of the runtime, so that this side knows only that nothing is there.
        assert!(stream.try_read(&mut [0]).is_err());
        io::Write::write_all(&mut sent, bytes.as_bytes()).unwrap();
        carry(&http_builder(), stream, peer, router, &limits, stopping, activity).await;
    });
    client.set_nonblocking(true).unwrap();
    let mut client = TcpStream::from_std(client).unwrap();
    let answer = read_some(&mut client).await;
    stop.send_replace(true);
    carried.await.unwrap();
    answer
}

#[tokio::test]
async fn a_request_that_is_on_its_way_is_answered_though_another_needs_the_place() {
    let answer = told_to_go_after(GET).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("hello"), "{answer}");
    assert_eq!(told_to_go_after("").await, "");
}

#[tokio::test]
async fn no_more_connections_are_served_than_allowed() {
    let server = start(InboundLimits { connections_max: 1, ..patient() }).await;
    let first = begin(&server, GATED).await;
    server.gate.begun.notified().await;
    let mut second = begin(&server, GET).await;
    let mut byte = [0];
    let early = tokio::time::timeout(Duration::from_millis(50), second.read(&mut byte)).await;
    assert!(early.is_err(), "the second connection was served beside the first");
    // Once it is answered it is idle, and the place is the other's.
    server.gate.may_end.notify_one();
    assert_eq!(second.read(&mut byte).await.unwrap(), 1);
    drop(first);
}

#[tokio::test]
async fn stopping_lets_requests_finish() {
    let server = start(patient()).await;
    let mut idle = server.connect().await;
    idle.write_all(GET.as_bytes()).await.unwrap();
    read_some(&mut idle).await;
    let mut busy = server.connect().await;
    busy.write_all(b"GET /gated HTTP/1.1\r\nhost: h\r\n\r\n").await.unwrap();
    server.gate.begun.notified().await;
    server.stop.send(()).unwrap();
    // The idle connection ends at once, and nothing new is accepted.
    assert_eq!(read_all(&mut idle).await, "");
    assert!(TcpStream::connect(server.address).await.is_err());
    assert!(!server.task.is_finished());
    server.gate.may_end.notify_one();
    let answer = read_all(&mut busy).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("done"), "{answer}");
    server.task.await.unwrap().unwrap();
}

#[tokio::test]
async fn stopping_does_not_wait_for_ever() {
    let server = start(InboundLimits { stop_timeout_ms: 30, ..patient() }).await;
    let mut busy = server.connect().await;
    busy.write_all(b"GET /gated HTTP/1.1\r\nhost: h\r\n\r\n").await.unwrap();
    server.gate.begun.notified().await;
    server.stop.send(()).unwrap();
    server.task.await.unwrap().unwrap();
    assert_eq!(read_all(&mut busy).await, "");
    assert_eq!(server.gate.count.load(Ordering::SeqCst), 0);
}

/// What begins every HTTP/2 connection: the preface, and settings that change nothing.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// `GET http://h/gated`, as HTTP/2 packs headers.
const PACKED: &[u8] = b"\x82\x86\x44\x06/gated\x41\x01h";
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const GO_AWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Writes until the other side has enough; gives back the kinds of frames that it sent.
async fn flood(server: &Server, mut next: impl FnMut(u32) -> Vec<u8> + Send + 'static) -> Vec<u8> {
    let mut stream = server.connect().await;
    stream.write_all(PREFACE).await.unwrap();
    let (mut reader, mut writer) = stream.into_split();
    let writing = tokio::spawn(async move {
        for number in 0..1_000_000 {
            if writer.write_all(&next(number)).await.is_err() {
                return true;
            }
        }
        false
    });
    let mut bytes = Vec::new();
    let _ = reader.read_to_end(&mut bytes).await; // A reset ends it too.
    let cut_off = tokio::time::timeout(Duration::from_secs(20), writing).await;
    assert!(cut_off.expect("an end in time").unwrap(), "a million frames were taken");
    let mut kinds = Vec::new();
    let mut rest = &bytes[..];
    while let Some((&[a, b, c, kind], after)) = rest.split_first_chunk::<4>() {
        kinds.push(kind);
        let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        rest = after.get(5 + length..).unwrap_or_default();
    }
    kinds
}

#[tokio::test]
async fn streams_that_are_opened_and_reset_without_end_are_cut_off() {
    let server = start(patient()).await;
    let kinds = flood(&server, |number| {
        let opened = frame(HEADERS, END_STREAM | END_HEADERS, 2 * number + 1, PACKED);
        [opened, frame(RESET, 0, 2 * number + 1, &[0, 0, 0, 8])].concat()
    })
    .await;
    assert!(kinds.contains(&GO_AWAY), "{kinds:?}");
    let mut honest = begin(&server, GET).await;
    assert!(read_some(&mut honest).await.ends_with("127.0.0.1"));
}

#[tokio::test]
async fn headers_that_go_on_without_end_are_cut_off() {
    let server = start(patient()).await;
    flood(&server, |number| match number {
        0 => frame(HEADERS, END_STREAM, 1, PACKED),
        // A header of its own in each: `x: y`, not to be remembered.
        _ => frame(CONTINUATION, 0, 1, b"\0\x01x\x01y"),
    })
    .await;
    assert_eq!(server.gate.count.load(Ordering::SeqCst), 0);
    let mut honest = begin(&server, GET).await;
    assert!(read_some(&mut honest).await.ends_with("127.0.0.1"));
}

#[tokio::test]
async fn a_client_that_opens_more_streams_than_allowed_is_refused_and_then_cut_off() {
    let server = start(patient()).await;
    let opened = |number| frame(HEADERS, END_STREAM | END_HEADERS, 2 * number + 1, PACKED);
    let kinds = flood(&server, opened).await;
    assert!(kinds.contains(&RESET) && kinds.contains(&GO_AWAY), "{kinds:?}");
    let mut honest = begin(&server, GET).await;
    assert!(read_some(&mut honest).await.ends_with("127.0.0.1"));
}
