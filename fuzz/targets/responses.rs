#![no_main]

use opentelemetry_otlp_direct::hostile::responses::property;

libfuzzer_sys::fuzz_target!(|data: &[u8]| property(data));
