//! Says once that something is away, and once that it is back.

use std::{
    fmt,
    sync::atomic::{AtomicBool, Ordering},
};

/// Whether one thing that the worker depends on is away.
#[derive(Debug)]
pub(crate) struct Outage {
    what: &'static str,
    on: AtomicBool,
}

impl Outage {
    /// `what` is away when it does not do its part, such as "the live plane".
    pub(crate) fn of(what: &'static str) -> Self {
        Self {
            what,
            on: AtomicBool::new(false),
        }
    }

    /// It did not do it.
    pub(crate) fn failed(&self, error: &dyn fmt::Display) {
        if !self.on.swap(true, Ordering::Relaxed) {
            tracing::warn!(%error, "{} is away; it is being tried again", self.what);
        }
    }

    /// It did it.
    pub(crate) fn worked(&self) {
        // A load first: this is called for every success, and a swap would bounce the cache line.
        if self.is_on() && self.on.swap(false, Ordering::Relaxed) {
            tracing::info!("{} is back", self.what);
        }
    }

    pub(crate) fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }
}
