//! Kills at random moments under load, 100 in an ordinary run and 1,000 in the long one; then
//! everything must have ended, and everybody must agree.

use clap::{Args, Command, FromArgMatches};
use unanimity_judge::{Event, Line};
use unanimity_server::demo::fleet::Fleet;
use unanimity_server::demo::{DemoArguments, Run, fleet_options, storm};

use crate::setup::{Folder, program};

fn arguments(flags: &str) -> DemoArguments {
    let matches = DemoArguments::augment_args(Command::new("demo"))
        .no_binary_name(true)
        .get_matches_from(flags.split_whitespace());
    DemoArguments::from_arg_matches(&matches).unwrap()
}

async fn check(flags: &str, seed: u64) -> Run {
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
         {} duplicates absorbed, {} explanations, {} in one phase, {} settled with a commit by \
         the participant, {} orders, {} reads, {} lines judged",
        run.killed.total(),
        run.killed.kills,
        verdict.transactions,
        verdict.committed,
        verdict.rolled_back,
        verdict.recovered,
        run.killed.duplicates_absorbed,
        verdict.explained,
        verdict.in_one_phase,
        verdict.settled,
        verdict.orders,
        verdict.reads,
        verdict.judged_lines,
    );
    assert_eq!(verdict.wrong, Vec::<String>::new(), "seed {seed}");
    assert!(run.killed.total() >= arguments.kills_min as u64);
    // The run must have been hard enough to prove something.
    assert!(verdict.committed > 100, "too few commits to mean anything");
    assert!(verdict.recovered > 0, "nothing was recovered");
    assert!(run.killed.duplicates_absorbed > 0, "no duplicate was ever sent");
    // Everybody's history as one trace: what the judge finds in it is among the wrong.
    let worked = |line: &&Line| matches!(line.event, Event::Worked { effect: true, .. });
    let worked = run.trace.iter().filter(worked).count();
    assert!(worked > 2 * verdict.committed, "only {worked} times work was seen");
    // Readers before, during and after; and what the processes hold on to at the end.
    for said in ["nobody knows it", "no outcome yet", "an outcome"] {
        let reads = run.trace.iter().filter(|line| told(&line.event) == Some(said)).count();
        assert!(reads > 20, "only {reads} readers were told: {said}");
    }
    let left = run.trace.iter().filter(|line| matches!(line.event, Event::Left { .. })).count();
    assert_eq!(left, 6, "sockets and files of three processes");
    run
}

/// What a reader was told.
const fn told(event: &Event) -> Option<&'static str> {
    match event {
        Event::Read { unknown: true, .. } => Some("nobody knows it"),
        Event::Read { outcome: None, .. } => Some("no outcome yet"),
        Event::Read { .. } => Some("an outcome"),
        _ => None, // Nobody reads.
    }
}

/// So many kills in each of the two tests below.
fn kills() -> usize {
    if crate::faults::long() { 500 } else { 50 }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_at_random_moments_lose_nothing() {
    let kills = kills();
    let flags = format!(
        "--transfers 500 --concurrency 32 --kills-min {kills} --pause-min-ms 20 --pause-max-ms 150"
    );
    check(&flags, 20_261_121).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_at_random_moments_lose_nothing_with_all_kinds_of_branches_mixed() {
    let kills = kills();
    // No refusals on demand: a deferred branch that is refused for good can never be complete.
    let flags = format!(
        "--transfers 500 --concurrency 32 --kills-min {kills} --pause-min-ms 20 \
         --pause-max-ms 150 --mixed --explain \
         --faults error_before=0.02,error_after=0.02,lost_answer=0.02,delay=0.002:1500"
    );
    let run = check(&flags, 42).await;
    // Each of them named a next action: one that did not would be among the wrong.
    assert!(run.verdict.explained > 300, "too few explanations to mean anything");
    let abandoned = run.verdict.rolled_back.get("abandoned").copied().unwrap_or(0);
    assert!(abandoned > 0, "no interactive transaction was abandoned");
    let verdict = &run.verdict;
    assert!(verdict.in_one_phase > 50, "too few commits in one phase to mean anything");
    assert!(verdict.orders > 30, "too few messages to mean anything");
    assert!(verdict.settled > 5, "too few initiators were silent after their local commit");
}

/// So many kills in each of the two tests below: what is theirs is the carriage alone.
fn kills_over_streams() -> usize {
    if crate::faults::long() { 200 } else { 20 }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_at_random_moments_lose_nothing_over_streams_that_banks_open() {
    let kills = kills_over_streams();
    let flags = format!(
        "--transfers 500 --concurrency 32 --kills-min {kills} --pause-min-ms 20 \
         --pause-max-ms 150 --carriage stream --mixed \
         --faults error_before=0.02,error_after=0.02,lost_answer=0.02,delay=0.002:1500"
    );
    check(&flags, 7).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_at_random_moments_lose_nothing_over_streams_that_the_coordinator_opens() {
    let kills = kills_over_streams();
    let flags = format!(
        "--transfers 500 --concurrency 32 --kills-min {kills} --pause-min-ms 20 \
         --pause-max-ms 150 --carriage grpc"
    );
    check(&flags, 20_261_124).await;
}
