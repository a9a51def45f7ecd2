//! The simulator is the same twice, finds what is planted, and what it found once stays right.

use std::collections::BTreeSet;
use std::path::Path;

use unanimity_core::{Mutation, Mutations};
use unanimity_judge::{Judge, names, read_line, write_line};

use super::command::run_seeds;
use super::planted;
use super::run::Plan;
use super::shrink::{Script, shrink};
use super::story::tell;
use super::upgrade::UpgradeBug;
use super::world::{Planted, StoreBug};

/// Every failure that was kept: the seed with which the simulator found it, made small.
#[test]
fn what_was_wrong_once_is_right_now() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts");
    let mut kept = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let file = entry.unwrap().path();
        let script = Script::read(&file.to_string_lossy()).unwrap();
        let report = script.plan(false).run();
        assert_eq!(report.broken, None, "{}: {}", file.display(), tell(&script));
        kept += 1;
    }
    assert!(kept >= 3, "the scripts are gone");
}

#[test]
fn a_seed_is_one_run_and_another_seed_is_another() {
    let run = |seed| Plan::of_seed(seed, Planted::default()).run();
    let (first, again, other) = (run(7), run(7), run(8));
    assert_eq!((first.hash, first.events), (again.hash, again.events));
    assert_ne!(first.hash, other.hash);
    assert!(first.events > 0);
}

#[test]
fn seeds_are_clean_and_meet_what_they_must() {
    let total = run_seeds(1_000_000, 2_000, Planted::default(), true);
    assert!(total.failed.is_none(), "{:?}", total.failed);
    assert_eq!(total.situations.missed(total.seeds), []);
    assert!(total.faults > total.seeds);
}

#[test]
fn a_planted_bug_is_found_made_small_and_told() {
    let mutations = Mutations::only(Mutation::UnansweredLeftOutOfRollback);
    let planted = Planted { mutations, ..Planted::default() };
    let failed = run_seeds(0, 200, planted, true).failed.unwrap();
    let full = Plan::of_seed(failed.seed, planted);
    let script = shrink(&full);
    let small = script.plan(false).run();
    assert_eq!(small.broken.unwrap().rule, failed.broken.unwrap().rule);
    let (before, after) = (full.run().transactions, small.transactions);
    assert!(small.faults.len() <= failed.faults.len() && after <= before);
    let story = tell(&script);
    assert!(story.contains("=> line") && story.contains(&script.rule), "{story}");
    let read: Script = serde_json::from_str(&script.json()).unwrap();
    assert_eq!(read.options, script.options);
}

/// What several processes on one database must share, and what they must lock.
#[test]
fn a_store_that_forgets_its_other_processes_is_found() {
    for bug in [StoreBug::RowInMemory, StoreBug::RowNotLocked] {
        let planted = Planted { store: Some(bug), ..Planted::default() };
        assert!(run_seeds(0, 500, planted, true).failed.is_some(), "{bug:?}");
    }
}

#[test]
fn a_newer_version_that_misreads_an_older_ones_journal_is_found() {
    for bug in [UpgradeBug::FirstVersionSkipped, UpgradeBug::LimitForgets] {
        let planted = Planted { upgrade: Some(bug), ..Planted::default() };
        assert!(run_seeds(0, 1_000, planted, true).failed.is_some(), "{bug:?}");
    }
}

/// The rules of the judge that the simulator cannot break: its network invents no answer, and its
/// world neither turns time back nor lets a branch work that is on no plan.
const NOT_HERE: [&str; 2] = [names::ANSWERED, names::TRACE];

/// Every other rule of the judge goes red here by one planted bug at least.
#[test]
fn every_rule_of_the_judge_goes_red_in_the_simulator() {
    let mut green: BTreeSet<&str> = unanimity_judge::RULES.into_iter().collect();
    green.retain(|rule| !NOT_HERE.contains(rule));
    for (name, planted) in planted::all() {
        if green.is_empty() {
            break;
        }
        for rule in run_seeds(0, 400, planted, false).rules.into_keys() {
            if green.remove(rule) {
                println!("{rule}: {name}");
            }
        }
    }
    assert!(green.is_empty(), "never red: {green:?}");
}

/// The simulator's judge reads events; a trace's reader reads text. Both see the same.
#[test]
fn a_trace_says_the_same_as_text() {
    for seed in 0..20 {
        let report = Plan { traces: true, ..Plan::of_seed(seed, Planted::default()) }.run();
        let mut judge = Judge::new();
        for (number, line) in (1..).zip(&report.trace) {
            let text = write_line(line).unwrap();
            let read = read_line(number, &text).unwrap();
            assert_eq!(read, *line);
            judge.take(&read);
        }
        assert_eq!(judge.found(), [], "seed {seed}");
        assert_eq!(judge.lines(), report.trace.len());
        assert!(judge.lines() > 0);
    }
}
