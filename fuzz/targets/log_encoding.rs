#![no_main]

use opentelemetry_otlp_direct::hostile::log_encoding::property;

libfuzzer_sys::fuzz_target!(|data: &[u8]| property(data));
