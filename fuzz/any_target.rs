//! The fuzzer's end of one target: which one is said by the name that this program is built under.
//! What it tries, and what must hold, is in `unanimity_inputs`.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    (unanimity_inputs::target(env!("CARGO_BIN_NAME")).run)(bytes);
});
