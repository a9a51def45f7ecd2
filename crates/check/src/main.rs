//! Survey (temporary).
use unanimity_check::setup::*;
use unanimity_check::{configurations::*, run, story};
use unanimity_core::Kind;
fn b(c: char) -> BranchSetup {
    let (kind, says) = match c {
        'y' => (Kind::TwoPhase, Says::Yes), 'n' => (Kind::TwoPhase, Says::No), 'r' => (Kind::TwoPhase, Says::ReadOnly),
        'c' => (Kind::Compensable, Says::Yes), 'x' => (Kind::Compensable, Says::No), 'd' => (Kind::Deferred, Says::Yes), _ => panic!(),
    };
    BranchSetup { kind, says, after: &[] }
}
fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    for a in &args {
        let name: &'static str = a.clone().leak();
        let mut parts = a.split(',');
        let branches: &'static [BranchSetup] = parts.next().unwrap().chars().map(b).collect::<Vec<_>>().leak();
        let mut s = Setup::calm(name, branches);
        s.network = Network::Repeats;
        for p in parts {
            let n = p.chars().nth(1).map_or(0, |c| c.to_digit(10).unwrap_or(0)) as u8;
            match p.chars().next().unwrap() {
                'O' => s.network = Network::Once, 'g' => s.gives_up = true, 'd' => s.deadlines = true, 'l' => s.limit_for_the_whole = true,
                'x' => s.cancels = n, 'c' => s.coordinator_crashes = n, 'r' => s.participant_restarts = n, 'f' => s.amnesia = n,
                'k' => s.checkpoints = n, 'a' => s.attempts_max = n as u32, 'p' => s.park_after = n as u16, 'S' => s.symmetry = false, _ => panic!(),
            }
        }
        let e = run::explore(&Configuration { setup: s.clone(), milestones: &[], states: 0 }, 2);
        println!("{e}");
        if !e.violated.is_empty() && let Some(x) = run::shortest_counterexample(&s) { print!("{}", story::tell(&s, &x)); }
    }
}
