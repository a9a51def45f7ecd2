//! What one run is made of: how many of everything, which faults, and how often. All of it is drawn
//! from the seed ("swarm testing": Groce and others, ISSTA 2012: a run that leaves half of the
//! kinds of faults out reaches what a run with all of them hides).

use serde::{Deserialize, Serialize};
use unanimity_core::{AskPolicy, Mutations};

use super::random::{MILLION, Random};

/// A kind of fault, as the fault model names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "each is explained by `FaultKind::what`")]
pub enum FaultKind {
    CallLost,
    CallTwice,
    CallLate,
    CallReplayed,
    AnswerLost,
    AnswerGarbled,
    ConnectionRefused,
    Partition,
    RequestLost,
    RequestTwice,
    ReplyLost,
    CoordinatorKilled,
    CoordinatorLosesPower,
    CoordinatorPaused,
    CoordinatorReplaced,
    ServiceKilled,
    ServicePaused,
    ServiceFails,
    ServiceUnwilling,
    ServiceOldCopy,
    ServiceForgets,
    CommitFailsBefore,
    CommitFailsAfter,
    AppendLost,
    AppendDurableAndFailed,
    AppendUnsynced,
    AppendSlow,
    JournalDamaged,
    HistorySlow,
    ClockStepped,
    InitiatorVanishes,
    InitiatorRollsBack,
    OperatorRetries,
    TransactionPoisoned,
    ReplicaDown,
    ServiceUpgraded,
    CoordinatorUpgraded,
}

use FaultKind::*;

impl FaultKind {
    /// Every kind, and how often it happens by default, in a million opportunities.
    pub const ALL: [(Self, u64); 37] = [
        (CallLost, 40_000),
        (CallTwice, 60_000),
        (CallLate, 30_000),
        (CallReplayed, 10_000),
        (AnswerLost, 40_000),
        (AnswerGarbled, 10_000),
        (ConnectionRefused, 15_000),
        (Partition, 4_000),
        (RequestLost, 30_000),
        (RequestTwice, 40_000),
        (ReplyLost, 30_000),
        (CoordinatorKilled, 6_000),
        (CoordinatorLosesPower, 3_000),
        (CoordinatorPaused, 1_500),
        (CoordinatorReplaced, 1_000),
        (ServiceKilled, 4_000),
        (ServicePaused, 2_000),
        (ServiceFails, 30_000),
        (ServiceUnwilling, 60_000),
        (ServiceOldCopy, 20_000),
        (ServiceForgets, 500),
        (CommitFailsBefore, 15_000),
        (CommitFailsAfter, 15_000),
        (AppendLost, 4_000),
        (AppendDurableAndFailed, 4_000),
        (AppendUnsynced, 6_000),
        (AppendSlow, 10_000),
        (JournalDamaged, 40_000),
        (HistorySlow, 30_000),
        (ClockStepped, 200_000),
        (InitiatorVanishes, 12_000),
        (InitiatorRollsBack, 30_000),
        (OperatorRetries, 5_000),
        (TransactionPoisoned, 6_000),
        (ReplicaDown, 8_000),
        (ServiceUpgraded, 4_000),
        (CoordinatorUpgraded, 6_000),
    ];

