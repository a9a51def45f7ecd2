//! What processes have used so far, as the system counts it: processor time, bytes written, memory.
//! On a system without `/proc` everything is zero.

use std::ops::Add;

/// Microseconds in one tick of the times in `/proc/PID/stat`, on every Linux.
const TICK_US: u64 = 10_000;

/// What some processes have used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    /// Processor time, theirs and the system's for them.
    pub(super) cpu_us: u64,
    /// Bytes handed to the disk.
    pub(super) written_bytes: u64,
    /// Resident memory now.
    pub(super) resident_kib: u64,
    /// Appends to journals, each with one sync, where they are counted.
    pub(super) appends: u64,
}

impl Usage {
    /// Of a process by its id.
    pub(super) fn of(process: u32) -> Self {
        let read = |file: &str| {
            std::fs::read_to_string(format!("/proc/{process}/{file}")).unwrap_or_default()
        };
        Self {
            cpu_us: ticks(&read("stat")) * TICK_US,
            written_bytes: field(&read("io"), "write_bytes:"),
            resident_kib: field(&read("status"), "VmRSS:"),
            appends: 0,
        }
    }

    /// Of this process.
    pub(super) fn own() -> Self {
        Self::of(std::process::id())
    }

    /// What was used from `before` until now; memory is as it is now.
    pub(super) fn since(self, before: Self) -> Self {
        Self {
            cpu_us: self.cpu_us.saturating_sub(before.cpu_us),
            written_bytes: self.written_bytes.saturating_sub(before.written_bytes),
            resident_kib: self.resident_kib,
            appends: self.appends.saturating_sub(before.appends),
        }
    }
}

impl Add for Usage {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            cpu_us: self.cpu_us + other.cpu_us,
            written_bytes: self.written_bytes + other.written_bytes,
            resident_kib: self.resident_kib + other.resident_kib,
            appends: self.appends + other.appends,
        }
    }
}

/// User and system time: the 14th and 15th field, counted behind the name in brackets, which may
/// hold anything.
fn ticks(stat: &str) -> u64 {
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let fields = rest.split_ascii_whitespace().skip(11).take(2);
    fields.filter_map(|field| field.parse::<u64>().ok()).sum()
}

/// The number on the line that begins with `name`.
fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.split_ascii_whitespace().next()?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_a_process_are_read() {
        let stat = "7 (a (b) c) S 1 7 7 0 -1 4194304 9 8 7 6 250 50 0 0 20 0 9 0 77 1000 2";
        assert_eq!(ticks(stat), 300);
        assert_eq!(field("Name:\tx\nVmRSS:\t  1234 kB\n", "VmRSS:"), 1_234);
        assert_eq!(field("", "VmRSS:"), 0);
        let (first, second) = (Usage::own(), Usage::own());
        assert!(second.since(first).cpu_us < 60_000_000);
    }
}
