//! The net under everything: looks again and again at what is prepared in each database, and
//! decides what becomes of it.
//!
//! - Ours, and undecided: its transaction is under way. Left alone.
//! - Ours, and decided: finished as decided.
//! - Ours, and nobody has a record of it: its beginning would be on record before any call had
//!   left, so it was never begun by what this coordinator remembers: rolled back.
//! - Anybody else's: shown, and never touched.
//!
//! Nothing is finished at first sight: it must have been there at the look before, and for a while,
//! so that a branch in its ordinary course is left to that. Here too go the rows of branches whose
//! transaction has ended long ago.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use unanimity::core::{Answer, TransactionId};
use unanimity::view::TransactionView;
use unanimity::{Filter, TransactionManager};
use unanimity_sdk::xa::name::BranchName;

use super::listing::{DatabaseView, Prepared, PreparedView, Whose};
use super::{Branch, Database};

/// How many rows are looked at at once.
const ROWS_AT_ONCE: i64 = 500;
/// How many times that in one look.
const ROUNDS_MAX: usize = 20;
/// How many transactions are looked at to find the one that a digest stands for.
const SEARCHED_MAX: usize = 20_000;

/// What a sweep knows of one prepared branch from the sweeps before.
struct Seen {
    first: Instant,
    times: u32,
    /// The number of the last sweep that has seen it.
    sweep: u64,
}

/// What is to become of a branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Leave,
    Commit,
    Rollback,
}

/// The net under one database.
pub(super) struct Sweeper {
    seen: HashMap<String, Seen>,
    sweep: u64,
    pruned: Option<Instant>,
}

/// Sweeps one database for as long as the manager works.
pub(super) async fn run(database: &Database, manager: &TransactionManager) {
    let mut sweeper = Sweeper { seen: HashMap::new(), sweep: 0, pruned: None };
    let mut interval = tokio::time::interval(Duration::from_millis(database.config.sweep_ms));
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut failing = false;
    loop {
        interval.tick().await;
        if !manager.is_ready() {
            return;
        }
        let swept = sweeper.sweep(database, manager).await;
        if let Err(error) = &swept
            && !failing
        {
            let name = &database.config.name;
            tracing::warn!(database = name, %error, "cannot look for what is prepared");
        }
        failing = swept.is_err();
    }
}

impl Sweeper {
    async fn sweep(
        &mut self,
        database: &Database,
        manager: &TransactionManager,
    ) -> Result<(), String> {
        database.check().await.map_err(|unusable| unusable.text().to_owned())?;
        let all = database.list(false).await?;
        self.sweep += 1;
        self.remember(database, &all);
        let coordinator = manager.coordinator_id();
        measure(database, &all, coordinator);
        for prepared in &all {
            let Some(name) = &prepared.branch else { continue };
            if name.coordinator == coordinator && self.is_due(database, prepared) {
                finish(database, manager, name).await;
            }
        }
        self.prune(database, manager).await
    }

    fn remember(&mut self, database: &Database, all: &[Prepared]) {
        let now = Instant::now();
        for prepared in all {
            let fresh = || Seen { first: now, times: 0, sweep: 0 };
            let seen = self.seen.entry(prepared.name.clone()).or_insert_with(fresh);
            // One that was away in between is another one.
            if seen.sweep != 0 && seen.sweep + 1 != self.sweep {
                *seen = fresh();
            }
            seen.sweep = self.sweep;
            seen.times = seen.times.saturating_add(1);
        }
        self.seen.retain(|_, seen| seen.sweep == self.sweep);
        let first_seen = self.seen.iter().map(|(name, seen)| (name.clone(), seen.first)).collect();
        *database.first_seen() = first_seen;
    }

    /// Whether it was there at the look before, and for long enough.
    fn is_due(&self, database: &Database, prepared: &Prepared) -> bool {
        let safe = Duration::from_millis(database.config.orphan_ms);
        let seen = self.seen.get(&prepared.name);
        seen.is_some_and(|seen| seen.times >= 2 && seen.first.elapsed() >= safe)
    }

    /// Removes rows of branches whose transaction has ended, once they are old: by then no call for
    /// them can still be on its way.
    async fn prune(
        &mut self,
        database: &Database,
        manager: &TransactionManager,
    ) -> Result<(), String> {
        let keep = Duration::from_millis(database.config.keep_ms);
        let pause = (keep / 4).min(Duration::from_secs(60));
        if self.pruned.is_some_and(|pruned| pruned.elapsed() < pause) {
            return Ok(());
        }
        self.pruned = Some(Instant::now());
        let prefix = BranchName::prefix(manager.coordinator_id());
        for _ in 0..ROUNDS_MAX {
            let old = database.old_rows(&prefix, keep, ROWS_AT_ONCE).await?;
            let mut ended = Vec::new();
            for gid in &old {
                let Some(name) = BranchName::of_gid(gid) else { continue };
                if has_ended(manager, &name.transaction).await {
                    ended.push(gid.clone());
                }
            }
            if !ended.is_empty() {
                database.forget_rows(&ended).await?;
            }
            if ended.is_empty() || old.len() < usize::try_from(ROWS_AT_ONCE).unwrap_or(0) {
                break;
            }
        }
        Ok(())
    }
}

async fn has_ended(manager: &TransactionManager, transaction: &str) -> bool {
    let Ok(id) = TransactionId::new(transaction) else { return false };
    match manager.get(&id).await {
        Ok(Some(view)) => view.completed,
        Ok(None) => true,
        Err(_) => false,
    }
}

