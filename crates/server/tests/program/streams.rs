//! Participants on streams, dialed and dialing: the same transactions, the same guard, and what
//! becomes of calls when a stream breaks.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};
use unanimity_sdk::stream::{self, DialOptions, Dialed};
use unanimity_sdk::{
    Answering, BranchContext, MemoryParticipant, MemoryService, OwedAnswer, Participant, Request,
    ServiceResult, Vote,
};

use crate::actor::{Actor, Hold};
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
