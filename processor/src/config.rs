//! Settings: their names, their defaults, and where they come from.

use std::fmt;
use std::time::Duration;

use opentelemetry::otel_debug;
#[cfg(not(target_family = "wasm"))]
use opentelemetry::otel_warn;

use crate::error::ConfigError;

/// `A365_PER_REQUEST_MAX_TRACES`: see [`Config::with_max_traces`].
pub const MAX_TRACES: &str = "A365_PER_REQUEST_MAX_TRACES";
/// `A365_PER_REQUEST_MAX_SPANS_PER_TRACE`: see [`Config::with_max_spans_per_trace`].
pub const MAX_SPANS_PER_TRACE: &str = "A365_PER_REQUEST_MAX_SPANS_PER_TRACE";
/// `A365_PER_REQUEST_MAX_CONCURRENT_EXPORTS`: see [`Config::with_max_concurrent_exports`].
pub const MAX_CONCURRENT_EXPORTS: &str = "A365_PER_REQUEST_MAX_CONCURRENT_EXPORTS";
/// `A365_PER_REQUEST_MAX_BATCH_SIZE`: see [`Config::with_max_batch_size`].
pub const MAX_BATCH_SIZE: &str = "A365_PER_REQUEST_MAX_BATCH_SIZE";
/// `A365_PER_REQUEST_MAX_PENDING_SPANS`: see [`Config::with_max_pending_spans`].
pub const MAX_PENDING_SPANS: &str = "A365_PER_REQUEST_MAX_PENDING_SPANS";
/// `A365_PER_REQUEST_MAX_PENDING_LOGS`: see [`Config::with_max_pending_logs`].
pub const MAX_PENDING_LOGS: &str = "A365_PER_REQUEST_MAX_PENDING_LOGS";
/// `A365_PER_REQUEST_METRIC_INTERVAL_MS`: see [`Config::with_metric_interval`].
pub const METRIC_INTERVAL_MS: &str = "A365_PER_REQUEST_METRIC_INTERVAL_MS";
/// `OTEL_METRIC_EXPORT_INTERVAL`, which is OpenTelemetry's: see [`Config::with_metric_period`].
pub const METRIC_PERIOD_MS: &str = "OTEL_METRIC_EXPORT_INTERVAL";
/// `A365_PER_REQUEST_MAX_EXPORTS_PER_REQUEST`: see [`Config::with_max_exports_per_request`].
pub const MAX_EXPORTS_PER_REQUEST: &str = "A365_PER_REQUEST_MAX_EXPORTS_PER_REQUEST";
/// `A365_PER_REQUEST_EXPORT_TIMEOUT_MS`: see [`Config::with_export_timeout`].
pub const EXPORT_TIMEOUT_MS: &str = "A365_PER_REQUEST_EXPORT_TIMEOUT_MS";
/// `A365_PER_REQUEST_OPEN_EVENTS`: see [`Config::with_open_events`].
pub const OPEN_EVENTS: &str = "A365_PER_REQUEST_OPEN_EVENTS";
/// `A365_PER_REQUEST_OPEN_EVENT_MIN_AGE_MS`: see [`Config::with_open_event_min_age`].
pub const OPEN_EVENT_MIN_AGE_MS: &str = "A365_PER_REQUEST_OPEN_EVENT_MIN_AGE_MS";
/// `A365_PER_REQUEST_EXPORT_UNFINISHED`: see [`Config::with_export_unfinished`].
pub const EXPORT_UNFINISHED: &str = "A365_PER_REQUEST_EXPORT_UNFINISHED";
/// `A365_PER_REQUEST_FLUSH_TRIGGER`: see [`Config::with_flush_trigger`].
pub const FLUSH_TRIGGER: &str = "A365_PER_REQUEST_FLUSH_TRIGGER";
/// `ENABLE_A365_OBSERVABILITY_PER_REQUEST_EXPORT`: see [`Config::with_enabled`].
pub const ENABLED: &str = "ENABLE_A365_OBSERVABILITY_PER_REQUEST_EXPORT";

