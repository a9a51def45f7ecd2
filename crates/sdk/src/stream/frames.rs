//! Decides how batches of calls are written and read: by hand, because they pass by the hundred
//! thousand in a second. Names are shared and not copied where they are written, and each is
//! copied once where they are read. The bytes are those of `participant.proto`; a test compares
//! them with what a generated message writes.

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes};
use prost::DecodeError;
use prost::encoding::{
    DecodeContext, WireType, check_wire_type, decode_key, decode_varint, encode_varint,
    encoded_len_varint, message, skip_field,
};

use super::{BATCH_ENTRIES_MAX, Begin};

/// Calls that go together because they were ready together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    /// The calls; no order is meant among them.
    pub calls: Vec<Call>,
}

/// Requests that were ready together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BeginBatch {
    /// The requests; answered as each is there, in any order.
    pub begins: Vec<Begin>,
}

/// One operation on one branch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Call {
    /// Names the call on this stream.
    pub number: u64,
    /// The transaction's id.
    pub transaction: Arc<str>,
    /// The branch's name.
    pub branch: Arc<str>,
    /// The number of the operation.
    pub operation: u32,
    /// The how-manieth time, from 1.
    pub attempt: u32,
    /// After so many milliseconds nobody waits for the answer any more.
    pub timeout_ms: u64,
    /// The branch's payload, where the operation carries one.
    pub payload: Bytes,
    /// The number of the outcome, where a deferred branch is executed; else 0.
    pub outcome: u32,
    /// Trace id, high and low, and parent id; all 0 for none.
    pub trace: [u64; 3],
}

/// The tags of `participant.proto`, and of a batch in `transactions.proto`.
mod tag {
    pub(super) const BEGINS: u32 = 1;
    pub(super) const CALLS: u32 = 1;
    pub(super) const NUMBER: u32 = 1;
    pub(super) const TRANSACTION: u32 = 2;
    pub(super) const BRANCH: u32 = 3;
    pub(super) const OPERATION: u32 = 4;
    pub(super) const ATTEMPT: u32 = 5;
    pub(super) const TIMEOUT: u32 = 6;
    pub(super) const PAYLOAD: u32 = 7;
    pub(super) const OUTCOME: u32 = 8;
    pub(super) const TRACE: u32 = 9;
}

/// How many bytes a trace has.
const TRACE_BYTES: usize = 24;

impl prost::Message for Calls {
    fn encode_raw(&self, buffer: &mut impl BufMut) {
        for call in &self.calls {
            buffer.put_u8(key(tag::CALLS, WireType::LengthDelimited));
            encode_varint(call.encoded_len() as u64, buffer);
            call.encode_raw(buffer);
        }
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buffer: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        match tag {
            tag::CALLS => {
                check_room(self.calls.len())?;
                let length = length(wire_type, buffer)?;
                if self.calls.is_empty() {
                    // Those of one batch are much alike.
                    let expected = buffer.remaining() / length.max(1);
                    self.calls.reserve(expected.min(BATCH_ENTRIES_MAX));
                }
                let call = read_call(length, buffer, &context, self.calls.last())?;
                self.calls.push(call);
                Ok(())
            }
            _ => skip_field(wire_type, tag, buffer, context),
        }
    }

    fn encoded_len(&self) -> usize {
        message::encoded_len_repeated(tag::CALLS, &self.calls)
    }

    fn clear(&mut self) {
        self.calls.clear();
    }
}

/// A batch that is longer than it may be is refused while it is read: two bytes of it may ask for
/// hundreds.
fn check_room(entries: usize) -> Result<(), DecodeError> {
    if entries < BATCH_ENTRIES_MAX { Ok(()) } else { Err(broken("a batch has too many entries")) }
}

impl prost::Message for BeginBatch {
    fn encode_raw(&self, buffer: &mut impl BufMut) {
        message::encode_repeated(tag::BEGINS, &self.begins, buffer);
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buffer: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        match tag {
            tag::BEGINS => {
                check_room(self.begins.len())?;
                message::merge_repeated(wire_type, &mut self.begins, buffer, context)
            }
            _ => skip_field(wire_type, tag, buffer, context),
        }
    }

    fn encoded_len(&self) -> usize {
        message::encoded_len_repeated(tag::BEGINS, &self.begins)
    }

    fn clear(&mut self) {
        self.begins.clear();
    }
}

/// Reads a call. One that names the branch as the call before does shares the name: a participant
/// then keeps it once, and not with each transaction, where nothing of it is in the cache when it
/// is forgotten.
fn read_call(
    length: usize,
    buffer: &mut impl Buf,
    context: &DecodeContext,
    before: Option<&Call>,
) -> Result<Call, DecodeError> {
    let end = buffer.remaining() - length;
    let mut call = Call::default();
    while buffer.remaining() > end {
        let (tag, wire_type) = decode_key(buffer)?;
        if tag == tag::BRANCH {
            call.branch = text(wire_type, buffer, before.map(|before| &before.branch))?;
        } else {
            prost::Message::merge_field(&mut call, tag, wire_type, buffer, context.clone())?;
        }
    }
    if buffer.remaining() == end { Ok(call) } else { Err(broken("a call is longer than it says")) }
}

