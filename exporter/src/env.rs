//! The standard `OTEL_EXPORTER_OTLP_*` variables, pure: a lookup function in, values and complaints out.
//!
//! A variable that is empty is unset. The one for traces wins over the general one. What does not parse is ignored with
//! a [`Complaint`], and the next source is asked.

use crate::config::{Compression, parse_header};
use crate::endpoint::Endpoint;
use crate::redact;
use http::{HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;
use std::time::Duration;

/// Variables for what is not supported: TLS material of the exporter's own.
const UNSUPPORTED: [&str; 6] = [
    "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE",
    "OTEL_EXPORTER_OTLP_CERTIFICATE",
    "OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY",
    "OTEL_EXPORTER_OTLP_CLIENT_KEY",
    "OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE",
    "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
];

/// Where the value of a variable is found.
pub(crate) type Lookup = dyn Fn(&str) -> Option<String>;

type ParseEndpoint = fn(&str) -> Result<Endpoint, &'static str>;

/// What the environment says, and what is wrong with it.
#[derive(Debug, Default)]
pub(crate) struct Environment {
    pub(crate) endpoint: Option<Endpoint>,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) compression: Option<Compression>,
    pub(crate) complaints: Vec<Complaint>,
}

/// A variable that cannot be used as it is. Never holds a header's value or a URL's credentials.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Complaint {
    pub(crate) variable: String,
    /// The value, or the part of it that may be shown.
    pub(crate) value: String,
    pub(crate) used_instead: &'static str,
}

/// A setting with a variable for traces and one for all signals.
struct Pair {
    traces: &'static str,
    general: &'static str,
}

const ENDPOINT: Pair = Pair {
    traces: "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    general: "OTEL_EXPORTER_OTLP_ENDPOINT",
};
const HEADERS: Pair = Pair {
    traces: "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
    general: "OTEL_EXPORTER_OTLP_HEADERS",
};
const TIMEOUT: Pair = Pair {
    traces: "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
    general: "OTEL_EXPORTER_OTLP_TIMEOUT",
};
const COMPRESSION: Pair = Pair {
    traces: "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION",
    general: "OTEL_EXPORTER_OTLP_COMPRESSION",
};
const PROTOCOL: Pair = Pair {
    traces: "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
    general: "OTEL_EXPORTER_OTLP_PROTOCOL",
};

