//! One request body on its way: attempts, waits and credentials, until it is answered or given up.

use crate::circuit::Circuits;
use crate::clock;
use crate::credentials::ExportToken;
use crate::endpoint::Endpoint;
use crate::error::{ExportError, TransportError, refuses_credentials};
use crate::random;
use crate::redact;
use crate::retry::{self, Decision, Outcome, Progress, RetryPolicy};
use crate::sync::{Mutex, MutexGuard};
use futures_util::future::{Either, select};
use http::{HeaderMap, HeaderValue, Method, Request, Response, header};
use opentelemetry::Context;
use opentelemetry::otel_debug;
use opentelemetry::trace::FutureExt as _;
use opentelemetry_http::{Bytes, HttpClient, HttpError, ResponseBodyTooLarge};
use std::borrow::Cow;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::pin::pin;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// Built-in clients stop reading here; what other clients return is not looked at beyond it.
pub(crate) const MAX_RESPONSE_BYTES: usize = 4 * 1024 * 1024;

/// After a wait that the collector asked for, an attempt gets at least this much time, or all of the timeout.
const MIN_ATTEMPT: Duration = Duration::from_secs(1);

/// Sends bodies to one endpoint.
pub(crate) struct Delivery {
    client: Arc<dyn HttpClient>,
    endpoint: Endpoint,
    headers: HeaderMap,
    limits: Limits,
    credential_hash: RandomState,
    /// Goes into each hash of a credential, so that it means nothing outside this exporter. In Workers it is the only
    /// key: `RandomState` has the same ones everywhere there.
    salt: u64,
    circuits: Mutex<Circuits>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// `None` is no limit.
    pub(crate) timeout: Option<Duration>,
    pub(crate) retry: RetryPolicy,
    pub(crate) circuit_cooldown: Duration,
}

/// A request body, encoded once; each attempt shares its bytes.
#[derive(Clone, Debug)]
pub(crate) struct Body {
    pub(crate) bytes: Bytes,
    pub(crate) gzip: bool,
}

/// The time one export has, over all of its requests.
#[derive(Debug)]
pub(crate) struct Budget {
    timeout: Option<Duration>,
    started: Duration,
    waited_for_collector: Duration,
}

/// The credential of a request. Its response remembers it, because it may repeat it.
#[derive(Clone)]
struct SentUnder(HeaderValue);

/// What came of one attempt.
#[derive(Debug)]
pub(crate) enum Sent {
    Answered(Response<Bytes>),
    Failed(HttpError),
    TimedOut,
}

// ===== impl Delivery =====

