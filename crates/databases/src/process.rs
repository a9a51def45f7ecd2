//! Decides how a server's process is ended and waited for: by its own number, never by a name, and
//! with the processes that it has started.

use std::fs;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How often something is looked at again, in milliseconds.
const LOOK_AGAIN_MS: u64 = 10;

/// Sends a signal; a process that is gone needs none.
pub(crate) fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // dropped: the process is ours, so the only error left is that it is gone.
        let _ = kill_process(pid, signal);
    }
}

/// Ends the process and all its children at once, as a power cut would, and waits until every one
/// of them is gone.
pub(crate) fn kill_all(child: &mut Child) {
    // The children leave the parent's process group, so each is named. One that is started between
    // these two lines sees the parent's death and ends by itself.
    let children = children_of(child.id());
    // dropped: a child that has ended cannot be killed again.
    let _ = child.kill();
    children.iter().for_each(|pid| signal(*pid, Signal::KILL));
    // dropped: a child that was waited for cannot be waited for again.
    let _ = child.wait();
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline && children.iter().any(|pid| is_alive(*pid)) {
        pause();
    }
}

/// Asks the process to end and waits; one that does not obey in time is killed.
pub(crate) fn stop(child: &mut Child, how: Signal, patience: Duration) {
    signal(child.id(), how);
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline {
        if !matches!(child.try_wait(), Ok(None)) {
            return;
        }
        pause();
    }
    kill_all(child);
}

/// Waits a moment before something is looked at again.
pub(crate) fn pause() {
    std::thread::sleep(Duration::from_millis(LOOK_AGAIN_MS));
}

fn children_of(parent: u32) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| stat(*pid).is_some_and(|(_, its_parent)| its_parent == parent)).collect()
}

/// A zombie holds nothing any more: it only waits for somebody to ask how it ended.
fn is_alive(pid: u32) -> bool {
    stat(pid).is_some_and(|(state, _)| state != 'Z')
}

/// A process's state and its parent. The name, in brackets before them, may hold anything.
fn stat(pid: u32) -> Option<(char, u32)> {
    let text = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}
