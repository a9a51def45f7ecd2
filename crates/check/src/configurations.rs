//! Which worlds are explored to exhaustion: small, named, and each with the exact number of its
//! states, so that a silent change of the protocol shows. When the protocol is changed on purpose,
//! `cargo run --release -p unanimity-check` prints the new numbers.
//!
//! Repeated delivery is the cheaper network: a message that stays is one bit, a message that may be
//! gone is two. So most worlds repeat, and a few deliver at most once, where an answer can be lost.

use unanimity_core::Kind;

use crate::milestones::Milestone::{self, *};
use crate::setup::{BranchSetup, Network, Says, Setup};

/// A setup, what its exploration must meet, and how many states it has.
#[derive(Clone, Debug)]
pub struct Configuration {
    /// The world.
    pub setup: Setup,
    /// What must be met.
    pub milestones: &'static [Milestone],
    /// How many states there are.
    pub states: usize,
}

const fn branch(kind: Kind, says: Says, after: &'static [u16]) -> BranchSetup {
    let by_initiator = matches!(kind, Kind::Local);
    BranchSetup { kind, says, after, by_initiator, notice: false, last: false }
}

const fn by_initiator(branch: BranchSetup) -> BranchSetup {
    BranchSetup { by_initiator: true, ..branch }
}

const LOCAL: BranchSetup = branch(Kind::Local, Says::Yes, &[]);
const LATER: BranchSetup = branch(Kind::TwoPhase, Says::Yes, &[0]);
const TRIED: BranchSetup = by_initiator(YES);
const TRIED_STEP: BranchSetup = by_initiator(STEP);
const NOTICE: BranchSetup = BranchSetup { notice: true, ..branch(Kind::Deferred, Says::Yes, &[]) };
const LAST: BranchSetup = BranchSetup { last: true, ..NOTICE };

const YES: BranchSetup = branch(Kind::TwoPhase, Says::Yes, &[]);
const NO: BranchSetup = branch(Kind::TwoPhase, Says::No, &[]);
const READER: BranchSetup = branch(Kind::TwoPhase, Says::ReadOnly, &[]);
const STEP: BranchSetup = branch(Kind::Compensable, Says::Yes, &[]);
const LATER_STEP: BranchSetup = branch(Kind::Compensable, Says::Yes, &[0]);
const LATER_REFUSAL: BranchSetup = branch(Kind::Compensable, Says::No, &[0]);
const MESSAGE: BranchSetup = branch(Kind::Deferred, Says::Yes, &[]);
const LATE_MESSAGE: BranchSetup = branch(Kind::Deferred, Says::NoFirst, &[]);
const LATER_MESSAGE: BranchSetup = branch(Kind::Deferred, Says::Yes, &[1]);

const ONE: &[BranchSetup] = &[YES];
const TWO: &[BranchSetup] = &[YES, YES];
const THREE: &[BranchSetup] = &[YES, YES, YES];

