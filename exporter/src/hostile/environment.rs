//! Settings: any value in any variable, and any endpoint and header set in code.

use super::responses::wait_for;
use super::texts;
use crate::encode::Encoding;
use crate::env::{Environment, FromEnv, variables};
use crate::{Compression, DirectExporter, Signal};
use async_trait::async_trait;
use http::{HeaderMap, Request, Response, Uri};
use opentelemetry_http::{Bytes, HttpClient, HttpError};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Takes everything, and keeps where it came and with which headers.
#[derive(Clone, Debug, Default)]
struct Collector(Arc<Mutex<Option<(Uri, HeaderMap)>>>);

/// Headers set in code.
type Headers = Vec<(String, String)>;

/// Finds the value of a variable.
type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Each text is a letter and a value. Up to the number of variables, the letter says which of them has the value; those
/// behind are settings in code, for all signals or for one.
///
/// What the environment says never fails a build, and each value means what a naive reading of it means, for each signal.
pub fn property(data: &[u8]) {
    let names: Vec<_> = variables().collect();
    let mut variables = HashMap::new();
    let mut builder = DirectExporter::builder();
    let mut general_headers = Headers::new();
    let mut own_headers: HashMap<Signal, Headers> = HashMap::new();
    let mut is_all_environment = true;
    for text in texts(data) {
        let mut letters = text.chars();
        let Some(letter) = letters.next() else {
            continue;
        };
        let value = letters.as_str().to_owned();
        let letter = (letter as usize).wrapping_sub('A' as usize);
        if let Some(name) = names.get(letter) {
            variables.insert(*name, value);
            continue;
        }
        is_all_environment = false;
        let signal = Signal::ALL[letter / 4 % Signal::ALL.len()];
        let (name, content) = value.split_once('=').unwrap_or((&value, ""));
        let header = (name.trim().to_ascii_lowercase(), content.to_owned());
        builder = match letter % 4 {
            0 => builder.with_endpoint(value),
            1 => builder.with_signal(signal, |signal| signal.with_endpoint(value)),
            2 => {
                general_headers.push(header);
                builder.with_header(name, content)
            }
            _ => {
                own_headers.entry(signal).or_default().push(header);
                builder.with_signal(signal, |signal| signal.with_header(name, content))
            }
        };
    }
    let lookup = {
        let variables = variables.clone();
        move |name: &str| variables.get(name).cloned()
    };
    let read = Environment::read(&lookup);
    let trimmed = |name: &str| Some(variables.get(name)?.trim().to_owned());
    check_of_metrics(&read, &trimmed);

    let collector = Collector::default();
    let built = builder
        .with_env_lookup(lookup)
        .with_http_client(collector.clone())
        .build();
    let exporter = match built {
        Ok(exporter) => exporter,
        Err(error) => return assert!(!is_all_environment, "{error}"),
    };
    for (signal, from_env) in read.signals.iter() {
        let naive = Naive::read(signal, &trimmed);
        naive.check(from_env, &read);
        wait_for(exporter.check_signal(signal)).unwrap();
        let (uri, headers) = collector.0.lock().unwrap().take().unwrap();
        if is_all_environment {
            let by_default = format!("http://localhost:4318/v1/{signal}");
            let expected = from_env.endpoint.as_ref();
            let expected = expected.map_or(by_default, |endpoint| endpoint.uri().to_string());
            assert_eq!(uri.to_string(), expected);
        }
        check_uri(&uri);
        let own_headers = own_headers.remove(&signal).unwrap_or_default();
        let expected: BTreeMap<_, _> = naive
            .headers
            .into_iter()
            .chain(general_headers.iter().cloned())
            .chain(own_headers)
            .collect();
        for (name, value) in expected {
            let all: Vec<_> = headers.get_all(&name).iter().collect();
            assert_eq!(all, [value.as_bytes()], "{signal}: {name}");
        }
        let content_type = naive.encoding.unwrap_or_default().content_type();
        assert_eq!(headers["content-type"], content_type);
    }
}

/// What a reader of the specification would make of the variables for one signal.
struct Naive {
    signal: Signal,
    has_own_endpoint: bool,
    timeout: Option<u64>,
    compression: Option<Compression>,
    encoding: Option<Encoding>,
    headers: Headers,
    /// What is said of headers: by its place and, if it has one, its name. Nothing else of one may be shown.
    unusable: Vec<(String, String)>,
}

// ===== impl Naive =====

