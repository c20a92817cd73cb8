//! The standard `OTEL_EXPORTER_OTLP_*` variables, pure: a lookup function in, values and complaints out.
//!
//! A variable that is empty is unset. The one for a signal wins over the general one. What does not parse is ignored with
//! a [`Complaint`], and the next source is asked.

use crate::config::{Compression, parse_header};
use crate::encode::Encoding;
use crate::endpoint::Endpoint;
use crate::redact;
use crate::signal::{PerSignal, Signal};
use http::{HeaderName, HeaderValue};
#[cfg(feature = "metric-export")]
use opentelemetry_sdk::metrics::Temporality;
use percent_encoding::percent_decode_str;
use std::time::Duration;

/// Where the value of a variable is found.
pub(crate) type Lookup = dyn Fn(&str) -> Option<String>;

/// What the environment says, and what is wrong with it.
#[derive(Debug)]
pub(crate) struct Environment {
    pub(crate) signals: PerSignal<FromEnv>,
    #[cfg(feature = "metric-export")]
    pub(crate) temporality: Option<Temporality>,
    pub(crate) complaints: Vec<Complaint>,
}

/// What the environment says about one signal.
#[derive(Debug, Default)]
pub(crate) struct FromEnv {
    pub(crate) endpoint: Option<Endpoint>,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) compression: Option<Compression>,
    pub(crate) encoding: Option<Encoding>,
}

/// A variable that cannot be used as it is. Never holds a header's value or a URL's credentials.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Complaint {
    pub(crate) variable: String,
    /// The value, or the part of it that may be shown.
    pub(crate) value: String,
    pub(crate) used_instead: &'static str,
}

/// The names of a setting that has a variable for each signal and one for all of them.
struct Setting {
    of: PerSignal<&'static str>,
    general: &'static str,
}

/// Looks up variables, and notes what is wrong with them. What is wrong with a general one is said once, whichever signals
/// would have used it.
struct Reader<'a> {
    lookup: &'a dyn Fn(&str) -> Option<String>,
    complaints: Vec<Complaint>,
}

macro_rules! setting {
    ($name:literal) => {
        Setting {
            of: PerSignal::new(
                concat!("OTEL_EXPORTER_OTLP_TRACES_", $name),
                concat!("OTEL_EXPORTER_OTLP_LOGS_", $name),
                concat!("OTEL_EXPORTER_OTLP_METRICS_", $name),
            ),
            general: concat!("OTEL_EXPORTER_OTLP_", $name),
        }
    };
}

const ENDPOINT: Setting = setting!("ENDPOINT");
const HEADERS: Setting = setting!("HEADERS");
const TIMEOUT: Setting = setting!("TIMEOUT");
const COMPRESSION: Setting = setting!("COMPRESSION");
const PROTOCOL: Setting = setting!("PROTOCOL");

/// For what is not supported: TLS material of the exporter's own.
const UNSUPPORTED: [Setting; 3] = [
    setting!("CERTIFICATE"),
    setting!("CLIENT_KEY"),
    setting!("CLIENT_CERTIFICATE"),
];

const TEMPORALITY: &str = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE";

/// The SDK asks no exporter about it, so there is only its own default.
const AGGREGATION: &str = "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION";

/// Every variable that is looked up.
pub(crate) fn variables() -> impl Iterator<Item = &'static str> {
    [ENDPOINT, HEADERS, TIMEOUT, COMPRESSION, PROTOCOL]
        .into_iter()
        .chain(UNSUPPORTED)
        .flat_map(Setting::names)
        .chain([TEMPORALITY, AGGREGATION])
}

/// In place of what is not valid Unicode.
const MANGLED: char = char::REPLACEMENT_CHARACTER;

/// The value of a variable of this process. One that is not valid Unicode is not missing: it is a value that cannot be used,
/// which [`MANGLED`] tells.
pub(crate) fn of_process(variable: &str) -> Option<String> {
    let value = std::env::var_os(variable)?;
    Some(value.to_string_lossy().into_owned())
}