/// Two willing branches; nothing goes wrong. AC4 is judged here.
pub const CALM: &str = "calm";
/// Two willing branches; each message arrives at most once, any call may be given up.
pub const LOSSY_ONCE: &str = "lossy, at most once";
/// Two willing branches; messages repeat, any call may be given up.
pub const LOSSY: &str = "lossy";
/// The same, and deadlines may fire at any moment.
pub const DEADLINES: &str = "deadlines";
/// Deadlines, the limit for the whole, and a request to roll back.
pub const LIMITS: &str = "limits";
/// One branch refuses; two crashes.
pub const ONE_REFUSES: &str = "one refuses";
/// Two willing branches, every attempt told apart from the next, one crash.
pub const ONE_CRASH: &str = "one crash";
/// Three willing branches, deadlines, two crashes.
pub const THREE_BRANCHES: &str = "three branches";
/// Participants restart and ask for the decision, and the coordinator crashes too.
pub const RESTARTS: &str = "restarts";
/// A prepared participant loses its memory.
pub const AMNESIA: &str = "amnesia";
/// The journal is written anew and shortened, and the coordinator crashes.
pub const CHECKPOINT: &str = "checkpoint";
/// One branch has nothing to commit.
pub const READ_ONLY: &str = "read only";
/// No branch has anything to commit.
pub const ALL_READ_ONLY: &str = "all read only";
/// Compensable branches, one after the other.
pub const SAGA: &str = "saga";
/// The same, and the later one refuses.
pub const SAGA_REFUSED: &str = "saga refused";
/// Deferred branches, one after the other, behind a prepared one.
pub const DEFERRED: &str = "deferred";
/// A deferred branch that is refused at first.
pub const DEFERRED_REFUSED: &str = "deferred refused";
/// A branch of each kind.
pub const MIXED: &str = "mixed";
/// A single branch that commits in one phase, and copies of its service that do not know how.
pub const ONE_PHASE: &str = "one phase";
/// The same, and the journal is written anew.
pub const ONE_PHASE_ANEW: &str = "one phase, written anew";
/// An interactive transaction, and the journal is written anew.
pub const INTERACTIVE_ANEW: &str = "interactive, written anew";
/// A branch of each kind, and the journal is written anew.
pub const MIXED_ANEW: &str = "mixed, written anew";
/// A message that waits for local work, and the journal is written anew.
pub const INQUIRY_ANEW: &str = "inquiry, written anew";
/// A single branch that commits in one phase, and it refuses.
pub const ONE_PHASE_REFUSED: &str = "one phase refused";
/// Two votes before visible work.
pub const VISIBLE: &str = "visible work";
/// An interactive transaction: one branch is there, one is enlisted and tried by the initiator.
pub const INTERACTIVE: &str = "interactive";
/// An interactive one whose second branch comes after the first.
pub const INTERACTIVE_ORDER: &str = "interactive in order";
/// An interactive one with visible work of the initiator and of the coordinator.
pub const INTERACTIVE_MIXED: &str = "interactive mixed";
/// A message that goes out if the initiator's own database has committed.
pub const INQUIRY: &str = "inquiry";
/// A deferred branch that waits a while, and also tells of a rollback.
pub const NOTICE_SENT: &str = "notice";
/// A notice that comes last, and deferred work that is enlisted after it.
pub const NOTICE_LAST: &str = "notice last";
/// An operator settles a branch.
pub const RESOLVED: &str = "resolved";
/// An operator settles a branch of a rollback that is told of.
pub const RESOLVED_NOTICE: &str = "resolved notice";
/// An operator settles the branch that alone decides.
pub const RESOLVED_ALONE: &str = "resolved alone";
/// One branch with two attempts, and every fault but a checkpoint.
pub const ALONE: &str = "alone in the storm";

fn repeating(name: &'static str, branches: &'static [BranchSetup]) -> Setup {
    Setup { network: Network::Repeats, attempts_max: 1, ..Setup::calm(name, branches) }
}

/// Messages repeat, calls are given up, deadlines fire.
fn stormy(name: &'static str, branches: &'static [BranchSetup], crashes: u8) -> Setup {
    let coordinator_crashes = crashes;
    Setup { gives_up: true, deadlines: true, coordinator_crashes, ..repeating(name, branches) }
}

fn row(setup: Setup, milestones: &'static [Milestone], states: usize) -> Configuration {
    Configuration { setup, milestones, states }
}

/// Every configuration that a build is checked with.
#[must_use]
pub fn all() -> Vec<Configuration> {
    let mut all = two_phase();
    all.extend(with_faults());
    all.extend(other_kinds());
    all.extend(other_ways());
    all
}

