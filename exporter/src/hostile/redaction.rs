//! Secrets in texts that others wrote: URLs as users mistype them and as HTTP clients put them into their errors.

use super::texts;
use crate::redact;

/// Stands at both ends of each secret, and in it, so that a part of one is seen as well.
const MARK: &str = "S3CRET";

/// The first text is what a secret is made of, the others are what stands around it.
///
/// No part of a secret is ever shown, wherever in a URL it is, and what is shown of a text never grows.
pub fn property(data: &[u8]) {
    let mut texts = texts(data);
    let made_of: Vec<char> = texts.next().unwrap_or_default().chars().collect();
    let (left, right) = made_of.split_at(made_of.len() / 2);
    let [left, right] = [left, right].map(|half| half.iter().collect::<String>());
    let secret = format!("{MARK}{left}{MARK}{right}{MARK}");
    // The mark is not in any text of lower case.
    let mut next = || texts.next().unwrap_or_default().to_lowercase();
    let (before, host, after) = (next(), next(), next());

    for place in places(&secret, &plain_host(&host)) {
        // Alone, the first part of a secret that holds `://` could be a scheme.
        if !place.starts_with(MARK) {
            hides(&place, redact::url(&place));
        }
        hides(&place, redact::url(&format!("http://{place}")));
        hides(&place, redact::url(&format!("//{place}")));
    }
    let secret: String = secret.chars().filter(|c| !ends_url(*c)).collect();
    for place in places(&secret, &plain_host(&host)) {
        for text in [
            format!("{before}http://{place} {after}"),
            format!("{before}(http://{place}): {after}"),
            format!("{before}\"http://{place}\"{after}"),
        ] {
            hides(&text, redact::message(&text));
        }
    }
    let text = format!("{before}{host}{after}");
    assert!(redact::message(&text).len() <= text.len());
    assert!(redact::url(&text).len() <= text.len());
}

/// URLs without their scheme.
fn places(secret: &str, host: &str) -> [String; 8] {
    [
        format!("{secret}@{host}/path"),
        format!("user:{secret}@{host}"),
        format!("user:{secret}@{host}/v1/traces?a=b@c#d"),
        format!("user@name:{secret}@{host}/a@b"),
        format!("{host}?key={secret}"),
        format!("{host}/path?a=b&key={secret}&c=d"),
        format!("{host}/path#{secret}"),
        format!("user:{secret}@{host}/path?key={secret}#{secret}"),
    ]
}

/// A host that is one: the question is what becomes of the rest.
fn plain_host(text: &str) -> String {
    text.chars()
        .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | ':' | '[' | ']' | '-'))
        .collect()
}

/// What no URL holds in a text of somebody else's, so it ends there.
fn ends_url(c: char) -> bool {
    c.is_whitespace() || matches!(c, '"' | '<' | '>' | '`')
}

fn hides(text: &str, shown: String) {
    assert!(!shown.contains(MARK), "{text:?} is shown as {shown:?}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::{Duration, Instant};

    fn piece() -> impl Strategy<Value = String> {
        prop_oneof![
            3 => "[a-z:/?#@%&=., )\\]]{0,12}",
            1 => "(://|@|\\?|/|http://|[a-z]){0,8}",
            1 => any::<String>(),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(600))]

        /// Scenario: secrets of any characters as user info, query and fragment of a URL, with and without a scheme, alone
        /// and in the middle of other text with other URLs.
        /// Guarantees: no part of a secret is shown.
        #[test]
        fn secret_in_a_url_is_never_shown(
            secret in piece(),
            before in piece(),
            host in "[a-z]{1,8}(:[0-9]{1,5})?",
            after in piece(),
        ) {
            property([secret, before, host, after].join("\0").as_bytes());
        }
    }

    /// Scenario: 64 KiB of each thing that the search for URLs stops at.
    /// Guarantees: the time it takes grows with the length, not with its square, which would be minutes.
    #[test]
    fn long_text_takes_no_longer_than_its_length() {
        for unit in [
            "://", ":", "/", "@", "?", ")", ").", "a://", "://)", "://@", ":// ", "a:// b@",
        ] {
            let text = unit.repeat((1 << 16) / unit.len());
            for text in [text.clone(), format!("http://{text}"), format!("{text} x")] {
                let start = Instant::now();
                assert!(redact::message(&text).len() <= text.len());
                assert!(redact::url(&text).len() <= text.len());
                assert!(start.elapsed() < Duration::from_secs(5), "{unit:?}");
            }
        }
    }
}
