//! The receiving process: OTLP over HTTP that answers, is busy, breaks off or hangs, as it is told on its standard input.
//!
//! It is a process of its own, so that its memory is not part of what is measured. It takes in a span, a log
//! record or a metric when it answers 200, and never breaks off what it has answered so.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt;
use std::io::{self, BufRead as _, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::pin::pin;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::metrics::v1::Metric;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point;
use prost::{DecodeError, Message as _};
use tokio::sync::watch;

use crate::load::{NUMBER, REQUEST, REQUESTS, request_of};

/// The first argument of the process that receives.
pub(crate) const RECEIVE: &str = "receive";

/// What the receiver does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Takes it.
    Answer,
    /// Answers 503.
    Busy,
    /// Closes the connection without an answer.
    Break,
    /// Says nothing until the mode changes, and then breaks off.
    Hang,
}

/// What arrived.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) spans: Items,
    pub(crate) logs: Items,
    /// Points of metrics in requests that were answered 200.
    pub(crate) points: u64,
    /// Those of them that came under a token.
    pub(crate) stray_points: u64,
    /// The most that the counter of requests has said.
    pub(crate) counted: u64,
    /// Connections that are open now.
    pub(crate) connections: u64,
}

/// What arrived of a signal whose items belong to requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Items {
    /// In requests that were answered 200.
    pub(crate) taken: u64,
    /// The same, each of them once.
    pub(crate) distinct: u64,
    /// Those that are marked late.
    pub(crate) late: u64,
    /// Those that came under a token that is not their own: another request's, any for a late one, none for another one.
    pub(crate) strays: u64,
}

/// What the sender can ask for, one a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Be(Mode),
    /// Close all connections that have nothing under way.
    Hush,
    Report,
}

// ===== the words of both sides =====

const ORDERS: [(&str, Order); 6] = [
    ("answer", Order::Be(Mode::Answer)),
    ("busy", Order::Be(Mode::Busy)),
    ("break", Order::Be(Mode::Break)),
    ("hang", Order::Be(Mode::Hang)),
    ("hush", Order::Hush),
    ("report", Order::Report),
];

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = ORDERS.iter().find(|(_, order)| order == self);
        f.write_str(word.map_or("", |(word, _)| word))
    }
}

impl FromStr for Order {
    type Err = io::Error;

    fn from_str(line: &str) -> io::Result<Self> {
        let found = ORDERS.iter().find(|(word, _)| *word == line);
        found
            .map(|(_, order)| *order)
            .ok_or_else(|| io::Error::other(format!("no such order: {line}")))
    }
}

impl Tally {
    fn numbers(&mut self) -> [&mut u64; 12] {
        let Self {
            spans,
            logs,
            points,
            stray_points,
            counted,
            connections,
        } = self;
        let [a, b, c, d] = spans.numbers();
        let [e, f, g, h] = logs.numbers();
        [
            a,
            b,
            c,
            d,
            e,
            f,
            g,
            h,
            points,
            stray_points,
            counted,
            connections,
        ]
    }
}

impl Items {
    fn numbers(&mut self) -> [&mut u64; 4] {
        let Self {
            taken,
            distinct,
            late,
            strays,
        } = self;
        [taken, distinct, late, strays]
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut tally = *self;
        let numbers = tally.numbers().map(|number| number.to_string());
        f.write_str(&numbers.join(" "))
    }
}

impl FromStr for Tally {
    type Err = io::Error;

    fn from_str(line: &str) -> io::Result<Self> {
        let numbers: Result<Vec<u64>, _> = line.split(' ').map(str::parse).collect();
        let numbers = numbers.map_err(io::Error::other)?;
        let mut tally = Self::default();
        let places = tally.numbers();
        if numbers.len() != places.len() {
            return Err(io::Error::other(format!("not a tally: {line}")));
        }
        for (place, number) in places.into_iter().zip(numbers) {
            *place = number;
        }
        Ok(tally)
    }
}

