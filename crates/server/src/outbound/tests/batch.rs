//! Calls that go in one request, to servers that answer them well, oddly, or not at all.

use std::collections::BTreeMap;
use std::sync::Mutex;

use serde_json::{Value, json};
use tokio::sync::Notify;
use unanimity::{AnswerQueue, Answers};
use unanimity_core::{Event, Outcome};

use super::*;
use crate::outbound::lane::Lane;
use crate::outbound::targets::Known;

mod limits;

/// Everything a participant was asked for: the path, and the body of a batch.
type Seen = Arc<Mutex<Vec<(String, Value)>>>;

/// Reads one request: its path and its body. None if the other side has gone.
async fn read_request(stream: &mut TcpStream) -> Option<(String, Value)> {
    let mut text = Vec::new();
    let (head, length) = loop {
        let mut more = [0; 4096];
        let count = stream.read(&mut more).await.ok().filter(|count| *count > 0)?;
        text.extend_from_slice(&more[..count]);
        let Some(end) = text.windows(4).position(|bytes| bytes == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&text[..end]).to_ascii_lowercase();
        let length = head.split("content-length: ").nth(1).unwrap().lines().next().unwrap();
        break (end + 4, length.parse::<usize>().unwrap());
    };
    while text.len() < head + length {
        let mut more = [0; 4096];
        let count = stream.read(&mut more).await.ok().filter(|count| *count > 0)?;
        text.extend_from_slice(&more[..count]);
    }
    let path = String::from_utf8_lossy(&text).split(' ').nth(1).unwrap().to_owned();
    Some((path, serde_json::from_slice(&text[head..]).unwrap_or_default()))
}

