//! One Worker in workerd, in processes of its own.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, SemaphorePermit, oneshot};
use tokio::task::JoinHandle;

/// No more at once, so that those which run are not too slow for what their tests wait for.
static SLOTS: Semaphore = Semaphore::const_new(2);

/// For what must happen, however slow the machine is.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// What `cargo xtask test workers` has built.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Build {
    /// `examples/worker`, as it is.
    Example,
    /// `examples/worker` with the routes that tests need.
    Scenarios,
    /// The same handler without telemetry.
    Plain,
}

impl Build {
    fn directory(self) -> PathBuf {
        let name = match self {
            Self::Example => "example",
            Self::Scenarios => "scenarios",
            Self::Plain => "plain",
        };
        root().join("target/workers").join(name)
    }
}

/// How a Worker runs.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    build: Build,
    miniflare: Value,
}

impl Settings {
    pub(crate) fn new(build: Build) -> Self {
        let directory = build.directory();
        assert!(
            directory.join("index.js").exists(),
            "no Worker in {}: run `cargo xtask test workers`",
            directory.display()
        );
        let miniflare = json!({
            "rootPath": directory,
            "compatibilityDate": compatibility_date(),
        });
        Self { build, miniflare }
    }

    /// A binding: a string, a number, or any other JSON.
    pub(crate) fn binding(self, name: &str, value: impl Into<Value>) -> Self {
        self.set("bindings", name, value.into())
    }

    /// A binding to the Durable Objects of a class that the Worker exports.
    pub(crate) fn durable_object(self, binding: &str, class: &str) -> Self {
        self.set("durableObjects", binding, class.into())
    }

    /// A queue that the Worker sends to through the binding, and consumes after at most one second.
    pub(crate) fn queue(self, binding: &str, queue: &str) -> Self {
        self.set("queueProducers", binding, queue.into()).set(
            "queueConsumers",
            queue,
            json!({ "maxBatchTimeout": 1 }),
        )
    }

    pub(crate) fn compatibility_flag(mut self, flag: &str) -> Self {
        match &mut self.miniflare["compatibilityFlags"] {
            Value::Array(flags) => flags.push(flag.into()),
            none => *none = json!([flag]),
        }
        self
    }

    fn set(mut self, map: &str, key: &str, value: Value) -> Self {
        self.miniflare[map][key] = value;
        self
    }
}

/// What a Worker answered.
#[derive(Clone, Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) body: String,
    pub(crate) elapsed: Duration,
}

/// A running Worker. It ends when it is dropped. That panics if its console has a token, or what no test may cause.
///
/// At most two run at a time, so a test that holds two of them may wait for another such test for ever.
#[derive(Debug)]
pub(crate) struct Worker {
    settings: Settings,
    client: Client,
    process: Process,
    _slot: SemaphorePermit<'static>,
}

/// Sends requests to a Worker. Clones are of use on other tasks.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    address: SocketAddr,
    secrets: Arc<Mutex<BTreeSet<String>>>,
}

impl Worker {
    pub(crate) async fn start(settings: Settings) -> Self {
        let slot = SLOTS.acquire().await.unwrap();
        let process = Process::start(&settings).await;
        Self {
            client: Client {
                http: reqwest::Client::builder().no_proxy().build().unwrap(),
                address: process.address,
                secrets: Arc::default(),
            },
            process,
            settings,
            _slot: slot,
        }
    }

    pub(crate) fn client(&self) -> Client {
        self.client.clone()
    }

    pub(crate) async fn get(&self, path: &str) -> Response {
        self.client.get("", path).await
    }

    /// A request under this token.
    pub(crate) async fn get_as(&self, token: &str, path: &str) -> Response {
        self.client.get(token, path).await
    }

