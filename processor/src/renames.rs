//! Who is told when a span gets another name through [`ActiveSpan`](crate::ActiveSpan), which knows of no processor.

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};

use opentelemetry::trace::SpanContext;

use crate::runtime::Shared;
use crate::sync::{Arc, Weak};

/// Whether there ever was one. Without, a rename costs nothing here.
static ANY: AtomicBool = AtomicBool::new(false);

/// The processors that remember open spans. They are asked one after the other: a span that one does not know is no news to it.
static LISTENERS: RwLock<Vec<Weak<Shared>>> = RwLock::new(Vec::new());

/// This processor wants to know, for as long as it exists.
pub(crate) fn listen(shared: &Arc<Shared>) {
    let mut listeners = LISTENERS.write().unwrap_or_else(PoisonError::into_inner);
    listeners.retain(|listener| listener.strong_count() > 0);
    listeners.push(Arc::downgrade(shared));
    ANY.store(true, Ordering::Release);
}

/// Whether [`tell`] could reach anybody.
pub(crate) fn has_listeners() -> bool {
    ANY.load(Ordering::Acquire)
}

pub(crate) fn tell(span: &SpanContext, name: Cow<'static, str>) {
    let listeners: Vec<_> = {
        let listeners = LISTENERS.read().unwrap_or_else(PoisonError::into_inner);
        listeners.iter().filter_map(Weak::upgrade).collect()
    };
    for listener in listeners {
        listener.rename(span.trace_id(), span.span_id(), name.clone());
    }
}
