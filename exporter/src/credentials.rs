//! The per-request credential: a token that travels in a [`Context`] and can be refreshed on its way.

use http::HeaderValue;
use opentelemetry::Context;
use std::fmt;
use std::sync::{Arc, PoisonError};
use thiserror::Error;

use crate::sync::RwLock;

/// The credential under which the spans of one request are exported.
///
/// Attached to a [`Context`], it is found by every export that runs under that context:
/// [`DirectExporter`](crate::DirectExporter) and [`TokenClient`](crate::TokenClient) send it as the `authorization`
/// header of each attempt, in place of a header set in configuration. Clones share one value, so
/// [`update`](ExportToken::update) reaches every export that has not been sent yet, retries included. The value appears
/// neither in `Debug` nor in any log of this crate.
///
/// Whether exports run under the request's context is the span processor's doing: the SDK's batch processor exports
/// under an empty one.
///
/// ```
/// use opentelemetry::Context;
/// use opentelemetry_otlp_direct::ExportToken;
///
/// let token = ExportToken::new("tenant-42")?;
/// let cx = token.attach_to(&Context::current());
/// assert!(ExportToken::from_context(&cx).is_some());
///
/// token.update("tenant-42-refreshed")?; // seen through `cx` as well
/// assert!(!format!("{token:?}").contains("tenant"));
/// # Ok::<(), opentelemetry_otlp_direct::InvalidToken>(())
/// ```
#[derive(Clone)]
pub struct ExportToken {
    shared: Arc<Shared>,
}

/// A token that an HTTP header cannot carry. The message never holds the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum InvalidToken {
    /// There is nothing in it.
    #[error("token is empty")]
    Empty,
    /// A character that is not visible ASCII, or a space at either end. A line break at the end of a token read from a
    /// file is the usual one.
    #[error("token has a character at byte {position} that a header cannot carry")]
    Character {
        /// Where it is, in bytes from the start of the token, or of the scheme.
        position: usize,
    },
}

struct Shared {
    /// What stands before the token in the header, with its space: `"Bearer "`.
    prefix: String,
    header: RwLock<HeaderValue>,
}

// ===== impl ExportToken =====

impl ExportToken {
    /// A bearer token: the header will be `Bearer <token>`.
    ///
    /// # Errors
    ///
    /// [`InvalidToken`] when `token` is empty or has characters that a header cannot carry.
    pub fn new(token: impl AsRef<str>) -> Result<Self, InvalidToken> {
        Self::with_scheme("Bearer", token)
    }

    /// A credential of another scheme: the header will be `<scheme> <credentials>`, or only the credentials when
    /// `scheme` is empty.
    ///
    /// # Errors
    ///
    /// [`InvalidToken`] when either part has characters that a header cannot carry, or `credentials` is empty.
    ///
    /// ```
    /// use opentelemetry_otlp_direct::ExportToken;
    ///
    /// let token = ExportToken::with_scheme("Basic", "dXNlcjpwYXNz")?;
    /// # Ok::<(), opentelemetry_otlp_direct::InvalidToken>(())
    /// ```
    pub fn with_scheme(scheme: &str, credentials: impl AsRef<str>) -> Result<Self, InvalidToken> {
        let prefix = match scheme {
            "" => String::new(),
            scheme => {
                check(scheme)?;
                format!("{scheme} ")
            }
        };
        let header = RwLock::new(header(&prefix, credentials.as_ref())?);
        Ok(Self {
            shared: Arc::new(Shared { prefix, header }),
        })
    }

    /// Replaces the token, for all clones and every context that holds one; the scheme stays.
    ///
    /// Requests already on the wire keep the old one. Never blocks for longer than it takes to copy a header.
    ///
    /// # Errors
    ///
    /// [`InvalidToken`], and the token in use stays, when the new one is empty or has characters that a header cannot
    /// carry.
    pub fn update(&self, token: impl AsRef<str>) -> Result<(), InvalidToken> {
        let header = header(&self.shared.prefix, token.as_ref())?;
        let mut current = self
            .shared
            .header
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *current = header;
        Ok(())
    }

    /// `cx` with this token in it, in place of one that is already there.
    pub fn attach_to(&self, cx: &Context) -> Context {
        cx.with_value(self.clone())
    }

