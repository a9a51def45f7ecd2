//! The initiator's own database: local work that is there or never will be, as the inquiry finds it
//! over HTTP. Every local transaction here has a connection of its own, as a service has.

use std::time::Duration;

use axum::body::Body;
use http::Request;
use http_body_util::BodyExt;
use tower::ServiceExt;
use unanimity_sdk::rusqlite::{Connection, TransactionBehavior};
use unanimity_sdk::{
    INITIATOR_BRANCH, LocalWorkError, axum, create_local_work_table, inquiry_router,
    record_local_work,
};

use crate::support::{Folder, id};

/// A database with a table of orders beside the guard's.
struct Shop(Folder);

impl Shop {
    fn new() -> Self {
        let shop = Self(Folder::new());
        let db = shop.connect();
        create_local_work_table(&db).unwrap();
        create_local_work_table(&db).unwrap(); // As at every start.
        db.execute_batch("CREATE TABLE orders (name TEXT)").unwrap();
        shop
    }

    fn connect(&self) -> Connection {
        let db = Connection::open(self.0.file()).unwrap();
        // Whoever meets a lock is told so at once: no test waits for time to pass.
        db.busy_timeout(Duration::ZERO).unwrap();
        db
    }

    fn orders(&self) -> Vec<String> {
        let db = self.connect();
        let mut rows = db.prepare("SELECT name FROM orders ORDER BY name").unwrap();
        let names = rows.query_map([], |row| row.get(0)).unwrap();
        names.collect::<Result<_, _>>().unwrap()
    }

    /// The whole of a local transaction: an order, and the row that says so.
    fn order(&self, name: &str) -> Result<(), LocalWorkError> {
        let mut db = self.connect();
        let local = db.transaction()?;
        local.execute("INSERT INTO orders VALUES (?1)", [name])?;
        record_local_work(&local, &id(name))?;
        Ok(local.commit()?)
    }

    /// The status and the code with which an inquiry is answered.
    async fn ask(&self, operation: &str, transaction: &str) -> (u16, String) {
        let file = self.0.file();
        let open = move || {
            let db = Connection::open(&file)?;
            db.busy_timeout(Duration::ZERO)?;
            Ok(db)
        };
        let request = Request::post(format!("/{operation}"))
            .header("unanimity-transaction", transaction)
            .header("unanimity-branch", INITIATOR_BRANCH)
            .header("unanimity-attempt", "1");
        let request = request.body(Body::empty()).unwrap();
        let response = inquiry_router(open).oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        (status, body["code"].as_str().unwrap_or_default().to_owned())
    }

    async fn inquire(&self, transaction: &str) -> u16 {
        self.ask("inquire", transaction).await.0
    }
}

fn too_late(result: Result<(), LocalWorkError>) {
    assert!(matches!(result, Err(LocalWorkError::TooLate(_))), "{result:?}");
}

#[tokio::test]
async fn work_that_is_there_is_found_for_ever() {
    let shop = Shop::new();
    shop.order("t").unwrap();
    for _ in 0..3 {
        assert_eq!(shop.inquire("t").await, 200);
    }
    assert_eq!(shop.orders(), ["t"]);
    // The row can be written again: who does not know whether it had committed may look this way.
    let mut db = shop.connect();
    let local = db.transaction().unwrap();
    record_local_work(&local, &id("t")).unwrap();
    local.commit().unwrap();
    assert_eq!(shop.inquire("t").await, 200);
}

#[tokio::test]
async fn work_that_is_not_there_never_will_be_once_it_was_asked_for() {
    let shop = Shop::new();
    for _ in 0..2 {
        assert_eq!(shop.inquire("t").await, 409);
        too_late(shop.order("t"));
    }
    assert_eq!(shop.orders(), Vec::<String>::new(), "the order goes back with the row");
    shop.order("other").unwrap();
    assert_eq!((shop.inquire("other").await, shop.inquire("t").await), (200, 409));
}

#[tokio::test]
async fn a_local_transaction_that_is_rolled_back_leaves_nothing() {
    let shop = Shop::new();
    let mut db = shop.connect();
    let local = db.transaction().unwrap();
    local.execute("INSERT INTO orders VALUES ('t')", []).unwrap();
    record_local_work(&local, &id("t")).unwrap();
    drop(local);
    assert_eq!(shop.orders(), Vec::<String>::new());
    // Nobody has asked yet, so that the initiator may try once more.
    shop.order("t").unwrap();
    assert_eq!(shop.inquire("t").await, 200);
}

#[tokio::test]
async fn nothing_is_answered_while_the_local_transaction_is_undecided() {
    let shop = Shop::new();
    for (name, commits) in [("commits", true), ("goes-back", false)] {
        let mut db = shop.connect();
        let local = db.transaction().unwrap();
        record_local_work(&local, &id(name)).unwrap();
        assert_eq!(shop.inquire(name).await, 500, "neither yes nor no");
        if commits {
            local.commit().unwrap();
        } else {
            local.rollback().unwrap();
        }
        assert_eq!(shop.inquire(name).await, if commits { 200 } else { 409 });
    }
}

#[tokio::test]
async fn an_inquiry_between_the_work_and_its_row_stops_both() {
    let shop = Shop::new();
    let mut db = shop.connect();
    db.pragma_update(None, "journal_mode", "WAL").unwrap();
    let local = db.transaction_with_behavior(TransactionBehavior::Deferred).unwrap();
    let count: u32 = local.query_row("SELECT count(*) FROM orders", [], |row| row.get(0)).unwrap();
    assert_eq!(count, 0);
    assert_eq!(shop.inquire("t").await, 409);
    // It still sees the database as it was before, and must not write over what came since.
    assert!(record_local_work(&local, &id("t")).is_err());
    drop(local);
    too_late(shop.order("t"));
    assert_eq!(shop.inquire("t").await, 409);
}

#[tokio::test]
async fn an_initiator_takes_no_other_calls() {
    let shop = Shop::new();
    for operation in ["prepare", "commit", "rollback", "execute", "compensate"] {
        let answer = shop.ask(operation, "t").await;
        assert_eq!((answer.0, &*answer.1), (409, "wrong_kind"), "{operation}");
    }
    shop.order("t").unwrap();
}