impl prost::Message for Call {
    fn encode_raw(&self, buffer: &mut impl BufMut) {
        put_number(tag::NUMBER, self.number, buffer);
        put_bytes(tag::TRANSACTION, self.transaction.as_bytes(), buffer);
        put_bytes(tag::BRANCH, self.branch.as_bytes(), buffer);
        put_number(tag::OPERATION, self.operation.into(), buffer);
        put_number(tag::ATTEMPT, self.attempt.into(), buffer);
        put_number(tag::TIMEOUT, self.timeout_ms, buffer);
        put_bytes(tag::PAYLOAD, &self.payload, buffer);
        put_number(tag::OUTCOME, self.outcome.into(), buffer);
        if self.trace != [0; 3] {
            buffer.put_u8(key(tag::TRACE, WireType::LengthDelimited));
            encode_varint(TRACE_BYTES as u64, buffer);
            self.trace.iter().for_each(|part| buffer.put_u64(*part));
        }
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buffer: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        match tag {
            tag::NUMBER => self.number = number(wire_type, buffer)?,
            tag::TRANSACTION => self.transaction = text(wire_type, buffer, None)?,
            tag::BRANCH => self.branch = text(wire_type, buffer, None)?,
            tag::OPERATION => self.operation = small(wire_type, buffer)?,
            tag::ATTEMPT => self.attempt = small(wire_type, buffer)?,
            tag::TIMEOUT => self.timeout_ms = number(wire_type, buffer)?,
            tag::PAYLOAD => {
                let length = length(wire_type, buffer)?;
                self.payload = buffer.copy_to_bytes(length);
            }
            tag::OUTCOME => self.outcome = small(wire_type, buffer)?,
            tag::TRACE => match length(wire_type, buffer)? {
                TRACE_BYTES => self.trace = [buffer.get_u64(), buffer.get_u64(), buffer.get_u64()],
                other => buffer.advance(other),
            },
            _ => skip_field(wire_type, tag, buffer, context)?,
        }
        Ok(())
    }

