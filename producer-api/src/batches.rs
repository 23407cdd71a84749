//! What is done about batches behind their uploads: lines become jobs, cancelled ones end, those
//! whose last job has ended end with it, and uploads that broke off are forgotten.
//!
//! Every API process does this, and none needs another: each step is one transaction that only
//! one of them wins. A crash in between is made up for by the next look.

use std::{sync::Arc, time::Duration};

use sluice_shared::{
    clock,
    domain::{BatchId, State, Time},
    message::Control,
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{
    app::App,
    store::{BatchRow, StoreError},
};

/// How often batches are looked at when nobody rings: the safety net, and what hears of jobs that
/// end without an attempt.
const LOOK: Duration = Duration::from_secs(1);

/// Settlements that come within this time share a look.
const REST: Duration = Duration::from_millis(100);

/// Jobs in one transaction.
const CHUNK: u32 = 1_000;

/// How often broken-off uploads are looked for, and how old they must be. A client that sends
/// nothing is given up long before.
const SWEEP: Duration = Duration::from_secs(60);
const STALE: Duration = Duration::from_secs(900);

/// The bell; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Batches {
    bell: Arc<Notify>,
}

impl Batches {
    /// A batch has come, is to be cancelled, or may have ended.
    pub fn wake(&self) {
        self.bell.notify_one();
    }
}

/// Looks after batches until `shutdown`.
pub async fn run(app: Arc<App>, shutdown: CancellationToken) {
    let mut swept = Time::EPOCH;
    loop {
        let now = clock::now();
        if now.since(swept) >= SWEEP {
            swept = now;
            if let Err(error) = app.store.sweep_stages(now - STALE).await {
                tracing::debug!(%error, "broken-off uploads could not be forgotten");
            }
            if let Err(error) = app.store.sweep_files(now - STALE).await {
                tracing::debug!(%error, "broken-off files could not be forgotten");
            }
        }
        let worked = match look(&app).await {
            Ok(worked) => worked,
            Err(error) => {
                tracing::debug!(%error, "batches could not be looked at");
                false
            }
        };
        if worked && !shutdown.is_cancelled() {
            continue;
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = app.batches.bell.notified() => tokio::time::sleep(REST).await,
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// One step for each batch. Whether there may be more to do at once.
async fn look(app: &App) -> Result<bool, StoreError> {
    let open = app.store.open_batches().await?;
    if open.is_empty() {
        return Ok(false);
    }
    let mut worked = false;
    for batch in &open {
        worked |= match (batch.is_fed, batch.cancel_requested_at) {
            (false, _) => feed(app, batch).await?,
            (true, Some(_)) => cancel(app, batch.id).await?,
            (true, None) => false,
        };
    }
    for batch in app.store.end_batches(clock::now()).await? {
        tracing::info!(batch = %batch.id, client = batch.client, "a batch has ended");
        metrics::counter!("sluice_batches_ended_total").increment(1);
        app.webhooks.ring();
    }
    Ok(worked)
}

async fn feed(app: &App, batch: &BatchRow) -> Result<bool, StoreError> {
    let now = clock::now();
    let fed = app.store.feed_batch(batch.id, CHUNK, now).await?;
    let jobs = fed.jobs.len();
    for lane in fed.lanes {
        app.backlog.add(lane);
    }
    app.backlog.wake();
    metrics::counter!("sluice_jobs_submitted_total").increment(jobs as u64);
    app.pulse.accepted(jobs, now);
    let (ended, waiting): (Vec<_>, Vec<_>) = fed
        .jobs
        .into_iter()
        .partition(|(_, state)| state.is_terminal());
    app.tell(waiting);
    app.dependents.add(fed.parents);
    app.ended(ended.into_iter());
    Ok(jobs > 0)
}

async fn cancel(app: &App, id: BatchId) -> Result<bool, StoreError> {
    let done = app.store.cancel_jobs(id, CHUNK, clock::now()).await?;
    let worked = !done.ended.is_empty() || !done.in_flight.is_empty();
    app.ended(done.ended.into_iter().map(|job| (job, State::Cancelled)));
    for (job, attempt) in done.in_flight {
        // Who does not hear it now is told by the reaper.
        if let Err(error) = app.broker.control(&Control::Cancel { job, attempt }).await {
            tracing::debug!(%error, "a cancel will be told later");
            break;
        }
    }
    Ok(worked)
}
