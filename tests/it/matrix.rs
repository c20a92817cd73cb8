//! Any exporter, any client, any runtime: each exporter in each kind of caller, through each way out.
//!
//! In every cell all spans arrive at a real receiver, or the call fails within 3 s with an error that names the way that
//! works. No cell hangs, none panics. The table is printed when a cell is not as expected.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::time::{Duration, Instant};

use opentelemetry::Context;
use opentelemetry::trace::{TraceContextExt as _, Tracer as _, TracerProvider as _};
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{
    SpanExporter, WithExportConfig as _, WithHttpConfig as _, WithTonicConfig as _,
};
use opentelemetry_otlp_direct::{DirectExporter, DirectExporterBuilder, ExportToken, TokenClient};
use opentelemetry_per_request::{Builder, Config, PerRequestSpanProcessor};
use opentelemetry_sdk::trace::SdkTracerProvider;

use crate::support::collector::Collector;
use crate::support::{Tenant, current_tenant, tenant, wait_until, within};

/// A cell that takes longer hangs.
const WATCHDOG: Duration = Duration::from_secs(15);

/// A cell that fails does it in this time.
const FAST: Duration = Duration::from_secs(3);

// ===== exporters =====

/// The rows: an exporter, and where it is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Row {
    ReqwestBlocking,
    Reqwest,
    Hyper,
    /// Built in the caller's runtime, or, if it has none, in one that outlives the cell.
    Grpc,
    /// `DirectExporter` with its own client.
    Direct,
    /// `DirectExporter` with a client of the user's, which runs where it is called.
    DirectReqwest,
    /// Each of `opentelemetry-otlp`'s, built by `PerRequestSpanProcessor::builder_with`.
    ReqwestBlockingWithin,
    ReqwestWithin,
    HyperWithin,
    GrpcWithin,
}

impl Row {
    const ALL: [Self; 10] = [
        Self::ReqwestBlocking,
        Self::Reqwest,
        Self::Hyper,
        Self::Grpc,
        Self::Direct,
        Self::DirectReqwest,
        Self::ReqwestBlockingWithin,
        Self::ReqwestWithin,
        Self::HyperWithin,
        Self::GrpcWithin,
    ];

    fn collector(self) -> Collector {
        match self {
            Row::Grpc | Row::GrpcWithin => Collector::grpc(),
            _ => Collector::http(),
        }
    }

    fn is_grpc(self) -> bool {
        matches!(self, Row::Grpc | Row::GrpcWithin)
    }

    /// The exporter of this row. Called where the caller is.
    fn builder(self, endpoint: &str, tenants: &Tenants) -> Builder {
        let endpoint = endpoint.to_owned();
        let blocking = || {
            // It must not be built inside a runtime: `opentelemetry-otlp` makes its own on a thread, too.
            std::thread::spawn(reqwest::blocking::Client::new)
                .join()
                .unwrap()
        };
        let hyper = || HyperClient::with_default_connector(Duration::from_secs(10), None);
        match self {
            Row::ReqwestBlocking => {
                PerRequestSpanProcessor::builder(http(&endpoint, blocking()).unwrap())
            }
            Row::Reqwest => {
                PerRequestSpanProcessor::builder(http(&endpoint, reqwest::Client::new()).unwrap())
            }
            Row::Hyper => PerRequestSpanProcessor::builder(http(&endpoint, hyper()).unwrap()),
            Row::Grpc => {
                let _entered = match tokio::runtime::Handle::try_current() {
                    Ok(_) => None,
                    Err(_) => Some(long_living_runtime().enter()),
                };
                PerRequestSpanProcessor::builder(grpc(&endpoint, tenants).unwrap())
            }
            Row::Direct => PerRequestSpanProcessor::builder(direct(&endpoint).build().unwrap()),
            Row::DirectReqwest => {
                let client = TokenClient::new(reqwest::Client::new());
                let exporter = direct(&endpoint).with_http_client(client).build();
                PerRequestSpanProcessor::builder(exporter.unwrap())
            }
            Row::ReqwestBlockingWithin => {
                PerRequestSpanProcessor::builder_with(move || http(&endpoint, blocking())).unwrap()
            }
            Row::ReqwestWithin => PerRequestSpanProcessor::builder_with(move || {
                http(&endpoint, reqwest::Client::new())
            })
            .unwrap(),
            Row::HyperWithin => {
                PerRequestSpanProcessor::builder_with(move || http(&endpoint, hyper())).unwrap()
            }
            Row::GrpcWithin => {
                let tenants = tenants.clone();
                PerRequestSpanProcessor::builder_with(move || grpc(&endpoint, &tenants)).unwrap()
            }
        }
    }
}

