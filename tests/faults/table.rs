//! The specification: what a collector does wrong, and what an export makes of it.
//!
//! One row is one fault. It says how often the request is sent, when the export is over, what is counted, and what the one
//! warning and the error say of it; an export that succeeds says nothing, unless the row has words for it. Whoever runs
//! the table checks more that is the same in every row: see [`crate::over_the_exporter`] and [`crate::over_the_processor`].

use std::time::Duration;

use opentelemetry_otlp_direct::FailureReason::{
    self, Rejected, ResponseTooLarge, Status, Throttled, Timeout, Transport, Unauthorized,
};
use opentelemetry_otlp_direct::Signal;

use crate::fault::Fault::{self, *};
use crate::fault::{Asks, Body, Certificate, answer};

/// Spans, log records or data points in each export.
pub(crate) const ITEMS: u64 = 2;

/// The exporter's timeout in rows that are about it.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(1);

/// The exporter's timeout in all others.
const PATIENT: Duration = Duration::from_secs(60);

/// What a busy machine may add to any time. Every bound below is kept with room to spare, or missed by far.
pub(crate) const SLACK: Duration = Duration::from_secs(30);

/// One line of the specification.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// What is exported. Of spans, unless it is said otherwise by [`Row::of`].
    pub(crate) signal: Signal,
    pub(crate) name: &'static str,
    pub(crate) faults: Faults,
    pub(crate) attempts: u64,
    pub(crate) ends: Ends,
    pub(crate) counted: Counted,
    /// Of spans. Empty when nothing is to be said.
    said: &'static str,
}

/// What the collector does, until it is told to be well.
#[derive(Clone, Debug)]
pub(crate) struct Faults {
    pub(crate) in_turn: Vec<Fault>,
    /// Whether the last one stays. If not, the collector is well after it.
    pub(crate) last_stays: bool,
}

/// When an export is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ends {
    /// Without waiting for anything, long before the timeout.
    AtOnce,
    /// When the timeout is over.
    WithTheTimeout,
    /// Not before this time, since that is what the collector asked for or took for its answers; and not long after.
    After(Duration),
}

/// What becomes of the items.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Counted {
    Exported,
    /// All of them.
    Failed(FailureReason),
    /// One of them.
    OneRejected,
}

use Counted::{Exported, Failed, OneRejected};
use Ends::{After, AtOnce, WithTheTimeout};

