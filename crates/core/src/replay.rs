//! Reads a shard's records back, in order, each through the same `apply` as in live operation. What
//! it finds is to be made durable again before anything acts on it; that is the driver's.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::{
    Coordinator, CoordinatorConfig, DecodeError, Fact, Homes, Millis, Mutation, Record,
    RecordReader, Transaction, TransactionId, Whole, decode_head, decode_record,
};

/// What a shard's journal held.
#[derive(Clone, Debug)]
pub struct Replayed {
    /// The live transactions. None has been taken up yet: see
    /// [`Coordinator::resume_transaction`].
    pub coordinator: Coordinator,
    /// In which batch each live or just ended transaction was last written whole.
    pub homes: Homes,
    /// How many records were read.
    pub records: u64,
    /// Transactions that were passed over, and when they began: they are live as far as anybody
    /// knows, and are to be set aside.
    pub unread: BTreeMap<TransactionId, Millis>,
    /// Ended, but perhaps not in the history yet.
    pub ended: Vec<Arc<Transaction>>,
    /// The latest moment on record: the coordinator's time goes on from there, whatever a clock
    /// that was set back says meanwhile.
    pub latest: Millis,
}

/// A record that cannot be what a coordinator wrote there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplayError {
    /// In which batch.
    pub position: u64,
    /// What is wrong with it.
    pub problem: String,
}

/// Takes a shard's records in.
#[derive(Clone, Debug)]
pub struct Replay {
    coordinator: Coordinator,
    reader: RecordReader,
    homes: Homes,
    records: u64,
    ended: Vec<Arc<Transaction>>,
    /// What ended up to this position is in the history.
    archived_up_to: u64,
    /// Transactions whose records are not to be looked at.
    passed_over: BTreeSet<TransactionId>,
    unread: BTreeMap<TransactionId, Millis>,
    /// Transactions whose beginning was forgotten: each must have ended or been written anew.
    orphans: BTreeSet<TransactionId>,
    latest: Millis,
    /// The first thing that does not fit.
    problem: Option<ReplayError>,
}

impl Replay {
    /// Starts with a coordinator that knows of nothing.
    #[must_use]
    pub fn new(coordinator: Coordinator) -> Self {
        let CoordinatorConfig { mutations, seed, .. } = coordinator.config;
        Self {
            coordinator,
            reader: RecordReader::default(),
            homes: Homes::new(mutations, seed),
            records: 0,
            ended: Vec::new(),
            archived_up_to: 0,
            passed_over: BTreeSet::new(),
            unread: BTreeMap::new(),
            orphans: BTreeSet::new(),
            latest: 0,
            problem: None,
        }
    }

    /// Everything that ended up to this position is known to be in the history: it is not handed to
    /// the history again, and the journal may forget it.
    #[must_use]
    pub fn archived_up_to(self, archived_up_to: u64) -> Self {
        Self { archived_up_to, ..self }
    }

    /// These transactions' records are left where they are: the program breaks on them.
    #[must_use]
    pub fn passing_over(self, passed_over: BTreeSet<TransactionId>) -> Self {
        Self { passed_over, ..self }
    }

    /// Whether a transaction's records are left where they are.
    #[must_use]
    pub fn passes_over(&self, id: &TransactionId) -> bool {
        self.passed_over.contains(id)
    }

    /// Whether a record is one of those that are not to be looked at. Its home is noted all the
    /// same, so that the journal keeps it. One that ended and was forgotten may have left records
    /// without a beginning, and is nobody's any more.
    fn pass_over(&mut self, position: u64, bytes: &[u8]) -> bool {
        let Some(head) = decode_head(bytes) else { return false };
        if !self.passed_over.contains(&head.transaction) {
            return false;
        }
        if head.whole {
            let forgets = self.coordinator.config.mutations.has(Mutation::UnreadNotAtHome);
            if !forgets {
                self.homes.settle(head.transaction.clone(), position, self.records);
            }
            self.unread.entry(head.transaction).or_insert(head.at);
        }
        true
    }

    /// Whether any transaction's records are left where they are: then each must be looked at by
    /// [`Replay::take`].
    #[must_use]
    pub fn passes_over_some(&self) -> bool {
        !self.passed_over.is_empty()
    }

    /// Whether something did not fit. Nothing after it is looked at.
    #[must_use]
    pub const fn has_problem(&self) -> bool {
        self.problem.is_some()
    }

    /// Takes the next record in. After the first that does not fit, nothing more is looked at.
    pub fn take(&mut self, position: u64, bytes: &[u8]) {
        if self.problem.is_some() {
            return;
        }
        if self.passes_over_some() && self.pass_over(position, bytes) {
            self.records += 1;
            return;
        }
        if let Some(mut read) = self.reader.whole(bytes) {
            return self.take_whole(position, &mut read);
        }
        self.records += 1;
        let read = decode_record(bytes).map_err(|error| error.to_string());
        let applied = read.and_then(|mut record| self.later(position, &mut record));
        self.note(position, applied);
    }

    /// As [`Replay::take`], of a record that a [`RecordReader`] has read already, while others were
    /// taken in. What it holds is taken from it.
    pub fn take_whole(&mut self, position: u64, read: &mut Result<Whole, DecodeError>) {
        if self.problem.is_some() {
            return;
        }
        self.records += 1;
        let applied = match read {
            Ok(whole) => self.whole(position, whole),
            Err(error) => Err(error.to_string()),
        };
        self.note(position, applied);
    }

    fn note(&mut self, position: u64, applied: Result<(), String>) {
        if let Err(problem) = applied {
            self.problem = Some(ReplayError { position, problem });
        }
    }

    fn whole(&mut self, position: u64, whole: &mut Whole) -> Result<(), String> {
        self.latest = self.latest.max(whole.at);
        let Some(id) = &whole.id else { return Ok(()) };
        self.orphans.remove(id);
        self.coordinator.take_whole(whole).map_err(|error| error.to_string())?;
        // Last, because it leaves the record without a name. Another thread has made the name, and
        // the memory of whatever is touched would have to come from its processor.
        if let Some(id) = whole.id.take() {
            // Whoever breaks on it here is not known by name: nothing but a map is touched.
            self.homes.settle(id, position, self.records);
        }
        Ok(())
    }

    fn later(&mut self, position: u64, record: &mut Record) -> Result<(), String> {
        let id = &record.transaction;
        self.latest = self.latest.max(record.at);
        if !self.coordinator.knows(id) {
            if matches!(record.fact, Fact::Ended) {
                self.orphans.remove(id);
            } else {
                self.orphans.insert(id.clone());
            }
            return Ok(());
        }
        let ended = self.coordinator.take_later(record).map_err(|error| error.to_string())?;
        match ended {
            Some(ended) if position <= self.archived_up_to => {
                let home = self.homes.end(&ended.id);
                home.into_iter().for_each(|position| self.homes.leave(position, 1));
            }
            ended => self.ended.extend(ended.map(Arc::from)),
        }
        Ok(())
    }

    /// Everything up to, and without, `next_position` was read.
    ///
    /// # Errors
    /// The first record that did not fit, or a transaction whose beginning is missing.
    pub fn finish(self, next_position: u64) -> Result<Replayed, ReplayError> {
        if let Some(problem) = self.problem {
            return Err(problem);
        }
        if let Some(orphan) = self.orphans.first() {
            let problem = format!("transaction {orphan} has records but no beginning");
            return Err(ReplayError { position: next_position, problem });
        }
        let Self { coordinator, homes, records, unread, ended, latest, .. } = self;
        Ok(Replayed { coordinator, homes, records, unread, ended, latest })
    }
}
