//! The scenarios: what each asks, its traffic, and what ours may lose in it.

use std::future::Future;
use std::pin::Pin;
use std::thread;
use std::time::{Duration, Instant};

use opentelemetry::Context;

use crate::contestant::{Contestant, Signal};
use crate::protocol::Line;
use crate::service::{Said, Service, sleep_until};

/// For people, or for a check that should be quick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Size {
    Full,
    Small,
}

impl Size {
    /// The name for a command line.
    pub(crate) fn name(self) -> &'static str {
        self.of("full", "small")
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        [Self::Full, Self::Small]
            .into_iter()
            .find(|size| size.name() == name)
    }

    fn of<T>(self, full: T, small: T) -> T {
        match self {
            Self::Full => full,
            Self::Small => small,
        }
    }
}

type AsyncTraffic = for<'a> fn(&'a Service, Size) -> Pin<Box<dyn Future<Output = Said> + 'a>>;

/// What a service does, and how it asks for its spans in the end.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Traffic {
    /// On threads.
    Threads(fn(&Service, Size) -> Said),
    /// In a tokio runtime with one thread.
    CurrentThread(AsyncTraffic),
}

/// What a process does when it has its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It lives as long as something may still arrive.
    Stay,
    /// It exits at once.
    Exit,
}

/// What cannot be asked of ours in a scenario. It has to admit each loss nevertheless.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Allowance {
    Nothing,
    /// More spans end than `max_pending_spans`, or more log records are emitted than `max_pending_logs`.
    Overflow,
    /// The retries of `opentelemetry-otlp` end before the outage does.
    RetriesOfOtlp,
    /// More requests are open than `max_traces`: late spans have no token.
    NoTokenIfLate,
    /// The collector never answers.
    Hung,
}

#[derive(Debug)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    /// What happens, and what is asked.
    pub(crate) what: &'static str,
    /// Why the contestants get what they get.
    pub(crate) why: &'static str,
    pub(crate) signal: Signal,
    pub(crate) contestants: &'static [Contestant],
    /// What the collector takes for each answer.
    pub(crate) answer_after: Duration,
    pub(crate) traffic: Traffic,
    pub(crate) ending: Ending,
    /// Who takes longer hangs.
    pub(crate) limit: Duration,
    pub(crate) allowance: Allowance,
    /// Whether its table says how much memory it took.
    pub(crate) weighs: bool,
}

const ORDINARY: Scenario = Scenario {
    name: "",
    title: "",
    what: "",
    why: "",
    signal: Signal::Spans,
    contestants: &Contestant::MAIN,
    answer_after: Duration::ZERO,
    traffic: Traffic::Threads(two_tenants),
    ending: Ending::Stay,
    limit: Duration::from_secs(40),
    allowance: Allowance::Nothing,
    weighs: false,
};

const OF_LOGS: Scenario = Scenario {
    signal: Signal::Logs,
    traffic: Traffic::Threads(logs_of_two_tenants),
    ..ORDINARY
};

/// Nobody waits so long.
const NEVER: Duration = Duration::from_secs(24 * 3600);

