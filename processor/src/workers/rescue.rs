//! A panic takes the whole instance with it: every request in it, and everything that is queued. Before it does, this puts
//! what is queued on the wire.

use std::panic::{set_hook, take_hook};

use super::root::OpenRoots;
use super::timer;
use crate::runtime::Shared;
use crate::sync::Arc;

/// Installs the hook, in front of the one that is there.
pub(super) fn install(shared: &Arc<Shared>, open: &OpenRoots) {
    let (shared, open) = (shared.clone(), open.clone());
    let next = take_hook();
    set_hook(Box::new(move |info| {
        shared.rescue(|| open.end_all(&info.to_string()));
        timer::stop_all();
        next(info);
    }));
}
