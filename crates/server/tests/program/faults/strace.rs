//! Faults at a system call, by strace: it is attached to a running process or to one of its
//! threads, and takes itself away again. `cargo xtask test` installs it where it is missing.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::setup::{PATIENCE, until};

/// A strace that is attached.
pub struct Strace(Child);

impl Strace {
    /// Attaches to one thread, or with the flag `-f` to its whole process.
    pub async fn attach(id: u32, flags: &[&str], output: &Path) -> Self {
        let mut command = Command::new("strace");
        command.args(flags).arg("-o").arg(output).arg("-p").arg(id.to_string());
        let command = command.stdin(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().expect("strace is installed (cargo xtask test does it)");
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let attached = async {
            while let Some(line) = lines.next_line().await.unwrap() {
                if line.contains(" attached") {
                    return;
                }
                println!("strace: {line}");
            }
            panic!("strace did not attach to {id} with {flags:?}");
        };
        tokio::time::timeout(PATIENCE, attached).await.expect("attached in time");
        // What it says later must be read, or it would stop at a full pipe.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Self(child)
    }

    /// Lets the process go on without it.
    pub async fn detach(mut self) {
        if let Some(id) = self.0.id() {
            // It may have ended with the process.
            drop(Command::new("kill").arg("-INT").arg(id.to_string()).status().await);
        }
        tokio::time::timeout(PATIENCE, self.0.wait()).await.expect("it ends").unwrap();
    }
}

/// What was written to a trace, once it has a line with this in it: see [`whole_calls`].
pub async fn trace_with(path: &Path, part: &str) -> String {
    until("a line in the trace", async || {
        let text = whole_calls(&std::fs::read_to_string(path).unwrap_or_default());
        text.lines().any(|line| line.contains(part)).then_some(text)
    })
    .await
}

/// A call during which another thread was seen is two lines of a trace: its beginning stays where
/// it was, and where it returned it is told whole, as if nothing had come between.
fn whole_calls(trace: &str) -> String {
    let mut begun: BTreeMap<&str, &str> = BTreeMap::new();
    let mut lines = Vec::new();
    for line in trace.lines() {
        let thread = line.split_whitespace().next().unwrap_or_default();
        if let Some(start) = line.strip_suffix(" <unfinished ...>") {
            begun.insert(thread, start);
        }
        match (line.split_once(" resumed>"), begun.get(thread)) {
            (Some((_, rest)), Some(start)) => {
                let rest: Vec<&str> = rest.split_whitespace().collect();
                lines.push(format!("{start}{}", rest.join(" ")));
                begun.remove(thread);
            }
            _ => lines.push(line.to_owned()),
        }
    }
    lines.join("\n")
}

#[test]
fn a_call_in_two_lines_is_whole_where_it_returned() {
    let trace = "\
4144  pwrite64(11</history.db-wal>, \"\"..., 426640, 0 <unfinished ...>
4149  write(4<anon_inode:[eventfd]>, \"\"..., 8) = 8
4144  <... pwrite64 resumed>)           = 426640
4144  fsync(11</history.db-wal> <unfinished ...>
4149  <... read resumed> from before) = 8
4144  <... fsync resumed>)              = 0";
    let whole = "\
4144  pwrite64(11</history.db-wal>, \"\"..., 426640, 0 <unfinished ...>
4149  write(4<anon_inode:[eventfd]>, \"\"..., 8) = 8
4144  pwrite64(11</history.db-wal>, \"\"..., 426640, 0) = 426640
4144  fsync(11</history.db-wal> <unfinished ...>
4149  <... read resumed> from before) = 8
4144  fsync(11</history.db-wal>) = 0";
    assert_eq!(whole_calls(trace), whole);
}
