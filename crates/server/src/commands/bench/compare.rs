//! What has changed since the run before: throughput, and cost where that is what a row is about.
//! Runs on another machine are not compared.

use std::collections::HashMap;

use super::row::{Report, Row};

/// Less than this is noise, in percent.
const NOISE_PERCENT: f64 = 5.0;

/// One row that both runs have.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Change {
    /// Which.
    pub(super) name: String,
    /// Transactions a second before.
    pub(super) before: f64,
    /// And now.
    pub(super) now: f64,
}

impl Change {
    /// In percent of what was.
    pub(super) fn percent(&self) -> f64 {
        if self.before > 0.0 { (self.now / self.before - 1.0) * 100.0 } else { 0.0 }
    }
}

/// What the rows are called, in any run.
fn names(rows: &[Row]) -> Vec<String> {
    let mut arriving: HashMap<String, u32> = HashMap::new();
    let name = |row: &Row| {
        let case = format!("{} {}", row.scenario, row.case).trim().to_owned();
        if row.arrivals_per_second.is_none() {
            return format!("{case} {}", row.load()).trim().to_owned();
        }
        // A rate follows from what was measured before it and differs each time; the first of a
        // case is a part of that as it was then.
        let number = arriving.entry(case.clone()).or_default();
        *number += 1;
        if *number == 1 { case } else { format!("{case}, rate {number}") }
    };
    rows.iter().map(name).collect()
}

/// Row by row, in the order of the run now.
pub(super) fn changes(before: &Report, now: &Report) -> Vec<Change> {
    if before.machine != now.machine || before.cores != now.cores {
        return Vec::new();
    }
    let rates = before.rows.iter().map(|row| row.per_second);
    let before: HashMap<String, f64> = names(&before.rows).into_iter().zip(rates).collect();
    let named = names(&now.rows).into_iter().zip(&now.rows);
    named
        .filter_map(|(name, row)| {
            let before = *before.get(&name)?;
            Some(Change { name, before, now: row.per_second })
        })
        .collect()
}

/// What is worth telling, as lines of text.
pub(super) fn told(before: &Report, changes: &[Change]) -> String {
    let commit = if before.commit.is_empty() { "the run before" } else { &before.commit };
    if changes.is_empty() {
        return format!("no row to compare with {commit}");
    }
    let beyond = changes.iter().filter(|change| change.percent().abs() >= NOISE_PERCENT);
    let lines: Vec<String> = beyond
        .map(|change| {
            let (before, now) = (change.before, change.now);
            format!("{:<50} {before:>10.0} {now:>10.0} {:>+6.0} %", change.name, change.percent())
        })
        .collect();
    let rest = changes.len() - lines.len();
    let within = format!("{rest} rows within {NOISE_PERCENT:.0} % of {commit}");
    if lines.is_empty() { within } else { format!("{}\n{within}", lines.join("\n")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(machine: &str, rows: &[(&str, f64)]) -> Report {
        let row = |(case, per_second): &(&str, f64)| Row {
            case: (*case).to_owned(),
            per_second: *per_second,
            ..Row::default()
        };
        let (machine, rows) = (machine.to_owned(), rows.iter().map(row).collect());
        Report { machine, rows, ..Report::new() }
    }

    #[test]
    fn rows_are_compared_by_name_and_on_one_machine_only() {
        let (before, now) =
            (report("m", &[("a", 100.0)]), report("m", &[("b", 1.0), ("a", 120.0)]));
        let found = changes(&before, &now);
        assert_eq!(found, [Change { name: "a".to_owned(), before: 100.0, now: 120.0 }]);
        assert!(told(&before, &found).contains("+20 %"));
        assert_eq!(changes(&report("other", &[("a", 100.0)]), &now), []);
    }

    /// Each has another rate in each run, so their order tells which is which.
    #[test]
    fn of_the_arriving_rows_of_a_case_the_first_is_compared_with_the_first() {
        let arriving = |factor: f64| {
            let mut report = report("m", &[("a", 10.0 * factor), ("a", 20.0 * factor)]);
            for row in &mut report.rows {
                row.arrivals_per_second = Some(row.per_second);
            }
            report
        };
        let found = changes(&arriving(1.0), &arriving(1.5));
        let rates: Vec<_> = found.iter().map(|change| (change.before, change.now)).collect();
        assert_eq!(rates, [(10.0, 15.0), (20.0, 30.0)]);
    }
}
