//! The report as one HTML file that needs nothing else: charts for the eye, the table for the
//! figures. Which charts there are follows from which rows there are.

use super::compare::Change;
use super::row::{Report, Row};
use super::svg::{Bar, Lines, Series, bars, escape, lines, short};
use super::table::remarks;

const STYLE: &str = include_str!("page.css");

/// A chart with its heading and a sentence about it.
struct Figure {
    title: String,
    says: String,
    svg: String,
}

/// The whole page.
pub(super) fn page(report: &Report, changes: &[Change]) -> String {
    let mut figures = Vec::new();
    let mut scenarios: Vec<&str> = report.rows.iter().map(|row| row.scenario.as_str()).collect();
    scenarios.dedup();
    for scenario in scenarios {
        let rows: Vec<&Row> = report.rows.iter().filter(|row| row.scenario == scenario).collect();
        figures.extend(throughput(scenario, &rows));
        figures.extend(latency(scenario, &rows));
        figures.extend(growth(scenario, &rows));
    }
    figures.extend(ratios(&report.rows));
    let figures: String = figures.iter().map(figure).collect();
    let commit = if report.commit.is_empty() { "not told" } else { &report.commit };
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>Unanimity: what transactions cost</title>\
         <style>{STYLE}</style></head><body><main><h1>What transactions cost</h1>\
         <p class=\"about\">Unanimity {}, commit {}. {} cores for all processes: {}. Every outcome \
         was on disk before it was told, history was on, and after each run every transaction that \
         had begun had ended and was in the history.</p><div class=\"figures\">{figures}</div>\
         <h2>All figures</h2>{}{}</main></body></html>\n",
        escape(&report.version),
        escape(commit),
        report.cores,
        escape(&report.machine),
        table(&report.rows),
        compared(changes),
    )
}

fn figure(figure: &Figure) -> String {
    let Figure { title, says, svg } = figure;
    let (title, says) = (escape(title), escape(says));
    format!("<figure><h2>{title}</h2><figcaption>{says}</figcaption>{svg}</figure>")
}

/// Committed transactions a second against initiators, where there is more than one such row.
fn throughput(scenario: &str, rows: &[&Row]) -> Option<Figure> {
    let closed: Vec<(f64, &Row)> = by_initiators(rows);
    if closed.len() < 2 {
        return None;
    }
    let points = closed.iter().map(|(at_once, row)| (*at_once, row.per_second)).collect();
    let mut series = vec![Series { name: "committed".to_owned(), is_limit: false, points }];
    let names: Vec<&str> = closed[0].1.ceilings.iter().map(|one| one.name.as_str()).collect();
    for name in names {
        let limit = |row: &Row| row.ceilings.iter().find(|one| one.name == name).cloned();
        let points = closed.iter().filter_map(|(at, row)| Some((*at, limit(row)?.per_second)));
        let (name, points) = (name.to_owned(), points.collect());
        series.push(Series { name, is_limit: true, points });
    }
    let (x_label, y_label) = ("initiators at once", "transactions a second");
    let chart = Lines { x_label, y_label, x_is_log: true, y_is_log: false, series };
    Some(Figure {
        title: format!("{scenario}: throughput against concurrency"),
        says: "Each initiator begins its next transaction when it has the outcome of the last. \
               Dashed: what limits it, measured in the same run."
            .to_owned(),
        svg: lines(&chart),
    })
}

/// Those of the case that comes first: lines between others would connect unlike things.
fn by_initiators<'a>(rows: &[&'a Row]) -> Vec<(f64, &'a Row)> {
    let closed = rows.iter().filter_map(|row| Some((row.initiators? as f64, *row)));
    let first = rows.iter().find(|row| row.initiators.is_some()).map(|row| &row.case);
    closed.filter(|(_, row)| Some(&row.case) == first).collect()
}

/// Latencies against the load: the rate of arrivals where there is more than one, or initiators.
fn latency(scenario: &str, rows: &[&Row]) -> Option<Figure> {
    let arriving = rows.iter().filter_map(|row| Some((row.arrivals_per_second?, *row)));
    let arriving: Vec<(f64, &Row)> = arriving.collect();
    let (x_label, x_is_log, points) = if arriving.len() > 1 {
        ("transactions arriving a second", false, arriving)
    } else {
        ("initiators at once", true, by_initiators(rows))
    };
    if points.len() < 2 {
        return None;
    }
    let one = |name: &str, of: fn(&Row) -> f64| Series {
        name: name.to_owned(),
        is_limit: false,
        points: points.iter().map(|(load, row)| (*load, of(row))).collect(),
    };
    let series = vec![
        one("median", |row| row.latency.p50_ms),
        one("99 %", |row| row.latency.p99_ms),
        one("99.9 %", |row| row.latency.p999_ms),
    ];
    let y_label = "milliseconds to the outcome";
    let chart = Lines { x_label, y_label, x_is_log, y_is_log: true, series };
    let arriving = "Transactions arrive at this rate whatever the answers do; a latency counts \
                    from the moment at which the transaction was due.";
    let closed = "So many initiators, each waiting for its outcome.";
    Some(Figure {
        title: format!("{scenario}: latency against load"),
        says: if x_is_log { closed } else { arriving }.to_owned(),
        svg: lines(&chart),
    })
}

