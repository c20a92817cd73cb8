//! The receiving process: OTLP over HTTP that answers, is busy, breaks off or hangs, as it is told on its standard input.
//!
//! It is a process of its own, so that its memory is not part of what is measured. It takes in a span when it answers 200,
//! and never breaks off what it has answered so.

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
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use tokio::sync::watch;

use crate::load::{REQUEST, SPAN, request_of};

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
    /// Spans in requests that were answered 200.
    pub(crate) taken: u64,
    /// The same, each span once.
    pub(crate) distinct: u64,
    /// Those that are marked late.
    pub(crate) late: u64,
    /// Those that came under a token that is not their own: another request's, any for a late span, none for another one.
    pub(crate) strays: u64,
    /// Connections that are open now.
    pub(crate) connections: u64,
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

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            taken,
            distinct,
            late,
            strays,
            connections,
        } = self;
        write!(f, "{taken} {distinct} {late} {strays} {connections}")
    }
}

impl FromStr for Tally {
    type Err = io::Error;

    fn from_str(line: &str) -> io::Result<Self> {
        let numbers: Result<Vec<u64>, _> = line.split(' ').map(str::parse).collect();
        match numbers.map_err(io::Error::other)?[..] {
            [taken, distinct, late, strays, connections] => Ok(Self {
                taken,
                distinct,
                late,
                strays,
                connections,
            }),
            _ => Err(io::Error::other(format!("not a tally: {line}"))),
        }
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
    /// The spans that were taken, a bit for each number.
    seen: HashMap<u64, u64>,
}

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
                self.take(token.and_then(|token| token.to_str().ok()), body)
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

    fn take(&self, token: Option<&str>, body: Bytes) -> StatusCode {
        let Ok(request) = ExportTraceServiceRequest::decode(body) else {
            return StatusCode::BAD_REQUEST;
        };
        let spans = request
            .resource_spans
            .iter()
            .flat_map(|resource| &resource.scope_spans)
            .flat_map(|scope| &scope.spans);
        let mut inbox = self.inbox();
        spans.for_each(|span| inbox.take(token, span));
        StatusCode::OK
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
    fn take(&mut self, token: Option<&str>, span: &Span) {
        let late = attribute(span, "per_request.late").is_some();
        let sent_by = token.and_then(request_of);
        let made_by = match late {
            true => None,
            false => number(span, REQUEST),
        };
        self.tally.taken += 1;
        self.tally.late += u64::from(late);
        self.tally.strays += u64::from(sent_by != made_by || token.is_some() == late);
        self.tally.distinct += u64::from(self.is_new(number(span, SPAN)));
    }

    /// Whether this span is here for the first time.
    fn is_new(&mut self, span: Option<u64>) -> bool {
        let Some(span) = span else {
            return false;
        };
        let seen = self.seen.entry(span / 64).or_default();
        let bit = 1 << (span % 64);
        let new = *seen & bit == 0;
        *seen |= bit;
        new
    }
}

fn attribute<'a>(span: &'a Span, key: &str) -> Option<&'a Value> {
    let attribute = span.attributes.iter().find(|kv| kv.key == key)?;
    attribute.value.as_ref()?.value.as_ref()
}

fn number(span: &Span, key: &str) -> Option<u64> {
    match attribute(span, key)? {
        Value::IntValue(number) => u64::try_from(*number).ok(),
        _ => None,
    }
}