impl Naive {
    fn read(signal: Signal, lookup: Lookup<'_>) -> Self {
        let names = |name: &str| {
            let own = signal.as_str().to_uppercase();
            let own = format!("OTEL_EXPORTER_OTLP_{own}_{name}");
            [own, format!("OTEL_EXPORTER_OTLP_{name}")]
        };
        let is_mangled = |name: &str| lookup(name).is_some_and(|value| value.contains('\u{fffd}'));
        let value =
            |name: &str| lookup(name).filter(|value| !value.is_empty() && !is_mangled(name));
        let values = |name: &str| names(name).map(|name| value(&name)).into_iter().flatten();

        let list = names("HEADERS")
            .into_iter()
            .find_map(|name| Some((value(&name)?, name)));
        let (list, variable) = list.unwrap_or_default();
        let (headers, unusable) = naive_headers(&list);
        let unusable = unusable.into_iter().map(|shown| (variable.clone(), shown));
        let mangled = names("HEADERS").into_iter().filter(|name| is_mangled(name));
        let mangled = mangled.map(|name| (name, "not valid Unicode".to_owned()));
        let word = |value: String| value.to_ascii_lowercase();
        Self {
            signal,
            has_own_endpoint: value(&names("ENDPOINT")[0]).is_some(),
            timeout: values("TIMEOUT").find_map(number),
            compression: values("COMPRESSION")
                .map(word)
                .find_map(|word| match word.as_str() {
                    "gzip" if cfg!(feature = "gzip") => Some(Compression::Gzip),
                    "none" => Some(Compression::None),
                    _ => None,
                }),
            encoding: values("PROTOCOL")
                .map(word)
                .find_map(|word| match word.as_str() {
                    "http/protobuf" => Some(Encoding::Protobuf),
                    "http/json" if cfg!(feature = "json") => Some(Encoding::Json),
                    _ => None,
                }),
            headers,
            unusable: mangled.chain(unusable).collect(),
        }
    }

    /// Compares it with what was read, and with what `all` complains about.
    fn check(&self, read: &FromEnv, all: &Environment) {
        if let Some(endpoint) = &read.endpoint {
            check_uri(endpoint.uri());
            if !self.has_own_endpoint {
                let path = format!("/v1/{}", self.signal);
                assert!(endpoint.uri().path().ends_with(&path));
            }
        }
        assert_eq!(read.timeout, self.timeout.map(Duration::from_millis));
        assert_eq!(read.compression, self.compression);
        assert_eq!(read.encoding, self.encoding);
        let seen = read.headers.iter().map(|(name, value)| {
            assert!(value.is_sensitive());
            let value = String::from_utf8(value.as_bytes().to_vec());
            (name.to_string(), value.unwrap())
        });
        assert_eq!(seen.collect::<Vec<_>>(), self.headers);

        let own = format!("_{}_HEADERS", self.signal.as_str().to_uppercase());
        let is_its = |variable: &str| {
            let of_all = variable == "OTEL_EXPORTER_OTLP_HEADERS";
            variable.ends_with(&own)
                || of_all && self.unusable.iter().any(|(name, _)| name == variable)
        };
        let complaints = all.complaints.iter();
        let shown = complaints.filter(|complaint| is_its(&complaint.variable));
        let shown = shown.map(|complaint| (complaint.variable.clone(), complaint.value.clone()));
        let (mut shown, mut expected): (Vec<_>, _) = (shown.collect(), self.unusable.clone());
        shown.sort();
        expected.sort();
        assert_eq!(shown, expected);
    }
}

#[cfg(not(feature = "metric-export"))]
fn check_of_metrics(_: &Environment, _: Lookup<'_>) {}

#[cfg(feature = "metric-export")]
fn check_of_metrics(read: &Environment, lookup: Lookup<'_>) {
    use opentelemetry_sdk::metrics::Temporality;

    let value = lookup("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE");
    let expected = match value.unwrap_or_default().to_lowercase().as_str() {
        "cumulative" => Some(Temporality::Cumulative),
        "delta" => Some(Temporality::Delta),
        "lowmemory" => Some(Temporality::LowMemory),
        _ => None,
    };
    assert_eq!(read.temporality, expected);
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
        let variable = || prop::char::range('A', 'b');
        let word =
            "(?i) ?(gzip|none|http/protobuf|http/json|grpc|true|cumulative|delta|lowmemory) ?";
        prop_oneof![
            // Each mostly where it belongs.
            4 => ("[A-Defjn]", endpoint()).prop_map(|(letter, value)| (first(&letter), value)),
            4 => ("[E-Hcdhl]", headers()).prop_map(|(letter, value)| (first(&letter), value)),
            2 => ("[I-L]", "[+-]?[0-9]{1,22}").prop_map(|(letter, value)| (first(&letter), value)),
            2 => ("[M-Ta]", word).prop_map(|(letter, value)| (first(&letter), value)),
            1 => (variable(), word),
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
            settings in vec(setting(), 0..7),
        ) {
            let texts = settings.iter().map(|(letter, value)| format!("{letter}{value}"));
            property(texts.collect::<Vec<_>>().join("\0").as_bytes());
        }
    }
}