/// Accepted because Agent365's processor knows them. They have no effect here: no trace is held back, so none needs a
/// grace period or a maximum age.
const WITHOUT_EFFECT: [&str; 2] = [
    "A365_PER_REQUEST_FLUSH_GRACE_MS",
    "A365_PER_REQUEST_MAX_TRACE_AGE_MS",
];

/// Default of [`Config::with_max_traces`].
pub const DEFAULT_MAX_TRACES: usize = 1000;
/// Default of [`Config::with_max_spans_per_trace`].
pub const DEFAULT_MAX_SPANS_PER_TRACE: usize = 5000;
/// Default of [`Config::with_max_concurrent_exports`].
pub const DEFAULT_MAX_CONCURRENT_EXPORTS: usize = match cfg!(target_family = "wasm") {
    // A Worker has six connections, and they are for its own work.
    true => 2,
    false => 20,
};
/// Default of [`Config::with_max_batch_size`].
pub const DEFAULT_MAX_BATCH_SIZE: usize = 64;
/// Default of [`Config::with_max_pending_spans`].
pub const DEFAULT_MAX_PENDING_SPANS: usize = 16_384;
/// Default of [`Config::with_max_pending_logs`].
pub const DEFAULT_MAX_PENDING_LOGS: usize = 16_384;
/// Default of [`Config::with_metric_interval`].
pub const DEFAULT_METRIC_INTERVAL: Duration = match cfg!(target_family = "wasm") {
    // An isolate may be gone soon.
    true => Duration::from_secs(1),
    false => Duration::from_secs(10),
};
/// Default of [`Config::with_metric_period`].
pub const DEFAULT_METRIC_PERIOD: Duration = Duration::from_secs(60);
/// Default of [`Config::with_max_exports_per_request`].
pub const DEFAULT_MAX_EXPORTS_PER_REQUEST: usize = 8;
/// Default of [`Config::with_open_event_min_age`].
pub const DEFAULT_OPEN_EVENT_MIN_AGE: Duration = Duration::from_millis(500);
/// Default of [`Config::with_export_timeout`].
pub const DEFAULT_EXPORT_TIMEOUT: Duration = Duration::from_secs(30);

/// When the spans that a request has queued leave, if the queue does not fill up before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FlushTrigger {
    /// At the next tick of the driver, about a millisecond later (`next_tick`). Spans arrive while their root is open.
    NextTick,
    /// When the local root ends (`local_root_end`): one batch for an ordinary request. Spans that end after the root
    /// leave at the next tick.
    LocalRootEnd,
}

impl FlushTrigger {
    /// [`LocalRootEnd`](Self::LocalRootEnd) in Cloudflare Workers, [`NextTick`](Self::NextTick) everywhere else.
    pub const DEFAULT: Self = match cfg!(target_family = "wasm") {
        true => Self::LocalRootEnd,
        false => Self::NextTick,
    };

    /// The word for this trigger in the environment.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NextTick => "next_tick",
            Self::LocalRootEnd => "local_root_end",
        }
    }

    fn parse(value: &str) -> Option<Self> {
        [Self::NextTick, Self::LocalRootEnd]
            .into_iter()
            .find(|trigger| trigger.as_str().eq_ignore_ascii_case(value))
    }
}

impl fmt::Display for FlushTrigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How the collector is told of a span while it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OpenEvents {
    /// Not at all (`off`).
    Off,
    /// By log records with the ids of the span and the event name [`span.state`](crate::OPEN_EVENT_NAME) (`logs`). They need
    /// a log processor, and the feature `logs`.
    Logs,
    /// By spans of no length below the real one, with an id of their own, as Pydantic Logfire does it (`pending_spans`).
    PendingSpans,
}

impl OpenEvents {
    /// The word for this form in the environment.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Logs => "logs",
            Self::PendingSpans => "pending_spans",
        }
    }

    fn parse(value: &str) -> Option<Self> {
        [Self::Off, Self::Logs, Self::PendingSpans]
            .into_iter()
            .filter(|form| form.is_built_in())
            .find(|form| form.as_str().eq_ignore_ascii_case(value))
    }

    fn is_built_in(self) -> bool {
        cfg!(feature = "logs") || self != Self::Logs
    }
}

