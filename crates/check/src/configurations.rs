//! Which worlds are explored to exhaustion: small, named, and each with the exact number of its
//! states, so that a silent change of the protocol shows.

use unanimity_core::Kind;

use crate::milestones::Milestone;
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

const fn two_phase(says: Says) -> BranchSetup {
    BranchSetup { kind: Kind::TwoPhase, says, after: &[] }
}

const TWO: &[BranchSetup] = &[two_phase(Says::Yes), two_phase(Says::Yes)];
const ONE_NO: &[BranchSetup] = &[two_phase(Says::Yes), two_phase(Says::No)];
const THREE: &[BranchSetup] = &[two_phase(Says::Yes), two_phase(Says::Yes), two_phase(Says::Yes)];

/// Every configuration that a build is checked with.
#[must_use]
pub fn all() -> Vec<Configuration> {
    vec![
        Configuration { setup: Setup::calm("two calm", TWO), milestones: &[Milestone::Committed], states: 0 },
        Configuration { setup: Setup { network: Network::Repeats, ..Setup::calm("two repeats", TWO) }, milestones: &[], states: 0 },
        Configuration { setup: Setup { gives_up: true, ..Setup::calm("two gives up", TWO) }, milestones: &[], states: 0 },
        Configuration { setup: Setup { network: Network::Repeats, gives_up: true, ..Setup::calm("two repeats gives up", TWO) }, milestones: &[], states: 0 },
        Configuration { setup: Setup { network: Network::Repeats, gives_up: true, deadlines: true, ..Setup::calm("two repeats gives up deadlines", TWO) }, milestones: &[], states: 0 },
        Configuration { setup: Setup { gives_up: true, deadlines: true, ..Setup::calm("two gives up deadlines", TWO) }, milestones: &[], states: 0 },
        Configuration { setup: Setup { gives_up: true, deadlines: true, coordinator_crashes: 1, ..Setup::calm("two gives up deadlines crash1", TWO) }, milestones: &[], states: 0 },
        Configuration { setup: Setup { network: Network::Repeats, gives_up: true, deadlines: true, coordinator_crashes: 1, ..Setup::calm("two repeats gives up deadlines crash1", TWO) }, milestones: &[], states: 0 },
        Configuration { setup: Setup { network: Network::Repeats, coordinator_crashes: 1, ..Setup::calm("two repeats crash1", TWO) }, milestones: &[], states: 0 },
        Configuration { setup: Setup { network: Network::Repeats, coordinator_crashes: 2, ..Setup::calm("two repeats crash2", TWO) }, milestones: &[], states: 0 },
        Configuration { setup: Setup { network: Network::Repeats, deadlines: true, ..Setup::calm("three repeats deadlines", THREE) }, milestones: &[], states: 0 },
        Configuration { setup: Setup { network: Network::Repeats, gives_up: true, deadlines: true, ..Setup::calm("one no", ONE_NO) }, milestones: &[], states: 0 },
    ]
}