const NEXT_SOURCE: &str = "the next source of this setting, or its default";

// ===== impl Environment =====

impl Environment {
    pub(crate) fn read(lookup: impl Fn(&str) -> Option<String>) -> Self {
        let mut mangled = Vec::new();
        for variable in variables() {
            if lookup(variable).is_some_and(|value| value.contains(MANGLED)) {
                mangled.push(variable);
            }
        }
        let lookup = |variable: &str| {
            let value = lookup(variable).filter(|_| !mangled.contains(&variable))?;
            let value = value.trim();
            (!value.is_empty()).then(|| value.to_owned())
        };
        let mut reader = Reader {
            lookup: &lookup,
            complaints: Vec::new(),
        };
        for variable in &mangled {
            // A part of a credential would be worse than none.
            reader.complain(variable, "not valid Unicode".to_owned(), NEXT_SOURCE);
        }
        let signals = PerSignal::from_fn(|signal| reader.of_signal(signal));
        #[cfg(feature = "metric-export")]
        let temporality = reader.temporality();
        reader.check_unsupported();
        Self {
            signals,
            #[cfg(feature = "metric-export")]
            temporality,
            complaints: reader.complaints,
        }
    }
}

// ===== impl Setting =====

impl Setting {
    fn names(self) -> impl Iterator<Item = &'static str> {
        let Self { of, general } = self;
        of.into_iter().chain([general])
    }
}

// ===== impl Reader =====

impl Reader<'_> {
    fn of_signal(&mut self, signal: Signal) -> FromEnv {
        FromEnv {
            endpoint: self.endpoint(signal),
            headers: self.headers(signal),
            timeout: self.first_valid(&TIMEOUT, signal, |value| {
                value.parse().ok().map(Duration::from_millis)
            }),
            compression: self.first_valid(&COMPRESSION, signal, parse_compression),
            encoding: self.first_valid(&PROTOCOL, signal, parse_encoding),
        }
    }

    fn endpoint(&mut self, signal: Signal) -> Option<Endpoint> {
        for (variable, is_base) in [(ENDPOINT.of[signal], false), (ENDPOINT.general, true)] {
            let Some(value) = (self.lookup)(variable) else {
                continue;
            };
            let parsed = match is_base {
                true => Endpoint::parse_base(&value, signal),
                false => Endpoint::parse(&value),
            };
            match parsed {
                Ok(endpoint) => return Some(endpoint),
                Err(_) => self.complain(variable, redact::url(&value), NEXT_SOURCE),
            }
        }
        None
    }

    fn headers(&mut self, signal: Signal) -> Vec<(HeaderName, HeaderValue)> {
        let found = [HEADERS.of[signal], HEADERS.general]
            .into_iter()
            .find_map(|variable| Some((variable, (self.lookup)(variable)?)));
        let Some((variable, list)) = found else {
            return Vec::new();
        };
        let mut headers = Vec::new();
        for (place, entry) in list.split(',').map(str::trim).enumerate() {
            if entry.is_empty() {
                continue;
            }
            match parse_entry(entry) {
                Ok(header) => headers.push(header),
                Err(name) => {
                    let shown = name.map_or_else(
                        || format!("entry {}", place + 1),
                        |name| format!("entry {} ({name})", place + 1),
                    );
                    self.complain(variable, shown, "the other entries");
                }
            }
        }
        headers
    }

    #[cfg(feature = "metric-export")]
    fn temporality(&mut self) -> Option<Temporality> {
        self.check_aggregation();
        let value = (self.lookup)(TEMPORALITY)?;
        let parsed = value.parse().ok();
        if parsed.is_none() {
            self.complain(TEMPORALITY, value, NEXT_SOURCE);
        }
        parsed
    }

    #[cfg(feature = "metric-export")]
    fn check_aggregation(&mut self) {
        const ONLY: &str = "explicit_bucket_histogram";
        let value = (self.lookup)(AGGREGATION);
        if let Some(value) = value.filter(|value| !value.eq_ignore_ascii_case(ONLY)) {
            let used = "explicit_bucket_histogram; a view can set another for its instruments";
            self.complain(AGGREGATION, value, used);
        }
    }

    fn check_unsupported(&mut self) {
        let set: Vec<_> = UNSUPPORTED
            .into_iter()
            .flat_map(Setting::names)
            .filter(|variable| (self.lookup)(variable).is_some())
            .collect();
        if !set.is_empty() {
            let used = "the HTTP client's own TLS settings; give one with with_http_client";
            self.complain(&set.join(", "), "not supported".to_owned(), used);
        }
    }

    /// The value of the first variable of `setting` that `parse` accepts.
    fn first_valid<T>(
        &mut self,
        setting: &Setting,
        signal: Signal,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        for variable in [setting.of[signal], setting.general] {
            let Some(value) = (self.lookup)(variable) else {
                continue;
            };
            match parse(&value) {
                Some(parsed) => return Some(parsed),
                None => self.complain(variable, value, NEXT_SOURCE),
            }
        }
        None
    }

    fn complain(&mut self, variable: &str, value: String, used_instead: &'static str) {
        let complaint = Complaint {
            variable: variable.to_owned(),
            value,
            used_instead,
        };
        if !self.complaints.contains(&complaint) {
            self.complaints.push(complaint);
        }
    }
}

