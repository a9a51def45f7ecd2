//! Local work that decides, in each make of database: the row is there with the work, or never.

use std::sync::Arc;

use tokio::net::TcpListener;
use unanimity_databases::Make;
use unanimity_sdk::mariadb::mysql_async::TxOpts;
use unanimity_sdk::mariadb::mysql_async::prelude::Queryable;
use unanimity_sdk::sql::SqlOptions;
use unanimity_sdk::{INITIATOR_BRANCH, TransactionId, axum, mariadb, postgres};

use crate::place::Place;
use crate::support::id;

/// Asks whether the local work is there; the status of the answer.
async fn inquire(url: &str, transaction: &str) -> u16 {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(url).await.unwrap();
    let request = format!(
        "POST /inquire HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\
         unanimity-transaction: {transaction}\r\nunanimity-branch: {INITIATOR_BRANCH}\r\n\
         unanimity-attempt: 1\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}

/// Does the local work, as an initiator would; whether it was committed.
async fn work(place: &Place, transaction: &TransactionId) -> bool {
    let insert = format!("INSERT INTO orders VALUES ('{transaction}')");
    match place.make {
        Make::PostgreSql => {
            let mut client = place.postgres().await;
            let local = client.transaction().await.unwrap();
            local.batch_execute(&insert).await.unwrap();
            match postgres::record_local_work(&local, transaction).await {
                Ok(()) => local.commit().await.map(|()| true).unwrap(),
                Err(postgres::LocalWorkError::TooLate(_)) => false,
                Err(error) => panic!("{error}"),
            }
        }
        Make::MariaDb => {
            let mut connection = place.mariadb().await;
            let mut local = connection.start_transaction(TxOpts::default()).await.unwrap();
            local.query_drop(&insert).await.unwrap();
            match mariadb::record_local_work(&mut local, transaction).await {
                Ok(()) => local.commit().await.map(|()| true).unwrap(),
                Err(mariadb::LocalWorkError::TooLate(_)) => false,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_coordinator_was_told_stays_true() {
    for make in Make::ALL {
        let place = Place::new(make).await;
        place.run("CREATE TABLE orders (id VARCHAR(128))").await;
        let options = SqlOptions::default();
        let router = match make {
            Make::PostgreSql => postgres::inquiry_router(&place.url, options).await.unwrap(),
            Make::MariaDb => mariadb::inquiry_router(&place.url, options).await.unwrap(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move { axum::serve(listener, router).await });

        assert!(work(&place, &id("there")).await, "{make:?}");
        assert!(work(&place, &id("there")).await, "a repeated one is as good: {make:?}");
        assert_eq!(inquire(&url, "there").await, 200, "{make:?}");
        assert_eq!(inquire(&url, "late").await, 409, "{make:?}");
        assert!(!work(&place, &id("late")).await, "{make:?}");
        assert_eq!(inquire(&url, "late").await, 409, "{make:?}");
        let orders = place.text("SELECT concat(count(*), '') FROM orders").await;
        assert_eq!(orders, "2", "{make:?}");

        // Both at once: whatever is answered is so.
        for number in 0..10 {
            let transaction = format!("race-{number}");
            let asked = {
                let (url, transaction) = (url.clone(), transaction.clone());
                tokio::spawn(async move { inquire(&url, &transaction).await })
            };
            let (place, url) = (Arc::new(place.clone()), &url);
            let done = work(&place, &id(&transaction)).await;
            let told = asked.await.unwrap();
            assert_eq!(told == 200, inquire(url, &transaction).await == 200, "{make:?}");
            assert_eq!(inquire(url, &transaction).await == 200, done, "{make:?}");
        }
    }
}
