//! Transactions that the program breaks on: at each attempt the process ends, and that is on record
//! before. After three of them the next start sets the transaction aside, as the manager does. The
//! repair is an upgrade, after which an operator has them taken up again.

use std::collections::{BTreeMap, BTreeSet};

use unanimity_core::{Coordinator, Doing, Replayed, SetAside, TransactionId};

use super::options::FaultKind;
use super::server::Ask;
use super::world::{Happening, Simulation};

/// So often the program may break on a transaction before it is set aside.
const PANICS_MAX: u32 = 3;

/// What the program breaks on, and during what.
pub type Poisoned = BTreeMap<TransactionId, Doing>;

/// The record of panics, which outlives the process.
#[derive(Clone, Debug, Default)]
pub struct Panics(BTreeMap<TransactionId, (Doing, u32)>);

impl Panics {
    fn too_often(&self) -> impl Iterator<Item = (&TransactionId, Doing, u32)> {
        let all = self.0.iter().map(|(id, (doing, panics))| (id, *doing, *panics));
        all.filter(|(.., panics)| *panics >= PANICS_MAX)
    }

    /// Those whose records are not to be read.
    #[must_use]
    pub fn unreadable(&self) -> BTreeSet<TransactionId> {
        let unreadable = self.too_often().filter(|(_, doing, _)| *doing == Doing::Replaying);
        unreadable.map(|(id, ..)| id.clone()).collect()
    }

    /// Sets aside what must be; gives back those whose beginning is to be refused.
    pub fn set_aside(&self, replayed: &mut Replayed) -> BTreeSet<TransactionId> {
        let mut refused = BTreeSet::new();
        for (id, doing, panics) in self.too_often() {
            let begun_at = replayed.unread.get(id).copied();
            if begun_at.is_none() && !replayed.coordinator.knows(id) {
                refused.insert(id.clone());
                continue;
            }
            let read = begun_at.is_none();
            let why = SetAside { doing, panics, message: "broke".into(), at: 0, read };
            replayed.coordinator.set_aside(id, begun_at.unwrap_or(0), why);
        }
        refused
    }
}

/// Whether the program breaks on this transaction while it does this.
#[must_use]
pub fn breaks(
    poisoned: &Poisoned,
    coordinator: &Coordinator,
    id: &TransactionId,
    doing: Doing,
) -> bool {
    poisoned.get(id) == Some(&doing) && !coordinator.is_set_aside(id)
}

impl Simulation {
    /// From now on the program may break on this transaction: until it is upgraded.
    pub(super) fn may_be_poison(&mut self, id: &TransactionId) {
        if self.strikes(FaultKind::TransactionPoisoned) {
            let doing = *self.faults.random().pick(&[
                Doing::Handling,
                Doing::Handling,
                Doing::Replaying,
                Doing::WritingAnew,
            ]);
            self.poisoned.insert(id.clone(), doing);
        }
    }

    /// The program breaks on a transaction: that is put on record, and the process ends.
    pub(super) fn broke(&mut self, generation: u64, id: &TransactionId, doing: Doing) {
        self.put_on_record(id, doing);
        self.kill(generation, false);
    }

    /// The same while a journal is read back: there is no process yet.
    pub(super) fn broke_at_start(&mut self, id: &TransactionId) {
        self.put_on_record(id, Doing::Replaying);
        let down_ms = self.disk_random.between(5, 2_500);
        self.later(down_ms, Happening::CoordinatorStarts);
    }

    fn put_on_record(&mut self, id: &TransactionId, doing: Doing) {
        self.note(&format!("the program breaks while {} a transaction", doing.as_str()));
        let entry = self.disk.panics.0.entry(id.clone()).or_insert((doing, 0));
        *entry = (doing, entry.1 + 1);
    }

    /// Whether the program breaks on a question: it does not on those that only show something.
    pub(super) fn breaks_on_ask(
        &mut self,
        (generation, number): (u64, usize),
        id: &TransactionId,
        ask: &Ask,
    ) -> bool {
        if matches!(ask, Ask::Status { .. } | Ask::Decision) {
            return false;
        }
        self.may_be_poison(id);
        self.breaks_now((generation, number), id)
    }

    /// Whether the program breaks on this transaction now, if it handles it.
    pub(super) fn breaks_now(
        &mut self,
        (generation, number): (u64, usize),
        id: &TransactionId,
    ) -> bool {
        let poisoned = self.poisoned.clone();
        let Some(shard) = self.shard(generation, number) else { return false };
        if shard.refused.contains(id) || !breaks(&poisoned, &shard.coordinator, id, Doing::Handling)
        {
            return false;
        }
        self.broke(generation, id, Doing::Handling);
        true
    }

    /// The program was upgraded, and an operator has everything taken up again that is set aside.
    /// Says whether anything was.
    pub(super) fn operator_takes_up(&mut self) -> bool {
        self.disk.panics = Panics::default();
        let Some((generation, shards)) =
            self.processes.last().map(|one| (one.generation, one.shards.len()))
        else {
            return false;
        };
        let clock = self.clock(generation);
        let (mut unread, mut any) = (false, false);
        for number in 0..shards {
            let Some(shard) = self.shard(generation, number) else { return any };
            shard.refused.clear();
            let aside: Vec<TransactionId> = shard.coordinator.aside().cloned().collect();
            for id in aside {
                any = true;
                let Some(shard) = self.shard(generation, number) else { return any };
                let Some(step) = shard.coordinator.take_up(clock, &id) else {
                    unread = true;
                    self.situations.count("set aside unread");
                    continue;
                };
                let out = shard.take(step);
                self.situations.count("taken up again");
                self.let_out(generation, number, out);
            }
            self.settle(generation, number);
        }
        if unread {
            self.kill(generation, false);
        }
        any
    }
}