/// The cost of a transaction against how many others are live or in the history.
fn growth(scenario: &str, rows: &[&Row]) -> Option<Figure> {
    let beside = rows.iter().filter_map(|row| Some((row.live? as f64, row.cpu_us)));
    let points: Vec<(f64, f64)> = beside.collect();
    if points.len() < 2 {
        return None;
    }
    let series = vec![Series { name: "cost".to_owned(), is_limit: false, points }];
    let (x_label, y_label) = ("live transactions beside it", "CPU microseconds a transaction");
    Some(Figure {
        title: format!("{scenario}: what a transaction costs beside others"),
        says: "Live: decided, and not acknowledged by a participant that is down.".to_owned(),
        svg: lines(&Lines { x_label, y_label, x_is_log: true, y_is_log: false, series }),
    })
}

fn ratios(rows: &[Row]) -> Option<Figure> {
    let of = |row: &Row| {
        let (nearest, ratio) = row.nearest()?;
        let name = format!("{}, {}, {}", row.scenario, row.case, row.load());
        let words = format!("{:.0} % of {}", ratio * 100.0, short(nearest.per_second));
        Some(Bar { name, value: ratio, words })
    };
    let all: Vec<Bar> = rows.iter().filter_map(of).collect();
    (!all.is_empty()).then(|| Figure {
        title: "How near the limit".to_owned(),
        says:
            "The share of the nearest ceiling that was measured in the same run; the line is all \
               of it."
                .to_owned(),
        svg: bars(&all, 1.0),
    })
}

fn table(rows: &[Row]) -> String {
    let heads = [
        "scenario",
        "case",
        "load",
        "committed/s",
        "p50 ms",
        "p99 ms",
        "p99.9 ms",
        "max ms",
        "CPU us",
        "bytes",
        "syncs",
        "MB",
        "of its ceilings, and what else",
    ];
    let head: String = heads.iter().map(|head| format!("<th>{head}</th>")).collect();
    let body: String = rows.iter().map(table_row).collect();
    format!(
        "<p class=\"about\">CPU, bytes written and syncs of the journal are for each transaction, \
         of all processes; MB is the coordinator's resident memory after the load.</p>\
         <div class=\"wide\"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>\
         </div>"
    )
}

fn table_row(row: &Row) -> String {
    let latency = &row.latency;
    let texts = [escape(&row.scenario), escape(&row.case), row.load()];
    let figures = [
        format!("{:.0}", row.per_second),
        format!("{:.2}", latency.p50_ms),
        format!("{:.2}", latency.p99_ms),
        format!("{:.2}", latency.p999_ms),
        format!("{:.2}", latency.max_ms),
        format!("{:.1}", row.cpu_us),
        format!("{:.0}", row.written_bytes),
        format!("{:.3}", row.syncs),
        format!("{:.1}", row.resident_kib as f64 / 1_024.0),
    ];
    let texts: String = texts.iter().map(|text| format!("<td>{text}</td>")).collect();
    let figures: String =
        figures.iter().map(|figure| format!("<td class=\"n\">{figure}</td>")).collect();
    format!("<tr>{texts}{figures}<td>{}</td></tr>", escape(&remarks(row)))
}

fn compared(changes: &[Change]) -> String {
    if changes.is_empty() {
        return String::new();
    }
    let rows: String = changes
        .iter()
        .map(|change| {
            let name = escape(&change.name);
            let (before, now) = (short(change.before), short(change.now));
            let percent = change.percent();
            format!(
                "<tr><td>{name}</td><td class=\"n\">{before}</td><td class=\"n\">{now}</td>\
                 <td class=\"n\">{percent:+.0} %</td></tr>"
            )
        })
        .collect();
    format!(
        "<h2>Against the run before</h2><div class=\"wide\"><table><thead><tr><th></th><th>before \
         </th><th>now</th><th>change</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_connects_the_rows_of_one_case() {
        let row =
            |case: &str, initiators| Row { case: case.to_owned(), initiators, ..Row::default() };
        let rows = [
            row("arriving", None),
            row("a", Some(1)),
            row("a", Some(64)),
            row("b", Some(64)),
            row("a", Some(1_024)),
        ];
        let rows: Vec<&Row> = rows.iter().collect();
        let at: Vec<f64> = by_initiators(&rows).iter().map(|(at, _)| *at).collect();
        assert_eq!(at, [1.0, 64.0, 1_024.0]);
        assert!(throughput("embedded", &rows).is_some());
        assert!(throughput("wide", &[rows[1], rows[3]]).is_none(), "two cases make no line");
    }
}