#[rustfmt::skip]
pub(crate) fn table() -> Vec<Row> {
    let a_second = Duration::from_secs(1);
    vec![
        // ===== connections =====
        row("refused",                               always(Refused),                                     6, AtOnce,           Failed(Transport),        "refused"),
        row("accepted, then closed",                 always(AcceptedThenClosed),                          6, AtOnce,           Failed(Transport),        "attempt 6 got no response"),
        row("reset while sending",                   always(ResetWhileSending),                           6, AtOnce,           Failed(Transport),        "attempt 6 got no response"),
        row("reset while answering",                 always(ResetWhileAnswering),                         6, AtOnce,           Failed(Transport),        "attempt 6 got no response"),
        row("answers nothing",                       always(Silent),                                      1, WithTheTimeout,   Failed(Timeout),          "no response within 1s"),
        row("a byte of the head each second",        always(AByteASecond(0)),                             1, WithTheTimeout,   Failed(Timeout),          "no response within 1s"),
        row("a byte of the body each second",        always(AByteASecond(HEAD)),                          1, WithTheTimeout,   Failed(Timeout),          "no response within 1s"),
        row("answers garbage",                       always(Garbage(b"\0\x01 s3cret\r\n\r\n")),           6, AtOnce,           Failed(Transport),        "attempt 6 got no response"),
        row("speaks TLS to http",                    always(Garbage(TLS_ALERT)),                          6, AtOnce,           Failed(Transport),        "attempt 6 got no response"),
        row("a head without end",                    always(EndlessHead),                                 6, AtOnce,           Failed(Transport),        "attempt 6 got no response"),
        row("interim answers without end",           always(EndlessInterim),                              1, WithTheTimeout,   Failed(Timeout),          "no response within 1s"),
        row("200, body cut short of its length",     always(CutShort),                                    6, AtOnce,           Failed(Transport),        "attempt 6 got no response"),
        row("200, body cut short in its chunks",     always(CutShortInChunks),                            6, AtOnce,           Failed(Transport),        "attempt 6 got no response"),
        row("200, broken chunks",                    always(BrokenChunks),                                6, AtOnce,           Failed(Transport),        "attempt 6 got no response"),

        // ===== connections that break once =====
        row("closed once",                           once(AcceptedThenClosed),                            2, AtOnce,           Exported,                 ""),
        row("reset while sending, once",             once(ResetWhileSending),                             2, AtOnce,           Exported,                 ""),
        row("reset while answering, once",           once(ResetWhileAnswering),                           2, AtOnce,           Exported,                 ""),
        row("garbage once",                          once(Garbage(b"SSH-2.0-x\r\n")),                     2, AtOnce,           Exported,                 ""),
        row("body cut short, once",                  once(CutShort),                                      2, AtOnce,           Exported,                 ""),
        row("each in turn",                          in_turn([AcceptedThenClosed, ResetWhileAnswering, CutShort, Answers(answer(503))]), 5, AtOnce,           Exported,                 ""),

        // ===== answers =====
        row("202",                                   always(answer(202)),                                 1, AtOnce,           Exported,                 ""),
        row("200, not OTLP",                         always(answer(200).body(b"<html>s3cret")),           1, AtOnce,           Exported,                 "UndecodableResponse"),
        row("204, asks for patience",                always(answer(204).asks("1")),                       1, AtOnce,           Exported,                 ""),
        row("partial success",                       always(answer(200).rejects(1)),                      1, AtOnce,           OneRejected,              "collector rejected 1 of 2 spans"),
        row("partial success that rejects all",      always(answer(200).rejects(2)),                      1, AtOnce,           Failed(Rejected),         "collector rejected 2 of 2 spans"),
        row("partial success that rejects more",     always(answer(200).rejects(i64::MAX)),               1, AtOnce,           Failed(Rejected),         "collector rejected 2 of 2 spans"),
        row("partial success that rejects none",     always(answer(200).rejects(0)),                      1, AtOnce,           Exported,                 "CollectorWarning"),
        row("301",                                   always(answer(301).redirects()),                     1, AtOnce,           Failed(Status),           "answered 301"),
        row("302",                                   always(answer(302).redirects()),                     1, AtOnce,           Failed(Status),           "answered 302"),
        row("303",                                   always(answer(303).redirects()),                     1, AtOnce,           Failed(Status),           "answered 303"),
        row("307",                                   always(answer(307).redirects()),                     1, AtOnce,           Failed(Status),           "answered 307"),
        row("308",                                   always(answer(308).redirects()),                     1, AtOnce,           Failed(Status),           "answered 308"),
        row("400",                                   always(answer(400)),                                 1, AtOnce,           Failed(Status),           "answered 400"),
        row("401",                                   always(answer(401)),                                 1, AtOnce,           Failed(Unauthorized),     "answered 401"),
        row("403",                                   always(answer(403)),                                 1, AtOnce,           Failed(Unauthorized),     "answered 403"),
        row("404",                                   always(answer(404)),                                 1, AtOnce,           Failed(Status),           "answered 404"),
        row("408",                                   always(answer(408)),                                 1, AtOnce,           Failed(Status),           "answered 408"),
        row("413",                                   always(answer(413)),                                 1, AtOnce,           Failed(Status),           "answered 413"),
        row("429",                                   always(answer(429)),                                 6, AtOnce,           Failed(Status),           "answered 429"),
        row("500",                                   always(answer(500)),                                 1, AtOnce,           Failed(Status),           "answered 500"),
        row("502",                                   always(answer(502)),                                 6, AtOnce,           Failed(Status),           "answered 502"),
        row("503",                                   always(answer(503)),                                 6, AtOnce,           Failed(Status),           "answered 503"),
        row("504",                                   always(answer(504)),                                 6, AtOnce,           Failed(Status),           "answered 504"),
        row("429 once",                              once(answer(429)),                                   2, AtOnce,           Exported,                 ""),
        row("502 once",                              once(answer(502)),                                   2, AtOnce,           Exported,                 ""),
        row("503 once",                              once(answer(503)),                                   2, AtOnce,           Exported,                 ""),
        row("504 once",                              once(answer(504)),                                   2, AtOnce,           Exported,                 ""),
        row("503, then 400",                         once(answer(503)).then_always(answer(400)),          2, AtOnce,           Failed(Status),           "answered 400"),

        // ===== Retry-After =====
        row("429, asks for a second",                once(answer(429).asks("1")),                         2, After(a_second),  Exported,                 ""),
        row("503, asks for a second",                once(answer(503).asks("1")),                         2, After(a_second),  Exported,                 ""),
        row("429, asks for a date",                  once(answer(429).asks(Asks::DateIn(2 * a_second))),  2, After(a_second),  Exported,                 ""),
        row("503, asks for a date",                  once(answer(503).asks(Asks::DateIn(2 * a_second))),  2, After(a_second),  Exported,                 ""),
        row("429, asks for a date in the past",      once(answer(429).asks(PAST)),                        2, AtOnce,           Exported,                 ""),
        row("503, asks for a date in the past",      once(answer(503).asks(PAST)),                        2, AtOnce,           Exported,                 ""),
        row("429, asks for no time, always",         always(answer(429).asks("0")),                       6, AtOnce,           Failed(Status),           "answered 429"),
        row("503, asks for no time, always",         always(answer(503).asks("0")),                       6, AtOnce,           Failed(Status),           "answered 503"),
        row("429, asks for nonsense",                once(answer(429).asks("soon")),                      2, AtOnce,           Exported,                 ""),
        row("503, asks for nonsense, always",        always(answer(503).asks("soon")),                    6, AtOnce,           Failed(Status),           "answered 503"),
        row("429, asks for less than nothing",       once(answer(429).asks("-1")),                        2, AtOnce,           Exported,                 ""),
        row("503, asks for less than nothing",       once(answer(503).asks("-1")),                        2, AtOnce,           Exported,                 ""),
        row("429, asks for 16 s",                    always(answer(429).asks("16")),                      1, AtOnce,           Failed(Throttled),        "asked for 16s of patience"),
        row("503, asks for an hour by date",         always(answer(503).asks(Asks::DateIn(3600 * a_second))), 1, AtOnce,           Failed(Throttled),        "of patience"),
        row("429, asks for 10²³ s",                  always(answer(429).asks("99999999999999999999999")), 1, AtOnce,           Failed(Throttled),        "of patience"),
        row("503, asks for a second, then an hour",  once(answer(503).asks("1")).then_always(answer(503).asks("3600")), 2, After(a_second),  Failed(Throttled),        "asked for 3600s of patience"),
        row("400, asks for a second",                always(answer(400).asks("1")),                       1, AtOnce,           Failed(Status),           "answered 400"),
        row("408, asks for a second",                always(answer(408).asks("1")),                       1, AtOnce,           Failed(Status),           "answered 408"),
        row("413, asks for a second",                always(answer(413).asks("1")),                       1, AtOnce,           Failed(Status),           "answered 413"),
        row("500, asks for a second",                always(answer(500).asks("1")),                       1, AtOnce,           Failed(Status),           "answered 500"),

        // ===== the least time of an attempt after a wait that was asked for =====
        // Each answer takes 0.3 s, so the last attempt starts with next to nothing left of the timeout.
        row("asks for no time, slowly",              times(4, answer(503).asks("0").late()),              5, After(4 * LATE),  Exported,                 ""),
        row("asks for no time late, then is silent", times(3, answer(503).asks("0").late()).then_always(Silent), 4, After(TIMEOUT + 3 * LATE), Failed(Timeout),          "no response within 1s"),

        // ===== answers that are too large =====
        row("200, 1 GB",                             always(answer(200).body(Body::Gigabyte)),            1, AtOnce,           Failed(ResponseTooLarge), "larger than 4194304 bytes"),
        row("200, 1 GB in chunks",                   always(answer(200).body(Body::GigabyteInChunks)),    1, AtOnce,           Failed(ResponseTooLarge), "larger than 4194304 bytes"),
        row("200, without end",                      always(answer(200).body(Body::Endless)),             1, AtOnce,           Failed(ResponseTooLarge), "larger than 4194304 bytes"),
        row("200, gzip of 10 GB in 10 MB",           always(answer(200).body(Body::GzipOf10Gigabytes)),   1, AtOnce,           Failed(ResponseTooLarge), "larger than 4194304 bytes"),
        row("200, gzip of 1 GB in 1 MB",             always(answer(200).body(Body::GzipOf1Gigabyte)),     1, AtOnce,           Exported,                 "UndecodableResponse"),
        row("500, 1 GB",                             always(answer(500).body(Body::Gigabyte)),            1, AtOnce,           Failed(ResponseTooLarge), "larger than 4194304 bytes"),
        row("500, without end",                      always(answer(500).body(Body::Endless)),             1, AtOnce,           Failed(ResponseTooLarge), "larger than 4194304 bytes"),
        row("500, gzip of 10 GB in 10 MB",           always(answer(500).body(Body::GzipOf10Gigabytes)),   1, AtOnce,           Failed(ResponseTooLarge), "larger than 4194304 bytes"),
        row("500, gzip of 1 GB in 1 MB",             always(answer(500).body(Body::GzipOf1Gigabyte)),     1, AtOnce,           Failed(Status),           "answered 500"),
        // The clients tell an answer that is too large from a broken one, but not its status.
        row("503, 1 GB in chunks",                   always(answer(503).body(Body::GigabyteInChunks)),    1, AtOnce,           Failed(ResponseTooLarge), "larger than 4194304 bytes"),

        // ===== TLS =====
        row("self-signed certificate",               always(Shows(Certificate::SelfSigned)),              6, AtOnce,           Failed(Transport),        "invalid peer certificate: UnknownIssuer"),
        row("another's certificate",                 always(Shows(Certificate::OfAnother)),               6, AtOnce,           Failed(Transport),        "certificate not valid for name"),
        row("expired certificate",                   always(Shows(Certificate::Expired)),                 6, AtOnce,           Failed(Transport),        "certificate expired"),
        row("expired certificate, once",             once(Shows(Certificate::Expired)),                   2, AtOnce,           Exported,                 ""),
        row("speaks plainly to https",               always(PlainOnTls),                                  6, AtOnce,           Failed(Transport),        "attempt 6 got no response"),
        row("https, answers nothing",                always(SilentOnTls),                                 1, WithTheTimeout,   Failed(Timeout),          "no response within 1s"),
    ]
}

