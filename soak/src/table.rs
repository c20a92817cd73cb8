//! The outcomes side by side.

use opentelemetry_per_request::{DropReason, Dropped};

use crate::scenario::Outcome;

/// A name, and the value for each outcome.
type Row = (&'static str, fn(&Outcome) -> String);

const ROWS: [Row; 27] = [
    ("ended", |o| o.last().stats.ended.to_string()),
    ("exported", |o| o.last().stats.exported.to_string()),
    ("received", |o| o.last().tally.spans.taken.to_string()),
    ("failed", |o| o.last().stats.failed.to_string()),
    ("dropped", |o| dropped(&o.last().stats.dropped)),
    ("late", |o| o.last().stats.late.total().to_string()),
    ("logs emitted", |o| o.last().stats.logs.received.to_string()),
    ("logs received", |o| o.last().tally.logs.taken.to_string()),
    ("logs failed", |o| o.last().stats.logs.failed.to_string()),
    ("logs dropped", |o| dropped(&o.last().stats.logs.dropped)),
    ("logs late", |o| {
        o.last().stats.logs.late.total().to_string()
    }),
    ("points received", |o| o.last().tally.points.to_string()),
    ("evicted traces", |o| {
        o.last().stats.evicted_traces.to_string()
    }),
    ("exports", |o| o.last().stats.exports.to_string()),
    ("looks at the account", |o| o.extremes.looks.to_string()),
    ("most pending", |o| o.extremes.pending.to_string()),
    ("most traces", |o| o.extremes.traces.to_string()),
    ("most threads", |o| o.extremes.threads.to_string()),
    ("live kB before", |o| kilobytes(o.live_before)),
    ("live kB at most", |o| kilobytes(o.extremes.live_bytes)),
    ("live kB after warm-up", |o| kilobytes(o.warm().live_bytes)),
    ("live kB at the end", |o| kilobytes(o.last().live_bytes)),
    ("live kB after shutdown", |o| kilobytes(o.live_after)),
    ("slope, B/1000 spans", |o| {
        format!("{:.0}", o.slope_by(|d| d.stats.ended as f64 / 1e3))
    }),
    ("slope, B/s", |o| {
        let start = o.warm().at;
        format!("{:.0}", o.slope_by(|d| (d.at - start).as_secs_f64()))
    }),
    ("the same under load", |o| {
        format!("{:.0}", o.extremes.live_line.slope())
    }),
    ("resident MB, warm/end/most", |o| {
        let (warm, last) = (o.warm().resident_bytes, o.last().resident_bytes);
        let megabytes =
            [warm, last, o.extremes.resident_bytes].map(|b| (b / 1_000_000).to_string());
        megabytes.join("/")
    }),
];

#[allow(clippy::print_stdout, reason = "this is what the program is for")]
pub(crate) fn print(outcomes: &[Outcome]) {
    let line = |name: &str, value: &dyn Fn(&Outcome) -> String| {
        let values = outcomes.iter().map(|o| format!("{:>21}", value(o)));
        println!("{name:<28}{}", values.collect::<String>());
    };
    line("", &|o| o.name.to_owned());
    for (name, value) in ROWS {
        line(name, &value);
    }
    line("rounds after warm-up", &|o| {
        (o.drained.len() - 1).to_string()
    });
    line("seconds", &|o| format!("{:.1}", o.took.as_secs_f64()));
}

/// By reason, where there are any.
fn dropped(dropped: &Dropped) -> String {
    let by_reason = DropReason::ALL.into_iter().filter_map(|reason| {
        let items = dropped.by(reason);
        (items > 0).then(|| format!("{items} {reason}"))
    });
    let reasons: Vec<_> = by_reason.collect();
    match reasons.is_empty() {
        true => "0".to_owned(),
        false => reasons.join(", "),
    }
}

/// To a tenth, because that is about what chance can do.
fn kilobytes(bytes: i64) -> String {
    format!("{:.1}", bytes as f64 / 1e3)
}
