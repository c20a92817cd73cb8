//! The main job in one command: `cargo demo`.
//!
//! A real HTTP service answers 400 requests, 50 at a time, each with its own token. It logs lines in them, and counts and
//! times them. Its processor keeps 20 traces only, so traces are evicted while their spans are still open; some spans end
//! long after the response; some requests share one trace id. A real OTLP receiver in the same process shows what arrived of
//! all three signals, and under whose token.
//!
//! `cargo demo -- --live` is another one: spans of a few slow requests, shown while they are open.

#![forbid(unsafe_code)]
// A command-line program talks to its user.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod account;
mod client;
mod live;
mod measured;
mod service;
mod waterfall;

use std::error::Error;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use opentelemetry::Context;
use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use opentelemetry_otlp_direct::{DirectExporter, ExportToken, Signal};
use opentelemetry_per_request::{Config, Telemetry};
use opentelemetry_sdk::Resource;
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer, layer};

use account::{Account, Arrived, Made};
use demo::receiver::Receiver;
use service::Service;

/// Requests in all.
const REQUESTS: usize = 400;
/// Requests at a time.
const CONCURRENCY: usize = 50;
/// Traces that the processor keeps: fewer than there are at a time.
const MAX_TRACES: usize = 20;
/// The service's own token, for spans whose request is no longer known.
const SERVICE_TOKEN: &str = "token-of-the-service";
/// How long the last spans have to arrive.
const SHUTDOWN: Duration = Duration::from_secs(30);

const USAGE: &str = "\
usage: cargo demo [-- --json]
       cargo demo -- --live [--seconds <n>] [--json]

  --json         print the account as one JSON object on the last line, and nothing else

With OTEL_EXPORTER_OTLP_ENDPOINT set, everything is sent to that collector instead of
the receiver in this process, and what the collector acknowledged takes the place of
what was received.

  --live         show spans as they open, get other names and close, as the receiver in
                 this process hears of them: on a terminal as a tree, elsewhere a line for
                 each change, and in the end the numbers beside the processor's own. A span
                 is told of when it is 200 ms old and still open. No other collector is used.
                 NO_COLOR=1 is respected.
  --seconds <n>  how long that takes, 10 if not said, 3 at least
  --json         print the numbers as one JSON object on the last line";

/// How long it takes, live, if not said, and at least: in less, nothing would be open for long enough to be told of.
const LIVE_SECONDS: u64 = 10;
const MIN_LIVE_SECONDS: u64 = 3;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Job {
    Help,
    Account { json: bool },
    Live { seconds: u64, json: bool },
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let clean = match Job::of(&arguments) {
        None => {
            eprintln!("{USAGE}");
            return ExitCode::FAILURE;
        }
        Some(Job::Help) => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Some(Job::Account { json }) => run(json).await.map(|account| account.is_clean()),
        Some(Job::Live { seconds, json }) => live::run(seconds, json).await,
    };
    match clean {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("the demo could not run: {error}");
            ExitCode::FAILURE
        }
    }
}

impl Job {
    /// `None` if that is not understood.
    fn of(arguments: &[&str]) -> Option<Self> {
        let (mut live, mut json, mut seconds) = (false, false, None);
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            match *argument {
                "--help" | "-h" => return Some(Self::Help),
                "--live" => live = true,
                "--json" => json = true,
                "--seconds" => seconds = Some(rest.next()?.parse().ok()?),
                _ => return None,
            }
        }
        match (live, seconds) {
            (false, None) => Some(Self::Account { json }),
            (true, Some(..MIN_LIVE_SECONDS)) | (false, Some(_)) => None,
            (true, seconds) => Some(Self::Live {
                seconds: seconds.unwrap_or(LIVE_SECONDS),
                json,
            }),
        }
    }
}

