//! The furthest ceiling of the scenario *stream*: messages of the size of a call over one TCP
//! connection, each a length, a number and its bytes, many in one write where many are waiting, and
//! nothing else: no HTTP/2, no gRPC, nothing done with them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};

use crate::slots::Slots;

/// The bytes of a frame's length and number.
const HEAD_BYTES: usize = 12;
/// The bytes of its content: a call with a small payload.
const CONTENT_BYTES: usize = 200;
/// How many bytes are read or written at once.
const CHUNK_BYTES: usize = 256 * 1_024;

/// Sends every frame back, for as long as anybody connects.
pub(super) async fn echo(listener: TcpListener) -> anyhow::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(async move { drop(echo_one(stream).await) });
    }
}

async fn echo_one(mut stream: TcpStream) -> std::io::Result<()> {
    let (mut unread, mut answers) = (Vec::with_capacity(CHUNK_BYTES), Vec::new());
    while stream.read_buf(&mut unread).await? > 0 {
        let used = each(&unread, |number, content| push(&mut answers, number, content));
        unread.drain(..used);
        stream.write_all(&answers).await?;
        answers.clear();
    }
    Ok(())
}

fn push(frames: &mut Vec<u8>, number: u64, content: &[u8]) {
    frames.extend_from_slice(&u32::try_from(content.len()).unwrap_or(0).to_le_bytes());
    frames.extend_from_slice(&number.to_le_bytes());
    frames.extend_from_slice(content);
}

/// Hands over each whole frame; gives back how many bytes they have together.
fn each(bytes: &[u8], mut take: impl FnMut(u64, &[u8])) -> usize {
    let mut used = 0;
    while let Some((length, rest)) = bytes[used..].split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        let Some((number, rest)) = rest.split_first_chunk::<8>() else { break };
        let Some(content) = rest.get(..length) else { break };
        take(u64::from_le_bytes(*number), content);
        used += HEAD_BYTES + length;
    }
    used
}

type Waiting = Arc<Mutex<Slots<oneshot::Sender<()>>>>;

/// One connection for everybody.
#[derive(Clone)]
pub(super) struct Frames {
    waiting: Waiting,
    outgoing: mpsc::UnboundedSender<u64>,
}

impl Frames {
    pub(super) async fn connect(address: &str) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (incoming, writer) = stream.into_split();
        let (outgoing, numbers) = mpsc::unbounded_channel();
        let waiting = Waiting::default();
        tokio::spawn(async move { drop(write(writer, numbers).await) });
        let found = Arc::clone(&waiting);
        tokio::spawn(async move { drop(read(incoming, &found).await) });
        Ok(Self { waiting, outgoing })
    }

    /// Sends one frame and waits for it to come back; whether it did.
    pub(super) async fn round_trip(&self) -> bool {
        let (back, came_back) = oneshot::channel();
        let number = lock(&self.waiting).put(back);
        self.outgoing.send(number).is_ok() && came_back.await.is_ok()
    }
}

async fn write(
    mut writer: tokio::net::tcp::OwnedWriteHalf,
    mut numbers: mpsc::UnboundedReceiver<u64>,
) -> std::io::Result<()> {
    let (mut batch, mut frames) = (Vec::new(), Vec::new());
    while numbers.recv_many(&mut batch, CHUNK_BYTES / CONTENT_BYTES).await > 0 {
        for number in batch.drain(..) {
            push(&mut frames, number, &[0xA5; CONTENT_BYTES]);
        }
        writer.write_all(&frames).await?;
        frames.clear();
    }
    Ok(())
}

async fn read(
    mut reader: tokio::net::tcp::OwnedReadHalf,
    waiting: &Waiting,
) -> std::io::Result<()> {
    let mut unread = Vec::with_capacity(CHUNK_BYTES);
    while reader.read_buf(&mut unread).await? > 0 {
        let mut came = Vec::new();
        let mut slots = lock(waiting);
        let used = each(&unread, |number, _| came.extend(slots.take(number)));
        drop(slots);
        for back in came {
            // dropped: a worker that has gone away waits for nothing.
            let _ = back.send(());
        }
        unread.drain(..used);
    }
    Ok(())
}

/// Nothing here leaves half a change behind.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_as_they_went_in_however_they_are_cut() {
        let mut bytes = Vec::new();
        push(&mut bytes, 7, b"seven");
        push(&mut bytes, 8, b"");
        for cut in 0..=bytes.len() {
            let mut found = Vec::new();
            let used = each(&bytes[..cut], |number, content| found.push((number, content.len())));
            each(&bytes[used..], |number, content| found.push((number, content.len())));
            assert_eq!(found, [(7, 5), (8, 0)], "cut at {cut}");
        }
    }

    #[tokio::test]
    async fn every_frame_comes_back() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = tokio::spawn(echo(listener));
        let frames = Frames::connect(&address).await.unwrap();
        let mut all = tokio::task::JoinSet::new();
        for _ in 0..500 {
            let frames = frames.clone();
            all.spawn(async move { frames.round_trip().await });
        }
        assert!(all.join_all().await.into_iter().all(|came_back| came_back));
        server.abort();
    }
}
