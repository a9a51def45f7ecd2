//! An upgrade in the middle of a run: the coordinator ends, in good order or not, or is overtaken
//! while it stands still, and a newer version goes on from its journal. The older one may write
//! records of version 1, and takes nothing that version 1 did not know; the newer one may have
//! other limits. What is read how is the core's.

use std::collections::BTreeSet;

use unanimity_core::{Encoded, Fact, TransactionId, decode_record, encode_version_1};

use super::options::FaultKind;
use super::server::Process;
use super::world::{Happening, Simulation};

/// A coordinator that ends in good order finishes so many appends of a shard at most.
const APPENDS_MAX: usize = 8;

/// A mistake in how a newer version reads what an older one wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpgradeBug {
    /// Records of version 1 are passed over.
    FirstVersionSkipped,
    /// The newer limit for what is live holds for what is read back: the rest is passed over.
    LimitForgets,
}

/// How a newer version with a mistake reads a journal.
#[derive(Clone, Debug)]
pub struct Misreading {
    bug: UpgradeBug,
    live_max: usize,
    known: BTreeSet<TransactionId>,
}

impl Misreading {
    /// With this mistake and this limit for what is live.
    #[must_use]
    pub const fn new(bug: UpgradeBug, live_max: usize) -> Self {
        Self { bug, live_max, known: BTreeSet::new() }
    }

    /// A record as it is read; `None`: not at all.
    pub fn read(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        let record = decode_record(bytes).ok()?;
        let is_read = match (self.bug, &record.fact) {
            (UpgradeBug::FirstVersionSkipped, _) => bytes.first() != Some(&1),
            (UpgradeBug::LimitForgets, Fact::Ended) => self.known.remove(&record.transaction),
            (UpgradeBug::LimitForgets, _) if self.known.contains(&record.transaction) => true,
            (UpgradeBug::LimitForgets, _) if self.known.len() >= self.live_max => false,
            (UpgradeBug::LimitForgets, _) => self.known.insert(record.transaction),
        };
        is_read.then(|| bytes.to_vec())
    }
}

/// A batch's records as version 1 would have written them; `None` if it could not.
#[must_use]
pub fn of_version_1(records: &[&[u8]]) -> Option<Encoded> {
    let older = |bytes: &&[u8]| {
        let record = decode_record(bytes).ok()?;
        let mut older = Vec::with_capacity(bytes.len());
        encode_version_1(&record, &mut older).then_some(older)
    };
    records.iter().map(older).collect()
}

impl Simulation {
    /// Whether a coordinator that starts now is of the version before the upgrade, which writes
    /// records of version 1.
    pub(super) const fn is_older(&self) -> bool {
        self.options.begins_older && !self.upgraded
    }

    /// A moment in which the coordinator may be upgraded. Whether that ended it.
    pub(super) fn may_be_upgraded(&mut self, generation: u64) -> bool {
        let newest = generation == self.generations;
        if self.upgraded || !newest || !self.strikes(FaultKind::CoordinatorUpgraded) {
            return false;
        }
        self.upgraded = true;
        self.poisoned.clear();
        match self.faults.random().below(3) {
            0 => self.kill(generation, false),
            1 => {
                // Not between two things that leave together: it hears of it with what comes next.
                self.later(0, Happening::CoordinatorStops(generation));
                return false;
            }
            _ => {
                self.note("a newer version takes over from one that stands still");
                let until = self.now + self.faults.random().between(500, 8_000);
                let mut processes = self.processes.iter_mut();
                if let Some(process) = processes.find(|one| one.generation == generation) {
                    process.paused_until = until;
                }
                self.later(300, Happening::CoordinatorStarts);
                return false;
            }
        }
        true
    }

    /// What is being written is waited for, and what may leave then leaves.
    pub(super) fn end_in_good_order(&mut self, generation: u64) {
        for number in 0..usize::from(self.options.shards) {
            for _ in 0..APPENDS_MAX {
                let appends = self.shard(generation, number).is_some_and(|one| one.is_appending());
                if !appends || self.sleeps(generation).is_some() {
                    break;
                }
                self.append_done(generation, number);
            }
        }
        self.kill(generation, false);
    }

    /// Whoever repairs everything finishes an upgrade: one that was to come, or one whose older
    /// version woke before the newer one had started.
    pub(super) fn finish_upgrade(&mut self) {
        self.upgraded |= self.options.begins_older;
        let older = |one: &&Process| one.shards.iter().any(|shard| shard.is_older);
        let running = self.processes.iter().filter(older).map(|one| one.generation);
        let older: Vec<u64> = running.collect();
        older.into_iter().for_each(|generation| self.kill(generation, false));
    }
}
