//! The battery against services that are right and against one without a guard: which rules fail,
//! and which hold, is exactly known.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use http::{HeaderMap, StatusCode};
use unanimity_sdk::axum::Router;
use unanimity_sdk::axum::extract::{Path, State};
use unanimity_sdk::axum::routing::{get, post};
use unanimity_sdk::battery::{self, Options, Restart, Verdict};
use unanimity_sdk::rusqlite::Connection;
use unanimity_sdk::{
    BranchContext, MemoryParticipant, MemoryService, ServiceResult, SqliteParticipant,
    SqliteService, Vote, router,
};

use crate::house::House;
use crate::support::{Diary, Folder, Plain};

/// What is on the disk of a service without a guard, and in its memory.
#[derive(Default)]
struct Naive {
    free: i64,
    sold: i64,
    held: BTreeMap<String, i64>,
}

/// Does as it is told, as often as it is told, and always says that all is well.
async fn naive(
    State(naive): State<Arc<Mutex<Naive>>>,
    Path(operation): Path<String>,
    headers: HeaderMap,
) -> StatusCode {
    let transaction = headers["unanimity-transaction"].to_str().unwrap().to_owned();
    let mut naive = naive.lock().unwrap();
    match operation.as_str() {
        "prepare" => {
            naive.free -= 3;
            naive.held.insert(transaction, 3);
        }
        "execute" => {
            naive.free -= 3;
            naive.sold += 3;
        }
        "commit" => naive.sold += naive.held.remove(&transaction).unwrap_or(0),
        "rollback" => naive.free += naive.held.remove(&transaction).unwrap_or(0),
        _ => {
            naive.free += 3;
            naive.sold -= 3;
        }
    }
    StatusCode::OK
}

