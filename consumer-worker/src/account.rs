//! An account that this worker serves.

use std::sync::atomic::{AtomicBool, Ordering};

use metrics::{Counter, Gauge, Histogram};
use sluice_shared::{config::AccountConfig, domain::AccountId};

use crate::provider::Provider;

/// An account with what runs its prompts.
#[derive(Debug)]
pub(crate) struct Account {
    pub(crate) id: AccountId,
    pub(crate) provider: Provider,
    /// Prompts it runs at once, at most.
    pub(crate) concurrency: u16,
    pub(crate) meters: Meters,
    /// Whether its queue is consumed now.
    consumed: AtomicBool,
}

impl Account {
    pub(crate) fn new(id: AccountId, config: &AccountConfig, provider: Provider) -> Self {
        let meters = Meters::new(&id, config.provider.name());
        Self {
            id,
            provider,
            concurrency: u16::try_from(config.max_concurrency).unwrap_or(u16::MAX),
            meters,
            consumed: AtomicBool::new(false),
        }
    }

    pub(crate) fn is_consumed(&self) -> bool {
        self.consumed.load(Ordering::Relaxed)
    }

    pub(crate) fn set_consumed(&self, consumed: bool) {
        self.consumed.store(consumed, Ordering::Relaxed);
    }
}

/// The account's metrics, looked up once: a look-up by labels per job would cost more than the
/// job's own bookkeeping.
pub(crate) struct Meters {
    attempts: [(&'static str, Counter); OUTCOMES.len()],
    pub(crate) in_flight: Gauge,
    pub(crate) duration: Histogram,
}

/// What an attempt can come to: the names of [`Outcome`](sluice_shared::domain::Outcome), and
/// what is answered without a run.
const OUTCOMES: [&str; 10] = [
    "completed",
    "throttled",
    "overloaded",
    "auth_failed",
    "out_of_credit",
    "rejected",
    "failed",
    "cancelled",
    "redelivered",
    "returned",
];

impl Meters {
    fn new(account: &AccountId, provider: &str) -> Self {
        let account = account.as_str();
        let counter = |outcome| {
            metrics::counter!(
                "sluice_worker_attempts_total", "account" => account.to_owned(),
                "provider" => provider.to_owned(), "outcome" => outcome
            )
        };
        Self {
            attempts: OUTCOMES.map(|outcome| (outcome, counter(outcome))),
            in_flight: metrics::gauge!(
                "sluice_worker_in_flight", "account" => account.to_owned()
            ),
            duration: metrics::histogram!(
                "sluice_worker_attempt_duration_seconds", "account" => account.to_owned()
            ),
        }
    }

    /// One more attempt came to `outcome`.
    pub(crate) fn count(&self, outcome: &str) {
        if let Some((_, counter)) = self.attempts.iter().find(|(name, _)| *name == outcome) {
            counter.increment(1);
        }
    }
}

/// Says what the worker's metrics mean, in the exposition itself.
pub(crate) fn describe_metrics() {
    metrics::describe_counter!(
        "sluice_worker_attempts_total",
        "Attempts by what they came to at this worker"
    );
    metrics::describe_gauge!(
        "sluice_worker_in_flight",
        "Attempts that run at this worker now"
    );
    metrics::describe_histogram!(
        "sluice_worker_attempt_duration_seconds",
        metrics::Unit::Seconds,
        "Time from the call of the provider to its end"
    );
    metrics::describe_gauge!(
        "sluice_worker_replies_pending",
        "Replies that the broker has not confirmed yet"
    );
}

impl std::fmt::Debug for Meters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Meters").finish_non_exhaustive()
    }
}
