//! Randomness: a little, for jitter and for what must not be guessed.

/// Uniform in `0.0..1.0`.
pub(crate) fn fraction() -> f64 {
    (bits() >> 11) as f64 / (1_u64 << 53) as f64
}

/// Each `RandomState` has new keys, which is all the randomness that is needed.
#[cfg(not(target_family = "wasm"))]
pub(crate) fn bits() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(())
}

/// From the runtime, since the keys of a `RandomState` are constants there.
///
/// Outside of a request Workers give out no randomness. Then it is a hash of the time, which keeps an exporter working that
/// was built there.
#[cfg(target_family = "wasm")]
pub(crate) fn bits() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    getrandom::u64().unwrap_or_else(|_| RandomState::new().hash_one(crate::clock::wall()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: many draws.
    /// Guarantees: fractions stay in `0.0..1.0` and lie on both sides of the middle; two draws of bits differ.
    #[test]
    fn draws_differ_and_fractions_stay_in_range() {
        let drawn: Vec<_> = std::iter::repeat_with(fraction).take(100).collect();
        assert!(drawn.iter().all(|drawn| (0.0..1.0).contains(drawn)));
        assert!(drawn.iter().any(|drawn| *drawn < 0.5));
        assert!(drawn.iter().any(|drawn| *drawn >= 0.5));
        assert_ne!(bits(), bits());
    }
}