impl fmt::Display for OpenEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The settings of a [`PerRequestSpanProcessor`](crate::PerRequestSpanProcessor), and of all that joins it.
///
/// [`Config::from_env`] reads them from the environment, and each `with_*` method overrides one:
///
/// ```
/// use opentelemetry_per_request::Config;
///
/// let config = Config::from_env().with_max_traces(10_000);
/// assert_eq!(config.max_traces(), 10_000);
/// ```
///
/// A value in the environment that is malformed or out of range is warned about, by the names of the variable, the value
/// and what is used instead, and ignored. An empty value is no value. A value given in code that makes no sense is an
/// error when the processor is built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    max_traces: usize,
    max_spans_per_trace: usize,
    max_concurrent_exports: usize,
    max_batch_size: usize,
    max_pending_spans: usize,
    max_pending_logs: usize,
    max_exports_per_request: usize,
    export_timeout: Duration,
    flush_trigger: FlushTrigger,
    metric_interval: Duration,
    /// Zero is never.
    metric_period: Duration,
    open_events: OpenEvents,
    /// The default if there is none.
    open_event_min_age: Option<Duration>,
    export_unfinished: bool,
    enabled: bool,
}

impl Default for Config {
    /// The defaults, without a look at the environment.
    fn default() -> Self {
        Self {
            max_traces: DEFAULT_MAX_TRACES,
            max_spans_per_trace: DEFAULT_MAX_SPANS_PER_TRACE,
            max_concurrent_exports: DEFAULT_MAX_CONCURRENT_EXPORTS,
            max_batch_size: DEFAULT_MAX_BATCH_SIZE,
            max_pending_spans: DEFAULT_MAX_PENDING_SPANS,
            max_pending_logs: DEFAULT_MAX_PENDING_LOGS,
            max_exports_per_request: DEFAULT_MAX_EXPORTS_PER_REQUEST,
            export_timeout: DEFAULT_EXPORT_TIMEOUT,
            flush_trigger: FlushTrigger::DEFAULT,
            metric_interval: DEFAULT_METRIC_INTERVAL,
            metric_period: DEFAULT_METRIC_PERIOD,
            open_events: OpenEvents::Off,
            open_event_min_age: None,
            export_unfinished: false,
            enabled: true,
        }
    }
}

impl Config {
    /// The settings in the environment of this process, and the defaults for all others.
    ///
    /// A variable that is not valid Unicode counts as malformed.
    #[must_use]
    pub fn from_env() -> Self {
        Self::from_lookup(|name| {
            std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
        })
    }

    /// The settings that `lookup` finds by the names of the variables, and the defaults for all others.
    ///
    /// For places that have settings but no process environment.
    ///
    /// ```
    /// use opentelemetry_per_request::Config;
    ///
    /// let config = Config::from_lookup(|name| {
    ///     (name == "A365_PER_REQUEST_MAX_TRACES").then(|| "20".to_owned())
    /// });
    /// assert_eq!(config.max_traces(), 20);
    /// assert_eq!(config.max_batch_size(), 64);
    /// ```
    #[must_use]
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Self {
        let source = Source { lookup };
        let default = Self::default();
        for name in WITHOUT_EFFECT {
            if source.get(name).is_some() {
                otel_debug!(
                    name: "PerRequestSpanProcessor.SettingWithoutEffect",
                    variable = name,
                    message = "this setting is accepted for compatibility and has no effect"
                );
            }
        }
        Self {
            max_traces: source.positive(MAX_TRACES, default.max_traces),
            max_spans_per_trace: source.limit(MAX_SPANS_PER_TRACE, default.max_spans_per_trace),
            max_concurrent_exports: source
                .limit(MAX_CONCURRENT_EXPORTS, default.max_concurrent_exports),
            max_batch_size: source.positive(MAX_BATCH_SIZE, default.max_batch_size),
            max_pending_spans: source.positive(MAX_PENDING_SPANS, default.max_pending_spans),
            max_pending_logs: source.positive(MAX_PENDING_LOGS, default.max_pending_logs),
            max_exports_per_request: source
                .limit(MAX_EXPORTS_PER_REQUEST, default.max_exports_per_request),
            export_timeout: source.millis(EXPORT_TIMEOUT_MS, default.export_timeout),
            flush_trigger: source.trigger(FLUSH_TRIGGER, default.flush_trigger),
            metric_interval: source.time(METRIC_INTERVAL_MS, default.metric_interval),
            metric_period: source.time(METRIC_PERIOD_MS, default.metric_period),
            open_events: source.parsed(OPEN_EVENTS, default.open_events, OpenEvents::parse),
            open_event_min_age: source.optional_time(OPEN_EVENT_MIN_AGE_MS),
            export_unfinished: source.boolean(EXPORT_UNFINISHED, default.export_unfinished),
            enabled: source.boolean(ENABLED, default.enabled),
        }
    }

