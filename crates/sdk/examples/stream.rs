//! A seat reservation service that dials the coordinator, for where nobody can dial it: all of it.
//! Initiators call it `stream:seats`. The payload is a seat's number. What it remembers is gone
//! after a restart; a service with a SQLite file serves a `SqliteParticipant` in the same way.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use unanimity_sdk::stream::{DialOptions, dial};
use unanimity_sdk::{
    BranchContext, MemoryParticipant, MemoryService, ServiceError, ServiceResult, Vote,
};

/// Who holds which seat, and whether it is sold.
#[derive(Default)]
struct Seats(Mutex<BTreeMap<u32, (String, bool)>>);

impl Seats {
    fn change(&self, change: impl FnOnce(&mut BTreeMap<u32, (String, bool)>)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl MemoryService for Seats {
    fn prepare(&self, at: &BranchContext, body: &[u8]) -> ServiceResult<Vote> {
        let Ok(seat) = serde_json::from_slice::<u32>(body) else {
            return Ok(Vote::no("the payload must be a seat's number"));
        };
        let mut vote = Vote::no(format!("seat {seat} is taken"));
        self.change(|seats| {
            if let std::collections::btree_map::Entry::Vacant(free) = seats.entry(seat) {
                free.insert((at.transaction.to_string(), false));
                vote = Vote::Yes;
            }
        });
        Ok(vote)
    }

    fn commit(&self, at: &BranchContext, _: &[u8]) -> ServiceResult<()> {
        self.change(|seats| {
            let held = seats.values_mut().filter(|(holder, _)| *holder == at.transaction.as_str());
            held.for_each(|(_, sold)| *sold = true);
        });
        Ok(())
    }

    fn rollback(&self, at: &BranchContext, _: &[u8]) -> ServiceResult<()> {
        self.change(|seats| seats.retain(|_, (holder, _)| *holder != at.transaction.as_str()));
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<(), ServiceError> {
    let participant = Arc::new(MemoryParticipant::new(Seats::default()));
    let options = DialOptions::new("http://127.0.0.1:7171", "seats");
    let mut dialed = dial(options, participant)?;
    dialed.connected().await;
    println!("participant stream:seats");
    tokio::signal::ctrl_c().await?;
    dialed.stop().await;
    Ok(())
}