async fn naive_house() -> House {
    let shop: Arc<Mutex<Naive>> = Arc::default();
    House::open(move || {
        // What is held is in memory only.
        shop.lock().unwrap().held.clear();
        let shown = async |State(shop): State<Arc<Mutex<Naive>>>| {
            let shop = shop.lock().unwrap();
            format!(r#"{{"free": {}, "sold": {}}}"#, shop.free, shop.sold)
        };
        Router::new()
            .route("/stock", get(shown))
            .route("/{operation}", post(naive))
            .with_state(Arc::clone(&shop))
    })
    .await
}

#[tokio::test]
async fn a_service_without_a_guard_fails_exactly_these_rules() {
    let house = naive_house().await;
    let report = battery::play(&house.url(""), "{}", &house.options(false)).await;
    assert_eq!(
        report.rules(Verdict::Holds),
        [
            "a prepare votes yes, and a rollback is acknowledged",
            "a repeated commit is acknowledged and has no second effect",
            "a repeated rollback is acknowledged and leaves nothing behind",
            "a rollback before any prepare is acknowledged",
            "commits that arrive at once are all acknowledged, and commit once",
        ],
        "{report}"
    );
    assert_eq!(
        report.rules(Verdict::Fails),
        [
            "a repeated prepare votes as the first did, and prepares once",
            "a prepare after the rollback is refused",
            "a commit without a prepare is not acknowledged",
            "a commit after the rollback is not acknowledged",
            "a rollback after the commit is not acknowledged",
            "prepares that arrive at once all vote alike, and prepare once",
            "an answer that is lost is given again",
            "a rollback whose answer is lost is acknowledged again and undoes everything",
            "a restart between prepare and commit: the commit is acknowledged, and commits once",
            "a restart between prepare and rollback: the rollback is acknowledged, and undoes it",
        ],
        "{report}"
    );
    let late =
        report.findings.iter().find(|finding| finding.rule.contains("after the rollback is"));
    let (late, shown) = (late.unwrap(), report.to_string());
    let asked: Vec<_> = late.exchanges.iter().map(|one| (&*one.operation, one.status)).collect();
    assert_eq!(asked, [("rollback", 200), ("prepare", 200)]);
    assert!(shown.contains("prepare answered 200: ; that means Yes, and must mean one of [No]"));
    assert!(shown.contains(&format!("{}", late.exchanges[1])), "{shown}");
}

#[tokio::test]
async fn a_service_without_a_guard_fails_the_rules_of_a_saga_too() {
    let house = naive_house().await;
    let report = battery::play(&house.url(""), "{}", &house.options(true)).await;
    let holds = ["an execute succeeds, and a compensate is acknowledged"];
    assert_eq!(report.rules(Verdict::Holds), holds, "{report}");
    assert_eq!(report.rules(Verdict::Fails).len(), 8, "{report}");
}

/// A shop on SQLite that leaves the guard to the SDK.
struct Shop;

const COUNT: &str = "CREATE TABLE IF NOT EXISTS count (name TEXT PRIMARY KEY, n INTEGER NOT NULL);
    INSERT OR IGNORE INTO count VALUES ('free', 1000), ('held', 0), ('sold', 0);";

fn shift(db: &Connection, from: &str, to: &str) -> ServiceResult<()> {
    for (name, n) in [(from, -3), (to, 3)] {
        db.execute("UPDATE count SET n = n + ?1 WHERE name = ?2", (n, name))?;
    }
    Ok(())
}

impl SqliteService for Shop {
    fn migrate(&self, db: &Connection) -> ServiceResult<()> {
        Ok(db.execute_batch(COUNT)?)
    }

    fn prepare(&self, db: &Connection, _: &BranchContext, _: &[u8]) -> ServiceResult<Vote> {
        shift(db, "free", "held").map(|()| Vote::Yes)
    }

    fn commit(&self, db: &Connection, _: &BranchContext, _: &[u8]) -> ServiceResult<()> {
        shift(db, "held", "sold")
    }

    fn rollback(&self, db: &Connection, _: &BranchContext, _: &[u8]) -> ServiceResult<()> {
        shift(db, "held", "free")
    }

    fn execute(&self, db: &Connection, _: &BranchContext, _: &[u8]) -> ServiceResult<Vote> {
        shift(db, "free", "sold").map(|()| Vote::Yes)
    }

    fn compensate(&self, db: &Connection, _: &BranchContext, _: &[u8]) -> ServiceResult<()> {
        shift(db, "sold", "free")
    }
}

async fn counts(State(shop): State<Arc<SqliteParticipant>>) -> String {
    let sql = "SELECT json_group_object(name, n) FROM count";
    shop.read(move |db| db.query_row(sql, [], |row| row.get(0))).await.unwrap()
}

#[tokio::test]
async fn the_sdks_participant_stands_every_rule() {
    let folder = Folder::new();
    let file = folder.file();
    let house = House::open(move || {
        let shop = Arc::new(SqliteParticipant::open(&file, Shop).unwrap());
        let stock = Router::new().route("/stock", get(counts)).with_state(Arc::clone(&shop));
        stock.merge(router(shop))
    })
    .await;
    for compensable in [false, true] {
        let report = battery::play(&house.url(""), "{}", &house.options(compensable)).await;
        report.assert_all_hold();
        assert!(report.rules(Verdict::NotPlayed).is_empty(), "{report}");
    }
}

#[tokio::test]
async fn a_guard_in_memory_does_not_stand_a_restart() {
    let house = House::open(|| router(Arc::new(MemoryParticipant::new(Plain)))).await;
    let options = Options { observe: None, ..house.options(false) };
    let report = battery::play(&house.url(""), "{}", &options).await;
    assert_eq!(
        report.rules(Verdict::Fails),
        ["a restart between prepare and commit: the commit is acknowledged, and commits once"],
        "{report}"
    );
    let without = Options { restart: None, ..options };
    let report = battery::play(&house.url(""), "{}", &without).await;
    report.assert_all_hold();
    let restarts = report.rules(Verdict::NotPlayed);
    assert!(restarts.len() == 2 && restarts.iter().all(|rule| rule.contains("restart")));
    assert!(report.to_string().contains("--restart COMMAND"), "{report}");
}

#[tokio::test]
async fn read_only_branches_stand_every_rule() {
    let folder = Folder::new();
    let file = folder.file();
    let house =
        House::open(move || router(Arc::new(SqliteParticipant::open(&file, Diary).unwrap()))).await;
    let options = Options { observe: None, ..house.options(false) };
    battery::play(&house.url(""), "read_only", &options).await.assert_all_hold();
}

#[tokio::test]
async fn a_restart_that_goes_wrong_is_told() {
    let house = naive_house().await;
    let fails = Restart::new(|| async { Err("no such unit".to_owned()) });
    let options = Options { restart: Some(fails), ..house.options(false) };
    let report = battery::play(&house.url(""), "{}", &options).await.to_string();
    assert!(report.contains("the service cannot be restarted: no such unit"), "{report}");
    // It is stopped, and nothing starts it.
    let gone = Arc::new(AtomicBool::new(false));
    let (stopping, stopped) = (house.clone(), Arc::clone(&gone));
    let stops = Restart::new(move || {
        let (house, gone) = (stopping.clone(), Arc::clone(&stopped));
        async move {
            let running = house.running.lock().unwrap().take();
            if let Some((stop, task)) = running {
                drop(stop);
                task.await.unwrap();
            }
            gone.store(true, Ordering::SeqCst);
            Ok(())
        }
    });
    let options = Options {
        restart: Some(stops),
        restart_timeout: std::time::Duration::from_millis(50),
        ..house.options(false)
    };
    let report = battery::play(&house.url(""), "{}", &options).await.to_string();
    assert!(gone.load(Ordering::SeqCst));
    assert!(report.contains("does not answer 50 ms after its restart began"), "{report}");
}

/// A service that says no to everything shows where a battery without a good payload stands.
#[tokio::test]
#[should_panic(expected = "prepare answered 409")]
async fn a_report_that_fails_ends_a_test() {
    struct Refuses;
    impl MemoryService for Refuses {
        fn prepare(&self, _: &BranchContext, _: &[u8]) -> ServiceResult<Vote> {
            Ok(Vote::no("never"))
        }
        fn commit(&self, _: &BranchContext, _: &[u8]) -> ServiceResult<()> {
            Ok(())
        }
        fn rollback(&self, _: &BranchContext, _: &[u8]) -> ServiceResult<()> {
            Ok(())
        }
    }
    let house = House::open(|| router(Arc::new(MemoryParticipant::new(Refuses)))).await;
    let options = Options::default();
    battery::play(&house.url(""), "{}", &options).await.assert_all_hold();
}
