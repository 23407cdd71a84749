//! Which strategies are in force: the configuration's, under what was chosen at run time.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use sluice_shared::{
    api::{NewRouting, RoutingSource, RoutingView},
    clock,
    domain::{
        AccountId, Outcome, Time,
        route::{Cursor, Routing, Speed, Strategy},
    },
    live::{Live, Wake},
    message::{Reply, Report},
};
use tokio_util::sync::CancellationToken;

use crate::store::{Store, StoreError, Verdict};

/// How often the truth plane is asked what was chosen; so a choice is in force everywhere within
/// twice this time.
const REFRESH: Duration = Duration::from_millis(900);

/// What dispatchers know beside the truth plane; cheap to clone. All of it is bounded, and may be
/// lost: it is learned again.
#[derive(Clone, Debug)]
pub struct Routes {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    configured: Strategy,
    chosen: ArcSwap<NewRouting>,
    routing: ArcSwap<Routing>,
    speeds: Mutex<HashMap<AccountId, Speed>>,
    cursor: Mutex<Cursor>,
}

impl Routes {
    /// With the configuration's strategy.
    #[must_use]
    pub fn new(configured: Strategy) -> Self {
        let routing = Routing {
            strategy: configured,
            ..Routing::default()
        };
        Self {
            inner: Arc::new(Inner {
                configured,
                chosen: ArcSwap::default(),
                routing: ArcSwap::from_pointee(routing),
                speeds: Mutex::default(),
                cursor: Mutex::default(),
            }),
        }
    }

    /// What is in force.
    #[must_use]
    pub fn routing(&self) -> Arc<Routing> {
        self.inner.routing.load_full()
    }

    /// Where the planner left off.
    #[must_use]
    pub fn cursor(&self) -> &Mutex<Cursor> {
        &self.inner.cursor
    }

    /// What is in force, for people.
    #[must_use]
    pub fn view(&self) -> RoutingView {
        let routing = self.routing();
        let source = match self.inner.chosen.load().strategy {
            Some(_) => RoutingSource::Api,
            None => RoutingSource::Configuration,
        };
        RoutingView {
            strategy: routing.strategy,
            source,
            lanes: routing.lanes.clone(),
        }
    }

    /// Asks the truth plane what was chosen.
    ///
    /// # Errors
    /// When it cannot be reached; then all stays as it was.
    pub async fn refresh(&self, store: &Store) -> Result<(), StoreError> {
        let chosen = store.routing().await?;
        let inner = &self.inner;
        if **inner.chosen.load() != chosen {
            let strategy = chosen.strategy.unwrap_or(inner.configured);
            tracing::info!(%strategy, lanes = chosen.lanes.len(), "strategies were chosen");
            inner.routing.store(Arc::new(Routing {
                strategy,
                lanes: chosen.lanes.clone(),
            }));
            inner.chosen.store(Arc::new(chosen));
        }
        Ok(())
    }

    /// Asks again and again, and hears from other API processes where sessions are at home.
    pub async fn run(self, store: Store, live: Live, shutdown: CancellationToken) {
        let mut wakes = live.wakes();
        let mut tick = tokio::time::interval(REFRESH);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                Some(wake) = wakes.recv() => {
                    if let Wake::Homes { sessions } = wake {
                        let mut cursor = lock(&self.inner.cursor);
                        for (session, account) in &sessions {
                            cursor.settle_in(session, account);
                        }
                    }
                }
                _ = tick.tick() => {
                    if let Err(error) = self.refresh(&store).await {
                        tracing::debug!(%error, "what was chosen is unknown");
                    }
                }
            }
        }
    }

    /// Learns from what workers report how fast accounts are.
    pub fn learn(&self, verdicts: &[Verdict], now: Time) {
        let mut speeds = lock(&self.inner.speeds);
        for verdict in verdicts {
            if let Verdict::Report(Reply {
                account, report, ..
            }) = verdict
                && let Some((took, succeeded)) = result_of(report)
            {
                let speed = Speed::after(speeds.get(account).copied(), took, succeeded, now);
                speeds.insert(account.clone(), speed);
            }
        }
    }

    /// How long each account takes to give a result, as far as this process has heard.
    #[must_use]
    pub fn speeds(&self) -> HashMap<AccountId, Duration> {
        let now = clock::now();
        let speeds = lock(&self.inner.speeds);
        let known = speeds.iter();
        known
            .map(|(account, speed)| (account.clone(), speed.at(now)))
            .collect()
    }
}

/// How long an attempt took, and whether it gave a result; none when it says nothing of its
/// account's speed.
fn result_of(report: &Report) -> Option<(Duration, bool)> {
    let Report::Finished {
        started_at: Some(started_at),
        finished_at,
        outcome,
    } = report
    else {
        return None;
    };
    let took = finished_at.since(*started_at);
    match outcome {
        Outcome::Completed(_) => Some((took, true)),
        Outcome::Failed { .. } | Outcome::Overloaded { .. } => Some((took, false)),
        Outcome::Throttled { .. }
        | Outcome::AuthFailed { .. }
        | Outcome::OutOfCredit { .. }
        | Outcome::Rejected { .. }
        | Outcome::Cancelled => None,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
