//! When an attempt must end before it is done.

use std::time::Duration;

use sluice_shared::domain::{Outcome, Span};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// What ends an attempt early: its cancellation or its timeout.
#[derive(Clone, Copy)]
pub(super) struct Stop<'a> {
    cancel: &'a CancellationToken,
    timeout: Duration,
    deadline: Instant,
}

impl<'a> Stop<'a> {
    pub(super) fn new(cancel: &'a CancellationToken, timeout: Duration) -> Self {
        let now = Instant::now();
        // A timeout beyond what the clock can express is none; a year stands for it.
        let deadline = now
            .checked_add(timeout)
            .unwrap_or_else(|| now + Duration::from_secs(365 * 24 * 3600));
        Self {
            cancel,
            timeout,
            deadline,
        }
    }

    /// Whether it was cancelled already.
    pub(super) fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }

    /// The result of `work`, or the outcome that ended it early. Then `work` has been dropped.
    pub(super) async fn race<T>(&self, work: impl Future<Output = T>) -> Result<T, Outcome> {
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(Outcome::Cancelled),
            done = tokio::time::timeout_at(self.deadline, work) => done.map_err(|_| {
                Outcome::failed("timeout", format!("not done after {}", Span(self.timeout)))
            }),
        }
    }
}
