//! Spans are told of while they are open: to the collector, and to an observer.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use reqwest::Method;
use tokio::task::JoinHandle;

use crate::support::{
    Behaviour, Log, PATIENCE, Receiver, SERVICE_TOKEN, Settings, Span, SpanStatus, Worker, named,
    start_with,
};

/// How soon what hangs is told of, on the slowest of machines.
const SOON: Duration = Duration::from_secs(1);

/// What the minimum age is by default, and how much later than that a look may be on a machine with much to do.
const MIN_AGE: Duration = Duration::from_millis(500);
const SLACK: Duration = Duration::from_millis(400);

/// Longer than any test takes.
const NEVER_OLD: u64 = 3_600_000;

/// What `A365_PER_REQUEST_MAX_EXPORTS_PER_REQUEST` is by default, and how many more there may be of a request that goes on:
/// in pauses, and with its root.
const MAX_EXPORTS: usize = 8;
const MORE_EXPORTS: usize = 4;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

/// A Worker whose open events leave in this form, and that has started.
async fn start_form(form: &str, set: impl FnOnce(Settings) -> Settings) -> (Receiver, Worker) {
    let (receiver, worker) =
        start_with(|settings| set(settings.binding("A365_PER_REQUEST_OPEN_EVENTS", form))).await;
    worker.get("/plain").await;
    (receiver, worker)
}

fn as_it_is(settings: Settings) -> Settings {
    settings
}

/// Sends a request of a known trace, and does not wait for it.
fn send_traced(worker: &Worker, token: &str, path: &str) -> JoinHandle<()> {
    let (client, token, path) = (worker.client(), token.to_owned(), path.to_owned());
    tokio::spawn(async move {
        let traceparent = format!("00-{TRACE}-{CALLER}-01");
        let headers = [
            ("x-telemetry-token", &*token),
            ("traceparent", &*traceparent),
        ];
        // What hangs has no answer.
        let _ = client.request(Method::GET, &path, &headers).await;
    })
}

/// A request that hangs in its span `hangs`, by whatever `how` says.
fn hang(how: &str, receiver: &Receiver) -> String {
    let url = format!("{}/hang", receiver.endpoint());
    format!("/open/hang?how={how}&url={url}&ms=60000")
}

/// The log records of this state, and their names.
fn told<'a>(logs: &'a [Log], state: &str) -> Vec<&'a Log> {
    let of_state = |log: &&Log| log.attributes.get("span.state").is_some_and(|s| s == state);
    logs.iter().filter(of_state).collect()
}

fn names(logs: &[&Log]) -> BTreeSet<String> {
    logs.iter().map(|log| log.body.clone()).collect()
}

/// The only record of this state that tells of a span of this name.
fn told_of<'a>(logs: &'a [Log], state: &str, name: &str) -> &'a Log {
    let told = told(logs, state).into_iter();
    let told: Vec<_> = told.filter(|log| log.body == name).collect();
    let [log] = &told[..] else {
        panic!("{} of `{name}`: {logs:?}", told.len())
    };
    log
}

/// How old a span was when it was told of.
fn age(log: &Log) -> Duration {
    Duration::from_nanos(log.observed - log.time)
}

fn is_pending(span: &Span) -> bool {
    let kind = span.attributes.get("logfire.span_type");
    kind.is_some_and(|kind| kind == "pending_span")
}

/// Those that tell of an open span, and the others.
fn apart(spans: Vec<Span>) -> (Vec<Span>, Vec<Span>) {
    spans.into_iter().partition(is_pending)
}

// ----- what hangs is seen -----

