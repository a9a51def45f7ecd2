//! `cargo xtask sim`: runs seeds, tells what was met, and shrinks and tells what went wrong.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use unanimity_judge::write_line;

use super::run::{Plan, Report};
use super::shrink;
use super::situations::Situations;
use super::story;
use super::world::Planted;

/// How many runs are done twice, to compare the digests of their traces: one in so many.
const TWICE_EVERY: u64 = 64;

/// What many runs came to.
#[derive(Debug, Default)]
pub struct Total {
    /// How many runs there were.
    pub seeds: u64,
    /// How many transactions they planned.
    pub transactions: u64,
    /// How many events there were.
    pub events: u64,
    /// How many faults struck.
    pub faults: u64,
    /// What was met.
    pub situations: Situations,
    /// The failed run with the lowest seed.
    pub failed: Option<Report>,
    /// How many failed, if the search did not end with the first.
    pub failures: u64,
    /// Which rules were broken, and in how many runs.
    pub rules: BTreeMap<&'static str, u64>,
}

/// Runs `count` seeds from `from` on, on all cores, until one fails.
#[must_use]
pub fn run_seeds(from: u64, count: u64, planted: Planted, stops: bool) -> Total {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicU64::new(from);
    let stop = AtomicBool::new(false);
    let total = Mutex::new(Total::default());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut mine = Total::default();
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= from + count {
                        break;
                    }
                    let report = run_one(seed, planted);
                    if report.broken.is_some() && stops {
                        stop.store(true, Ordering::Relaxed);
                    }
                    mine.add(report);
                }
                let mut total = total.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                total.merge(mine);
            });
        }
    });
    total.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// One seed; now and then twice: a run that is not the same twice can be trusted in nothing.
fn run_one(seed: u64, planted: Planted) -> Report {
    let plan = Plan::of_seed(seed, planted);
    let mut report = plan.run();
    if seed.is_multiple_of(TWICE_EVERY) && plan.run().hash != report.hash && report.broken.is_none()
    {
        report.broken = Some(unanimity_judge::Finding {
            line: 0,
            at: 0,
            transaction: None,
            rule: "the same seed is the same run",
            problem: "two runs of it differ".to_owned(),
        });
    }
    report
}

impl Total {
    fn add(&mut self, report: Report) {
        self.seeds += 1;
        self.transactions += report.transactions;
        self.events += report.events;
        self.faults += report.faults.len() as u64;
        self.situations.add(&report.situations);
        for rule in &report.rules {
            *self.rules.entry(rule).or_default() += 1;
        }
        if report.broken.is_some() {
            self.failures += 1;
            if self.failed.as_ref().is_none_or(|failed| report.seed < failed.seed) {
                self.failed = Some(report);
            }
        }
    }

    fn merge(&mut self, other: Self) {
        self.seeds += other.seeds;
        self.transactions += other.transactions;
        self.events += other.events;
        self.faults += other.faults;
        self.failures += other.failures;
        self.situations.add(&other.situations);
        for (rule, runs) in other.rules {
            *self.rules.entry(rule).or_default() += runs;
        }
        if let Some(failed) = other.failed
            && self.failed.as_ref().is_none_or(|mine| failed.seed < mine.seed)
        {
            self.failed = Some(failed);
        }
    }
}

/// What a command line asks for.
#[derive(Debug, Default)]
struct Words {
    seeds: u64,
    from: u64,
    seed: Option<u64>,
    trace: bool,
    all: bool,
    script: Option<String>,
}

const USAGE: &str = "\
usage: sim --seeds N [--from S] [--all]   run N seeds; --all goes on after a failure
       sim --seed S [--trace]             run one seed; --trace prints its events as JSON lines
       sim --script FILE [--trace]        run a script that an earlier failure was shrunk to
";

fn words(arguments: &[String]) -> Result<Words, String> {
    let mut words = Words::default();
    let mut rest = arguments.iter();
    while let Some(word) = rest.next() {
        let mut number = || {
            let value = rest.next().ok_or_else(|| format!("{word} needs a number"))?;
            value.parse().map_err(|_| format!("{word} {value}: not a number"))
        };
        match word.as_str() {
            "--seeds" => words.seeds = number()?,
            "--from" => words.from = number()?,
            "--seed" => words.seed = Some(number()?),
            "--trace" => words.trace = true,
            "--all" => words.all = true,
            "--script" => {
                words.script = Some(rest.next().ok_or("--script needs a file")?.clone());
            }
            unknown => return Err(format!("unknown word {unknown}")),
        }
    }
    Ok(words)
}

/// Runs what the words ask for.
#[must_use]
pub fn run(arguments: &[String]) -> ExitCode {
    let words = match words(arguments) {
        Ok(words) => words,
        Err(problem) => {
            eprint!("sim: {problem}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    quiet_panics();
    if let Some(file) = &words.script {
        return match shrink::Script::read(file) {
            Ok(script) => one(&script.plan(words.trace), words.trace),
            Err(problem) => {
                eprintln!("sim: {file}: {problem}");
                ExitCode::from(2)
            }
        };
    }
    if let Some(seed) = words.seed {
        let plan = Plan { traces: words.trace, ..Plan::of_seed(seed, Planted::default()) };
        return one(&plan, words.trace);
    }
    if words.seeds == 0 {
        print!("{USAGE}");
        return ExitCode::from(2);
    }
    many(&words)
}

/// A panic inside a run is caught and told as a finding; its own message would only be noise.
pub fn quiet_panics() {
    std::panic::set_hook(Box::new(|_| {}));
}

fn one(plan: &Plan, trace: bool) -> ExitCode {
    let report = plan.run();
    if trace {
        for line in report.trace.iter().filter_map(|line| write_line(line).ok()) {
            println!("{line}");
        }
    } else {
        println!("seed {}: {:?}", plan.seed, plan.options);
        for (number, kind) in &report.faults {
            println!("  fault {number}: {}", kind.what());
        }
        for (what, count) in report.situations.iter() {
            println!("  {count:>6} {what}");
        }
        println!("trace hash {:016x}, {} events", report.hash, report.events);
    }
    let Some(broken) = &report.broken else { return ExitCode::SUCCESS };
    eprintln!("WRONG: {broken}");
    ExitCode::FAILURE
}

fn many(words: &Words) -> ExitCode {
    let start = Instant::now();
    let total = run_seeds(words.from, words.seeds, Planted::default(), !words.all);
    let seconds = start.elapsed().as_secs_f64();
    for (what, count) in total.situations.iter() {
        println!("{count:>9} {what}");
    }
    println!(
        "simulator seeds run: {} from {} ({} transactions, {} events, {} faults; {seconds:.1} \
         seconds, {:.0} seeds/s)",
        total.seeds,
        words.from,
        total.transactions,
        total.events,
        total.faults,
        total.seeds as f64 / seconds,
    );
    if let Some(failed) = &total.failed {
        println!("{} runs failed; the one with the lowest seed:", total.failures);
        let script = shrink::shrink(&Plan::of_seed(failed.seed, Planted::default()));
        print!("{}", story::tell(&script));
        println!("script: {}", script.json());
        return ExitCode::FAILURE;
    }
    let missed = total.situations.missed(total.seeds);
    for (what, met, needed) in &missed {
        println!("NOT MET: {what}: {met} times, at least {needed} are needed");
    }
    if missed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
