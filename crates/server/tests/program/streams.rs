//! Participants on streams, dialed and dialing: the same transactions, the same guard, and what
//! becomes of calls when a stream breaks.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use hyper_util::client::legacy::Client as Connections;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};
use unanimity_sdk::stream::participants_client::ParticipantsClient;
use unanimity_sdk::stream::{self, DialOptions, Dialed};
use unanimity_sdk::{
    Answering, BranchContext, MemoryParticipant, MemoryService, Participant, Request,
    ServiceResult, Vote,
};

use crate::actor::Actor;
use crate::ask::{Coordinator, request, with};
use crate::setup::until;

/// A service that votes as its payload says, and remembers what it did.
#[derive(Default)]
struct Shop {
    done: Mutex<Vec<String>>,
}

impl Shop {
    fn note(&self, branch: &BranchContext) {
        let line = format!("{} {}", branch.operation.as_str(), branch.transaction);
        self.done.lock().unwrap().push(line);
    }

    fn count(&self, operation: &str) -> usize {
        let done = self.done.lock().unwrap();
        done.iter().filter(|line| line.starts_with(operation)).count()
    }
}

impl MemoryService for Shop {
    fn prepare(&self, branch: &BranchContext, payload: &[u8]) -> ServiceResult<Vote> {
        let payload: Value = serde_json::from_slice(payload)?;
        if let Some(reason) = payload["no"].as_str() {
            return Ok(Vote::no(reason));
        }
        self.note(branch);
        Ok(Vote::YesWith(json!({"seat": 7})))
    }

    fn commit(&self, branch: &BranchContext, _: &[u8]) -> ServiceResult<()> {
        self.note(branch);
        Ok(())
    }

    fn rollback(&self, branch: &BranchContext, _: &[u8]) -> ServiceResult<()> {
        self.note(branch);
        Ok(())
    }

    fn execute(&self, branch: &BranchContext, _: &[u8]) -> ServiceResult<Vote> {
        self.note(branch);
        Ok(Vote::Yes)
    }

    fn compensate(&self, branch: &BranchContext, _: &[u8]) -> ServiceResult<()> {
        self.note(branch);
        Ok(())
    }
}

type Shops = Arc<MemoryParticipant<Shop>>;

fn shop() -> Shops {
    Arc::new(MemoryParticipant::new(Shop::default()))
}

/// A server that can be stopped as a power cut would stop it, and started on the same port.
struct Served {
    port: u16,
    task: JoinHandle<()>,
}

impl Served {
    async fn start(participant: Arc<dyn Participant>, port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut connections = JoinSet::new();
        let router = stream::router(participant);
        let task = tokio::spawn(async move {
            loop {
                let (connection, _) = listener.accept().await.unwrap();
                let service = hyper_util::service::TowerToHyperService::new(router.clone());
                connections.spawn(async move {
                    let io = hyper_util::rt::TokioIo::new(connection);
                    let executor = hyper_util::rt::TokioExecutor::new();
                    let builder = hyper::server::conn::http2::Builder::new(executor);
                    drop(builder.serve_connection(io, service).await);
                });
            }
        });
        Self { port, task }
    }

    fn at(&self, name: &str) -> String {
        format!("grpc://127.0.0.1:{}/{name}", self.port)
    }

    async fn kill(self) -> u16 {
        self.task.abort();
        drop(self.task.await);
        self.port
    }
}

async fn dialed(
    coordinator: &Coordinator,
    name: &str,
    participant: Arc<dyn Participant>,
) -> Dialed {
    let options = DialOptions::new(&coordinator.url, name);
    let mut dialed = stream::dial(options, participant).unwrap();
    dialed.connected().await;
    dialed
}

#[tokio::test]
async fn a_transaction_commits_over_streams_of_both_sorts() {
    let coordinator = Coordinator::start(&[]).await;
    let (a, b) = (shop(), shop());
    let served = Served::start(a.clone(), 0).await;
    let _dialed = dialed(&coordinator, "shop-b", b.clone()).await;
    let participants = [served.at("shop-a"), "stream:shop-b".to_owned()];
    let asked = with(request("t", &participants), &[("wait", json!("completed"))]);
    let answer = coordinator.ask.begin(&asked).await;
    let shown = answer.json();
    assert_eq!(
        (&shown["outcome"], &shown["completed"]),
        (&json!("commit"), &json!(true)),
        "{shown}"
    );
    assert_eq!(shown["branches"][0]["result"]["seat"], 7, "{shown}");
    for shop in [&a, &b] {
        assert_eq!(*shop.service().done.lock().unwrap(), ["prepare t", "commit t"]);
    }
}