async fn run(json: bool) -> Result<Account, Box<dyn Error>> {
    let start = Instant::now();
    let receiver = match collector_is_given() {
        true => None,
        false => Some(Receiver::http()?),
    };
    let telemetry = {
        // Settings that are of no use are warned about, too.
        let subscriber = tracing_subscriber::registry().with(warnings());
        let _until_there_is_another = tracing::subscriber::set_default(subscriber);
        let config = Config::from_env().with_max_traces(MAX_TRACES);
        install(receiver.as_ref(), config).await?
    };
    let lines = Arc::<AtomicU64>::default();
    log_through(&telemetry, lines.clone());
    let service = Service::start(&telemetry).await?;

    let on_a_terminal = !json && std::io::stderr().is_terminal();
    let progress = on_a_terminal.then(|| tokio::spawn(progress(telemetry.clone())));
    let answered = client::load(service.address(), REQUESTS, CONCURRENCY).await?;
    let ended = service.stop().await;
    telemetry
        .flush()
        .await
        .unwrap_or_else(|error| eprintln!("flush: {error}"));
    telemetry
        .shutdown(SHUTDOWN)
        .await
        .unwrap_or_else(|error| eprintln!("shutdown: {error}"));
    if let Some(progress) = progress {
        progress.abort();
        eprint!("\r\x1b[K");
    }

    let made = Made {
        requests: answered as u64,
        spans: ended,
        lines: lines.load(Ordering::SeqCst),
    };
    let arrived = receiver.as_ref().map(Arrived::at);
    let account = Account::new(made, &telemetry.stats(), arrived.as_ref(), start.elapsed());
    if json {
        println!("{}", account.to_json());
        return Ok(account);
    }
    match &arrived {
        Some(arrived) => waterfall::print(arrived),
        None => println!("All of it went to the collector of OTEL_EXPORTER_OTLP_ENDPOINT.\n"),
    }
    println!("{account}");
    Ok(account)
}

/// Whether the environment names a collector to send to.
fn collector_is_given() -> bool {
    [
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT",
        "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
    ]
    .into_iter()
    .any(|name| std::env::var(name).is_ok_and(|value| !value.trim().is_empty()))
}

/// What a service has to set up: an exporter, and the providers of all three signals.
async fn install(receiver: Option<&Receiver>, config: Config) -> Result<Telemetry, Box<dyn Error>> {
    let exporter = match receiver {
        Some(receiver) => DirectExporter::builder().with_endpoint(receiver.endpoint()),
        None => DirectExporter::builder(),
    }
    .build()?;
    // Before anything is sent: whether endpoints, paths and credentials work.
    for signal in [Signal::Traces, Signal::Logs, Signal::Metrics] {
        exporter.check_signal(signal).await?;
    }
    let fallback = ExportToken::new(SERVICE_TOKEN)?.attach_to(&Context::new());
    let telemetry = Telemetry::builder()
        .with_exporter(exporter)
        .with_config(config)
        .with_fallback_context(fallback)
        .with_resource(Resource::builder().with_service_name("orders").build())
        .build()?;
    Ok(telemetry)
}

// ===== logging =====

/// The warnings of the processor and the exporter, which a service would see in its log.
fn warnings<S>() -> impl Layer<S>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_filter(LevelFilter::WARN)
}

/// Makes log records of the lines of the service, and counts them.
fn log_through(telemetry: &Telemetry, lines: Arc<AtomicU64>) {
    // Not of anybody else's: what is said about exporting is not to be exported.
    let of_the_service = Targets::new().with_target("demo::service", LevelFilter::INFO);
    let bridge = OpenTelemetryTracingBridge::new(telemetry.logger_provider());
    tracing_subscriber::registry()
        .with(warnings())
        .with(bridge.and_then(Counter(lines)).with_filter(of_the_service))
        .init();
}

/// Counts events, for the account.
struct Counter(Arc<AtomicU64>);

impl<S: Subscriber> Layer<S> for Counter {
    fn on_event(&self, _: &Event<'_>, _: layer::Context<'_, S>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Shows, on a line of the terminal, how far the work is.
async fn progress(telemetry: Telemetry) {
    loop {
        let stats = telemetry.stats();
        eprint!(
            "\r\x1b[K{} spans ended, {} exported, {} pending, {} late; {} lines logged, {} exported; {} traces evicted\r",
            stats.ended,
            stats.exported,
            stats.pending(),
            stats.late.total(),
            stats.logs.received,
            stats.logs.exported,
            stats.evicted_traces
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: all options in any order, and some that mean nothing.
    /// Guarantees: each job is the one that was asked for, and what is not understood is none.
    #[test]
    fn options_are_understood_or_refused() {
        let live = |seconds, json| Some(Job::Live { seconds, json });
        let cases: [(&[&str], Option<Job>); 14] = [
            (&[], Some(Job::Account { json: false })),
            (&["--json"], Some(Job::Account { json: true })),
            (&["--help"], Some(Job::Help)),
            (&["--live", "-h"], Some(Job::Help)),
            (&["--live"], live(10, false)),
            (&["--live", "--json"], live(10, true)),
            (&["--json", "--seconds", "3", "--live"], live(3, true)),
            (&["--live", "--seconds", "60"], live(60, false)),
            (&["--live", "--seconds", "2"], None),
            (&["--live", "--seconds", "soon"], None),
            (&["--live", "--seconds"], None),
            (&["--seconds", "5"], None),
            (&["--dead"], None),
            (&["live"], None),
        ];
        for (arguments, job) in cases {
            assert_eq!(Job::of(arguments), job, "{arguments:?}");
        }
    }
}