#[expect(clippy::cast_precision_loss, reason = "a measurement")]
fn measure(database: &Database, all: &[Prepared], coordinator: u64) {
    for whose in [Whose::Ours, Whose::OtherCoordinator, Whose::Foreign] {
        let these = || {
            let of = |one: &&Prepared| Whose::of(one.branch.as_ref(), Some(coordinator)) == whose;
            all.iter().filter(of)
        };
        let oldest_ms = these().filter_map(|one| database.age_ms(one)).max().unwrap_or(0);
        let labels =
            [("database", database.config.name.clone()), ("whose", whose.as_str().to_owned())];
        metrics::gauge!("unanimity_database_prepared", &labels).set(these().count() as f64);
        metrics::gauge!("unanimity_database_prepared_oldest_seconds", &labels)
            .set(oldest_ms as f64 / 1_000.0);
    }
}

/// Finishes a branch of ours, if it is not to be left alone.
async fn finish(database: &Database, manager: &TransactionManager, name: &BranchName) {
    let (fate, name) = match fate(manager, name).await {
        (Fate::Leave, _, _) => return,
        (fate, name, _) => (fate, name),
    };
    let branch = Branch::new(name);
    let (answer, outcome) = match fate {
        Fate::Commit => (database.commit(&branch).await, "committed"),
        Fate::Rollback | Fate::Leave => (database.rollback(&branch).await, "rolled_back"),
    };
    let (place, gid) = (&database.config.name, branch.gid());
    if answer == Answer::Acknowledged {
        let labels = [("database", place.clone()), ("outcome", outcome.to_owned())];
        metrics::counter!("unanimity_database_swept_total", &labels).increment(1);
        tracing::warn!(database = place, branch = gid, outcome, "finished what was left prepared");
    } else {
        tracing::warn!(database = place, branch = gid, ?answer, "cannot finish what is prepared");
    }
}

/// What is to become of a branch of ours, its whole name, and why.
async fn fate(manager: &TransactionManager, name: &BranchName) -> (Fate, BranchName, String) {
    let known = match find(manager, &name.transaction).await {
        Found::Known(view) => view,
        Found::Unknown => {
            let why = "nobody has a record of its transaction: it is rolled back".to_owned();
            return (Fate::Rollback, name.clone(), why);
        }
        Found::Unclear => {
            let why = "it cannot be told which transaction it belongs to: left alone".to_owned();
            return (Fate::Leave, name.clone(), why);
        }
    };
    let mut whole = BranchName { transaction: known.id.clone(), ..name.clone() };
    let of = |one: &&unanimity::view::BranchView| {
        let given = BranchName { branch: one.name.clone(), ..whole.clone() };
        given.gid() == name.gid() || given.xid() == name.xid()
    };
    let branch = known.branches.iter().find(of);
    if let Some(branch) = branch {
        whole.branch.clone_from(&branch.name);
    }
    let stage = &known.stage;
    match (known.outcome.as_deref(), branch) {
        (None, _) => (Fate::Leave, whole, format!("its transaction is {stage}: left alone")),
        (Some("commit"), Some(_)) => {
            (Fate::Commit, whole, format!("its transaction is {stage}: it is committed"))
        }
        (Some("commit"), None) => {
            let why = "its transaction has no such branch: it is rolled back".to_owned();
            (Fate::Rollback, whole, why)
        }
        (Some(_), _) => {
            (Fate::Rollback, whole, format!("its transaction is {stage}: it is rolled back"))
        }
    }
}

enum Found {
    Known(Box<TransactionView>),
    Unknown,
    Unclear,
}

/// The transaction of that name, which may be a digest.
async fn find(manager: &TransactionManager, name: &str) -> Found {
    if let Ok(id) = TransactionId::new(name) {
        return match manager.get(&id).await {
            Ok(Some(view)) => Found::Known(Box::new(view)),
            Ok(None) => Found::Unknown,
            Err(_) => Found::Unclear,
        };
    }
    let (wanted, mut filter, mut searched) = (BranchName::new(0, name, ""), Filter::default(), 0);
    loop {
        let Ok(page) = manager.list(filter.clone(), 500).await else { return Found::Unclear };
        searched += page.transactions.len();
        let mut views = page.transactions.into_iter().map(|(view, _)| view);
        if let Some(view) = views.find(|view| wanted.is_of(&view.id)) {
            return Found::Known(Box::new(view));
        }
        match page.next {
            None => return Found::Unknown,
            Some(_) if searched >= SEARCHED_MAX => return Found::Unclear,
            Some(next) => filter.cursor = Some(next),
        }
    }
}

/// Everything that is prepared in a database, for people.
pub(super) async fn show(database: &Database, manager: &TransactionManager) -> DatabaseView {
    let (error, all) = match database.list(true).await {
        Ok(all) => (None, all),
        Err(error) => (Some(error), Vec::new()),
    };
    let coordinator = Some(manager.coordinator_id());
    let mut prepared = Vec::with_capacity(all.len());
    for mut one in all {
        one.age_ms = database.age_ms(&one);
        let whose = Whose::of(one.branch.as_ref(), coordinator);
        let next = match (&one.branch, whose) {
            (Some(name), Whose::Ours) => fate(manager, name).await.2,
            (Some(_), _) => "another coordinator's: never touched by this one".to_owned(),
            (None, _) => "somebody else's: never touched".to_owned(),
        };
        prepared.push(PreparedView::of(one, whose, next));
    }
    let config = &database.config;
    DatabaseView { name: config.name.clone(), place: config.place.clone(), error, prepared }
}
