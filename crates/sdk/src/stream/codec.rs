//! Decides how messages get into a connection's buffer and out of it: in one piece. To put or take
//! each field there by itself asks the buffer each time whether it has room or has more, which
//! costs several times what the fields do. What a message looks like is prost's.

use std::fmt;
use std::marker::PhantomData;

use bytes::{Buf, BufMut};
use prost::Message;
use tonic::Status;
use tonic::codec::{DecodeBuf, Decoder, EncodeBuf, Encoder};

/// Protocol buffers for gRPC, as the generated code uses them: what is sent, and what comes.
pub struct Codec<Sent, Received>(PhantomData<(Sent, Received)>);

impl<Sent, Received> Default for Codec<Sent, Received> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<Sent, Received> fmt::Debug for Codec<Sent, Received> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Codec")
    }
}

impl<Sent, Received> tonic::codec::Codec for Codec<Sent, Received>
where
    Sent: Message + 'static,
    Received: Message + Default + 'static,
{
    type Encode = Sent;
    type Decode = Received;
    type Encoder = Writer<Sent>;
    type Decoder = Reader<Received>;

    fn encoder(&mut self) -> Self::Encoder {
        Writer(PhantomData)
    }

    fn decoder(&mut self) -> Self::Decoder {
        Reader(PhantomData)
    }
}

/// Writes messages; see [`Codec`].
#[derive(Debug)]
pub struct Writer<Sent>(PhantomData<Sent>);

impl<Sent: Message> Encoder for Writer<Sent> {
    type Item = Sent;
    type Error = Status;

    fn encode(&mut self, message: Sent, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&message.encode_to_vec());
        Ok(())
    }
}

/// Reads messages; see [`Codec`].
#[derive(Debug)]
pub struct Reader<Received>(PhantomData<Received>);

impl<Received: Message + Default> Decoder for Reader<Received> {
    type Item = Received;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Received>, Status> {
        // Shared with the buffer, not copied. What is kept of a message is copied out of it, so
        // that none keeps a whole batch in memory.
        let bytes = buffer.copy_to_bytes(buffer.remaining());
        let read = Received::decode(&bytes[..]);
        read.map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}
