//! What the test programs' output adds up to: tests passed and failed, and the model checker's
//! count of states. The output's form is the standard test harness's; running the tests is the
//! suite's part.

use crate::Failure;

const STATES: &str = "model states explored";
/// What else is worth repeating at the end.
const FIGURES: [&str; 3] = [STATES, "simulator seeds run", "planted bugs found"];

/// The sum over all test programs so far.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub passed: u64,
    pub failed: u64,
    pub ignored: u64,
    /// The lines `model states explored: N` and the like, as they came.
    pub states: Vec<String>,
}

impl Tally {
    /// Takes in one line of output.
    pub fn read(&mut self, line: &str) {
        if let Some(result) = line.strip_prefix("test result: ") {
            self.passed += count(result, "passed");
            self.failed += count(result, "failed");
            self.ignored += count(result, "ignored");
        }
        // With --nocapture the harness's own words may stand before it on the same line.
        let found = FIGURES.iter().find_map(|figure| line.find(figure));
        if let Some(at) = found {
            self.states.push(line[at..].trim_end().to_string());
        }
    }

    /// The closing line.
    pub fn closing(&self) -> String {
        format!("{} passed, {} failed", self.passed, self.failed)
    }

    /// What is wrong even if every program ended well.
    pub fn judge(&self) -> Result<(), Failure> {
        match self {
            Tally { passed: 0, .. } => Err("no test ran".into()),
            Tally { failed: 1.., .. } => Err(format!("{} tests failed", self.failed)),
            Tally { states, .. } if !states.iter().any(|line| line.starts_with(STATES)) => {
                Err(format!("the model checker printed no line `{STATES}: N`"))
            }
            Tally { .. } => Ok(()),
        }
    }
}

/// The number before `word` in `ok. 5 passed; 0 failed; 0 ignored; ...`.
fn count(result: &str, word: &str) -> u64 {
    let mut parts = result.split([';', '.']).map(str::trim);
    let number = parts.find_map(|part| part.strip_suffix(word));
    number.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::{STATES, Tally};

    fn check(output: &str, expected: (u64, u64, u64, &[&str])) {
        let mut tally = Tally::default();
        output.lines().for_each(|line| tally.read(line));
        let states: Vec<&str> = tally.states.iter().map(String::as_str).collect();
        assert_eq!((tally.passed, tally.failed, tally.ignored, &states[..]), expected);
    }

    #[test]
    fn results_of_several_programs_add_up() {
        check(
            "running 2 tests\n\
             test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n\
             test result: FAILED. 40 passed; 3 failed; 1 ignored; 0 measured; finished in 0.1s\n",
            (42, 3, 1, &[]),
        );
    }

    #[test]
    fn a_result_is_only_a_line_of_its_own() {
        check("we print test result: ok. 9 passed; 0 failed\ntest passed ... ok", (0, 0, 0, &[]));
    }

    #[test]
    fn the_number_of_states_may_follow_other_words() {
        check(
            "test two_branches ... model states explored: 12345 \nok",
            (0, 0, 0, &["model states explored: 12345"]),
        );
    }

    #[test]
    fn nothing_run_is_not_a_success() {
        let good = Tally { passed: 1, states: vec![format!("{STATES}: 1")], ..Tally::default() };
        assert_eq!(good.judge(), Ok(()));
        assert!(
            Tally { passed: 0, states: vec![format!("{STATES}: 1")], ..Tally::default() }
                .judge()
                .is_err()
        );
        assert!(Tally { passed: 1, failed: 1, ..Tally::default() }.judge().is_err());
        assert!(Tally { passed: 1, ..Tally::default() }.judge().is_err());
    }
}
