//! Keeps credentials out of texts that other code wrote.

use std::error::Error;

/// Longer texts are cut: a warning is a line, not a page.
const MAX_CHARS: usize = 500;

/// An error and its causes on one line, credentials taken out of URLs.
pub(crate) fn error_chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // Many errors already repeat their cause.
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    message(&text)
}

/// A text of somebody else's, cut, credentials taken out of its URLs.
pub(crate) fn message(text: &str) -> String {
    urls(text).chars().take(MAX_CHARS).collect()
}

/// Takes user info, query and fragment out of each URL in `text`: all three can hold a credential.
fn urls(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, url) = rest.split_at(at + 3);
        out.push_str(before);
        let end = url.find(ends_url).unwrap_or(url.len());
        // Closing punctuation at the end belongs to the sentence; anywhere else it may be inside a credential.
        let end = url[..end].trim_end_matches(closes_sentence).len();
        let (url, after) = url.split_at(end);
        out.push_str(without_secrets(url));
        rest = after;
    }
    out.push_str(rest);
    out
}

/// The same for a text that is meant to be one URL, whatever is in it.
pub(crate) fn url(text: &str) -> String {
    match text.split_once("://") {
        Some((scheme, url)) if is_scheme(scheme) => format!("{scheme}://{}", without_secrets(url)),
        _ => without_secrets(text).to_owned(),
    }
}

/// Without this, a password or a query in front of a later `://` would be taken for one.
fn is_scheme(text: &str) -> bool {
    text.bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
}

/// So many bytes of a secret in a row tell something of it.
pub(crate) const TELLING: usize = 8;

/// Whether `text` has a telling part of `secret` in it, or all of a shorter one.
pub(crate) fn repeats(text: &[u8], secret: &[u8]) -> bool {
    let least = secret.len().min(TELLING);
    least > 0
        && secret
            .windows(least)
            .any(|part| text.windows(least).any(|seen| seen == part))
}

fn ends_url(c: char) -> bool {
    c.is_whitespace() || matches!(c, '"' | '<' | '>' | '`')
}

fn closes_sentence(c: char) -> bool {
    matches!(c, ')' | ']' | '\'' | ',' | ';' | ':' | '.')
}

/// What is left of a URL, its scheme taken off: host, port and path.
fn without_secrets(url: &str) -> &str {
    let (authority, rest) = url.split_at(url.find(['/', '?', '#']).unwrap_or(url.len()));
    // A password may contain any of the three; then no host can be told apart from it.
    if rest.contains('@') {
        return "";
    }
    // The last `@`: a password may contain one.
    let start = authority.rfind('@').map_or(0, |at| at + 1);
    let end = url.find(['?', '#']).unwrap_or(url.len());
    &url[start..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: texts with a secret, with a part of it, and without.
    /// Guarantees: a part of eight bytes is enough, and of a shorter secret all of it is needed.
    #[test]
    fn part_of_a_secret_is_found() {
        let cases = [
            ("bad token: abcdefghij", "abcdefghij", true),
            ("ends in cdefghij", "abcdefghij", true),
            ("ends in efghij", "abcdefghij", false),
            ("nothing of it", "abcdefghij", false),
            ("key abc!", "abc", true),
            ("key ab", "abc", false),
            ("", "abc", false),
            ("text", "", false),
        ];
        for (text, secret, found) in cases {
            assert_eq!(repeats(text.as_bytes(), secret.as_bytes()), found, "{text}");
        }
    }

    /// Scenario: texts with URLs as HTTP clients put them into errors.
    /// Guarantees: scheme, host, port and path stay; user info, query and fragment go.
    #[test]
    fn urls_keep_their_place_and_lose_their_secrets() {
        let cases = [
            ("no address here", "no address here"),
            ("", ""),
            ("http://h:4318/v1/traces", "http://h:4318/v1/traces"),
            (
                "for url (http://u:p@h:1/a?k=v#f): refused",
                "for url (http://h:1/a): refused",
            ),
            (
                "\"https://u@h\" and http://h?t=1",
                "\"https://h\" and http://h",
            ),
            ("http://u:p@q@h/x", "http://h/x"),
            ("http://u:p/q@h/x end", "http:// end"),
            ("http://u:p?q@h/x end", "http:// end"),
            ("http://u:p#q@h/x end", "http:// end"),
            ("http://u@n:p/q@h/x end", "http:// end"),
            ("http://", "http://"),
            ("a://b://c@d e", "a:// e"),
            ("(http://h/?k=a)b,c).", "(http://h/)."),
        ];
        for (text, expected) in cases {
            assert_eq!(urls(text), expected, "{text}");
        }
    }

    /// Scenario: endpoints as users mistype them.
    /// Guarantees: a text that is meant to be one URL shows none of its secrets, even where it is no URL.
    #[test]
    fn mistyped_url_shows_no_secret() {
        let cases = [
            ("http://u:p@h:1/a?k=v", "http://h:1/a"),
            ("http://h /a?k=v w", "http://h /a"),
            ("u:p@h:1", "h:1"),
            ("u:p://q@h:1", ""),
            ("h/a?k=v://w", "h/a"),
            ("http://h?k=a@b", "http://"),
            ("h:1", "h:1"),
            ("", ""),
        ];
        for (text, expected) in cases {
            assert_eq!(url(text), expected, "{text}");
        }
    }

    /// Scenario: an error with a cause whose text the error already holds, and one whose text it does not.
    /// Guarantees: each text appears once, on one line.
    #[test]
    fn error_chain_says_each_cause_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("sending to http://u:p@h/x failed")]
        struct Outer(#[source] std::io::Error);
        let error = Outer(std::io::Error::other("connection refused"));
        assert_eq!(
            error_chain(&error),
            "sending to http://h/x failed: connection refused"
        );
    }
}
