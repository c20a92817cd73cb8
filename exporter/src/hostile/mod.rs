//! What must hold whatever comes from outside: a property for each way in, of any bytes.
//!
//! Each is written once and asked in three ways: by proptest with input that looks like the real thing, by libFuzzer with
//! whatever reaches new code (`cargo xtask fuzz`), and with the files in `fuzz/corpus` and `fuzz/found` by each
//! `cargo test`. A property panics when it does not hold.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a property fails by a panic"
)]

pub mod encoding;
pub mod environment;
#[cfg(feature = "gzip")]
pub mod gzip;
#[cfg(feature = "logs")]
pub mod log_encoding;
pub mod redaction;
pub mod responses;
pub mod retries;
pub mod retry_after;
pub mod tokens;

/// Texts in a row, with a NUL between two of them: no header and no environment variable can hold one.
fn texts(data: &[u8]) -> impl Iterator<Item = String> {
    data.split(|byte| *byte == 0)
        .map(|text| String::from_utf8_lossy(text).into_owned())
}

/// Bytes that are read as numbers and pieces, zeros when they are used up.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let piece = self.piece(N);
        bytes[..piece.len()].copy_from_slice(piece);
        bytes
    }

    fn byte(&mut self) -> u8 {
        let [byte] = self.bytes();
        byte
    }

    /// One of `0..n`.
    fn below(&mut self, n: u8) -> u8 {
        self.byte() % n
    }

    /// At most `len` bytes.
    fn piece(&mut self, len: usize) -> &'a [u8] {
        let (piece, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        piece
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;
    use std::path::Path;

    type Property = fn(&[u8]);

    /// By the names of their fuzz targets, which are those of the folders of what is kept for them.
    const PROPERTIES: &[(&str, Property)] = &[
        ("encoding", encoding::property),
        ("environment", environment::property),
        #[cfg(feature = "gzip")]
        ("gzip", gzip::property),
        #[cfg(feature = "logs")]
        ("log_encoding", log_encoding::property),
        ("redaction", redaction::property),
        ("responses", responses::property),
        ("retries", retries::property),
        ("retry_after", retry_after::property),
        ("tokens", tokens::property),
    ];

    /// Scenario: the inputs that fuzzing has kept because they reach something, and those that once broke a property.
    /// Guarantees: each property holds for each of its inputs.
    #[test]
    fn kept_inputs_break_no_property() {
        // They are in the repository, and not in the package.
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.lock");
        if !repository.exists() {
            return;
        }
        for (name, property) in PROPERTIES {
            let replayed: usize = ["corpus", "found"]
                .map(|kind| replay(&format!("../fuzz/{kind}/{name}"), *property))
                .iter()
                .sum();
            assert!(replayed > 0, "nothing is kept for {name}");
        }
    }

    /// How many files there were.
    fn replay(folder: &str, property: Property) -> usize {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        let files = fs::read_dir(folder).into_iter().flatten();
        files
            .map(|file| {
                let path = file.unwrap().path();
                // Shown when the property fails.
                println!("{}", path.display());
                property(&fs::read(path).unwrap());
            })
            .count()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        /// Scenario: any bytes at every way in.
        /// Guarantees: each property holds.
        #[test]
        fn any_bytes_break_no_property(data in proptest::collection::vec(any::<u8>(), 0..300)) {
            for (_, property) in PROPERTIES {
                property(&data);
            }
        }
    }
}
