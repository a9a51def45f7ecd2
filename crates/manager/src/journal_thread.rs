//! Talks to the disk for one shard: one append at a time, in order. It is done by a thread of its
//! own, so that the shard gathers the next batch while it syncs; or by the shard itself, where
//! hardly anything could gather. After any failure nothing more is done, by either.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak, mpsc};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;
use unanimity_core::{Durable, Gathered};
use unanimity_journal::{Engine, JournalError, ShardId};

use crate::crash_point::crash_point;

/// An append that takes longer than this is not quick: whatever else the shard's thread has to do
/// would wait for it.
const QUICK: Duration = Duration::from_millis(1);
/// The next is expected to be quick if so many more were than were not.
const TRUST_MIN: u32 = 16;
/// However many were. The history syncs to the same disk some fifty times a second, and an append
/// that meets it is not quick: a few of those change nothing.
const TRUST_MAX: u32 = 32;
/// One that is not quick counts for so many.
const SLOW_COUNTS: u32 = 8;
/// One that takes longer than this for all.
const FAR_TOO_SLOW: Duration = Duration::from_millis(8);

/// The journal's thread has ended. Unless it broke, it has sent the reason as a receipt before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gone;

/// What the shard asks of its journal.
enum JournalCommand {
    /// Append this batch and answer with a receipt.
    Append(Gathered),
    /// Forget what may be forgotten; no answer.
    Truncate,
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

/// Whether a manager's shards may append on the threads that they run on. Where they may, one at a
/// time does: if the runtime has other threads, those have the rest to do meanwhile.
#[derive(Clone, Debug)]
pub(crate) struct AppendsHere(Option<Arc<AtomicBool>>);

impl AppendsHere {
    pub(crate) fn new(allowed: bool) -> Self {
        Self(allowed.then(Arc::default))
    }

    /// Does this, unless that is not allowed or another shard is at it.
    fn alone<T>(&self, work: impl FnOnce() -> Option<T>) -> Option<T> {
        let busy = self.0.as_ref()?;
        if busy.swap(true, Ordering::Acquire) {
            return None;
        }
        let _leave = Leave(busy); // Also if it panics.
        work()
    }
}

struct Leave<'a>(&'a AtomicBool);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// The engine, and whose journal it holds.
struct Journal {
    open: Mutex<Open>,
    shard: ShardId,
    /// What lies before this position may be forgotten. 0: nothing, or it was. It goes with the
    /// next append: both together are one sync.
    forgettable: AtomicU64,
}

struct Open {
    engine: Box<dyn Engine>,
    has_failed: bool,
}

impl Open {
    /// Does something with the engine, unless something has failed before.
    fn with<T>(
        &mut self,
        work: impl FnOnce(&mut dyn Engine) -> Result<T, JournalError>,
    ) -> Option<Result<T, JournalError>> {
        let done = (!self.has_failed).then(|| work(self.engine.as_mut()))?;
        self.has_failed = done.is_err();
        Some(done)
    }
}

/// A shard's way to its journal.
pub(crate) struct ShardJournal {
    commands: mpsc::Sender<JournalCommand>,
    /// Kept by its thread: there it is closed as well.
    journal: Weak<Journal>,
    here: AppendsHere,
    /// By how much more appends were quick, lately, than they were not.
    trust: u32,
}

impl ShardJournal {
    /// One over this engine, and what its thread is to do: work until the shard hangs up or
    /// something fails.
    pub(crate) fn new(
        engine: Box<dyn Engine>,
        shard: ShardId,
        here: AppendsHere,
        receipts: UnboundedSender<Receipt>,
    ) -> (Self, impl FnOnce() + Send + 'static) {
        let open = Mutex::new(Open { engine, has_failed: false });
        let journal = Arc::new(Journal { open, shard, forgettable: AtomicU64::new(0) });
        let (commands, asked) = mpsc::channel();
        let handle = Self { commands, journal: Arc::downgrade(&journal), here, trust: 0 };
        (handle, move || journal.serve(&asked, &receipts))
    }

    /// Has the thread append a batch.
    ///
    /// # Errors
    /// The thread has ended.
    pub(crate) fn append(&self, batch: Gathered) -> Result<(), Gone> {
        self.ask(JournalCommand::Append(batch))
    }

    /// Has what lies before this position forgotten with the next append.
    ///
    /// # Errors
    /// The thread has ended.
    pub(crate) fn forget_with_next(&self, before: u64) -> Result<(), Gone> {
        let journal = self.journal.upgrade().ok_or(Gone)?;
        journal.forgettable.store(before, Ordering::Relaxed);
        Ok(())
    }

    /// No append is on its way: has the thread forget by itself what may be forgotten.
    ///
    /// # Errors
    /// The thread has ended.
    pub(crate) fn forget_now(&self) -> Result<(), Gone> {
        let waits = |journal: Arc<Journal>| journal.forgettable.load(Ordering::Relaxed) > 0;
        if self.journal.upgrade().is_some_and(waits) {
            self.ask(JournalCommand::Truncate)?;
        }
        Ok(())
    }