    /// What it does, in words.
    #[must_use]
    pub const fn what(self) -> &'static str {
        match self {
            CallLost => "a call is lost on its way",
            CallTwice => "a call arrives twice",
            CallLate => "a call takes seconds",
            CallReplayed => "a call arrives again an hour later",
            AnswerLost => "an answer is lost after the effect",
            AnswerGarbled => "an answer cannot be understood",
            ConnectionRefused => "a connection is refused, and the call is never sent",
            Partition => "a service is cut off, in one direction or both",
            RequestLost => "an initiator's request is lost",
            RequestTwice => "an initiator's request arrives twice",
            ReplyLost => "the coordinator's reply is lost",
            CoordinatorKilled => "the coordinator is killed between two effects",
            CoordinatorLosesPower => "the coordinator's machine loses power",
            CoordinatorPaused => "the coordinator is stopped, and goes on later",
            CoordinatorReplaced => {
                "the coordinator is stopped, another takes its journal over, and the first wakes"
            }
            ServiceKilled => "a service is killed",
            ServicePaused => "a service is stopped, and goes on later",
            ServiceFails => "a service answers with an error, and has done nothing",
            ServiceUnwilling => "a service says no",
            ServiceOldCopy => "an old copy of a service does not know the operation",
            ServiceForgets => "a service's database is restored to an older state",
            CommitFailsBefore => "a service's local commit fails, and is not durable",
            CommitFailsAfter => "a service's local commit fails, and is durable",
            AppendLost => "an append to the journal fails, and nothing was written",
            AppendDurableAndFailed => "an append to the journal fails, and is durable",
            AppendUnsynced => "a sync fails, and reads show what the disk does not hold",
            AppendSlow => "a sync takes seconds",
            JournalDamaged => "a bit of the journal flips while the coordinator is down",
            HistorySlow => "the history takes long to be written",
            ClockStepped => "the wall clock is stepped while the coordinator is down",
            InitiatorVanishes => "an initiator dies and never comes back",
            InitiatorRollsBack => "an initiator asks to roll back",
            OperatorRetries => "an operator asks to retry now",
            TransactionPoisoned => "the program breaks on a transaction until it is upgraded",
            ReplicaDown => "one process of a service is down while another one answers",
            ServiceUpgraded => "a process of a service is replaced by another version's",
            CoordinatorUpgraded => "the coordinator ends, and comes back as a newer version",
        }
    }
}

/// What a coordinator is configured with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// How many transactions may be live in a shard at once.
    pub live_max: u16,
    /// How much the journal keeps before it forgets, in batches.
    pub keeps_batches: u16,
    /// How many observations a timeline holds.
    pub observations_max: u16,
}

/// What one run is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// How many shards the coordinator has.
    pub shards: u16,
    /// How many services there are, each with a database of its own.
    pub services: u16,
    /// How many initiators there are.
    pub initiators: u16,
    /// How many transactions each of them begins.
    pub transactions: u16,
    /// How many branches a transaction has at most, besides a notice.
    pub branches_max: u16,
    /// How many accounts each service has.
    pub accounts: u16,
    /// How many transactions may be live in a shard at once.
    pub live_max: u16,
    /// How much the journal keeps before it forgets, in batches.
    pub keeps_batches: u16,
    /// How many processes each service has, over one database.
    #[serde(default = "one")]
    pub replicas: u16,
    /// How long a service's local transaction takes on average, in milliseconds; 0: no time.
    #[serde(default)]
    pub local_ms: u64,
    /// Whether services begin as copies that do not know the commit in one phase.
    #[serde(default)]
    pub services_older: bool,
    /// Whether the coordinator begins as a version that writes records of version 1.
    #[serde(default)]
    pub begins_older: bool,
    /// The coordinator's limits once it is upgraded, if they are others then.
    #[serde(default)]
    pub later: Option<Limits>,
    /// How many transactions of a shard a coordinator that starts takes up at once.
    #[serde(default = "all")]
    pub taken_up_at_once: u16,
    /// Within which time it takes the others up, in milliseconds.
    #[serde(default)]
    pub taken_up_within_ms: u64,
    /// How long initiators ask again for the same, in milliseconds.
    #[serde(default = "usual_patience_ms")]
    pub patience_ms: u64,
    /// How long a message takes on average, in milliseconds.
    pub message_ms: u64,
    /// How long a sync takes on average, in milliseconds.
    pub sync_ms: u64,
    /// How long what gathers for the journal waits for more while nobody waits for it, in
    /// milliseconds.
    #[serde(default)]
    pub linger_ms: u64,
    /// Each fault that may happen, and how often, in a million opportunities.
    pub faults: Vec<(FaultKind, u64)>,
}

/// What a script that says nothing of replicas was run with.
const fn one() -> u16 {
    1
}

/// What a script that says nothing of turns was run with.
const fn all() -> u16 {
    u16::MAX
}

fn usual_patience_ms() -> u64 {
    AskPolicy::default().patience_ms
}