/// Interactive transactions, one participant that alone decides, and operators.
fn other_ways() -> Vec<Configuration> {
    let one = Setup { one_phase: true, old_copies: true, cancels: 1, ..stormy(ONE_PHASE, ONE, 1) };
    let one = Setup { participant_restarts: 1, refuses: true, ..one };
    let refused = Setup { one_phase: true, ..stormy(ONE_PHASE_REFUSED, &[NO], 2) };
    let open = |setup: Setup| Setup { open: true, commit_requests: 2, symmetry: false, ..setup };
    let quiet = |setup: Setup| Setup { gives_up: false, ..setup };
    let interactive = quiet(open(stormy(INTERACTIVE, &[YES, TRIED], 1)));
    let interactive = Setup { begun_with: 1, ..interactive };
    let in_order = quiet(open(stormy(INTERACTIVE_ORDER, &[YES, LATER], 1)));
    let in_order = Setup { begun_with: 1, ..in_order };
    let mixed = quiet(open(stormy(INTERACTIVE_MIXED, &[TRIED_STEP, STEP], 1)));
    let mixed = Setup { begun_with: 1, ..mixed };
    let inquiry =
        Setup { begun_with: 1, cancels: 1, ..open(stormy(INQUIRY, &[LOCAL, MESSAGE], 1)) };
    let last = quiet(open(stormy(NOTICE_LAST, &[LAST, MESSAGE, NOTICE], 1)));
    let last = Setup { begun_with: 1, commit_requests: 1, ..last };
    let resolved = Setup { resolutions: 1, ..quiet(stormy(RESOLVED_NOTICE, &[NO, NOTICE], 1)) };
    let by_hand = Setup { resolutions: 1, ..quiet(stormy(RESOLVED, TWO, 0)) };
    let by_hand = Setup { symmetry: false, ..by_hand };
    let alone = quiet(open(stormy(RESOLVED_ALONE, &[LOCAL, MESSAGE], 0)));
    let anew = |name, setup: &Setup| Setup { name, checkpoints: 1, ..setup.clone() };
    let one_anew = anew(ONE_PHASE_ANEW, &Setup { one_phase: true, ..stormy("", ONE, 1) });
    let open_anew = anew(INTERACTIVE_ANEW, &interactive);
    let mixed_anew = anew(MIXED_ANEW, &quiet(stormy("", &[YES, STEP, MESSAGE], 1)));
    let inquiry_anew = anew(INQUIRY_ANEW, &inquiry);
    vec![
        row(one_anew, &[Checkpointed, Committed, RolledBack, SettledByCommit], 879),
        row(open_anew, &[Checkpointed, Committed, RolledBack, Abandoned, DownWhileOpen], 5_886),
        row(mixed_anew, &[Checkpointed, Committed, Compensated, DeferredDone], 2_969),
        row(inquiry_anew, &[Checkpointed, Committed, RolledBack, Abandoned], 10_174),
        row(one, &[Committed, RolledBack, SettledByCommit, Declined], 23_057),
        row(refused, &[RolledBack, RollbackByVote, RollbackByRecovery], 309),
        row(quiet(stormy(VISIBLE, &[YES, YES, STEP], 1)), &[Committed, Compensated], 1_751),
        row(interactive, &[Committed, RolledBack, Abandoned, DownWhileOpen, WorkRefused], 780),
        row(in_order, &[Committed, RolledBack, DownWhileOpen], 1_801),
        row(mixed, &[Committed, RolledBack, Compensated, DownWhileOpen, WorkRefused], 915),
        row(inquiry, &[Committed, RolledBack, Abandoned, SettledByCommit, WorkRefused], 1_421),
        row(
            quiet(stormy(NOTICE_SENT, &[YES, STEP, NOTICE], 1)),
            &[ToldOfRollback, DeferredDone],
            1_107,
        ),
        row(last, &[Committed, ToldOfRollback, DeferredDone, DownWhileOpen], 450),
        row(by_hand, &[Mixed, Committed, RolledBack], 5_913),
        row(resolved, &[RolledBack], 2_318),
        row(Setup { resolutions: 1, ..alone }, &[Committed, RolledBack, SettledByCommit], 373),
    ]
}

/// Two-phase branches, an unreliable network and deadlines.
fn two_phase() -> Vec<Configuration> {
    let lossy_once = Setup { gives_up: true, ..Setup::calm(LOSSY_ONCE, TWO) };
    let lossy = Setup { network: Network::Repeats, ..Setup { name: LOSSY, ..lossy_once.clone() } };
    let deadlines = Setup { name: DEADLINES, deadlines: true, ..lossy.clone() };
    let limits = Setup { limit_for_the_whole: true, cancels: 1, ..stormy(LIMITS, TWO, 0) };
    let one_crash = Setup { name: ONE_CRASH, coordinator_crashes: 1, ..lossy.clone() };
    vec![
        row(Setup::calm(CALM, TWO), &[Committed], 15),
        row(lossy_once, &[Committed, Parked], 86_087),
        row(lossy, &[Committed, Parked, RepeatedCommitAnswered], 6_737),
        row(deadlines, &[Committed, RollbackByDeadline, LatePrepareRefused, Parked], 454_480),
        row(limits, &[RollbackByDeadline, RollbackByLimit, RollbackByRequest, Overdue], 45_817),
        row(
            stormy(ONE_REFUSES, &[YES, NO], 2),
            &[RolledBack, RollbackByVote, DownWhilePreparing, DownWhileRollingBack],
            8_583,
        ),
        row(
            one_crash,
            &[Committed, RolledBack, RollbackByRecovery, LatePrepareRefused, DownWhileCommitting],
            71_501,
        ),
        row(
            stormy(THREE_BRANCHES, THREE, 2),
            &[Committed, RolledBack, DownWhilePreparing, DownWhileCommitting, DownAfterTheEnd],
            92_893,
        ),
    ]
}

