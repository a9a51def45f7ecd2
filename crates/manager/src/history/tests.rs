//! Whatever is written, in whatever batches, rows and bundles: it is found, listed and handed over
//! as if each had a row. The transactions are made by the core itself, at times and with ids that
//! follow from a seed; what is expected is a sorted list.

use std::sync::mpsc;
use std::sync::{Arc, atomic::AtomicU64, atomic::Ordering};

use tokio::sync::mpsc::unbounded_channel;
use unanimity_core::{
    Answer, BranchPlan, Coordinator, CoordinatorConfig, Durable, Effect, Event, Kind, Operation,
    Options, PackedTransactions, Plan, Transaction, TransactionId, splitmix64,
};

use super::alike::{About, Alike};
use super::*;
use crate::blame::Blame;
use crate::view::{Moment, course};

/// Bits from a seed, one after the other.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = splitmix64(self.0);
        self.0 % limit
    }
}

/// Runs a transaction of two branches to its end. `no`: the second refuses.
fn run(id: &str, begun_at: u64, fingerprint: u128, participant: &str, no: bool) -> Transaction {
    run_at(id, begun_at, fingerprint, participant, no, (true, &mut |now| now + 1))
}

/// The same, with results or without, and the next moment after each.
fn run_at(
    id: &str,
    begun_at: u64,
    fingerprint: u128,
    participant: &str,
    no: bool,
    (results, next): (bool, &mut dyn FnMut(u64) -> u64),
) -> Transaction {
    let mut coordinator = Coordinator::new(CoordinatorConfig::default());
    let branch = |name: &str| BranchPlan::new(name, participant, Kind::TwoPhase);
    let (branches, options) = (vec![branch("a"), branch("b")], Options::default());
    let plan = Plan { open: false, branches, options };
    let transaction = TransactionId::new(id).unwrap();
    let mut now = begun_at;
    let begin = Event::Begin { transaction, fingerprint, plan: Box::new(plan) };
    let mut steps = vec![coordinator.handle(now, begin)];
    while let Some(step) = steps.pop() {
        for effect in step.seal(1).1.release(Durable::up_to(1)) {
            match effect {
                Effect::Call(call) => {
                    now = next(now);
                    let answer = match call.operation {
                        Operation::Prepare if no && call.branch == 1 => Answer::No("sold".into()),
                        Operation::Prepare => {
                            Answer::Yes(results.then(|| format!("{begun_at}").into()))
                        }
                        _ => Answer::Acknowledged, // Phase two.
                    };
                    let (transaction, branch) = (call.transaction, call.branch);
                    let (operation, attempt) = (call.operation, call.attempt);
                    let event = Event::Answer { transaction, branch, operation, attempt, answer };
                    steps.push(coordinator.handle(now, event));
                }
                Effect::Ended(transaction) => return (*transaction).clone(),
                _ => {} // Nobody waits here.
            }
        }
    }
    panic!("it must end")
}

const START_MS: u64 = 1_700_000_000_000;

/// An id as a coordinator makes them, of that moment.
fn made(at_ms: u64, random: &mut Random) -> String {
    let (high, low) = (random.below(1 << 12), random.below(1 << 60));
    format!("{at_ms:012x}7{high:03x}8{low:015x}")
}

fn one(number: u64, random: &mut Random) -> Transaction {
    // Most come close together; some began long before they ended.
    let at = START_MS + number / 3 + random.below(7) - random.below(5) * random.below(2) * 400;
    let participant = ["p", "q"][usize::from(random.below(5) == 0)];
    let no = random.below(6) == 0;
    if random.below(8) == 0 {
        return run(&format!("chosen-{number}"), at, 7, participant, no);
    }
    let made_at = at - random.below(3) * random.below(90);
    let (id, results, fixed) = (made(made_at, random), random.below(3) == 0, random.below(2));
    // Often several things happen in one millisecond.
    run_at(&id, at, 0, participant, no, (results, &mut |now| now + fixed * random.below(3)))
}

fn packed<'a>(transactions: impl IntoIterator<Item = &'a Transaction>) -> Arc<PackedTransactions> {
    let mut packed = PackedTransactions::default();
    transactions.into_iter().for_each(|one| {
        packed.push(one);
    });
    Arc::new(packed)
}

