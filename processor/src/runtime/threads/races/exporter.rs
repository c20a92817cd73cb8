//! An exporter that does what a model says, and the collector behind it, which remembers what it was given.

use std::future::Future;
use std::pin::Pin;
use std::sync::Mutex as Quiet;
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::logs::{LogBatch, LogExporter, SdkLogRecord};
use opentelemetry_sdk::metrics::Temporality;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::trace::{SpanData, SpanExporter};

use super::{FALLBACK, Tenant, quiet, spawn};
use crate::stats::SignalStats;
use crate::sync::{Arc, Condvar, Mutex, thread};

/// How an export goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    /// Acknowledged while it is called.
    AtOnce,
    /// Acknowledged by another thread, which may be quicker than the poll that asked for it, and wakes it once too often.
    Later,
    /// Refused.
    Refused,
    /// The first one blocks its thread until another one is acknowledged.
    FirstBlocks,
    /// Never answered.
    Never,
    /// Acknowledged while it is called, but the exporter's own flush blocks its thread until then.
    FlushBlocks,
}

/// What was asked of the exporter, and what the collector has said.
#[derive(Debug, Default)]
pub(super) struct Collector {
    seen: Quiet<Seen>,
    /// Part of the model, so that other threads get ahead in the middle of an export, and can wait for its end.
    acknowledged: Mutex<Vec<u64>>,
    more: Condvar,
}

#[derive(Debug, Default)]
struct Seen {
    /// The tenant and the id of each span, record or data point that was given to `export`.
    given: Vec<(u64, u64)>,
    /// Calls of `export` that are not over, now and at most.
    inside: usize,
    most_inside: usize,
    shutdowns: usize,
    exports_after_shutdown: usize,
}

#[derive(Debug)]
pub(super) struct Scripted {
    collector: Arc<Collector>,
    manner: Manner,
}

impl Scripted {
    pub(super) fn new(collector: &Arc<Collector>, manner: Manner) -> Self {
        Self {
            collector: collector.clone(),
            manner,
        }
    }
}

impl Scripted {
    async fn export_these(&self, ids: Vec<u64>) -> OTelSdkResult {
        let (_inside, first) = self.collector.enter(&ids);
        match self.manner {
            Manner::AtOnce | Manner::FlushBlocks => {}
            Manner::Later => Reply::default().await,
            Manner::Refused => return Err(OTelSdkError::InternalFailure("refused".to_owned())),
            Manner::FirstBlocks if first => self.collector.wait_until(|ids| !ids.is_empty()),
            Manner::FirstBlocks => {}
            Manner::Never => std::future::pending().await,
        }
        self.collector.acknowledge(ids);
        Ok(())
    }

    fn flush(&self) -> OTelSdkResult {
        if self.manner == Manner::FlushBlocks {
            self.collector.wait_until(|ids| !ids.is_empty());
        }
        Ok(())
    }

    fn shut_down(&self) -> OTelSdkResult {
        quiet(&self.collector.seen).shutdowns += 1;
        Ok(())
    }
}

impl SpanExporter for Scripted {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.export_these(batch.iter().map(id).collect()).await
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.flush()
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        self.shut_down()
    }
}

impl LogExporter for Scripted {
    async fn export(&self, batch: LogBatch<'_>) -> OTelSdkResult {
        let ids = batch.iter().map(|(record, _)| id_of_record(record));
        self.export_these(ids.collect()).await
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        self.shut_down()
    }
}

/// Models measure one thing, so a collection finds one data point.
impl PushMetricExporter for Scripted {
    async fn export(&self, _: &ResourceMetrics) -> OTelSdkResult {
        let number = quiet(&self.collector.seen).given.len() as u64;
        self.export_these(vec![number]).await
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.flush()
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        self.shut_down()
    }

    fn temporality(&self) -> Temporality {
        Temporality::Delta
    }
}

