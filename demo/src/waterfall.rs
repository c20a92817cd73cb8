//! One request as the receiver saw it: its spans, the lines that were logged in them, and what was measured on its route.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};

use crate::account::Arrived;
use crate::measured::{self, ROUTE_ATTRIBUTE};
use crate::service::{ANSWERED, DURATION, REQUEST_ATTRIBUTE};
use demo::receiver::{Received, ReceivedLog};

/// The width of the bars, and of what is before them.
const COLUMNS: u64 = 32;
const NAMES: usize = 26;

/// The attribute of what could not leave under its request's context.
pub(crate) const LATE_ATTRIBUTE: &str = "per_request.late";

/// What arrived of a request.
#[derive(Default)]
struct Seen<'a> {
    spans: Vec<&'a Received>,
    logs: Vec<&'a ReceivedLog>,
}

/// Prints the request with the most to see: one with late spans, and with many that were in time.
pub(crate) fn print(arrived: &Arrived) {
    let mut requests: HashMap<&str, Seen<'_>> = HashMap::new();
    for received in &arrived.spans {
        if let Some(request) = received.attribute(REQUEST_ATTRIBUTE) {
            requests.entry(request).or_default().spans.push(received);
        }
    }
    for received in &arrived.logs {
        let request = received.attribute(REQUEST_ATTRIBUTE);
        if let Some(seen) = request.and_then(|request| requests.get_mut(request)) {
            seen.logs.push(received);
        }
    }
    let interest = |seen: &Seen<'_>| {
        let late = seen.spans.iter().filter(|span| late(span).is_some());
        let late = late.count();
        (late > 0, seen.spans.len() - late, seen.spans.len())
    };
    let chosen = requests
        .into_iter()
        .max_by_key(|(request, seen)| (interest(seen), Reverse(request.len()), *request));
    if let Some((request, seen)) = chosen {
        let route = seen.spans.iter().find_map(|s| s.attribute(ROUTE_ATTRIBUTE));
        seen.print(request);
        print_measured(arrived, route.unwrap_or_default());
    }
}

/// A span, or a line that was logged.
#[derive(Clone, Copy)]
enum Row<'a> {
    Span(&'a Received),
    Line(&'a ReceivedLog),
}

// ===== impl Seen =====

impl<'a> Seen<'a> {
    fn print(&self, request: &str) {
        println!("Request {request}, as the receiver saw it:\n");
        println!(
            "  {:<NAMES$} {:<32}  {:>8}  {:>7}  under",
            "span, and what it logged", "", "duration", "arrived"
        );
        let rows = self.rows();
        let start = rows.iter().map(|(_, row)| row.start()).min();
        let end = rows.iter().map(|(_, row)| row.end()).max();
        let (start, end) = (start.unwrap_or(0), end.unwrap_or(0));
        for (depth, row) in rows {
            row.print(depth, start, end);
        }
        println!("\n  arrived: milliseconds after the span ended, or the line was logged\n");
    }

    /// Everything below its own span and in the order of time, with the depth.
    fn rows(&self) -> Vec<(usize, Row<'a>)> {
        let ids: HashSet<&[u8]> = self
            .spans
            .iter()
            .map(|s| s.span.span_id.as_slice())
            .collect();
        let mut children: HashMap<&[u8], Vec<Row<'a>>> = HashMap::new();
        let spans = self.spans.iter().map(|span| Row::Span(span));
        let lines = self.logs.iter().map(|line| Row::Line(line));
        for row in spans.chain(lines) {
            let parent = Some(row.parent()).filter(|parent| ids.contains(parent));
            children
                .entry(parent.unwrap_or_default())
                .or_default()
                .push(row);
        }
        for rows in children.values_mut() {
            rows.sort_by_key(|row| (row.start(), Reverse(row.end())));
        }
        let mut all = Vec::new();
        let mut to_do = vec![(0, children.remove([].as_slice()).unwrap_or_default())];
        while let Some((depth, rows)) = to_do.pop() {
            let mut rows = rows.into_iter();
            let Some(row) = rows.next() else {
                continue;
            };
            all.push((depth, row));
            to_do.push((depth, rows.collect()));
            if let Row::Span(received) = row {
                let below = children.remove(received.span.span_id.as_slice());
                to_do.push((depth + 1, below.unwrap_or_default()));
            }
        }
        all
    }
}

// ===== impl Row =====

impl<'a> Row<'a> {
    fn start(self) -> u64 {
        match self {
            Self::Span(received) => received.span.start_time_unix_nano,
            Self::Line(received) => received.logged(),
        }
    }

    fn end(self) -> u64 {
        match self {
            Self::Span(received) => received.span.end_time_unix_nano,
            Self::Line(received) => received.logged(),
        }
    }

    /// The id of the span that it is in.
    fn parent(self) -> &'a [u8] {
        match self {
            Self::Span(received) => &received.span.parent_span_id,
            Self::Line(received) => &received.record.span_id,
        }
    }

    fn print(self, depth: usize, start: u64, end: u64) {
        let (text, duration) = match self {
            Self::Span(received) => {
                let nanos = self.end() - self.start();
                (
                    received.span.name.clone(),
                    format!("{:.1} ms", millis(nanos)),
                )
            }
            Self::Line(received) => {
                let severity = received.record.severity_text.to_lowercase();
                let message = received.message().unwrap_or_default();
                (format!("\"{message}\""), severity)
            }
        };
        let name = format!("{}{text}", "  ".repeat(depth));
        let bar = match self {
            Self::Span(_) => bar(self.start() - start, self.end() - start, end - start, '█'),
            Self::Line(_) => bar(self.start() - start, self.start() - start, end - start, '◆'),
        };
        let (token, arrived, late) = match self {
            Self::Span(received) => (&received.token, received.arrived, late(received)),
            Self::Line(received) => (
                &received.token,
                received.arrived,
                received.attribute(LATE_ATTRIBUTE),
            ),
        };
        let late = late.map_or(String::new(), |reason| format!("  LATE: {reason}"));
        let arrived = millis(arrived.saturating_sub(self.end()));
        println!("  {name:<NAMES$} {bar}  {duration:>8}  {arrived:>+7.1}  {token}{late}");
    }
}

/// What the instruments of the service say of all requests of a route.
fn print_measured(arrived: &Arrived, route: &str) {
    let total = |instrument| measured::total(&arrived.metrics, instrument, route);
    let (Some(answered), Some(duration)) = (total(ANSWERED), total(DURATION)) else {
        return;
    };
    let mean = duration.sum / (duration.count.max(1)) as f64;
    println!("  measured on {route}, with all other requests:");
    println!("  {ANSWERED:<NAMES$} {}", answered.count);
    println!(
        "  {DURATION:<NAMES$} {} times, {:.1} ms on average, {:.1} ms at most\n",
        duration.count,
        mean * 1e3,
        duration.max * 1e3
    );
}

fn late(received: &Received) -> Option<&str> {
    received.attribute(LATE_ATTRIBUTE)
}

fn bar(from: u64, to: u64, whole: u64, of: char) -> String {
    let column = |nanos: u64| (nanos * COLUMNS / whole.max(1)) as usize;
    let (from, to) = (column(from), column(to));
    let length = (to - from).max(1);
    let from = from.min(COLUMNS as usize - length);
    format!(
        "{}{}{}",
        " ".repeat(from),
        of.to_string().repeat(length),
        " ".repeat(COLUMNS as usize - from - length)
    )
}

fn millis(nanos: u64) -> f64 {
    nanos as f64 / 1e6
}