fn http(endpoint: &str, client: impl HttpClient + 'static) -> std::io::Result<SpanExporter> {
    SpanExporter::builder()
        .with_http()
        .with_http_client(TenantClient(client))
        .with_endpoint(format!("{endpoint}/v1/traces"))
        .build()
        .map_err(std::io::Error::other)
}

/// It takes its credential from the token in the context.
fn direct(endpoint: &str) -> DirectExporterBuilder {
    DirectExporter::builder()
        .with_env_lookup(|_| None)
        .with_endpoint(endpoint)
}

fn grpc(endpoint: &str, tenants: &Tenants) -> std::io::Result<SpanExporter> {
    let tenants = tenants.clone();
    SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .with_interceptor(move |request: tonic::Request<()>| {
            tenants.lock().unwrap().push(current_tenant());
            Ok(request)
        })
        .build()
        .map_err(std::io::Error::other)
}

/// What a gRPC interceptor saw.
type Tenants = Arc<Mutex<Vec<Option<Tenant>>>>;

/// Adds the tenant of the current context as the credential.
#[derive(Debug)]
struct TenantClient<C>(C);

#[async_trait::async_trait]
impl<C: HttpClient> HttpClient for TenantClient<C> {
    async fn send_bytes(&self, mut request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        if let Some(Tenant(number)) = current_tenant() {
            let value = format!("Bearer {number}").parse()?;
            request.headers_mut().insert("authorization", value);
        }
        self.0.send_bytes(request).await
    }
}

fn long_living_runtime() -> &'static tokio::runtime::Runtime {
    static RUNTIME: std::sync::OnceLock<tokio::runtime::Runtime> = std::sync::OnceLock::new();
    RUNTIME.get_or_init(|| multi_thread(1))
}

/// The same tenant, for those who look for one and for those who look for a token.
fn credentials() -> Context {
    ExportToken::new("42").unwrap().attach_to(&tenant(42))
}

// ===== callers =====

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Caller {
    NoRuntime,
    CurrentThread,
    /// Inside a spawned task.
    MultiThread1,
    /// Inside a spawned task.
    MultiThread4,
}

impl Caller {
    const ALL: [Self; 4] = [
        Self::NoRuntime,
        Self::CurrentThread,
        Self::MultiThread1,
        Self::MultiThread4,
    ];

    fn run<T: Send + 'static>(self, work: impl Future<Output = T> + Send + 'static) -> T {
        let task = |runtime: tokio::runtime::Runtime, work| {
            runtime.block_on(async { tokio::spawn(work).await.unwrap() })
        };
        match self {
            Caller::NoRuntime => futures_executor::block_on(work),
            Caller::CurrentThread => tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap()
                .block_on(work),
            Caller::MultiThread1 => task(multi_thread(1), work),
            Caller::MultiThread4 => task(multi_thread(4), work),
        }
    }
}

fn multi_thread(workers: usize) -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_all()
        .build()
        .unwrap()
}

// ===== ways out =====

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WayOut {
    Flush,
    HandleShutdown,
    ForceFlush,
    Shutdown,
    Drop,
}

impl WayOut {
    const ALL: [Self; 5] = [
        Self::Flush,
        Self::HandleShutdown,
        Self::ForceFlush,
        Self::Shutdown,
        Self::Drop,
    ];

    fn blocks(self) -> bool {
        matches!(self, WayOut::ForceFlush | WayOut::Shutdown | WayOut::Drop)
    }
}

// ===== cells =====

#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    /// The call succeeded, or it was a drop, which cannot say.
    Arrived,
    /// The call failed quickly, and named the way that works; or it was a drop, quick and without anything to say.
    FailedFast,
    Wrong(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Arrived => f.write_str("arrived"),
            Outcome::FailedFast => f.write_str("failed fast"),
            Outcome::Wrong(what) => write!(f, "WRONG: {what}"),
        }
    }
}

/// What must come out: everything arrives, but where a call blocks the only thread of the runtime that its exporter needs.
fn expected(row: Row, caller: Caller, way: WayOut) -> Outcome {
    match row == Row::Grpc && caller == Caller::CurrentThread && way.blocks() {
        true => Outcome::FailedFast,
        false => Outcome::Arrived,
    }
}

