//! Tokens: any scheme, any token, and what is put in its place later.

use super::texts;
use crate::credentials::ExportToken;

/// The first text is a scheme, the second a token, and the others come in its place one after the other.
///
/// What is accepted becomes a header of exactly that text; what is refused changes nothing.
pub fn property(data: &[u8]) {
    let mut texts = texts(data);
    let scheme = texts.next().unwrap_or_default();
    let first = texts.next().unwrap_or_default();

    let made = ExportToken::with_scheme(&scheme, &first);
    let is_fit = fits(&first) && (scheme.is_empty() || fits(&scheme));
    assert_eq!(made.is_ok(), is_fit, "{scheme:?} {first:?}");
    let bearer = ExportToken::new(&first);
    assert_eq!(bearer.is_ok(), fits(&first), "{first:?}");
    let (Ok(token), Ok(bearer)) = (made, bearer) else {
        return;
    };
    check(&bearer, "Bearer", &first);
    check(&token, &scheme, &first);

    let mut current = first;
    for next in texts {
        let updated = token.clone().update(&next);
        assert_eq!(updated.is_ok(), fits(&next), "{next:?}");
        if updated.is_ok() {
            current = next;
        }
        check(&token, &scheme, &current);
    }
}

/// Whether a header can carry it so that it arrives as it was: visible ASCII, with spaces between but not around.
fn fits(text: &str) -> bool {
    !text.is_empty() && text.trim() == text && text.chars().all(|c| (' '..='~').contains(&c))
}

fn check(token: &ExportToken, scheme: &str, credentials: &str) {
    let header = token.header();
    let expected = format!("{scheme} {credentials}");
    assert_eq!(header.to_str().unwrap(), expected.trim_start());
    assert!(header.is_sensitive());
    assert_eq!(format!("{token:?}"), "ExportToken(redacted)");
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn token() -> impl Strategy<Value = String> {
        prop_oneof![
            4 => "[!-~]{1,12}",
            2 => "[ -~]{0,12}",
            1 => "[!-~]{0,5}[\r\n\t\u{7f}\u{80}\u{a0}é][!-~]{0,5}",
            1 => any::<String>(),
        ]
    }

    proptest! {
        /// Scenario: schemes and tokens with everything that a file, a variable or a vault may put into them.
        /// Guarantees: what is accepted is sent as it is, and what is refused leaves the old one in its place.
        #[test]
        fn accepted_token_is_sent_as_it_is_and_a_refused_one_changes_nothing(
            texts in vec(token(), 1..6),
            without_scheme in any::<bool>(),
        ) {
            let prefix = if without_scheme { "\0" } else { "" };
            super::property(format!("{prefix}{}", texts.join("\0")).as_bytes());
        }
    }
}
