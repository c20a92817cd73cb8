//! Hashing of trace and span ids.
//!
//! Ids are random already, so one multiplication is enough. It is keyed, because a trace id may come from a client that
//! would like all of its ids to land in one bucket.

#[cfg(not(races))]
use std::hash::RandomState;
use std::hash::{BuildHasher, Hasher};

const ODD: u64 = 0x9e37_79b9_7f4a_7c15;

/// Builds [`IdHasher`]s that share one random key.
#[derive(Clone, Debug)]
pub(crate) struct IdHash {
    key: u64,
}

impl Default for IdHash {
    fn default() -> Self {
        Self { key: random_key() }
    }
}

#[cfg(not(any(races, target_family = "wasm")))]
fn random_key() -> u64 {
    RandomState::new().hash_one(ODD)
}

/// The same order in every run of a race model, so that a run can be repeated.
#[cfg(races)]
fn random_key() -> u64 {
    ODD
}

/// The standard library's keys are the same in every instance here.
#[cfg(target_family = "wasm")]
fn random_key() -> u64 {
    // Outside of a request there is no randomness.
    getrandom::u64().unwrap_or_else(|_| RandomState::new().hash_one(ODD))
}

impl BuildHasher for IdHash {
    type Hasher = IdHasher;

    fn build_hasher(&self) -> IdHasher {
        IdHasher(self.key)
    }
}

/// Folds each integer into the state by a 64 × 64 → 128 bit multiplication.
#[derive(Debug)]
pub(crate) struct IdHasher(u64);

impl IdHasher {
    fn fold(&mut self, low: u64, high: u64) {
        let product = u128::from(self.0 ^ low) * u128::from(self.0.rotate_left(32) ^ ODD ^ high);
        self.0 = (product as u64) ^ ((product >> 64) as u64);
    }
}

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.fold(u64::from_le_bytes(word), 0);
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.fold(value, 0);
    }

    fn write_u128(&mut self, value: u128) {
        self.fold(value as u64, (value >> 64) as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// Scenario: ids that differ only in their high or only in their low bits.
    /// Guarantees: they do not share a hash, so no bucket collects them.
    #[test]
    fn similar_ids_have_different_hashes() {
        let build = IdHash::default();
        let hashes: HashSet<u64> = (0..64)
            .flat_map(|bit| {
                [
                    build.hash_one(1u128 << bit),
                    build.hash_one(1u128 << (bit + 64)),
                ]
            })
            .collect();
        assert!(hashes.len() >= 127, "{} different of 128", hashes.len());
    }

    /// Scenario: two processes, or two processors in one.
    /// Guarantees: one cannot tell the buckets of the other.
    #[test]
    fn each_table_has_its_own_key() {
        assert_ne!(
            IdHash::default().hash_one(1u64),
            IdHash::default().hash_one(1u64)
        );
    }
}