    fn ask(&self, command: JournalCommand) -> Result<(), Gone> {
        self.commands.send(command).map_err(|_| Gone)
    }

    /// Whether appends have been so quick, lately, that the caller may do the next one.
    pub(crate) const fn is_quick(&self) -> bool {
        self.trust >= TRUST_MIN
    }

    /// Takes in how long an append took, whoever did it.
    pub(crate) fn took(&mut self, took: Duration) {
        self.trust = match took {
            _ if took <= QUICK => TRUST_MAX.min(self.trust + 1),
            _ if took <= FAR_TOO_SLOW => self.trust.saturating_sub(SLOW_COUNTS),
            _ => 0,
        };
    }

    /// Appends a batch on the caller's thread, which waits for the sync. `None`: it may not, or the
    /// journal's thread is at work, has more to do than to append, or has ended.
    pub(crate) fn append_here(&self, batch: &Gathered) -> Option<Receipt> {
        let journal = self.journal.upgrade()?;
        self.here.alone(|| {
            let mut open = journal.open.try_lock().ok()?;
            if open.engine.is_due() || journal.forgettable.load(Ordering::Relaxed) > 0 {
                return None;
            }
            open.with(|engine| journal.append(engine, batch))
        })
    }
}

impl Journal {
    fn serve(
        &self,
        commands: &mpsc::Receiver<JournalCommand>,
        receipts: &UnboundedSender<Receipt>,
    ) {
        while let Ok(command) = commands.recv() {
            // An append of the shard's own has panicked: its engine may be in any state.
            let Ok(mut open) = self.open.lock() else { return };
            let done = open.with(|engine| match command {
                JournalCommand::Append(batch) => self.append(engine, &batch).map(Some),
                JournalCommand::Truncate => match self.forgettable() {
                    Some(before) => engine.truncate(self.shard, before).map(|()| None),
                    None => Ok(None),
                },
            });
            drop(open);
            let Some(done) = done else { return };
            let failed = done.is_err();
            let gone = done.transpose().is_some_and(|receipt| receipts.send(receipt).is_err());
            if failed || gone {
                return;
            }
        }
    }

    /// What is to be forgotten now.
    fn forgettable(&self) -> Option<u64> {
        Some(self.forgettable.swap(0, Ordering::Relaxed)).filter(|before| *before > 0)
    }

    fn append(&self, engine: &mut dyn Engine, batch: &Gathered) -> Receipt {
        if batch.has_begun {
            crash_point("before_begun_append");
        }
        if batch.has_decided {
            crash_point("before_decided_append");
        }
        let (start, records) = (Instant::now(), batch.records.slices());
        let (position, before) = (batch.position, self.forgettable());
        let receipt = engine.append_and_truncate(self.shard, position, &records, before)?;
        let took = start.elapsed();
        if batch.has_begun {
            crash_point("after_begun_append");
        }
        if batch.has_decided {
            crash_point("after_decided_append");
        }
        Ok(Appended { durable: Durable::up_to(receipt.position()), took })
    }
}

#[test]
fn slow_appends_take_away_the_trust_in_quick_ones() {
    let (receipts, _) = tokio::sync::mpsc::unbounded_channel();
    let engine = Box::new(unanimity_journal::MemoryEngine::new());
    let (mut journal, _work) = ShardJournal::new(engine, 0, AppendsHere::new(true), receipts);
    let slow = QUICK + Duration::from_nanos(1);
    let mut after = |took: &[(u32, Duration)]| {
        for (times, took) in took {
            (0..*times).for_each(|_| journal.took(*took));
        }
        journal.is_quick()
    };
    assert!(!after(&[(TRUST_MIN - 1, QUICK)]));
    assert!(after(&[(1, QUICK)]));
    assert!(!after(&[(1, slow)]), "there is no more trust than has come");
    assert!(after(&[(1_000, QUICK), (2, slow)]), "few change nothing");
    assert!(!after(&[(1, slow)]));
    assert!(after(&[(8, QUICK)]));
    assert!(
        !after(&[(1_000, QUICK), (1, FAR_TOO_SLOW + slow)]),
        "one that takes far too long does"
    );
    assert!(after(&[(1_000, QUICK)]));
    let trusted = (0..1_000).all(|_| after(&[(19, QUICK), (1, slow)]));
    assert!(trusted, "one in twenty changes nothing");
    let trusted = (0..1_000).map(|_| after(&[(6, QUICK), (1, slow)]));
    assert_eq!(trusted.last(), Some(false), "one in seven is too many");
}

#[test]
fn one_shard_at_a_time_appends_on_the_runtimes_threads() {
    let here = AppendsHere::new(true);
    let other = here.clone();
    let within = here.alone(|| Some(other.alone(|| Some(()))));
    assert_eq!(within, Some(None));
    assert_eq!(other.alone(|| Some(())), Some(()), "the first has left");
    let panics = std::panic::catch_unwind(|| here.alone(|| -> Option<()> { panic!("at it") }));
    assert!(panics.is_err());
    assert_eq!(other.alone(|| Some(())), Some(()), "also by a panic");
    assert_eq!(AppendsHere::new(false).alone(|| Some(())), None);
}
