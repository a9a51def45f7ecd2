//! Lists, filters, pages, and the timeline, over what is live and what has ended.

use std::collections::BTreeSet;

use unanimity::view::TimelineView;
use unanimity::{Cursor, Filter, TransactionManager, Wait};

use crate::fake::{Fake, Fault, Folder, PATIENCE, begin, ended, id, start};

/// 10 committed, 10 rolled back, 5 preparing, 5 committing, over three shards.
async fn thirty(folder: &Folder) -> TransactionManager {
    let fake = Fake::new();
    let mut config = folder.config();
    config.shards = 3;
    let manager = start(config, &fake);
    fake.close("slow prepare");
    fake.close("stuck commit");
    fake.fault("refuses prepare", Fault::No, 10);
    for n in 0..10 {
        begin(&manager, &format!("committed-{n}"), &["a", "b"], Wait::Completed).await;
        begin(&manager, &format!("refused-{n}"), &["refuses"], Wait::Completed).await;
        if n % 2 == 0 {
            begin(&manager, &format!("slow-{n}"), &["slow"], Wait::Accepted).await;
            begin(&manager, &format!("stuck-{n}"), &["stuck", "a"], Wait::Outcome).await;
        }
    }
    manager
}

async fn pages(manager: &TransactionManager, filter: &Filter, limit: usize) -> Vec<(u64, String)> {
    let (mut all, mut filter) = (Vec::new(), filter.clone());
    loop {
        let page = manager.list(filter.clone(), limit).await.unwrap();
        assert!(page.transactions.len() <= limit);
        let shown = page.transactions.iter();
        all.extend(shown.map(|(view, _)| (view.begun_at_ms, view.id.clone())));
        let Some(next) = page.next else { return all };
        assert_eq!(Cursor::parse(&next.to_string()), Some(next.clone()));
        filter.cursor = Some(next);
    }
}