    /// How many traces are kept in memory. When one more starts, the least recently used is evicted: its queued spans
    /// leave at once, and spans of it that end later leave under the fallback context.
    ///
    /// At least 1; 1000 by default; `A365_PER_REQUEST_MAX_TRACES`.
    #[must_use]
    pub fn with_max_traces(mut self, max: usize) -> Self {
        self.max_traces = max;
        self
    }

    /// How many spans the live requests of one trace may start. Further ones are dropped, counted as
    /// [`MaxSpansPerTrace`](crate::DropReason::MaxSpansPerTrace) and warned about.
    ///
    /// 0 is no limit; 5000 by default; `A365_PER_REQUEST_MAX_SPANS_PER_TRACE`. The ids of a request's spans are kept
    /// until it is over, 8 to about 40 bytes each, so this also bounds what one request can hold.
    #[must_use]
    pub fn with_max_spans_per_trace(mut self, max: usize) -> Self {
        self.max_spans_per_trace = max;
        self
    }

    /// How many calls of an exporter's `export` may be under way at once, of spans and of log records each. It is never exceeded:
    /// 1 means strictly one after the other, as those of metrics always are natively.
    ///
    /// 0 is no limit; 20 by default; `A365_PER_REQUEST_MAX_CONCURRENT_EXPORTS`. An exporter that blocks its thread takes one
    /// for each export, and there are never more than 256 of them.
    ///
    /// In Cloudflare Workers no request may wait for another one, so there it bounds the early exports of one request. There
    /// it is 2 by default, because a request has six connections.
    #[must_use]
    pub fn with_max_concurrent_exports(mut self, max: usize) -> Self {
        self.max_concurrent_exports = max;
        self
    }

    /// How many spans, or log records, one export may hold. A queue of a request that reaches it leaves at once.
    ///
    /// At least 1; 64 by default; `A365_PER_REQUEST_MAX_BATCH_SIZE`.
    #[must_use]
    pub fn with_max_batch_size(mut self, max: usize) -> Self {
        self.max_batch_size = max;
        self
    }

    /// How many ended spans may be inside the processor: queued, waiting for an export and in flight together. A span
    /// that ends beyond it is dropped and counted as [`QueueFull`](crate::DropReason::QueueFull).
    ///
    /// At least 1; 16384 by default; `A365_PER_REQUEST_MAX_PENDING_SPANS`.
    #[must_use]
    pub fn with_max_pending_spans(mut self, max: usize) -> Self {
        self.max_pending_spans = max;
        self
    }

    /// How many log records may be inside the processor: queued, waiting for an export and in flight together. One that is
    /// emitted beyond it is dropped and counted as [`QueueFull`](crate::DropReason::QueueFull).
    ///
    /// At least 1; 16384 by default; `A365_PER_REQUEST_MAX_PENDING_LOGS`.
    #[must_use]
    pub fn with_max_pending_logs(mut self, max: usize) -> Self {
        self.max_pending_logs = max;
        self
    }

