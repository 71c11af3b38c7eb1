//! Any program with the right may publish anything on a live channel. What is taken for an envelope holds its
//! payload byte for byte.

#![no_main]

use aftercommit::redis::envelope::Envelope;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|message: &str| {
    if let Ok(envelope) = Envelope::parse(message) {
        assert!(message.contains(envelope.payload.get()));
        assert!(envelope.prev.is_none_or(|prev| prev.to_string().len() <= message.len()));
    }
});
