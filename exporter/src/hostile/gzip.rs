//! Compression, of any bytes.

use crate::compress;
use crate::config::Compression;
use std::io::Read;

/// What is sent can be read again, and is never longer than what it was made of.
pub fn property(data: &[u8]) {
    // Something to compress: short inputs alone never get smaller.
    for plain in [data.to_vec(), data.repeat(20)] {
        let plainly = compress::body(plain.clone(), Compression::None);
        assert!(!plainly.gzip && plainly.bytes.as_ref() == plain);

        let body = compress::body(plain.clone(), Compression::Gzip);
        let mut read = Vec::new();
        match body.gzip {
            true => {
                assert!(body.bytes.len() < plain.len());
                let mut decoder = flate2::read::GzDecoder::new(body.bytes.as_ref());
                decoder.read_to_end(&mut read).unwrap();
            }
            false => read.extend_from_slice(&body.bytes),
        }
        assert_eq!(read, plain);
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// Scenario: bodies of any bytes, of few different ones, and of one, up to some thousands.
        /// Guarantees: each can be read again, and none grows.
        #[test]
        fn compressed_body_is_read_again_and_never_larger(
            data in prop_oneof![
                vec(any::<u8>(), 0..2_000),
                vec(0_u8..4, 0..2_000),
                (any::<u8>(), 0_usize..20_000).prop_map(|(byte, len)| vec![byte; len]),
            ],
        ) {
            super::property(&data);
        }
    }
}
