//! What a world is made of and which faults it may suffer: the numbers that make the space of its
//! states finite. Which setups are explored is `configurations`'.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use unanimity_core::{
    BranchPlan, CoordinatorConfig, Kind, Mutations, Options, Plan, RetryPolicy, TransactionId,
};

/// What a participant's service says when it is asked to prepare or execute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Says {
    /// It does the work.
    Yes,
    /// It refuses.
    No,
    /// It refuses the first time, and does the work when it is asked again.
    NoFirst,
    /// It finds nothing to commit.
    ReadOnly,
}

/// One branch of the plan, and the participant behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BranchSetup {
    /// What sort of promise it makes.
    pub kind: Kind,
    /// What its service says.
    pub says: Says,
    /// The branches that must come before it.
    pub after: &'static [u16],
    /// Whether its initiator does the phase-one work.
    pub by_initiator: bool,
    /// Whether it is deferred work that waits for a while, and is done after a rollback too.
    pub notice: bool,
    /// Whether it comes last, when every other branch is done.
    pub last: bool,
}

/// How a network treats what is on its way. Loss, delay and reordering are free in either.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// Each message arrives at most once.
    Once,
    /// Each message may arrive any number of times, forever.
    Repeats,
}

/// A world's make and its budget of faults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setup {
    /// Its name in reports.
    pub name: &'static str,
    /// The transaction's branches.
    pub branches: &'static [BranchSetup],
    /// Whether it is interactive.
    pub open: bool,
    /// With how many of the branches it begins; the others are enlisted.
    pub begun_with: usize,
    /// How often the initiator of an interactive one may ask to commit.
    pub commit_requests: u8,
    /// Whether a single two-phase branch commits in one phase.
    pub one_phase: bool,
    /// Whether a copy of the service that knows no commit in one phase may get the call.
    pub old_copies: bool,
    /// Whether a call may be known to have never been sent.
    pub refuses: bool,
    /// How often an operator may say how a branch was settled.
    pub resolutions: u8,
    /// How messages travel.
    pub network: Network,
    /// Whether the driver may give up a call that could still be answered.
    pub gives_up: bool,
    /// Whether deadlines (not retries, which always may) fire at any moment.
    pub deadlines: bool,
    /// Whether there is a limit for the whole transaction.
    pub limit_for_the_whole: bool,
    /// How often somebody may ask for a rollback.
    pub cancels: u8,
    /// How often the coordinator may crash.
    pub coordinator_crashes: u8,
    /// How often a participant may crash between its local commit and its answer, and restart.
    pub participant_restarts: u8,
    /// How often a prepared participant may lose its memory (a disk lost, a backup restored).
    pub amnesia: u8,
    /// How often the coordinator may write everything anew and forget the older records.
    pub checkpoints: u8,
    /// Attempts are counted up to here.
    pub attempts_max: u32,
    /// After how many failures a branch is parked.
    pub park_after: u16,
    /// A deliberate bug, if any.
    pub mutations: Mutations,
    /// Whether states that differ only in the numbers of interchangeable branches count as one.
    pub symmetry: bool,
}

impl Setup {
    /// A world without faults, to be changed by struct update.
    #[must_use]
    pub fn calm(name: &'static str, branches: &'static [BranchSetup]) -> Self {
        Self {
            name,
            branches,
            open: false,
            begun_with: branches.len(),
            commit_requests: 0,
            one_phase: false,
            old_copies: false,
            refuses: false,
            resolutions: 0,
            network: Network::Once,
            gives_up: false,
            deadlines: false,
            limit_for_the_whole: false,
            cancels: 0,
            coordinator_crashes: 0,
            participant_restarts: 0,
            amnesia: 0,
            checkpoints: 0,
            attempts_max: 2,
            park_after: 1,
            mutations: Mutations::default(),
            symmetry: true,
        }
    }

    /// Whether nothing can go wrong: then all-yes must commit (AC4).
    #[must_use]
    pub const fn is_free_of_faults(&self) -> bool {
        !self.gives_up
            && !self.deadlines
            && self.cancels == 0
            && self.coordinator_crashes == 0
            && self.participant_restarts == 0
            && self.amnesia == 0
            && self.resolutions == 0
    }

    /// Whether no service refuses.
    #[must_use]
    pub fn is_all_willing(&self) -> bool {
        self.branches.iter().all(|branch| branch.says != Says::No)
    }

    /// The only transaction's name.
    ///
    /// # Panics
    /// Never: the name is a good one.
    #[must_use]
    pub fn transaction() -> TransactionId {
        match TransactionId::new("t") {
            Ok(id) => id,
            Err(error) => panic!("{error}"),
        }
    }

    /// What the initiator asks for. Every delay is 1 ms, so that jitter tells no branch from
    /// another.
    #[must_use]
    pub fn plan(&self) -> Plan {
        let retry = RetryPolicy {
            delay_ms: 1,
            delay_max_ms: 1,
            park_after_attempts: self.park_after,
            parked_delay_ms: 1,
        };
        let options = Options {
            prepare_timeout_ms: 10,
            execute_timeout_ms: 20,
            open_timeout_ms: 15,
            one_phase: self.one_phase,
            timeout_ms: if self.limit_for_the_whole { 30 } else { 0 },
            attempt_timeout_ms: 5,
            retry,
        };
        let numbers = 0..u16::try_from(self.begun_with).unwrap_or(u16::MAX);
        let branches = numbers.map(|number| self.branch_plan(number)).collect();
        Plan { open: self.open, branches, options }
    }

    /// One branch of what the initiator asks for.
    #[must_use]
    pub fn branch_plan(&self, number: u16) -> BranchPlan {
        let branch = &self.branches[usize::from(number)];
        let letter = u8::try_from(number).map_or('?', |number| char::from(b'a' + number));
        let name = letter.to_string();
        BranchPlan {
            after: branch.after.into(),
            by_initiator: branch.by_initiator,
            also_on_rollback: branch.notice,
            delay_ms: u64::from(branch.notice),
            comes_last: branch.last,
            ..BranchPlan::new(name.as_str(), name.as_str(), branch.kind)
        }
    }

    /// The coordinator's own bounds.
    #[must_use]
    pub fn coordinator(&self) -> CoordinatorConfig {
        CoordinatorConfig {
            live_transactions_max: 1,
            observations_max: 0,
            attempts_counted_max: self.attempts_max,
            seed: 0,
            mutations: self.mutations,
        }
    }
}

/// A setup as part of a world: shared, and no part of what tells two of its states apart.
#[derive(Clone, Debug)]
pub struct Rules(pub Arc<Setup>);

impl PartialEq for Rules {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
    }
}

impl Eq for Rules {}

impl Hash for Rules {
    fn hash<H: Hasher>(&self, _state: &mut H) {}
}
