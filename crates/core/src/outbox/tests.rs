//! The outbox as its driver sees it: what presses, and what is written anew.

use super::stragglers::RECORDS_PER_LIVE;
use super::*;
use crate::{
    Answer, BranchPlan, Coordinator, CoordinatorConfig, Doing, Event, Kind, Operation, Options,
    Plan, SetAside,
};

fn begin(id: &str, branches: &[&str]) -> Event {
    let branches =
        branches.iter().map(|name| BranchPlan::new(*name, "http://127.0.0.1:1/", Kind::TwoPhase));
    let plan = Plan { open: false, branches: branches.collect(), options: Options::default() };
    Event::Begin {
        transaction: TransactionId::new(id).unwrap(),
        fingerprint: 7,
        plan: Box::new(plan),
    }
}

const BOUNDS: OutboxBounds =
    OutboxBounds { truncate_batches_min: 1, truncate_bytes_min: u64::MAX, straggler_batches: 4 };

fn outbox(bounds: OutboxBounds) -> Outbox<()> {
    Outbox::new((1, 1), (Homes::default(), 0), bounds, Mutations::default())
}

/// What gathers is pressing as soon as a call, an answer or a notice waits for it, and an end alone
/// is not; what is pressing is so no more when it is being appended.
#[test]
fn an_end_alone_does_not_press() {
    let mut coordinator = Coordinator::new(CoordinatorConfig::default());
    let mut outbox = outbox(BOUNDS);
    let answer = |branch, operation, answer| {
        let transaction = TransactionId::new("t").unwrap();
        Event::Answer { transaction, branch, operation, attempt: 1, answer }
    };
    let prepared = |branch| answer(branch, Operation::Prepare, Answer::Yes(None));
    let committed = |branch| answer(branch, Operation::Commit, Answer::Acknowledged);
    let append = |outbox: &mut Outbox<()>| {
        let position = outbox.next_append().unwrap().position;
        assert!(!outbox.is_pressing());
        outbox.receipt(Durable::up_to(position));
        while outbox.release().is_some() {}
    };
    assert!(outbox.take(coordinator.handle(1, begin("t", &["a", "b"]))).is_none());
    assert!(outbox.is_pressing(), "prepares wait for the beginning");
    append(&mut outbox);
    for event in [prepared(0), prepared(1)] {
        let out = outbox.take(coordinator.handle(1, event));
        assert!(out.is_none(), "{out:?}");
    }
    assert!(outbox.is_pressing(), "commits wait for the decision");
    append(&mut outbox);
    for event in [committed(0), committed(1)] {
        let out = outbox.take(coordinator.handle(1, event));
        assert!(out.is_none(), "{out:?}");
    }
    assert!(outbox.gathers() && !outbox.is_pressing(), "nobody waits for the end");
    let mut lingering = outbox.clone();
    assert!(lingering.lingers(10, 2) && lingering.lingers(11, 2));
    assert_eq!(lingering.lingers_until(), Some(12));
    assert!(!lingering.clone().lingers(11, 0), "the driver is in a hurry");
    assert!(!lingering.clone().lingers(12, 2), "it has waited for long enough");
    assert!(lingering.reply(()).is_none());
    assert!(!lingering.lingers(11, 2));
    let mut asked = outbox.clone();
    assert!(asked.reply(()).is_none());
    assert!(asked.is_pressing(), "the answer rests on the end");
    append(&mut asked);
    assert!(!asked.is_pressing(), "nothing gathers");
    assert!(outbox.take(coordinator.handle(1, begin("u", &["a"]))).is_none());
    assert!(outbox.is_pressing(), "a beginning has come to it");
    append(&mut outbox);
}

/// A journal that keeps few batches, and many transactions that stay: when nothing else
/// happens, writing them anew comes to an end.
#[test]
fn many_that_stay_are_written_anew_a_few_times_and_not_for_ever() {
    let mut coordinator = Coordinator::new(CoordinatorConfig::default());
    let mut outbox = outbox(BOUNDS);
    for number in 0..20 {
        outbox.take(coordinator.handle(1, begin(&format!("t{number}"), &["a", "b"])));
        let batch = outbox.next_append().unwrap();
        outbox.receipt(Durable::up_to(batch.position));
    }
    let fill = |outbox: &mut Outbox<()>, coordinator: &mut Coordinator| {
        for _ in 0..20 * RECORDS_PER_LIVE {
            outbox.take(coordinator.rewrite(1, &TransactionId::new("t4").unwrap()).unwrap());
            let batch = outbox.next_append().unwrap();
            outbox.receipt(Durable::up_to(batch.position));
        }
    };
    assert_eq!(outbox.stragglers(&coordinator), [], "most of the journal is needed");
    fill(&mut outbox, &mut coordinator);
    let mut batches = 20 * RECORDS_PER_LIVE;
    loop {
        outbox.write_stragglers(1, &mut coordinator);
        let Some(batch) = outbox.next_append() else { break };
        outbox.receipt(Durable::up_to(batch.position));
        batches += 1;
        assert!(batches < 20 * RECORDS_PER_LIVE + 20, "it never ends");
    }
    let kept = outbox.forgettable().unwrap();
    assert!(20 + batches - kept < 4, "{batches} batches, kept from {kept}");
    let (doing, message) = (Doing::WritingAnew, "oh".into());
    let why = SetAside { doing, panics: 3, message, at: 0, read: true };
    coordinator.set_aside(&TransactionId::new("t19").unwrap(), 0, why);
    fill(&mut outbox, &mut coordinator);
    assert_eq!(outbox.stragglers(&coordinator), [], "nothing could be forgotten by it");
}

/// What can be forgotten is asked for when it is many batches, or few that are large.
#[test]
fn large_batches_are_forgotten_sooner() {
    let forgotten = |batches_min, bytes_min| {
        let mut coordinator = Coordinator::new(CoordinatorConfig::default());
        let bounds = OutboxBounds {
            truncate_batches_min: batches_min,
            truncate_bytes_min: bytes_min,
            ..BOUNDS
        };
        let mut outbox = outbox(bounds);
        let mut asked = Vec::new();
        for number in 0..64 {
            let id = format!("t{number}");
            outbox.take(coordinator.handle(1, begin(&id, &["a", "b"])));
            let batch = outbox.next_append().unwrap();
            outbox.receipt(Durable::up_to(batch.position));
            let home = outbox.ended(&TransactionId::new(&id).unwrap()).unwrap();
            outbox.archived(home, 1);
            asked.extend(outbox.forgettable().map(|before| before - 1));
        }
        asked
    };
    assert_eq!(forgotten(u64::MAX, u64::MAX), []);
    assert_eq!(forgotten(32, u64::MAX), [32, 64]);
    let asked = forgotten(32, 1_000);
    assert!((4..16).contains(&asked.len()), "a thousand bytes are a dozen batches: {asked:?}");
    assert!(asked.is_sorted_by(|one, next| one < next), "{asked:?}");
}