    /// The token in `cx`, if there is one.
    pub fn from_context(cx: &Context) -> Option<Self> {
        cx.get::<Self>().cloned()
    }

    /// The value of the `authorization` header as of now, marked sensitive.
    pub(crate) fn header(&self) -> HeaderValue {
        self.shared
            .header
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// [`Self::header`] of the token in the current context.
    pub(crate) fn current_header() -> Option<HeaderValue> {
        Context::map_current(|cx| cx.get::<Self>().map(Self::header))
    }
}

impl fmt::Debug for ExportToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ExportToken(redacted)")
    }
}

fn header(prefix: &str, token: &str) -> Result<HeaderValue, InvalidToken> {
    if token.is_empty() {
        return Err(InvalidToken::Empty);
    }
    check(token)?;
    let mut header = HeaderValue::try_from(format!("{prefix}{token}"))
        .map_err(|_| InvalidToken::Character { position: 0 })?;
    header.set_sensitive(true);
    Ok(header)
}

/// Whether a header can carry it: an HTTP client would take spaces away at either end, and gRPC knows ASCII only.
fn check(part: &str) -> Result<(), InvalidToken> {
    let last = part.len().saturating_sub(1);
    let unfit = |(at, byte): (usize, u8)| match byte {
        b' ' => at == 0 || at == last,
        byte => !byte.is_ascii_graphic(),
    };
    match part.bytes().enumerate().position(unfit) {
        Some(position) => Err(InvalidToken::Character { position }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: tokens as users read them from files, variables and vaults.
    /// Guarantees: what a header cannot carry is refused when the token is made, with its place.
    #[test]
    fn tokens_a_header_cannot_carry_are_refused() {
        let at = |position| Err(InvalidToken::Character { position });
        let cases = [
            ("abc", Ok("Bearer abc")),
            ("a b", Ok("Bearer a b")),
            ("~!", Ok("Bearer ~!")),
            ("", Err(InvalidToken::Empty)),
            ("abc\n", at(3)),
            ("a\r\nx: y", at(1)),
            ("\u{0}", at(0)),
            (" abc", at(0)),
            ("abc ", at(3)),
            ("tab\t", at(3)),
            ("schlüssel", at(4)),
        ];
        for (token, expected) in cases {
            let made = ExportToken::new(token).map(|token| token.header());
            let expected = expected.map(HeaderValue::from_static);
            assert_eq!(made, expected, "{token:?}");
        }
    }

    /// Scenario: a token with a scheme, with an empty scheme, and with a scheme that breaks the header.
    /// Guarantees: the header is built from both parts, and a bad scheme is refused.
    #[test]
    fn scheme_stands_before_the_credentials() {
        let made = |scheme| ExportToken::with_scheme(scheme, "x").map(|token| token.header());
        assert_eq!(made("Basic"), Ok(HeaderValue::from_static("Basic x")));
        assert_eq!(made(""), Ok(HeaderValue::from_static("x")));
        for scheme in ["a\nb", "é", " ", " Basic", "Basic\t"] {
            assert!(made(scheme).is_err(), "{scheme:?}");
        }
    }

    /// Scenario: a token is attached to a context, then updated, then updated with a bad value.
    /// Guarantees: the context's clone sees the new value; the bad one changes nothing.
    #[test]
    fn update_reaches_every_clone_and_a_bad_one_reaches_none() -> Result<(), InvalidToken> {
        let token = ExportToken::new("old")?;
        let cx = token.attach_to(&Context::new());
        token.update("new")?;
        assert_eq!(
            token.update("bad\n"),
            Err(InvalidToken::Character { position: 3 })
        );
        let seen = ExportToken::from_context(&cx).map(|token| token.header());
        assert_eq!(seen, Some(HeaderValue::from_static("Bearer new")));
        Ok(())
    }

    /// Scenario: a token, its header and the context that holds it are printed for debugging.
    /// Guarantees: none shows the token.
    #[test]
    fn debug_never_shows_the_token() -> Result<(), InvalidToken> {
        let token = ExportToken::new("s3cret")?;
        let cx = token.attach_to(&Context::new());
        let printed = format!("{token:?} {:?} {cx:?}", token.header());
        assert!(!printed.contains("s3cret"), "{printed}");
        Ok(())
    }
}