/// A history, and what was written to it.
struct Stage {
    reader: HistoryReader,
    archive: Option<mpsc::Sender<ArchiveRequest>>,
    writer: std::thread::JoinHandle<()>,
}

impl Stage {
    fn new(started_at_ms: u64) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let place = HistoryPlace::Memory(format!("bundles-{number}"));
        let (reader, connection) = open_history(place).unwrap();
        let (archive, requests) = mpsc::channel();
        let writer = HistoryWriter::new(connection, started_at_ms, Blame::default());
        let writer = std::thread::spawn(move || writer.run(&requests, Duration::ZERO));
        Self { reader, archive: Some(archive), writer }
    }

    /// Writes these together, and waits until they are there.
    fn write(&self, transactions: &[Transaction]) {
        let (sender, mut written) = unbounded_channel();
        let transactions = packed(transactions);
        let request = ArchiveRequest { up_to: None, transactions, done: ArchiveReply::new(sender) };
        self.archive.as_ref().unwrap().send(request).unwrap();
        written.blocking_recv().unwrap().unwrap();
    }

    fn rows(&self) -> [i64; 2] {
        ["SELECT count(*) FROM transactions", "SELECT count(*) FROM bundles"]
            .map(|sql| self.reader.with(|c| c.query_row(sql, [], |row| row.get(0))).unwrap())
    }

    /// Everything can be had in every way.
    fn check(&self, written: &[Transaction]) {
        let mut expected: Vec<_> =
            written.iter().map(|one| (TransactionView::of(one), TimelineView::of(one))).collect();
        expected.sort_by(|a, b| (a.0.begun_at_ms, &a.0.id).cmp(&(b.0.begun_at_ms, &b.0.id)));
        assert_eq!(self.reader.count().unwrap(), expected.len() as u64);
        let mut each = Vec::new();
        let take = |ended: Ended| {
            each.push((ended.view, ended.timeline.unwrap()));
            ControlFlow::Continue(())
        };
        self.reader.each(take).unwrap();
        assert_eq!(each, expected);
        for (view, timeline) in &expected {
            let found = self.reader.get(&view.id, true).unwrap().unwrap();
            assert_eq!((&found.view, found.timeline.as_ref()), (view, Some(timeline)));
        }
        assert!(self.reader.get("unknown", false).unwrap().is_none());
        let unknown = made(START_MS + 5, &mut Random(1));
        assert!(self.reader.get(&unknown, false).unwrap().is_none());
        expected.reverse();
        self.check_lists(expected.into_iter().map(|(view, _)| view).collect());
        let sql = "SELECT count(*) FROM history WHERE decided_at_ms >= begun_at_ms
            AND ended_at_ms >= decided_at_ms
            AND json_array_length(document, '$.branches') = 2";
        let seen: i64 = self.reader.with(|c| c.query_row(sql, [], |row| row.get(0))).unwrap();
        assert_eq!(seen, written.len() as i64, "in the view for people");
    }

    /// Page by page, for each filter.
    fn check_lists(&self, latest_first: Vec<TransactionView>) {
        let of = |participant: &str| Filter {
            participant: Some(participant.to_owned()),
            ..Filter::default()
        };
        let filters = [
            Filter::default(),
            of("p"),
            of("q"),
            Filter { outcome: Some("rollback".to_owned()), ..Filter::default() },
            Filter {
                begun_from_ms: Some(START_MS + 40),
                begun_until_ms: Some(START_MS + 77),
                ..Filter::default()
            },
        ];
        for filter in filters {
            let passes = |view: &&TransactionView| {
                let begun = view.begun_at_ms;
                filter.participant.as_ref().is_none_or(|p| view.branches[0].participant == *p)
                    && filter.outcome.is_none() | (filter.outcome == view.outcome)
                    && filter.begun_from_ms.is_none_or(|from| begun >= from)
                    && filter.begun_until_ms.is_none_or(|until| begun < until)
            };
            let expected: Vec<&str> =
                latest_first.iter().filter(passes).map(|view| &*view.id).collect();
            let (mut found, mut next) = (Vec::new(), filter.clone());
            loop {
                let page = self.reader.list(&next, 17).unwrap();
                let Some(last) = page.last() else { break };
                next.cursor =
                    Some(Cursor { begun_at_ms: last.view.begun_at_ms, id: last.view.id.clone() });
                found.extend(page.into_iter().map(|ended| ended.view.id));
            }
            assert_eq!(found, expected, "{filter:?}");
        }
    }

    fn end(mut self) {
        drop(self.archive.take());
        self.writer.join().unwrap();
    }
}

