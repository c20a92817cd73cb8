//! What a CLIENT span says of a call and of its answer. Pure, but for the span that it is said to.

use std::borrow::Cow;

use ::http::Uri;
use ::http::uri::Authority;
use opentelemetry::KeyValue;
use opentelemetry::trace::{SpanBuilder, SpanKind};

use crate::active::ActiveSpan;
use crate::http::{self, redacted};

/// A call before it is made.
pub(crate) struct Call<'a> {
    pub(crate) method: &'a str,
    /// None if it is no URI.
    pub(crate) uri: Option<&'a Uri>,
    /// What is called, where the URI does not say so: the header `host`.
    pub(crate) host: Option<Authority>,
    /// Whether values in the query are shown.
    pub(crate) query: bool,
}

impl Call<'_> {
    pub(crate) fn http(&self) -> (Cow<'static, str>, Vec<KeyValue>) {
        let mut attributes = Vec::with_capacity(6);
        let name = http::push_method(self.method, &mut attributes);
        self.push_server(&mut attributes);
        if let Some(url) = self.uri.and_then(|uri| full_url(uri, self.query)) {
            attributes.push(KeyValue::new("url.full", url));
        }
        (name.into(), attributes)
    }

    #[cfg(feature = "tower")]
    pub(super) fn rpc(&self) -> (Cow<'static, str>, Vec<KeyValue>) {
        let method = self.uri.map(crate::grpc::method).unwrap_or_default();
        let mut attributes = Vec::with_capacity(6);
        attributes.push(KeyValue::new("rpc.system.name", "grpc"));
        attributes.push(KeyValue::new("rpc.method", method.clone()));
        self.push_server(&mut attributes);
        (method.into(), attributes)
    }

    fn push_server(&self, attributes: &mut Vec<KeyValue>) {
        let called = self.uri.and_then(Uri::authority).or(self.host.as_ref());
        http::push_server(called, self.uri.and_then(Uri::scheme_str), attributes);
    }
}

pub(crate) fn client_span(name: Cow<'static, str>, attributes: Vec<KeyValue>) -> SpanBuilder {
    SpanBuilder::from_name(name)
        .with_kind(SpanKind::Client)
        .with_attributes(attributes)
}

/// Says what the server answered.
pub(crate) fn record_status(span: &ActiveSpan, status: u16) {
    span.set_attribute("http.response.status_code", i64::from(status));
    if status >= 400 {
        span.fail_with(status.to_string(), "");
    }
}

/// Says what became of a call of gRPC. For a client, all but `OK` are errors.
#[cfg(feature = "tower")]
pub(super) fn record_rpc_status(span: &ActiveSpan, status: &'static str) {
    span.set_attribute("rpc.status_code", status);
    if status != "OK" {
        span.fail_with(status, "");
    }
}

/// An absolute URL, put together from parts that may be shown: a fragment is not among them. `None` if it is not absolute.
fn full_url(uri: &Uri, shown: bool) -> Option<String> {
    let (scheme, authority) = (uri.scheme_str()?, uri.authority()?);
    let mut url = format!("{scheme}://");
    if authority.as_str().contains('@') {
        url.push_str("REDACTED:REDACTED@");
    }
    url.push_str(authority.host());
    if let Some(port) = authority.port_u16() {
        url.push_str(&format!(":{port}"));
    }
    url.push_str(uri.path());
    if let Some(query) = uri.query() {
        url.push('?');
        url.push_str(&match shown {
            true => without_signatures(query),
            false => redacted(query),
        });
    }
    Some(url)
}

/// What grants access in a URL that was signed, by the conventions.
const SIGNATURES: [&str; 7] = [
    "X-Amz-Signature",
    "X-Amz-Credential",
    "X-Amz-Security-Token",
    "AWSAccessKeyId",
    "Signature",
    "sig",
    "X-Goog-Signature",
];

/// A query without the values of [`SIGNATURES`].
fn without_signatures(query: &str) -> String {
    // Some servers take a semicolon for an ampersand.
    let parts = query.split_inclusive(['&', ';']).map(|part| {
        let end = part.trim_end_matches(['&', ';']).len();
        let (pair, separator) = part.split_at(end);
        match pair.split_once('=') {
            Some((name, _)) if is_signature(name) => {
                Cow::Owned(format!("{name}=REDACTED{separator}"))
            }
            _ => Cow::Borrowed(part),
        }
    });
    parts.collect()
}

