//! A collector that is not well: nobody waits for it, nothing grows, and the console says it once.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::support::{Behaviour, PATIENCE, Worker, start, start_with};

/// What a fault is, and what the console has to say of it.
struct Fault {
    behaviour: Behaviour,
    said: &'static str,
}

/// Requests at once. More of them warm up, so that those which are measured need no more memory at once.
const CLIENTS: usize = 10;
const CLIENTS_TO_WARM_UP: usize = 25;

/// Requests in one round.
const ROUND: usize = 500;

const ROUNDS_TO_WARM_UP: usize = 2;
const ROUNDS: usize = 4;

/// Requests from some clients at once, each with a token of its own. Returns how long each request took, sorted.
async fn load(worker: &Worker, clients: usize, path: &str) -> Vec<Duration> {
    let tasks: Vec<_> = (0..clients)
        .map(|n| {
            let (client, path) = (worker.client(), path.to_owned());
            let token = format!("token-of-client-{n}");
            tokio::spawn(async move {
                let mut elapsed = Vec::new();
                for _ in 0..ROUND / clients {
                    let response = client.get(&token, &path).await;
                    assert_eq!(response.status, 200);
                    elapsed.push(response.elapsed);
                }
                elapsed
            })
        })
        .collect();
    let mut elapsed = Vec::new();
    for task in tasks {
        elapsed.extend(task.await.unwrap());
    }
    elapsed.sort();
    elapsed
}

fn median(sorted: &[Duration]) -> Duration {
    sorted[sorted.len() / 2]
}

/// The same kind of line is said at most once in ten seconds.
fn assert_said_rarely(console: &[String], elapsed: Duration) {
    let mut said = BTreeMap::new();
    for line in console {
        // Level, crate, and what it says: of a signal, for a reason.
        let words: Vec<_> = line.split(' ').take(5).collect();
        assert!(words[1].starts_with("opentelemetry-"), "{line}");
        *said.entry(words).or_insert(0) += 1;
    }
    let often = 1 + elapsed.as_secs() / 10;
    let seldom = said.values().all(|count| *count <= often);
    assert!(seldom, "in {elapsed:?}: {console:#?}");
}

/// Two thousand requests while the collector is not well, and then one when it is well again.
async fn check(Fault { behaviour, said }: Fault) {
    let (receiver, worker) =
        start_with(|settings| settings.binding("OTEL_EXPORTER_OTLP_TIMEOUT", 300)).await;
    let plain = load(&worker, CLIENTS, "/plain").await;
    receiver.behave(behaviour);
    let start = Instant::now();
    let path = "/work?spans=1";
    for _ in 0..ROUNDS_TO_WARM_UP {
        load(&worker, CLIENTS_TO_WARM_UP, path).await;
        worker.settled().await;
    }
    let before = Memory::of(&worker).await;
    let mut elapsed = Vec::new();
    for _ in 0..ROUNDS {
        elapsed.extend(load(&worker, CLIENTS, path).await);
        // Nothing is left of one round in the next one.
        worker.settled().await;
    }
    elapsed.sort();
    let after = Memory::of(&worker).await;
    let lasted = start.elapsed();

    println!("{said}: a request takes {:?}", median(&elapsed));
    println!("{said}: without telemetry it takes {:?}", median(&plain));
    println!("{said}: memory before {before:?}, after {after:?}");
    assert!(*elapsed.last().unwrap() < Duration::from_secs(3));
    after.assert_no_more_than(&before);
    let requests = (ROUNDS_TO_WARM_UP + ROUNDS) * ROUND;
    assert_eq!(worker.settled().await["failed"], 2 * requests as u64);
    let console = worker.console();
    assert_said_rarely(&console, lasted);
    let endpoint = receiver.endpoint();
    let told = |line: &String| line.contains(said) && line.contains(&endpoint);
    assert!(console.iter().any(told), "{console:#?}");

    receiver.clear();
    receiver.behave(Behaviour::Accept);
    worker.get_as("token-of-recovery", path).await;
    for span in receiver.wait_for_spans(2, PATIENCE).await {
        assert_eq!(span.token, "token-of-recovery");
    }
}

#[derive(Debug)]
struct Memory {
    /// What the instance has ever used at once.
    instance_kilobytes: u64,
    /// That of workerd, which collects its garbage late.
    resident_megabytes: u64,
}