impl Collector {
    /// An export begins. Under whose context is read before anything else can happen: the current context is not the
    /// checker's, so its threads share it.
    ///
    /// Says as well whether it is the first one.
    fn enter(self: &Arc<Self>, ids: &[u64]) -> (Inside, bool) {
        let tenant = Context::map_current(|cx| cx.get::<Arc<Tenant>>().map(|tenant| tenant.number));
        let mut seen = quiet(&self.seen);
        let first = seen.given.is_empty();
        let tenant = tenant.expect("an export has a saved context or the fallback");
        seen.given.extend(ids.iter().map(|id| (tenant, *id)));
        seen.inside += 1;
        seen.most_inside = seen.most_inside.max(seen.inside);
        if seen.shutdowns > 0 {
            seen.exports_after_shutdown += 1;
        }
        drop(seen);
        (Inside(self.clone()), first)
    }

    fn acknowledge(&self, ids: Vec<u64>) {
        self.acknowledged.lock().extend(ids);
        self.more.notify_all();
    }

    pub(super) fn acknowledged(&self) -> Vec<u64> {
        self.acknowledged.lock().clone()
    }

    pub(super) fn wait_until(&self, enough: impl Fn(&[u64]) -> bool) {
        let mut acknowledged = self.acknowledged.lock();
        while !enough(&acknowledged) {
            acknowledged = self.more.wait(acknowledged);
        }
    }

    pub(super) fn shutdowns(&self) -> usize {
        quiet(&self.seen).shutdowns
    }

    /// How many spans or records left under the fallback context.
    pub(super) fn under_fallback(&self) -> u64 {
        let seen = quiet(&self.seen);
        seen.given.iter().filter(|(t, _)| *t == FALLBACK).count() as u64
    }

    /// See `Model::check`.
    pub(super) fn check(&self, stats: &SignalStats, max_concurrent: usize) {
        let acknowledged = self.acknowledged().len() as u64;
        let seen = quiet(&self.seen);
        let mut ids: Vec<u64> = seen.given.iter().map(|(_, id)| *id).collect();
        ids.sort_unstable();
        let given = ids.len() as u64;
        ids.dedup();
        assert_eq!(ids.len() as u64, given, "exported twice (R12)");
        assert_eq!(given, stats.exported + stats.failed, "{stats:?} (R12)");
        // What is acknowledged after its deadline has failed nevertheless.
        match stats.timed_out_exports {
            0 => assert_eq!(acknowledged, stats.exported, "{stats:?} (R12)"),
            _ => assert!(acknowledged >= stats.exported, "{stats:?} (R12)"),
        }
        for (tenant, id) in &seen.given {
            let own = [id / 10, FALLBACK].contains(tenant);
            assert!(own, "{id} left under the context of {tenant} (R1)");
        }
        assert!(seen.most_inside <= max_concurrent, "{seen:?} (R6)");
        assert_eq!(seen.inside, 0, "{seen:?}");
        assert_eq!(seen.shutdowns, 1, "{seen:?} (R11)");
        assert_eq!(seen.exports_after_shutdown, 0, "{seen:?} (R11)");
    }
}

/// A call of `export` that is under way.
struct Inside(Arc<Collector>);

impl Drop for Inside {
    fn drop(&mut self) {
        quiet(&self.0.seen).inside -= 1;
    }
}

fn id(span: &SpanData) -> u64 {
    u64::from_be_bytes(span.span_context.span_id().to_bytes())
}

/// That of the span which it was emitted in: no model emits twice in one.
fn id_of_record(record: &SdkLogRecord) -> u64 {
    let span = record.trace_context().expect("it was emitted in a span");
    u64::from_be_bytes(span.span_id.to_bytes())
}

/// What another thread will say.
#[derive(Default)]
struct Reply {
    said: Option<Arc<Quiet<Said>>>,
}

#[derive(Default)]
struct Said {
    done: bool,
    waker: Option<Waker>,
}

impl Future for Reply {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<()> {
        if let Some(said) = &self.said {
            let mut said = quiet(said);
            said.waker = Some(cx.waker().clone());
            return match said.done {
                true => Poll::Ready(()),
                false => Poll::Pending,
            };
        }
        let said = Arc::new(Quiet::new(Said {
            done: false,
            waker: Some(cx.waker().clone()),
        }));
        self.said = Some(said.clone());
        spawn(move || {
            for done in [false, true] {
                let waker = {
                    let mut said = quiet(&said);
                    said.done = done;
                    said.waker.clone()
                };
                waker.iter().for_each(Waker::wake_by_ref);
            }
        });
        // It may be quicker than this poll.
        thread::yield_now();
        Poll::Pending
    }
}