    /// In Cloudflare Workers, how many exports of each signal one request may cause before it is over: a full queue that leaves
    /// early, or what comes after the local root. Each is a subrequest, of which a Worker has few.
    ///
    /// What is beyond leaves, in one export, when the local root ends, when the request is over, or with a flush; and while
    /// the request goes on after its root, at intervals that double from a quarter of a second to eight. Late spans have the
    /// same allowance, by trace.
    ///
    /// 0 is no limit, and so is more than 65,535; 8 by default; `A365_PER_REQUEST_MAX_EXPORTS_PER_REQUEST`. No effect anywhere
    /// else.
    #[must_use]
    pub fn with_max_exports_per_request(mut self, max: usize) -> Self {
        self.max_exports_per_request = max;
        self
    }

    /// How long one export may take. One that takes longer is cancelled and its spans are counted as failed; a call that
    /// cannot be cancelled, because it blocks its thread, keeps its place in `max_concurrent_exports` until it returns.
    ///
    /// Longer than 0; 30 s by default; `A365_PER_REQUEST_EXPORT_TIMEOUT_MS`, in milliseconds. It is also the deadline of
    /// a flush that is given none.
    #[must_use]
    pub fn with_export_timeout(mut self, timeout: Duration) -> Self {
        self.export_timeout = timeout;
        self
    }

    /// When queued spans leave.
    ///
    /// [`FlushTrigger::DEFAULT`] by default; `A365_PER_REQUEST_FLUSH_TRIGGER`, as `next_tick` or `local_root_end`.
    #[must_use]
    pub fn with_flush_trigger(mut self, trigger: FlushTrigger) -> Self {
        self.flush_trigger = trigger;
        self
    }

    /// Metrics are collected and exported when a request ends, but at most once in this time. If a request ends earlier, it
    /// happens when this time is over; in Cloudflare Workers kept alive by that request, or by the next one.
    ///
    /// In a Worker time is what its clock says, which stands still between two I/O operations. Zero is each time that a
    /// request ends; 10 s by default, in Workers 1 s; `A365_PER_REQUEST_METRIC_INTERVAL_MS`, in milliseconds, where 0 and
    /// below is zero.
    #[must_use]
    pub fn with_metric_interval(mut self, interval: Duration) -> Self {
        self.metric_interval = interval;
        self
    }

    /// Metrics are also collected and exported when so much time has passed since the last time, whether a request ends or
    /// not. `None` is never.
    ///
    /// 60 s by default; `OTEL_METRIC_EXPORT_INTERVAL`, in milliseconds, where 0 and below is never. No effect in Cloudflare
    /// Workers, where nothing runs between two events.
    #[must_use]
    pub fn with_metric_period(mut self, period: impl Into<Option<Duration>>) -> Self {
        self.metric_period = period.into().unwrap_or_default();
        self
    }

    /// Whether, and how, the collector is told of spans that are open.
    ///
    /// A span is told of once, when it is [old enough](Self::with_open_event_min_age) and still open, with the next batch of its
    /// request and under the context of that. When it ends it is exported as ever. At most
    /// [`max_pending_spans`](Self::with_max_pending_spans) open spans are remembered for it, and half of that, or of
    /// [`max_pending_logs`](Self::with_max_pending_logs), is for what ends and what is logged.
    ///
    /// [`OpenEvents::Off`] by default; `A365_PER_REQUEST_OPEN_EVENTS`, as `off`, `logs` or `pending_spans`.
    #[must_use]
    pub fn with_open_events(mut self, form: OpenEvents) -> Self {
        self.open_events = form;
        self
    }

    /// How old a span must be before the collector is told that it is open. One that ends earlier is told of when it ends, and
    /// only then.
    ///
    /// 500 ms by default; `A365_PER_REQUEST_OPEN_EVENT_MIN_AGE_MS`, in milliseconds, where 0 and below is none. In Cloudflare
    /// Workers, unless this is set, what is open when a request first waits for the network or a timer is told of at once, and
    /// what opens later when it is as old.
    #[must_use]
    pub fn with_open_event_min_age(mut self, age: Duration) -> Self {
        self.open_event_min_age = Some(age);
        self
    }