/// Scenario: a handler waits for ever: for a fetch that is not answered, for a promise that nobody resolves, for a timer.
/// Guarantees: while it does, a log record of each of its open spans has arrived, which was made within a second: under the
/// request's own token, with the ids of trace and span, with the parent, the name and the kind. No span has arrived.
#[tokio::test]
async fn a_handler_that_hangs_is_seen_in_log_records_while_it_hangs() {
    let (receiver, worker) = start_form("logs", as_it_is).await;
    for how in ["fetch", "promise", "timer"] {
        receiver.clear();
        let token = format!("token-of-{how}");
        let hanging = send_traced(&worker, &token, &hang(how, &receiver));
        let logs = receiver.wait_for_logs(2, PATIENCE).await;
        let (root, child) = (
            told_of(&logs, "open", "GET"),
            told_of(&logs, "open", "hangs"),
        );
        for log in [root, child] {
            assert_eq!((&log.token, &*log.event), (&token, "span.state"), "{how}");
            assert_eq!((&*log.trace_id, log.flags), (TRACE, 1));
            assert_eq!(log.attributes["span.name"], log.body);
            assert!(!log.attributes.contains_key("per_request.late"));
            assert!(age(log) < SOON, "{how}: {:?}", age(log));
        }
        assert_eq!(root.attributes["span.parent_span_id"], CALLER);
        assert_eq!(root.attributes["span.kind"], "server");
        assert_eq!(root.attributes["url.path"], "/open/hang");
        assert_eq!(child.attributes["span.parent_span_id"], root.span_id);
        assert_eq!(receiver.posts_of("logs").len(), 1, "{how}");
        assert_eq!(receiver.spans().len(), 0, "{how}");
        hanging.abort();
    }
}

/// Scenario: the same, where pending spans tell of it.
/// Guarantees: while it does, a span below each of its open ones has arrived, under the request's own token, that has an id of its
/// own, no length, and names the parent of the real one. No record of it is made.
#[tokio::test]
async fn a_handler_that_hangs_is_seen_in_pending_spans_while_it_hangs() {
    let (receiver, worker) = start_form("pending_spans", as_it_is).await;
    for how in ["fetch", "promise", "timer"] {
        receiver.clear();
        let token = format!("token-of-{how}");
        let hanging = send_traced(&worker, &token, &hang(how, &receiver));
        let spans = receiver.wait_for_spans(2, PATIENCE).await;
        let (root, child) = (named(&spans, "GET"), named(&spans, "hangs"));
        for span in [root, child] {
            assert!(is_pending(span), "{how}: {span:?}");
            assert_eq!((&span.token, &*span.trace_id), (&token, TRACE));
            assert_eq!(span.start, span.end);
            assert_ne!(span.span_id, span.parent_span_id);
        }
        assert_eq!(root.attributes["logfire.pending_parent_id"], CALLER);
        let real_root = &root.parent_span_id;
        assert_eq!(&child.attributes["logfire.pending_parent_id"], real_root);
        assert_ne!(&child.parent_span_id, real_root);
        assert_eq!(receiver.posts().len(), 1, "{how}");
        assert_eq!(receiver.logs().len(), 0, "{how}");
        hanging.abort();
    }
}

/// Scenario: a request is told of while it waits, in both forms, and then it ends.
/// Guarantees: what told of it names the ids of the spans that arrive in the end, each once, and those are as ever.
#[tokio::test]
async fn what_tells_of_a_span_names_the_one_that_arrives_in_the_end() {
    for form in ["logs", "pending_spans"] {
        let (receiver, worker) = start_form(form, as_it_is).await;
        let path = "/open/hang?ms=700&id=named";
        let waiting = worker.send("token-of-named", path);
        // Pairs of a name and the id of the real span.
        let mut open: Vec<(String, String)> = match form {
            "logs" => {
                let logs = receiver.wait_for_logs(2, PATIENCE).await;
                let open = logs.iter();
                open.map(|log| (log.body.clone(), log.span_id.clone()))
                    .collect()
            }
            _ => {
                let spans = receiver.wait_for_spans(2, PATIENCE).await;
                let open = spans.into_iter();
                open.map(|span| (span.name, span.parent_span_id)).collect()
            }
        };
        assert_eq!(apart(receiver.spans()).1.len(), 0, "{form}");
        assert_eq!(waiting.await.unwrap().status, 200);
        receiver
            .wait_until(PATIENCE, |span| span.name == "GET" && !is_pending(span))
            .await;
        worker.settled().await;
        let (_, spans) = apart(receiver.spans());
        let mut ended: Vec<_> = spans
            .iter()
            .map(|span| (span.name.clone(), span.span_id.clone()))
            .collect();
        open.sort();
        ended.sort();
        assert_eq!(open, ended, "{form}");
        for span in &spans {
            assert_eq!(span.attributes["request"], "named");
            assert_eq!(span.status, SpanStatus::Unset);
            assert!(span.end - span.start >= 600_000_000, "{span:?}");
        }
        let stats = worker.settled().await;
        assert_eq!((stats["open_sent"], stats["open_elided"]), (2, 0));
        assert_eq!(stats["open_pending"], 0);
    }
}