pub(crate) static SCENARIOS: [Scenario; 15] = [
    Scenario {
        name: "long-running-children",
        title: "Long-running children",
        what: "60 requests each start four children and end at once, as one does that has responded. The children end \
               over the next 2 s, while 300 other requests come and go. Then a flush.",
        why: "Nobody loses a child that outlives its root, because none of the SDK's processors waits for a trace to be \
              complete. Both batch processors export on a task or thread of their own under an empty context, so the \
              request's token never reaches the client. The simple one is under the right token because here each span \
              ends while its own request's context is current.",
        traffic: Traffic::Threads(long_running_children),
        ..ORDINARY
    },
    Scenario {
        name: "burst",
        title: "Burst over the queue size",
        what: "4 threads end 20,000 spans (4,000 requests of 5) as fast as they can. Then a flush.",
        why: "The batch processor's queue holds 2,048 spans; it drops the rest, and its flush does not mention it. The \
              async-runtime one has the same bound; its flush fails if it finds the queue full, and does not mention \
              anything otherwise. The simple one has no queue: each span waits for its own HTTP request on the service's \
              thread, so nothing is lost and the service is held up for seconds. Ours holds 16,384 spans, which two cores \
              do not empty while four threads fill it, so it drops spans here as well; its flush says that.",
        traffic: Traffic::Threads(burst),
        allowance: Allowance::Overflow,
        ..ORDINARY
    },
    Scenario {
        name: "slow-collector",
        title: "Slow collector",
        what: "The collector takes 200 ms for each answer. 80 requests of 3 spans a second for 4 s. Then a flush.",
        why: "The simple processor holds up the service for 200 ms a span, one span at a time, so it gets through only a \
              few requests. The batch processors hand over everything in a few large exports. Ours needs one or two exports \
              for each request and has 20 of them under way at a time, about 100 a second here: near that rate its spans \
              wait, beyond it they pile up until `max_pending_spans`.",
        answer_after: Duration::from_millis(200),
        traffic: Traffic::Threads(slow_collector),
        ..ORDINARY
    },
    Scenario {
        name: "collector-down",
        title: "Collector down for 3 s, then back",
        what: "100 requests of 3 spans a second for 8 s. After 3.5 s the collector's port is closed for 3 s. Then a flush.",
        why: "`opentelemetry-otlp` tries four times within about a second by default, so what it tries to send in the first \
              two seconds of the outage is lost: a whole batch for each of the batch processors, and a later flush does not \
              know of it. The simple one holds up all of the service while it retries, one span after the other, and keeps \
              its errors to itself. Ours has 20 exports under way; those of them that give up are lost, and the flush says \
              so. `DirectExporter` tries six times, over 3.8 s at the least, and loses nothing; in a longer outage it \
              would. Its 20 exports sit out their backoff when the collector is back, and the others wait for them: that is \
              its p99, and the time that its flush takes.",
        traffic: Traffic::Threads(collector_down),
        allowance: Allowance::RetriesOfOtlp,
        ..ORDINARY
    },
    Scenario {
        name: "unsampled",
        title: "Unsampled spans",
        what: "400 requests of 3 spans over 1 s, half of them continued from a caller that does not sample. The sampler \
               records those nevertheless (`RecordOnly`). Then a flush. No unsampled span may arrive.",
        why: "The batch processor's `on_end` does not look at the sampled flag, and exports what should only be recorded. \
              All others look.",
        traffic: Traffic::Threads(unsampled),
        ..ORDINARY
    },
    Scenario {
        name: "flush-then-exit",
        title: "Flush, then exit",
        what: "400 requests of 3 spans over 1 s, 100 more at once, a flush, and `std::process::exit` as soon as it has returned.",
        why: "All of them wait for their exports in a flush, as long as nothing has gone wrong before.",
        traffic: Traffic::Threads(flush_then_exit),
        ending: Ending::Exit,
        ..ORDINARY
    },
    Scenario {
        name: "shutdown",
        title: "Shutdown with exports in flight",
        what: "The collector takes 300 ms for each answer. 40 requests of 3 spans a second for 1.5 s, then \
               `provider.shutdown()` while exports are in flight, and exit.",
        why: "The batch processors export the rest and wait for it. The simple one has nothing in flight, because it has \
              made the service wait for each span. Ours waits for all of its exports.",
        answer_after: Duration::from_millis(300),
        traffic: Traffic::Threads(shutdown),
        ending: Ending::Exit,
        ..ORDINARY
    },
    Scenario {
        name: "current-thread",
        title: "Current-thread runtime, synchronous flush",
        what: "All in a tokio runtime with one thread: 100 requests of 3 spans, and `provider.force_flush()` on that \
               thread.",
        why: "Whoever waits on the only thread for something that this thread has to drive hangs: the simple processor \
              with the async client, which its documentation names for threads of a runtime, and the async-runtime one \
              with `runtime::Tokio` (opentelemetry-rust #3176). With the blocking client, against its documentation, and \
              with `runtime::TokioCurrentThread`, which starts a thread, they work. Ours runs exports on a runtime of its \
              own.",
        contestants: &Contestant::ALL,
        traffic: Traffic::CurrentThread(|service, size| Box::pin(current_thread(service, size))),
        limit: Duration::from_secs(15),
        ..ORDINARY
    },
    Scenario {
        name: "current-thread-awaited",
        title: "Current-thread runtime, awaited flush",
        what: "The same with a flush that is awaited. Only ours has one.",
        why: "`handle.flush().await` leaves the thread to others meanwhile.",
        contestants: &Contestant::OURS,
        traffic: Traffic::CurrentThread(|service, size| {
            Box::pin(current_thread_awaited(service, size))
        }),
        limit: Duration::from_secs(15),
        ..ORDINARY
    },
    Scenario {
        name: "two-tenants",
        title: "Two tenants",
        what: "2,000 requests of 3 spans over 5 s, for two tenants in turns. Each thread works on two requests at a time, as \
               an async service does. One span of each request ends while the other request's context is current, as it \
               does when a span is dropped where it was not started. Then a flush.",
        why: "The batch processors have no token at all at export. The simple one exports under the context that is \
              current where a span ends, which the SDK's documentation of `on_end` warns is unrelated to the span: a \
              third of the spans goes out under the other tenant's token. Ours exports under the context that the \
              request started in.",
        traffic: Traffic::Threads(two_tenants),
        ..ORDINARY
    },
    Scenario {
        name: "too-many-open",
        title: "More open requests than are kept",
        what: "1,300 requests of 2 spans are open at the same time, 300 more than ours keeps (`max_traces`). They end over \
               half a second. Then a flush.",
        why: "The others keep nothing for an open request, so there is nothing to run out of. Ours evicts the 300 that were \
              used least recently: their spans arrive, but under the fallback context, which has no token by default, and \
              with an attribute that says why. Never under another tenant's.",
        traffic: Traffic::Threads(too_many_open),
        allowance: Allowance::NoTokenIfLate,
        ..ORDINARY
    },
    Scenario {
        name: "logs-burst",
        title: "Log records: burst over the queue size",
        what: "4 threads emit 20,000 records (4,000 requests of 5) as fast as they can. Then a flush.",
        why: "The batch processor's queue holds 2,048 records; it drops the rest, and its flush does not mention it. The \
              async-runtime one has the same bound; its flush goes through the queue, and fails if it finds that full. The \
              simple one has no queue: each record waits for its own HTTP request on the service's thread. Ours holds \
              16,384 records (`max_pending_logs`), which two cores do not empty while four threads fill it, so it drops \
              records here as well; its flush says that.",
        traffic: Traffic::Threads(logs_burst),
        allowance: Allowance::Overflow,
        ..OF_LOGS
    },
    Scenario {
        name: "logs-hung-collector",
        title: "Log records: hung collector",
        what: "The collector takes requests and never answers. 4 threads emit 100,000 records (10,000 requests of 10) as fast \
               as they can. Then `provider.shutdown_with_timeout`, with 2 s.",
        why: "The simple processor waits for the collector at each record, and lets no other thread emit one meanwhile: the \
              service stands still. The batch processors keep 2,048 records and those of the export under way, and drop the \
              rest; the async-runtime one cannot even be told to shut down while its queue is full. Ours keeps 16,384 \
              records, 20 exports of them under way, and counts what it drops as `queue_full`. Nobody but the simple one \
              holds up the service, and the memory of nobody grows with the number of records.",
        answer_after: NEVER,
        traffic: Traffic::Threads(logs_hung),
        limit: Duration::from_secs(20),
        allowance: Allowance::Hung,
        weighs: true,
        ..OF_LOGS
    },
    Scenario {
        name: "logs-two-tenants",
        title: "Log records: two tenants",
        what: "2,000 requests of 3 records over 5 s, for two tenants in turns. Each thread works on two requests at a time, as \
               an async service does. One record of each request is emitted while the other request's context is current, \
               and names its span itself, as one does that an appender has queued. Then a flush.",
        why: "The batch processors have no token at all at export. The simple one exports under the context that is \
              current where a record is emitted, which need not be that of its request: a third of the records goes out \
              under the other tenant's token. Ours exports under the context that the request of the record's span \
              started in.",
        ..OF_LOGS
    },
    Scenario {
        name: "logs-shutdown",
        title: "Log records: shutdown with exports in flight",
        what: "The collector takes 300 ms for each answer. 40 requests of 3 records a second for 1.5 s, then \
               `provider.shutdown()` while exports are in flight, and exit.",
        why: "The batch processors export the rest and wait for it. The simple one has nothing in flight, because it has \
              made the service wait for each record. Ours waits for all of its exports.",
        answer_after: Duration::from_millis(300),
        traffic: Traffic::Threads(logs_shutdown),
        ending: Ending::Exit,
        ..OF_LOGS
    },
];