    pub(crate) async fn request(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Response {
        self.client.request(method, path, headers).await.unwrap()
    }

    /// Sends a request under this token at once, and returns its task, which panics if there is no response.
    pub(crate) fn send(&self, token: &str, path: &str) -> JoinHandle<Response> {
        let (client, token, path) = (self.client(), token.to_owned(), path.to_owned());
        tokio::spawn(async move { client.get(&token, &path).await })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.client.address
    }

    /// No line on the console may contain this, from the beginning to the end.
    pub(crate) fn keep_secret(&self, secret: &str) {
        self.client.keep_secret(secret);
    }

    /// The numbers of `/stats`.
    pub(crate) async fn stats(&self) -> BTreeMap<String, u64> {
        let stats = self.get("/stats").await;
        let stats: BTreeMap<String, u64> = serde_json::from_str(&stats.body).unwrap();
        assert_eq!(stats["balanced"], 1, "the accounting law (R12): {stats:?}");
        stats
    }

    /// The numbers of `/stats` when nothing is pending any more.
    pub(crate) async fn settled(&self) -> BTreeMap<String, u64> {
        self.wait_for_stats(|stats| stats["pending"] == 0).await
    }

    /// The numbers of `/stats` once they are as wanted. Panics when they are not after a while.
    pub(crate) async fn wait_for_stats(
        &self,
        wanted: impl Fn(&BTreeMap<String, u64>) -> bool,
    ) -> BTreeMap<String, u64> {
        let start = Instant::now();
        loop {
            let stats = self.stats().await;
            if wanted(&stats) {
                return stats;
            }
            assert!(start.elapsed() < PATIENCE, "it stays so: {stats:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// All that the Worker has logged since its process started, as `level: message`.
    pub(crate) fn console(&self) -> Vec<String> {
        self.process.shared.console.lock().unwrap().clone()
    }

    /// Returns when a line with this text was logged.
    pub(crate) async fn wait_for_console(&self, text: &str) {
        let start = Instant::now();
        while !self.console().iter().any(|line| line.contains(text)) {
            assert!(
                start.elapsed() < PATIENCE,
                "`{text}` is not in {:?}",
                self.console()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Calls the handler of scheduled events. Returns its outcome: `ok`, or `exception`.
    pub(crate) async fn scheduled(&self, cron: &str) -> Result<String, String> {
        self.dispatch("scheduled", json!([{ "cron": cron }])).await
    }

    /// Calls the handler of queues with one batch. Returns its outcome: `ok`, or `exception`.
    pub(crate) async fn queue(&self, queue: &str, bodies: &[Value]) -> Result<String, String> {
        let messages: Vec<Value> = bodies
            .iter()
            .enumerate()
            .map(|(id, body)| json!({ "id": id.to_string(), "timestamp": 0, "attempts": 1, "body": body }))
            .collect();
        self.dispatch("queue", json!([queue, messages])).await
    }

    async fn dispatch(&self, method: &str, arguments: Value) -> Result<String, String> {
        let answer = self.process.call(method, arguments).await;
        match answer.get("error") {
            Some(error) => Err(error.as_str().unwrap_or_default().to_owned()),
            None => Ok(answer["value"]["outcome"]
                .as_str()
                .unwrap_or_default()
                .to_owned()),
        }
    }

    /// A new process with the same settings. What the Worker had in memory is gone, and so is its console.
    pub(crate) async fn restart(&mut self) {
        self.process.end();
        self.assert_console();
        self.process = Process::start(&self.settings).await;
        self.client.address = self.process.address;
    }

    /// Ends the process at once, in the middle of whatever it does.
    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    /// The memory of workerd that is resident.
    pub(crate) fn rss_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.workerd()));
        let status = status.unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let kilobytes = line.and_then(|line| line.split_whitespace().nth(1));
        kilobytes.unwrap().parse::<u64>().unwrap() * 1024
    }

    fn assert_console(&self) {
        let secrets = self.client.secrets.lock().unwrap();
        for line in self.console() {
            // So the runtime complains of a request that does something for another one (R13).
            assert!(!line.contains("different request"), "{line}");
            let told = secrets.iter().find(|secret| line.contains(secret.as_str()));
            assert!(told.is_none(), "{told:?} is on the console: {line}");
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.process.end();
        if !thread::panicking() {
            self.assert_console();
        }
    }
}

// ===== impl Client =====

impl Client {
    pub(crate) async fn get(&self, token: &str, path: &str) -> Response {
        let header = ("x-telemetry-token", token);
        let headers = if token.is_empty() { &[][..] } else { &[header] };
        self.request(Method::GET, path, headers).await.unwrap()
    }

    pub(crate) async fn request(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
    ) -> reqwest::Result<Response> {
        let url = format!("http://{}{path}", self.address);
        let mut request = self.http.request(method, url);
        for (name, value) in headers {
            if *name == "x-telemetry-token" {
                self.keep_secret(value);
            }
            request = request.header(*name, *value);
        }
        let start = Instant::now();
        let response = request.send().await?;
        Ok(Response {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            body: response.text().await?,
            elapsed: start.elapsed(),
        })
    }

    /// Sends a request, and breaks the connection after so long.
    ///
    /// With a reset: an orderly end of the client's side does not cancel a request.
    pub(crate) async fn abandon(&self, token: &str, path: &str, after: Duration) {
        let stream = self.begin(token, path).await;
        tokio::time::sleep(after).await;
        stream.set_zero_linger().unwrap();
    }

    /// Sends a request, and breaks the connection when so much of the answer is there.
    pub(crate) async fn abandon_at(&self, token: &str, path: &str, text: &str) {
        let mut stream = self.begin(token, path).await;
        let mut answer = Vec::new();
        while !String::from_utf8_lossy(&answer).contains(text) {
            assert_ne!(
                stream.read_buf(&mut answer).await.unwrap(),
                0,
                "no {text:?}"
            );
        }
        stream.set_zero_linger().unwrap();
    }

    async fn begin(&self, token: &str, path: &str) -> TcpStream {
        let address = self.address;
        let mut stream = TcpStream::connect(address).await.unwrap();
        let mut request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\n");
        if !token.is_empty() {
            self.keep_secret(token);
            request.push_str(&format!("x-telemetry-token: {token}\r\n"));
        }
        request.push_str("\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }

    fn keep_secret(&self, secret: &str) {
        // A shorter one could be in a line by chance.
        assert!(secret.len() >= 8, "{secret} is no good token for a test");
        self.secrets.lock().unwrap().insert(secret.to_owned());
    }
}

// ===== impl Process =====

/// `run.mjs` and its workerd, which are a process group.
#[derive(Debug)]
struct Process {
    node: Child,
    input: Mutex<Option<ChildStdin>>,
    address: SocketAddr,
    shared: Arc<Shared>,
    reader: Option<thread::JoinHandle<()>>,
}

/// What the process has said.
#[derive(Debug, Default)]
struct Shared {
    console: Mutex<Vec<String>>,
    /// Who waits for which call.
    answers: Mutex<HashMap<u64, oneshot::Sender<Value>>>,
    calls: AtomicU64,
}

impl Process {
    async fn start(settings: &Settings) -> Self {
        let folder = root().join("tests/workers");
        let mut node = Command::new("node")
            .arg("run.mjs")
            .arg(settings.miniflare.to_string())
            .current_dir(folder)
            // A killed process leaves its temporary files behind.
            .env("TMPDIR", env!("CARGO_TARGET_TMPDIR"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .expect("node starts");
        let shared = Arc::<Shared>::default();
        let (address, reader) = listen(node.stdout.take().unwrap(), shared.clone());
        let mut process = Self {
            input: Mutex::new(node.stdin.take()),
            node,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            shared,
            reader: Some(reader),
        };
        process.address = tokio::time::timeout(PATIENCE, address)
            .await
            .expect("the Worker starts in time")
            .unwrap_or_else(|_| panic!("{:?} does not start", settings.build));
        process
    }

    async fn call(&self, method: &str, arguments: Value) -> Value {
        let (answer, answered) = oneshot::channel();
        let id = self.shared.calls.fetch_add(1, Ordering::Relaxed);
        self.shared.answers.lock().unwrap().insert(id, answer);
        self.say(&json!({ "id": id, "method": method, "arguments": arguments }));
        tokio::time::timeout(PATIENCE, answered)
            .await
            .expect("the handler ends in time")
            .expect("the process lives")
    }

    fn say(&self, line: &Value) {
        let mut input = self.input.lock().unwrap();
        writeln!(input.as_mut().unwrap(), "{line}").unwrap();
    }

    /// Lets it end by itself, which takes workerd with it, and leaves nothing behind.
    fn end(&mut self) {
        self.input.lock().unwrap().take();
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(2) {
            if let Ok(Some(_)) = self.node.try_wait() {
                break;
            }
            thread::sleep(Duration::from_millis(5));
        }
        self.kill();
        // What it has said is read to the end.
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }

    fn kill(&mut self) {
        // Not after it was waited for: the number may be somebody else's by then.
        if let Ok(None) = self.node.try_wait() {
            let group = format!("kill -KILL -{}", self.node.id());
            let _ = Command::new("sh").args(["-c", &group]).status();
        }
        let _ = self.node.wait();
    }

    /// The process that runs the Worker.
    fn workerd(&self) -> u32 {
        std::fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .find(|process| parent_of(*process) == Some(self.node.id()))
            .expect("workerd runs")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// Reads what the process says, on a thread that ends with it. Returns where it will listen, and the thread.
fn listen(
    output: ChildStdout,
    shared: Arc<Shared>,
) -> (oneshot::Receiver<SocketAddr>, thread::JoinHandle<()>) {
    let (ready, started) = oneshot::channel();
    let reader = thread::spawn(move || {
        let mut ready = Some(ready);
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            let line: Value = serde_json::from_str(&line).unwrap();
            if let Some(url) = line["ready"].as_str() {
                let address = url.trim_start_matches("http://").trim_end_matches('/');
                let _ = ready.take().unwrap().send(address.parse().unwrap());
            } else if let Some(level) = line["level"].as_str() {
                let message = line["message"].as_str().unwrap_or_default();
                let mut console = shared.console.lock().unwrap();
                console.push(format!("{level}: {message}"));
            } else if let Some(id) = line["id"].as_u64() {
                let answer = shared.answers.lock().unwrap().remove(&id).unwrap();
                let _ = answer.send(line);
            }
        }
    });
    (started, reader)
}

fn parent_of(process: u32) -> Option<u32> {
    // `pid (name) state parent ...`, where the name may be anything.
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(1)?.parse().ok()
}

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// That of the example.
fn compatibility_date() -> String {
    let settings = std::fs::read_to_string(root().join("examples/worker/wrangler.toml")).unwrap();
    let line = settings
        .lines()
        .find_map(|line| line.strip_prefix("compatibility_date = "));
    line.unwrap().trim_matches('"').to_owned()
}