impl Delivery {
    pub(crate) fn new(
        client: Arc<dyn HttpClient>,
        endpoint: Endpoint,
        headers: HeaderMap,
        limits: Limits,
    ) -> Self {
        Self {
            client,
            endpoint,
            headers,
            limits,
            credential_hash: RandomState::new(),
            salt: random::bits(),
            circuits: Mutex::new(Circuits::new(limits.circuit_cooldown)),
        }
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub(crate) fn budget(&self) -> Budget {
        Budget {
            timeout: self.limits.timeout,
            started: clock::monotonic(),
            waited_for_collector: Duration::ZERO,
        }
    }

    /// Sends `body` until it is answered with success, or until there is a reason to stop.
    ///
    /// The token is read anew for each attempt, because it may have been refreshed meanwhile. `on_attempt` is told the
    /// number of each.
    pub(crate) async fn deliver(
        &self,
        cx: &Context,
        body: &Body,
        budget: &mut Budget,
        on_attempt: impl Fn(u32),
    ) -> Result<Response<Bytes>, ExportError> {
        let mut attempts = 0;
        let mut time = budget.left();
        loop {
            attempts += 1;
            let authorization = self.authorization(cx);
            let credential = self.credential_hash.hash_one((self.salt, &authorization));
            self.ask_circuit(credential)?;
            // The requests before this one used up the time of their export.
            if time.is_some_and(|time| time.is_zero()) {
                return Err(self.timed_out());
            }
            on_attempt(attempts);
            let sent = self.send(cx, body, authorization, time).await;

            let progress = budget.progress(attempts);
            match retry::decide(&self.limits.retry, sent.outcome(), progress) {
                Decision::Backoff(wait) => {
                    clock::sleep(wait).await;
                    time = budget.left();
                }
                Decision::Obey(wait) => {
                    clock::sleep(wait).await;
                    time = budget.left_after_waiting(wait);
                }
                Decision::TooLong(asked) => {
                    let max = self.limits.retry.max_retry_after;
                    let answer = self.conclude(sent, credential, attempts);
                    return answer.map_err(|error| error.throttled(asked, max));
                }
                Decision::Done | Decision::GiveUp => {
                    return self.conclude(sent, credential, attempts);
                }
            }
        }
    }

    /// One attempt, under `cx` and with telemetry suppressed, within `time`.
    pub(crate) async fn send(
        &self,
        cx: &Context,
        body: &Body,
        authorization: Option<HeaderValue>,
        time: Option<Duration>,
    ) -> Sent {
        let sent_under = authorization.clone().map(SentUnder);
        let request = self.request(body, authorization);
        // The call itself is inside as well: a client may read the context before its future is polled.
        let send = async { self.client.send_bytes(request).await }
            .with_context(cx.with_telemetry_suppressed());
        let result = match time {
            None => send.await,
            Some(time) => match select(pin!(send), clock::sleep(time)).await {
                Either::Left((result, _)) => result,
                Either::Right(_) => return Sent::TimedOut,
            },
        };
        match result {
            Ok(mut response) => {
                if let Some(sent_under) = sent_under {
                    response.extensions_mut().insert(sent_under);
                }
                Sent::Answered(response)
            }
            Err(error) => Sent::Failed(error),
        }
    }

    /// The credential of this moment: the token in `cx`, or else the configured header.
    pub(crate) fn authorization(&self, cx: &Context) -> Option<HeaderValue> {
        let token = cx.get::<ExportToken>().map(ExportToken::header);
        token.or_else(|| self.headers.get(header::AUTHORIZATION).cloned())
    }

    pub(crate) fn timeout(&self) -> Option<Duration> {
        self.limits.timeout
    }

    fn request(&self, body: &Body, authorization: Option<HeaderValue>) -> Request<Bytes> {
        let mut request = Request::new(body.bytes.clone());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.endpoint.uri().clone();
        let mut headers = self.headers.clone();
        if body.gzip {
            let gzip = HeaderValue::from_static("gzip");
            headers.insert(header::CONTENT_ENCODING, gzip);
        }
        if let Some(authorization) = authorization {
            headers.insert(header::AUTHORIZATION, authorization);
        }
        *request.headers_mut() = headers;
        request
    }

    fn ask_circuit(&self, credential: u64) -> Result<(), ExportError> {
        let now = clock::monotonic();
        match self.circuits().remaining(credential, now) {
            Some(remaining) => Err(ExportError::CircuitOpen { remaining }),
            None => Ok(()),
        }
    }

    fn conclude(
        &self,
        sent: Sent,
        credential: u64,
        attempts: u32,
    ) -> Result<Response<Bytes>, ExportError> {
        let response = match sent {
            Sent::Answered(response) => response,
            Sent::TimedOut => return Err(self.timed_out()),
            Sent::Failed(error) if error.is::<ResponseBodyTooLarge>() => {
                let max_bytes = MAX_RESPONSE_BYTES;
                return Err(ExportError::ResponseTooLarge { max_bytes });
            }
            Sent::Failed(error) => {
                let source = TransportError::new(&error);
                return Err(ExportError::Transport { source, attempts });
            }
        };
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        if refuses_credentials(status) {
            self.circuits().refused(credential, clock::monotonic());
        }
        self.log_body(&response);
        Err(ExportError::Status { status, attempts })
    }

    /// For debugging only: who knows what is in it.
    pub(crate) fn log_body(&self, response: &Response<Bytes>) {
        otel_debug!(
            name: "DirectExporter.ResponseBody",
            status = response.status().as_u16(),
            body = self.shown(response, response.body()).as_ref()
        );
    }

    /// The start of a text that came with this response, unless it repeats a credential that the request was sent with.
    pub(crate) fn shown<'a>(&self, response: &Response<Bytes>, text: &'a [u8]) -> Cow<'a, str> {
        const SHOWN_BYTES: usize = 1024;
        let text = &text[..text.len().min(SHOWN_BYTES)];
        match self.secrets(response).any(|s| redact::repeats(text, s)) {
            true => Cow::Borrowed("(withheld: it repeats a credential)"),
            false => String::from_utf8_lossy(text),
        }
    }

    /// What a response must not be seen to repeat.
    fn secrets<'a>(&'a self, response: &'a Response<Bytes>) -> impl Iterator<Item = &'a [u8]> {
        let sent_under = response.extensions().get::<SentUnder>();
        let sensitive = self.headers.values().filter(|value| value.is_sensitive());
        // Every configured header is marked, so among them are such as `x-tenant: 1`.
        let configured = sensitive.filter(|value| value.len() >= redact::TELLING);
        let values = sent_under.map(|SentUnder(value)| value).into_iter();
        values.chain(configured).map(|value| {
            // What follows a scheme: "Bearer" is no secret, and a collector may well speak of it.
            let bytes = value.as_bytes();
            let scheme = bytes.iter().position(|byte| *byte == b' ');
            &bytes[scheme.map_or(0, |at| at + 1)..]
        })
    }

    fn timed_out(&self) -> ExportError {
        ExportError::Timeout(self.limits.timeout.unwrap_or_default())
    }

    fn circuits(&self) -> MutexGuard<'_, Circuits> {
        self.circuits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Shows no credential: header values are marked sensitive, and the client and the endpoint's query are left out.
impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("endpoint", &format_args!("{}", self.endpoint))
            .field("headers", &self.headers)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

// ===== impl Sent =====

impl Sent {
    fn outcome(&self) -> Outcome<'_> {
        match self {
            Self::Answered(response) => Outcome::Response {
                status: response.status(),
                retry_after: response
                    .headers()
                    .get(header::RETRY_AFTER)
                    .and_then(|value| value.to_str().ok()),
            },
            Self::Failed(error) if error.is::<ResponseBodyTooLarge>() => Outcome::ResponseTooLarge,
            Self::Failed(_) => Outcome::NoResponse,
            Self::TimedOut => Outcome::TimedOut,
        }
    }
}

// ===== impl Budget =====

impl Budget {
    /// What is left of the timeout, which does not count what the collector asked us to wait.
    fn left(&self) -> Option<Duration> {
        let spent = clock::monotonic()
            .saturating_sub(self.started)
            .saturating_sub(self.waited_for_collector);
        Some(self.timeout?.saturating_sub(spent))
    }

    fn left_after_waiting(&mut self, waited: Duration) -> Option<Duration> {
        self.waited_for_collector = self.waited_for_collector.saturating_add(waited);
        let least = self.timeout?.min(MIN_ATTEMPT);
        self.left().map(|left| left.max(least))
    }

    fn progress(&self, attempts: u32) -> Progress {
        Progress {
            attempts,
            time_left: self.left(),
            waited_for_collector: self.waited_for_collector,
            now: clock::wall(),
            random: random::fraction(),
        }
    }
}