#[test]
fn what_is_bundled_is_found_and_listed_as_if_each_had_a_row() {
    for seed in 0..6 {
        let mut random = Random(seed);
        let stage = Stage::new(0);
        let mut written = Vec::new();
        while written.len() < 300 {
            let first = written.len() as u64;
            let batch = 1 + random.below(90);
            let batch: Vec<_> =
                (first..first + batch).map(|number| one(number, &mut random)).collect();
            stage.write(&batch);
            written.extend(batch);
        }
        stage.check(&written);
        let [rows, bundles] = stage.rows();
        let bundled = written.len() as i64 - rows;
        assert!(bundles > 1 && bundled > 2 * bundles, "{bundled} in {bundles} bundles");
        stage.end();
    }
}

#[test]
fn what_a_coordinator_before_has_written_is_written_again_and_there_once() {
    let mut random = Random(9);
    let started_at_ms = START_MS + 1_000;
    let stage = Stage::new(started_at_ms);
    let written: Vec<_> = (0..60).map(|number| one(number, &mut random)).collect();
    stage.write(&written[..40]);
    stage.write(&written[20..]);
    stage.write(&written[30..31]);
    stage.check(&written);
    stage.end();
}

#[test]
fn a_bundle_that_cannot_be_read_is_told_and_not_passed_over() {
    let mut random = Random(3);
    let stage = Stage::new(0);
    let written: Vec<_> = (0..60).map(|number| one(number, &mut random)).collect();
    stage.write(&written[..30]);
    stage.write(&written[30..]);
    let HistoryPlace::Memory(name) = &stage.reader.place else { panic!("in memory") };
    let other = HistoryPlace::Memory(name.clone()).connect().unwrap();
    other.execute("UPDATE bundles SET members = '[[1]]' WHERE number = 1", []).unwrap();
    let list = stage.reader.list(&Filter::default(), 100).map(|found| found.len());
    assert!(matches!(list, Err(HistoryError::Document { .. })), "{list:?}");
    let each = stage.reader.each(|_| ControlFlow::Continue(()));
    assert!(matches!(each, Err(HistoryError::Document { .. })), "{each:?}");
    stage.end();
}

/// How SQLite goes about a query, in its words.
fn plan_of(connection: &Connection, sql: &str) -> String {
    let mut query = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
    let mut lines = query.raw_query(); // Nothing is bound: only the plan is wanted.
    let mut plan = String::new();
    while let Some(line) = lines.next().unwrap() {
        plan += &line.get::<_, String>(3).unwrap();
        plan += "\n";
    }
    plan
}

#[test]
fn no_list_sorts_everything_or_looks_through_everything() {
    let stage = Stage::new(0);
    let check = |sql: &str, index: &str| {
        let plan = stage.reader.with(|connection| Ok(plan_of(connection, sql))).unwrap();
        let sorts = plan.lines().any(|line| line == "USE TEMP B-TREE FOR ORDER BY");
        assert!(plan.contains(index) && !sorts && !plan.contains("SCAN t"), "{sql}\n{plan}");
    };
    check(&rows_sql("transactions AS t", "?6 IS ?6"), "transactions_by_begin");
    check(&rows_sql(OF_PARTICIPANT.0, OF_PARTICIPANT.1), "transactions_by_begin");
    check(&bundles::list_sql(), "bundles_by_begin");
    check(&bundles::in_order(), "bundles_by_begin");
    stage.end();
}

#[test]
fn what_is_long_has_a_row_and_a_bundle_ends_in_time() {
    let stage = Stage::new(0);
    let mut random = Random(5);
    let long = |bytes: usize, random: &mut Random| {
        let mut transaction = run(&made(START_MS, random), START_MS, 0, "p", false);
        transaction.branches[0].result = Some(format!("\"{}\"", "x".repeat(bytes)).into());
        transaction
    };
    let written: Vec<_> = [5_000, 5_000].map(|bytes| long(bytes, &mut random)).to_vec();
    stage.write(&written[..1]);
    stage.write(&written[1..]);
    assert_eq!(stage.rows(), [2, 0], "too long for a bundle");
    let medium: Vec<_> = (0..40).map(|_| long(3_000, &mut random)).collect();
    stage.write(&medium);
    assert_eq!(stage.rows(), [2, 2], "40 of 3 KB are more than one bundle takes");
    stage.check(&[written, medium].concat());
    stage.end();
}