    /// Whether spans that have not ended when the processor is shut down are exported as if they had: up to that moment, with
    /// an error status, and with the attribute `per_request.unfinished`. Natively they are lost otherwise. In Cloudflare
    /// Workers it is the panic rescue that does so, for at most 33 requests.
    ///
    /// They have the first [32](crate::observer::MAX_OPEN_ATTRIBUTES) attributes that they started with, and the name that they were
    /// given last by [`ActiveSpan::update_name`](crate::ActiveSpan::update_name), or started with. At most
    /// [`max_pending_spans`](Self::with_max_pending_spans) open spans are remembered for it, and those of evicted requests are
    /// not.
    ///
    /// False by default; `A365_PER_REQUEST_EXPORT_UNFINISHED`, with the words of [`with_enabled`](Self::with_enabled).
    #[must_use]
    pub fn with_export_unfinished(mut self, export: bool) -> Self {
        self.export_unfinished = export;
        self
    }

    /// Whether anything is exported at all. A processor that is not enabled does nothing: it keeps no state, starts no
    /// thread, and never calls its exporter.
    ///
    /// True by default; `ENABLE_A365_OBSERVABILITY_PER_REQUEST_EXPORT`, where `true`, `1`, `yes` and `on` are true and
    /// `false`, `0`, `no` and `off` are false, in any case.
    #[must_use]
    pub fn with_enabled(mut self, enabled: bool) -> Self {
        self.enabled = enabled;
        self
    }

    /// See [`Config::with_max_traces`].
    pub fn max_traces(&self) -> usize {
        self.max_traces
    }

    /// See [`Config::with_max_spans_per_trace`].
    pub fn max_spans_per_trace(&self) -> usize {
        self.max_spans_per_trace
    }

    /// See [`Config::with_max_concurrent_exports`].
    pub fn max_concurrent_exports(&self) -> usize {
        self.max_concurrent_exports
    }

    /// See [`Config::with_max_batch_size`].
    pub fn max_batch_size(&self) -> usize {
        self.max_batch_size
    }

    /// See [`Config::with_max_pending_spans`].
    pub fn max_pending_spans(&self) -> usize {
        self.max_pending_spans
    }

    /// See [`Config::with_max_pending_logs`].
    pub fn max_pending_logs(&self) -> usize {
        self.max_pending_logs
    }

    /// See [`Config::with_metric_interval`].
    pub fn metric_interval(&self) -> Duration {
        self.metric_interval
    }

    /// See [`Config::with_metric_period`].
    pub fn metric_period(&self) -> Option<Duration> {
        (!self.metric_period.is_zero()).then_some(self.metric_period)
    }

    /// See [`Config::with_max_exports_per_request`].
    pub fn max_exports_per_request(&self) -> usize {
        self.max_exports_per_request
    }

    /// See [`Config::with_export_timeout`].
    pub fn export_timeout(&self) -> Duration {
        self.export_timeout
    }

    /// See [`Config::with_flush_trigger`].
    pub fn flush_trigger(&self) -> FlushTrigger {
        self.flush_trigger
    }

    /// See [`Config::with_open_events`].
    pub fn open_events(&self) -> OpenEvents {
        self.open_events
    }

    /// See [`Config::with_open_event_min_age`].
    pub fn open_event_min_age(&self) -> Duration {
        self.open_event_min_age
            .unwrap_or(DEFAULT_OPEN_EVENT_MIN_AGE)
    }

    /// Whether it was set.
    #[cfg(any(test, target_family = "wasm"))]
    pub(crate) fn has_open_event_min_age(&self) -> bool {
        self.open_event_min_age.is_some()
    }

    /// See [`Config::with_export_unfinished`].
    pub fn export_unfinished(&self) -> bool {
        self.export_unfinished
    }

    /// See [`Config::with_enabled`].
    pub fn enabled(&self) -> bool {
        self.enabled
    }

    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        match self {
            Self { max_traces: 0, .. } => Err(ConfigError::MaxTracesIsZero),
            Self {
                max_batch_size: 0, ..
            } => Err(ConfigError::MaxBatchSizeIsZero),
            Self {
                max_pending_spans: 0,
                ..
            } => Err(ConfigError::MaxPendingSpansIsZero),
            Self {
                max_pending_logs: 0,
                ..
            } => Err(ConfigError::MaxPendingLogsIsZero),
            Self {
                export_timeout: Duration::ZERO,
                ..
            } => Err(ConfigError::ExportTimeoutIsZero),
            Self { open_events, .. } if !open_events.is_built_in() => {
                Err(ConfigError::OpenEventsWithoutLogs)
            }
            _ => Ok(()),
        }
    }
}

