//! Every target on every input of its corpus, and on mutations of it that are the same in each run.

#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

use std::path::{Path, PathBuf};

use unanimity_inputs::mutate::{Chance, mutated};
use unanimity_inputs::{TARGETS, Target};

/// Of each input, in an ordinary run; the long set tries fifty times as many.
const MUTATIONS: u64 = 2_000;

fn corpora() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus")
}

/// The inputs of a target, in an order that does not depend on the file system.
fn corpus(target: Target) -> Vec<(String, Vec<u8>)> {
    let folder = corpora().join(target.name);
    let listed = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{error}: {folder:?}"));
    let mut paths: Vec<PathBuf> = listed.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let named = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        (name, std::fs::read(path).unwrap())
    };
    paths.iter().map(named).collect()
}

/// Runs a target, and says on which bytes if it panics.
fn run(target: Target, bytes: &[u8], what: &str) -> bool {
    let ran = std::panic::catch_unwind(|| (target.run)(bytes));
    ran.unwrap_or_else(|_| panic!("{} on {what}: {}", target.name, bytes.escape_ascii()))
}

#[test]
fn every_corpus_holds_what_is_accepted_and_what_is_not_and_no_more_than_30_inputs() {
    for target in TARGETS {
        let inputs = corpus(target);
        assert!((4..=30).contains(&inputs.len()), "{}: {}", target.name, inputs.len());
        let accepted = |(name, bytes): &&(String, Vec<u8>)| run(target, bytes, name);
        let count = inputs.iter().filter(accepted).count();
        assert!(count > 0, "{}: nothing is accepted, so its property was not tried", target.name);
        assert!(count < inputs.len(), "{}: nothing is refused", target.name);
        run(target, b"", "nothing");
    }
}

#[test]
fn there_is_a_target_for_every_corpus() {
    for entry in std::fs::read_dir(corpora()).unwrap() {
        let name = entry.unwrap().file_name();
        assert!(TARGETS.iter().any(|target| *target.name == name), "{name:?}");
    }
}

#[test]
fn no_mutation_of_the_corpus_breaks_a_target() {
    let long = std::env::var_os("LONG_TESTS").is_some();
    let mutations = MUTATIONS * if long { 50 } else { 1 };
    for target in TARGETS {
        let inputs = corpus(target);
        let mut accepted = 0;
        for (number, (name, bytes)) in inputs.iter().enumerate() {
            for seed in 0..mutations {
                let mut chance = Chance::new((number as u64) << 32 | seed << 8);
                let other = &inputs[(number + seed as usize) % inputs.len()].1;
                let changed = mutated(bytes, other, &mut chance);
                accepted += usize::from(run(target, &changed, &format!("{name}, seed {seed}")));
            }
        }
        // Mutations that are all refused at the door try nothing behind it.
        assert!(accepted > 0, "{}", target.name);
    }
}