fn long_running_children(service: &Service, size: Size) -> Said {
    let requests = size.of(60, 30);
    let others = size.of(300, 75);
    let duration = Duration::from_millis(size.of(2_000, 500));
    let children: Vec<Context> = (0..requests)
        .flat_map(|number| {
            let root = service.start_span("request", &service.arriving(number));
            let children = [(); 4].map(|()| service.start_span("long step", &root));
            service.end_span(&root);
            children
        })
        .collect();
    thread::scope(|scope| {
        let a_second = (f64::from(others) / duration.as_secs_f64()) as u32;
        scope.spawn(move || {
            service.requests(a_second, duration, |number| {
                service.request(&service.arriving(number), 2);
            });
        });
        let start = Instant::now();
        for (at, child) in (1..).zip(&children) {
            sleep_until(start + duration * at / children.len() as u32);
            service.end_span(child);
        }
    });
    service.flush()
}

fn burst(service: &Service, size: Size) -> Said {
    thread::scope(|scope| {
        for number in 0..4 {
            scope.spawn(move || {
                let cx = service.arriving(number);
                (0..size.of(1_000, 400)).for_each(|_| service.request(&cx, 4));
            });
        }
    });
    service.flush()
}

fn slow_collector(service: &Service, size: Size) -> Said {
    let duration = Duration::from_millis(size.of(4_000, 1_000));
    service.requests(80, duration, |number| {
        service.request(&service.arriving(number), 2);
    });
    service.flush()
}

