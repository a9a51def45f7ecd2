//! A seat reservation service that takes part in transactions: all of it. The payload is a seat's
//! number; a seat is free (no row), held (prepared) or sold (committed).

use std::sync::Arc;
use unanimity_sdk::rusqlite::{Connection, params};
use unanimity_sdk::{BranchContext, ServiceError, ServiceResult, Vote};
use unanimity_sdk::{SqliteParticipant, SqliteService, router};

struct Seats;

impl SqliteService for Seats {
    fn migrate(&self, db: &Connection) -> ServiceResult<()> {
        let seat = "seat (number INTEGER PRIMARY KEY, holder TEXT, sold INTEGER)";
        Ok(db.execute_batch(&format!("CREATE TABLE IF NOT EXISTS {seat}"))?)
    }

    fn prepare(&self, db: &Connection, at: &BranchContext, body: &[u8]) -> ServiceResult<Vote> {
        let Ok(seat) = serde_json::from_slice::<u32>(body) else {
            return Ok(Vote::no("the payload must be a seat's number"));
        };
        let hold = "INSERT INTO seat VALUES (?1, ?2, 0) ON CONFLICT DO NOTHING";
        let held = db.execute(hold, params![seat, at.transaction.as_str()])?;
        Ok(if held == 1 { Vote::Yes } else { Vote::no(format!("seat {seat} is taken")) })
    }

    fn commit(&self, db: &Connection, at: &BranchContext, _: &[u8]) -> ServiceResult<()> {
        db.execute("UPDATE seat SET sold = 1 WHERE holder = ?1", [at.transaction.as_str()])?;
        Ok(())
    }

    fn rollback(&self, db: &Connection, at: &BranchContext, _: &[u8]) -> ServiceResult<()> {
        db.execute("DELETE FROM seat WHERE holder = ?1", [at.transaction.as_str()])?;
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<(), ServiceError> {
    let participant = Arc::new(SqliteParticipant::open("seats.db", Seats)?);
    let app = axum::Router::new().nest("/transactions", router(participant));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:7101").await?;
    println!("participant http://127.0.0.1:7101/transactions");
    Ok(axum::serve(listener, app).await?)
}
