//! A panic takes the whole instance with it: every request in it, and everything that is queued. Before it does, this puts
//! what is queued on the wire.

use super::root::OpenRoots;
use crate::runtime::Shared;
use crate::sync::Arc;

/// Installs the hook, behind the one that is there. Returns what it has to be told of.
#[cfg(not(panic = "unwind"))]
pub(super) fn install(shared: &Arc<Shared>) -> Option<OpenRoots> {
    use std::panic::{set_hook, take_hook};

    use opentelemetry::Context;
    use opentelemetry::trace::TraceContextExt as _;

    use super::root::REPORTED_ROOTS;

    let open_roots = OpenRoots::new();
    let (shared, open) = (shared.clone(), open_roots.clone());
    let first = take_hook();
    set_hook(Box::new(move |info| {
        // First what is sure to work: a panic in here ends the hook at once.
        first(info);
        super::timer::stop_all();
        let last_words = || open.end_all(&info.to_string(), |id| shared.is_live(id));
        let own = Context::map_current(|cx| cx.span().span_context().trace_id());
        // Its own, and those whose roots it ends.
        shared.rescue(Some(own), 1 + REPORTED_ROOTS, last_words);
    }));
    Some(open_roots)
}

/// An instance that unwinds survives a panic.
#[cfg(panic = "unwind")]
pub(super) fn install(_shared: &Arc<Shared>) -> Option<OpenRoots> {
    super::console::log("this Worker unwinds, so a panic leaves nothing to rescue");
    None
}
