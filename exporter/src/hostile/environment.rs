//! Settings: any value in any variable, and any endpoint and header set in code.

use super::encoding::plain_span;
use super::responses::wait_for;
use super::texts;
use crate::env::{Environment, variables};
use crate::{Compression, DirectExporter};
use async_trait::async_trait;
use http::{HeaderMap, Request, Response, Uri};
use opentelemetry_http::{Bytes, HttpClient, HttpError};
use opentelemetry_sdk::trace::SpanExporter;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Takes everything, and keeps where it came and with which headers.
#[derive(Clone, Debug, Default)]
struct Collector(Arc<Mutex<Option<(Uri, HeaderMap)>>>);

/// Each text is a letter and a value. Up to the number of variables, the letter says which of them has the value; those
/// behind are settings in code.
///
/// What the environment says never fails a build, and each value means what a naive reading of it means.
pub fn property(data: &[u8]) {
    let names: Vec<_> = variables().collect();
    let mut variables = HashMap::new();
    let mut builder = DirectExporter::builder();
    let mut in_code = Vec::new();
    let mut is_all_environment = true;
    for text in texts(data) {
        let mut letters = text.chars();
        let Some(letter) = letters.next() else {
            continue;
        };
        let value = letters.as_str().to_owned();
        let letter = (letter as usize).wrapping_sub('a' as usize);
        if let Some(name) = names.get(letter) {
            variables.insert(*name, value);
            continue;
        }
        is_all_environment = false;
        builder = match letter % 3 {
            0 => builder.with_endpoint(value),
            1 => builder.with_traces_endpoint(value),
            _ => {
                let (name, value) = value.split_once('=').unwrap_or((&value, ""));
                in_code.push((name.trim().to_ascii_lowercase(), value.to_owned()));
                builder.with_header(name, value)
            }
        };
    }
    let lookup = {
        let variables = variables.clone();
        move |name: &str| variables.get(name).cloned()
    };
    let read = Environment::read(&lookup);
    let expected = check(&read, &|name| Some(variables.get(name)?.trim().to_owned()));

    let collector = Collector::default();
    let built = builder
        .with_env_lookup(lookup)
        .with_http_client(collector.clone())
        .build();
    let exporter = match built {
        Ok(exporter) => exporter,
        Err(error) => return assert!(!is_all_environment, "{error}"),
    };
    wait_for(exporter.export(vec![plain_span("span".to_owned())])).unwrap();
    let (uri, headers) = collector.0.lock().unwrap().take().unwrap();
    if is_all_environment {
        let by_default = Uri::from_static("http://localhost:4318/v1/traces");
        assert_eq!(uri, read.endpoint.map_or(by_default, |e| e.uri().clone()));
    }
    check_uri(&uri);
    let expected: BTreeMap<_, _> = expected.into_iter().chain(in_code).collect();
    for (name, value) in expected {
        let all: Vec<_> = headers.get_all(&name).iter().collect();
        assert_eq!(all, [value.as_bytes()], "{name}");
    }
}

/// Compares what was read with what `lookup` finds, and returns the headers that are to be sent.
fn check(read: &Environment, lookup: &dyn Fn(&str) -> Option<String>) -> Vec<(String, String)> {
    let is_mangled = |name: &str| lookup(name).is_some_and(|value| value.contains('\u{fffd}'));
    let value = |name: &str| lookup(name).filter(|value| !value.is_empty() && !is_mangled(name));
    let first = |name: &str| {
        let [traces, general] =
            ["TRACES_", ""].map(|kind| format!("OTEL_EXPORTER_OTLP_{kind}{name}"));
        (value(&traces), value(&general))
    };
    if let Some(endpoint) = &read.endpoint {
        check_uri(endpoint.uri());
        if first("ENDPOINT").0.is_none() {
            assert!(endpoint.uri().path().ends_with("/v1/traces"));
        }
    }
    let (traces, general) = first("TIMEOUT");
    let milliseconds = [traces, general].into_iter().flatten().find_map(number);
    assert_eq!(read.timeout, milliseconds.map(Duration::from_millis));

    let (traces, general) = first("COMPRESSION");
    let mut compressions = [traces, general].into_iter().flatten();
    let compression = compressions.find_map(|text| match text.to_ascii_lowercase().as_str() {
        "gzip" if cfg!(feature = "gzip") => Some(Compression::Gzip),
        "none" => Some(Compression::None),
        _ => None,
    });
    assert_eq!(read.compression, compression);

    let (traces, general) = first("HEADERS");
    let list = traces.or(general).unwrap_or_default();
    let (headers, unusable) = naive_headers(&list);
    let seen = read.headers.iter().map(|(name, value)| {
        assert!(value.is_sensitive());
        let value = String::from_utf8(value.as_bytes().to_vec());
        (name.to_string(), value.unwrap())
    });
    assert_eq!(seen.collect::<Vec<_>>(), headers, "{list:?}");

    let complaints = read.complaints.iter();
    let of_headers = complaints.filter(|complaint| complaint.variable.ends_with("_HEADERS"));
    let shown: Vec<_> = of_headers
        .map(|complaint| complaint.value.as_str())
        .collect();
    // By its place and, if it has one, its name: nothing else of it may be shown.
    let mangled = ["TRACES_", ""].map(|kind| format!("OTEL_EXPORTER_OTLP_{kind}HEADERS"));
    let mangled = mangled.iter().filter(|name| is_mangled(name));
    let mangled = mangled.map(|_| "not valid Unicode".to_owned());
    let expected: Vec<_> = mangled.chain(unusable).collect();
    assert_eq!(shown, expected, "{list:?}");
    headers
}

