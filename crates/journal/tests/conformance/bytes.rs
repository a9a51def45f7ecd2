//! The bytes of a batch: what was encoded comes back, and nothing else is taken for a batch.

use proptest::prelude::*;
use unanimity_journal::batch::{self, Damage};

use crate::{crc32, proptest_config, records};

#[test]
fn every_single_bit_flip_of_a_batch_is_refused() {
    let sound = batch::encode(2, 9, 0x1234_5678, &records(&["begun", "", "decided: commit"]));
    for bit in 0..sound.len() * 8 {
        let mut bytes = sound.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let expected = if bit < 32 { Damage::Magic } else { Damage::Checksum };
        assert_eq!(batch::decode(&bytes), Err(expected), "{bit}");
    }
}

proptest! {
    #![proptest_config(proptest_config())]

    #[test]
    fn a_batch_decodes_to_what_was_encoded(
        shard: u16,
        position: u64,
        previous: u32,
        records in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..9),
    ) {
        let bytes = batch::encode(shard, position, previous, &records);
        let decoded = batch::decode(&bytes).unwrap();
        let expected: Vec<&[u8]> = records.iter().map(Vec::as_slice).collect();
        prop_assert_eq!(
            (decoded.shard, decoded.position, decoded.previous_checksum, decoded.records),
            (shard, position, previous, expected)
        );
    }

    #[test]
    fn no_bytes_make_decode_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(batch::decode(&bytes).is_err());
        // The same behind a right magic, version and checksum, where the lengths are looked at.
        bytes.splice(0..0, *b"UNJB\x01\x00");
        bytes.extend_from_slice(&crc32(&bytes).to_le_bytes());
        if let Ok(decoded) = batch::decode(&bytes) {
            let again = batch::encode(
                decoded.shard, decoded.position, decoded.previous_checksum, &decoded.records,
            );
            prop_assert_eq!(again, bytes);
        }
    }
}
