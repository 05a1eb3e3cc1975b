#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| pageserver::fuzz::namespace(bytes));
