//! What processes hold on to when everything has ended, as the system counts it: sockets whose
//! other end has gone, files that nobody can find any more, and how many of both there are in all.
//! On a system without `/proc` there is nothing to tell.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use unanimity_judge::Event;

/// The most open files and sockets of a process at rest: so many, and for each initiator two
/// connections here and two to others.
const OPEN_MAX: usize = 128;
const OPEN_MAX_FOR_EACH: usize = 4;
/// CLOSE_WAIT in `/proc/net/tcp`: the other side has closed, and this one has not.
const CLOSE_WAIT: &str = "08";

/// What this process holds on to, after a run of so many initiators at once.
pub(crate) fn of(name: &str, process: u32, initiators: usize) -> Vec<Event> {
    let Ok(folder) = std::fs::read_dir(format!("/proc/{process}/fd")) else { return Vec::new() };
    let open: Vec<PathBuf> =
        folder.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok()).collect();
    let deserted = deserted(&std::fs::read_to_string("/proc/net/tcp").unwrap_or_default());
    let most = OPEN_MAX + OPEN_MAX_FOR_EACH * initiators;
    told(name, &open, most as u64, &deserted)
}

fn told(name: &str, open: &[PathBuf], most: u64, deserted: &BTreeSet<String>) -> Vec<Event> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let count =
        |holds: &dyn Fn(&str) -> bool| open.iter().filter(|path| holds(&text(path))).count() as u64;
    let left = |what: &str, count| Event::Left { what: format!("{what} of {name}").into(), count };
    vec![
        left("sockets without another end", count(&|path| deserted.contains(path))),
        left("open files without a name", count(&|path| path.ends_with(" (deleted)"))),
        Event::Height {
            what: format!("open files and sockets of {name}").into(),
            value: open.len() as u64,
            most,
        },
    ]
}

/// The sockets whose other side has closed, as the links in a process's `fd` name them.
fn deserted(table: &str) -> BTreeSet<String> {
    let rows = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let rows = rows.filter(|row| row.get(3) == Some(&CLOSE_WAIT));
    rows.filter_map(|row| row.get(9).map(|inode| format!("socket:[{inode}]"))).collect()
}

#[cfg(test)]
mod tests {
    use unanimity_judge::{Judge, Line};

    use super::*;

    fn wrong(events: Vec<Event>) -> usize {
        let mut judge = Judge::new();
        for event in events {
            judge.take(&Line { at: 0, event });
        }
        judge.found().len()
    }

    #[test]
    fn what_is_held_on_to_is_found() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt \
                     uid timeout inode\n\
                     0: 0100007F:1F90 0100007F:0050 08 0:0 00:0 0 0 0 77 1\n\
                     1: 0100007F:1F90 0100007F:0051 01 0:0 00:0 0 0 0 78 1\n";
        let deserted = deserted(table);
        let told = |open: &[&str]| {
            let open: Vec<PathBuf> = open.iter().map(PathBuf::from).collect();
            wrong(told("it", &open, 256, &deserted))
        };
        assert_eq!(told(&["socket:[78]", "/data/journal-0.log"]), 0);
        assert_eq!(told(&["socket:[77]", "/data/journal-0.log"]), 1);
        assert_eq!(told(&["socket:[77]", "/data/journal-0.log (deleted)"]), 2);
        assert_eq!(told(&["socket:[78]"; 300]), 1);
    }

    /// This process holds a socket whose other side has gone, and then no more.
    #[test]
    fn a_real_socket_that_is_not_closed_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut held, _) = listener.accept().unwrap();
        drop(client);
        // Nothing comes but the end.
        assert_eq!(std::io::Read::read(&mut held, &mut [0]).unwrap(), 0);
        let inode = std::fs::read_link({
            use std::os::fd::AsRawFd as _;
            format!("/proc/self/fd/{}", held.as_raw_fd())
        });
        let inode = inode.unwrap().to_string_lossy().into_owned();
        let is_deserted =
            || deserted(&std::fs::read_to_string("/proc/net/tcp").unwrap()).contains(&inode);
        assert!(is_deserted());
        drop(held);
        assert!(!is_deserted());
    }
}
