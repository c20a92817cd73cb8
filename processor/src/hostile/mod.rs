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

pub mod carriers;
pub mod settings;

use std::sync::{Arc, Mutex};

use opentelemetry::Context;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SpanData, SpanExporter};

/// Texts in a row, with a NUL between two of them: no header and no environment variable can hold one.
fn texts(data: &[u8]) -> impl Iterator<Item = String> {
    data.split(|byte| *byte == 0)
        .map(|text| String::from_utf8_lossy(text).into_owned())
}

/// Whose request it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tenant(usize);

/// Takes everything, and keeps it with the tenant that it came under.
#[derive(Clone, Debug, Default)]
struct Recorder(Arc<Mutex<Vec<Seen>>>);

type Seen = (SpanData, Option<Tenant>);

impl SpanExporter for Recorder {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let tenant = Context::map_current(|cx| cx.get::<Tenant>().copied());
        let spans = batch.into_iter().map(|span| (span, tenant));
        self.0.lock().unwrap().extend(spans);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    type Property = fn(&[u8]);

    /// By the names of their fuzz targets, which are those of the folders of what is kept for them.
    const PROPERTIES: [(&str, Property); 2] = [
        ("carriers", carriers::property),
        ("settings", settings::property),
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
                .map(|kind| replay(&format!("../fuzz/{kind}/{name}"), property))
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
        #![proptest_config(ProptestConfig::with_cases(100))]

        /// Scenario: any bytes at every way in.
        /// Guarantees: each property holds.
        #[test]
        fn any_bytes_break_no_property(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            for (_, property) in PROPERTIES {
                property(&data);
            }
        }
    }
}