// ----- when -----

/// Scenario: a request opens spans and waits for nothing.
/// Guarantees: nothing is told of them, nothing but the spans themselves is sent, and they are counted as elided.
#[tokio::test]
async fn a_request_that_waits_for_nothing_is_not_told_of() {
    let (receiver, worker) = start_form("logs", as_it_is).await;
    worker.get("/open/quick?spans=3").await;
    receiver.wait_for_spans(4, PATIENCE).await;
    let stats = worker.settled().await;
    assert_eq!((stats["open_opened"], stats["open_elided"]), (4, 4));
    assert_eq!(receiver.posts().len(), 1);
    // A look that came too late would be there by now.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(receiver.posts_of("logs").len(), 0);
}

/// Scenario: a request waits twice, and opens a span between the two.
/// Guarantees: what is open when it first waits is told of at once, and the other span when it is half a second old.
#[tokio::test]
async fn what_opens_after_the_first_wait_is_told_of_at_the_minimum_age() {
    let (receiver, worker) = start_form("logs", as_it_is).await;
    let path = "/open/hang?before=50&ms=60000";
    let hanging = worker.send("token-of-later", path);
    let logs = receiver.wait_for_logs(2, PATIENCE).await;
    let root = age(told_of(&logs, "open", "GET"));
    let child = age(told_of(&logs, "open", "hangs"));
    assert!(root < MIN_AGE, "{root:?}");
    assert!((MIN_AGE..MIN_AGE + SLACK).contains(&child), "{child:?}");
    assert_eq!(receiver.posts_of("logs").len(), 2);
    hanging.abort();
}

/// Scenario: a minimum age is set, and requests take less than that, and more.
/// Guarantees: the first ones are not told of; of the last one all are, at that age and not before, in one POST.
#[tokio::test]
async fn a_minimum_age_that_is_set_counts_from_the_first_span() {
    let min_age = Duration::from_millis(400);
    let (receiver, worker) = start_form("logs", |settings| {
        settings.binding("A365_PER_REQUEST_OPEN_EVENT_MIN_AGE_MS", 400)
    })
    .await;
    for _ in 0..5 {
        worker.get("/work?spans=2&ms=20").await;
    }
    let hanging = worker.send("token-of-aged", "/open/hang?ms=60000");
    let logs = receiver.wait_for_logs(2, PATIENCE).await;
    for name in ["GET", "hangs"] {
        let log = told_of(&logs, "open", name);
        assert_eq!(log.token, "token-of-aged");
        let age = age(log);
        assert!((min_age..min_age + SLACK).contains(&age), "{age:?}");
    }
    assert_eq!(receiver.posts_of("logs").len(), 1);
    let stats = worker.stats().await;
    assert_eq!((stats["open_sent"], stats["open_elided"]), (2, 15));
    hanging.abort();
}

// ----- how much -----

/// Scenario: forty spans of a request are open at once.
/// Guarantees: one POST tells of all of them, under the request's token, and one brings them when they have ended.
#[tokio::test]
async fn many_open_spans_are_told_of_in_one_post() {
    for form in ["logs", "pending_spans"] {
        let (receiver, worker) = start_form(form, as_it_is).await;
        let path = "/open/many?spans=40&ms=300";
        worker.get_as("token-of-many", path).await;
        receiver
            .wait_until(PATIENCE, |span| span.name == "GET" && !is_pending(span))
            .await;
        let stats = worker.settled().await;
        assert_eq!((stats["open_opened"], stats["open_sent"]), (41, 41));
        assert_eq!(stats["open_pending"], 0);
        let (pending, ended) = apart(receiver.spans());
        assert_eq!(ended.len(), 41);
        assert!(ended.iter().all(|span| span.token == "token-of-many"));
        match form {
            "logs" => {
                let posts = receiver.posts_of("logs");
                assert_eq!((posts.len(), posts[0].logs.len()), (1, 41));
                assert_eq!(posts[0].token, "token-of-many");
                assert_eq!((pending.len(), receiver.posts().len()), (0, 1));
            }
            _ => {
                assert_eq!(pending.len(), 41);
                assert_eq!(receiver.posts().len(), 2);
            }
        }
    }
}

