//! A service with a database of its own: the real guard over many branches, accounts, and money set
//! aside. One call is one local transaction; what may go wrong with it is the world's.

use std::collections::BTreeMap;
use std::sync::Arc;

use unanimity_core::guard::{GuardRow, GuardState, Reply, Verdict, Work, judge, settle};
use unanimity_core::{Answer, Mutations, Operation};
use unanimity_judge::{Event, Move};

use super::options::Options;
use super::replicas::{Key, Lock, Replica};

/// What each account holds at the beginning.
pub const BEGINNING: i64 = 1_000;

/// What a branch is to do with an account: the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Job {
    /// Which of the service's accounts.
    pub account: u8,
    /// How much is added; taken if negative.
    pub amount: i64,
    /// Whether there is nothing to change.
    pub reads: bool,
}

impl Job {
    /// As a payload.
    #[must_use]
    pub fn bytes(self) -> Arc<[u8]> {
        let mut bytes = vec![self.account, u8::from(self.reads)];
        bytes.extend(self.amount.to_le_bytes());
        bytes.into()
    }

    /// From a payload.
    ///
    /// # Errors
    /// If the coordinator has changed it.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        let whole: [u8; 10] =
            bytes.try_into().map_err(|_| format!("a payload of {} bytes", bytes.len()))?;
        let [account, reads, amount @ ..] = whole;
        Ok(Self { account, reads: reads == 1, amount: i64::from_le_bytes(amount) })
    }
}

/// A service and what it keeps.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its number.
    pub number: usize,
    /// What can be spent, and what is set aside, by account.
    pub accounts: Vec<(i64, i64)>,
    rows: BTreeMap<Key, GuardRow>,
    jobs: BTreeMap<Key, Job>,
    /// The rows that local transactions under way have locked.
    pub locks: BTreeMap<Key, Lock>,
    /// Its processes.
    pub replicas: Vec<Replica>,
    /// Which process has answered for a branch last, for counting.
    pub worked_at: BTreeMap<Key, usize>,
    mutations: Mutations,
}

/// What one call came to.
pub struct Handled {
    /// What is answered.
    pub answer: Answer,
    /// What was changed, if anything was.
    pub worked: Option<Event>,
}

impl Service {
    /// A service whose accounts are all full.
    #[must_use]
    pub fn new(number: usize, options: &Options, mutations: Mutations) -> Self {
        let replica = Replica { up: true, is_older: options.services_older, ..Replica::default() };
        Self {
            number,
            accounts: vec![(BEGINNING, 0); usize::from(options.accounts)],
            rows: BTreeMap::new(),
            jobs: BTreeMap::new(),
            locks: BTreeMap::new(),
            replicas: vec![replica; usize::from(options.replicas)],
            worked_at: BTreeMap::new(),
            mutations,
        }
    }

    /// An account's name.
    #[must_use]
    pub fn account(&self, account: usize) -> Arc<str> {
        format!("s{}/a{account}", self.number).into()
    }

    /// The branches that it holds work of which it may neither commit nor undo.
    pub fn in_doubt(&self) -> impl Iterator<Item = &Key> {
        let prepared = self.rows.iter().filter(|(_, row)| row.state == GuardState::Prepared);
        prepared.map(|(key, _)| key)
    }

    /// What a process reads of a branch. A row that another process has only in memory is not seen.
    #[must_use]
    pub fn row(&self, replica: usize, key: &Key) -> Option<&GuardRow> {
        self.replicas[replica].memory.get(key).or_else(|| self.rows.get(key))
    }

    /// What a broken store does: the row that was just written is kept in one process's memory.
    pub fn keep_in_memory(&mut self, replica: usize, key: &Key) {
        let row = self.rows.remove(key);
        self.replicas[replica].memory.extend(row.map(|row| (key.clone(), row)));
    }

    /// How much is set aside for whom.
    #[must_use]
    pub fn holds(&self) -> usize {
        self.jobs.len()
    }

