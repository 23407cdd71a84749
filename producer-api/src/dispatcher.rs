//! The dispatcher: it binds waiting jobs to accounts and publishes them, woken by a submit, by a
//! freed slot, or by a time that has come.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use sluice_shared::{
    broker::BrokerError,
    clock,
    domain::{Account, Lane, Time, route::Cursor},
    message::Dispatch,
};
use tokio::sync::{Notify, Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    app::App,
    store::{Claim, LaneDemand, Verdict},
};

/// Batches that may be on their way to the broker while the next one is claimed.
const IN_FLIGHT_BATCHES: usize = 4;

/// How long to rest when the database or the broker does not answer.
const PAUSE: Duration = Duration::from_millis(200);

/// The lanes that may have jobs waiting, and the bell of the dispatcher; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Backlog {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    lanes: Mutex<BTreeSet<Lane>>,
    bell: Notify,
}

impl Backlog {
    fn lanes(&self) -> std::sync::MutexGuard<'_, BTreeSet<Lane>> {
        self.inner
            .lanes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// A job waits in this lane; [`Backlog::wake`] follows when all are added.
    pub fn add(&self, lane: Lane) {
        self.lanes().insert(lane);
    }

    /// Jobs wait in the lanes with these keys.
    pub fn add_keys<'a>(&self, keys: impl IntoIterator<Item = &'a str>) {
        for key in keys {
            match Lane::parse(key) {
                Ok(lane) => self.add(lane),
                Err(error) => tracing::error!(%error, "a job waits in a lane that nobody can read"),
            }
        }
    }

    /// Something has changed: look again.
    pub fn wake(&self) {
        self.inner.bell.notify_one();
    }

    fn take(&self) -> Vec<Lane> {
        std::mem::take(&mut *self.lanes()).into_iter().collect()
    }
}

/// Dispatches until `shutdown`.
pub async fn run(app: Arc<App>, shutdown: CancellationToken) {
    let publishing = TaskTracker::new();
    let room = Arc::new(Semaphore::new(IN_FLIGHT_BATCHES));
    let mut cursor = Cursor::default();
    let poll = app.config.dispatch.poll.0;
    let mut scan_due = Time::EPOCH;
    loop {
        let now = clock::now();
        if now >= scan_due {
            scan(&app, now).await;
            scan_due = now + poll;
        }
        let pass = match app.broker.ready().await {
            Ok(()) => pass(&app, &mut cursor, &room, &publishing).await,
            // Nothing is bound that cannot be sent.
            Err(error) => {
                tracing::debug!(%error, "dispatching waits for the broker");
                Pass {
                    rest: PAUSE,
                    ..Pass::default()
                }
            }
        };
        if pass.again {
            if shutdown.is_cancelled() {
                break;
            }
            continue;
        }
        let rest = pass
            .rest
            .min(scan_due.since(clock::now()))
            .max(Duration::from_millis(1));
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = app.backlog.inner.bell.notified() => {}
            () = tokio::time::sleep(rest) => {}
        }
    }
    publishing.close();
    publishing.wait().await;
}

/// Lets times come, and finds lanes that nobody rang for.
async fn scan(app: &App, now: Time) {
    match app.store.sweep(now).await {
        Ok(swept) => {
            app.backlog
                .add_keys(swept.ready_lanes.iter().map(String::as_str));
            app.ended(
                swept
                    .expired
                    .iter()
                    .map(|job| (*job, sluice_shared::domain::State::Expired)),
            );
        }
        Err(error) => tracing::warn!(%error, "the backlog could not be swept"),
    }
    match app.store.waiting_lanes().await {
        Ok(keys) => app.backlog.add_keys(keys.iter().map(String::as_str)),
        Err(error) => tracing::warn!(%error, "the backlog could not be looked at"),
    }
}

/// What one pass found.
#[derive(Debug)]
struct Pass {
    /// Jobs were bound and more may wait: go on at once.
    again: bool,
    /// Otherwise, the longest to rest without a bell.
    rest: Duration,
}

impl Default for Pass {
    fn default() -> Self {
        Self {
            again: false,
            rest: Duration::MAX,
        }
    }
}

async fn pass(
    app: &Arc<App>,
    cursor: &mut Cursor,
    room: &Arc<Semaphore>,
    publishing: &TaskTracker,
) -> Pass {
    let Ok(permit) = room.clone().acquire_owned().await else {
        return Pass::default();
    };
    let lanes: Vec<LaneDemand> = app
        .backlog
        .take()
        .into_iter()
        .map(|lane| LaneDemand {
            key: lane.key(),
            lane,
        })
        .collect();
    if lanes.is_empty() {
        return Pass::default();
    }
    let accounts: Vec<Account> = app
        .accounts
        .iter()
        .filter(|account| app.workers.may_serve(&account.id))
        .cloned()
        .collect();
    let claim = Claim {
        lanes: &lanes,
        accounts: &accounts,
        strategy: app.config.dispatch.strategy,
        most: app.config.dispatch.batch,
    };
    let now = clock::now();
    let claimed = match app.store.claim(&claim, cursor, now).await {
        Ok(claimed) => claimed,
        Err(error) => {
            tracing::warn!(%error, "jobs could not be claimed");
            lanes
                .into_iter()
                .for_each(|demand| app.backlog.add(demand.lane));
            return Pass {
                rest: PAUSE,
                ..Pass::default()
            };
        }
    };
    for (demand, waiting) in lanes.into_iter().zip(&claimed.waiting) {
        if *waiting {
            app.backlog.add(demand.lane);
        }
    }
    let again = !claimed.dispatches.is_empty() && claimed.waiting.contains(&true);
    let rest = claimed
        .next_change
        .map_or(Duration::MAX, |until| until.since(now));
    if !claimed.dispatches.is_empty() {
        let app = app.clone();
        publishing.spawn(async move {
            publish(&app, claimed.dispatches).await;
            drop(permit);
        });
    }
    Pass { again, rest }
}

/// Publishes bound attempts. One that surely was not sent goes back to the backlog; one of which
/// it is unknown stays, and the reaper finds out.
async fn publish(app: &App, attempts: Vec<Dispatch>) {
    metrics::counter!("sluice_attempts_dispatched_total").increment(attempts.len() as u64);
    let results = app.broker.dispatch(&attempts).await;
    let mut unpublished = Vec::new();
    for (attempt, result) in attempts.iter().zip(results) {
        match result {
            Ok(()) => {}
            Err(BrokerError::NotConfirmed(reason)) => {
                tracing::debug!(job = %attempt.job, reason, "whether it was published is unknown");
            }
            Err(error) => {
                if matches!(error, BrokerError::Unroutable(_))
                    && let Err(error) = app.broker.declare(&attempt.account).await
                {
                    tracing::warn!(account = %attempt.account, %error, "its queue is missing");
                }
                unpublished.push(Verdict::Unpublished {
                    job: attempt.job,
                    attempt: attempt.attempt,
                });
            }
        }
    }
    if !unpublished.is_empty() {
        app.settle(&unpublished).await;
    }
}