#[tokio::test]
async fn pages_show_everything_once_latest_first() {
    let folder = Folder::new();
    let manager = thirty(&folder).await;
    for limit in [1, 7, 29, 30, 31] {
        let all = pages(&manager, &Filter::default(), limit).await;
        assert!(all.windows(2).all(|pair| pair[0] > pair[1]), "{all:?}");
        assert_eq!(all.len(), 30, "{limit}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_neither_repeat_nor_skip_what_moves_into_the_history_meanwhile() {
    let (fake, folder) = (Fake::new(), Folder::new());
    let manager = start(folder.config(), &fake);
    fake.close("slow prepare");
    let mut expected = BTreeSet::new();
    for n in 0..40 {
        let name = format!("T-{n}");
        begin(&manager, &name, &["slow"], Wait::Accepted).await;
        expected.insert(name);
    }
    let (mut shown, mut filter) = (Vec::new(), Filter::default());
    loop {
        let page = manager.list(filter.clone(), 6).await.unwrap();
        shown.extend(page.transactions.iter().map(|(view, _)| view.id.clone()));
        fake.open("slow prepare"); // After the first page all of them end.
        ended(&manager, &format!("T-{}", shown.len() % 40)).await;
        let Some(next) = page.next else { break };
        filter.cursor = Some(next);
    }
    assert_eq!(shown.len(), 40);
    assert_eq!(shown.into_iter().collect::<BTreeSet<_>>(), expected);
}

#[tokio::test]
async fn filters_limit_what_is_shown() {
    let folder = Folder::new();
    let manager = thirty(&folder).await;
    let check = async |filter: Filter, expected: usize| {
        for limit in [3, 100] {
            assert_eq!(pages(&manager, &filter, limit).await.len(), expected, "{filter:?}");
        }
    };
    let some = |word: &str| Some(word.to_owned());
    let none = Filter::default;
    check(Filter { stage: some("ended"), ..none() }, 20).await;
    check(Filter { stage: some("preparing"), ..none() }, 5).await;
    check(Filter { stage: some("committing"), ..none() }, 5).await;
    check(Filter { stage: some("executing"), ..none() }, 0).await;
    check(Filter { outcome: some("commit"), ..none() }, 15).await;
    check(Filter { outcome: some("rollback"), ..none() }, 10).await;
    check(Filter { participant: some("a"), ..none() }, 15).await;
    check(Filter { participant: some("slow"), ..none() }, 5).await;
    check(Filter { participant: some("nobody"), ..none() }, 0).await;
    let both = Filter { participant: some("a"), stage: some("ended"), ..none() };
    check(both, 10).await;

    let all = pages(&manager, &none(), 100).await;
    let middle = all[15].0;
    let later = all.iter().filter(|(at, _)| *at >= middle).count();
    check(Filter { begun_from_ms: Some(middle), ..none() }, later).await;
    check(Filter { begun_until_ms: Some(middle), ..none() }, 30 - later).await;
}

fn told(timeline: &TimelineView) -> Vec<String> {
    let word = |word: &Option<String>| word.clone().unwrap_or_default();
    let events = timeline.events.iter();
    let line = |event: &unanimity::view::EventView| {
        format!("{} {} {}", event.event, word(&event.branch), word(&event.operation))
    };
    events.map(|event| line(event).trim().to_owned()).collect()
}

#[tokio::test]
async fn the_timeline_is_complete_and_in_order() {
    let (fake, folder) = (Fake::new(), Folder::new());
    let manager = start(folder.config(), &fake);
    fake.fault("a prepare", Fault::Lost, 1);
    fake.fault("a commit", Fault::Lost, 3);
    begin(&manager, "T", &["a"], Wait::Completed).await;
    let expected = [
        "begun",
        "called a prepare",
        "failed a prepare",
        "called a prepare",
        "yes a prepare",
        "decided",
        "called a commit",
        "failed a commit",
        "called a commit",
        "acknowledged a commit",
        "ended",
    ];
    let timeline = manager.timeline(&id("T")).await.unwrap().unwrap();
    assert_eq!(told(&timeline), expected);
    assert!(timeline.events.windows(2).all(|pair| pair[0].at_ms <= pair[1].at_ms));
    let failed = &timeline.events[7];
    assert_eq!((failed.detail.as_deref(), failed.times), (Some("lost"), Some(3)));
    assert_eq!(timeline.events[5].detail.as_deref(), Some("commit"));
    manager.stop(PATIENCE).await;

    let manager = start(folder.config(), &fake);
    assert_eq!(manager.timeline(&id("T")).await.unwrap().unwrap(), timeline);
    let filter = Filter { with_timeline: true, ..Filter::default() };
    let page = manager.list(filter, 10).await.unwrap();
    assert_eq!(page.transactions[0].1.as_ref(), Some(&timeline));
    assert_eq!(manager.timeline(&id("nobody")).await.unwrap(), None);
}

/// A failure that is folded bears the time of the last one; what another branch did in between
/// comes before it.
#[tokio::test]
async fn the_timeline_is_in_the_order_of_time_where_failures_are_folded() {
    let (fake, folder) = (Fake::new(), Folder::new());
    let manager = start(folder.config(), &fake);
    fake.close("b commit");
    fake.fault("a commit", Fault::Lost, 8);
    begin(&manager, "T", &["a", "b"], Wait::Outcome).await;
    fake.seen("T a commit", 4).await;
    fake.open("b commit");
    ended(&manager, "T").await;
    let timeline = manager.timeline(&id("T")).await.unwrap().unwrap();
    let in_order = timeline.events.windows(2).all(|pair| pair[0].at_ms <= pair[1].at_ms);
    assert!(in_order, "{timeline:#?}");
    assert_eq!(timeline.events.first().unwrap().event, "begun");
    assert_eq!(timeline.events.last().unwrap().event, "ended");
}

#[tokio::test]
async fn a_recovery_stands_in_the_timeline() {
    let (fake, folder) = (Fake::new(), Folder::new());
    let manager = start(folder.config(), &fake);
    fake.close("a prepare");
    begin(&manager, "T", &["a"], Wait::Accepted).await;
    manager.stop(std::time::Duration::ZERO).await;
    let manager = start(folder.config(), &Fake::new());
    ended(&manager, "T").await;
    let timeline = manager.timeline(&id("T")).await.unwrap().unwrap();
    let expected =
        ["begun", "recovered", "decided", "called a rollback", "acknowledged a rollback", "ended"];
    assert_eq!(told(&timeline), expected);
}
