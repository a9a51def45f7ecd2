//! What is read back from the coordinator's own disk, which may have rotted or been swapped.

use unanimity_core::{
    Answer, Coordinator, CoordinatorConfig, Durable, Effect, Event, RECORD_VERSION, Replay,
    decode_record, encode_record,
};
use unanimity_journal::{batch, scan_write_ahead_log};

use crate::bytes::Parts;

/// A batch: sound bytes are written again as they were. Because hardly any bytes have the right
/// checksum by chance, they are also tried with theirs put right.
pub fn batch(bytes: &[u8]) -> bool {
    let sound = batch_as_it_is(bytes);
    let mut sealed = bytes[..bytes.len().saturating_sub(4)].to_vec();
    sealed.extend_from_slice(&crc32fast::hash(&sealed).to_le_bytes());
    batch_as_it_is(&sealed) || sound
}

fn batch_as_it_is(bytes: &[u8]) -> bool {
    let Ok(read) = batch::decode(bytes) else { return false };
    let held: usize = read.records.iter().map(|record| record.len()).sum();
    assert!(held <= bytes.len(), "a batch holds no more than its bytes");
    assert_eq!(batch::encoded_bytes(&read.records), Some(bytes.len()));
    let written = batch::encode(read.shard, read.position, read.previous_checksum, &read.records);
    assert_eq!(written, bytes);
    true
}

/// A record: what is read is written and read again as it was.
pub fn record(bytes: &[u8]) -> bool {
    let Ok(read) = decode_record(bytes) else { return false };
    let mut written = Vec::new();
    encode_record(&read, &mut written);
    assert_eq!(written.first(), Some(&RECORD_VERSION));
    assert_eq!(decode_record(&written).as_ref(), Ok(&read));
    true
}

/// A shard's records, each in a piece of its own: whatever recovery accepts, it can also take up
/// and go on with.
pub fn replay(bytes: &[u8]) -> bool {
    let mut replay = Replay::new(Coordinator::new(CoordinatorConfig::default()));
    let mut parts = Parts(bytes);
    let mut position = 0;
    while let Some(piece) = parts.piece() {
        position += 1;
        replay.take(position, piece);
    }
    let Ok(replayed) = replay.finish(position + 1) else { return false };
    let now = replayed.latest;
    let mut coordinator = replayed.coordinator;
    let mut step = coordinator.resume(now);
    for _ in 0..16 {
        for effect in step.seal(0).1.release(Durable::up_to(0)) {
            if let Effect::Call(call) = effect {
                let (branch, operation, attempt) = (call.branch, call.operation, call.attempt);
                let (transaction, answer) = (call.transaction, Answer::Unknown("?".into()));
                let event = Event::Answer { transaction, branch, operation, attempt, answer };
                drop(coordinator.handle(now, event));
            }
        }
        let Some(timer) = coordinator.next_timer().cloned() else { break };
        step = coordinator.handle(timer.at.max(now), Event::Timer(timer));
    }
    position > 0
}

/// SQLite's write-ahead log: one in which nothing is wrong may be cut off anywhere, as by a crash.
pub fn write_ahead_log(bytes: &[u8]) -> bool {
    let damage = |bytes: &[u8]| {
        scan_write_ahead_log(&mut &*bytes).expect("reading from memory does not fail")
    };
    if damage(bytes).is_some() {
        return false;
    }
    for part in 1..8 {
        let cut = &bytes[..bytes.len() * part / 8];
        assert_eq!(damage(cut), None, "{} of {} bytes", cut.len(), bytes.len());
    }
    bytes.len() > 32
}