/// Scenario: a request of more than a second opens sixty spans one after the other, each of which gets old enough.
/// Guarantees: what tells of them leaves in as few POSTs as its spans may, and all its spans arrive.
#[tokio::test]
async fn what_tells_of_a_request_stays_within_its_exports() {
    for form in ["logs", "pending_spans"] {
        let (receiver, worker) = start_form(form, |settings| {
            settings.binding("A365_PER_REQUEST_OPEN_EVENT_MIN_AGE_MS", 1)
        })
        .await;
        worker
            .get_as("token-of-steps", "/work?spans=60&ms=20")
            .await;
        receiver
            .wait_until(PATIENCE, |span| span.name == "GET" && !is_pending(span))
            .await;
        let stats = worker.settled().await;
        let (pending, ended) = apart(receiver.spans());
        assert_eq!(ended.len(), 61, "{form}");
        assert_eq!(stats["open_opened"], 61);
        assert_eq!(stats["open_sent"] + stats["open_elided"], 61);
        assert!(stats["open_elided"] > 0, "the exports were never spent");
        let signal = if form == "logs" { "logs" } else { "traces" };
        let posts = receiver.posts_of(signal);
        assert!(posts.len() > 4, "{} POSTs", posts.len());
        assert!(
            posts.len() <= MAX_EXPORTS + MORE_EXPORTS,
            "{form}: {} POSTs",
            posts.len()
        );
        assert!(posts.iter().all(|post| post.token == "token-of-steps"));
        assert_eq!(pending.is_empty(), form == "logs");
    }
}

/// Scenario: the same where one export may be spent.
/// Guarantees: one POST tells of what was open first, and nothing else does before the root has ended.
#[tokio::test]
async fn what_tells_of_a_request_may_spend_one_export() {
    let (receiver, worker) = start_form("logs", |settings| {
        settings
            .binding("A365_PER_REQUEST_OPEN_EVENT_MIN_AGE_MS", 1)
            .binding("A365_PER_REQUEST_MAX_EXPORTS_PER_REQUEST", 1)
    })
    .await;
    worker.get("/work?spans=6&ms=20").await;
    receiver.wait_for_spans(7, PATIENCE).await;
    worker.settled().await;
    assert_eq!(receiver.posts_of("logs").len(), 1);
    assert_eq!(receiver.posts().len(), 1);
}

// ----- what died -----

/// Scenario: a request hangs while three others of its instance end, and then workerd is killed.
/// Guarantees: what hung is known by its open records alone, and the spans of the others are whole.
#[tokio::test]
async fn what_hung_when_the_instance_was_killed_is_known_by_its_open_records() {
    let (receiver, mut worker) = start_form("logs", as_it_is).await;
    let hanging = send_traced(&worker, "token-of-hanging", &hang("fetch", &receiver));
    receiver.wait_for_logs(2, PATIENCE).await;
    finish_siblings(&receiver, &worker).await;
    worker.kill();
    hanging.abort();
    assert_only_open_records_remain(&receiver, "token-of-hanging");
}

/// Scenario: the client of a request that hangs goes away, so that the runtime cancels it. Others of its instance go on.
/// Guarantees: the same.
#[tokio::test]
async fn a_request_that_was_cancelled_is_known_by_its_open_records() {
    let (receiver, worker) = start_form("logs", as_it_is).await;
    let path = "/open/hang?ms=1500";
    let patience = Duration::from_millis(500);
    worker
        .client()
        .abandon("token-of-hanging", path, patience)
        .await;
    finish_siblings(&receiver, &worker).await;
    // It would have ended by now.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_only_open_records_remain(&receiver, "token-of-hanging");
    assert_eq!(worker.stats().await["traces"], 1);
}

