//! A participant at the other end of a stream: the same guard, the same answers, and what comes in
//! one batch is one group.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use futures_core::Stream;
use hyper_util::client::legacy::Client as Connections;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use unanimity_sdk::axum::{self, Router};
use unanimity_sdk::battery::{self, Options};
use unanimity_sdk::guard::{Contradiction, Reply};
use unanimity_sdk::stream::participant_client::ParticipantClient;
use unanimity_sdk::stream::{self, Answer, AnswerKind, Call, Calls};
use unanimity_sdk::{
    Answering, CallError, MemoryParticipant, Operation, Participant, Request, SqliteParticipant,
    router,
};

use crate::support::{Diary, Folder, Plain, open, play};

/// The calls of a stream, from a channel.
struct Sent(mpsc::UnboundedReceiver<Calls>);

impl Stream for Sent {
    type Item = Calls;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Calls>> {
        self.0.poll_recv(context)
    }
}

type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<Answer>>>>;

/// A participant at the other end of a stream.
struct Remote {
    calls: mpsc::UnboundedSender<Calls>,
    waiting: Waiting,
    numbers: AtomicU64,
}

async fn serve(app: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    url
}

impl Remote {
    async fn to(participant: Arc<dyn Participant>) -> Self {
        let url = serve(stream::router(participant)).await;
        let connections =
            Connections::builder(TokioExecutor::new()).http2_only(true).build(HttpConnector::new());
        let mut client = ParticipantClient::with_origin(connections, url.parse().unwrap());
        let (calls, sent) = mpsc::unbounded_channel();
        let mut answers = client.serve(Sent(sent)).await.unwrap().into_inner();
        let waiting = Waiting::default();
        let remote = Self { calls, waiting: Arc::clone(&waiting), numbers: AtomicU64::new(1) };
        tokio::spawn(async move {
            while let Ok(Some(batch)) = answers.message().await {
                for answer in batch.answers {
                    let waiter = waiting.lock().unwrap().remove(&answer.number);
                    // The battery loses some answers: then nobody waits.
                    drop(waiter.expect("an answer for each call, once").send(answer));
                }
            }
        });
        remote
    }

    /// Sends calls in one batch; the answers come in their order.
    async fn ask(&self, calls: Vec<Call>) -> Vec<Answer> {
        let mut answers = Vec::new();
        let calls = calls.into_iter().map(|call| {
            let number = self.numbers.fetch_add(1, Ordering::Relaxed);
            let (waiter, answer) = oneshot::channel();
            self.waiting.lock().unwrap().insert(number, waiter);
            answers.push(answer);
            Call { number, ..call }
        });
        self.calls.send(Calls { calls: calls.collect() }).unwrap();
        let mut told = Vec::new();
        for answer in answers {
            told.push(answer.await.unwrap());
        }
        told
    }
}

fn call(request: &Request) -> Call {
    Call {
        transaction: request.transaction.to_shared(),
        branch: Arc::clone(&request.branch),
        operation: request.operation as u32,
        attempt: request.attempt,
        payload: request.payload.clone(),
        ..Call::default()
    }
}

fn read(answer: Answer) -> Result<Reply, CallError> {
    let said = answer.text.clone();
    let contradiction = |contradiction| Err(CallError::Contradiction(contradiction));
    match answer.kind() {
        AnswerKind::Yes => Ok(Reply::Yes((!said.is_empty()).then_some(said))),
        AnswerKind::ReadOnly => Ok(Reply::ReadOnly),
        AnswerKind::No => Ok(Reply::No(said)),
        AnswerKind::Acknowledged => Ok(Reply::Acknowledged),
        AnswerKind::NeverPrepared => contradiction(Contradiction::NeverPrepared),
        AnswerKind::AlreadyRolledBack => contradiction(Contradiction::AlreadyRolledBack),
        AnswerKind::AlreadyCommitted => contradiction(Contradiction::AlreadyCommitted),
        AnswerKind::WrongKind => contradiction(Contradiction::WrongKind),
        AnswerKind::Failed => Err(CallError::Failed(said)),
        AnswerKind::Busy => Err(CallError::Busy(said)),
        AnswerKind::Unsupported | AnswerKind::Unspecified => panic!("{answer:?}"),
    }
}

impl Participant for Remote {
    fn call(&self, request: Request) -> Answering<'_> {
        Box::pin(async move { read(self.ask(vec![call(&request)]).await.remove(0)) })
    }
}