/// The rarer faults.
fn with_faults() -> Vec<Configuration> {
    let restarts = Setup { deadlines: true, coordinator_crashes: 2, ..repeating(RESTARTS, TWO) };
    let restarts = Setup { participant_restarts: 2, ..restarts };
    let amnesia = Setup { gives_up: true, coordinator_crashes: 1, ..repeating(AMNESIA, TWO) };
    let amnesia = Setup { amnesia: 1, ..amnesia };
    let checkpoint = Setup { checkpoints: 1, ..stormy(CHECKPOINT, TWO, 1) };
    let alone = Setup { limit_for_the_whole: true, cancels: 1, ..stormy(ALONE, ONE, 1) };
    let alone = Setup { participant_restarts: 1, attempts_max: 2, ..alone };
    vec![
        row(restarts, &[ToldToCommit, ToldToRollBack, LatePrepareRefused], 45_976),
        row(amnesia, &[AmnesiaReported, Committed, RolledBack], 1_540),
        row(checkpoint, &[Checkpointed, Committed, RolledBack, DownWhileCommitting], 79_857),
        row(alone, &[Committed, RolledBack, RollbackByLimit, ToldToCommit, Overdue], 73_317),
    ]
}

/// Voters with nothing to commit, and branches that are not two-phase.
fn other_kinds() -> Vec<Configuration> {
    vec![
        row(stormy(READ_ONLY, &[YES, READER], 2), &[Committed, RolledBack], 7_592),
        row(stormy(ALL_READ_ONLY, &[READER, READER], 1), &[Committed, RolledBack], 1_776),
        row(
            stormy(SAGA, &[STEP, LATER_STEP], 2),
            &[Committed, RollbackByDeadline, Compensated, DownWhileExecuting],
            798,
        ),
        row(
            stormy(SAGA_REFUSED, &[STEP, LATER_REFUSAL], 2),
            &[RolledBack, RollbackByVote, Compensated, DownWhileRollingBack],
            753,
        ),
        row(
            stormy(DEFERRED, &[YES, MESSAGE, LATER_MESSAGE], 2),
            &[Committed, RolledBack, DeferredDone, DownWhileCommitting],
            493,
        ),
        row(
            stormy(DEFERRED_REFUSED, &[YES, LATE_MESSAGE], 2),
            &[Committed, DeferredDone, DownWhileCommitting],
            456,
        ),
        row(
            stormy(MIXED, &[YES, STEP, MESSAGE], 2),
            &[Committed, RolledBack, Compensated, DeferredDone, DownWhileExecuting],
            3_176,
        ),
    ]
}

