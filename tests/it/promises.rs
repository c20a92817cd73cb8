//! Promises that the compiler, or a look at a text, can check.

use std::error::Error;
use std::fmt::{Debug, Display};

use opentelemetry::trace::SpanContext;
use opentelemetry_per_request::{
    Builder, Config, ConfigError, Deadlock, DropReason, Dropped, FlushError, FlushTrigger, Handle,
    Late, LateReason, PerRequestLogProcessor, PerRequestMetricReader, PerRequestSpanProcessor,
    SignalStats, Stats,
};
use opentelemetry_sdk::error::OTelSdkError;

use crate::support::{Recorder, World, tenant};

/// Scenario: the public types.
/// Guarantees: they are what a user needs them to be, and stay so.
#[test]
fn public_types_are_send_sync_and_debug() {
    fn shared<T: Send + Sync + Debug + 'static>() {}
    fn value<T: Send + Sync + Debug + Clone + PartialEq + 'static>() {}
    fn word<T: Send + Sync + Copy + Eq + std::hash::Hash + Debug + Display>() {}
    fn error<T: Error + Send + Sync + 'static>() {}
    shared::<PerRequestSpanProcessor>();
    shared::<PerRequestLogProcessor>();
    shared::<PerRequestMetricReader>();
    shared::<Handle>();
    fn clone<T: Clone>() {}
    clone::<Handle>();
    value::<Config>();
    value::<Stats>();
    value::<SignalStats>();
    value::<Dropped>();
    value::<Late>();
    value::<FlushError>();
    value::<Deadlock>();
    word::<FlushTrigger>();
    word::<DropReason>();
    word::<LateReason>();
    error::<ConfigError>();
    error::<FlushError>();
    fn debug<T: Debug>() {}
    debug::<Builder>();
}

/// Scenario: the futures of a handle.
/// Guarantees: they can be spawned on any runtime, and do not borrow the handle.
#[test]
fn futures_of_a_handle_are_send_and_own_what_they_need() {
    fn spawnable<T: Send + 'static>(value: T) -> T {
        value
    }
    let world = World::new(Config::default());
    let handle = world.telemetry.clone();
    let flush = spawnable(handle.flush());
    let timed = spawnable(handle.flush_with_timeout(std::time::Duration::from_secs(5)));
    let trace = spawnable(handle.flush_trace(SpanContext::NONE.trace_id()));
    let shutdown = spawnable(handle.shutdown(std::time::Duration::from_secs(5)));
    drop(handle);
    for future in [
        Box::pin(flush) as std::pin::Pin<Box<dyn Future<Output = Result<(), FlushError>>>>,
        Box::pin(timed),
        Box::pin(trace),
        Box::pin(shutdown),
    ] {
        assert_eq!(futures_executor::block_on(future), Ok(()));
    }
}

/// Scenario: a processor, a handle and a builder are shown with a secret in a live request's context.
/// Guarantees: `Debug` shows no value of a context.
#[test]
fn debug_shows_no_values_of_contexts() {
    #[derive(Debug)]
    struct Secret(#[expect(dead_code, reason = "it is only shown")] &'static str);
    let world = World::built(Config::default(), Recorder::new(), |builder| {
        let builder = builder.with_fallback_context(tenant(1).with_value(Secret("hunter2")));
        assert!(!format!("{builder:?}").contains("hunter2"));
        builder
    });
    let _open = world.start("open", &tenant(1).with_value(Secret("hunter2")));
    let shown = format!("{:?} {:#?}", world.telemetry, world.provider);
    assert!(!shown.contains("hunter2"), "{shown}");
}

/// Scenario: every error as text, and as the SDK's error.
/// Guarantees: lowercase fragments without a full stop; a timeout and a shutdown keep their meaning in the SDK.
#[test]
fn errors_read_as_fragments_and_keep_their_meaning() {
    let second = std::time::Duration::from_secs(1);
    let errors = [
        FlushError::Lost {
            failed: 1,
            dropped: 2,
        },
        FlushError::Timeout(second),
        FlushError::Exporter("no route".to_owned()),
        FlushError::WouldDeadlock(Deadlock::InsideExport),
        FlushError::WouldDeadlock(Deadlock::RuntimeBlocked),
        FlushError::AlreadyShutdown,
    ];
    for error in errors {
        let text = error.to_string();
        assert!(
            !text.ends_with('.') && text.starts_with(|c: char| c.is_lowercase()),
            "{text}"
        );
        match (&error, OTelSdkError::from(error.clone())) {
            (FlushError::Timeout(_), OTelSdkError::Timeout(after)) => assert_eq!(after, second),
            (FlushError::AlreadyShutdown, OTelSdkError::AlreadyShutdown) => {}
            (_, OTelSdkError::InternalFailure(message)) => assert_eq!(message, text),
            (error, other) => panic!("{error:?} became {other:?}"),
        }
    }
    let blocked = FlushError::WouldDeadlock(Deadlock::RuntimeBlocked).to_string();
    assert!(
        blocked.contains("flush().await") && blocked.contains("builder_with"),
        "{blocked}"
    );
}