/// How long a late answer takes.
pub(crate) const LATE: Duration = Duration::from_millis(300);

/// Bytes of an answer that come at once when only its body is slow.
const HEAD: usize = crate::fault::SLOW_HEAD.len();

const PAST: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

/// "unexpected message", which is what a TLS server says to a plain request.
const TLS_ALERT: &[u8] = b"\x15\x03\x03\x00\x02\x02\x0a";

fn row(
    name: &'static str,
    faults: Faults,
    attempts: u64,
    ends: Ends,
    counted: Counted,
    said: &'static str,
) -> Row {
    Row {
        signal: Signal::Traces,
        name,
        faults,
        attempts,
        ends,
        counted,
        said,
    }
}

fn always(fault: impl Into<Fault>) -> Faults {
    in_turn([]).then_always(fault)
}

fn once(fault: impl Into<Fault>) -> Faults {
    times(1, fault)
}

fn times(times: usize, fault: impl Into<Fault>) -> Faults {
    in_turn(vec![fault.into(); times])
}

fn in_turn(faults: impl Into<Vec<Fault>>) -> Faults {
    Faults {
        in_turn: faults.into(),
        last_stays: false,
    }
}

// ===== impl Faults =====

impl Faults {
    fn then_always(mut self, fault: impl Into<Fault>) -> Self {
        self.in_turn.push(fault.into());
        self.last_stays = true;
        self
    }

