//! Compression of request bodies.

use crate::config::Compression;
use crate::delivery::Body;

/// `bytes` compressed if that is wanted and makes them smaller. So a body that keeps the size limit before compression
/// keeps it afterwards.
pub(crate) fn body(bytes: Vec<u8>, compression: Compression) -> Body {
    let compressed = match compression {
        Compression::None => None,
        Compression::Gzip => gzip(&bytes).filter(|smaller| smaller.len() < bytes.len()),
    };
    Body {
        gzip: compressed.is_some(),
        bytes: compressed.unwrap_or(bytes).into(),
    }
}

#[cfg(feature = "gzip")]
fn gzip(bytes: &[u8]) -> Option<Vec<u8>> {
    use flate2::{Compression, write::GzEncoder};
    use std::io::Write;

    let room = Vec::with_capacity(bytes.len() / 4);
    let mut encoder = GzEncoder::new(room, Compression::fast());
    // Writing to memory does not fail; if it ever did, the body would go out as it is.
    encoder.write_all(bytes).ok()?;
    encoder.finish().ok()
}

/// `build` refuses [`Compression::Gzip`] without the feature.
#[cfg(not(feature = "gzip"))]
fn gzip(_bytes: &[u8]) -> Option<Vec<u8>> {
    None
}

#[cfg(all(test, feature = "gzip"))]
mod tests {
    use super::*;
    use std::io::Read;

    /// Scenario: a body that compresses well, and one that grows when compressed.
    /// Guarantees: the first is sent as gzip and can be read again, the second is sent as it is.
    #[test]
    fn body_is_compressed_only_where_that_makes_it_smaller() -> std::io::Result<()> {
        let plain = vec![7; 1000];
        let compressed = body(plain.clone(), Compression::Gzip);
        assert!(compressed.gzip && compressed.bytes.len() < 100);
        let mut read = Vec::new();
        flate2::read::GzDecoder::new(compressed.bytes.as_ref()).read_to_end(&mut read)?;
        assert_eq!(read, plain);

        let kept = body(vec![1, 2, 3], Compression::Gzip);
        assert!(!kept.gzip);
        assert_eq!(kept.bytes.as_ref(), [1, 2, 3]);
        Ok(())
    }
}