/// Scenario: a handler panics in an instance without a rescue, while another request hangs, and after others have ended.
/// Guarantees: the same of both, and the next request works.
#[tokio::test]
async fn without_a_rescue_what_a_panic_ended_is_known_by_its_open_records() {
    let (receiver, worker) = start_form("logs", |settings| settings.binding("RESCUE", "off")).await;
    let hanging = send_traced(&worker, "token-of-hanging", &hang("timer", &receiver));
    receiver.wait_for_logs(2, PATIENCE).await;
    finish_siblings(&receiver, &worker).await;
    let panicking = worker.send("token-of-panic", "/open/panic?ms=300");
    // Two of the one that hangs, two of each sibling, and four of this one.
    receiver.wait_for_logs(12, PATIENCE).await;
    let _ = panicking.await;
    hanging.abort();
    assert_eq!(worker.get("/work?spans=1").await.status, 200);
    let logs = receiver.logs();
    let of_panic = logs.iter().filter(|log| log.token == "token-of-panic");
    let of_panic: Vec<_> = of_panic.collect();
    let expected = ["GET", "step", "deeper", "before the panic"];
    assert_eq!(
        names(&of_panic),
        BTreeSet::from(expected.map(str::to_owned))
    );
    receiver
        .wait_until(PATIENCE, |span| span.token == SERVICE_TOKEN)
        .await;
    assert!(
        receiver
            .spans()
            .iter()
            .all(|span| span.token != "token-of-panic")
    );
    assert_only_open_records_remain(&receiver, "token-of-hanging");
}

/// Three requests that end, of which two spans each arrive.
async fn finish_siblings(receiver: &Receiver, worker: &Worker) {
    let siblings = (0..3).map(|_| worker.send("token-of-sibling", "/work?spans=1&ms=100"));
    for sibling in siblings.collect::<Vec<_>>() {
        assert_eq!(sibling.await.unwrap().status, 200);
    }
    receiver.wait_for_spans(6, PATIENCE).await;
}

/// Asserts that two spans are known to be open under this token, that no span was exported under it, and that its siblings' are
/// whole.
fn assert_only_open_records_remain(receiver: &Receiver, token: &str) {
    let logs = receiver.logs();
    let of_token: Vec<_> = logs.iter().filter(|log| log.token == token).collect();
    assert_eq!(of_token.len(), 2, "{of_token:?}");
    let expected = ["GET", "hangs"].map(str::to_owned);
    assert_eq!(names(&of_token), BTreeSet::from(expected));
    for log in of_token {
        assert_eq!(log.attributes["span.state"], "open");
    }
    let spans = receiver.spans();
    assert!(spans.iter().all(|span| span.token != token), "{spans:?}");
    let siblings: Vec<_> = spans
        .iter()
        .filter(|span| span.token == "token-of-sibling")
        .collect();
    assert_eq!(siblings.len(), 6);
    let ids: BTreeSet<_> = siblings.iter().map(|span| &span.span_id).collect();
    assert_eq!(ids.len(), 6);
    for span in siblings {
        assert_eq!(span.status, SpanStatus::Unset);
        assert!(span.end > span.start, "{span:?}");
        let unfinished = span.attributes.get("per_request.unfinished");
        assert_eq!(unfinished, None);
    }
}

/// Scenario: a handler panics two spans below its root, in an instance with a rescue, while another request hangs in a span.
/// Guarantees: the roots arrive as errors, as without open events. Of each span below them that had not ended, and of nothing
/// else, one record says that it never will, because of the panic, under its own request's token.
#[tokio::test]
async fn a_panic_rescue_tells_of_what_was_open_below_the_roots() {
    let (receiver, worker) = start_form("logs", as_it_is).await;
    let panicked = panic_beside_a_bystander(&receiver, &worker).await;
    let logs = receiver.wait_for_logs(9, PATIENCE).await;
    panicked.into_iter().for_each(|task| task.abort());

    let unfinished = told(&logs, "unfinished");
    assert_eq!(unfinished.len(), 3, "{unfinished:?}");
    for (name, token) in OPEN_AT_THE_PANIC {
        let open = told_of(&logs, "open", name);
        let log = told_of(&logs, "unfinished", name);
        assert_eq!((&*log.token, &*open.token), (token, token));
        assert_eq!(
            (&log.trace_id, &log.span_id),
            (&open.trace_id, &open.span_id)
        );
        assert_eq!(log.attributes["per_request.unfinished"], "panic");
        assert_eq!((&*log.severity, &*log.event), ("WARN", "span.state"));
    }
    let spans = receiver.wait_for_spans(3, PATIENCE).await;
    assert_are_roots_and_what_had_ended(&spans.iter().collect::<Vec<_>>());
    assert_next_request_works(&receiver, &worker).await;
    assert_eq!(receiver.spans().len(), 5);
}

