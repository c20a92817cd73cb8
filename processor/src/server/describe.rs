//! What a SERVER span says of a request and of its response. Pure.

use std::borrow::Cow;

use ::http::request::Parts;
use ::http::{HeaderMap, HeaderName, Version, header};
use opentelemetry::{Array, KeyValue, StringValue, Value};

use super::Settings;
use crate::grpc;
use crate::http::{self, redacted};

/// How a span starts.
pub(super) struct Opening {
    pub(super) name: Cow<'static, str>,
    pub(super) attributes: Vec<KeyValue>,
    pub(super) grpc: bool,
    pub(super) has_route: bool,
}

impl Opening {
    pub(super) fn of(request: &Parts, settings: &Settings) -> Self {
        let grpc = grpc::is_grpc(&request.headers);
        let mut attributes = Vec::with_capacity(12);
        let (name, has_route) = match grpc {
            true => (describe_rpc(request, &mut attributes), false),
            false => describe_http(request, settings, &mut attributes),
        };
        push_server(request, &mut attributes);
        push_headers(&request.headers, &settings.request_headers, &mut attributes);
        if let Some(hook) = &settings.attributes {
            hook(request, &mut attributes);
        }
        Self {
            name,
            attributes,
            grpc,
            has_route,
        }
    }
}

fn describe_http(
    request: &Parts,
    settings: &Settings,
    attributes: &mut Vec<KeyValue>,
) -> (Cow<'static, str>, bool) {
    let method = http::push_method(request.method.as_str(), attributes);
    let uri = &request.uri;
    attributes.push(KeyValue::new("url.path", uri.path().to_owned()));
    let scheme: Value = match uri.scheme_str() {
        // A server behind a proxy cannot tell; it is what it was spoken to in.
        None | Some("http") => "http".into(),
        Some("https") => "https".into(),
        Some(other) => other.to_owned().into(),
    };
    attributes.push(KeyValue::new("url.scheme", scheme));
    if let Some(query) = uri.query() {
        attributes.push(KeyValue::new("url.query", redacted(query)));
    }
    if let Some(version) = version(request.version) {
        attributes.push(KeyValue::new("network.protocol.version", version));
    }
    if let Some(agent) = text(&request.headers, &header::USER_AGENT) {
        attributes.push(KeyValue::new("user_agent.original", agent.to_owned()));
    }
    match route(request, settings) {
        None => (method.into(), false),
        Some(route) => {
            let name = name_of(method, &route);
            attributes.push(KeyValue::new("http.route", route));
            (name.into(), true)
        }
    }
}

/// What a span is called whose route is known.
pub(super) fn name_of(method: &str, route: &str) -> String {
    [method, " ", route].concat()
}

pub(super) fn route(request: &Parts, settings: &Settings) -> Option<Cow<'static, str>> {
    let given = settings.route.as_ref().and_then(|hook| hook(request));
    given.or_else(|| matched(request))
}

#[cfg(feature = "axum")]
fn matched(request: &Parts) -> Option<Cow<'static, str>> {
    let path = request.extensions.get::<axum::extract::MatchedPath>()?;
    Some(path.as_str().to_owned().into())
}

#[cfg(not(feature = "axum"))]
fn matched(_: &Parts) -> Option<Cow<'static, str>> {
    None
}

/// Without `rpc.method`: whether there is such a method, the answer says, and an attribute that is set cannot be taken
/// back.
fn describe_rpc(request: &Parts, attributes: &mut Vec<KeyValue>) -> Cow<'static, str> {
    attributes.push(KeyValue::new("rpc.system.name", "grpc"));
    grpc::method(&request.uri).into()
}

/// By what name the server was called: `:authority`, or else the header `host`.
fn push_server(request: &Parts, attributes: &mut Vec<KeyValue>) {
    let host = match request.uri.authority() {
        Some(authority) => Some(Cow::Borrowed(authority)),
        None => text(&request.headers, &header::HOST)
            .and_then(|host| host.parse().ok())
            .map(Cow::Owned),
    };
    http::push_server(host.as_deref(), request.uri.scheme_str(), attributes);
}

fn version(version: Version) -> Option<&'static str> {
    match version {
        Version::HTTP_09 => Some("0.9"),
        Version::HTTP_10 => Some("1.0"),
        Version::HTTP_11 => Some("1.1"),
        Version::HTTP_2 => Some("2"),
        Version::HTTP_3 => Some("3"),
        _ => None,
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The headers that are to be kept, with the attribute of each.
pub(super) fn keys(
    of: &str,
    names: impl IntoIterator<Item = HeaderName>,
) -> Vec<(HeaderName, String)> {
    let key = |name: HeaderName| {
        let key = format!("http.{of}.header.{name}");
        (name, key)
    };
    names.into_iter().map(key).collect()
}

pub(super) fn push_headers(
    headers: &HeaderMap,
    wanted: &[(HeaderName, String)],
    attributes: &mut Vec<KeyValue>,
) {
    for (name, key) in wanted {
        let values = headers.get_all(name).iter();
        let values: Vec<StringValue> = values
            .filter(|value| !value.is_sensitive())
            .map(|value| {
                String::from_utf8_lossy(value.as_bytes())
                    .into_owned()
                    .into()
            })
            .collect();
        if !values.is_empty() {
            attributes.push(KeyValue::new(
                key.clone(),
                Value::Array(Array::String(values)),
            ));
        }
    }
}
