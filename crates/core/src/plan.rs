//! Decides which transactions may begin at all: the plan's shape, its limits, and the static checks
//! that refuse an unsafe plan before anything is sent. What happens to a good plan is
//! `coordinator`'s.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use crate::RetryPolicy;
use crate::ids::check_id;

/// The most branches that one transaction may have.
pub const BRANCHES_MAX: usize = 256;
/// The most bytes that one branch's payload may have.
pub const PAYLOAD_BYTES_MAX: usize = 1024 * 1024;
/// The most bytes that the payloads of all branches may have together: a transaction's beginning is
/// one record, and a record must have room in one batch of the journal.
pub const PAYLOADS_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The most bytes of a branch's result that are kept; a longer one is dropped, never cut.
pub const RESULT_BYTES_MAX: usize = 64 * 1024;
/// The longest timeout that may be asked for, in milliseconds: 30 days.
pub const TIMEOUT_MS_MAX: u64 = 30 * 24 * 3600 * 1000;
/// The most bytes of a participant's reason or error text that are kept; the rest is cut off.
pub const REASON_BYTES_MAX: usize = 512;
/// The most bytes of a participant's address.
const PARTICIPANT_BYTES_MAX: usize = 2048;

/// What sort of promise a branch makes. Numbers are for storage and are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Prepare, then commit or rollback.
    TwoPhase = 1,
    /// Execute, and compensate if the rest fails.
    Compensable = 2,
    /// Execute only after the decision to commit, until it succeeds.
    Deferred = 3,
}

impl Kind {
    /// The word on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TwoPhase => "two_phase",
            Self::Compensable => "compensable",
            Self::Deferred => "deferred",
        }
    }
}

/// The five things a coordinator asks of a participant. Numbers are for storage and never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Operation {
    /// Do the work so that it can be committed and can be undone, and vote.
    Prepare = 1,
    /// Make the prepared work final.
    Commit = 2,
    /// Undo the prepared work.
    Rollback = 3,
    /// Do the work, visibly.
    Execute = 4,
    /// Undo executed work.
    Compensate = 5,
}

impl Operation {
    /// Every operation, in the order of their numbers.
    pub const ALL: [Self; 5] =
        [Self::Prepare, Self::Commit, Self::Rollback, Self::Execute, Self::Compensate];

    /// The word on the wire and in a participant's path.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Commit => "commit",
            Self::Rollback => "rollback",
            Self::Execute => "execute",
            Self::Compensate => "compensate",
        }
    }

    /// The operation that a word names.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|operation| operation.as_str() == word)
    }

    /// Whether the branch's payload travels with this operation. A service that has voted keeps
    /// what it needs, so commit and rollback send none unless the branch asks for it.
    #[must_use]
    pub const fn carries_payload(self) -> bool {
        matches!(self, Self::Prepare | Self::Execute | Self::Compensate)
    }
}

/// One participant's part in a transaction, as the initiator asks for it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BranchPlan {
    /// The branch's name, unique within its transaction.
    pub name: Arc<str>,
    /// Where the participant is: opaque to the core, an URL for HTTP.
    pub participant: Arc<str>,
    /// What sort of promise it makes.
    pub kind: Kind,
    /// The branches (by their place in the plan) that must have voted yes or executed before.
    pub after: Vec<u16>,
    /// What the participant is given; opaque.
    pub payload: Arc<[u8]>,
    /// Whether commit and rollback carry the payload too.
    pub payload_in_phase_two: bool,
}

/// How long a transaction waits for what. All times are in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Options {
    /// From the beginning until every prepare has voted; then the transaction rolls back.
    pub prepare_timeout_ms: u64,
    /// From the first execute until every compensable branch has executed; then it rolls back.
    pub execute_timeout_ms: u64,
    /// From the beginning until everything is complete. Undecided by then: it rolls back. Decided
    /// by then: the decision stands, and the transaction is shown as overdue. 0: no such limit.
    pub timeout_ms: u64,
    /// How long one call after the decision may take. A call before it may take what is left of
    /// its phase.
    pub attempt_timeout_ms: u64,
    /// When a call that got no decisive answer is tried again.
    pub retry: RetryPolicy,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            prepare_timeout_ms: 5_000,
            execute_timeout_ms: 30_000,
            timeout_ms: 0,
            attempt_timeout_ms: 2_000,
            retry: RetryPolicy::default(),
        }
    }
}

/// A whole transaction as the initiator asks for it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Plan {
    /// Its branches; their places are their numbers.
    pub branches: Vec<BranchPlan>,
    /// How long it waits for what.
    pub options: Options,
}