const SPANS: [&str; 3] = ["child 1", "child 2", "root"];

fn run(row: Row, caller: Caller, way: WayOut) -> Outcome {
    let collector = row.collector();
    let tenants = Tenants::default();
    let (endpoint, seen) = (collector.endpoint().to_owned(), tenants.clone());
    let cell = move || {
        caller.run(async move {
            let processor = row
                .builder(&endpoint, &seen)
                .with_config(Config::default())
                .build()
                .unwrap();
            let telemetry = processor.handle();
            let provider = SdkTracerProvider::builder()
                .with_span_processor(processor)
                .build();
            make_spans(&provider);
            let begun = Instant::now();
            let error = match way {
                WayOut::Flush => telemetry.flush().await.err().map(|e| e.to_string()),
                WayOut::HandleShutdown => {
                    let shutdown = telemetry.shutdown(Duration::from_secs(10));
                    shutdown.await.err().map(|e| e.to_string())
                }
                WayOut::ForceFlush => provider.force_flush().err().map(|e| e.to_string()),
                WayOut::Shutdown => provider.shutdown().err().map(|e| e.to_string()),
                WayOut::Drop => {
                    drop(provider);
                    None
                }
            };
            let took = begun.elapsed();
            let stats = telemetry.stats();
            (error, took, stats)
        })
    };
    let what = format!("{row:?} / {caller:?} / {way:?}");
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        within(WATCHDOG, &what, cell)
    }));
    let (error, took, stats) = match caught {
        Ok(done) => done,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
            return Outcome::Wrong(format!("panicked: {text}"));
        }
    };
    if !stats.is_balanced() {
        return Outcome::Wrong(format!("unbalanced {stats:?}"));
    }
    let arrived = || collector.names() == SPANS;
    // The gRPC receiver looks at its channel now and then.
    let patience = Instant::now() + Duration::from_secs(1);
    while row.is_grpc() && error.is_none() && !arrived() && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(1));
    }
    let names_the_way =
        |error: &str| error.contains("flush().await") || error.contains("builder_with");
    match error {
        _ if took > FAST => Outcome::Wrong(format!("took {took:?}: {error:?}")),
        None if arrived() => match tenant_was_seen(row, &collector, &tenants) {
            true => Outcome::Arrived,
            false => Outcome::Wrong("arrived under another tenant".to_owned()),
        },
        None if way == WayOut::Drop => Outcome::FailedFast,
        None => Outcome::Wrong(format!("said Ok, but received {:?}", collector.names())),
        Some(error) if names_the_way(&error) => Outcome::FailedFast,
        Some(error) => Outcome::Wrong(error),
    }
}

fn make_spans(provider: &SdkTracerProvider) {
    let tracer = provider.tracer("matrix");
    let root = tracer.start_with_context("root", &credentials());
    let root = credentials().with_span(root);
    for name in &SPANS[..2] {
        let child = tracer.start_with_context(*name, &root);
        drop(Context::new().with_span(child));
    }
}

fn tenant_was_seen(row: Row, collector: &Collector, tenants: &Tenants) -> bool {
    match row.is_grpc() {
        true => {
            let tenants = tenants.lock().unwrap();
            !tenants.is_empty() && tenants.iter().all(|tenant| *tenant == Some(Tenant(42)))
        }
        false => collector
            .received()
            .iter()
            .all(|request| request.authorization.as_deref() == Some("Bearer 42")),
    }
}

/// Counts panics on threads of the processor, of its exporters and of their runtimes.
fn count_panics() -> &'static AtomicUsize {
    static PANICS: AtomicUsize = AtomicUsize::new(0);
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let text = info.payload_as_str().unwrap_or_default();
            // Other tests have exporters that panic on purpose, and say so; tests that fail have named threads. One has
            // a thread that is named like a worker, where Tokio's own panic is caught.
            let on_purpose = [
                "as its script says",
                "as its test says",
                "can call blocking only",
            ]
            .iter()
            .any(|words| text.contains(words));
            let thread = std::thread::current();
            let name = thread.name().unwrap_or_default();
            let ours = name.starts_with("otel-per-request") || name.starts_with("tokio");
            if ours && !on_purpose {
                PANICS.fetch_add(1, Ordering::SeqCst);
            }
            usual(info);
        }));
    });
    &PANICS
}

