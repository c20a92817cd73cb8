//! Runs rows of the table side by side, each with a watch on it, and what all of them ask.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use opentelemetry::Context;
use opentelemetry_otlp_direct::{ExportToken, ExporterStats, FailureReason};

use crate::fault::Fault;
use crate::logs;
use crate::server::{Received, Server};
use crate::table::{Ends, ITEMS, Row, SLACK};

/// In the token of every export, in the endpoint's query, and in what the collector says. It is to be found nowhere else.
pub(crate) const SECRET: &str = "s3cret";

/// A row that takes longer hangs.
const WATCHDOG: Duration = Duration::from_secs(120);

/// Rows at a time. Most of them wait for something.
const LANES: usize = 16;

/// The most that a client may take of an answer that is too large: 4 MiB, and what its kernel has room for meanwhile. What is
/// more than that is a gigabyte.
const MOST_SENT: u64 = 128 << 20;

/// Checks each row, and then says which of them do not hold, and why.
pub(crate) fn each(mut rows: Vec<Row>, check: impl Fn(&Row) + Clone + Send + Sync + 'static) {
    logs::listen();
    assert!(!rows.is_empty());
    // Those that wait begin, and the others run meanwhile.
    rows.sort_by_key(|row| row.ends == Ends::AtOnce);
    let (rows, failures) = (Mutex::new(rows.into_iter()), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..LANES {
            scope.spawn(|| {
                loop {
                    let Some(row) = rows.lock().unwrap().next() else {
                        return;
                    };
                    let name = format!("{} ({})", row.name, row.signal);
                    let check = check.clone();
                    if let Err(why) = watched(move || check(&row)) {
                        failures.lock().unwrap().push(format!("{name}: {why}"));
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(
        failures.is_empty(),
        "rows that do not hold:\n{}",
        failures.join("\n")
    );
    let secrets: Vec<_> = logs::all()
        .into_iter()
        .filter(|line| line.contains(SECRET))
        .collect();
    assert!(secrets.is_empty(), "secrets in the log: {secrets:#?}");
}

/// Runs `check` on a thread of its own.
fn watched(check: impl FnOnce() + Send + 'static) -> Result<(), String> {
    let (done, outcome) = mpsc::channel();
    thread::spawn(move || {
        let _ = done.send(catch_unwind(AssertUnwindSafe(check)));
    });
    match outcome.recv_timeout(WATCHDOG) {
        Ok(outcome) => outcome.map_err(|panic| message(&*panic)),
        Err(_) => Err(format!("hangs for {WATCHDOG:?}")),
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let literal = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let formatted = || panic.downcast_ref::<String>().cloned();
    literal.or_else(formatted).unwrap_or_default()
}

/// What `f` returns, and how long it took.
pub(crate) fn timed<T>(f: impl FnOnce() -> T) -> (T, Duration) {
    let started = Instant::now();
    let result = f();
    (result, started.elapsed())
}

/// Waits until `condition` holds. It only ever fails by being slow.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < SLACK, "not yet: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// A token that nobody may see, told apart by its number.
pub(crate) fn token(number: u32) -> ExportToken {
    ExportToken::new(format!("{SECRET}-{number}")).unwrap()
}

pub(crate) fn context(number: u32) -> Context {
    token(number).attach_to(&Context::new())
}

/// Names of two items, for a request of whatever size the faults of the row need.
pub(crate) fn item_names(row: &Row) -> [String; ITEMS as usize] {
    let large = row.faults.in_turn.iter().any(Fault::needs_large_request);
    let size = if large { 4 << 20 } else { 1 };
    ["a", "b"].map(|letter| letter.repeat(size))
}

impl Row {
    #[track_caller]
    pub(crate) fn check_time(&self, took: Duration) {
        let (least, most) = self.bounds();
        assert!(
            least <= took && took <= most,
            "took {took:?}, not {least:?} to {most:?}"
        );
    }

    /// The exporter's account after its first export.
    #[track_caller]
    pub(crate) fn check_account(&self, stats: &ExporterStats) {
        let failed = ITEMS - self.exported();
        let by_reason = self.reason().map_or(0, |reason| stats.failed(reason));
        assert_eq!(
            (by_reason, stats.failed_in_total()),
            (failed, failed),
            "{stats:?}"
        );
        assert_eq!(
            (stats.exported(), stats.in_flight()),
            (self.exported(), 0),
            "{stats:?}"
        );
        assert_eq!(
            (stats.attempts(), stats.retries()),
            (self.attempts, self.attempts - 1),
            "{stats:?}"
        );
    }

    /// What the collector saw of it.
    #[track_caller]
    pub(crate) fn check_server(&self, server: &Server) {
        let refused = matches!(self.faults.in_turn[0], Fault::Refused);
        let expected = if refused { 0 } else { self.attempts };
        // A client may have given up before the collector's thread had its turn.
        wait_until("the attempts", || server.met() >= expected);
        assert_eq!(server.met(), expected, "attempts that arrived");
        for request in server.received() {
            // Nothing is ever sent to where a redirect leads.
            assert_eq!(request.path, format!("/v1/{}?key={SECRET}", self.signal));
        }
        // No connection is left behind that still waits for the collector.
        wait_until("hung up", || server.failing() == 0);
        assert!(
            server.sent() < MOST_SENT,
            "the client has read on: {}",
            server.sent()
        );
    }

    /// One warning, or none.
    #[track_caller]
    pub(crate) fn check_logs(&self, endpoint: &str) {
        let lines = logs::of(endpoint, self.signal);
        if self.said().is_empty() {
            assert!(lines.is_empty(), "{lines:#?}");
            return;
        }
        let [line] = &lines[..] else {
            panic!("one warning is to be said: {lines:#?}");
        };
        assert!(line.contains(&self.said()), "{line}");
        if let Some(reason) = self.reason() {
            let failed = ITEMS - self.exported();
            let words = [
                "DirectExporter.ExportFailed".to_owned(),
                format!("signal=\"{}\"", self.signal),
                format!("reason=\"{}\"", reason.as_str()),
                format!("items={failed}"),
            ];
            for words in words {
                assert!(line.contains(&words), "{words}: {line}");
            }
        }
    }

    /// Whose export comes next. One whose credentials were refused has to wait.
    pub(crate) fn opens_a_circuit(&self) -> bool {
        self.reason() == Some(FailureReason::Unauthorized)
    }
}

/// The request that a healthy collector got last.
pub(crate) fn last(server: &Server) -> Received {
    server.received().pop().unwrap()
}
