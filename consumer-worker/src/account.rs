//! An account that this worker serves.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use metrics::{Counter, Gauge, Histogram};
use sluice_shared::{config::AccountConfig, domain::AccountId};
use tokio::time::Instant;

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
    /// Until when deliveries are given back unrun.
    cools_until: Mutex<Option<Instant>>,
}

/// A cooldown's last second is not kept here: whoever dispatches keeps it, by a clock that may be
/// a little ahead, and what is dispatched after it must run.
const LAST: Duration = Duration::from_secs(1);

/// What is on its way to an account has come after this time; nothing more is dispatched.
const ON_ITS_WAY: Duration = Duration::from_secs(60);

impl Account {
    pub(crate) fn new(id: AccountId, config: &AccountConfig, provider: Provider) -> Self {
        let meters = Meters::new(&id, config.provider.name());
        Self {
            id,
            provider,
            concurrency: u16::try_from(config.max_concurrency).unwrap_or(u16::MAX),
            meters,
            consumed: AtomicBool::new(false),
            cools_until: Mutex::new(None),
        }
    }

    /// Gives back for about `span` what is still on its way to it; none at all ends that.
    pub(crate) fn cool(&self, now: Instant, span: Duration) {
        let span = span.saturating_sub(LAST).min(ON_ITS_WAY);
        let until = (!span.is_zero()).then(|| now + span);
        *self
            .cools_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = until;
    }

    pub(crate) fn is_cooling(&self, now: Instant) -> bool {
        let until = *self
            .cools_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| now < until)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[tokio::test]
    async fn an_account_cools_nearly_as_long_as_it_is_told_and_not_longer() {
        let account = testing::account("");
        let now = Instant::now();
        let cools_after = |seconds| account.is_cooling(now + Duration::from_secs(seconds));
        assert!(!cools_after(0));
        account.cool(now, Duration::from_secs(20));
        assert!(cools_after(18) && !cools_after(19));
        account.cool(now, Duration::from_secs(86_400));
        assert!(cools_after(59) && !cools_after(60), "by then all has come");
        account.cool(now, Duration::ZERO);
        assert!(!cools_after(0));
    }
}
