//! The load of initiators that are one task: it begins so many transactions, is told of all that
//! were decided by one sync at a time, and begins another for each. So does a program that has many
//! under way without a task for each of them, as the server itself does for a stream.

use std::mem;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use unanimity::core::Plan;
use unanimity::{BeginError, BeginRequest, Told, ToldSink, TransactionManager, Wait};

use super::embedded::comes_later;
use super::measure::{Notes, REFUSED_PAUSE, Tally, Turn};

/// How long a transaction may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What has become of transactions, by their numbers, until somebody looks.
#[derive(Default)]
struct Board {
    notes: Mutex<Vec<(u64, Note)>>,
    has_some: Notify,
}

enum Note {
    CameTo(Turn),
    /// It was refused, and the pause is over.
    Again,
}

impl Board {
    fn put(&self, number: u64, note: Note) {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        notes.push((number, note));
        if notes.len() == 1 {
            self.has_some.notify_one();
        }
    }

    async fn take(&self) -> Vec<(u64, Note)> {
        self.has_some.notified().await;
        mem::take(&mut self.notes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ToldSink for Board {
    fn tell(&self, number: u64, told: Result<Told, BeginError>) {
        let came_to = match told {
            Ok(told) if told.committed() => Turn::Done,
            Err(error) if comes_later(&error) => Turn::Refused,
            Ok(_) | Err(_) => Turn::Failed,
        };
        self.put(number, Note::CameTo(came_to));
    }

    fn lose(&self, number: u64) {
        self.put(number, Note::CameTo(Turn::Failed));
    }
}

/// Begins so many at once, each anew when it is told of, until the tally's end.
pub(super) async fn initiate(
    count: usize,
    manager: TransactionManager,
    plan: Plan,
    tally: Arc<Tally>,
) {
    let board = Arc::new(Board::default());
    let begin = |number: u64| match manager.admit() {
        Ok(admitted) => {
            let request = BeginRequest::new(plan.clone(), Wait::Outcome);
            let sink = Arc::clone(&board) as Arc<dyn ToldSink>;
            admitted.begin_and_tell_to(request, (sink, number), PATIENCE);
        }
        Err(error) => board.tell(number, Err(error)),
    };
    let (mut since, mut notes) = (vec![Instant::now(); count], Notes::default());
    (0..count as u64).for_each(begin);
    let mut under_way = count;
    while under_way > 0 {
        let told = board.take().await;
        let now = Instant::now();
        for (number, note) in told {
            if let Note::CameTo(came_to) = note {
                tally.note(&mut notes, came_to, since[number as usize], now);
                if came_to == Turn::Refused && now < tally.until {
                    let board = Arc::clone(&board);
                    tokio::spawn(async move {
                        tokio::time::sleep(REFUSED_PAUSE).await;
                        board.put(number, Note::Again);
                    });
                    continue; // Its latency goes on counting from the first try.
                }
                since[number as usize] = now;
            }
            if now < tally.until {
                begin(number);
            } else {
                under_way -= 1;
            }
        }
    }
    tally.add(&notes);
}
