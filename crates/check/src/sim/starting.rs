//! How the coordinator's process starts, on what the disk holds, and how it ends. What happens
//! between the two is `coordinator`'s.

use unanimity_journal::{AppendFault, Engine, JournalError};
use unanimity_judge::Event as Seen;

use super::coordinator::STEP_MS;
use super::options::FaultKind;
use super::server::{self, NotRecovered, Process, Recovered, Start};
use super::waking::has_dormant;
use super::world::{Happening, Simulation};

impl Simulation {
    /// A coordinator reads what is there and goes on, or refuses to.
    pub(super) fn start_coordinator(&mut self) {
        let generation = self.generations;
        let awake = |one: &Process| one.generation == generation && one.paused_until <= self.now;
        if self.processes.iter().any(awake) {
            return; // One is there.
        }
        self.generations += 1;
        let mut ahead_ms = 10 * STEP_MS;
        if self.strikes(FaultKind::ClockStepped) {
            ahead_ms += self.faults.random().below(2 * STEP_MS);
            ahead_ms -= self.faults.random().below(2 * STEP_MS);
            self.clock_stepped_ms = STEP_MS * 2;
        }
        let start = Start {
            generation: self.generations,
            ahead_ms,
            now: self.now,
            is_older: self.is_older(),
            upgraded: self.upgraded,
        };
        let found = server::recover(&self.disk, &self.poisoned, &self.options, self.planted, start);
        let found = match found {
            Err(NotRecovered::Broke(id)) => {
                self.broke_at_start(&id);
                return;
            }
            Err(NotRecovered::Refused(problem)) => Err(problem),
            Ok(recovered) => Ok(recovered),
        };
        match (found, self.disk.damage.take()) {
            (Ok(_), Some((shard, position, bit))) => {
                let problem = format!(
                    "bit {bit} of batch {position} of shard {shard} is flipped, \
                                       and the journal was read as if it were not"
                );
                self.fail("a damaged journal is refused", problem);
            }
            (Ok(recovered), None) => self.recovered(recovered),
            (Err(_), Some((shard, position, bit))) => {
                self.note("a damaged journal is refused");
                self.disk.journal.damage(shard, position, bit);
                self.later(500, Happening::CoordinatorStarts);
            }
            (Err(problem), None) => self.fail("the journal can be read back", problem),
        }
    }

    fn recovered(&mut self, recovered: Recovered) {
        let Recovered { process, positions, first_version } = recovered;
        let generation = process.generation;
        self.see(Seen::Started { process: format!("coordinator {generation}").into() });
        for (shard, position) in (0..).zip(positions) {
            self.see(Seen::Lost { shard, position });
            self.see(Seen::Durable { shard, position });
        }
        for shard in &process.shards {
            for live in shard.coordinator.iter() {
                self.situations.recovered(live.stage());
                if !shard.is_older && first_version.contains(&live.id) {
                    self.situations.upgraded(live.stage());
                }
            }
            if shard.live_most > u64::from(self.options.limits(self.upgraded).live_max) {
                self.situations.count("more are live than the newer limit allows");
            }
        }
        self.processes.push(process);
        let shards = usize::from(self.options.shards);
        for shard in 0..shards {
            let at_once = usize::from(self.options.taken_up_at_once);
            if !self.take_up_some((generation, shard), at_once) {
                return;
            }
            self.settle(generation, shard);
            self.plan_turn((generation, shard), self.now + self.options.taken_up_within_ms);
        }
    }

    /// Ends a process. What it was appending may be durable, or visible, or neither.
    pub(super) fn kill(&mut self, generation: u64, power: bool) {
        let at = self.processes.iter().position(|one| one.generation == generation);
        let Some(mut process) = at.map(|at| self.processes.remove(at)) else { return };
        if process.shards.iter().any(|shard| has_dormant(&shard.coordinator)) {
            self.situations.count("crashed with some still dormant");
        }
        for shard in &mut process.shards {
            let Some(batch) = shard.appending.take() else { continue };
            let fault = match self.faults.random().below(3) {
                0 => AppendFault::Lost,
                1 => AppendFault::Durable,
                _ => AppendFault::Unsynced,
            };
            shard.engine.fail_append(1, fault);
            let result = shard.append(&batch);
            let conflict = matches!(result, Err(JournalError::Conflict { .. }));
            if fault != AppendFault::Lost && !conflict {
                self.write_down(shard.number, batch.position, &batch.records);
            }
        }
        if power {
            self.disk.journal.lose_unsynced();
            for shard in 0..self.options.shards {
                let Ok(bounds) = self.disk.journal.clone().bounds(shard) else { continue };
                self.see(Seen::Lost { shard, position: bounds.next - 1 });
            }
        }
        self.see(Seen::Crashed { process: format!("coordinator {generation}").into() });
        self.damage_the_journal();
        let down_ms = self.disk_random.between(5, 2_500);
        self.later(down_ms, Happening::CoordinatorStarts);
    }

    fn damage_the_journal(&mut self) {
        if self.processes.is_empty()
            && self.disk.damage.is_none()
            && self.strikes(FaultKind::JournalDamaged)
        {
            let shards = u64::from(self.options.shards);
            let shard = u16::try_from(self.faults.random().below(shards)).unwrap_or(0);
            let Ok(bounds) = self.disk.journal.clone().bounds(shard) else { return };
            if bounds.next > bounds.first {
                let position = self.faults.random().between(bounds.first, bounds.next - 1);
                let bit = usize::try_from(self.faults.random().below(100_000)).unwrap_or(0);
                self.disk.journal.damage(shard, position, bit);
                self.disk.damage = Some((shard, position, bit));
            }
        }
    }
}