/// Scenario: the same, where spans are exported that never ended.
/// Guarantees: each of them arrives as an ended span with an error, once, with its own id, under its own request's token; the roots
/// arrive once, too.
#[tokio::test]
async fn a_panic_rescue_exports_what_was_open_below_the_roots() {
    for form in ["logs", "pending_spans", "off"] {
        let (receiver, worker) = start_form(form, |settings| {
            settings.binding("A365_PER_REQUEST_EXPORT_UNFINISHED", "true")
        })
        .await;
        let panicked = panic_beside_a_bystander(&receiver, &worker).await;
        for (name, token) in OPEN_AT_THE_PANIC.into_iter().chain(ENDED_BY_THE_HOOK) {
            let ended = |span: &Span| span.name == name && span.token == token && !is_pending(span);
            receiver.wait_until(PATIENCE, ended).await;
        }
        panicked.into_iter().for_each(|task| task.abort());
        assert_next_request_works(&receiver, &worker).await;

        let (pending, ended) = apart(receiver.spans());
        let ids: BTreeSet<_> = ended.iter().map(|span| &span.span_id).collect();
        assert_eq!((ended.len(), ids.len()), (8, 8), "{form}: {ended:?}");
        for (name, token) in OPEN_AT_THE_PANIC {
            let span = named(&ended, name);
            assert_eq!((&*span.token, span.status), (token, SpanStatus::Error));
            assert_eq!(span.attributes["per_request.unfinished"], "panic");
            assert!(span.end > span.start, "{span:?}");
            if form == "pending_spans" {
                assert_eq!(named(&pending, name).parent_span_id, span.span_id);
            }
        }
        let others: Vec<_> = ended
            .iter()
            .filter(|span| !span.attributes.contains_key("per_request.unfinished"))
            .filter(|span| span.token != SERVICE_TOKEN)
            .collect();
        assert_are_roots_and_what_had_ended(&others);
        let logs = receiver.logs();
        let unfinished = told(&logs, "unfinished").len();
        assert_eq!(unfinished, if form == "logs" { 3 } else { 0 }, "{form}");
    }
}

/// The spans below roots that are open when the handler panics, and whose they are.
const OPEN_AT_THE_PANIC: [(&str, &str); 3] = [
    ("hangs", "token-of-bystander"),
    ("step", "token-of-panic"),
    ("deeper", "token-of-panic"),
];

/// Their roots.
const ENDED_BY_THE_HOOK: [(&str, &str); 2] =
    [("GET", "token-of-bystander"), ("GET", "token-of-panic")];

/// One request panics and one hangs. Returns the tasks of both.
async fn panic_beside_a_bystander(receiver: &Receiver, worker: &Worker) -> Vec<JoinHandle<()>> {
    let bystander = send_traced(worker, "token-of-bystander", &hang("timer", receiver));
    worker
        .wait_for_stats(|stats| (stats["traces"], stats["pending"]) == (1, 0))
        .await;
    let client = worker.client();
    let panicking = tokio::spawn(async move {
        client.get("token-of-panic", "/open/panic?ms=200").await;
    });
    vec![bystander, panicking]
}

/// Asserts that these are the two roots, and the one span that had ended before the panic.
fn assert_are_roots_and_what_had_ended(spans: &[&Span]) {
    let mut found: Vec<_> = spans
        .iter()
        .map(|span| (&*span.name, &*span.token, span.status))
        .collect();
    found.sort();
    let expected = [
        ("GET", "token-of-bystander", SpanStatus::Error),
        ("GET", "token-of-panic", SpanStatus::Error),
        ("before the panic", "token-of-panic", SpanStatus::Unset),
    ];
    assert_eq!(found, expected);
}