/// Larger worlds, for `--deep`: minutes, not seconds.
#[must_use]
pub fn deep() -> Vec<Configuration> {
    let refuses = Setup { attempts_max: 2, ..stormy("deep: one refuses", &[YES, NO], 0) };
    let every = Setup { limit_for_the_whole: true, cancels: 1, ..repeating("deep: every", TWO) };
    let every = Setup { deadlines: true, coordinator_crashes: 1, checkpoints: 1, ..every };
    let every = Setup { participant_restarts: 1, ..every };
    let alone = Setup { limit_for_the_whole: true, cancels: 1, ..stormy("deep: alone", ONE, 2) };
    let alone = Setup { participant_restarts: 2, checkpoints: 1, attempts_max: 2, ..alone };
    let storm = Setup { attempts_max: 2, ..stormy("deep: storm", TWO, 1) };
    let mixed = stormy("deep: mixed", &[YES, STEP, MESSAGE], 1);
    let saga = stormy("deep: saga refused", &[STEP, LATER_REFUSAL], 2);
    let open = |setup: Setup| Setup { open: true, commit_requests: 2, symmetry: false, ..setup };
    let interactive = open(stormy("deep: interactive", &[YES, TRIED], 1));
    let interactive = Setup { begun_with: 1, commit_requests: 1, ..interactive };
    let inquiry = open(stormy("deep: inquiry", &[LOCAL, MESSAGE, NOTICE], 2));
    let inquiry = Setup { begun_with: 1, gives_up: false, cancels: 1, ..inquiry };
    let one = Setup { one_phase: true, old_copies: true, cancels: 1, ..stormy("x", ONE, 2) };
    let one = Setup { name: "deep: one phase", attempts_max: 2, refuses: true, ..one };
    let anew = |setup: Setup| Setup { checkpoints: 1, ..setup };
    let mixed_anew = anew(stormy("deep: mixed, written anew", &[YES, STEP, MESSAGE], 1));
    let mixed_anew = Setup { attempts_max: 2, ..mixed_anew };
    let open_anew = anew(open(stormy("deep: interactive, written anew", &[YES, TRIED], 2)));
    let open_anew = Setup { begun_with: 1, ..open_anew };
    let open_steps = open(stormy("deep: interactive steps", &[TRIED_STEP, STEP, MESSAGE], 1));
    let open_steps = Setup { begun_with: 1, ..open_steps };
    let reader = Setup { attempts_max: 2, ..stormy("deep: read only", &[YES, READER], 1) };
    let three = Setup { resolutions: 1, ..stormy("deep: resolved of three", THREE, 0) };
    let three = Setup { symmetry: false, gives_up: false, ..three };
    let forgets = Setup { gives_up: true, amnesia: 1, ..repeating("deep: amnesia", THREE) };
    let forgets = Setup { coordinator_crashes: 1, ..forgets };
    let restarts = Setup { participant_restarts: 2, ..stormy("deep: restarts", TWO, 2) };
    let limits = Setup { cancels: 1, limit_for_the_whole: true, ..stormy("x", TWO, 2) };
    let limits = Setup { name: "deep: limits", checkpoints: 1, ..limits };
    let by_hand = Setup { resolutions: 1, symmetry: false, ..stormy("x", TWO, 1) };
    let by_hand = Setup { name: "deep: resolved", ..by_hand };
    vec![
        row(interactive, &[Committed, RolledBack, Abandoned, WorkRefused], 1_808),
        row(inquiry, &[Committed, RolledBack, SettledByCommit], 6_455),
        row(one, &[Committed, RolledBack, SettledByCommit, Declined], 318_168),
        row(by_hand, &[Mixed, Committed, RolledBack], 91_100),
        row(refuses, &[RollbackByVote], 468_427),
        row(mixed_anew, &[Checkpointed, Committed, Compensated, DeferredDone], 16_569_044),
        row(open_anew, &[Checkpointed, Committed, Abandoned, DownWhileOpen], 150_647),
        row(open_steps, &[Committed, Compensated, DeferredDone, Abandoned], 4_751),
        row(reader, &[Committed, RolledBack], 923_415),
        row(three, &[Mixed, Committed, RolledBack], 159_535),
        row(forgets, &[AmnesiaReported, Committed, RolledBack], 10_656),
        row(restarts, &[ToldToCommit, ToldToRollBack, LatePrepareRefused], 189_704),
        row(limits, &[RollbackByLimit, RollbackByRequest, Checkpointed], 3_156_596),
        row(
            stormy("deep: four branches", &[YES, YES, YES, YES], 0),
            &[Committed, RolledBack],
            424_588,
        ),
        row(every, &[Committed, RolledBack, Overdue], 418_665),
        row(alone, &[Committed, RolledBack, Checkpointed], 2_217_102),
        row(storm, &[Committed, RolledBack, LatePrepareRefused], 1_159_083),
        row(Setup { attempts_max: 2, ..mixed }, &[Compensated, DeferredDone], 1_363_477),
        row(Setup { attempts_max: 2, ..saga }, &[Compensated, RollbackByVote], 365_842),
    ]
}

/// The configuration with this name, of [`all`].
#[must_use]
pub fn named(name: &str) -> Option<Configuration> {
    all().into_iter().find(|configuration| configuration.setup.name == name)
}