#[tokio::test]
async fn a_no_over_a_stream_rolls_back_everywhere() {
    let (coordinator, actor) = (Coordinator::start(&[]).await, Actor::start().await);
    let b = shop();
    let _dialed = dialed(&coordinator, "b", b.clone()).await;
    let mut asked = request("t", &[actor.at("a"), "stream:b".to_owned(), "stream:b".to_owned()]);
    asked["branches"][1]["payload"] = json!({"no": "sold out"});
    let asked = with(asked, &[("wait", json!("completed"))]);
    let shown = coordinator.ask.begin(&asked).await.json();
    assert_eq!(shown["outcome"], "rollback", "{shown}");
    assert_eq!(shown["reason"]["detail"], "sold out", "{shown}");
    assert_eq!(actor.count("rollback", "t"), 1);
    assert_eq!(b.service().count("commit"), 0);
}

/// A participant whose answers a test can hold back, in front of a real one.
struct Gate {
    behind: Shops,
    open: tokio::sync::watch::Sender<bool>,
    held: AtomicUsize,
    /// Whether the work is done before the answer is held back, or only when it is let go.
    works_first: bool,
}

impl Gate {
    fn new(behind: Shops, works_first: bool) -> Arc<Self> {
        let (open, _) = tokio::sync::watch::channel(true);
        Arc::new(Self { behind, open, held: AtomicUsize::new(0), works_first })
    }

    fn held(&self) -> usize {
        self.held.load(Ordering::SeqCst)
    }
}

impl Participant for Gate {
    fn call(&self, request: Request) -> Answering<'_> {
        Box::pin(async move {
            let early = match self.works_first {
                true => Some(self.behind.call(request.clone()).await),
                false => None,
            };
            self.held.fetch_add(1, Ordering::SeqCst);
            self.open.subscribe().wait_for(|open| *open).await.unwrap();
            self.held.fetch_sub(1, Ordering::SeqCst);
            match early {
                Some(answer) => answer,
                None => self.behind.call(request).await,
            }
        })
    }
}

fn completing(id: &str, participants: &[String]) -> Value {
    with(request(id, participants), &[("wait", json!("completed"))])
}

#[tokio::test]
async fn what_a_broken_stream_has_carried_is_asked_again_and_done_once() {
    let coordinator = Coordinator::start(&["--retry-delay-ms", "20"]).await;
    for (round, works_first) in [true, false].into_iter().enumerate() {
        let shop = shop();
        let gate = Gate::new(shop.clone(), works_first);
        let served = Served::start(gate.clone(), 0).await;
        let participants = [served.at("a"), served.at("b")];
        gate.open.send_replace(false);
        let (ask, asked) =
            (coordinator.ask.clone(), completing(&format!("t-{round}"), &participants));
        let waiting = tokio::spawn(async move { ask.begin(&asked).await.json() });
        until("both prepares", async || (gate.held() == 2).then_some(())).await;
        let port = served.kill().await;
        gate.open.send_replace(true);
        let _served = Served::start(gate.clone(), port).await;
        let shown = waiting.await.unwrap();
        assert_eq!((&shown["outcome"], &shown["completed"]), (&json!("commit"), &json!(true)));
        // The guard has seen the same prepare twice, and the service once.
        assert_eq!(shop.service().count("prepare"), 2);
        assert_eq!(shop.service().count("commit"), 2);
    }
}

#[tokio::test]
async fn while_nobody_serves_a_name_calls_are_unsent_and_come_once_somebody_does() {
    let coordinator = Coordinator::start(&["--retry-delay-ms", "20"]).await;
    let gone = "grpc://127.0.0.1:1/gone".to_owned();
    let participants = ["stream:late".to_owned(), "stream:late".to_owned()];
    let asked = with(request("t", &participants), &[("wait", json!("accepted"))]);
    coordinator.ask.begin(&asked).await;
    until("an attempt that found nobody", async || {
        let events = coordinator.ask.get("/v1/transactions/t/events").await.text();
        events.contains("no service serves late").then_some(())
    })
    .await;
    let late = shop();
    let _dialed = dialed(&coordinator, "late", late.clone()).await;
    assert_eq!(coordinator.ask.ended("t").await["outcome"], "commit");
    assert_eq!(late.service().count("prepare"), 2);
    // One that cannot be dialed is as one whose connection is refused.
    let timeout = [("prepare_timeout_ms", json!(300)), ("wait", json!("outcome"))];
    let asked = with(request("u", &[gone, "stream:late".to_owned()]), &timeout);
    let shown = coordinator.ask.begin(&asked).await.json();
    assert_eq!(shown["reason"]["code"], "prepare_timeout", "{shown}");
    let events = coordinator.ask.get("/v1/transactions/u/events").await.text();
    assert!(events.contains("refused"), "{events}");
}

