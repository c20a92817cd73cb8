//! What arrives of a burst that is more than a slow receiver can take.
//!
//! The receiver is a process of its own, so that the CPU time is the sender's alone.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use cpu_time::ProcessTime;
use demo::receiver::Receiver;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp_direct::DirectExporter;
use opentelemetry_sdk::trace::SdkTracer;

use crate::provider;
use crate::span_cost::{Kind, request};

/// Requests in the burst.
pub const REQUESTS: usize = 20_000;
/// Spans in a request.
pub const SPANS: usize = 5;
/// What the receiver takes for each answer.
pub const DELAY: Duration = Duration::from_millis(5);
/// Threads that make the burst.
const THREADS: usize = 2;
/// Time for what is pending after the burst.
const PATIENCE: Duration = Duration::from_secs(60);
/// The first argument of the process that receives.
pub const RECEIVER: &str = "receive";

/// What became of the spans.
#[derive(Clone, Copy, Debug)]
pub struct Delivery {
    /// Spans that ended.
    pub ended: u64,
    /// Spans that the receiver got.
    pub received: u64,
    /// Spans that did not arrive.
    pub dropped: u64,
    /// Microseconds of CPU for each span that arrived.
    pub cpu_us_per_span: f64,
}

/// Runs the burst through this processor, with its defaults.
///
/// # Panics
///
/// If the receiver cannot be started.
pub fn measure(kind: Kind) -> Delivery {
    let mut receiver = Command::new(std::env::current_exe().expect("this program has a path"))
        .arg(RECEIVER)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("this program can be started again");
    let mut said = BufReader::new(receiver.stdout.take().expect("it is piped")).lines();
    let mut line = || said.next().expect("a line").expect("valid text");
    let endpoint = line();

    let exporter = DirectExporter::builder()
        .with_endpoint(endpoint)
        .build()
        .expect("the settings are valid");
    let provider = provider(kind, exporter);

    let cpu = ProcessTime::now();
    burst(&provider.tracer("bench"));
    // An error is expected: not everything arrived.
    let _ = provider.shutdown_with_timeout(PATIENCE);
    let cpu = cpu.elapsed();

    drop(receiver.stdin.take());
    let received: u64 = line().parse().expect("a number");
    let _ = receiver.wait();
    let ended = (REQUESTS * SPANS) as u64;
    Delivery {
        ended,
        received,
        dropped: ended - received,
        cpu_us_per_span: cpu.as_secs_f64() * 1e6 / received as f64,
    }
}

fn burst(tracer: &SdkTracer) {
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| (0..REQUESTS / THREADS).for_each(|_| request(tracer, SPANS)));
        }
    });
}

/// The process that receives: says where, and when its input ends, how many spans there were.
///
/// # Errors
///
/// If it cannot listen.
pub fn receive(mut say: impl FnMut(String)) -> std::io::Result<()> {
    let receiver = Receiver::slow_http(DELAY)?;
    say(receiver.endpoint());
    std::io::stdin().read_to_end(&mut Vec::new())?;
    say(receiver.received().len().to_string());
    Ok(())
}
