//! What of a batch may have left and what has not, and what its end says of the participant.

use unanimity_core::Operation::{CommitOnePhase, Prepare};

use super::*;

impl Caller {
    /// Closes the connection that is kept, so that the next call needs another.
    fn close_idle(&self) {
        let origin = self.transport.pool.origin(&self.lane.known.target.origin).unwrap();
        drop(origin.take_idle().expect("one is kept"));
    }
}

/// What single calls and batches a participant was asked for, without the first, which learns of
/// the offer.
fn asked(seen: &Seen) -> Vec<String> {
    let seen = seen.lock().unwrap();
    let calls = |body: &Value| {
        let calls = body["calls"].as_array()?.iter();
        let operations: Vec<_> = calls.map(|call| call["operation"].as_str().unwrap()).collect();
        Some(operations.join(" "))
    };
    seen.iter().skip(1).map(|(path, body)| calls(body).unwrap_or_else(|| path.clone())).collect()
}

/// Hands calls over while nobody can connect, and lets them connect when the one that has 30 ms has
/// ended; gives back what the participant was asked for.
async fn slowly_connected(said: String, calls: &[(Operation, u64)]) -> Vec<String> {
    let (participant, seen) = saying(said).await;
    let mut caller = Caller::new(&participant, OutboundConfig::default()).await;
    caller.close_idle();
    let transport = Arc::clone(&caller.transport);
    let door = transport.door.write().await;
    for (branch, (operation, timeout_ms)) in (0..).zip(calls) {
        let (operation, timeout_ms) = (*operation, *timeout_ms);
        assert!(caller.give(Call { operation, timeout_ms, ..caller.call(branch) }));
    }
    let late = unsent("not connected within the call's time");
    assert_eq!(caller.next().await.1, late);
    drop(door);
    let others = calls.len() - 1;
    assert_eq!(caller.answers(others).await, vec![yes(); others]);
    asked(&seen)
}

#[tokio::test]
async fn what_is_answered_unsent_while_connecting_does_not_arrive() {
    let calls = [(Prepare, 60_000), (CommitOnePhase, 30), (Prepare, 60_000)];
    let said = lines(&[&well(1), &well(0)]);
    assert_eq!(slowly_connected(said, &calls).await, ["prepare prepare"]);
}

#[tokio::test]
async fn a_call_that_is_left_alone_goes_alone() {
    let calls = [(CommitOnePhase, 30), (Prepare, 60_000)];
    assert_eq!(slowly_connected(lines(&[&well(0)]), &calls).await, ["/prepare"]);
}

#[tokio::test]
async fn a_call_that_was_in_a_refused_batch_is_never_unsent() {
    let (participant, _) = saying(answer_of("404 Not Found", "", "")).await;
    let mut caller = Caller::new(&participant, OutboundConfig::default()).await;
    let transport = Arc::clone(&caller.transport);
    // The batch goes on the connection that is kept; alone they need others.
    let _door = transport.door.write().await;
    for branch in 0..2 {
        let operation = CommitOnePhase;
        assert!(caller.give(Call { operation, timeout_ms: 300, ..caller.call(branch) }));
    }
    for answer in caller.answers(2).await {
        let text = text_of(answer);
        assert!(text.starts_with("not connected within the call's time"), "{text}");
    }
}

/// Whether a participant that says this to a batch of three is held back, after so many failures.
async fn held_back(failures: u64, said: &str) -> bool {
    let (participant, _) = saying(said).await;
    let breaker = BreakerConfig { failures, ..BreakerConfig::default() };
    let config = OutboundConfig { breaker, ..OutboundConfig::default() };
    let mut caller = Caller::new(&participant, config).await;
    caller.give_many(3);
    caller.answers(3).await;
    caller.transport.held_back(&caller.address).is_some()
}

#[tokio::test]
async fn a_batch_that_fails_as_a_whole_is_one_failure() {
    for said in ["503 Busy", "429 Later", "307 Elsewhere", "204 Done"] {
        let said = answer_of(said, "", "");
        assert!(!held_back(2, &said).await, "{said}");
        assert!(held_back(1, &said).await, "{said}");
    }
    // The answer breaks off: nothing more comes after the line.
    assert!(!held_back(2, &lines(&[&well(0)])).await);
}