/// Why a plan was refused: a stable code, the field at fault, and what could go wrong.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PlanError {
    /// Stable, snake case; each has a page in the error reference.
    pub code: &'static str,
    /// Where in the request, such as `branches[2].after`.
    pub field: String,
    /// What is wrong and what to do about it.
    pub message: String,
}

impl fmt::Display for PlanError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.field, self.message)
    }
}

impl std::error::Error for PlanError {}

fn error(code: &'static str, field: impl Into<String>, message: impl Into<String>) -> PlanError {
    PlanError { code, field: field.into(), message: message.into() }
}

impl Plan {
    /// Says whether this plan may begin. Call it before anything is recorded or sent.
    ///
    /// # Errors
    /// The first thing wrong, by these codes: `no_branches`, `too_many_branches`,
    /// `branch_name_invalid`, `branch_name_repeated`, `participant_invalid`, `payload_too_large`,
    /// `after_unknown`, `after_itself`, `after_cycle`, `after_unsafe`, `timeout_invalid`.
    pub fn check(&self) -> Result<(), PlanError> {
        if self.branches.is_empty() {
            return Err(error(
                "no_branches",
                "branches",
                "a transaction needs at least one branch",
            ));
        }
        if self.branches.len() > BRANCHES_MAX {
            let found = self.branches.len();
            let message = format!("has {found} branches; at most {BRANCHES_MAX} are allowed");
            return Err(error("too_many_branches", "branches", message));
        }
        self.check_names()?;
        for (index, branch) in self.branches.iter().enumerate() {
            self.check_branch(index, branch)?;
        }
        self.check_payloads()?;
        self.check_no_cycle()?;
        self.options.check()
    }

    fn check_payloads(&self) -> Result<(), PlanError> {
        let bytes: usize = self.branches.iter().map(|branch| branch.payload.len()).sum();
        if bytes <= PAYLOADS_BYTES_MAX {
            return Ok(());
        }
        let message = format!(
            "the payloads have {bytes} bytes together; at most {PAYLOADS_BYTES_MAX} are allowed"
        );
        Err(error("payload_too_large", "branches", message))
    }

    fn check_names(&self) -> Result<(), PlanError> {
        let mut seen = BTreeSet::new();
        for (index, branch) in self.branches.iter().enumerate() {
            let field = format!("branches[{index}].name");
            if let Err(reason) = check_id(&branch.name) {
                return Err(error("branch_name_invalid", field, reason.to_string()));
            }
            if !seen.insert(&branch.name) {
                let message = format!("the name {:?} is used twice", branch.name);
                return Err(error("branch_name_repeated", field, message));
            }
        }
        Ok(())
    }

    fn check_branch(&self, index: usize, branch: &BranchPlan) -> Result<(), PlanError> {
        let field = |name: &str| format!("branches[{index}].{name}");
        if branch.participant.is_empty() || branch.participant.len() > PARTICIPANT_BYTES_MAX {
            let message = format!("must have 1 to {PARTICIPANT_BYTES_MAX} bytes");
            return Err(error("participant_invalid", field("participant"), message));
        }
        if branch.payload.len() > PAYLOAD_BYTES_MAX {
            let bytes = branch.payload.len();
            let message = format!("has {bytes} bytes; at most {PAYLOAD_BYTES_MAX} are allowed");
            return Err(error("payload_too_large", field("payload"), message));
        }
        for before in &branch.after {
            let Some(other) = self.branches.get(usize::from(*before)) else {
                let message = format!("there is no branch number {before}");
                return Err(error("after_unknown", field("after"), message));
            };
            if usize::from(*before) == index {
                let message = "a branch cannot wait for itself";
                return Err(error("after_itself", field("after"), message));
            }
            check_order(branch, other, &field("after"))?;
        }
        Ok(())
    }

    /// Kahn's algorithm: take away branches that wait for nothing until none is left.
    fn check_no_cycle(&self) -> Result<(), PlanError> {
        let mut left: BTreeSet<usize> = (0..self.branches.len()).collect();
        while !left.is_empty() {
            let free: Vec<usize> = left
                .iter()
                .copied()
                .filter(|index| {
                    let after = &self.branches[*index].after;
                    after.iter().all(|before| !left.contains(&usize::from(*before)))
                })
                .collect();
            if free.is_empty() {
                let names: Vec<&str> =
                    left.iter().map(|index| &*self.branches[*index].name).collect();
                let message = format!("these branches wait for each other: {}", names.join(", "));
                return Err(error("after_cycle", "branches", message));
            }
            for index in free {
                left.remove(&index);
            }
        }
        Ok(())
    }
}