    fn are_late(&self) -> bool {
        let late = |fault: &Fault| matches!(fault, Answers(answer) if answer.late);
        self.in_turn.iter().any(late)
    }
}

// ===== impl Row =====

impl Row {
    /// The same row for another signal.
    pub(crate) fn of(mut self, signal: Signal) -> Self {
        self.signal = signal;
        self
    }

    /// In the words of the signal.
    pub(crate) fn said(&self) -> String {
        let items = match self.signal {
            Signal::Logs => "log records",
            Signal::Metrics => "data points",
            _ => "spans",
        };
        self.said.replace("spans", items)
    }

    pub(crate) fn is_of_https(&self) -> bool {
        self.faults.in_turn.iter().any(Fault::is_of_https)
    }

    /// Whether it takes a lot of work.
    pub(crate) fn is_large(&self) -> bool {
        self.faults.in_turn.iter().any(Fault::is_large)
    }

    /// The setting of the exporter.
    pub(crate) fn timeout(&self) -> Duration {
        match self.ends {
            WithTheTimeout => TIMEOUT,
            After(_) if self.faults.are_late() => TIMEOUT,
            AtOnce | After(_) => PATIENT,
        }
    }

    /// Between these an export must be over.
    pub(crate) fn bounds(&self) -> (Duration, Duration) {
        let least = match self.ends {
            AtOnce => Duration::ZERO,
            WithTheTimeout => self.timeout(),
            After(wait) => wait,
        };
        (least, least + SLACK)
    }

    pub(crate) fn exported(&self) -> u64 {
        match self.counted {
            Exported => ITEMS,
            Failed(_) => 0,
            OneRejected => ITEMS - 1,
        }
    }

    pub(crate) fn reason(&self) -> Option<FailureReason> {
        match self.counted {
            Exported => None,
            Failed(reason) => Some(reason),
            OneRejected => Some(Rejected),
        }
    }
}