// ===== the process =====

#[derive(Debug)]
struct Receiver {
    mode: watch::Sender<Mode>,
    hush: watch::Sender<()>,
    inbox: Mutex<Inbox>,
    connections: AtomicU64,
}

#[derive(Debug, Default)]
struct Inbox {
    tally: Tally,
    seen_spans: Seen,
    seen_logs: Seen,
}

/// What was taken, a bit for each number.
#[derive(Debug, Default)]
struct Seen(HashMap<u64, u64>);

/// Says where it listens, and then does what it is told until its input ends.
pub(crate) fn receive() -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    listener.set_nonblocking(true)?;
    say(format_args!("http://{}", listener.local_addr()?))?;
    let receiver = Arc::new(Receiver {
        mode: watch::Sender::new(Mode::Answer),
        hush: watch::Sender::new(()),
        inbox: Mutex::default(),
        connections: AtomicU64::new(0),
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    let serving = Arc::clone(&receiver);
    thread::spawn(move || runtime.block_on(serving.accept(listener)));
    for line in io::stdin().lock().lines() {
        match line?.parse()? {
            Order::Be(mode) => drop(receiver.mode.send_replace(mode)),
            Order::Hush => receiver.hush.send_replace(()),
            Order::Report => say(format_args!("{}", receiver.tally()))?,
        }
    }
    Ok(())
}

fn say(line: fmt::Arguments<'_>) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

/// Ends a connection without an answer.
#[derive(Debug)]
struct BrokenOff;

impl fmt::Display for BrokenOff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("broken off")
    }
}

impl std::error::Error for BrokenOff {}

impl Receiver {
    async fn accept(self: Arc<Self>, listener: TcpListener) -> io::Result<Infallible> {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        loop {
            let (stream, _) = listener.accept().await?;
            tokio::spawn(Arc::clone(&self).serve(stream));
        }
    }

    async fn serve(self: Arc<Self>, stream: tokio::net::TcpStream) {
        self.connections.fetch_add(1, Ordering::Relaxed);
        let mut hush = self.hush.subscribe();
        let service = service_fn(|request| self.answer(request));
        let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        let mut connection = pin!(connection);
        loop {
            tokio::select! {
                // A client that goes away, or one that was broken off.
                _ = connection.as_mut() => break,
                _ = hush.changed() => connection.as_mut().graceful_shutdown(),
            }
        }
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
    ) -> Result<Response<Empty<Bytes>>, BrokenOff> {
        let mut mode = self.mode.subscribe();
        let (head, body) = request.into_parts();
        let body = body.collect().await.map_err(|_| BrokenOff)?.to_bytes();
        let now = *mode.borrow_and_update();
        let status = match now {
            Mode::Answer => {
                let token = head.headers.get(header::AUTHORIZATION);
                self.take(head.uri.path(), token.and_then(|t| t.to_str().ok()), body)
            }
            Mode::Busy => StatusCode::SERVICE_UNAVAILABLE,
            Mode::Break => return Err(BrokenOff),
            Mode::Hang => {
                // The sender lives as long as this process.
                let _ = mode.changed().await;
                return Err(BrokenOff);
            }
        };
        let mut response = Response::new(Empty::new());
        *response.status_mut() = status;
        Ok(response)
    }

    fn take(&self, path: &str, token: Option<&str>, body: Bytes) -> StatusCode {
        let mut inbox = self.inbox();
        let taken = match path {
            "/v1/traces" => inbox.take_spans(token, body),
            "/v1/logs" => inbox.take_logs(token, body),
            "/v1/metrics" => inbox.take_metrics(token, body),
            _ => return StatusCode::NOT_FOUND,
        };
        match taken {
            Ok(()) => StatusCode::OK,
            Err(_) => StatusCode::BAD_REQUEST,
        }
    }

