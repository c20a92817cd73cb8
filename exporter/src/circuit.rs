//! Which credentials were refused lately, pure: time is an argument.
//!
//! A collector that answered 401 or 403 will answer the same a moment later. Its credential is left alone for a while,
//! and only that one: the token of one tenant never stops another's. What is kept is a keyed hash, never the token.

use lru::LruCache;
use std::num::NonZeroUsize;
use std::time::Duration;

/// Open circuits kept. Beyond it the least recently opened is forgotten, which costs one more refused request.
const MAX_OPEN: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1023);

/// Refused credentials, by hash.
#[derive(Debug)]
pub(crate) struct Circuits {
    cooldown: Duration,
    /// Until when each is open.
    open: LruCache<u64, Duration>,
}

// ===== impl Circuits =====

impl Circuits {
    /// A `cooldown` of zero never opens a circuit.
    pub(crate) fn new(cooldown: Duration) -> Self {
        Self {
            cooldown,
            open: LruCache::new(MAX_OPEN),
        }
    }

    /// How long the credential must still be left alone, if at all.
    pub(crate) fn remaining(&mut self, credential: u64, now: Duration) -> Option<Duration> {
        let until = *self.open.peek(&credential)?;
        match until.checked_sub(now) {
            Some(remaining) if !remaining.is_zero() => Some(remaining),
            _ => {
                self.open.pop(&credential);
                None
            }
        }
    }

    /// The credential was refused: leave it alone from `now` on.
    pub(crate) fn refused(&mut self, credential: u64, now: Duration) {
        if !self.cooldown.is_zero() {
            self.open
                .push(credential, now.saturating_add(self.cooldown));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COOLDOWN: Duration = Duration::from_secs(30);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Scenario: one credential of two is refused.
    /// Guarantees: it is left alone until the cooldown ends and tried again after it; the other never notices.
    #[test]
    fn refused_credential_is_left_alone_for_the_cooldown_and_no_other() {
        let mut circuits = Circuits::new(COOLDOWN);
        circuits.refused(1, at(100));
        let cases = [
            (1, 100, Some(30)),
            (1, 129, Some(1)),
            (2, 110, None),
            (1, 130, None),
            (1, 131, None),
        ];
        for (credential, now, expected) in cases {
            assert_eq!(
                circuits.remaining(credential, at(now)),
                expected.map(at),
                "{credential} at {now}"
            );
        }
    }

    /// Scenario: a cooldown of zero.
    /// Guarantees: no circuit ever opens.
    #[test]
    fn zero_cooldown_never_opens() {
        let mut circuits = Circuits::new(Duration::ZERO);
        circuits.refused(1, at(0));
        assert_eq!(circuits.remaining(1, at(0)), None);
    }

    /// Scenario: more refused credentials than are kept.
    /// Guarantees: memory is bounded, and the oldest are the ones forgotten.
    #[test]
    fn open_circuits_are_bounded_and_the_oldest_is_forgotten() {
        let mut circuits = Circuits::new(COOLDOWN);
        for credential in 0..=MAX_OPEN.get() as u64 {
            circuits.refused(credential, at(0));
        }
        assert_eq!(circuits.open.len(), MAX_OPEN.get());
        assert_eq!(circuits.remaining(0, at(1)), None);
        assert_eq!(circuits.remaining(1, at(1)), Some(at(29)));
    }
}
