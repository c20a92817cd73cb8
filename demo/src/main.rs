//! The main job in one command: `cargo demo`.
//!
//! A real HTTP service answers 400 requests, 50 at a time, each with its own token. Its processor keeps 20 traces only, so
//! traces are evicted while their spans are still open; some spans end long after the response; some requests share one
//! trace id. A real OTLP receiver in the same process shows what arrived, and under whose token.

#![forbid(unsafe_code)]
// A command-line program talks to its user.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod account;
mod client;
mod service;
mod waterfall;

use std::error::Error;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use opentelemetry::Context;
use opentelemetry_otlp_direct::{DirectExporter, ExportToken};
use opentelemetry_per_request::{Config, Handle, PerRequestSpanProcessor};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;

use account::Account;
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

  --json   print the account as one JSON object on the last line, and nothing else

With OTEL_EXPORTER_OTLP_ENDPOINT set, spans are sent to that collector instead of the
receiver in this process, and what the collector acknowledged takes the place of what
was received.";

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let json = match arguments.as_slice() {
        [] => false,
        [option] if option == "--json" => true,
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::FAILURE;
        }
    };
    // The warnings of the processor and the exporter, which a service would see in its log.
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_max_level(tracing_subscriber::filter::LevelFilter::WARN)
        .init();
    match run(json).await {
        Ok(account) if account.is_clean() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("the demo could not run: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(json: bool) -> Result<Account, Box<dyn Error>> {
    let start = Instant::now();
    let receiver = match collector_is_given() {
        true => None,
        false => Some(Receiver::http()?),
    };
    let (provider, telemetry) = install(receiver.as_ref()).await?;
    let service = Service::start(&provider, telemetry.clone()).await?;

    let on_a_terminal = !json && std::io::stderr().is_terminal();
    let progress = on_a_terminal.then(|| tokio::spawn(progress(telemetry.clone())));
    let statuses = client::load(service.address(), REQUESTS, CONCURRENCY).await?;
    let ended = service.stop().await;
    telemetry
        .flush()
        .await
        .unwrap_or_else(|error| eprintln!("flush: {error}"));
    telemetry
        .shutdown(SHUTDOWN)
        .await
        .unwrap_or_else(|error| eprintln!("shutdown: {error}"));
    provider.shutdown()?;
    if let Some(progress) = progress {
        progress.abort();
        eprint!("\r\x1b[K");
    }

    let received = receiver.as_ref().map(Receiver::received);
    let account = Account::new(
        statuses,
        ended,
        &telemetry.stats(),
        received.as_deref(),
        start.elapsed(),
    );
    if json {
        println!("{}", account.to_json());
        return Ok(account);
    }
    match &received {
        Some(spans) => waterfall::print(spans),
        None => println!("The spans went to the collector of OTEL_EXPORTER_OTLP_ENDPOINT.\n"),
    }
    println!("{account}");
    Ok(account)
}

/// Whether the environment names a collector to send to.
fn collector_is_given() -> bool {
    [
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    ]
    .into_iter()
    .any(|name| std::env::var(name).is_ok_and(|value| !value.trim().is_empty()))
}

/// What a service has to set up: an exporter, a processor, a provider.
async fn install(
    receiver: Option<&Receiver>,
) -> Result<(SdkTracerProvider, Handle), Box<dyn Error>> {
    let exporter = match receiver {
        Some(receiver) => DirectExporter::builder().with_endpoint(receiver.endpoint()),
        None => DirectExporter::builder(),
    }
    .build()?;
    // Before anything is sent: whether endpoint, path and credentials work.
    exporter.check().await?;
    let fallback = ExportToken::new(SERVICE_TOKEN)?.attach_to(&Context::new());
    let processor = PerRequestSpanProcessor::builder(exporter)
        .with_config(Config::from_env().with_max_traces(MAX_TRACES))
        .with_fallback_context(fallback)
        .build()?;
    let telemetry = processor.handle();
    let provider = SdkTracerProvider::builder()
        .with_resource(Resource::builder().with_service_name("orders").build())
        .with_span_processor(processor)
        .build();
    Ok((provider, telemetry))
}

/// Shows, on a line of the terminal, how far the work is.
async fn progress(telemetry: Handle) {
    loop {
        let stats = telemetry.stats();
        eprint!(
            "\r\x1b[K{} spans ended, {} exported, {} pending, {} late, {} traces evicted\r",
            stats.ended,
            stats.exported,
            stats.pending(),
            stats.late.total(),
            stats.evicted_traces
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