    fn tally(&self) -> Tally {
        Tally {
            connections: self.connections.load(Ordering::Relaxed),
            ..self.inbox().tally
        }
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inbox {
    fn take_spans(&mut self, token: Option<&str>, body: Bytes) -> Result<(), DecodeError> {
        let request = ExportTraceServiceRequest::decode(body)?;
        let resources = request.resource_spans.into_iter();
        let scopes = resources.flat_map(|resource| resource.scope_spans);
        for span in scopes.flat_map(|scope| scope.spans) {
            let (items, seen) = (&mut self.tally.spans, &mut self.seen_spans);
            items.take(seen, token, &span.attributes);
        }
        Ok(())
    }

    fn take_logs(&mut self, token: Option<&str>, body: Bytes) -> Result<(), DecodeError> {
        let request = ExportLogsServiceRequest::decode(body)?;
        let resources = request.resource_logs.into_iter();
        let scopes = resources.flat_map(|resource| resource.scope_logs);
        for record in scopes.flat_map(|scope| scope.log_records) {
            let (items, seen) = (&mut self.tally.logs, &mut self.seen_logs);
            items.take(seen, token, &record.attributes);
        }
        Ok(())
    }

    fn take_metrics(&mut self, token: Option<&str>, body: Bytes) -> Result<(), DecodeError> {
        let request = ExportMetricsServiceRequest::decode(body)?;
        let resources = request.resource_metrics.into_iter();
        let scopes = resources.flat_map(|resource| resource.scope_metrics);
        for metric in scopes.flat_map(|scope| scope.metrics) {
            let (points, counted) = read(&metric);
            self.tally.points += points;
            self.tally.stray_points += if token.is_some() { points } else { 0 };
            self.tally.counted = self.tally.counted.max(counted);
        }
        Ok(())
    }
}

impl Items {
    fn take(&mut self, seen: &mut Seen, token: Option<&str>, attributes: &[KeyValue]) {
        let late = attribute(attributes, "per_request.late").is_some();
        let sent_by = token.and_then(request_of);
        let made_by = match late {
            true => None,
            false => number(attributes, REQUEST),
        };
        self.taken += 1;
        self.late += u64::from(late);
        self.strays += u64::from(sent_by != made_by || token.is_some() == late);
        self.distinct += u64::from(seen.is_new(number(attributes, NUMBER)));
    }
}

impl Seen {
    /// Whether the item of this number is here for the first time.
    fn is_new(&mut self, number: Option<u64>) -> bool {
        let Some(number) = number else {
            return false;
        };
        let seen = self.0.entry(number / 64).or_default();
        let bit = 1 << (number % 64);
        let new = *seen & bit == 0;
        *seen |= bit;
        new
    }
}

/// How many points a metric has, and what it says if it is the counter of requests.
fn read(metric: &Metric) -> (u64, u64) {
    let (points, counted) = match &metric.data {
        Some(Data::Sum(sum)) => {
            let values = sum.data_points.iter().map(|point| match point.value {
                Some(number_data_point::Value::AsInt(value)) => value.try_into().unwrap_or(0),
                _ => 0,
            });
            (sum.data_points.len(), values.sum())
        }
        Some(Data::Gauge(gauge)) => (gauge.data_points.len(), 0),
        Some(Data::Histogram(histogram)) => (histogram.data_points.len(), 0),
        Some(Data::ExponentialHistogram(histogram)) => (histogram.data_points.len(), 0),
        Some(Data::Summary(summary)) => (summary.data_points.len(), 0),
        None => (0, 0),
    };
    let is_counter = metric.name == REQUESTS;
    (points as u64, if is_counter { counted } else { 0 })
}

fn attribute<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a Value> {
    let attribute = attributes.iter().find(|kv| kv.key == key)?;
    attribute.value.as_ref()?.value.as_ref()
}

fn number(attributes: &[KeyValue], key: &str) -> Option<u64> {
    match attribute(attributes, key)? {
        Value::IntValue(number) => u64::try_from(*number).ok(),
        _ => None,
    }
}
