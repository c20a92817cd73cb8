//! What a span says of an HTTP request, by the semantic conventions for HTTP.

use ::http::uri::Authority;
use ::http::{HeaderMap, Uri};
use opentelemetry::KeyValue;

/// A request as a `fetch` event has it: a `worker::Request` or an `http::Request`, also without its body.
pub trait IncomingRequest {
    /// The method, as it came: `GET`.
    fn method(&self) -> String;
    /// The whole URL.
    fn url(&self) -> String;
    /// The value of a header, by its name in any case.
    fn header(&self, name: &str) -> Option<String>;
}

#[cfg(target_family = "wasm")]
impl IncomingRequest for worker::Request {
    fn method(&self) -> String {
        // `worker::Method` knows some, and turns all others into `GET`.
        self.inner().method()
    }

    fn url(&self) -> String {
        // `worker::Url` would bring the tables of all scripts in the world into the Worker.
        self.inner().url()
    }

    fn header(&self, name: &str) -> Option<String> {
        self.headers().get(name).ok()?
    }
}

impl<B> IncomingRequest for ::http::Request<B> {
    fn method(&self) -> String {
        self.method().to_string()
    }

    fn url(&self) -> String {
        self.uri().to_string()
    }

    fn header(&self, name: &str) -> Option<String> {
        text_of(self.headers(), name)
    }
}

impl IncomingRequest for ::http::request::Parts {
    fn method(&self) -> String {
        self.method.to_string()
    }

    fn url(&self) -> String {
        self.uri.to_string()
    }

    fn header(&self, name: &str) -> Option<String> {
        text_of(&self.headers, name)
    }
}

fn text_of(headers: &HeaderMap, name: &str) -> Option<String> {
    let value = headers.get(name)?;
    value.to_str().ok().map(str::to_owned)
}

/// A response as a `fetch` event has it: a `worker::Response` or an `http::Response`.
pub trait OutgoingResponse {
    /// The status code.
    fn status(&self) -> u16;
}

#[cfg(target_family = "wasm")]
impl OutgoingResponse for worker::Response {
    fn status(&self) -> u16 {
        self.status_code()
    }
}

impl<B> OutgoingResponse for ::http::Response<B> {
    fn status(&self) -> u16 {
        self.status().as_u16()
    }
}

/// Methods that may be part of a span's name: all others have as many values as a client likes.
const METHODS: [&str; 10] = [
    "CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE",
];

pub(crate) fn span_name(method: &str) -> &'static str {
    known_method(method).unwrap_or("HTTP")
}

pub(crate) fn known_method(method: &str) -> Option<&'static str> {
    METHODS.into_iter().find(|known| *known == method)
}

/// Says which method it is. Returns what stands for it in the span's name.
pub(crate) fn push_method(method: &str, attributes: &mut Vec<KeyValue>) -> &'static str {
    let known = known_method(method);
    attributes.push(KeyValue::new(
        "http.request.method",
        known.unwrap_or("_OTHER"),
    ));
    if known.is_none() {
        let original = method.to_owned();
        attributes.push(KeyValue::new("http.request.method_original", original));
    }
    span_name(method)
}

/// Says by what name a server is called. Nothing, if it has none.
pub(crate) fn push_server(
    called: Option<&Authority>,
    scheme: Option<&str>,
    attributes: &mut Vec<KeyValue>,
) {
    let Some(called) = called.filter(|called| !called.host().is_empty()) else {
        return;
    };
    attributes.push(KeyValue::new("server.address", address(called).to_owned()));
    let port = called.port_u16().or(match scheme {
        Some("http") => Some(80),
        Some("https") => Some(443),
        _ => None,
    });
    if let Some(port) = port {
        attributes.push(KeyValue::new("server.port", i64::from(port)));
    }
}

/// The brackets around an IPv6 address are part of a URL, and not of the address.
fn address(called: &Authority) -> &str {
    let host = called.host();
    let inner = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    inner.unwrap_or(host)
}

