//! Beginning many with one sink to tell: each is told once, whatever comes of it, and nobody who
//! asks for long is waited for for ever.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use unanimity::{
    BeginError, BeginRequest, ManagerConfig, Told, ToldSink, TransactionManager, Wait,
};

use crate::fake::{Fake, Fault, Folder, PATIENCE, ended, in_memory, plan, request, soon, start};

/// What a sink was told: `None` if that is lost.
type Heard = (u64, Option<Result<Told, BeginError>>);

struct Sink(mpsc::UnboundedSender<Heard>);

impl ToldSink for Sink {
    fn tell(&self, number: u64, told: Result<Told, BeginError>) {
        self.0.send((number, Some(told))).unwrap();
    }

    fn lose(&self, number: u64) {
        self.0.send((number, None)).unwrap();
    }
}

fn sink() -> (Arc<Sink>, mpsc::UnboundedReceiver<Heard>) {
    let (sender, heard) = mpsc::unbounded_channel();
    (Arc::new(Sink(sender)), heard)
}

fn begin(manager: &TransactionManager, request: BeginRequest, sink: &Arc<Sink>, number: u64) {
    let to = (Arc::clone(sink) as Arc<dyn ToldSink>, number);
    manager.admit().unwrap().begin_and_tell_to(request, to, PATIENCE);
}

async fn told(heard: &mut mpsc::UnboundedReceiver<Heard>) -> (u64, Told) {
    let (number, told) = soon(heard.recv()).await.unwrap();
    (number, told.unwrap().unwrap())
}

#[tokio::test]
async fn each_is_told_when_what_it_waits_for_has_come() {
    let fake = Fake::new();
    let manager = in_memory(&fake);
    let (sink, mut heard) = sink();
    let fresh = |wait| BeginRequest::new(plan(&["a", "b"]), wait);
    fake.close("a prepare");
    begin(&manager, fresh(Wait::Accepted), &sink, 1);
    let (number, accepted) = told(&mut heard).await;
    assert_eq!((number, accepted.outcome, accepted.completed), (1, None, false));
    fake.open("a prepare");
    fake.close("b commit");
    begin(&manager, fresh(Wait::Outcome), &sink, 2);
    let (number, outcome) = told(&mut heard).await;
    assert!(number == 2 && outcome.committed() && !outcome.completed && !outcome.existed);
    begin(&manager, fresh(Wait::Completed), &sink, 3);
    fake.open("b commit");
    let (number, completed) = told(&mut heard).await;
    assert!(number == 3 && completed.committed() && completed.completed);
    fake.fault("a prepare", Fault::No, 1);
    begin(&manager, fresh(Wait::Outcome), &sink, 4);
    let (number, no) = told(&mut heard).await;
    assert_eq!((number, no.reason.unwrap().code.as_str()), (4, "voted_no"));
    // An id that was chosen, and is asked for again when the history has it.
    for number in [5, 6] {
        begin(&manager, request("T", &["a"], Wait::Completed), &sink, number);
        let (heard_of, again) = told(&mut heard).await;
        assert_eq!((heard_of, again.existed), (number, number == 6));
        ended(&manager, "T").await;
    }
    assert!(heard.try_recv().is_err(), "each is told once");
}

#[tokio::test]
async fn what_does_not_begin_is_told_why() {
    let fake = Fake::new();
    let manager = in_memory(&fake);
    let (sink, mut heard) = sink();
    let forbidden = || BeginRequest::new(plan(&["forbidden"]), Wait::Outcome);
    begin(&manager, forbidden(), &sink, 1);
    begin(&manager, BeginRequest::new(plan(&[]), Wait::Outcome), &sink, 2);
    // Who says that it is checked is believed, but for what no shard may believe.
    begin(&manager, BeginRequest::new(plan(&[]), Wait::Outcome).checked(), &sink, 3);
    for number in 1..=3 {
        let (refused, why) = soon(heard.recv()).await.unwrap();
        let code = match why {
            Some(Err(BeginError::Plan(error))) => error.code,
            other => panic!("{other:?}"),
        };
        let expected = if number == 1 { "participant_not_allowed" } else { "no_branches" };
        assert_eq!((refused, code), (number, expected));
    }
    begin(&manager, forbidden().checked(), &sink, 4);
    assert!(told(&mut heard).await.1.committed(), "nobody asked whether it may be called");
}

/// A transaction that takes for ever is asked for again and again: who waits is let go.
#[tokio::test]
async fn an_id_that_is_asked_for_in_vain_is_waited_for_only_so_long() {
    let fake = Fake::new();
    let manager = in_memory(&fake);
    let (sink, mut heard) = sink();
    fake.close("a prepare");
    for number in 1..=3 {
        let to = (Arc::clone(&sink) as Arc<dyn ToldSink>, number);
        let asked = request("T", &["a"], Wait::Completed);
        manager.admit().unwrap().begin_and_tell_to(asked, to, Duration::from_millis(1));
    }
    // Its own handle is the last when all have been let go; the shard has none any more.
    soon(async {
        while Arc::strong_count(&sink) > 1 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(heard.try_recv().is_err(), "who is let go is told nothing");
    fake.open("a prepare");
    begin(&manager, request("T", &["a"], Wait::Completed), &sink, 4);
    assert!(told(&mut heard).await.1.completed);
}

#[tokio::test]
async fn what_is_under_way_when_its_shard_ends_is_told_to_be_lost() {
    let (fake, folder) = (Fake::new(), Folder::new());
    let manager = start(ManagerConfig { ..folder.config() }, &fake);
    let (sink, mut heard) = sink();
    fake.close("a prepare");
    begin(&manager, BeginRequest::new(plan(&["a"]), Wait::Outcome), &sink, 1);
    fake.seen("", 1).await;
    manager.stop(Duration::ZERO).await;
    let (number, lost) = soon(heard.recv()).await.unwrap();
    assert!(number == 1 && lost.is_none(), "{lost:?}");
    assert!(heard.try_recv().is_err());
}