/// A participant that offers to take so many calls in one request, answers each single call with
/// 200, and a batch as `serve` does; a connection that `serve` keeps is closed.
async fn offering<F, S>(calls_max: usize, serve: S) -> (Participant, Seen)
where
    S: Fn(TcpStream, Value) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Option<TcpStream>> + Send + 'static,
{
    let seen = Seen::default();
    let noted = Arc::clone(&seen);
    let offer = format!("unanimity-batch: {calls_max}\r\n");
    let single = answer_of("200 OK", &offer, "{}");
    let found = participant(move |mut stream| {
        let (serve, noted, single) = (serve.clone(), Arc::clone(&noted), single.clone());
        async move {
            while let Some((path, body)) = read_request(&mut stream).await {
                noted.lock().unwrap().push((path.clone(), body.clone()));
                if path == "/batch" {
                    let Some(kept) = serve(stream, body).await else { return };
                    stream = kept;
                } else if stream.write_all(single.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    (found, seen)
}

/// One that answers every batch with this text.
async fn saying(text: impl Into<String>) -> (Participant, Seen) {
    let text: Arc<str> = text.into().into();
    offering(8, move |mut stream, _| {
        let text = Arc::clone(&text);
        async move { stream.write_all(text.as_bytes()).await.is_ok().then_some(stream) }
    })
    .await
}

fn lines(lines: &[&str]) -> String {
    let body: String = lines.iter().map(|line| format!("{line}\n")).collect();
    answer_of("200 OK", "content-type: application/x-ndjson\r\n", &body)
}

/// A line that says yes, or acknowledges.
fn well(number: usize) -> String {
    format!(r#"{{"number":{number},"status":200,"body":{{}}}}"#)
}

/// A transport that knows a participant's offer.
struct Caller {
    transport: Arc<HttpTransport>,
    address: String,
    lane: Arc<Lane>,
    sender: Answers,
    answers: AnswerQueue,
}

impl Caller {
    /// One that knows that batches arrive.
    async fn new(participant: &Participant, config: OutboundConfig) -> Self {
        let new = Self::of_new_offer(participant, config).await;
        new.lane.works();
        new
    }

    async fn of_new_offer(participant: &Participant, config: OutboundConfig) -> Self {
        let transport = Arc::new(HttpTransport::new(config));
        let address = participant.address.clone();
        transport.call(call_to(&address, Operation::Commit)).await;
        let lane = transport.offers().of(&address).lane.expect("it is offered");
        let (sender, answers) = unanimity::answers();
        Self { transport, address, lane, sender, answers }
    }

    fn call(&self, branch: u16) -> Call {
        Call { branch, attempt: 1, ..call_to(&self.address, Operation::Prepare) }
    }

    /// Hands over a call; whether it was taken.
    fn give(&self, call: Call) -> bool {
        let owed = Owed::new(&call, &self.sender);
        match self.transport.gather(&self.lane, call, owed) {
            None => true,
            Some((_, owed)) => {
                owed.settle(Answer::Unsent("given back".into()));
                false
            }
        }
    }

    fn give_many(&self, count: u16) {
        (0..count).for_each(|branch| assert!(self.give(self.call(branch))));
    }

    async fn next(&mut self) -> (u16, Answer) {
        match self.answers.next().await {
            Event::Answer { branch, answer, .. } => (branch, answer),
            other => panic!("not an answer: {other:?}"),
        }
    }

    /// The next answers, by branch; each call has one.
    async fn answers(&mut self, count: usize) -> Vec<Answer> {
        let mut found = BTreeMap::new();
        for _ in 0..count {
            let (branch, answer) = self.next().await;
            assert_eq!(found.insert(branch, answer), None, "branch {branch}");
        }
        found.into_values().collect()
    }
}

/// What so many prepares in one batch come to if the participant says exactly this, and whether it
/// is sent batches after that.
async fn batch_of(count: u16, said: String) -> (Vec<Answer>, bool) {
    let (participant, seen) = saying(said).await;
    let mut caller = Caller::new(&participant, OutboundConfig::default()).await;
    caller.give_many(count);
    let answers = caller.answers(count.into()).await;
    let asked = seen.lock().unwrap().iter().filter(|(path, _)| path == "/batch").count();
    assert_eq!(asked, 1);
    (answers, caller.give(caller.call(99)))
}

fn yes() -> Answer {
    Answer::Yes(None)
}

#[tokio::test]
async fn each_line_is_judged_as_an_answer_that_came_alone() {
    let said = lines(&[
        r#"{"number":4,"status":503,"body":{"code":"busy","detail":"later"}}"#,
        r#"{"number":7,"status":200,"body":{"vote":"no"}}"#,
        r#"{"number":1,"status":409,"body":{"reason":"overdrawn"}}"#,
        r#"{"status":200,"body":{"vote":"yes","result":{"seat": 7}},"number":0}"#,
        r#"{"number":3,"status":200,"body":{"vote":"read_only"}}"#,
        r#"{"number":2,"status":200}"#,
    ]);
    let (answers, batches) = batch_of(6, said).await;
    let expected = [
        Answer::Yes(Some(r#"{"seat":7}"#.into())),
        Answer::No("overdrawn".into()),
        yes(),
        Answer::ReadOnly,
        unknown("HTTP 503 Service Unavailable: busy: later"),
        unknown("the answer ended without this call's"),
    ];
    assert_eq!(answers, expected);
    assert!(batches);
}

#[tokio::test]
async fn calls_that_gather_go_in_one_request_and_it_carries_what_headers_would() {
    let said = lines(&[&well(2), &well(0), &well(1)]);
    let (participant, seen) = saying(said).await;
    let mut caller = Caller::new(&participant, OutboundConfig::default()).await;
    for _ in 0..2 {
        let payload = |text: &str| Some(Arc::from(text.as_bytes()));
        let first = Call { payload: payload(r#"{"a" : 1.50}"#), ..caller.call(0) };
        assert!(caller.give(first.clone()));
        assert!(caller.give(Call { operation: Operation::Commit, ..caller.call(1) }));
        let outcome = Some(Outcome::Rollback);
        let operation = Operation::Execute;
        let last = Call { operation, outcome, payload: payload("null"), ..caller.call(2) };
        assert!(caller.give(last));
        assert_eq!(caller.answers(3).await, [yes(), Answer::Acknowledged, yes()]);
        let (path, body) = seen.lock().unwrap().last().unwrap().clone();
        assert_eq!(path, "/batch");
        let call = &body["calls"][0];
        let expected = json!({
            "number": 0, "operation": "prepare", "transaction": "order-4711", "branch": "debit",
            "attempt": 1, "traceparent": trace::traceparent(&first), "payload": {"a": 1.5},
        });
        assert_eq!(*call, expected);
        assert_eq!(body["calls"][1].get("payload"), None);
        assert_eq!(body["calls"][2]["outcome"], "rollback");
        assert_eq!(body["calls"][2].get("payload"), Some(&Value::Null));
    }
    assert_eq!(participant.connections.load(Ordering::SeqCst), 1, "it is kept");
}

#[tokio::test]
async fn a_batch_that_was_certainly_not_taken_is_made_call_by_call() {
    for status in [400, 404, 405, 413, 415, 501] {
        let (answers, batches) = batch_of(3, answer_of(&format!("{status} No"), "", "no")).await;
        assert_eq!(answers, [yes(), yes(), yes()], "{status}");
        assert!(!batches, "{status}");
    }
}

#[tokio::test]
async fn of_a_batch_that_may_have_been_taken_nothing_is_known() {
    let said = |status: &str| answer_of(status, "", "later");
    for (said, expected) in [
        (said("503 Busy"), "HTTP 503 Service Unavailable to a batch of calls"),
        (said("409 Conflict"), "HTTP 409 Conflict to a batch of calls"),
        (said("307 Elsewhere"), "HTTP 307 Temporary Redirect to a batch of calls"),
        (said("204 Done"), "HTTP 204 No Content to a batch of calls"),
        (said("200 OK"), "a line of the answer is not understood"),
        (answer_of("200 OK", "", ""), "the answer ended without this call's"),
        (
            answer_of("200 OK", "content-encoding: gzip\r\n", &well(0)),
            "the batch's answer is compressed",
        ),
    ] {
        let (answers, batches) = batch_of(2, said).await;
        assert_eq!(answers, [unknown(expected), unknown(expected)]);
        assert!(!batches, "{expected}");
    }
}

#[tokio::test]
async fn after_what_is_not_understood_nothing_is_believed() {
    let long = format!(r#"{{"number":1,"status":200,"body":"{}"}}"#, "x".repeat(66_000));
    for (odd, expected) in [
        ("garbage", "a line of the answer is not understood"),
        ("", "a line of the answer is not understood"),
        (r#"{"number":1,"status":200"#, "a line of the answer is not understood"),
        (&long, "a line of the answer has more than 65536 bytes"),
    ] {
        let (answers, batches) = batch_of(3, lines(&[&well(0), odd, &well(1), &well(2)])).await;
        assert_eq!(answers, [yes(), unknown(expected), unknown(expected)]);
        assert!(batches, "one line came: it knows batches");
    }
}

#[tokio::test]
async fn a_line_for_no_call_and_a_second_line_for_one_are_dropped() {
    let no = r#"{"number":0,"status":409}"#;
    let (answers, _) = batch_of(3, lines(&[&well(9), &well(0), no])).await;
    let missing = unknown("the answer ended without this call's");
    assert_eq!(answers, [yes(), missing.clone(), missing]);
    let flood = lines(&[&well(0), no, no, &well(1), &well(2)]);
    let many = unknown("the answer has more lines than there were calls");
    assert_eq!(batch_of(3, flood).await.0, [yes(), many.clone(), many]);
}

#[tokio::test]
async fn of_a_batch_that_breaks_off_what_came_counts_and_no_more() {
    let (participant, _) = offering(8, |mut stream, _| async move {
        let head = "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n";
        // The second line has come whole, but for its end.
        let text = format!("{head}{}\n{}", well(1), well(0));
        let _ = stream.write_all(text.as_bytes()).await;
        None
    })
    .await;
    let mut caller = Caller::new(&participant, OutboundConfig::default()).await;
    caller.give_many(2);
    let answers = caller.answers(2).await;
    assert_eq!(answers[1], yes());
    let text = text_of(answers[0].clone());
    assert!(text.starts_with("the answer broke off: "), "{text}");
    let (participant, _) = offering(8, |_, _| std::future::ready(None)).await;
    let mut caller = Caller::new(&participant, OutboundConfig::default()).await;
    caller.give_many(2);
    let closed = unknown("the connection was closed without a complete answer");
    assert_eq!(caller.answers(2).await, [closed.clone(), closed]);
    assert!(!caller.give(caller.call(7)), "nothing rests on an offer");
}

/// Answers the first call at once, and the others when it is told to.
async fn hesitating() -> (Participant, Arc<Notify>) {
    let go = Arc::new(Notify::new());
    let told = Arc::clone(&go);
    let (participant, _) = offering(8, move |mut stream, body| {
        let told = Arc::clone(&told);
        async move {
            let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
            let chunk = |line: String| format!("{:x}\r\n{line}\n\r\n", line.len() + 1);
            let text = format!("{head}{}", chunk(well(0)));
            stream.write_all(text.as_bytes()).await.ok()?;
            told.notified().await;
            let count = body["calls"].as_array().unwrap().len();
            let rest: String = (1..count).map(|number| chunk(well(number))).collect();
            stream.write_all(format!("{rest}0\r\n\r\n").as_bytes()).await.ok()?;
            Some(stream)
        }
    })
    .await;
    (participant, go)
}

#[tokio::test]
async fn a_slow_call_holds_up_no_answer_of_another() {
    let (participant, go) = hesitating().await;
    let mut caller = Caller::new(&participant, OutboundConfig::default()).await;
    caller.give_many(3);
    assert_eq!(caller.next().await, (0, yes()));
    go.notify_one();
    assert_eq!(caller.answers(2).await, [yes(), yes()]);
}

#[tokio::test]
async fn each_call_ends_in_its_own_time_and_a_later_line_for_it_is_nobodys() {
    let (participant, go) = hesitating().await;
    let mut caller = Caller::new(&participant, OutboundConfig::default()).await;
    for (branch, timeout_ms) in [(0, 60_000), (1, 60), (2, 60_000)] {
        assert!(caller.give(Call { timeout_ms, ..caller.call(branch) }));
    }
    assert_eq!(caller.next().await, (0, yes()));
    assert_eq!(caller.next().await, (1, unknown("no answer within 60 ms")));
    go.notify_one();
    assert_eq!(caller.next().await, (2, yes()));
    caller.give_many(1);
    assert_eq!(caller.next().await, (0, yes()), "and nothing between");
    assert_eq!(participant.connections.load(Ordering::SeqCst), 1, "it is kept");
}

#[tokio::test]
async fn a_batch_that_nobody_waits_for_gives_its_connection_up() {
    let (participant, _) = offering(8, |mut stream, _| async move {
        let _ = stream.read(&mut [0; 64]).await;
        None
    })
    .await;
    let mut caller = Caller::new(&participant, OutboundConfig::default()).await;
    for branch in 0..2 {
        assert!(caller.give(Call { timeout_ms: 60, ..caller.call(branch) }));
    }
    let late = unknown("no answer within 60 ms");
    assert_eq!(caller.answers(2).await, [late.clone(), late]);
    while participant.open.load(Ordering::SeqCst) > 0 {
        tokio::task::yield_now().await;
    }
    assert!(!caller.give(caller.call(7)), "it may be that only batches are lost");
}

#[tokio::test]
async fn what_is_better_carried_alone_goes_alone() {
    let (participant, seen) = saying(lines(&[&well(0), &well(1)])).await;
    let mut caller = Caller::new(&participant, OutboundConfig::default()).await;
    let payload = |bytes: Vec<u8>| Some(Arc::from(bytes));
    assert!(!caller.give(Call { attempt: 2, ..caller.call(0) }), "nothing rests on batches");
    assert!(!caller.give(Call { payload: payload(vec![b' '; 70_000]), ..caller.call(1) }));
    caller.answers(2).await;
    caller.give_many(1);
    assert_eq!(caller.answers(1).await, [yes()]);
    // One that no JSON document can hold goes beside the others.
    caller.give_many(2);
    assert!(caller.give(Call { payload: payload(b"{no json".to_vec()), ..caller.call(2) }));
    assert_eq!(caller.answers(3).await, [yes(), yes(), yes()]);
    let mut paths: Vec<String> = seen.lock().unwrap().iter().map(|seen| seen.0.clone()).collect();
    paths.sort();
    assert_eq!(paths, ["/batch", "/commit", "/prepare", "/prepare"]);
}

#[tokio::test]
async fn a_result_that_is_missing_is_a_no_and_the_others_go() {
    let (participant, seen) = saying(lines(&[&well(0), &well(1)])).await;
    let mut caller = Caller::new(&participant, OutboundConfig::default()).await;
    let payload = Some(Arc::from(&br#"{"$result":{"branch":"hold","field":"/id"}}"#[..]));
    let results = |text: &str| [("hold".into(), Some(text.into()))].into();
    let with = |branch, text| Call {
        payload: payload.clone(),
        results: results(text),
        ..caller.call(branch)
    };
    let calls = [with(0, "{}"), with(1, r#"{"id":"x"}"#), with(2, r#"{"id":7.10}"#)];
    calls.into_iter().for_each(|call| assert!(caller.give(call)));
    let answers = caller.answers(3).await;
    assert!(matches!(&answers[0], Answer::No(why) if why.contains("hold")), "{answers:?}");
    assert_eq!(answers[1..], [yes(), yes()]);
    let (_, body) = seen.lock().unwrap().last().unwrap().clone();
    assert_eq!(
        (&body["calls"][0]["payload"], &body["calls"][1]["payload"]),
        (&json!("x"), &json!(7.1))
    );
}

#[tokio::test]
async fn a_batch_has_no_more_calls_than_offered_nor_than_set() {
    for (offered, set, expected) in [(2, 256, vec![2, 2]), (256, 3, vec![3])] {
        let (participant, seen) = offering(offered, |mut stream, body| async move {
            let count = body["calls"].as_array().unwrap().len();
            let all: Vec<String> = (0..count).map(well).collect();
            let all: Vec<&str> = all.iter().map(String::as_str).collect();
            stream.write_all(lines(&all).as_bytes()).await.ok().map(|()| stream)
        })
        .await;
        let config = OutboundConfig { batch_calls_max: set, ..OutboundConfig::default() };
        let mut caller = Caller::new(&participant, config).await;
        let count = 1 + expected.iter().sum::<usize>();
        caller.give_many(u16::try_from(count).unwrap());
        assert_eq!(caller.answers(count).await, vec![yes(); count]);
        let seen = seen.lock().unwrap();
        let sizes = seen.iter().filter_map(|(_, body)| Some(body["calls"].as_array()?.len()));
        assert_eq!(sizes.collect::<Vec<_>>(), expected);
    }
    let (participant, _) = saying("").await;
    let never = OutboundConfig { batch_calls_max: 1, ..OutboundConfig::default() };
    let transport = HttpTransport::new(never);
    transport.call(call_to(&participant.address, Operation::Commit)).await;
    assert!(transport.offers().of(&participant.address).lane.is_none());
}

#[tokio::test]
async fn calls_that_wait_for_a_connection_gather_and_end_in_their_time() {
    let (participant, go) = hesitating().await;
    let config = OutboundConfig { connections_per_participant_max: 1, ..OutboundConfig::default() };
    let mut caller = Caller::new(&participant, config).await;
    caller.give_many(2);
    assert_eq!(caller.next().await, (0, yes()));
    assert!(!caller.transport.pool.has_waiting());
    caller.give_many(3);
    while !caller.transport.pool.has_waiting() {
        tokio::task::yield_now().await;
    }
    // One that comes later and must be there sooner is seen to all the same.
    assert!(caller.give(Call { timeout_ms: 30, ..caller.call(9) }));
    let expected =
        unsent("of 1 connections to it, and of room for 1024 calls, none became free within 30 ms");
    assert_eq!(caller.next().await, (9, expected));
    go.notify_one();
    assert_eq!(caller.next().await, (1, yes()));
    assert_eq!(caller.next().await, (0, yes()));
    assert!(!caller.transport.pool.has_waiting());
    go.notify_one();
    assert_eq!(caller.answers(2).await, [yes(), yes()]);
    caller.give_many(2);
    assert_eq!(caller.next().await, (0, yes()));
    for branch in 5..7 {
        assert!(caller.give(Call { timeout_ms: 30, ..caller.call(branch) }));
    }
    caller.answers(2).await;
    assert!(!caller.transport.pool.has_waiting(), "nobody is left, and nobody writes");
    go.notify_one();
    assert_eq!(caller.next().await, (1, yes()));
    caller.give_many(1);
    assert_eq!(caller.next().await, (0, yes()), "a new writer begins");
}

#[tokio::test]
async fn a_batch_on_a_connection_that_was_closed_while_idle_costs_no_call() {
    let (participant, _) = offering(8, |mut stream, _| async move {
        let _ = stream.write_all(lines(&[&well(0), &well(1)]).as_bytes()).await;
        None
    })
    .await;
    let mut caller = Caller::new(&participant, OutboundConfig::default()).await;
    for _ in 0..20 {
        caller.give_many(2);
        assert_eq!(caller.answers(2).await, [yes(), yes()]);
        while participant.open.load(Ordering::SeqCst) > 0 {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn nothing_listening_means_unsent_for_every_call() {
    let (participant, _) = saying("").await;
    let mut caller = Caller::new(&participant, OutboundConfig::default()).await;
    let known = Known { target: Target::parse("http://127.0.0.1:1").unwrap(), verdict: Ok(()) };
    caller.lane = Arc::new(Lane::new(caller.lane.participant.clone(), Arc::new(known)));
    caller.lane.allow(8);
    caller.give_many(2);
    for answer in caller.answers(2).await {
        let text = text_of_unsent(answer);
        assert!(text.contains("Connection refused"), "{text}");
    }
    assert!(caller.give(caller.call(3)), "that is not the batch's fault");
}