fn check_uri(uri: &Uri) {
    assert!(matches!(uri.scheme_str(), Some("http" | "https")), "{uri}");
    assert!(!uri.host().unwrap().is_empty(), "{uri}");
    assert!(!uri.authority().unwrap().as_str().contains('@'), "{uri}");
}

fn number(text: String) -> Option<u64> {
    let digits = text.strip_prefix('+').unwrap_or(&text);
    let mut sum = 0_u64;
    for c in digits.chars() {
        sum = sum.checked_mul(10)?.checked_add(c.to_digit(10)?.into())?;
    }
    (!digits.is_empty()).then_some(sum)
}

/// The headers of a list, and what is said of entries that are none.
fn naive_headers(list: &str) -> (Vec<(String, String)>, Vec<String>) {
    const RESERVED: [&str; 4] = [
        "content-type",
        "content-encoding",
        "content-length",
        "transfer-encoding",
    ];
    let (mut headers, mut unusable) = (Vec::new(), Vec::new());
    for (place, entry) in (1..).zip(list.split(',')) {
        if entry.trim().is_empty() {
            continue;
        }
        let is_name = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        let name_and_value = entry.split_once('=').and_then(|(name, value)| {
            let name = name.trim().to_ascii_lowercase();
            (!name.is_empty() && name.chars().all(is_name)).then_some((name, value.trim()))
        });
        let Some((name, value)) = name_and_value else {
            unusable.push(format!("entry {place}"));
            continue;
        };
        match percent_decoded(value) {
            Some(value) if !value.is_empty() && !RESERVED.contains(&name.as_str()) => {
                headers.push((name, value));
            }
            _ => unusable.push(format!("entry {place} ({name})")),
        }
    }
    (headers, unusable)
}

/// What it is decoded, if that is text that a header can carry.
fn percent_decoded(text: &str) -> Option<String> {
    let text = text.as_bytes();
    let mut decoded = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let hex = |at: usize| char::from(*text.get(at)?).to_digit(16);
        match (text[at], hex(at + 1), hex(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                decoded.push((high * 16 + low) as u8);
                at += 3;
            }
            (byte, ..) => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    let text = String::from_utf8(decoded).ok()?;
    let is_fit = |byte: u8| byte == b'\t' || !byte.is_ascii_control();
    text.bytes().all(is_fit).then_some(text)
}

// ===== impl Collector =====

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (parts, _) = request.into_parts();
        *self.0.lock().unwrap() = Some((parts.uri, parts.headers));
        Ok(Response::new(Bytes::new()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn endpoint() -> impl Strategy<Value = String> {
        prop_oneof![
            3 => "https?://([a-z]{1,2}(:[a-z]?)?@)?[a-z]{1,5}(:[0-9]{0,6})?(/[a-z]{0,3}){0,3}(\\?[a-z=&@]{0,6})?(#[a-z]{0,3})?",
            2 => "(http|https|ftp)?:?/{0,3}([a-z]{0,3}(:[a-z]{0,3})?@)?[a-z\\[\\]:.]{0,6}[/?#*]{0,3}[ -~]{0,6}",
            1 => any::<String>(),
        ]
    }

    fn headers() -> impl Strategy<Value = String> {
        let name = prop_oneof![3 => "[a-zA-Z-]{1,8}", 1 => "[ -~]{0,6}", 2 => "a|User-Agent|Content-Type|authorization"];
        let value = prop_oneof![
            3 => "([a-z +=;]|%[0-7][0-9a-fA-F]){0,8}",
            1 => "([a-z%]|%[0-9a-fg]{0,2}){0,8}",
            1 => "[ -~é\t]{0,8}",
        ];
        let entry = (name, value).prop_map(|(name, value)| format!("{name}={value}"));
        let entry = prop_oneof![5 => entry, 1 => "[a-z %=]{0,6}"];
        vec(entry, 0..5).prop_map(|entries| entries.join(","))
    }

    fn setting() -> impl Strategy<Value = (char, String)> {
        let variable = || prop::char::range('a', 'p');
        let word = "(?i) ?(gzip|none|http/protobuf|grpc|true) ?";
        prop_oneof![
            // Each mostly where it belongs.
            4 => ("[abqs]", endpoint()).prop_map(|(letter, value)| (first(&letter), value)),
            4 => ("[cdr]", headers()).prop_map(|(letter, value)| (first(&letter), value)),
            2 => (variable(), "[+-]?[0-9]{1,22}"),
            2 => (variable(), word),
            1 => (variable(), "[ \t\r\n]{0,3}"),
            1 => (any::<char>(), any::<String>()),
        ]
    }

    fn first(text: &str) -> char {
        text.chars().next().unwrap_or('a')
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]

        /// Scenario: any variables with values of all kinds, good, odd and bad, also those of other variables, and
        /// endpoints and headers set in code.
        /// Guarantees: an environment never fails a build; each value means what a naive reading means, and is sent that
        /// way; a header that cannot be used is named by its place and name only.
        #[test]
        fn each_setting_means_what_a_naive_reading_means(
            settings in vec(setting(), 0..5),
        ) {
            let texts = settings.iter().map(|(letter, value)| format!("{letter}{value}"));
            property(texts.collect::<Vec<_>>().join("\0").as_bytes());
        }
    }
}
