//! Jobs that come after others are let go as soon as those have ended: by the word of a
//! settlement in this process, and by a look at all that wait, which hears of everything else.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use sluice_shared::{clock, domain::JobId};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{
    app::App,
    store::{Released, StoreError},
};

/// How often waiting jobs are looked at without a word: for ends that came about elsewhere or
/// without an attempt.
const LOOK: Duration = Duration::from_secs(2);

/// Ends looked into at once.
const MOST: usize = 1_000;

/// Jobs with others behind them that have ended; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Dependents {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    ended: Mutex<BTreeSet<JobId>>,
    bell: Notify,
}

impl Dependents {
    /// These jobs have ended, or are named by one that has just come.
    pub fn add(&self, jobs: impl IntoIterator<Item = JobId>) {
        let mut ended = self.ended();
        ended.extend(jobs);
        if !ended.is_empty() {
            self.inner.bell.notify_one();
        }
    }

    fn ended(&self) -> std::sync::MutexGuard<'_, BTreeSet<JobId>> {
        self.inner
            .ended
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Vec<JobId> {
        let mut ended = self.ended();
        let some = ended.iter().take(MOST).copied().collect();
        for job in &some {
            ended.remove(job);
        }
        some
    }
}

/// Lets jobs go until `shutdown`.
pub async fn run(app: Arc<App>, shutdown: CancellationToken) {
    let mut tick = tokio::time::interval(LOOK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let looked = tokio::select! {
            () = shutdown.cancelled() => return,
            () = app.dependents.inner.bell.notified() => behind_ended(&app).await,
            _ = tick.tick() => all(&app).await,
        };
        if let Err(error) = looked {
            // What is forgotten here is found by the next look.
            tracing::debug!(%error, "jobs that come after others could not be looked at");
        }
    }
}

async fn behind_ended(app: &App) -> Result<(), StoreError> {
    loop {
        let ended = app.dependents.take();
        if ended.is_empty() {
            return Ok(());
        }
        let most = app.config.api.max_prompt_bytes;
        let released = app.store.release_after(&ended, most, clock::now()).await?;
        tell(app, released).await?;
    }
}

async fn all(app: &App) -> Result<(), StoreError> {
    let mut from = None;
    loop {
        let most = app.config.api.max_prompt_bytes;
        let released = app.store.release_any(from, most, clock::now()).await?;
        from = released.next;
        tell(app, released).await?;
        if from.is_none() {
            return Ok(());
        }
    }
}

async fn tell(app: &App, released: Released) -> Result<(), StoreError> {
    if released.released > 0 {
        let swept = app.store.sweep(clock::now()).await?;
        app.backlog
            .add_keys(swept.ready_lanes.iter().map(String::as_str));
        app.backlog.wake();
        let expired = swept.expired.into_iter();
        app.ended(expired.map(|job| (job, sluice_shared::domain::State::Expired)));
    }
    if !released.batches.is_empty() {
        app.batches.wake();
    }
    // They may have others behind them.
    app.dependents
        .add(released.ended.iter().map(|(job, _)| *job));
    app.ended(released.ended.into_iter());
    Ok(())
}