/// Prepares come first, visible work after every vote, deferred work after the decision: an `after`
/// that asks for the reverse could never be honoured safely.
fn check_order(branch: &BranchPlan, before: &BranchPlan, field: &str) -> Result<(), PlanError> {
    let rank = |kind: Kind| kind as u8;
    if rank(branch.kind) >= rank(before.kind) {
        return Ok(());
    }
    let message = format!(
        "{:?} is {} and would wait for {:?}, which is {}: that work is visible, or only runs after \
         the decision, so the vote of {:?} would come too late to stop it",
        branch.name,
        branch.kind.as_str(),
        before.name,
        before.kind.as_str(),
        branch.name
    );
    Err(error("after_unsafe", field, message))
}

impl Options {
    fn check(&self) -> Result<(), PlanError> {
        let positive = [
            ("prepare_timeout_ms", self.prepare_timeout_ms),
            ("execute_timeout_ms", self.execute_timeout_ms),
            ("attempt_timeout_ms", self.attempt_timeout_ms),
            ("retry_delay_ms", self.retry.delay_ms),
            ("retry_delay_max_ms", self.retry.delay_max_ms),
            ("parked_retry_delay_ms", self.retry.parked_delay_ms),
        ];
        for (field, value) in positive {
            if value == 0 || value > TIMEOUT_MS_MAX {
                let message = format!("is {value}; it must be 1 to {TIMEOUT_MS_MAX} ms (30 days)");
                return Err(error("timeout_invalid", field, message));
            }
        }
        if self.retry.park_after_attempts == 0 {
            let message = "is 0; a branch cannot be parked before it was tried";
            return Err(error("timeout_invalid", "park_after_attempts", message));
        }
        if self.timeout_ms > TIMEOUT_MS_MAX {
            let message = format!("is {}; at most {TIMEOUT_MS_MAX} ms", self.timeout_ms);
            return Err(error("timeout_invalid", "timeout_ms", message));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn branch(name: &str, kind: Kind, after: &[u16]) -> BranchPlan {
        BranchPlan {
            name: name.into(),
            participant: "p".into(),
            kind,
            after: after.to_vec(),
            payload: Arc::from(&b""[..]),
            payload_in_phase_two: false,
        }
    }

    fn check(branches: Vec<BranchPlan>, expected: Result<(), &str>) {
        let plan = Plan { branches, options: Options::default() };
        assert_eq!(plan.check().map_err(|error| error.code), expected);
    }

    #[test]
    fn plans_are_checked_before_anything_is_sent() {
        use Kind::{Compensable, Deferred, TwoPhase};
        check(vec![branch("a", TwoPhase, &[]), branch("b", TwoPhase, &[0])], Ok(()));
        check(vec![], Err("no_branches"));
        check(vec![branch("a", TwoPhase, &[]); 2], Err("branch_name_repeated"));
        check(vec![branch("a b", TwoPhase, &[])], Err("branch_name_invalid"));
        check(vec![branch("a", TwoPhase, &[0])], Err("after_itself"));
        check(vec![branch("a", TwoPhase, &[1])], Err("after_unknown"));
        let cycle = vec![branch("a", Compensable, &[1]), branch("b", Compensable, &[0])];
        check(cycle, Err("after_cycle"));
        let late = vec![branch("a", TwoPhase, &[1]), branch("b", Deferred, &[])];
        check(late, Err("after_unsafe"));
        let mut large = branch("a", TwoPhase, &[]);
        large.payload = vec![0; PAYLOAD_BYTES_MAX + 1].into();
        check(vec![large], Err("payload_too_large"));
        let full = |n: usize| {
            let payload = vec![0; PAYLOAD_BYTES_MAX].into();
            BranchPlan { payload, ..branch(&n.to_string(), TwoPhase, &[]) }
        };
        check((0..16).map(full).collect(), Ok(()));
        check((0..17).map(full).collect(), Err("payload_too_large"));
        let many = (0..=BRANCHES_MAX).map(|n| branch(&n.to_string(), TwoPhase, &[])).collect();
        check(many, Err("too_many_branches"));
    }

    #[test]
    fn absurd_timeouts_are_refused() {
        let branches = vec![branch("a", Kind::TwoPhase, &[])];
        let options = Options { prepare_timeout_ms: 0, ..Options::default() };
        let plan = Plan { branches, options };
        assert_eq!(plan.check().map_err(|error| error.code), Err("timeout_invalid"));
    }
}