impl Memory {
    async fn of(worker: &Worker) -> Self {
        Self {
            instance_kilobytes: worker.stats().await["memory_pages"] * 64,
            resident_megabytes: worker.rss_bytes() / 1024 / 1024,
        }
    }

    /// A kilobyte of the instance's for each request is less than its two spans. On a busy machine more of them are under way at
    /// once than there were to warm it up.
    fn assert_no_more_than(&self, before: &Self) {
        assert!(self.instance_kilobytes <= before.instance_kilobytes + 2048);
        assert!(self.resident_megabytes <= before.resident_megabytes + 256);
    }
}

/// Scenario: a collector that is not well in any of its ways, each time after ten seconds. A request comes.
/// Guarantees: its response is there while the export still waits for the collector.
#[tokio::test]
async fn no_response_waits_for_the_collector() {
    let (receiver, worker) = start().await;
    for (n, behaviour) in [
        Behaviour::Accept,
        Behaviour::Hang,
        Behaviour::Reset,
        Behaviour::status(403),
        Behaviour::status(429),
        Behaviour::status(500),
        Behaviour::status(503),
    ]
    .into_iter()
    .enumerate()
    {
        let token = format!("token-of-fault-{n}");
        receiver.behave(behaviour.after(Duration::from_secs(10)));
        let path = "/work?spans=1";
        assert_eq!(worker.get_as(&token, path).await.status, 200);
        receiver.wait_for_posts(n + 1, PATIENCE).await;
        let pending = worker.stats().await["pending"];
        assert_eq!(pending, 2 * (n as u64 + 1), "{token}");
    }
}

/// Scenario: a collector refuses one token of two; requests come under both, one after the other.
/// Guarantees: the refused one is tried once and then left alone, and the other one's spans arrive.
#[tokio::test]
async fn a_refused_token_is_left_alone_and_no_other_one() {
    let (receiver, worker) = start().await;
    receiver.behave_for("token-refused", Behaviour::status(401));
    for _ in 0..5 {
        for token in ["token-refused", "token-accepted"] {
            assert_eq!(worker.get_as(token, "/work").await.status, 200);
            worker.settled().await;
        }
    }
    let posts = receiver.posts();
    let refused = posts.iter().filter(|post| post.token == "token-refused");
    assert_eq!((refused.count(), posts.len()), (1, 6));
    assert_eq!(worker.stats().await["failed"], 5);
}

/// Scenario: two thousand requests while the collector never answers.
/// Guarantees: see the module.
#[tokio::test]
async fn a_collector_that_hangs_costs_nobody_anything() {
    check(Fault {
        behaviour: Behaviour::Hang,
        said: "no response within 300ms",
    })
    .await;
}

/// Scenario: the same while the collector breaks each connection.
/// Guarantees: the same.
#[tokio::test]
async fn a_collector_that_resets_costs_nobody_anything() {
    check(Fault {
        behaviour: Behaviour::Reset,
        said: "got no response",
    })
    .await;
}

/// Scenario: the same while the collector refuses all credentials.
/// Guarantees: the same; later requests are those under another token.
#[tokio::test]
async fn a_collector_that_answers_403_costs_nobody_anything() {
    check(Fault {
        behaviour: Behaviour::status(403),
        said: "403",
    })
    .await;
}

/// Scenario: the same while the collector asks for patience.
/// Guarantees: the same; what is in flight meanwhile is what one second's requests make.
#[tokio::test]
async fn a_collector_that_answers_429_costs_nobody_anything() {
    check(Fault {
        behaviour: Behaviour::Answer {
            status: 429,
            headers: vec![("retry-after", "1".to_owned())],
            body: Default::default(),
        },
        said: "429",
    })
    .await;
}

/// Scenario: the same while the collector is overloaded.
/// Guarantees: the same.
#[tokio::test]
async fn a_collector_that_answers_503_costs_nobody_anything() {
    check(Fault {
        behaviour: Behaviour::status(503),
        said: "503",
    })
    .await;
}

/// Scenario: the same while the collector fails, with ten megabytes of excuses each time.
/// Guarantees: the same; the excuses are not read.
#[tokio::test]
async fn a_collector_that_answers_500_at_length_costs_nobody_anything() {
    check(Fault {
        behaviour: Behaviour::Answer {
            status: 500,
            headers: Vec::new(),
            body: vec![b'x'; 10 * 1024 * 1024].into(),
        },
        said: "500",
    })
    .await;
}