    /// One local transaction: the guard judges what was read, the service works, and its row is
    /// written.
    ///
    /// # Errors
    /// If what arrived cannot be what was sent.
    pub fn handle(
        &mut self,
        key: Key,
        read: Option<&GuardRow>,
        operation: Operation,
        payload: Option<&[u8]>,
        willing: bool,
    ) -> Result<Handled, String> {
        let (row, reply, moved, effect) = match judge(read, operation, self.mutations) {
            Verdict::Repeat(reply) => {
                return Ok(Handled { answer: answer(reply), worked: None });
            }
            Verdict::Refuse(contradiction) => {
                let code = contradiction.code().into();
                let answer = Answer::Contradiction(contradiction, code);
                return Ok(Handled { answer, worked: None });
            }
            Verdict::Remember(row, reply) => (row, reply, Vec::new(), false),
            Verdict::Apply => {
                let (work, moved) = self.work(&key, operation, payload, willing)?;
                let effect = matches!(work, Work::Done(_));
                let (row, reply) = settle(operation, work);
                (row, reply, moved, effect)
            }
        };
        let state = row.state;
        let (transaction, branch) = (key.0.as_str().into(), key.1);
        self.rows.insert(key, row);
        let worked = Event::Worked { transaction, branch, operation, state, effect, moved };
        Ok(Handled { answer: answer(reply), worked: Some(worked) })
    }

    fn work(
        &mut self,
        key: &Key,
        operation: Operation,
        payload: Option<&[u8]>,
        willing: bool,
    ) -> Result<(Work, Vec<Move>), String> {
        let no = |reason: &str| Ok((Work::No(reason.to_owned()), Vec::new()));
        let job = match (payload, self.jobs.get(key)) {
            (Some(bytes), _) => Job::read(bytes)?,
            (None, Some(job)) => *job,
            (None, None) => return Err(format!("{operation:?} without a payload or a hold")),
        };
        let may_refuse = matches!(
            operation,
            Operation::Prepare | Operation::Execute | Operation::CommitOnePhase
        );
        if may_refuse && !willing {
            return no("unwilling");
        }
        if may_refuse && job.reads && operation != Operation::Execute {
            return Ok((Work::ReadOnly, Vec::new()));
        }
        let account = usize::from(job.account);
        if may_refuse && job.amount < 0 && self.accounts[account].0 + job.amount < 0 {
            return no("insufficient");
        }
        let (taken, given) = (job.amount.min(0), job.amount.max(0));
        let (available, reserved) = match operation {
            Operation::Prepare => (taken, -taken),
            Operation::Commit => (given, taken),
            Operation::Rollback => (-taken, taken),
            Operation::Execute | Operation::CommitOnePhase => (job.amount, 0),
            Operation::Compensate => (-job.amount, 0),
            Operation::Inquire => (0, 0),
        };
        if operation == Operation::Prepare {
            self.jobs.insert(key.clone(), job);
        } else {
            self.jobs.remove(key);
        }
        Ok((Work::Done(None), self.move_money(account, available, reserved)))
    }

    fn move_money(&mut self, account: usize, available: i64, reserved: i64) -> Vec<Move> {
        if (available, reserved) == (0, 0) {
            return Vec::new();
        }
        self.accounts[account].0 += available;
        self.accounts[account].1 += reserved;
        vec![Move { account: self.account(account), available, reserved }]
    }

    /// Its database is restored to a state from before it prepared this branch.
    pub fn forget(&mut self, key: &Key) -> Option<Event> {
        self.rows.remove(key)?;
        let job = self.jobs.remove(key)?;
        let taken = job.amount.min(0);
        let moved = self.move_money(usize::from(job.account), -taken, taken);
        Some(Event::Forgot { transaction: key.0.as_str().into(), branch: key.1, moved })
    }

    /// What a broken store would leave of a local transaction that it said was done: nothing, or
    /// the effect without the row.
    pub fn undo(&mut self, before: &Self, rows_only: bool) {
        self.rows.clone_from(&before.rows);
        if !rows_only {
            self.accounts.clone_from(&before.accounts);
            self.jobs.clone_from(&before.jobs);
        }
    }
}

fn answer(reply: Reply) -> Answer {
    match reply {
        Reply::Yes(result) => Answer::Yes(result.map(Into::into)),
        Reply::ReadOnly => Answer::ReadOnly,
        Reply::No(reason) => Answer::No(reason.into()),
        Reply::Acknowledged => Answer::Acknowledged,
    }
}