fn collector_down(service: &Service, size: Size) -> Said {
    let [until_down, down, after] = size.of([3_500, 3_000, 1_500], [300, 1_000, 300]);
    thread::scope(|scope| {
        scope.spawn(move || {
            thread::sleep(Duration::from_millis(until_down));
            Line::CollectorDown(down).say();
        });
        let duration = Duration::from_millis(until_down + down + after);
        service.requests(100, duration, |number| {
            service.request(&service.arriving(number), 2);
        });
    });
    service.flush()
}

fn unsampled(service: &Service, size: Size) -> Said {
    let duration = Duration::from_millis(size.of(1_000, 500));
    service.requests(400, duration, |number| {
        // Each tenant has sampled and unsampled ones.
        let cx = match number / 2 % 2 {
            0 => service.arriving(number),
            _ => service.arriving_unsampled(number),
        };
        service.request(&cx, 2);
    });
    service.flush()
}

fn flush_then_exit(service: &Service, size: Size) -> Said {
    let duration = Duration::from_millis(size.of(1_000, 500));
    let request = |number| service.request(&service.arriving(number), 2);
    service.requests(400, duration, request);
    (0..100).for_each(request);
    service.flush()
}

fn shutdown(service: &Service, size: Size) -> Said {
    let duration = Duration::from_millis(size.of(1_500, 500));
    service.requests(40, duration, |number| {
        service.request(&service.arriving(number), 2);
    });
    service.shut_down()
}

async fn requests_on_one_thread(service: &Service, size: Size) {
    for number in 0..size.of(100, 50) {
        service.request(&service.arriving(number), 2);
        tokio::task::yield_now().await;
    }
}

async fn current_thread(service: &Service, size: Size) -> Said {
    requests_on_one_thread(service, size).await;
    service.flush()
}

async fn current_thread_awaited(service: &Service, size: Size) -> Said {
    requests_on_one_thread(service, size).await;
    service.flush_awaited().await
}

fn two_tenants(service: &Service, size: Size) -> Said {
    let duration = Duration::from_millis(size.of(5_000, 1_000));
    service.requests(200, duration, |number| {
        let [one, other] = [0, 1].map(|offset| {
            let root = service.start_span("request", &service.arriving(number + offset));
            let near = service.start_span("step", &root);
            let far = service.start_span("step that ends elsewhere", &root);
            (root, near, far)
        });
        service.end_span(&one.1);
        service.end_span(&other.1);
        service.end_span_elsewhere(&one.2, &other.0);
        service.end_span_elsewhere(&other.2, &one.0);
        service.end_span(&one.0);
        service.end_span(&other.0);
    });
    service.flush()
}

fn too_many_open(service: &Service, size: Size) -> Said {
    let open: Vec<[Context; 2]> = (0..size.of(1_300, 1_100))
        .map(|number| {
            let root = service.start_span("request", &service.arriving(number));
            [service.start_span("step", &root), root]
        })
        .collect();
    for some in open.chunks(26) {
        thread::sleep(Duration::from_millis(10));
        for spans in some {
            spans.iter().for_each(|span| service.end_span(span));
        }
    }
    service.flush()
}

fn logs_burst(service: &Service, size: Size) -> Said {
    logging(service, size.of(1_000, 400), 5);
    service.flush()
}

fn logs_hung(service: &Service, size: Size) -> Said {
    logging(service, size.of(2_500, 1_000), 10);
    service.shut_down_within(Duration::from_secs(2))
}

/// Requests of so many lines, from four threads and as fast as they can.
fn logging(service: &Service, requests: usize, lines: usize) {
    thread::scope(|scope| {
        for number in 0..4 {
            scope.spawn(move || {
                let cx = service.arriving(number);
                (0..requests).for_each(|_| service.logging_request(&cx, lines));
            });
        }
    });
}

fn logs_of_two_tenants(service: &Service, size: Size) -> Said {
    let duration = Duration::from_millis(size.of(5_000, 1_000));
    service.requests(200, duration, |number| {
        let [one, other] =
            [0, 1].map(|offset| service.start_span("request", &service.arriving(number + offset)));
        service.log(&one);
        service.log(&other);
        service.log_elsewhere(&one, &other);
        service.log_elsewhere(&other, &one);
        service.log(&one);
        service.log(&other);
        service.end_span(&one);
        service.end_span(&other);
    });
    service.flush()
}

fn logs_shutdown(service: &Service, size: Size) -> Said {
    let duration = Duration::from_millis(size.of(1_500, 500));
    service.requests(40, duration, |number| {
        service.logging_request(&service.arriving(number), 3);
    });
    service.shut_down()
}
