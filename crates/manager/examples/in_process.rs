//! Three services in one process; a transaction over two of them. Run it with
//! `cargo run --release -p unanimity --example in_process`.

use std::sync::Arc;
use std::time::Duration;

use unanimity::{LocalTransactionManager, ManagerConfig, Operation, RecordService, Service};
use unanimity::{UpdateAccountBalance, UpdateUserProfile};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let accounts = Arc::new(RecordService::new([
        ("account/A".to_owned(), 250.into()),
        ("account/B".to_owned(), 0.into()),
    ]));
    let profiles =
        Arc::new(RecordService::new([("user/7".to_owned(), serde_json::json!({"name": "Ada"}))]));
    let stock = Arc::new(RecordService::default());

    let services: [(&str, Arc<dyn Service>); 3] = [
        ("service-1", Arc::clone(&accounts) as _),
        ("service-2", Arc::clone(&profiles) as _),
        ("service-3", stock),
    ];
    let manager = LocalTransactionManager::start(ManagerConfig::default(), services)?;

    // Service 1 moves 100 from account A to B, service 2 updates a user's address.
    let take = UpdateAccountBalance { account: "A".to_owned(), amount: -100 };
    let give = UpdateAccountBalance { account: "B".to_owned(), amount: 100 };
    let (field, value) = ("address".to_owned(), "12 Analytical Way".to_owned());
    let moves = UpdateUserProfile { user: "7".to_owned(), field, value };
    let operations: Vec<Vec<Arc<dyn Operation>>> =
        vec![vec![Arc::new(take), Arc::new(give)], vec![Arc::new(moves.clone())]];
    let executed =
        manager.execute_transaction(&["service-1", "service-2"], operations.clone()).await?;
    println!("first:  committed = {} ({})", executed.committed(), executed.reason());
    assert!(executed.committed());

    // The same for too much money: service 1 votes no, so service 2 changes nothing either.
    let too_much = UpdateAccountBalance { account: "A".to_owned(), amount: -1_000 };
    let operations: Vec<Vec<Arc<dyn Operation>>> =
        vec![vec![Arc::new(too_much)], vec![Arc::new(moves)]];
    let refused = manager.execute_transaction(&["service-1", "service-2"], operations).await?;
    println!("second: committed = {} ({})", refused.committed(), refused.reason());
    assert!(!refused.committed());

    manager.stop(Duration::from_secs(5)).await;
    assert_eq!(accounts.get("account/A"), Some(150.into()));
    assert_eq!(accounts.get("account/B"), Some(100.into()));
    println!("account A has 150, account B has 100, user 7 lives at 12 Analytical Way");
    Ok(())
}