pub(crate) fn attributes(request: &impl IncomingRequest) -> Vec<KeyValue> {
    let mut attributes = Vec::with_capacity(8);
    push_method(&request.method(), &mut attributes);
    if let Ok(url) = request.url().parse::<Uri>() {
        push_url(&url, &mut attributes);
    }
    if let Some(agent) = request.header("user-agent") {
        attributes.push(KeyValue::new("user_agent.original", agent));
    }
    attributes
}

fn push_url(url: &Uri, attributes: &mut Vec<KeyValue>) {
    attributes.push(KeyValue::new("url.path", url.path().to_owned()));
    if let Some(scheme) = url.scheme_str() {
        attributes.push(KeyValue::new("url.scheme", scheme.to_owned()));
    }
    if let Some(query) = url.query() {
        attributes.push(KeyValue::new("url.query", redacted(query)));
    }
    push_server(url.authority(), url.scheme_str(), attributes);
}

/// The names in a query. Its values may be secrets, and so may be what has no name.
pub(crate) fn redacted(query: &str) -> String {
    let mut redacted = String::with_capacity(query.len() + 32);
    for (i, part) in query.split('&').enumerate() {
        if i > 0 {
            redacted.push('&');
        }
        if let Some((name, _)) = part.split_once('=') {
            redacted.push_str(name);
            redacted.push('=');
        }
        redacted.push_str("REDACTED");
    }
    redacted
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// In each place where a secret may be.
    const SECRET: &str = "S3CRET";

    struct Incoming {
        method: String,
        url: String,
        agent: String,
    }

    impl IncomingRequest for Incoming {
        fn method(&self) -> String {
            self.method.clone()
        }

        fn url(&self) -> String {
            self.url.clone()
        }

        fn header(&self, name: &str) -> Option<String> {
            (name == "user-agent").then(|| self.agent.clone())
        }
    }

    fn url() -> impl Strategy<Value = String> {
        let around = "[a-z0-9%=;+.~\\[\\]{}|^ -]{0,5}";
        let part = prop_oneof![
            Just(String::new()),
            around.prop_map(|around| format!("a={around}{SECRET}{around}")),
            around.prop_map(|around| format!("a={SECRET}=b{around}")),
            Just(SECRET.to_owned()),
            "[a-z]{1,3}=[a-z]{0,3}",
        ];
        let query = proptest::collection::vec(part, 0..4).prop_map(|parts| parts.join("&"));
        let user = prop_oneof![Just(String::new()), Just(format!("user:{SECRET}@"))];
        let usual = (user, "[a-z.]{1,6}(:[0-9]{1,5})?(/[a-z%]{0,4}){0,2}", query)
            .prop_map(|(user, rest, query)| format!("https://{user}{rest}?{query}#{SECRET}"));
        prop_oneof![4 => usual, 1 => any::<String>().prop_map(|text| text.replace(SECRET, ""))]
    }

    proptest! {
        /// Scenario: requests with any method, any user agent, and URLs with secrets as user info, in queries and as
        /// fragments, or URLs that are none.
        /// Guarantees: the name of the span and the method are among a few, and no attribute shows a secret.
        #[test]
        fn secret_in_the_url_of_a_request_is_in_no_attribute(
            url in url(),
            method in prop_oneof!["[A-Z]{1,7}", "GET|POST|get", any::<String>()],
            agent in any::<String>(),
        ) {
            let agent = agent.replace(SECRET, "");
            let request = Incoming { method: method.clone(), url, agent };
            let name = span_name(&method);
            prop_assert!(name == "HTTP" || METHODS.contains(&name));
            for attribute in attributes(&request) {
                let (key, value) = (attribute.key.as_str(), attribute.value.to_string());
                if key != "http.request.method_original" {
                    prop_assert!(!value.contains(SECRET), "{}: {}", key, value);
                }
                if key == "http.request.method" {
                    prop_assert!(value == "_OTHER" || METHODS.contains(&value.as_str()));
                }
            }
        }
    }
}