/// Every variable that is looked up.
pub(crate) fn variables() -> impl Iterator<Item = &'static str> {
    [&ENDPOINT, &HEADERS, &TIMEOUT, &COMPRESSION, &PROTOCOL]
        .into_iter()
        .flat_map(|pair| [pair.traces, pair.general])
        .chain(UNSUPPORTED)
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
        let mut env = Self::default();
        let mut mangled = Vec::new();
        for variable in variables() {
            if lookup(variable).is_some_and(|value| value.contains(MANGLED)) {
                // A part of a credential would be worse than none.
                env.complain(variable, "not valid Unicode".to_owned(), NEXT_SOURCE);
                mangled.push(variable);
            }
        }
        let lookup = |variable: &str| {
            let value = lookup(variable).filter(|_| !mangled.contains(&variable))?;
            let value = value.trim();
            (!value.is_empty()).then(|| value.to_owned())
        };
        env.read_endpoint(&lookup);
        env.read_headers(&lookup);
        env.timeout = env.first_valid(&TIMEOUT, &lookup, NEXT_SOURCE, |value| {
            value.parse().ok().map(Duration::from_millis)
        });
        env.compression = env.first_valid(&COMPRESSION, &lookup, NEXT_SOURCE, parse_compression);
        env.check_protocol(&lookup);
        env.check_unsupported(&lookup);
        env
    }

    fn read_endpoint(&mut self, lookup: &impl Fn(&str) -> Option<String>) {
        let parsers: [(&str, ParseEndpoint); 2] = [
            (ENDPOINT.traces, Endpoint::parse),
            (ENDPOINT.general, Endpoint::parse_base),
        ];
        for (variable, parse) in parsers {
            let Some(value) = lookup(variable) else {
                continue;
            };
            match parse(&value) {
                Ok(endpoint) => {
                    self.endpoint = Some(endpoint);
                    return;
                }
                Err(_) => self.complain(variable, redact::url(&value), NEXT_SOURCE),
            }
        }
    }

    fn read_headers(&mut self, lookup: &impl Fn(&str) -> Option<String>) {
        let found = [HEADERS.traces, HEADERS.general]
            .into_iter()
            .find_map(|variable| Some((variable, lookup(variable)?)));
        let Some((variable, list)) = found else {
            return;
        };
        for (place, entry) in list.split(',').map(str::trim).enumerate() {
            if entry.is_empty() {
                continue;
            }
            match parse_entry(entry) {
                Ok(header) => self.headers.push(header),
                Err(name) => {
                    let shown = name.map_or_else(
                        || format!("entry {}", place + 1),
                        |name| format!("entry {} ({name})", place + 1),
                    );
                    self.complain(variable, shown, "the other entries");
                }
            }
        }
    }

    fn check_protocol(&mut self, lookup: &impl Fn(&str) -> Option<String>) {
        self.first_valid(&PROTOCOL, lookup, "http/protobuf", |value| {
            value.eq_ignore_ascii_case("http/protobuf").then_some(())
        });
    }

    fn check_unsupported(&mut self, lookup: &impl Fn(&str) -> Option<String>) {
        let set: Vec<_> = UNSUPPORTED
            .into_iter()
            .filter(|variable| lookup(variable).is_some())
            .collect();
        if !set.is_empty() {
            let used = "the HTTP client's own TLS settings; give one with with_http_client";
            self.complain(&set.join(", "), "not supported".to_owned(), used);
        }
    }

    /// The value of the first variable of `pair` that `parse` accepts.
    fn first_valid<T>(
        &mut self,
        pair: &Pair,
        lookup: &impl Fn(&str) -> Option<String>,
        used_instead: &'static str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        for variable in [pair.traces, pair.general] {
            let Some(value) = lookup(variable) else {
                continue;
            };
            match parse(&value) {
                Some(parsed) => return Some(parsed),
                None => self.complain(variable, value, used_instead),
            }
        }
        None
    }

    fn complain(&mut self, variable: &str, value: String, used_instead: &'static str) {
        self.complaints.push(Complaint {
            variable: variable.to_owned(),
            value,
            used_instead,
        });
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

    const TRACES: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
    const GENERAL: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

    /// Scenario: endpoints in both variables, in every state.
    /// Guarantees: the one for traces is used as it is and wins unless it is empty or unusable; the general one gets
    /// `v1/traces` behind its own path; what is unusable is complained about without its credentials.
    #[test]
    fn endpoint_follows_the_specification() {
        type Case<'a> = (&'a str, &'a str, Option<&'a str>, &'a [(&'a str, &'a str)]);
        let cases: [Case<'_>; 8] = [
            ("", "", None, &[]),
            ("  ", "http://h", Some("http://h/v1/traces"), &[]),
            ("http://t/x", "http://h", Some("http://t/x"), &[]),
            ("http://t", "http://h", Some("http://t/"), &[]),
            (" http://t/x ", "", Some("http://t/x"), &[]),
            (
                "t:4318",
                "http://h/p/",
                Some("http://h/p/v1/traces"),
                &[(TRACES, "t:4318")],
            ),
            ("ftp://t", "h", None, &[(TRACES, "ftp://t"), (GENERAL, "h")]),
            (
                "http://u:secret@t/?k=secret",
                "",
                None,
                &[(TRACES, "http://t/")],
            ),
        ];
        for (traces, general, expected, complained) in cases {
            let env = read(&[(TRACES, traces), (GENERAL, general)]);
            let uri = env.endpoint.as_ref().map(|e| e.uri().to_string());
            assert_eq!(uri.as_deref(), expected, "{traces:?} {general:?}");
            assert_eq!(complaints(&env), complained, "{traces:?} {general:?}");
        }
    }

    /// Scenario: timeouts in both variables.
    /// Guarantees: milliseconds; 0 stays 0; what is no number is complained about and the other variable is used.
    #[test]
    fn timeout_follows_the_specification() {
        let traces = "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT";
        let general = "OTEL_EXPORTER_OTLP_TIMEOUT";
        let cases = [
            ("", "", None, 0),
            ("1500", "9", Some(1500), 0),
            ("", "9", Some(9), 0),
            ("0", "9", Some(0), 0),
            ("10s", "9", Some(9), 1),
            ("-1", "1.5", None, 2),
        ];
        for (first, second, expected, complained) in cases {
            let env = read(&[(traces, first), (general, second)]);
            assert_eq!(
                env.timeout,
                expected.map(Duration::from_millis),
                "{first:?} {second:?}"
            );
            assert_eq!(env.complaints.len(), complained, "{first:?} {second:?}");
        }
    }

    /// Scenario: every known value of compression and protocol, and unknown ones.
    /// Guarantees: case does not matter; unknown values are complained about with their variable and value.
    #[test]
    fn unknown_words_are_complained_about() {
        let compression = "OTEL_EXPORTER_OTLP_COMPRESSION";
        let protocol = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL";
        let gzip = cfg!(feature = "gzip").then_some(Compression::Gzip);
        let cases = [
            (compression, "none", Some(Compression::None), false),
            (compression, "GZIP", gzip, gzip.is_none()),
            (compression, "zstd", None, true),
            (protocol, "http/protobuf", None, false),
            (protocol, "grpc", None, true),
            (protocol, "http/json", None, true),
        ];
        for (variable, value, expected, complained) in cases {
            let env = read(&[(variable, value)]);
            assert_eq!(env.compression, expected, "{value}");
            let complaint = complained.then_some((variable, value));
            assert_eq!(complaints(&env), Vec::from_iter(complaint));
        }
    }

    fn headers(list: &str) -> (Vec<String>, Vec<String>) {
        let env = read(&[("OTEL_EXPORTER_OTLP_HEADERS", list)]);
        let shown = |(name, value): &(HeaderName, HeaderValue)| {
            format!("{name}={}", value.to_str().unwrap())
        };
        (
            env.headers.iter().map(shown).collect(),
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

    /// Scenario: header variables for traces and in general.
    /// Guarantees: the one for traces replaces the other, unless it is empty; values are marked sensitive.
    #[test]
    fn headers_for_traces_win_unless_they_are_empty() {
        for (traces, expected) in [("a=1", "a"), ("", "b"), (" ", "b")] {
            let env = read(&[
                ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", traces),
                ("OTEL_EXPORTER_OTLP_HEADERS", "b=2"),
            ]);
            let [(name, value)] = env.headers.as_slice() else {
                panic!("one header: {env:?}");
            };
            assert_eq!(name, expected);
            assert!(value.is_sensitive());
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
            assert!(env.headers.is_empty());
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
            ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/key.pem"),
        ]);
        let variables = "OTEL_EXPORTER_OTLP_CERTIFICATE, OTEL_EXPORTER_OTLP_CLIENT_KEY";
        assert_eq!(complaints(&env), [(variables, "not supported")]);
    }
}
