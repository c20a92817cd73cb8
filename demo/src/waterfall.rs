//! One request as the receiver saw it.

use std::collections::HashMap;

use crate::service::REQUEST_ATTRIBUTE;
use demo::receiver::Received;

/// The width of the bars.
const COLUMNS: u64 = 32;

/// Prints the request with the most to see: one with late spans, and with many that were in time.
pub(crate) fn print(spans: &[Received]) {
    let mut requests: HashMap<&str, Vec<&Received>> = HashMap::new();
    for received in spans {
        if let Some(request) = received.attribute(REQUEST_ATTRIBUTE) {
            requests.entry(request).or_default().push(received);
        }
    }
    let interest = |spans: &[&Received]| {
        let late = spans.iter().filter(|span| late(span).is_some()).count();
        (late > 0, spans.len() - late, spans.len())
    };
    let chosen = requests.into_iter().max_by_key(|(request, spans)| {
        (interest(spans), std::cmp::Reverse(request.len()), *request)
    });
    if let Some((request, spans)) = chosen {
        print_request(request, spans);
    }
}

fn print_request(request: &str, mut spans: Vec<&Received>) {
    let start = spans
        .iter()
        .map(|s| s.span.start_time_unix_nano)
        .min()
        .unwrap_or(0);
    let end = spans
        .iter()
        .map(|s| s.span.end_time_unix_nano)
        .max()
        .unwrap_or(start);
    spans.sort_by_key(|s| {
        (
            s.span.start_time_unix_nano,
            std::cmp::Reverse(s.span.end_time_unix_nano),
        )
    });
    let parents: HashMap<&[u8], &[u8]> = spans
        .iter()
        .map(|s| (s.span.span_id.as_slice(), s.span.parent_span_id.as_slice()))
        .collect();
    println!("Request {request}, as the receiver saw it:\n");
    println!(
        "  {:<22} {:<32}  {:>8}  {:>7}  under",
        "span", "", "duration", "arrived"
    );
    for received in &spans {
        let span = &received.span;
        let depth = depth(&parents, &span.span_id);
        let name = format!("{}{}", "  ".repeat(depth), span.name);
        let bar = bar(
            span.start_time_unix_nano - start,
            span.end_time_unix_nano - start,
            end - start,
        );
        let arrived = received.arrived.saturating_sub(span.end_time_unix_nano);
        let late = match late(received) {
            Some(reason) => format!("  LATE: {reason}"),
            None => String::new(),
        };
        println!(
            "  {name:<22} {bar}  {:>5.1} ms  {:>+7.1}  {}{late}",
            millis(span.end_time_unix_nano - span.start_time_unix_nano),
            millis(arrived),
            received.token,
        );
    }
    println!("\n  arrived: milliseconds after the span ended\n");
}

fn late(received: &Received) -> Option<&str> {
    received.attribute("per_request.late")
}

fn depth(parents: &HashMap<&[u8], &[u8]>, span: &[u8]) -> usize {
    let mut depth = 0;
    let mut at = span;
    while let Some(parent) = parents
        .get(at)
        .filter(|parent| parents.contains_key(*parent))
    {
        depth += 1;
        at = parent;
    }
    depth
}

fn bar(from: u64, to: u64, whole: u64) -> String {
    let column = |nanos: u64| (nanos * COLUMNS / whole.max(1)) as usize;
    let (from, to) = (column(from), column(to));
    let length = (to - from).max(1);
    let from = from.min(COLUMNS as usize - length);
    format!(
        "{}{}{}",
        " ".repeat(from),
        "█".repeat(length),
        " ".repeat(COLUMNS as usize - from - length)
    )
}

fn millis(nanos: u64) -> f64 {
    nanos as f64 / 1e6
}