/// Reads single settings, and warns about those that it cannot use.
struct Source<L> {
    lookup: L,
}

impl<L: Fn(&str) -> Option<String>> Source<L> {
    /// The trimmed value. Empty means unset, as everywhere in OpenTelemetry.
    fn get(&self, name: &str) -> Option<String> {
        (self.lookup)(name)
            .map(|value| value.trim().to_owned())
            .filter(|value| !value.is_empty())
    }

    /// A number of at least 1.
    fn positive(&self, name: &'static str, default: usize) -> usize {
        self.parsed(name, default, |value| {
            parse_limit(value).filter(|number| *number > 0)
        })
    }

    /// A number, where 0 and below is no limit.
    fn limit(&self, name: &'static str, default: usize) -> usize {
        self.parsed(name, default, parse_limit)
    }

    fn millis(&self, name: &'static str, default: Duration) -> Duration {
        let default_ms = usize::try_from(default.as_millis()).unwrap_or(usize::MAX);
        Duration::from_millis(self.positive(name, default_ms) as u64)
    }

    /// In milliseconds, where 0 and below is none.
    fn time(&self, name: &'static str, default: Duration) -> Duration {
        let default_ms = usize::try_from(default.as_millis()).unwrap_or(usize::MAX);
        Duration::from_millis(self.limit(name, default_ms) as u64)
    }

    /// The same, of which the default says more than a time.
    fn optional_time(&self, name: &'static str) -> Option<Duration> {
        let default = DEFAULT_OPEN_EVENT_MIN_AGE.as_millis();
        let value = self.get(name)?;
        let number = parse_limit(&value);
        if number.is_none() {
            complain(name, &value, &default.to_string());
        }
        number.map(|millis| Duration::from_millis(millis as u64))
    }

    fn trigger(&self, name: &'static str, default: FlushTrigger) -> FlushTrigger {
        self.parsed(name, default, FlushTrigger::parse)
    }

    fn boolean(&self, name: &'static str, default: bool) -> bool {
        self.parsed(name, default, parse_boolean)
    }

    fn parsed<T: fmt::Display>(
        &self,
        name: &'static str,
        default: T,
        parse: impl Fn(&str) -> Option<T>,
    ) -> T {
        let Some(value) = self.get(name) else {
            return default;
        };
        parse(&value).unwrap_or_else(|| {
            complain(name, &value, &default.to_string());
            default
        })
    }
}

#[cfg(not(target_family = "wasm"))]
fn complain(name: &str, value: &str, used: &str) {
    otel_warn!(
        name: "PerRequestSpanProcessor.InvalidSetting",
        variable = name,
        value = value,
        used = used,
        message = "this setting cannot be used; the default is used instead"
    );
}

#[cfg(target_family = "wasm")]
fn complain(name: &str, value: &str, used: &str) {
    crate::workers::console::warn(&format!(
        "the setting {name} cannot be {value:?}; the default is used instead ({used})"
    ));
}

/// A whole number; everything below 0 is 0. Numbers beyond `i128` are no numbers.
fn parse_limit(value: &str) -> Option<usize> {
    let number: i128 = value.parse().ok()?;
    Some(usize::try_from(number.max(0)).unwrap_or(usize::MAX))
}

fn parse_boolean(value: &str) -> Option<bool> {
    const WORDS: [(&str, bool); 8] = [
        ("true", true),
        ("1", true),
        ("yes", true),
        ("on", true),
        ("false", false),
        ("0", false),
        ("no", false),
        ("off", false),
    ];
    WORDS
        .into_iter()
        .find(|(word, _)| word.eq_ignore_ascii_case(value))
        .map(|(_, meaning)| meaning)
}