/// A participant that only has `call`: it gets a task for each.
struct OnlyCall(SqliteParticipant);

impl Participant for OnlyCall {
    fn call(&self, request: Request) -> Answering<'_> {
        self.0.call(request)
    }
}

#[tokio::test]
async fn every_answer_over_a_stream_is_the_one_without() {
    let scripts = [
        "prepare commit commit prepare rollback",
        "prepare:result prepare rollback rollback commit prepare",
        "prepare:no prepare commit rollback",
        "prepare:read_only commit rollback",
        "prepare:error prepare:busy prepare:panic prepare",
        "rollback prepare",
        "commit",
        "execute execute compensate execute compensate",
        "compensate execute",
        "execute:no execute compensate",
        "prepare execute",
        "commit_one_phase:result commit_one_phase rollback",
        "inquire prepare",
    ];
    let (direct, taken, called) = (Folder::new(), Folder::new(), Folder::new());
    let direct = open(&direct.file());
    let taken = Remote::to(Arc::new(open(&taken.file()))).await;
    let called = Remote::to(Arc::new(OnlyCall(open(&called.file())))).await;
    for (number, script) in scripts.into_iter().enumerate() {
        let transaction = format!("t{number}");
        let expected = play(&direct, &transaction, script).await;
        assert_eq!(play(&taken, &transaction, script).await, expected, "{script}");
        assert_eq!(play(&called, &transaction, script).await, expected, "{script}");
    }
}

#[tokio::test]
async fn what_comes_in_one_batch_is_committed_as_one_group() {
    let folder = Folder::new();
    let participant = Arc::new(SqliteParticipant::open(folder.file(), Diary).unwrap());
    let remote = Remote::to(participant.clone()).await;
    let batch = |operation: Operation| {
        let one = |number: usize| {
            let name = format!("t{number}");
            call(&crate::support::request(&name, operation, ""))
        };
        (0..200).map(one).collect::<Vec<_>>()
    };
    for (operation, kind) in
        [(Operation::Prepare, AnswerKind::Yes), (Operation::Commit, AnswerKind::Acknowledged)]
    {
        let before = participant.counters().groups;
        let answers = remote.ask(batch(operation)).await;
        assert_eq!(answers.len(), 200);
        assert!(answers.iter().all(|answer| answer.kind() == kind), "{answers:?}");
        // The writer may take the first while the others are being handed over.
        let groups = participant.counters().groups - before;
        assert!(groups <= 100, "{groups} groups for one batch of 200");
    }
    assert_eq!(participant.counters().applied, 400);
}

#[tokio::test]
async fn the_same_call_twice_in_one_batch_is_done_once() {
    let folder = Folder::new();
    let participant = Arc::new(SqliteParticipant::open(folder.file(), Diary).unwrap());
    let remote = Remote::to(participant.clone()).await;
    let once = call(&crate::support::request("t", Operation::Prepare, "result"));
    let answers = remote.ask(vec![once; 8]).await;
    assert!(answers.iter().all(|answer| answer.text == r#"{"seat":7}"#), "{answers:?}");
    let counters = participant.counters();
    assert_eq!((counters.applied, counters.repeated), (1, 7));
}

#[tokio::test]
async fn a_call_that_is_none_is_refused_and_its_neighbours_are_not() {
    let remote = Remote::to(Arc::new(MemoryParticipant::new(Plain))).await;
    let good = call(&crate::support::request("t", Operation::Prepare, ""));
    let answers = remote
        .ask(vec![
            Call { operation: 99, ..good.clone() },
            Call { transaction: "two words".into(), ..good.clone() },
            Call { branch: "".into(), ..good.clone() },
            good,
        ])
        .await;
    let kinds: Vec<AnswerKind> = answers.iter().map(Answer::kind).collect();
    use AnswerKind::{Failed, Unsupported, Yes};
    assert_eq!(kinds, [Unsupported, Failed, Failed, Yes], "{answers:?}");
}

#[tokio::test]
async fn the_battery_holds_over_a_stream() {
    for compensable in [false, true] {
        let folder = Folder::new();
        let remote = Remote::to(Arc::new(open(&folder.file()))).await;
        let url = serve(router(Arc::new(remote))).await;
        let options = Options { compensable, ..Options::default() };
        let report = battery::play(&url, r#"{"seat": 7}"#, &options).await;
        report.assert_all_hold();
    }
}
