//! The coordinator's face: what happens to it, what it wants done, and the seal that keeps effects
//! inside a step until the step's records are durable.

use std::sync::Arc;

use crate::guard::Contradiction;
use crate::{
    BranchPlan, EnlistRefusal, Operation, Outcome, Plan, PlanError, Reason, Record, Timer,
    Transaction, TransactionId,
};

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// An initiator asks for a whole transaction. The driver has made sure that the id was not used
    /// by a transaction that has already ended.
    Begin {
        /// The transaction's name.
        transaction: TransactionId,
        /// A digest of the request: the same id with another digest is another request.
        fingerprint: u128,
        /// What to do.
        plan: Box<Plan>,
    },
    /// A call has ended: answered, failed, or given up. The driver owes one for every call.
    Answer {
        /// Of which transaction.
        transaction: TransactionId,
        /// Of which branch.
        branch: u16,
        /// Of which operation.
        operation: Operation,
        /// Of which attempt.
        attempt: u32,
        /// What came back.
        answer: Answer,
    },
    /// A timer is due. One that was disarmed meanwhile is ignored.
    Timer(Timer),
    /// Somebody adds a branch to an interactive transaction.
    Enlist {
        /// Which.
        transaction: TransactionId,
        /// What is added.
        branch: Box<BranchPlan>,
    },
    /// The initiator of an interactive transaction has done its part and wants it committed.
    /// Nothing happens unless [`crate::Coordinator::check_close`] allows it.
    CommitRequested {
        /// Which.
        transaction: TransactionId,
    },
    /// Somebody says how a branch was settled without the coordinator. Nothing happens unless
    /// [`crate::Coordinator::check_resolve`] allows it.
    ResolveRequested {
        /// Which.
        transaction: TransactionId,
        /// Which branch.
        branch: u16,
        /// How it was settled.
        outcome: Outcome,
        /// Who says so.
        by: Box<str>,
        /// Why.
        reason: Box<str>,
    },
    /// Somebody asks to roll back a transaction that may be undecided still.
    RollbackRequested {
        /// Which.
        transaction: TransactionId,
        /// Why, for the timeline.
        reason: Box<str>,
    },
    /// Somebody asks to try this transaction's open branches again now.
    RetryRequested {
        /// Which.
        transaction: TransactionId,
    },
}

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Answer {
    /// Yes to a prepare or an execute, with a result if there is one. A result of more than
    /// [`crate::RESULT_BYTES_MAX`] bytes is not kept.
    Yes(Option<Arc<str>>),
    /// The prepare found nothing to commit.
    ReadOnly,
    /// The prepare found nothing to commit, and gives back what it has read: a result as with
    /// [`Self::Yes`].
    Read(Arc<str>),
    /// No, with the participant's reason.
    No(Box<str>),
    /// A commit, rollback or compensate is done.
    Acknowledged,
    /// The participant, or this copy of it, does not know the operation.
    Unsupported,
    /// The participant reports that this contradicts what it has already done: how, and in which
    /// words.
    Contradiction(Contradiction, Box<str>),
    /// The call was certainly never sent: nobody could be connected to. Says why.
    Unsent(Box<str>),
    /// Anything else: an error, a broken connection, silence. It may or may not have been done.
    Unknown(Box<str>),
}

/// A branch's name, and its result if it has one.
pub type NamedResult = (Arc<str>, Option<Arc<str>>);

/// A call to a participant, complete in itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Call {
    /// For which transaction.
    pub transaction: TransactionId,
    /// The branch's number.
    pub branch: u16,
    /// What was planned for the branch: its name, and where the participant is. It has no payload.
    /// Shared with all calls of branches that were planned alike.
    pub plan: Arc<BranchPlan>,
    /// What it is asked to do.
    pub operation: Operation,
    /// The how-manieth time, from 1.
    pub attempt: u32,
    /// After how long the driver gives up and reports [`Answer::Unknown`], in milliseconds.
    pub timeout_ms: u64,
    /// What it is given, where the operation carries a payload.
    pub payload: Option<Arc<[u8]>>,
    /// The results that the payload may refer to, by the branch's name.
    pub results: Box<[NamedResult]>,
    /// What was decided, where a deferred branch is called: it may hear of either.
    pub outcome: Option<Outcome>,
}

/// Something that the driver is to do or to tell. (Thousands of calls wait for the disk at a time:
/// nothing else makes it larger than one is.)
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// The transaction's beginning is durable.
    Begun(TransactionId),
    /// The transaction could not begin.
    Refused(TransactionId, Box<Refusal>),
    /// A branch of an interactive transaction is on record: work for it may begin.
    Enlisted(TransactionId, u16),
    /// A branch was not enlisted; nothing has changed.
    EnlistRefused(TransactionId, Box<EnlistRefusal>),
    /// Somebody's word on a branch is on record.
    Resolved(TransactionId, u16),
    /// Call a participant, and report how it ended.
    Call(Call),
    /// The decision is durable.
    Decided(TransactionId, Outcome, Reason),
    /// Every participant has acknowledged; this is the last that the core knows of it.
    Ended(Box<Transaction>),
    /// One participant alone knows how it ends, and is asked: the outcome may take long to come.
    Settling(TransactionId),
    /// The limit for the whole transaction has passed; its decision stands.
    Overdue(TransactionId),
    /// A branch fails so often that it now waits longer: somebody should look.
    Parked(TransactionId, u16),
}