/// Two more spans, under the service's token.
async fn assert_next_request_works(receiver: &Receiver, worker: &Worker) {
    assert_eq!(worker.get("/work?spans=1").await.status, 200);
    receiver
        .wait_until(PATIENCE, |span| {
            span.token == SERVICE_TOKEN && span.name == "GET" && !is_pending(span)
        })
        .await;
}

/// Scenario: a handler panics after a hundred requests were cancelled, of which twenty traces are kept, and open events are on.
/// Guarantees: the panic's own spans and records arrive under its own token, and everything else under its own.
#[tokio::test]
async fn a_panic_after_many_cancelled_requests_tells_of_its_own() {
    let (receiver, worker) = start_form("logs", |settings| {
        settings.binding("A365_PER_REQUEST_MAX_TRACES", 20)
    })
    .await;
    let clients: Vec<_> = (0..100)
        .map(|n| {
            let client = worker.client();
            let token = format!("cancelled-{n:03}");
            let path = format!("/open/hang?ms=60000&id={token}");
            let patience = Duration::from_secs(1);
            tokio::spawn(async move { client.abandon(&token, &path, patience).await })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    let panicking = worker.send("token-of-panic", "/open/panic?ms=100&id=token-of-panic");
    receiver
        .wait_until(PATIENCE, |span| {
            span.name == "GET" && span.token == "token-of-panic"
        })
        .await;
    panicking.abort();
    let next = "/work?id=token-of-next";
    assert_eq!(worker.get_as("token-of-next", next).await.status, 200);
    receiver
        .wait_until(PATIENCE, |span| span.token == "token-of-next")
        .await;

    let logs = receiver.logs();
    for name in ["step", "deeper"] {
        assert_eq!(told_of(&logs, "unfinished", name).token, "token-of-panic");
    }
    let mut tokens = BTreeMap::<_, BTreeSet<_>>::new();
    for log in &logs {
        tokens.entry(&log.trace_id).or_default().insert(&log.token);
    }
    assert!(
        tokens.values().all(|tokens| tokens.len() == 1),
        "{tokens:?}"
    );
    for span in receiver.spans() {
        assert_eq!(span.token, span.attributes["request"], "{span:?}");
    }
}

// ----- renames -----

/// Scenario: a span gets another name after it was told of, in a request that goes on, and whose spans wait for its root.
/// Guarantees: a record says so at once, and the span itself has that name when it arrives.
#[tokio::test]
async fn a_rename_is_told_at_once() {
    let (receiver, worker) = start_form("logs", as_it_is).await;
    let path = "/open/renamed?ms=300&tail=1500";
    let started = Instant::now();
    let request = worker.send("token-of-renamed", path);
    let logs = receiver.wait_for_logs(3, PATIENCE).await;
    assert!(started.elapsed() < Duration::from_millis(1500));
    let open = told_of(&logs, "open", "its first name");
    let rename = told_of(&logs, "rename", "its second name");
    assert_eq!(
        (&rename.trace_id, &rename.span_id),
        (&open.trace_id, &open.span_id)
    );
    assert_eq!(rename.attributes["span.name"], "its second name");
    assert_eq!(
        (&*rename.token, &*rename.event),
        ("token-of-renamed", "span.state")
    );
    assert_eq!(receiver.spans().len(), 0);
    let number = |log: &Log| log.attributes["span.sequence"].parse::<u64>().unwrap();
    assert!(number(rename) > number(open));

    assert_eq!(request.await.unwrap().status, 200);
    let spans = receiver.wait_for_spans(2, PATIENCE).await;
    assert_eq!(named(&spans, "its second name").span_id, open.span_id);
    assert_eq!(worker.settled().await["open_renamed"], 1);
}

// ----- to an observer -----

/// Scenario: an observer, while ten requests at once open, rename and close spans, and others nest them.
/// Guarantees: it has seen each span that arrived open once, first, and close once, last; a rename between them; and the events of each
/// request in their order, without a gap. Nothing leaves for the collector.
#[tokio::test]
async fn an_observer_sees_each_span_open_first_and_close_last() {
    let (receiver, worker) = start_with(|settings| settings.binding("OBSERVED", "yes")).await;
    let requests: Vec<_> = (0..10)
        .map(|n| {
            let path = match n % 2 {
                0 => "/open/renamed?ms=5&tail=5",
                _ => "/nested?depth=3&ms=2",
            };
            worker.send(&format!("token-of-observed-{n}"), path)
        })
        .collect();
    for request in requests {
        assert_eq!(request.await.unwrap().status, 200);
    }
    let spans = receiver.wait_for_spans(5 * 2 + 5 * 4, PATIENCE).await;
    assert_eq!(spans.len(), 30);
    assert_eq!(receiver.posts_of("logs").len(), 0);

    let seen = worker.get("/seen").await.body;
    let mut of_span = BTreeMap::<&str, Vec<(&str, &str)>>::new();
    let mut of_request = BTreeMap::<_, Vec<u64>>::new();
    for line in seen.lines() {
        let [trace, root, sequence, span, what, name] = *line.splitn(6, ' ').collect::<Vec<_>>()
        else {
            panic!("{line}")
        };
        of_span.entry(span).or_default().push((what, name));
        let sequence = sequence.parse().unwrap();
        of_request.entry((trace, root)).or_default().push(sequence);
    }
    assert_eq!((of_span.len(), of_request.len()), (30, 10));
    for sequence in of_request.values() {
        let expected: Vec<_> = (0..sequence.len() as u64).collect();
        assert_eq!(sequence, &expected, "{seen}");
    }
    for span in &spans {
        let events = &of_span[&*span.span_id];
        let close = ("close", "");
        match &*span.name {
            "its second name" => {
                let open = ("open", "its first name");
                assert_eq!(*events, [open, ("rename", "its second name"), close]);
            }
            name => assert_eq!(*events, [("open", name), close]),
        }
    }
}

// ----- what it does not do -----

/// Scenario: a scheduled event of a few milliseconds, whose open spans would be told of in an hour.
/// Guarantees: it is done at once: nothing keeps it alive for that.
#[tokio::test]
async fn an_event_is_not_kept_alive_to_look_at_what_is_over() {
    let (receiver, worker) = start_form("logs", |settings| {
        settings
            .binding("A365_PER_REQUEST_OPEN_EVENT_MIN_AGE_MS", NEVER_OLD)
            // Nothing else keeps it alive, either.
            .binding("A365_PER_REQUEST_METRIC_INTERVAL_MS", NEVER_OLD)
    })
    .await;
    let started = Instant::now();
    assert_eq!(worker.scheduled("* * * * *").await.as_deref(), Ok("ok"));
    let elapsed = started.elapsed();
    assert!(elapsed < SOON, "{elapsed:?}");
    receiver.wait_for_spans(2, PATIENCE).await;
    assert_eq!(receiver.posts_of("logs").len(), 0);
}

/// Scenario: what tells of ten requests is taken by nobody, while ten others, at once in the same instance, are told of.
/// Guarantees: those are told of as soon as ever, all spans arrive, and no response waits.
#[tokio::test]
async fn what_tells_of_a_request_holds_up_no_other() {
    let (receiver, worker) = start_form("logs", |settings| {
        settings.binding("A365_PER_REQUEST_OPEN_EVENT_MIN_AGE_MS", 50)
    })
    .await;
    receiver.behave_for("token-of-stuck", Behaviour::Hang);
    let path = "/open/many?spans=3&ms=1500";
    let requests: Vec<_> = (0..20)
        .map(|n| match n % 2 {
            0 => worker.send("token-of-stuck", path),
            _ => worker.send("token-of-free", path),
        })
        .collect();
    receiver.wait_for_logs(40, PATIENCE).await;
    assert_eq!(receiver.spans().len(), 0, "they were told of too late");
    for request in requests {
        let response = request.await.unwrap();
        assert_eq!(response.status, 200);
        assert!(response.elapsed < 3 * SOON, "{:?}", response.elapsed);
    }
    let spans = receiver.wait_for_spans(40, PATIENCE).await;
    assert!(spans.iter().all(|span| span.token == "token-of-free"));
}
