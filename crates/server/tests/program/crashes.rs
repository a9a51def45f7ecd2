//! At least 200 kills at random moments under load; then everything must have ended, and everybody
//! must agree.

use clap::{Args, Command, FromArgMatches};
use unanimity_server::demo::fleet::Fleet;
use unanimity_server::demo::{DemoArguments, fleet_options, storm};

use crate::setup::{Folder, program};

fn arguments(flags: &str) -> DemoArguments {
    let matches = DemoArguments::augment_args(Command::new("demo"))
        .no_binary_name(true)
        .get_matches_from(flags.split_whitespace());
    DemoArguments::from_arg_matches(&matches).unwrap()
}

async fn check(flags: &str, seed: u64) {
    let folder = Folder::new();
    let arguments = arguments(flags);
    let mut options = fleet_options(&arguments, seed, folder.path()).unwrap();
    options.program = program().to_path_buf();
    let mut fleet = Fleet::start(&options).await.unwrap();
    let run = storm(&mut fleet, &arguments, seed, true).await.unwrap();
    fleet.stop().await.unwrap();
    let verdict = &run.verdict;
    println!(
        "seed {seed}: {} kills {:?}, {} transactions, {} committed, rolled back {:?}, {} \
         recovered, \
         {} duplicates absorbed",
        run.killed.total(),
        run.killed.kills,
        verdict.transactions,
        verdict.committed,
        verdict.rolled_back,
        verdict.recovered,
        run.killed.duplicates_absorbed,
    );
    assert_eq!(verdict.wrong, Vec::<String>::new(), "seed {seed}");
    assert!(run.killed.total() >= arguments.kills_min as u64);
    // The run must have been hard enough to prove something.
    assert!(verdict.committed > 100, "too few commits to mean anything");
    assert!(verdict.recovered > 0, "nothing was recovered");
    assert!(run.killed.duplicates_absorbed > 0, "no duplicate was ever sent");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_kills_lose_nothing() {
    let flags = "--transfers 1000 --concurrency 32 --kills-min 200 --pause-min-ms 20 \
                 --pause-max-ms 150";
    check(flags, 20_261_121).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_kills_lose_nothing_with_all_kinds_of_branches_mixed() {
    // No refusals on demand: a deferred branch that is refused for good can never be complete.
    let flags = "--transfers 1000 --concurrency 32 --kills-min 200 --pause-min-ms 20 \
                 --pause-max-ms 150 --mixed \
                 --faults error_before=0.02,error_after=0.02,lost_answer=0.02,delay=0.002:1500";
    check(flags, 42).await;
}