/// Why a transaction could not begin.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The plan itself is not acceptable.
    Plan(PlanError),
    /// A live transaction has this id; says whether the request is the same.
    Exists {
        /// Same fingerprint: the caller may be given the existing transaction.
        same: bool,
    },
    /// A transaction of this id is set aside and could not be read: whether the request is the same
    /// is not known.
    SetAside,
    /// As many transactions are live as the configuration allows; try later.
    AtCapacity,
}

impl Refusal {
    /// Why an id cannot begin that a live transaction has.
    pub(crate) fn of_existing(existing: &Transaction, fingerprint: u128) -> Self {
        match &existing.set_aside {
            Some(why) if !why.read => Self::SetAside,
            _ => Self::Exists { same: existing.fingerprint == fingerprint },
        }
    }
}

/// What one event leads to: records to make durable, and effects that may leave only after them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[must_use = "a step's records must be written and its effects carried out"]
pub struct Step {
    pub(crate) records: Vec<Record>,
    pub(crate) effects: Vec<Effect>,
}

impl Step {
    /// Whether there is nothing to write and nothing to do.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.records.is_empty() && self.effects.is_empty()
    }

    /// Whether there is anything to write.
    #[must_use]
    pub const fn has_records(&self) -> bool {
        !self.records.is_empty()
    }

    /// Whether it wants anything done.
    pub(crate) const fn has_effects(&self) -> bool {
        !self.effects.is_empty()
    }

    /// Why a [`Event::Begin`] was refused, if it was. A refusal rests on nothing that a crash could
    /// undo, so it may be told at once.
    #[must_use]
    pub fn refusal(&self) -> Option<&Refusal> {
        self.effects.iter().find_map(|effect| match effect {
            Effect::Refused(_, refusal) => Some(&**refusal),
            _ => None, // Every other effect waits for its records.
        })
    }

    /// Why an [`Event::Enlist`] was refused, if it was. What it rests on may still be on its way to
    /// the disk: tell it when everything handed out so far is durable.
    #[must_use]
    pub fn enlist_refusal(&self) -> Option<&EnlistRefusal> {
        self.effects.iter().find_map(|effect| match effect {
            Effect::EnlistRefused(_, refusal) => Some(&**refusal),
            _ => None, // Every other effect is the release's.
        })
    }

    /// Takes out the transaction that this step ends, if it ends one: for a driver that keeps what
    /// has ended, and tells of it, in its own way. Not to be told to anybody before the step's
    /// records are durable.
    pub fn take_ended(&mut self) -> Option<Box<Transaction>> {
        let is_end = |effect: &mut Effect| matches!(effect, Effect::Ended(_));
        match self.effects.pop_if(is_end) {
            Some(Effect::Ended(transaction)) => Some(transaction),
            _ => None, // Comes last, if at all: nothing follows an end.
        }
    }

    /// Whether somebody waits for what this step tells or asks for. Nobody does for an end: whoever
    /// waits for that is known to the driver alone.
    #[must_use]
    pub(crate) fn is_awaited(&self) -> bool {
        self.effects.iter().any(|effect| !matches!(effect, Effect::Ended(_)))
    }

    /// Hands out the records for the journal's batch at `position`, and keeps the effects back.
    ///
    /// A step without records names the last position that was handed out: what it tells may rest
    /// on records of earlier steps that are still on their way to the disk.
    #[must_use]
    pub fn seal(self, position: u64) -> (Vec<Record>, Sealed) {
        (self.records, Sealed { position, effects: self.effects })
    }
}

/// Effects waiting for their records.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Sealed {
    position: u64,
    effects: Vec<Effect>,
}

impl Sealed {
    /// The position that must be durable first.
    #[must_use]
    pub const fn position(&self) -> u64 {
        self.position
    }

    /// Lets the effects out.
    ///
    /// # Panics
    /// If the position is not durable yet: telling anybody now could tell of something that a crash
    /// undoes.
    #[must_use]
    pub fn release(self, durable: Durable) -> Vec<Effect> {
        assert!(durable.0 >= self.position, "effects must wait for position {}", self.position);
        self.effects
    }
}

/// The word of the journal that everything up to a position is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Durable(u64);

impl Durable {
    /// To be called with the position of a journal's receipt and with nothing else.
    #[must_use]
    pub const fn up_to(position: u64) -> Self {
        Self(position)
    }

    /// The last position that is durable.
    #[must_use]
    pub const fn position(self) -> u64 {
        self.0
    }
}