impl Options {
    /// The options of a seed.
    #[must_use]
    pub fn drawn(seed: u64) -> Self {
        let mut random = Random::new(seed, "options", 0);
        let number = |random: &mut Random, least, most| {
            u16::try_from(random.between(least, most)).unwrap_or(u16::MAX)
        };
        let calm = random.chance(MILLION / 16);
        let mut faults = Vec::new();
        for (kind, rate) in FaultKind::ALL {
            let rate = match random.below(8) {
                0..4 => 0,
                4 => rate / 4,
                5 | 6 => rate,
                _ => rate * 3,
            };
            if rate > 0 && !calm {
                faults.push((kind, rate));
            }
        }
        Self {
            shards: number(&mut random, 1, 3),
            services: number(&mut random, 1, 5),
            initiators: number(&mut random, 1, 5),
            transactions: number(&mut random, 1, 6),
            branches_max: number(&mut random, 1, 4),
            accounts: number(&mut random, 1, 3),
            live_max: *random.pick(&[2, 8, 100, 100]),
            keeps_batches: *random.pick(&[1, 4, 16, 16]),
            message_ms: *random.pick(&[1, 4, 20]),
            sync_ms: *random.pick(&[1, 3, 10]),
            replicas: number(&mut random, 1, 3),
            local_ms: *random.pick(&[0, 0, 2, 15]),
            services_older: random.chance(MILLION / 8),
            begins_older: random.chance(MILLION / 6),
            patience_ms: *random.pick(&[0, 1_000, 10_000, 10_000, 60_000]),
            later: random.chance(MILLION / 2).then(|| Limits {
                live_max: *random.pick(&[1, 2, 8, 100]),
                keeps_batches: *random.pick(&[1, 4, 16]),
                observations_max: *random.pick(&[0, 4, 64]),
            }),
            taken_up_at_once: *random.pick(&[0, 0, 1, u16::MAX]),
            taken_up_within_ms: *random.pick(&[10, 300, 3_000, 10_000]),
            linger_ms: *random.pick(&[0, 2, 2, 200]),
            faults,
        }
    }

    /// How initiators ask again.
    #[must_use]
    pub fn asking(&self, mutations: Mutations) -> AskPolicy {
        AskPolicy { patience_ms: self.patience_ms, mutations, ..AskPolicy::default() }
    }

    /// The coordinator's limits, before its upgrade and after it.
    #[must_use]
    pub fn limits(&self, upgraded: bool) -> Limits {
        let (live_max, keeps_batches) = (self.live_max, self.keeps_batches);
        let first = Limits { live_max, keeps_batches, observations_max: 16 };
        self.later.filter(|_| upgraded).unwrap_or(first)
    }

    /// How often a fault happens, in a million opportunities.
    #[must_use]
    pub fn rate(&self, kind: FaultKind) -> u64 {
        let found = self.faults.iter().find(|(known, _)| *known == kind);
        found.map_or(0, |(_, rate)| *rate)
    }
}

/// Draws faults, counts them, and leaves out those that a shrunk run does without.
#[derive(Clone, Debug)]
pub struct Faults {
    random: Random,
    /// The numbers of the faults that are kept; all, if there is no list.
    keep: Option<Vec<u64>>,
    drawn: u64,
    /// What happened: the fault's number and kind.
    pub happened: Vec<(u64, FaultKind)>,
    /// Whether everything is repaired, and nothing breaks any more.
    pub over: bool,
}

impl Faults {
    /// The faults of a seed.
    #[must_use]
    pub fn new(seed: u64, keep: Option<Vec<u64>>) -> Self {
        let random = Random::new(seed, "faults", 0);
        Self { random, keep, drawn: 0, happened: Vec::new(), over: false }
    }

    /// Whether this happens here and now.
    pub fn strikes(&mut self, options: &Options, kind: FaultKind) -> bool {
        let rate = options.rate(kind);
        if self.over || rate == 0 || !self.random.chance(rate) {
            return false;
        }
        let number = self.drawn;
        self.drawn += 1;
        let kept = self.keep.as_ref().is_none_or(|keep| keep.contains(&number));
        if kept {
            self.happened.push((number, kind));
        }
        kept
    }

    /// Random bits for how a fault looks like.
    pub const fn random(&mut self) -> &mut Random {
        &mut self.random
    }
}