#[tokio::test]
async fn replicas_share_the_calls_and_one_that_dies_leaves_them_to_the_others() {
    let coordinator = Coordinator::start(&["--retry-delay-ms", "20"]).await;
    let shared = shop();
    let (first, second) = (Gate::new(shared.clone(), false), Gate::new(shared.clone(), false));
    let dying = dialed(&coordinator, "shop", first.clone()).await;
    let _staying = dialed(&coordinator, "shop", second.clone()).await;
    first.open.send_replace(false);
    second.open.send_replace(false);
    let mut running = JoinSet::new();
    for number in 0..8 {
        let ask = coordinator.ask.clone();
        let participants = ["stream:shop".to_owned(), "stream:shop".to_owned()];
        let asked = completing(&format!("t-{number}"), &participants);
        running.spawn(async move { ask.begin(&asked).await.json()["outcome"].clone() });
    }
    until("every prepare", async || (first.held() + second.held() == 16).then_some(())).await;
    assert_eq!((first.held(), second.held()), (8, 8));
    drop(dying);
    second.open.send_replace(true);
    assert_eq!(running.join_all().await, vec![json!("commit"); 8]);
    first.open.send_replace(true);
    assert_eq!(shared.service().count("prepare"), 16);
    assert_eq!(shared.service().count("commit"), 16);
}

#[tokio::test]
async fn a_service_that_stops_answers_what_it_took_and_is_asked_no_more() {
    let coordinator = Coordinator::start(&["--retry-delay-ms", "20"]).await;
    let shared = shop();
    let gate = Gate::new(shared.clone(), false);
    let stopping = dialed(&coordinator, "shop", gate.clone()).await;
    gate.open.send_replace(false);
    let participants = ["stream:shop".to_owned(), "stream:shop".to_owned()];
    let (ask, asked) = (coordinator.ask.clone(), completing("t", &participants));
    let waiting = tokio::spawn(async move { ask.begin(&asked).await.json() });
    until("both prepares", async || (gate.held() == 2).then_some(())).await;
    let stopped = tokio::spawn(stopping.stop());
    let _other = dialed(&coordinator, "shop", shared.clone()).await;
    gate.open.send_replace(true);
    stopped.await.unwrap();
    let shown = waiting.await.unwrap();
    assert_eq!((&shown["outcome"], &shown["completed"]), (&json!("commit"), &json!(true)));
    // Its two answers were taken: nothing had to be asked twice.
    let events = coordinator.ask.get("/v1/transactions/t/events").await.text();
    assert!(!events.contains("unknown"), "{events}");
}

#[tokio::test]
async fn a_call_without_an_answer_ends_in_its_time_and_a_late_answer_is_nobodys() {
    let flags = ["--retry-delay-ms", "20", "--attempt-timeout-ms", "150"];
    let coordinator = Coordinator::start(&flags).await;
    let shared = shop();
    let gate = Gate::new(shared.clone(), true);
    let served = Served::start(gate.clone(), 0).await;
    let _dialed = dialed(&coordinator, "b", shared.clone()).await;
    let participants = [served.at("a"), "stream:b".to_owned()];
    let timeout = [("prepare_timeout_ms", json!(300)), ("wait", json!("outcome"))];
    gate.open.send_replace(false);
    let shown = coordinator.ask.begin(&with(request("t", &participants), &timeout)).await.json();
    assert_eq!(shown["reason"]["code"], "prepare_timeout", "{shown}");
    until("a rollback that nobody answers", async || {
        let events = coordinator.ask.get("/v1/transactions/t/events").await.text();
        events.contains("no answer within 150 ms").then_some(())
    })
    .await;
    gate.open.send_replace(true);
    assert_eq!(coordinator.ask.ended("t").await["outcome"], "rollback");
    assert_eq!(shared.service().count("rollback"), 2);
}

#[tokio::test]
async fn addresses_on_streams_are_checked_before_anything_begins() {
    let coordinator = Coordinator::start(&[]).await;
    for (participant, code) in [
        ("grpc://localhost/accounts", "participant_invalid"),
        ("stream:two words", "participant_invalid"),
        ("grpc://10.0.0.1:7/accounts", "participant_not_allowed"),
    ] {
        let asked = request("t", &[participant.to_owned(), "stream:b".to_owned()]);
        let answer = coordinator.ask.begin(&asked).await;
        let expected = (code.to_owned(), "branches[0].participant".to_owned());
        assert_eq!((answer.status, answer.problem()), (400, expected));
    }
}

