//! What a receiver gets over HTTP, decoded in full.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::future::pending;
use std::sync::{Arc, Mutex};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::routing::get;
use opentelemetry::logs::{LogRecord as _, Logger as _, LoggerProvider as _, Severity};
use opentelemetry::trace::{
    SpanBuilder, SpanKind, Status, TraceContextExt as _, Tracer as _, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp_direct::{DirectExporter, ExportToken};
use opentelemetry_per_request::{OPEN_EVENT_NAME, Telemetry, in_child};
use opentelemetry_proto::tonic::common::v1::KeyValue as OtlpKeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::SpanProcessor;

use super::*;
use crate::server::site::Serving;
use crate::support::collector::Collector;
use crate::support::soon;

fn telemetry(collector: &Collector, config: Config, keep: &Keep) -> Telemetry {
    let exporter = DirectExporter::builder()
        .with_env_lookup(|_| None)
        .with_endpoint(collector.endpoint())
        .build()
        .unwrap();
    let keep = keep.clone();
    Telemetry::builder()
        .with_exporter(exporter)
        .with_config(config.with_metric_period(None))
        .with_tracer_provider(move |builder| builder.with_span_processor(keep))
        .build()
        .unwrap()
}

/// Keeps each span as it ended.
#[derive(Clone, Debug, Default)]
struct Keep(Arc<Mutex<Vec<SpanData>>>);

impl SpanProcessor for Keep {
    fn on_start(&self, _: &mut opentelemetry_sdk::trace::Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        self.0.lock().unwrap().push(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

fn text(attributes: &[OtlpKeyValue], key: &str) -> Option<String> {
    let attribute = attributes.iter().find(|attribute| attribute.key == key)?;
    match attribute.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        other => Some(format!("{other:?}")),
    }
}

fn is_pending_span(span: &Span) -> bool {
    text(&span.attributes, "logfire.span_type").as_deref() == Some("pending_span")
}

/// All spans that have arrived: those that have ended, and the pending ones apart.
fn spans_of(collector: &Collector) -> (Vec<Span>, Vec<Span>) {
    let received = collector.received().into_iter();
    let spans = received.flat_map(|received| received.decoded);
    spans.partition(|span| !is_pending_span(span))
}

/// All log records that have arrived: those of the application, and those that tell of spans apart, each with its token.
fn logs_of(collector: &Collector) -> [Vec<(LogRecord, Option<String>)>; 2] {
    let posts = collector.log_posts().into_iter();
    let records = posts.flat_map(|post| {
        let token = post.authorization;
        let records = post.decoded.into_iter();
        records.map(move |record| (record, token.clone()))
    });
    let (events, others) = records.partition(|(log, _)| log.event_name == OPEN_EVENT_NAME);
    [others, events]
}

/// The names of the spans that the receiver was told of as open, sorted.
fn opened(collector: &Collector) -> Vec<String> {
    let [_, events] = logs_of(collector);
    let of_event = |(log, _): &(LogRecord, _)| text(&log.attributes, "span.name");
    let (_, pending) = spans_of(collector);
    let mut names: Vec<_> = events.iter().filter_map(of_event).collect();
    names.extend(pending.into_iter().map(|span| span.name));
    names.sort();
    names
}

/// Scenario: with the default minimum age, a handler behind the server's layer hangs in a child span; nothing else happens.
/// Guarantees: the receiver is told of both while it hangs, in both forms, and of one request at least within a second; of neither has
/// it a span that has ended; when the client leaves, both arrive.
#[test]
fn handler_that_hangs_is_visible_at_the_receiver() {
    const TRIES: usize = 10;
    for form in FORMS {
        let mut best = Duration::MAX;
        // The machine may stall, but not each time.
        for _ in 0..TRIES {
            let collector = Collector::http();
            let config = Config::default().with_open_events(form);
            let telemetry = telemetry(&collector, config, &Keep::default());
            let handler = || in_child("query database", pending::<String>());
            let app = Router::new()
                .route("/orders/{id}", get(handler))
                .layer(telemetry.server_layer());
            let serving = Serving::axum(app);
            let mut wire = serving.connect();
            let start = Instant::now();
            wire.get("/orders/4711");
            let names = ["GET /orders/{id}", "query database"];
            wait_until("both are visible", || opened(&collector) == names);
            best = best.min(start.elapsed());
            let (ended, _) = spans_of(&collector);
            assert_eq!(ended, [], "{form}");
            wire.hang_up();
            wait_until("both have ended", || {
                let (mut ended, _) = spans_of(&collector);
                ended.sort_by(|a, b| a.name.cmp(&b.name));
                let ended: Vec<_> = ended.iter().map(|span| span.name.as_str()).collect();
                ended == names
            });
            soon(telemetry.shutdown(Duration::from_secs(5))).unwrap();
            assert_eq!(opened(&collector), names);
            if best < Duration::from_secs(1) {
                break;
            }
        }
        assert!(best < Duration::from_secs(1), "{form}: {best:?}");
    }
}

const REQUESTS: usize = 50;

/// A request of a root and two children, one of which is slow in every fifth, and some of which fail; with log records.
fn work(telemetry: &Telemetry, n: usize, is_told: impl Fn(&str)) {
    let token = ExportToken::new((n % 3).to_string()).unwrap();
    let cx = token.attach_to(&Context::new());
    let tracer = telemetry.tracer_provider().tracer("shop");
    let logger = telemetry.logger_provider().logger("shop");
    let start = |name: String, kind, parent: &Context| {
        let attributes = [
            KeyValue::new("number", n as i64),
            KeyValue::new("text", "å"),
            KeyValue::new("truth", n.is_multiple_of(2)),
        ];
        let builder = SpanBuilder::from_name(name)
            .with_kind(kind)
            .with_attributes(attributes);
        parent.with_span(tracer.build_with_context(builder, parent))
    };
    let root = start(format!("request {n}"), SpanKind::Server, &cx);
    let quick = start(format!("quick {n}"), SpanKind::Internal, &root);
    quick
        .span()
        .add_event("event", vec![KeyValue::new("of", "quick")]);
    quick.span().end();
    let slow = start(format!("slow {n}"), SpanKind::Client, &root);
    {
        let _active = slow.clone().attach();
        let mut record = logger.create_log_record();
        record.set_body(format!("said in {n}").into());
        record.set_severity_number(Severity::Error);
        record.add_attribute("number", n as i64);
        logger.emit(record);
    }
    if n.is_multiple_of(5) {
        is_told(&format!("slow {n}"));
    }
    slow.span().set_attribute(KeyValue::new("later", n as i64));
    if n.is_multiple_of(7) {
        slow.span().set_status(Status::error("no"));
    }
    slow.span().end();
    root.span().end();
}

/// All that a receiver knows of a span but its ids and times, with its parent and its token by name.
type Described = (Option<String>, i32, String, Vec<OtlpKeyValue>, String, u32);

fn described(spans: &[Span]) -> BTreeMap<String, Described> {
    let names: HashMap<_, _> = spans.iter().map(|s| (&s.span_id, s.name.clone())).collect();
    assert_eq!(names.len(), spans.len(), "a span id is there twice");
    let all = spans.iter().map(|span| {
        assert_eq!((span.trace_id.len(), span.span_id.len()), (16, 8));
        assert!(span.start_time_unix_nano <= span.end_time_unix_nano);
        let parent = names.get(&span.parent_span_id).cloned();
        assert_eq!(parent.is_none(), span.parent_span_id.is_empty());
        let events = span.events.iter().map(|event| &event.name);
        let rest = format!("{:?} {:?}", span.links, events.collect::<Vec<_>>());
        let status = format!("{:?}", span.status);
        let attributes = span.attributes.clone();
        let described = (parent, span.kind, status, attributes, rest, span.flags);
        (span.name.clone(), described)
    });
    let all: BTreeMap<_, _> = all.collect();
    assert_eq!(all.len(), spans.len(), "a name is there twice");
    all
}

/// What the application said, by its text, with its span's name and its token.
type Said = (String, Option<String>, i32, Vec<OtlpKeyValue>);

fn said(spans: &[Span], logs: &[(LogRecord, Option<String>)]) -> BTreeMap<String, Said> {
    let names: HashMap<_, _> = spans.iter().map(|s| (&s.span_id, s.name.clone())).collect();
    let all = logs.iter().map(|(log, token)| {
        let span = names[&log.span_id].clone();
        let severity = log.severity_number;
        let said = (span, token.clone(), severity, log.attributes.clone());
        (format!("{:?}", log.body), said)
    });
    let all: BTreeMap<_, _> = all.collect();
    assert_eq!(all.len(), logs.len(), "a record is there twice");
    all
}

/// Scenario: the same fifty requests, with quick spans and slow ones that stay open until they are told of, with open events off, as log
/// records, and as pending spans; everything is decoded.
/// Guarantees: spans that have ended, and the application's log records, are the same in number and in all that they say; what is told
/// of open spans is apart from them, under the request's own token, and names a span that is there.
#[test]
fn receiver_gets_the_same_spans_and_records_whatever_is_told_of_open_ones() {
    let mut expected = None;
    for form in [OpenEvents::Off, OpenEvents::Logs, OpenEvents::PendingSpans] {
        let collector = Collector::http();
        let keep = Keep::default();
        let telemetry = telemetry(&collector, config(form, SOON_OLD), &keep);
        for n in 0..REQUESTS {
            work(&telemetry, n, |name| {
                let is_told = || opened(&collector).iter().any(|opened| opened == name);
                if form != OpenEvents::Off {
                    wait_until("it is told of", is_told);
                }
            });
        }
        soon(telemetry.shutdown(Duration::from_secs(5))).unwrap();

        let (spans, pending) = spans_of(&collector);
        let [logs, events] = logs_of(&collector);
        assert_eq!(
            (spans.len(), logs.len()),
            (3 * REQUESTS, REQUESTS),
            "{form}"
        );
        let both = (described(&spans), said(&spans, &logs));
        match &expected {
            None => expected = Some(both),
            Some(expected) => assert_eq!(&both, expected, "{form}"),
        }
        assert_untouched(&spans, &keep);

        let ids: HashSet<_> = spans.iter().map(|span| &span.span_id).collect();
        let told = telemetry.stats().open_events.sent;
        assert!(form == OpenEvents::Off || told >= 10, "{told}");
        let (of_logs, of_spans) = match form {
            OpenEvents::Off => (0, 0),
            OpenEvents::Logs => (told, 0),
            _ => (0, told),
        };
        assert_eq!(
            (events.len() as u64, pending.len() as u64),
            (of_logs, of_spans)
        );
        for span in &pending {
            assert!(!ids.contains(&span.span_id) && ids.contains(&span.parent_span_id));
            assert_eq!(span.start_time_unix_nano, span.end_time_unix_nano);
        }
        for (log, token) in &events {
            assert!(ids.contains(&log.span_id));
            let name = text(&log.attributes, "span.name").unwrap();
            let number: usize = name.split(' ').nth(1).unwrap().parse().unwrap();
            assert_eq!(*token, Some(format!("Bearer {}", number % 3)), "{name}");
        }
        assert_tokens(&collector);
    }
}

/// Everything of a request left under its own token.
fn assert_tokens(collector: &Collector) {
    for received in collector.received() {
        for name in &received.spans {
            let number: usize = name.split(' ').nth(1).unwrap().parse().unwrap();
            let expected = Some(format!("Bearer {}", number % 3));
            assert_eq!(received.authorization, expected, "{name}");
        }
    }
}

/// The spans on the wire are those that ended.
fn assert_untouched(spans: &[Span], keep: &Keep) {
    let nanos = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    let kept = keep.0.lock().unwrap();
    assert_eq!(kept.len(), spans.len());
    for span in kept.iter() {
        let id = span.span_context.span_id().to_bytes();
        let sent = spans.iter().find(|sent| sent.span_id == id).unwrap();
        assert_eq!(sent.trace_id, span.span_context.trace_id().to_bytes());
        assert_eq!(sent.name, span.name);
        assert_eq!(sent.start_time_unix_nano, nanos(span.start_time));
        assert_eq!(sent.end_time_unix_nano, nanos(span.end_time));
        assert_eq!(sent.attributes.len(), span.attributes.len());
        assert_eq!(sent.dropped_attributes_count, span.dropped_attributes_count);
        assert_eq!(sent.events.len(), span.events.len());
    }
}

/// Scenario: as many spans as fit in a batch stay open in a request, while the receiver takes its time with what came before.
/// Guarantees: they are told of in one POST, in both forms.
#[test]
fn open_spans_of_a_request_arrive_in_one_post() {
    for form in FORMS {
        let collector = Collector::slow_http(Duration::from_millis(300));
        let telemetry = telemetry(&collector, config(form, SOON_OLD), &Keep::default());
        let tracer = telemetry.tracer_provider().tracer("shop");
        let root = Context::new().with_span(tracer.start("request"));
        wait_until("the root is on its way", || {
            telemetry.stats().open_events.sent == 1
        });
        let steps: Vec<_> = (0..64)
            .map(|_| root.with_span(tracer.start_with_context("step", &root)))
            .collect();
        wait_until("all are told of", || opened(&collector).len() == 65);
        let sizes: Vec<_> = match form {
            OpenEvents::Logs => {
                let posts = collector.log_posts().into_iter();
                posts.map(|post| post.decoded.len()).collect()
            }
            _ => {
                let posts = collector.received().into_iter();
                posts.map(|post| post.decoded.len()).collect()
            }
        };
        assert_eq!(sizes.iter().sum::<usize>(), 65);
        // A machine that stalls for longer than the receiver takes may make two of it.
        assert!(sizes.len() <= 3, "{form}: {sizes:?}");
        drop((steps, root));
        soon(telemetry.shutdown(Duration::from_secs(5))).unwrap();
    }
}