    fn encoded_len(&self) -> usize {
        number_len(self.number)
            + bytes_len(self.transaction.len())
            + bytes_len(self.branch.len())
            + number_len(self.operation.into())
            + number_len(self.attempt.into())
            + number_len(self.timeout_ms)
            + bytes_len(self.payload.len())
            + number_len(self.outcome.into())
            + if self.trace == [0; 3] { 0 } else { bytes_len(TRACE_BYTES) }
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

/// A field's tag and form; every tag here takes one byte.
const fn key(tag: u32, wire_type: WireType) -> u8 {
    (tag as u8) << 3 | wire_type as u8
}

/// As proto3 has it: what is 0 is left out.
fn put_number(tag: u32, value: u64, buffer: &mut impl BufMut) {
    if value != 0 {
        buffer.put_u8(key(tag, WireType::Varint));
        encode_varint(value, buffer);
    }
}

fn put_bytes(tag: u32, content: &[u8], buffer: &mut impl BufMut) {
    if !content.is_empty() {
        buffer.put_u8(key(tag, WireType::LengthDelimited));
        encode_varint(content.len() as u64, buffer);
        buffer.put_slice(content);
    }
}

const fn number_len(value: u64) -> usize {
    if value == 0 { 0 } else { 1 + encoded_len_varint(value) }
}

const fn bytes_len(length: usize) -> usize {
    if length == 0 { 0 } else { 1 + encoded_len_varint(length as u64) + length }
}

fn number(wire_type: WireType, buffer: &mut impl Buf) -> Result<u64, DecodeError> {
    check_wire_type(WireType::Varint, wire_type)?;
    decode_varint(buffer)
}

/// A number of 32 bits; what is too large for one counts as the largest, as no such is known.
fn small(wire_type: WireType, buffer: &mut impl Buf) -> Result<u32, DecodeError> {
    number(wire_type, buffer).map(|value| u32::try_from(value).unwrap_or(u32::MAX))
}

/// The length of what follows, which is there.
fn length(wire_type: WireType, buffer: &mut impl Buf) -> Result<usize, DecodeError> {
    check_wire_type(WireType::LengthDelimited, wire_type)?;
    let length = usize::try_from(decode_varint(buffer)?).unwrap_or(usize::MAX);
    if length > buffer.remaining() {
        Err(broken("a field is longer than its message"))
    } else {
        Ok(length)
    }
}

/// A text; the one that is there already, if it is that.
fn text(
    wire_type: WireType,
    buffer: &mut impl Buf,
    known: Option<&Arc<str>>,
) -> Result<Arc<str>, DecodeError> {
    let length = length(wire_type, buffer)?;
    let not_text = |_| broken("a text is not UTF-8");
    if buffer.chunk().len() >= length {
        let is_it = |known: &&Arc<str>| known.as_bytes() == &buffer.chunk()[..length];
        if let Some(known) = known.filter(is_it) {
            buffer.advance(length);
            return Ok(Arc::clone(known));
        }
        let shared = Arc::from(std::str::from_utf8(&buffer.chunk()[..length]).map_err(not_text)?);
        buffer.advance(length);
        return Ok(shared);
    }
    let bytes = buffer.copy_to_bytes(length);
    Ok(Arc::from(std::str::from_utf8(&bytes).map_err(not_text)?))
}

#[allow(deprecated)] // prost offers no other way to make one.
fn broken(what: &'static str) -> DecodeError {
    DecodeError::new(what)
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    /// The same message as prost derives it.
    #[derive(Clone, PartialEq, prost::Message)]
    struct Derived {
        #[prost(message, repeated, tag = "1")]
        calls: Vec<DerivedCall>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    struct DerivedCall {
        #[prost(uint64, tag = "1")]
        number: u64,
        #[prost(string, tag = "2")]
        transaction: String,
        #[prost(string, tag = "3")]
        branch: String,
        #[prost(int32, tag = "4")]
        operation: i32,
        #[prost(uint32, tag = "5")]
        attempt: u32,
        #[prost(uint64, tag = "6")]
        timeout_ms: u64,
        #[prost(bytes = "vec", tag = "7")]
        payload: Vec<u8>,
        #[prost(int32, tag = "8")]
        outcome: i32,
        #[prost(bytes = "vec", tag = "9")]
        trace: Vec<u8>,
        #[prost(string, tag = "100")]
        unknown: String,
    }

    fn samples() -> Vec<Call> {
        let full = Call {
            number: u64::MAX,
            transaction: "t-1".into(),
            branch: "a".repeat(128).into(),
            operation: 7,
            attempt: 300,
            timeout_ms: 5_000,
            payload: Bytes::from(vec![b'x'; 5_000]),
            outcome: 2,
            trace: [1, u64::MAX, 3],
        };
        vec![Call::default(), full, Call { number: 1, ..Call::default() }]
    }

    fn derived(call: &Call) -> DerivedCall {
        let trace: Vec<u8> = call.trace.iter().flat_map(|part| part.to_be_bytes()).collect();
        DerivedCall {
            number: call.number,
            transaction: call.transaction.to_string(),
            branch: call.branch.to_string(),
            operation: call.operation as i32,
            attempt: call.attempt,
            timeout_ms: call.timeout_ms,
            payload: call.payload.to_vec(),
            outcome: call.outcome as i32,
            trace: if call.trace == [0; 3] { Vec::new() } else { trace },
            unknown: String::new(),
        }
    }

    #[test]
    fn the_bytes_are_those_of_the_published_message() {
        let ours = Calls { calls: samples() };
        let theirs = Derived { calls: ours.calls.iter().map(derived).collect() };
        assert_eq!(ours.encode_to_vec(), theirs.encode_to_vec());
        assert_eq!(ours.encoded_len(), theirs.encoded_len());
        assert_eq!(Calls::decode(theirs.encode_to_vec().as_slice()), Ok(ours));
    }

    #[test]
    fn a_batch_with_too_many_entries_is_none() {
        let calls = |count| Calls { calls: vec![Call::default(); count] }.encode_to_vec();
        let begins = |count| BeginBatch { begins: vec![Begin::default(); count] }.encode_to_vec();
        let (most, more) = (BATCH_ENTRIES_MAX, BATCH_ENTRIES_MAX + 1);
        assert_eq!(Calls::decode(calls(most).as_slice()).unwrap().calls.len(), most);
        assert_eq!(BeginBatch::decode(begins(most).as_slice()).unwrap().begins.len(), most);
        assert!(Calls::decode(calls(more).as_slice()).is_err());
        assert!(BeginBatch::decode(begins(more).as_slice()).is_err());
    }

    #[test]
    fn a_newer_field_is_passed_over() {
        let newer = DerivedCall { number: 5, unknown: "new".into(), ..DerivedCall::default() };
        let read = Call::decode(newer.encode_to_vec().as_slice());
        assert_eq!(read, Ok(Call { number: 5, ..Call::default() }));
    }

    #[test]
    fn no_cut_and_no_flipped_bit_makes_it_panic() {
        let whole = Calls { calls: samples() }.encode_to_vec();
        for end in 0..whole.len().min(400) {
            drop(Calls::decode(&whole[..end]));
            for bit in 0..8 {
                let mut flipped = whole.clone();
                flipped[end] ^= 1 << bit;
                drop(Calls::decode(flipped.as_slice()));
            }
        }
    }
}
