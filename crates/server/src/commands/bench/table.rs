//! How lines look in a terminal and in a page of Markdown.

use super::row::{AS_MANY, PEAK, Report, Row};
use crate::draw::{FAINT, HEADING, paint};

/// A load client that is later than this is part of what is measured, and says so.
const LATE_MS_MIN: f64 = 20.0;

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

/// What has no column of its own.
pub(super) fn remarks(row: &Row) -> String {
    let mut remarks: Vec<String> = Vec::new();
    let nearest = row.nearest().map(|(nearest, ratio)| (nearest.name.as_str(), ratio));
    // The peak is what counts, however near it the rest may come.
    let first = [PEAK, AS_MANY];
    let shares = first.iter().filter_map(|name| Some((*name, row.share_of(name)?)));
    for (name, ratio) in shares.chain(nearest.filter(|(name, _)| !first.contains(name))) {
        remarks.push(format!("{:.0} % of {name}", ratio * 100.0));
    }
    let ceilings = row.ceilings.iter().map(|one| match one.cpu_us > 0.0 {
        true => format!("{} {:.0}/s at {:.1} us", one.name, one.per_second, one.cpu_us),
        false => format!("{} {:.0}/s", one.name, one.per_second),
    });
    remarks.extend(ceilings);
    if let Some(beyond) = row.beyond {
        remarks.push(format!(
            "{:.2} x (2 round trips of {:.3} ms + 2 syncs of {:.3} ms)",
            beyond.ratio, beyond.round_trip_ms, beyond.sync_ms
        ));
        if let Some(ratio) = beyond.ratio_side_by_side(row.latency.p50_ms) {
            let both_ms = beyond.side_by_side_ms;
            remarks
                .push(format!("{ratio:.2} x with one of them two calls at once ({both_ms:.3} ms)"));
        }
        if beyond.bare_ms > 0.0 {
            let (bare_ms, ratio) = (beyond.bare_ms, row.latency.p50_ms / beyond.bare_ms);
            remarks
                .push(format!("{ratio:.2} x the same path with nothing behind ({bare_ms:.3} ms)"));
        }
    }
    if let Some(busy) = row.journal_busy {
        remarks.push(format!("journal busy {:.0} %", busy * 100.0));
    }
    if let Some(busy) = row.cores_busy {
        remarks.push(format!("cores busy {:.0} %", busy * 100.0));
    }
    if let Some(bytes) = row.bytes_per_live {
        remarks.push(format!("{bytes:.0} bytes a live one"));
    }
    if let Some((read_ms, ready_ms)) = row.recovery_ms {
        remarks.push(format!("read in {read_ms:.0} ms, ready in {ready_ms:.0} ms"));
    }
    if let Some(late_ms) = row.late_ms.filter(|late_ms| *late_ms >= LATE_MS_MIN) {
        remarks.push(format!("begun up to {late_ms:.0} ms late"));
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

/// All lines as a table in Markdown.
pub(super) fn markdown(report: &Report) -> String {
    let head = "| scenario | case | load | committed/s | p50 ms | p99 ms | p99.9 ms | CPU us | \
                bytes | syncs | of its ceilings |";
    let rule = "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |";
    let line = |row: &Row| {
        let latency = &row.latency;
        let remarks = remarks(row);
        format!(
            "| {} | {} | {} | {:.0} | {:.2} | {:.2} | {:.2} | {:.1} | {:.0} | {:.3} | {remarks} |",
            row.scenario,
            row.case,
            row.load(),
            row.per_second,
            latency.p50_ms,
            latency.p99_ms,
            latency.p999_ms,
            row.cpu_us,
            row.written_bytes,
            row.syncs,
        )
    };
    let lines: Vec<String> = report.rows.iter().map(line).collect();
    format!("{head}\n{rule}\n{}", lines.join("\n"))
}
