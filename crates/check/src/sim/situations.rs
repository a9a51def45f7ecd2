//! Which situations a run has met, and how often: a run set that never meets one has proved nothing
//! about it.

use std::collections::BTreeMap;

use unanimity_core::guard::GuardState;
use unanimity_core::{Operation, Stage, Transaction};
use unanimity_judge::{Event, FactLine, Line};

/// How often each situation was met.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Situations {
    met: BTreeMap<String, u64>,
    live_most: u64,
}

/// What every run set must meet, and at least how often in 10,000 seeds.
pub const REQUIRED: [(&str, u64); 72] = [
    ("commit: all_yes", 1_000),
    ("commit: settled_by_participant", 50),
    ("rollback: voted_no", 1_000),
    ("rollback: prepare_timeout", 100),
    ("rollback: execute_timeout", 20),
    ("rollback: timeout", 20),
    ("rollback: requested", 100),
    ("rollback: abandoned", 100),
    ("rollback: coordinator_restarted", 100),
    ("recovered: open", 50),
    ("recovered: preparing", 50),
    ("recovered: executing", 20),
    ("recovered: committing", 50),
    ("recovered: rolling_back", 50),
    ("recovered: set_aside", 50),
    ("set aside unread", 20),
    ("taken up again", 50),
    ("taken up later, in its turn", 500),
    ("taken up because something happened to it", 100),
    ("taken up because somebody looked at it", 100),
    ("crashed with some still dormant", 100),
    ("late refused", 50),
    ("duplicate answered", 1_000),
    ("duplicate commit answered", 100),
    ("empty rollback remembered", 50),
    ("empty compensation remembered", 20),
    ("compensated", 100),
    ("deferred delivered", 500),
    ("committed in one phase", 100),
    ("read only", 100),
    ("work there, asked", 10),
    ("parked", 100),
    ("connection refused", 100),
    ("asked, told to commit", 20),
    ("asked, told to roll back", 20),
    ("contradiction reported", 20),
    ("settled by hand", 5),
    ("written anew", 100),
    ("journal forgot batches", 100),
    ("journal forgot batches by itself", 100),
    ("an end went with what came next", 1_000),
    ("fenced", 5),
    ("a failed append ended the shard", 50),
    ("a damaged journal is refused", 20),
    ("a coordinator crashed", 500),
    ("a service crashed", 100),
    ("the coordinator's machine loses power", 50),
    ("the wall clock is stepped while the coordinator is down", 100),
    ("a service's database is restored to an older state", 5),
    ("a sync fails, and reads show what the disk does not hold", 20),
    ("a call arrives again an hour later", 100),
    ("an initiator dies and never comes back", 50),
    ("the coordinator ends, and comes back as a newer version", 200),
    ("a newer version takes over from one that stands still", 50),
    ("of version 1, taken up: preparing", 20),
    ("of version 1, taken up: executing", 10),
    ("of version 1, taken up: committing", 20),
    ("of version 1, taken up: rolling_back", 20),
    ("more are live than the newer limit allows", 20),
    ("asked again after no answer", 1_000),
    ("asked again after a refusal that passes", 1_000),
    ("decided already, and asked what", 100),
    ("an initiator gave up without an answer", 500),
    ("an initiator gave up, refused", 500),
    ("one process is down, and another answers", 500),
    ("a branch goes on at another process", 1_000),
    ("a duplicate answered by another process", 100),
    ("waited for a locked row", 100),
    ("gave up waiting for a locked row", 10),
    ("a process died within a local transaction", 20),
    ("a process of a service is replaced by another version's", 100),
    ("an older copy was asked for what it does not know", 100),
];

impl Situations {
    /// Counts a situation.
    pub fn count(&mut self, what: &str) {
        if let Some(count) = self.met.get_mut(what) {
            *count += 1;
        } else {
            self.met.insert(what.to_owned(), 1);
        }
    }

    /// A transaction was found in this stage after a crash.
    pub fn recovered(&mut self, stage: Stage) {
        self.count(&format!("recovered: {}", stage.as_str()));
    }

    /// A transaction that an older version has begun was found in this stage by a newer one.
    pub fn upgraded(&mut self, stage: Stage) {
        self.count(&format!("of version 1, taken up: {}", stage.as_str()));
    }

    /// So many transactions are live.
    pub fn height(&mut self, live: u64) {
        self.live_most = self.live_most.max(live);
    }

    /// A transaction is complete.
    pub fn ended(&mut self, transaction: &Transaction) {
        if transaction.heuristic().is_some() {
            self.count("settled by hand");
        }
    }

    /// Counts what a line shows.
    pub fn see(&mut self, line: &Line) {
        match &line.event {
            Event::Recorded { fact: FactLine::Decided { outcome, reason, .. }, .. } => {
                self.count(&format!("{}: {reason}", outcome.as_str()));
            }
            Event::Recorded { fact: FactLine::Rewritten, .. } => self.count("written anew"),
            Event::Noted { what } => self.count(what),
            Event::Crashed { process } if process.starts_with("coordinator") => {
                self.count("a coordinator crashed");
            }
            Event::Crashed { .. } => self.count("a service crashed"),
            Event::Told { what: unanimity_judge::ToldLine::Presumed, .. } => {
                self.count("unknown transaction presumed rolled back");
            }
            Event::Worked { operation, state, effect, .. } => {
                self.worked(*operation, *state, *effect);
            }
            Event::Answered { operation: Operation::Inquire, answer, .. } if &**answer == "yes" => {
                self.count("work there, asked");
            }
            _ => {} // The rest says nothing that a run set must meet.
        }
    }

    fn worked(&mut self, operation: Operation, state: GuardState, effect: bool) {
        let what = match (operation, state, effect) {
            (Operation::Rollback, _, false) => "empty rollback remembered",
            (Operation::Compensate, _, false) => "empty compensation remembered",
            (Operation::Compensate, _, true) => "compensated",
            (Operation::Execute, GuardState::Executed, _) => "deferred delivered",
            (Operation::CommitOnePhase, GuardState::Committed, _) => "committed in one phase",
            (_, GuardState::ReadOnly, _) => "read only",
            _ => return, // Ordinary.
        };
        self.count(what);
    }

    /// Adds what another run has met.
    pub fn add(&mut self, other: &Self) {
        for (what, count) in &other.met {
            *self.met.entry(what.clone()).or_default() += count;
        }
        self.live_most = self.live_most.max(other.live_most);
    }

    /// Everything that was met, and how often.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.met.iter().map(|(what, count)| (what.as_str(), *count))
    }

    /// What was required of so many seeds and not met: how often it was, and how often it must be.
    #[must_use]
    pub fn missed(&self, seeds: u64) -> Vec<(&'static str, u64, u64)> {
        let met = |what: &str| self.met.get(what).copied().unwrap_or(0);
        let all = REQUIRED
            .into_iter()
            .map(|(what, of_10_000)| (what, met(what), (of_10_000 * seeds / 10_000).max(1)));
        all.filter(|(_, met, needed)| met < needed).collect()
    }
}
