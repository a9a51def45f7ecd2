//! A journal whose appends wait until a test lets them pass, and that looks at every truncation.

use std::sync::{Arc, Condvar, Mutex};

use unanimity::core::{Coordinator, CoordinatorConfig, Fact, decode_record};
use unanimity::{Bounds, Internals};
use unanimity_journal::{Batch, Engine, JournalError, MemoryEngine, Receipt, ShardId};

use crate::fake::until;

/// Handles to a journal in memory; every clone is the same.
#[derive(Clone, Default)]
pub struct Gated {
    pub memory: MemoryEngine,
    gate: Arc<(Mutex<Gate>, Condvar)>,
}

#[derive(Default)]
struct Gate {
    /// How many appends may pass; `None`: all.
    allowed: Option<u64>,
    started: u64,
    panics: bool,
    /// How many appends another thread has done than the journal's own.
    elsewhere: u64,
    /// Transactions that a crash right after some truncation would have lost.
    lost: Vec<String>,
    truncations: u64,
}

impl Gated {
    /// From now on only so many appends pass.
    pub fn allow(&self, appends: u64) {
        self.change(|gate| gate.allowed = Some(gate.allowed.unwrap_or(gate.started) + appends));
    }

    pub fn allow_all(&self) {
        self.change(|gate| gate.allowed = None);
    }

    pub fn panic_next(&self) {
        self.change(|gate| gate.panics = true);
    }

    /// How many appends have begun.
    pub fn count(&self) -> u64 {
        self.gate.0.lock().unwrap().started
    }

    /// Waits until so many appends have begun, in all.
    pub async fn started(&self, appends: u64) {
        until(|| self.count() >= appends).await;
    }

    /// Whom a crash right after a truncation would have lost, and how many truncations there were.
    pub fn truncations(&self) -> (Vec<String>, u64) {
        let gate = self.gate.0.lock().unwrap();
        (gate.lost.clone(), gate.truncations)
    }

    pub fn internals(&self, bounds: Bounds) -> Internals {
        let gated = self.clone();
        Internals {
            open_engine: Some(Box::new(move |_| Ok(Box::new(gated.clone()) as Box<dyn Engine>))),
            bounds,
        }
    }

    /// How many appends have begun on another thread than the journal's own.
    pub fn elsewhere(&self) -> u64 {
        self.gate.0.lock().unwrap().elsewhere
    }

    fn change(&self, change: impl FnOnce(&mut Gate)) {
        change(&mut self.gate.0.lock().unwrap());
        self.gate.1.notify_all();
    }

    fn live(&self) -> Coordinator {
        let mut coordinator = Coordinator::new(CoordinatorConfig::default());
        let mut memory = self.memory.clone();
        let first = memory.bounds(0).unwrap().first;
        memory
            .read(0, first, &mut |batch| {
                for bytes in &batch.records {
                    let record = decode_record(bytes).unwrap();
                    let whole = matches!(record.fact, Fact::Begun { .. } | Fact::Snapshot(_));
                    if whole || coordinator.knows(&record.transaction) {
                        coordinator.apply(&record).unwrap();
                    }
                }
                Ok(())
            })
            .unwrap();
        coordinator
    }
}

impl Engine for Gated {
    fn append_and_truncate(
        &mut self,
        shard: ShardId,
        position: u64,
        records: &[&[u8]],
        before: Option<u64>,
    ) -> Result<Receipt, JournalError> {
        if records.is_empty() {
            return self.memory.append(shard, position, records); // The start's own.
        }
        let mut gate = self.gate.0.lock().unwrap();
        gate.started += 1;
        gate.elsewhere += u64::from(std::thread::current().name() != Some("journal"));
        let mine = gate.started;
        while gate.allowed.is_some_and(|allowed| mine > allowed) {
            gate = self.gate.1.wait(gate).unwrap();
        }
        let panics = gate.panics;
        drop(gate);
        assert!(!panics, "an append that panics, as it was told to");
        let receipt = self.memory.append(shard, position, records)?;
        before.map_or(Ok(()), |before| self.truncate(shard, before))?;
        Ok(receipt)
    }

    fn read(
        &mut self,
        shard: ShardId,
        from: u64,
        each: &mut dyn FnMut(Batch) -> Result<(), JournalError>,
    ) -> Result<(), JournalError> {
        self.memory.read(shard, from, each)
    }

    fn bounds(&mut self, shard: ShardId) -> Result<unanimity_journal::Bounds, JournalError> {
        self.memory.bounds(shard)
    }

    fn truncate(&mut self, shard: ShardId, before: u64) -> Result<(), JournalError> {
        let live = self.live();
        self.memory.truncate(shard, before)?;
        let left = self.live();
        let lost = live.iter().filter(|one| !left.knows(&one.id)).map(|one| one.id.to_string());
        let lost: Vec<String> = lost.collect();
        self.change(|gate| {
            gate.truncations += 1;
            gate.lost.extend(lost);
        });
        Ok(())
    }

    fn harden(&mut self, shard: ShardId) -> Result<(), JournalError> {
        self.memory.harden(shard)
    }
}