#[tokio::test]
async fn a_line_that_fails_is_a_failure_of_its_own() {
    let busy = |number| format!(r#"{{"number":{number},"status":503}}"#);
    let said = lines(&[&busy(0), &busy(1), &busy(2)]);
    assert!(held_back(3, &said).await);
    assert!(!held_back(4, &said).await);
}

#[tokio::test]
async fn a_refusal_of_a_whole_batch_shows_that_somebody_is_there() {
    for said in ["409 Conflict", "401 Who", "404 Not Found"] {
        assert!(!held_back(1, &answer_of(said, "", "")).await, "{said}");
    }
}

/// A participant that answers each batch only when it is told to.
async fn waiting() -> (Participant, Seen, Arc<Notify>) {
    let go = Arc::new(Notify::new());
    let told = Arc::clone(&go);
    let (participant, seen) = offering(8, move |stream, body| {
        let told = Arc::clone(&told);
        async move {
            told.notified().await;
            answer_all(stream, body).await
        }
    })
    .await;
    (participant, seen, go)
}

async fn answer_all(mut stream: TcpStream, body: Value) -> Option<TcpStream> {
    let count = body["calls"].as_array()?.len();
    let all: Vec<String> = (0..count).map(well).collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    stream.write_all(lines(&all).as_bytes()).await.ok().map(|()| stream)
}

async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn until_a_line_has_come_one_batch_is_under_way_and_the_others_go_alone() {
    let (participant, seen, go) = waiting().await;
    let mut caller = Caller::of_new_offer(&participant, OutboundConfig::default()).await;
    caller.give_many(2);
    until(|| asked(&seen).len() == 1).await;
    caller.give_many(3);
    assert_eq!(caller.answers(3).await, vec![yes(); 3]);
    assert_eq!(asked(&seen), ["prepare prepare", "/prepare", "/prepare", "/prepare"]);
    go.notify_one();
    caller.answers(2).await;
    for _ in 0..2 {
        caller.give_many(2);
        until(|| asked(&seen).last().is_some_and(|last| last == "prepare prepare")).await;
    }
    until(|| asked(&seen).len() == 6).await;
}

#[tokio::test]
async fn calls_that_wait_when_batches_are_suspended_go_alone() {
    let (participant, seen, go) = waiting().await;
    let config = OutboundConfig { connections_per_participant_max: 1, ..OutboundConfig::default() };
    let mut caller = Caller::new(&participant, config).await;
    caller.give_many(2);
    until(|| asked(&seen).len() == 1).await;
    caller.give_many(3);
    until(|| caller.transport.pool.has_waiting()).await;
    caller.lane.suspend();
    go.notify_one();
    for _ in 0..5 {
        caller.next().await;
    }
    assert_eq!(asked(&seen), ["prepare prepare", "/prepare", "/prepare", "/prepare"]);
}

#[tokio::test]
async fn no_more_calls_are_under_way_than_may_be_and_the_others_wait() {
    let (participant, seen, go) = waiting().await;
    let config = OutboundConfig { calls_in_flight_max: 3, ..OutboundConfig::default() };
    let mut caller = Caller::new(&participant, config).await;
    caller.give_many(5);
    until(|| caller.transport.pool.has_waiting() && asked(&seen).len() == 1).await;
    let single = caller.transport.call(call_to(&caller.address, Operation::Commit)).await;
    assert_eq!(single, Answer::Acknowledged, "there are connections");
    go.notify_one();
    caller.answers(3).await;
    go.notify_one();
    caller.answers(2).await;
    assert!(!caller.transport.pool.has_waiting());
    assert_eq!(asked(&seen), ["prepare prepare prepare", "/commit", "prepare prepare"]);
}

/// Lets time pass where the clock is the runtime's own, which stands still while anything can run.
async fn virtual_ms(ms: u64) {
    let never = std::future::pending::<()>();
    assert!(tokio::time::timeout(Duration::from_millis(ms), never).await.is_err());
}

/// Each batch takes 20 ms, in which as many calls come as have room: they leave together, the first
/// after 20 ms and the last at once.
#[tokio::test(start_paused = true)]
async fn a_participant_that_answers_slowly_is_busy_though_each_batch_takes_all_that_wait() {
    let (participant, _) = offering(256, |stream, body| async move {
        virtual_ms(20).await;
        answer_all(stream, body).await
    })
    .await;
    for (queue_delay_target_ms, busy) in [(8, true), (80, false)] {
        assert_eq!(becomes_busy(&participant, queue_delay_target_ms).await, busy);
    }
}

async fn becomes_busy(participant: &Participant, queue_delay_target_ms: u64) -> bool {
    let config = OutboundConfig {
        calls_in_flight_max: 200,
        queue_delay_target_ms,
        ..OutboundConfig::default()
    };
    let caller = Caller::new(participant, config).await;
    let busy = async {
        caller.give_many(200);
        while !caller.transport.is_busy(&caller.address) {
            (0..10).for_each(|branch| {
                assert!(caller.give(Call { timeout_ms: 60_000, ..caller.call(branch) }));
            });
            virtual_ms(1).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(2), busy).await.is_ok()
}

#[tokio::test]
async fn a_call_whose_time_is_over_has_its_room_until_the_batch_ends() {
    let (participant, seen, go) = waiting().await;
    let config = OutboundConfig { calls_in_flight_max: 2, ..OutboundConfig::default() };
    let mut caller = Caller::new(&participant, config).await;
    for (branch, timeout_ms) in [(0, 60_000), (1, 60)] {
        assert!(caller.give(Call { timeout_ms, ..caller.call(branch) }));
    }
    assert_eq!(caller.next().await, (1, unknown("no answer within 60 ms")));
    assert!(caller.give(caller.call(2)));
    until(|| caller.transport.pool.has_waiting()).await;
    assert_eq!(asked(&seen), ["prepare prepare"], "the participant has it still");
    go.notify_one();
    assert_eq!(caller.next().await, (0, yes()));
    assert_eq!(caller.next().await, (2, yes()));
    assert_eq!(asked(&seen), ["prepare prepare", "/prepare"]);
}

#[tokio::test]
async fn a_call_whose_time_was_over_while_it_waited_does_not_leave() {
    let (participant, seen) = saying(lines(&[&well(0), &well(1)])).await;
    let mut caller = Caller::new(&participant, OutboundConfig::default()).await;
    for (branch, timeout_ms) in [(0, 60_000), (1, 0), (2, 60_000)] {
        assert!(caller.give(Call { timeout_ms, ..caller.call(branch) }));
    }
    let late = "of 64 connections to it, and of room for 1024 calls, none became free within 0 ms";
    assert_eq!(caller.answers(3).await, [yes(), unsent(late), yes()]);
    assert_eq!(asked(&seen), ["prepare prepare"]);
}