#[test]
fn what_waits_is_taken_together_up_to_a_bound() {
    let ended = run("t", START_MS, 7, "p", false);
    let (archive, requests) = mpsc::channel();
    let (sender, _answers) = unbounded_channel();
    for count in [1, 4_000, 200, 1] {
        let transactions = packed(std::iter::repeat_n(&ended, count));
        let done = ArchiveReply::new(sender.clone());
        archive.send(ArchiveRequest { up_to: None, transactions, done }).unwrap();
    }
    let taken = || {
        let batch = writing::gather(requests.recv().unwrap(), &requests, Duration::ZERO);
        batch.iter().map(|request| request.transactions.len()).collect::<Vec<_>>()
    };
    assert_eq!(taken(), [1, 4_000, 200]);
    assert_eq!(taken(), [1]);
}

/// Ones of one kind whose moments are in some order of time; `back`: and clocks are set back.
fn of_one_kind(count: u64, back: u64, random: &mut Random) -> Vec<Transaction> {
    let one = |number| {
        let (at, id) = (START_MS + number, made(START_MS + number, random));
        let next = &mut |now: u64| (now + random.below(3)).saturating_sub(random.below(2) * back);
        run_at(&id, at, 0, "p", false, (false, next))
    };
    (0..count).map(one).collect()
}

#[test]
fn one_that_is_like_another_is_found_with_its_times_if_their_order_is_the_same() {
    let (mut random, mut found, mut other_orders) = (Random(11), 0, 0);
    let order = |ended: &Transaction| -> Vec<String> {
        let moments = course(ended).into_iter().map(|moment| match moment {
            Moment::Seen(seen) => format!("{:?} {:?}", seen.branch, seen.what),
            Moment::Decided { .. } => "decided".to_owned(),
        });
        moments.collect()
    };
    let mut all = of_one_kind(120, 2, &mut random);
    for one in &mut all[..30] {
        one.decision.as_mut().unwrap().at = one.begun_at; // Among what was seen, somewhere else.
    }
    for first in &all {
        let mut alike = Alike::default();
        let decision = first.decision.as_ref().unwrap();
        let about = About { course: 3, outcome: decision.outcome, reason: decision.reason.code() };
        alike.learn(&packed([first]).at(0), first, &course(first), about);
        for ended in &all {
            if let Some(like) = alike.find(&packed([ended]).at(0)) {
                found += 1;
                assert_eq!(order(ended), order(first));
                let times: Vec<u64> = course(ended).iter().map(Moment::at).collect();
                let decided_at = ended.decision.as_ref().unwrap().at;
                let at = (ended.begun_at, decided_at, ended.ended_at.unwrap());
                assert_eq!((like.begun_at, like.decided_at, like.ended_at), at);
                assert_eq!((like.moments, like.about.course), (&*times, 3));
            } else if order(ended) != order(first) {
                other_orders += 1;
            }
        }
    }
    assert!(found > 200 && other_orders > 200, "{found} found, {other_orders} in another order");
}

#[test]
fn what_was_written_like_others_is_read_as_it_was() {
    for seed in 0..4 {
        let mut random = Random(seed);
        let stage = Stage::new(0);
        let ordered = of_one_kind(150, 0, &mut random);
        stage.write(&ordered[..1]); // Seen once,
        stage.write(&ordered[1..2]); // known from now on,
        stage.write(&ordered[2..]);
        stage.check(&ordered);
        let others = of_one_kind(150, 2, &mut random);
        stage.write(&others);
        for one in &others {
            let found = stage.reader.get(one.id.as_str(), true).unwrap().unwrap();
            let expected = (TransactionView::of(one), TimelineView::of(one));
            assert_eq!((found.view, found.timeline.unwrap()), expected);
        }
        stage.end();
    }
}
