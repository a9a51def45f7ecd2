//! A participant: the real guard over one durable row, a service that says what the setup tells it
//! to, and a count of what was really done to the business data.

use unanimity_core::guard::{
    Contradiction, GuardRow, GuardState, LATE_REASON, Reply, Verdict, Work, judge, settle,
};
use unanimity_core::{Answer, Mutations, Operation};

use crate::setup::Says;

/// Counting stops here: once would be right, twice is already wrong.
const APPLIED_MAX: u8 = 2;
/// What an unwilling service says.
const REFUSED: &str = "refused";

/// What a participant answers, small enough to be part of a million states.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Said {
    /// Yes.
    Yes,
    /// Nothing to commit.
    ReadOnly,
    /// No.
    No,
    /// No, because the branch is already rolled back here.
    TooLate,
    /// Done.
    Acknowledged,
    /// A contradiction, reported as an error.
    Error(Contradiction),
    /// There is no such operation here.
    Unsupported,
}

impl Said {
    /// The same as the coordinator's driver reports it.
    #[must_use]
    pub fn answer(self) -> Answer {
        match self {
            Self::Yes => Answer::Yes(None),
            Self::ReadOnly => Answer::ReadOnly,
            Self::No => Answer::No(REFUSED.into()),
            Self::TooLate => Answer::No(LATE_REASON.into()),
            Self::Acknowledged => Answer::Acknowledged,
            Self::Error(contradiction) => {
                Answer::Contradiction(contradiction, contradiction.code().into())
            }
            Self::Unsupported => Answer::Unsupported,
        }
    }

    fn from_reply(reply: &Reply) -> Self {
        match reply {
            Reply::Yes(_) => Self::Yes,
            Reply::ReadOnly => Self::ReadOnly,
            Reply::No(reason) if reason == LATE_REASON => Self::TooLate,
            Reply::No(_) => Self::No,
            Reply::Acknowledged => Self::Acknowledged,
        }
    }
}

/// One participant and its database.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Participant {
    /// What the guard remembers, durably.
    pub row: Option<GuardRow>,
    /// How often the business effect of each operation was applied, by the operation's number.
    applied: [u8; 8],
    /// Whether it has restarted, and so asks about a branch that it finds in doubt.
    pub asks: bool,
    /// Whether it lost its memory while it was prepared.
    pub forgot: bool,
    /// The first final state that its row had.
    pub settled: Option<GuardState>,
    /// Whether an operation was applied that a final state should have stopped, or a commit of
    /// work that was never prepared.
    pub out_of_order: bool,
}

impl Participant {
    /// How often the business effect of an operation was applied; 2 stands for more than once.
    #[must_use]
    pub fn applied(&self, operation: Operation) -> u8 {
        self.applied[operation as usize]
    }

    /// What its guard remembers of the branch.
    #[must_use]
    pub fn state(&self) -> Option<GuardState> {
        self.row.as_ref().map(|row| row.state)
    }

    /// Whether it holds work that it may neither commit nor undo by itself.
    #[must_use]
    pub fn is_in_doubt(&self) -> bool {
        self.state() == Some(GuardState::Prepared)
    }

    /// One local transaction: the guard judges, the service works, the row is written.
    pub fn handle(&mut self, operation: Operation, says: Says, mutations: Mutations) -> Said {
        match judge(self.row.as_ref(), operation, mutations) {
            Verdict::Apply => self.work(operation, says),
            Verdict::Remember(row, reply) => {
                self.write(operation, row);
                Said::from_reply(&reply)
            }
            Verdict::Repeat(reply) => Said::from_reply(&reply),
            Verdict::Refuse(contradiction) => Said::Error(contradiction),
        }
    }

    fn work(&mut self, operation: Operation, says: Says) -> Said {
        let may_refuse = matches!(
            operation,
            Operation::Prepare | Operation::Execute | Operation::CommitOnePhase
        );
        let work = match says {
            Says::No if may_refuse => Work::No(REFUSED.to_owned()),
            Says::NoFirst if may_refuse && self.state() != Some(GuardState::VotedNo) => {
                Work::No(REFUSED.to_owned())
            }
            Says::ReadOnly if may_refuse && operation != Operation::Execute => Work::ReadOnly,
            Says::Yes | Says::No | Says::NoFirst | Says::ReadOnly => Work::Done(None),
        };
        if matches!(work, Work::Done(_)) {
            self.count(operation);
        }
        let (row, reply) = settle(operation, work);
        self.write(operation, row);
        Said::from_reply(&reply)
    }

    fn count(&mut self, operation: Operation) {
        let unprepared = matches!(operation, Operation::Commit | Operation::Rollback)
            && self.applied(Operation::Prepare) == 0;
        let unexecuted =
            operation == Operation::Compensate && self.applied(Operation::Execute) == 0;
        self.out_of_order |= unprepared || unexecuted || self.settled.is_some();
        let count = &mut self.applied[operation as usize];
        *count = (*count + 1).min(APPLIED_MAX);
    }

    fn write(&mut self, operation: Operation, row: GuardRow) {
        // A refused execute is asked again; only a refused prepare is the last word.
        let asked_again = operation == Operation::Execute && row.state == GuardState::VotedNo;
        if self.settled.is_none() && is_final(row.state) && !asked_again {
            self.settled = Some(row.state);
        }
        self.row = Some(row);
        if !self.is_in_doubt() {
            self.asks = false;
        }
    }

    /// The disk is lost while the branch is prepared: everything since its backup is gone, the
    /// business data with it.
    pub fn forget(&mut self) {
        *self = Self { forgot: true, ..Self::default() };
    }

    /// What it would answer now, without doing it.
    #[must_use]
    pub fn would_say(&self, operation: Operation, says: Says, mutations: Mutations) -> Said {
        self.clone().handle(operation, says, mutations)
    }
}

const fn is_final(state: GuardState) -> bool {
    match state {
        GuardState::Prepared | GuardState::Executed => false,
        GuardState::Committed
        | GuardState::RolledBack
        | GuardState::VotedNo
        | GuardState::ReadOnly
        | GuardState::Compensated => true,
    }
}