fn check_row(row: Row) {
    let panics = count_panics();
    let before = panics.load(Ordering::SeqCst);
    let mut table = String::new();
    let mut good = true;
    for caller in Caller::ALL {
        let cells: Vec<_> = std::thread::scope(|scope| {
            let cells = WayOut::ALL.map(|way| (way, scope.spawn(move || run(row, caller, way))));
            cells
                .into_iter()
                .map(|(way, cell)| (way, cell.join().unwrap()))
                .collect()
        });
        for (way, outcome) in cells {
            let expected = expected(row, caller, way);
            good &= outcome == expected;
            table += &format!("{row:?} | {caller:?} | {way:?} | expected {expected} | {outcome}\n");
        }
    }
    let panicked = panics.load(Ordering::SeqCst) - before;
    assert!(good && panicked == 0, "{panicked} panics\n{table}");
}

macro_rules! rows {
    ($($name:ident: $row:expr;)*) => {
        $(
            /// Scenario: a request of three spans, in each kind of caller, through each way out.
            /// Guarantees: what the module says, and [`expected`] pins.
            #[test]
            fn $name() {
                check_row($row);
            }
        )*

        /// Scenario: the list of rows.
        /// Guarantees: no row is left without a test.
        #[test]
        fn every_row_of_the_matrix_is_tested() {
            assert_eq!([$($row),*], Row::ALL);
        }
    };
}

rows! {
    otlp_with_blocking_reqwest_works_everywhere: Row::ReqwestBlocking;
    otlp_with_reqwest_works_everywhere: Row::Reqwest;
    otlp_with_hyper_works_everywhere: Row::Hyper;
    otlp_with_grpc_works_where_its_runtime_can_run_and_fails_fast_elsewhere: Row::Grpc;
    direct_exporter_works_everywhere: Row::Direct;
    direct_exporter_with_a_client_of_the_users_works_everywhere: Row::DirectReqwest;
    otlp_with_blocking_reqwest_built_within_works_everywhere: Row::ReqwestBlockingWithin;
    otlp_with_reqwest_built_within_works_everywhere: Row::ReqwestWithin;
    otlp_with_hyper_built_within_works_everywhere: Row::HyperWithin;
    otlp_with_grpc_built_within_works_everywhere: Row::GrpcWithin;
}

/// Builds a provider here.
fn build_provider(row: Row, collector: &Collector) -> SdkTracerProvider {
    let processor = row
        .builder(collector.endpoint(), &Tenants::default())
        .with_config(Config::default())
        .build()
        .unwrap();
    SdkTracerProvider::builder()
        .with_span_processor(processor)
        .build()
}

/// Scenario: a task blocks the only worker of its runtime in a shutdown, within `block_in_place`.
/// Guarantees: that is a way that works for every exporter, and it is not mistaken for a deadlock.
#[test]
fn block_in_place_makes_a_synchronous_wait_work_everywhere() {
    for row in Row::ALL {
        let collector = row.collector();
        let runtime = multi_thread(1);
        let provider = runtime.block_on(async { build_provider(row, &collector) });
        make_spans(&provider);
        let result = within(WATCHDOG, "block_in_place", move || {
            runtime.block_on(async {
                tokio::spawn(async move { tokio::task::block_in_place(|| provider.shutdown()) })
                    .await
                    .unwrap()
            })
        });
        assert!(result.is_ok(), "{row:?}: {result:?}");
        wait_until("the spans", || collector.names() == SPANS);
    }
}

/// Scenario: the runtime in which the exporter was built is gone when the provider is shut down, as at the end of a `main`
/// that blocks on an asynchronous part.
/// Guarantees: all exporters work but a gRPC one that lived there; and for that one the shutdown says so, soon.
#[test]
fn exporter_whose_runtime_is_gone_fails_fast_or_works() {
    for row in Row::ALL {
        let collector = row.collector();
        let runtime = multi_thread(1);
        let provider = runtime.block_on(async { build_provider(row, &collector) });
        make_spans(&provider);
        drop(runtime);
        make_spans(&provider);
        let begun = Instant::now();
        let same = provider.clone();
        let result = within(WATCHDOG, "shutdown", move || same.shutdown());
        assert!(begun.elapsed() < FAST, "{row:?}: {:?}", begun.elapsed());
        match row {
            Row::Grpc => assert!(result.is_err(), "{row:?}"),
            _ => {
                assert!(result.is_ok(), "{row:?}: {result:?}");
                wait_until("the spans", || collector.names().len() == 2 * SPANS.len());
            }
        }
    }
}
