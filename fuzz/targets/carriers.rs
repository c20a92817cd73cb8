#![no_main]

use opentelemetry_per_request::hostile::carriers::property;

libfuzzer_sys::fuzz_target!(|data: &[u8]| property(data));
