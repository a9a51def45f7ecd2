//! What initiators ask for: transactions of every kind and mixture, each of which moves money
//! between accounts so that the sum stays.

use unanimity_core::{BranchPlan, Kind, Options as Timing, Plan, RetryPolicy, TransactionId};

use super::options::Options;
use super::random::Random;
use super::service::Job;

/// A transaction to be done.
#[derive(Clone, Debug)]
pub struct Work {
    /// Its name.
    pub id: TransactionId,
    /// All of it.
    pub plan: Plan,
    /// With how many branches it begins; the others are enlisted.
    pub begun_with: usize,
    /// What each branch does with its account.
    pub jobs: Vec<Job>,
    /// Whether the initiator gives up at its end, where it could commit.
    pub gives_up: bool,
    /// Whether the initiator asks later what became of a transaction that it has no answer about.
    pub asks_later: bool,
    /// Spreads the jitter of what is asked again.
    pub seed: u64,
}

/// How long everything takes at most, in virtual milliseconds.
#[must_use]
pub fn timing(random: &mut Random) -> Timing {
    Timing {
        prepare_timeout_ms: *random.pick(&[200, 1_000, 3_000]),
        execute_timeout_ms: *random.pick(&[300, 1_500, 4_000]),
        open_timeout_ms: *random.pick(&[500, 2_000, 5_000]),
        timeout_ms: *random.pick(&[0, 0, 1_000, 6_000]),
        attempt_timeout_ms: *random.pick(&[100, 400]),
        one_phase: random.chance(700_000),
        retry: RetryPolicy {
            delay_ms: *random.pick(&[5, 50]),
            delay_max_ms: *random.pick(&[200, 1_000]),
            park_after_attempts: u16::try_from(random.between(2, 6)).unwrap_or(2),
            parked_delay_ms: *random.pick(&[1_000, 3_000]),
        },
    }
}

/// How long a transaction of this timing takes at most from any moment on when nothing fails any
/// more: its phases, and for every branch in turn one longest wait and one attempt.
#[must_use]
pub fn bound_ms(plan: &Plan) -> u64 {
    let (timing, branches) = (&plan.options, plan.branches.len() as u64);
    let open_ms = if plan.open { timing.open_timeout_ms } else { 0 };
    let phases = open_ms + timing.prepare_timeout_ms + timing.execute_timeout_ms;
    let wait = timing.retry.parked_delay_ms.max(timing.retry.delay_max_ms);
    phases + DELAY_MS_MAX + (2 * branches + 4) * (wait + timing.attempt_timeout_ms + 500)
}

/// Deferred work is put off by at most this.
const DELAY_MS_MAX: u64 = 1_500;

/// The next transaction of an initiator.
#[must_use]
pub fn next(random: &mut Random, options: &Options, id: TransactionId) -> Work {
    loop {
        let open = random.chance(350_000);
        let work = drawn(random, options, id.clone(), open);
        // Most shapes are good; what the static checks refuse is drawn again.
        if work.plan.check().is_ok() {
            return work;
        }
    }
}

fn drawn(random: &mut Random, options: &Options, id: TransactionId, open: bool) -> Work {
    let count = random.between(1, u64::from(options.branches_max));
    let amount = i64::try_from(random.between(1, 400)).unwrap_or(1);
    let local = open && random.chance(250_000);
    let mut branches = Vec::new();
    let mut jobs = Vec::new();
    let mut left = 0;
    for number in 0..count {
        let last = number + 1 == count;
        let kinds: &[Kind] = if local && number == 0 {
            &[Kind::Local]
        } else if local {
            &[Kind::Deferred]
        } else {
            &[Kind::TwoPhase, Kind::TwoPhase, Kind::Compensable, Kind::Deferred]
        };
        let mut kind = *random.pick(kinds);
        let amount = match (number, last) {
            (0, true) => 0,
            (_, true) => -left,
            (0, false) => -amount,
            _ => i64::try_from(random.below(u64::try_from(-left).unwrap_or(0) + 1)).unwrap_or(0),
        };
        if amount < 0 && kind == Kind::Deferred {
            kind = Kind::TwoPhase; // What is deferred must succeed in the end: it only gives.
        }
        left += amount;
        let reads = amount == 0 && kind != Kind::Local && random.chance(300_000);
        let account = u8::try_from(random.below(u64::from(options.accounts))).unwrap_or(0);
        branches.push(branch(random, options, (number, kind, open)));
        jobs.push(Job { account, amount, reads });
    }
    if random.chance(150_000) {
        let notice = branch(random, options, (count, Kind::Deferred, open));
        let comes_last = random.chance(500_000);
        branches.push(BranchPlan { also_on_rollback: true, comes_last, ..notice });
        jobs.push(Job { account: 0, amount: 0, reads: false });
    }
    for (branch, job) in branches.iter_mut().zip(&jobs) {
        branch.payload = job.bytes();
    }
    let begun_with = random.below(branches.len() as u64 + 1);
    let begun_with = usize::try_from(begun_with).unwrap_or(0);
    let begun_with = if open { begun_with } else { branches.len() };
    let gives_up = open && random.chance(150_000);
    let mut plan = Plan { open, branches, options: timing(random) };
    if options.begins_older && !open {
        // The initiators are of that version as well, and cannot say what it did not know.
        let usual = Timing::default();
        plan.options.open_timeout_ms = usual.open_timeout_ms;
        plan.options.one_phase = usual.one_phase;
    }
    let (asks_later, seed) = (random.chance(700_000), random.bits());
    Work { id, plan, begun_with, jobs, gives_up, asks_later, seed }
}

fn branch(
    random: &mut Random,
    options: &Options,
    (number, kind, open): (u64, Kind, bool),
) -> BranchPlan {
    let service = random.below(u64::from(options.services));
    let after = if number > 0 && random.chance(300_000) {
        vec![u16::try_from(random.below(number)).unwrap_or(0)]
    } else {
        Vec::new()
    };
    let tried = matches!(kind, Kind::TwoPhase | Kind::Compensable) && open;
    let delayed = kind == Kind::Deferred && random.chance(200_000);
    let mut branch = BranchPlan::new(format!("b{number}"), format!("s{service}"), kind);
    branch.after = after.into();
    branch.by_initiator |= tried && random.chance(400_000);
    branch.delay_ms = if delayed { random.between(1, DELAY_MS_MAX) } else { 0 };
    branch
}

/// The number of the service that a branch's participant is.
#[must_use]
pub fn service_of(branch: &BranchPlan) -> usize {
    branch.participant.trim_start_matches('s').parse().unwrap_or(0)
}
