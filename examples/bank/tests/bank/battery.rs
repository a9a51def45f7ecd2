//! The participant's contract, played by the SDK's battery against the bank's real program, with
//! kills between the phases; the money that it moves is watched.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use unanimity_sdk::battery::{self, Options, Restart, Verdict};

use crate::support::{Folder, Place, Process, payload, places, xa_places};

/// Kills the bank as a power cut would, and starts it again at the same address.
fn kill(
    bank: &Arc<Mutex<Option<Process>>>,
    database: &Path,
    further: &'static [&'static str],
) -> Restart {
    let (bank, database) = (Arc::clone(bank), database.to_owned());
    Restart::new(move || {
        let mut bank = bank.lock().unwrap();
        if let Some(running) = bank.take() {
            let address = running.url.trim_start_matches("http://").to_owned();
            drop(running);
            *bank = Some(Process::start_with(&database, "", &address, further));
        }
        async { Ok(()) }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bank_stands_every_rule_for_debits_and_credits() {
    let folder = Folder::new();
    let (_alone, xa_places) = xa_places().await;
    for place in places().into_iter().chain(xa_places) {
        stands(&place, place.fresh(&folder).await).await;
    }
}

async fn stands(place: &Place, database: PathBuf) {
    let further: &'static [&'static str] = if place.xa { &["--xa"] } else { &[] };
    let bank = Process::start_with(&database, "", "127.0.0.1:0", further);
    let url = bank.url.clone();
    let bank = Arc::new(Mutex::new(Some(bank)));
    for (compensable, amount) in [(false, -7), (false, 7), (true, -7), (true, 7)] {
        if compensable && place.xa {
            continue;
        }
        let options = Options {
            compensable,
            observe: Some(format!("{url}/accounts/A-1")),
            restart: Some(kill(&bank, &database, further)),
            ..Options::default()
        };
        let participant = format!("{url}/transactions");
        let report = battery::play(&participant, payload("A-1", amount), &options).await;
        report.assert_all_hold();
        assert!(report.rules(Verdict::NotPlayed).is_empty(), "{report}");
    }
}

#[tokio::test]
async fn a_bank_that_refuses_shows_with_its_reason() {
    let folder = Folder::new();
    let bank = Process::start(&folder, "");
    let participant = format!("{}/transactions", bank.url);
    let options = Options::default();
    let report = battery::play(&participant, payload("A-1", -9_999), &options).await;
    assert!(!report.holds());
    assert!(report.to_string().contains("A-1 has 1000 cents free; 9999 are needed"), "{report}");
}