/// In any case, which is stricter than the conventions. A name that is encoded could be any.
fn is_signature(name: &str) -> bool {
    let known = SIGNATURES
        .iter()
        .any(|known| known.eq_ignore_ascii_case(name));
    known || name.contains('%')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::known_method;
    use proptest::prelude::*;

    /// In each place where a secret may be.
    const SECRET: &str = "S3CRET";

    /// All that the span of this call says, with its name.
    fn said(method: &str, url: &str, query: bool) -> (String, Vec<(String, String)>) {
        let uri = url.parse::<Uri>().ok();
        let call = Call {
            method,
            uri: uri.as_ref(),
            host: None,
            query,
        };
        let (name, attributes) = call.http();
        let text = |attribute: KeyValue| {
            let KeyValue { key, value, .. } = attribute;
            (key.to_string(), value.to_string())
        };
        (name.into(), attributes.into_iter().map(text).collect())
    }

    fn attribute(url: &str, key: &str) -> Option<String> {
        let (_, attributes) = said("GET", url, false);
        let found = attributes.into_iter().find(|(name, _)| name == key);
        found.map(|(_, value)| value)
    }

    /// Scenario: calls by absolute URLs, by a path, and by what is no URL.
    /// Guarantees: the URL is shown without user info, fragment and values of the query; server and port are its own, or
    /// the port of its scheme.
    #[test]
    fn span_says_what_is_called_and_no_secret() {
        for (url, full, address, port) in [
            ("http://a.example", "http://a.example/", "a.example", "80"),
            (
                "https://a.example/b/c",
                "https://a.example/b/c",
                "a.example",
                "443",
            ),
            (
                "https://a.example:8443/?b=c&d&e=",
                "https://a.example:8443/?b=REDACTED&REDACTED&e=REDACTED",
                "a.example",
                "8443",
            ),
            (
                "https://user:pass@a.example/#frag",
                "https://REDACTED:REDACTED@a.example/",
                "a.example",
                "443",
            ),
            (
                "https://user@a.example:1/",
                "https://REDACTED:REDACTED@a.example:1/",
                "a.example",
                "1",
            ),
            ("http://[::1]:80/", "http://[::1]:80/", "::1", "80"),
        ] {
            assert_eq!(attribute(url, "url.full").as_deref(), Some(full), "{url}");
            let server = ["server.address", "server.port"].map(|key| attribute(url, key));
            assert_eq!(server, [Some(address.to_owned()), Some(port.to_owned())]);
        }
        for url in ["/only/a/path?a=b", "no url", ""] {
            for key in ["url.full", "server.address", "server.port"] {
                assert_eq!(attribute(url, key), None, "{url}");
            }
        }
    }

    /// Scenario: a request over a connection that is there already: it has a path, and the server in a header.
    /// Guarantees: the server is that of the header; there is no URL, since nobody knows its scheme.
    #[test]
    fn server_of_a_path_is_in_a_header() {
        let uri = Uri::from_static("/a/path?key=S3CRET");
        let call = Call {
            method: "GET",
            uri: Some(&uri),
            host: "a.example:8080".parse().ok(),
            query: false,
        };
        let expected = [
            KeyValue::new("http.request.method", "GET"),
            KeyValue::new("server.address", "a.example"),
            KeyValue::new("server.port", 8080),
        ];
        assert_eq!(call.http().1, expected);
    }

    /// Scenario: a query is to be shown. It has signatures, in other cases and encoded, and what merely looks like one.
    /// Guarantees: all is shown but the values of signatures, and of names that may be one.
    #[test]
    fn query_that_is_shown_has_no_signatures() {
        for (query, shown) in [
            ("", ""),
            ("a=b&c=d&flag", "a=b&c=d&flag"),
            ("sig=1&a=b", "sig=REDACTED&a=b"),
            ("a=b;SIG=1;c", "a=b;SIG=REDACTED;c"),
            ("signal=1&mysig=2", "signal=1&mysig=2"),
            ("s%69g=1", "s%69g=REDACTED"),
            ("Signature=a=b&", "Signature=REDACTED&"),
            (
                "X-Amz-Signature=1&X-Amz-Credential=2&X-Amz-Security-Token=3&X-Amz-Date=4",
                "X-Amz-Signature=REDACTED&X-Amz-Credential=REDACTED&X-Amz-Security-Token=REDACTED&X-Amz-Date=4",
            ),
            (
                "AWSAccessKeyId=1&X-Goog-Signature=2",
                "AWSAccessKeyId=REDACTED&X-Goog-Signature=REDACTED",
            ),
        ] {
            assert_eq!(without_signatures(query), shown, "{query}");
        }
    }

    fn url(names: &'static str) -> impl Strategy<Value = String> {
        let around = "[a-z0-9%=+.~\\[\\]{}|^:@/?-]{0,5}";
        let part = prop_oneof![
            (names, around, around)
                .prop_map(|(name, before, after)| format!("{name}={before}{SECRET}{after}")),
            "[a-z]{1,3}=[a-z]{0,3}",
        ];
        let query = proptest::collection::vec(part, 0..4).prop_map(|parts| parts.join("&"));
        let user = prop_oneof![
            Just(String::new()),
            "[a-z:@]{0,3}".prop_map(|user| format!("{user}{SECRET}@")),
            Just(format!("user:{SECRET}@")),
        ];
        let host = "([a-z.]{1,6}|\\[::1\\])(:[0-9]{1,5})?(/[a-z%]{0,4}){0,2}";
        (user, host, query)
            .prop_map(|(user, rest, query)| format!("https://{user}{rest}?{query}#{SECRET}"))
    }

    proptest! {
        /// Scenario: calls with any method, to URLs with secrets as user info, in queries and as fragments.
        /// Guarantees: the name and the method are among a few, and no attribute shows a secret.
        #[test]
        fn secret_in_the_url_of_a_call_is_in_no_attribute(
            url in url("[a-zA-Z%]{0,5}"),
            method in prop_oneof!["[A-Z]{1,7}", "GET|POST|get"],
        ) {
            let (name, attributes) = said(&method, &url, false);
            prop_assert!(name == "HTTP" || known_method(&name).is_some());
            for (key, value) in attributes {
                prop_assert!(!value.contains(SECRET), "{}: {}", key, value);
                if key == "http.request.method" {
                    prop_assert!(value == "_OTHER" || known_method(&value).is_some());
                }
            }
        }

        /// Scenario: the same URLs, with secrets in signatures only, when the query is to be shown.
        /// Guarantees: no attribute shows a secret.
        #[test]
        fn signature_in_the_url_of_a_call_is_in_no_attribute(
            url in url("sig|Signature|X-Amz-Signature|AWSAccessKeyId|x-goog-signature"),
        ) {
            let (_, attributes) = said("GET", &url, true);
            for (key, value) in attributes {
                prop_assert!(!value.contains(SECRET), "{}: {}", key, value);
            }
        }
    }
}