/// `name=value`, the value percent-encoded. An error holds the name if there is one that may be shown: text without
/// `=` may be the second half of a secret.
///
/// The specification takes the syntax of W3C Baggage but not its metadata, so a semicolon is part of the value.
fn parse_entry(entry: &str) -> Result<(HeaderName, HeaderValue), Option<HeaderName>> {
    let (name, value) = entry.split_once('=').ok_or(None)?;
    let name: HeaderName = name.trim().parse().map_err(|_| None)?;
    let value = percent_decode_str(value.trim())
        .decode_utf8()
        .map_err(|_| Some(name.clone()))?;
    parse_header(name.as_str(), &value).map_err(|_| Some(name))
}

fn parse_compression(value: &str) -> Option<Compression> {
    match value.to_ascii_lowercase().as_str() {
        "none" => Some(Compression::None),
        "gzip" if cfg!(feature = "gzip") => Some(Compression::Gzip),
        _ => None,
    }
}

fn parse_encoding(value: &str) -> Option<Encoding> {
    match value.to_ascii_lowercase().as_str() {
        "http/protobuf" => Some(Encoding::Protobuf),
        "http/json" if cfg!(feature = "json") => Some(Encoding::Json),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Environment {
        let find = |name: &str| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        Environment::read(find)
    }

    fn complaints(env: &Environment) -> Vec<(&str, &str)> {
        let each = env.complaints.iter();
        each.map(|c| (c.variable.as_str(), c.value.as_str()))
            .collect()
    }

    /// The variable of one signal, or the general one.
    fn variable(signal: Option<Signal>, name: &str) -> String {
        match signal {
            Some(signal) => format!(
                "OTEL_EXPORTER_OTLP_{}_{name}",
                signal.as_str().to_uppercase()
            ),
            None => format!("OTEL_EXPORTER_OTLP_{name}"),
        }
    }

    /// Scenario: endpoints in the variable of each signal and in the general one, in every state.
    /// Guarantees: the one for the signal is used as it is and wins unless it is empty or unusable; the general one gets
    /// the path of the signal behind its own; what is unusable is complained about without its credentials.
    #[test]
    fn endpoint_follows_the_specification() {
        type Case<'a> = (&'a str, &'a str, Option<&'a str>, &'a [&'a str]);
        let cases: [Case<'_>; 8] = [
            ("", "", None, &[]),
            ("  ", "http://h", Some("http://h/v1/SIGNAL"), &[]),
            ("http://t/x", "http://h", Some("http://t/x"), &[]),
            ("http://t", "http://h", Some("http://t/"), &[]),
            (" http://t/x ", "", Some("http://t/x"), &[]),
            (
                "t:4318",
                "http://h/p/",
                Some("http://h/p/v1/SIGNAL"),
                &["t:4318"],
            ),
            ("ftp://t", "h", None, &["ftp://t", "h"]),
            ("http://u:secret@t/?k=secret", "", None, &["http://t/"]),
        ];
        let general = variable(None, "ENDPOINT");
        for signal in Signal::ALL {
            let own = variable(Some(*signal), "ENDPOINT");
            for (first, second, expected, complained) in cases {
                let env = read(&[(&own, first), (&general, second)]);
                let endpoint = env.signals[*signal].endpoint.as_ref();
                let uri = endpoint.map(|endpoint| endpoint.uri().to_string());
                let expected = expected.map(|uri| uri.replace("SIGNAL", signal.as_str()));
                assert_eq!(uri, expected, "{first:?} {second:?}");
                let variables = [own.as_str(), general.as_str()];
                let complained: Vec<_> = variables
                    .into_iter()
                    .zip(complained.iter().copied())
                    .collect();
                assert_eq!(
                    sorted(complaints(&env)),
                    sorted(complained),
                    "{first:?} {second:?}"
                );
            }
        }
    }

    fn sorted<'a>(mut complaints: Vec<(&'a str, &'a str)>) -> Vec<(&'a str, &'a str)> {
        complaints.sort_unstable();
        complaints
    }

    /// Scenario: each setting for one signal only, and in general.
    /// Guarantees: the other signals have the general one, or none.
    #[test]
    fn variable_of_a_signal_is_for_that_signal_only() {
        for signal in Signal::ALL {
            let own = |name: &str| variable(Some(*signal), name);
            let env = read(&[
                (&own("ENDPOINT"), "http://own"),
                (&own("HEADERS"), "own=1"),
                (&own("TIMEOUT"), "1"),
                (&own("COMPRESSION"), "none"),
                (&own("PROTOCOL"), "http/protobuf"),
                ("OTEL_EXPORTER_OTLP_HEADERS", "general=1"),
                ("OTEL_EXPORTER_OTLP_TIMEOUT", "2"),
            ]);
            assert_eq!(complaints(&env), []);
            for (other, read) in env.signals.iter() {
                let is_own = other == *signal;
                let header = if is_own { "own" } else { "general" };
                assert_eq!(read.headers[0].0, header, "{signal} {other}");
                let milliseconds = if is_own { 1 } else { 2 };
                assert_eq!(read.timeout, Some(Duration::from_millis(milliseconds)));
                assert_eq!(read.endpoint.is_some(), is_own);
                assert_eq!(read.compression.is_some(), is_own);
                assert_eq!(read.encoding.is_some(), is_own);
            }
        }
    }

    /// Scenario: a general variable that no signal can use, and one that no signal has to use.
    /// Guarantees: the first is complained about once, the second not at all.
    #[test]
    fn general_variable_is_complained_about_once_and_only_if_it_is_needed() {
        let env = read(&[
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd"),
            ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "none"),
            ("OTEL_EXPORTER_OTLP_LOGS_COMPRESSION", "none"),
            ("OTEL_EXPORTER_OTLP_METRICS_COMPRESSION", "none"),
        ]);
        assert_eq!(complaints(&env), [("OTEL_EXPORTER_OTLP_TIMEOUT", "soon")]);
    }

    /// Scenario: timeouts in both variables.
    /// Guarantees: milliseconds; 0 stays 0; what is no number is complained about and the other variable is used.
    #[test]
    fn timeout_follows_the_specification() {
        let cases = [
            ("", "", None, 0),
            ("1500", "9", Some(1500), 0),
            ("", "9", Some(9), 0),
            ("0", "9", Some(0), 0),
            ("10s", "9", Some(9), 1),
            ("-1", "1.5", None, 2),
        ];
        let general = variable(None, "TIMEOUT");
        for signal in Signal::ALL {
            let own = variable(Some(*signal), "TIMEOUT");
            for (first, second, expected, complained) in cases {
                let env = read(&[(&own, first), (&general, second)]);
                assert_eq!(
                    env.signals[*signal].timeout,
                    expected.map(Duration::from_millis),
                    "{first:?} {second:?}"
                );
                assert_eq!(env.complaints.len(), complained, "{first:?} {second:?}");
            }
        }
    }

    /// Scenario: every known value of compression and protocol, and unknown ones.
    /// Guarantees: case does not matter; unknown values are complained about with their variable and value.
    #[test]
    fn unknown_words_are_complained_about() {
        let gzip = cfg!(feature = "gzip").then_some(Compression::Gzip);
        let json = cfg!(feature = "json").then_some(Encoding::Json);
        for signal in Signal::ALL {
            let check = |name: &str, value: &str, is_known: bool| {
                let own = variable(Some(*signal), name);
                let mut env = read(&[(&own, value)]);
                let complaint = (!is_known).then_some((own.as_str(), value));
                assert_eq!(complaints(&env), Vec::from_iter(complaint));
                std::mem::take(&mut env.signals[*signal])
            };
            let compressions = [
                ("none", Some(Compression::None)),
                ("GZIP", gzip),
                ("zstd", None),
            ];
            for (value, expected) in compressions {
                let read = check("COMPRESSION", value, expected.is_some());
                assert_eq!(read.compression, expected, "{value}");
            }
            let encodings = [
                ("http/protobuf", Some(Encoding::Protobuf)),
                ("HTTP/json", json),
                ("grpc", None),
            ];
            for (value, expected) in encodings {
                let read = check("PROTOCOL", value, expected.is_some());
                assert_eq!(read.encoding, expected, "{value}");
            }
        }
    }

    /// Scenario: every preference of temporality, in any case, and others; and each default aggregation of histograms.
    /// Guarantees: the three are known, and what cannot be used is complained about.
    #[cfg(feature = "metric-export")]
    #[test]
    fn preferences_for_metrics_follow_the_specification() {
        let temporalities = [
            ("cumulative", Some(Temporality::Cumulative)),
            ("Delta", Some(Temporality::Delta)),
            ("LOWMEMORY", Some(Temporality::LowMemory)),
            ("", None),
        ];
        for (value, expected) in temporalities {
            let env = read(&[(TEMPORALITY, value)]);
            assert_eq!(env.temporality, expected);
            assert_eq!(complaints(&env), []);
        }
        let env = read(&[
            (TEMPORALITY, "low"),
            (AGGREGATION, "Explicit_Bucket_Histogram"),
        ]);
        assert_eq!(env.temporality, None);
        assert_eq!(complaints(&env), [(TEMPORALITY, "low")]);
        let exponential = "base2_exponential_bucket_histogram";
        let env = read(&[(AGGREGATION, exponential)]);
        assert_eq!(complaints(&env), [(AGGREGATION, exponential)]);
    }

    fn headers(list: &str) -> (Vec<String>, Vec<String>) {
        let env = read(&[("OTEL_EXPORTER_OTLP_HEADERS", list)]);
        let shown = |(name, value): &(HeaderName, HeaderValue)| {
            format!("{name}={}", value.to_str().unwrap())
        };
        let read = &env.signals[Signal::Traces];
        for (_, other) in env.signals.iter() {
            assert_eq!(other.headers, read.headers);
        }
        (
            read.headers.iter().map(shown).collect(),
            env.complaints.into_iter().map(|c| c.value).collect(),
        )
    }

    /// Scenario: header lists, well formed and not.
    /// Guarantees: values are percent-decoded, bad entries are named by place and key only, the others are kept.
    #[test]
    fn headers_are_a_percent_encoded_list_and_bad_entries_stand_alone() {
        type Case<'a> = (&'a str, &'a [&'a str], &'a [&'a str]);
        let cases: [Case<'_>; 12] = [
            ("k=v", &["k=v"], &[]),
            (" K = v , k2=v2 ", &["k=v", "k2=v2"], &[]),
            ("k=v,,", &["k=v"], &[]),
            (
                "authorization=Bearer%20a%2Cb",
                &["authorization=Bearer a,b"],
                &[],
            ),
            ("k=a+b%3D==", &["k=a+b==="], &[]),
            ("k=a;p=1", &["k=a;p=1"], &[]),
            ("k=100%", &["k=100%"], &[]),
            ("s3cret,k=v", &["k=v"], &["entry 1"]),
            ("a b=s3cret,k=v", &["k=v"], &["entry 1"]),
            ("k=v,x=s3cret%0A", &["k=v"], &["entry 2 (x)"]),
            ("x=%FFs3cret,y=", &[], &["entry 1 (x)", "entry 2 (y)"]),
            (
                "Content-Type=s3cret,k=v",
                &["k=v"],
                &["entry 1 (content-type)"],
            ),
        ];
        for (list, kept, complained) in cases {
            let (headers, complaints) = headers(list);
            assert_eq!(headers, kept, "{list:?}");
            assert_eq!(complaints, complained, "{list:?}");
        }
    }

    /// Scenario: header variables for a signal and in general.
    /// Guarantees: the one for the signal replaces the other, unless it is empty; values are marked sensitive.
    #[test]
    fn headers_for_a_signal_win_unless_they_are_empty() {
        for signal in Signal::ALL {
            let own = variable(Some(*signal), "HEADERS");
            for (value, expected) in [("a=1", "a"), ("", "b"), (" ", "b")] {
                let env = read(&[(&own, value), ("OTEL_EXPORTER_OTLP_HEADERS", "b=2")]);
                let [(name, value)] = env.signals[*signal].headers.as_slice() else {
                    panic!("one header: {env:?}");
                };
                assert_eq!(name, expected);
                assert!(value.is_sensitive());
            }
        }
    }

    /// Scenario: the environment is read by somebody who notes what is asked for.
    /// Guarantees: the list of variables is complete, and holds no other.
    #[test]
    fn list_of_variables_is_what_is_looked_up() {
        let asked = std::cell::RefCell::new(std::collections::BTreeSet::new());
        Environment::read(|name| {
            asked.borrow_mut().insert(name.to_owned());
            None
        });
        assert_eq!(asked.into_inner(), variables().map(str::to_owned).collect());
    }

    /// Scenario: a variable of the process is not valid Unicode. This test runs itself again in such an environment.
    /// Guarantees: it is complained about, without its value, and no part of it is used.
    #[cfg(unix)]
    #[test]
    fn variable_that_is_not_valid_unicode_is_complained_about() {
        use std::os::unix::ffi::OsStrExt as _;

        const VARIABLE: &str = "OTEL_EXPORTER_OTLP_HEADERS";
        let wrong = std::ffi::OsStr::from_bytes(b"authorization=Bearer%20abc\xff");
        if std::env::var_os(VARIABLE).as_deref() == Some(wrong) {
            let env = Environment::read(of_process);
            assert_eq!(complaints(&env), [(VARIABLE, "not valid Unicode")]);
            assert!(env.signals.iter().all(|(_, read)| read.headers.is_empty()));
            return;
        }
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "env::tests::variable_that_is_not_valid_unicode_is_complained_about",
            ])
            .env(VARIABLE, wrong)
            .stdout(std::process::Stdio::null())
            .status();
        assert!(status.unwrap().success());
    }

    /// Scenario: certificates are configured.
    /// Guarantees: one complaint names every variable that has no effect.
    #[test]
    fn tls_material_is_complained_about_once() {
        let env = read(&[
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca.pem"),
            ("OTEL_EXPORTER_OTLP_LOGS_CLIENT_KEY", "/key.pem"),
        ]);
        let variables = "OTEL_EXPORTER_OTLP_CERTIFICATE, OTEL_EXPORTER_OTLP_LOGS_CLIENT_KEY";
        assert_eq!(complaints(&env), [(variables, "not supported")]);
    }
}