#[tokio::test]
async fn told_to_stop_it_finishes_with_participants_that_have_dialed_and_hangs_up() {
    let mut coordinator = Coordinator::start(&["--stop-timeout-ms", "30000"]).await;
    let shared = shop();
    let gate = Gate::new(shared.clone(), false);
    let _dialed = dialed(&coordinator, "shop", gate.clone()).await;
    gate.open.send_replace(false);
    let participants = ["stream:shop".to_owned(), "stream:shop".to_owned()];
    let accepted = with(request("t", &participants), &[("wait", json!("accepted"))]);
    coordinator.ask.begin(&accepted).await;
    until("both prepares", async || (gate.held() == 2).then_some(())).await;
    let running = coordinator.take();
    running.signal("TERM").await;
    until("the door to be closed", async || {
        coordinator.ask.try_send("GET", "/livez", &[], "").await.err()
    })
    .await;
    gate.open.send_replace(true);
    let ended = running.ended().await;
    assert_eq!(ended.status, 0, "{ended:?}");
    assert_eq!(shared.service().count("commit"), 2);
}

#[tokio::test]
async fn without_the_token_nobody_dials_in() {
    let coordinator = Coordinator::start(&["--token", "0123456789abcdef"]).await;
    let options = DialOptions::new(&coordinator.url, "shop");
    let wrong = DialOptions { token: Some("wrong".to_owned()), ..options.clone() };
    let right = DialOptions { token: Some("0123456789abcdef".to_owned()), ..options.clone() };
    let refused = [stream::dial(options, shop()).unwrap(), stream::dial(wrong, shop()).unwrap()];
    let mut let_in = stream::dial(right, shop()).unwrap();
    let_in.connected().await;
    assert_eq!(refused.map(|dialed| dialed.streams()), [0, 0]);
    // What they are told.
    let connections =
        Connections::builder(TokioExecutor::new()).http2_only(true).build(HttpConnector::new());
    let origin = coordinator.url.parse().unwrap();
    let mut client = ParticipantsClient::with_origin(connections, origin);
    let status = client.serve(Silent).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unauthenticated);
}

/// Answers that never come.
struct Silent;

impl futures_core::Stream for Silent {
    type Item = stream::Answers;

    fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<stream::Answers>> {
        Poll::Pending
    }
}

/// Passes bytes on between whoever connects and a port, until it is told to leave the connections
/// that stand as they are: open, and silent in both directions. Later ones are passed on again.
struct Proxy {
    port: u16,
    silent: tokio::sync::watch::Sender<bool>,
}

impl Proxy {
    async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = listener.local_addr().unwrap().port();
        let (silent, told) = tokio::sync::watch::channel(false);
        tokio::spawn(async move {
            let mut passing = JoinSet::new();
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                let mut told = told.clone();
                told.mark_unchanged();
                passing.spawn(async move {
                    let mut far =
                        tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                    let passed = tokio::io::copy_bidirectional(&mut near, &mut far);
                    tokio::select! {
                        _ = passed => {}
                        // Both ends stay open for as long as the test runs.
                        _ = told.changed() => std::future::pending::<()>().await,
                    }
                });
            }
        });
        Self { port: own, silent }
    }
}

#[tokio::test]
async fn a_peer_that_is_gone_without_a_word_is_found_out_and_dialed_again() {
    let coordinator = Coordinator::start(&["--prepare-timeout-ms", "60000"]).await;
    let shared = shop();
    let served = Served::start(shared.clone(), 0).await;
    let proxy = Proxy::to(served.port).await;
    let participants = ["a", "b"].map(|name| format!("grpc://127.0.0.1:{}/{name}", proxy.port));
    coordinator.ask.begin(&completing("before", &participants)).await;
    assert_eq!(shared.service().count("commit"), 2);
    proxy.silent.send_replace(true);
    // Its prepares go out on connections that nobody answers on.
    let shown = coordinator.ask.begin(&completing("t", &participants)).await.json();
    assert_eq!((&shown["outcome"], &shown["completed"]), (&json!("commit"), &json!(true)));
    let events = coordinator.ask.get("/v1/transactions/t/events").await.text();
    assert!(events.contains("the stream"), "{events}");
}

#[tokio::test]
async fn a_stream_that_a_participant_offers_over_http_is_used_while_it_can_be() {
    let coordinator = Coordinator::start(&["--retry-delay-ms", "20"]).await;
    let (over_stream, over_http) = (shop(), shop());
    let served = Served::start(over_stream.clone(), 0).await;
    let router = unanimity_sdk::router_with_stream(over_http.clone(), &served.at("shop")).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    // Two stores, so that it can be seen which one was asked; one after the other, because the
    // offer comes with the first answer.
    let worked = |shop: &Shops| shop.service().count("commit_one_phase") / 2;
    let mut seen = Vec::new();
    let mut served = Some(served);
    for id in ["first", "second", "third"] {
        if id == "third" {
            served.take().unwrap().kill().await;
        }
        let asked = completing(id, std::slice::from_ref(&url));
        let shown = coordinator.ask.begin(&asked).await.json();
        assert_eq!(shown["outcome"], "commit", "{shown}");
        seen.push((worked(&over_http), worked(&over_stream)));
    }
    assert_eq!(seen, [(1, 0), (1, 1), (2, 1)]);
}
