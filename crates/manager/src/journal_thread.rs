//! Talks to the disk for one shard: one append at a time, in order. It is done by a thread of its
//! own, so that the shard gathers the next batch while it syncs; or by the shard itself, where
//! there is nothing else to gather. After any failure nothing more is done.

use std::sync::{Arc, Mutex, PoisonError, TryLockError, Weak, mpsc};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;
use unanimity_core::{Durable, Gathered};
use unanimity_journal::{Engine, JournalError, ShardId};

use crate::crash_point::crash_point;

/// An append that takes longer than this is not quick: whatever else the shard's thread has to do
/// would wait for it.
const QUICK: Duration = Duration::from_millis(1);
/// After so many quick ones in a row the next is expected to be quick too.
const QUICK_MIN: u32 = 16;

/// Said where the journal's thread has ended, by a panic, without saying why.
pub(crate) const JOURNAL_GONE: &str = "the journal's thread has ended";

/// What the shard asks of its journal.
enum JournalCommand {
    /// Append this batch and answer with a receipt.
    Append(Gathered),
    /// Forget what lies before this position; no answer.
    Truncate(u64),
}

/// A batch is durable.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Appended {
    pub(crate) durable: Durable,
    pub(crate) took: Duration,
}

/// Each append is answered: with how far the journal is durable, or with the failure that ends the
/// shard.
pub(crate) type Receipt = Result<Appended, JournalError>;

/// The engine, and whose journal it holds.
struct Journal {
    engine: Mutex<Box<dyn Engine>>,
    shard: ShardId,
}

/// A shard's way to its journal.
pub(crate) struct ShardJournal {
    commands: mpsc::Sender<JournalCommand>,
    /// Kept by its thread: there it is closed as well.
    journal: Weak<Journal>,
    /// How many appends in a row were quick.
    quick: u32,
}

impl ShardJournal {
    /// One over this engine, and what its thread is to do: work until the shard hangs up or
    /// something fails.
    pub(crate) fn new(
        engine: Box<dyn Engine>,
        shard: ShardId,
        receipts: UnboundedSender<Receipt>,
    ) -> (Self, impl FnOnce() + Send + 'static) {
        let journal = Arc::new(Journal { engine: Mutex::new(engine), shard });
        let (commands, asked) = mpsc::channel();
        let handle = Self { commands, journal: Arc::downgrade(&journal), quick: 0 };
        (handle, move || journal.serve(&asked, &receipts))
    }

    /// Has the thread append a batch.
    ///
    /// # Errors
    /// The thread has ended.
    pub(crate) fn append(&self, batch: Gathered) -> Result<(), String> {
        self.ask(JournalCommand::Append(batch))
    }

    /// Has the thread forget what lies before this position.
    ///
    /// # Errors
    /// The thread has ended.
    pub(crate) fn truncate(&self, before: u64) -> Result<(), String> {
        self.ask(JournalCommand::Truncate(before))
    }

    fn ask(&self, command: JournalCommand) -> Result<(), String> {
        self.commands.send(command).map_err(|_| JOURNAL_GONE.to_owned())
    }

    /// Whether an append has lately taken less than it takes to have two threads woken and a little
    /// more, so that the caller may do the next one.
    pub(crate) const fn is_quick(&self) -> bool {
        self.quick >= QUICK_MIN
    }

    /// Takes in how long an append took, whoever did it.
    pub(crate) fn took(&mut self, took: Duration) {
        self.quick = if took <= QUICK { self.quick.saturating_add(1) } else { 0 };
    }

    /// Appends a batch on the caller's thread, which waits for the sync. `None`: the journal's
    /// thread is at work, or has ended.
    pub(crate) fn append_here(&self, batch: &Gathered) -> Option<Receipt> {
        let journal = self.journal.upgrade()?;
        let mut engine = match journal.engine.try_lock() {
            Ok(engine) => engine,
            Err(TryLockError::WouldBlock | TryLockError::Poisoned(_)) => return None,
        };
        Some(append(engine.as_mut(), journal.shard, batch))
    }
}

impl Journal {
    fn serve(
        &self,
        commands: &mpsc::Receiver<JournalCommand>,
        receipts: &UnboundedSender<Receipt>,
    ) {
        while let Ok(command) = commands.recv() {
            // The caller's own append may have panicked with it: what it left is for recovery.
            let mut engine = self.engine.lock().unwrap_or_else(PoisonError::into_inner);
            let done = match command {
                JournalCommand::Append(batch) => {
                    append(engine.as_mut(), self.shard, &batch).map(Some)
                }
                JournalCommand::Truncate(before) => {
                    engine.truncate(self.shard, before).map(|()| None)
                }
            };
            drop(engine);
            let failed = done.is_err();
            let gone = done.transpose().is_some_and(|receipt| receipts.send(receipt).is_err());
            if failed || gone {
                return;
            }
        }
    }
}

#[test]
fn one_slow_append_takes_away_the_trust_in_quick_ones() {
    let (receipts, _) = tokio::sync::mpsc::unbounded_channel();
    let engine = Box::new(unanimity_journal::MemoryEngine::new());
    let (mut journal, _work) = ShardJournal::new(engine, 0, receipts);
    for _ in 0..2 {
        for _ in 0..QUICK_MIN {
            assert!(!journal.is_quick());
            journal.took(QUICK);
        }
        assert!(journal.is_quick());
        journal.took(QUICK + Duration::from_nanos(1));
    }
}

fn append(engine: &mut dyn Engine, shard: ShardId, batch: &Gathered) -> Receipt {
    if batch.has_begun {
        crash_point("before_begun_append");
    }
    if batch.has_decided {
        crash_point("before_decided_append");
    }
    let start = Instant::now();
    let receipt = engine.append(shard, batch.position, &batch.records.slices())?;
    let took = start.elapsed();
    if batch.has_begun {
        crash_point("after_begun_append");
    }
    if batch.has_decided {
        crash_point("after_decided_append");
    }
    Ok(Appended { durable: Durable::up_to(receipt.position()), took })
}
