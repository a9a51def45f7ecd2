//! How lines look in a terminal and in a page of Markdown.

use super::row::{Report, Row};
use crate::draw::{FAINT, HEADING, paint};

/// Above the lines.
pub(super) fn heading() -> String {
    let text = format!(
        "{:<10} {:<20} {:>15} {:>11} {:>8} {:>8} {:>8} {:>8} {:>7} {:>8} {:>6} {:>7}  {}",
        "scenario",
        "case",
        "load",
        "committed/s",
        "p50 ms",
        "p99 ms",
        "p99.9",
        "max ms",
        "CPU us",
        "bytes",
        "syncs",
        "MB",
        "nearest ceiling"
    );
    paint(HEADING, text)
}

/// One line.
pub(super) fn line(row: &Row) -> String {
    let latency = &row.latency;
    format!(
        "{:<10} {:<20} {:>15} {:>11.0} {:>8.2} {:>8.2} {:>8.2} {:>8.2} {:>7.1} {:>8.0} {:>6.3} \
         {:>7.1}  {}",
        row.scenario,
        row.case,
        row.load(),
        row.per_second,
        latency.p50_ms,
        latency.p99_ms,
        latency.p999_ms,
        latency.max_ms,
        row.cpu_us,
        row.written_bytes,
        row.syncs,
        row.resident_kib as f64 / 1_024.0,
        paint(FAINT, remarks(row))
    )
}

fn remarks(row: &Row) -> String {
    let mut remarks: Vec<String> = Vec::new();
    if let Some((nearest, ratio)) = row.nearest() {
        remarks.push(format!("{:.0} % of {}", ratio * 100.0, nearest.name));
    }
    let ceilings = row.ceilings.iter();
    remarks.extend(ceilings.map(|one| format!("{} {:.0}/s", one.name, one.per_second)));
    if let Some(busy) = row.journal_busy {
        remarks.push(format!("journal busy {:.0} %", busy * 100.0));
    }
    if row.refused > 0 {
        remarks.push(format!("{} refused", row.refused));
    }
    if let Some(drained_ms) = row.drained_ms {
        remarks.push(format!("all in history {drained_ms:.0} ms after"));
    }
    remarks.join(", ")
}

/// Below the lines.
pub(super) fn closing(report: &Report) -> String {
    let text = format!(
        "{} cores ({}) for all processes; every outcome was on disk before it was told, and every \
         transaction begun has ended and is in the history",
        report.cores, report.machine
    );
    paint(FAINT, text)
}
