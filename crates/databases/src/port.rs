//! Decides on which port a server listens, and when it counts as answering. Ports are taken from
//! below the range that the system gives to outgoing connections: a server that is killed must find
//! its port free when it comes back.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use crate::error::DatabaseError;

const FIRST: u16 = 20_000;
const LAST: u16 = 31_999;
/// How long one look may take, in milliseconds.
const LOOK_TIMEOUT_MS: u64 = 2_000;

/// A port on which nobody listens now. Processes that look at the same time begin at different
/// places; should two of them meet all the same, the server that comes second says so, and is
/// started on another.
pub(crate) fn free() -> Result<u16, DatabaseError> {
    static TRIED: AtomicU16 = AtomicU16::new(0);
    let count = LAST - FIRST + 1;
    let place = u16::try_from(std::process::id() % u32::from(count)).unwrap_or(0);
    for _ in 0..count {
        let tried = TRIED.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + (place.wrapping_mul(37) % count + tried % count) % count;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    Err(DatabaseError::NoPort { first: FIRST, last: LAST })
}

/// Connects, says `hello`, and gives the first bytes of the answer; none if there is no answer. By
/// the socket in the server's own folder: on the port somebody else could answer.
pub(crate) fn ask(socket: &Path, hello: &[u8], count: usize) -> Option<Vec<u8>> {
    let timeout = Duration::from_millis(LOOK_TIMEOUT_MS);
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(timeout)).ok()?;
    stream.write_all(hello).ok()?;
    let mut answer = vec![0; count];
    stream.read_exact(&mut answer).ok()?;
    Some(answer)
}
