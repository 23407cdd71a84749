//! Group commit: submissions that come at the same time share a transaction.
//!
//! The group is formed by load, never by a sleep: while one transaction is on its way to disk, the
//! next one's submissions gather.
//!
//! What nobody waits before is bound to its account in the same transaction and published from
//! here; the dispatcher has the rest.

use std::{collections::HashMap, sync::Arc, time::Duration};

use sluice_shared::{
    clock,
    domain::{AccountId, JobId, Time},
};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::{
    app::App,
    dispatcher::Ground,
    store::{LaneDemand, StoreError, Submission, Submitted, Taken},
};

/// Jobs in one transaction, at most; a single submission may be larger.
const GROUP: usize = 1000;

/// Submissions that may wait for their transaction; beyond it the API says that it is busy.
const QUEUE: usize = 4096;

/// Why a submission was not taken.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SubmitError {
    /// The database cannot be reached.
    #[error("{0}")]
    Unavailable(String),
    /// More submissions wait than can be taken in time.
    #[error("too many submissions at once")]
    Busy,
    /// A fault of ours.
    #[error("{0}")]
    Internal(String),
}

type Answer = oneshot::Sender<Result<Submitted, SubmitError>>;

/// Hands submissions to the group commit; cheap to clone.
#[derive(Clone, Debug)]
pub struct Submitter {
    queue: mpsc::Sender<(Submission, Answer)>,
}

/// The other end.
#[derive(Debug)]
pub struct Groups {
    queue: mpsc::Receiver<(Submission, Answer)>,
}

impl Submitter {
    /// A submitter and its loop.
    #[must_use]
    pub fn new() -> (Self, Groups) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (Self { queue: sender }, Groups { queue: receiver })
    }

    /// Submits. When this returns `Accepted`, the jobs are on disk.
    ///
    /// # Errors
    /// When they are not, or, after a lost connection, may not be.
    pub async fn submit(&self, submission: Submission) -> Result<Submitted, SubmitError> {
        let (answer, answered) = oneshot::channel();
        self.queue
            .send_timeout((submission, answer), Duration::from_secs(5))
            .await
            .map_err(|_| SubmitError::Busy)?;
        answered
            .await
            .unwrap_or(Err(SubmitError::Unavailable("the API is stopping".into())))
    }
}

impl Groups {
    /// Takes submissions until `stop`, and then those that wait already.
    pub async fn run(mut self, app: Arc<App>, stop: CancellationToken) {
        let mut waiting = Vec::new();
        loop {
            let first = tokio::select! {
                biased;
                first = self.queue.recv() => first,
                () = stop.cancelled() => None,
            };
            let Some(first) = first else { return };
            let mut jobs = first.0.rows.len();
            waiting.push(first);
            while jobs < GROUP
                && let Ok(next) = self.queue.try_recv()
            {
                jobs += next.0.rows.len();
                waiting.push(next);
            }
            commit(&app, &mut waiting).await;
        }
    }
}

async fn commit(app: &Arc<App>, waiting: &mut Vec<(Submission, Answer)>) {
    let (submissions, answers): (Vec<Submission>, Vec<Answer>) = waiting.drain(..).unzip();
    let now = clock::now();
    let lanes = ready_lanes(&submissions, now);
    // Nothing is bound that cannot be sent, and who waits already is not overtaken.
    let may_bind = !lanes.is_empty() && !app.backlog.waits_in(&lanes);
    let room = match may_bind {
        true if app.broker.ready().await.is_ok() => app.publishing.try_room(),
        _ => None,
    };
    let ground = room.is_some().then(|| Ground::survey(app));
    let taken = if let Some(ground) = &ground {
        let claim = ground.claim(&lanes, app.config.dispatch.batch);
        app.store
            .submit_and_bind(&submissions, &claim, app.routes.cursor(), now)
            .await
    } else {
        let results = app.store.submit(&submissions, now).await;
        results.map(|results| Taken {
            results,
            ..Taken::default()
        })
    };
    let taken = match taken {
        Ok(taken) => taken,
        Err(error) => {
            let error = refusal(error);
            for answer in answers {
                drop(answer.send(Err(error.clone())));
            }
            return;
        }
    };
    let mut accepted = 0;
    let mut accounts: HashMap<JobId, AccountId> = taken.bound.iter().cloned().collect();
    let mut dispatches = HashMap::with_capacity(taken.bound.len());
    let mut left = false;
    for ((submission, answer), result) in submissions.into_iter().zip(answers).zip(taken.results) {
        if result == Submitted::Accepted {
            accepted += submission.rows.len() as u64;
            for row in submission.rows {
                match accounts.remove(&row.id) {
                    Some(account) => drop(dispatches.insert(row.id, row.into_dispatch(account))),
                    None if row.run_at <= now => {
                        app.backlog.add(row.lane);
                        left = true;
                    }
                    None => {}
                }
            }
        }
        // A client that has hung up is no reason not to run its jobs.
        drop(answer.send(Ok(result)));
    }
    metrics::counter!("sluice_jobs_submitted_total").increment(accepted);
    if left {
        app.backlog.wake();
    }
    if let (Some(room), Some(ground)) = (room, ground)
        && !dispatches.is_empty()
    {
        let mut claimed = taken.claimed;
        // In the order of the choices.
        claimed.dispatches = taken
            .bound
            .iter()
            .filter_map(|(job, _)| dispatches.remove(job))
            .collect();
        ground.note(app, &lanes, &mut claimed, now);
        app.publishing.publish(app, claimed, room).await;
    }
}

/// The lanes of the jobs whose time has come.
fn ready_lanes(submissions: &[Submission], now: Time) -> Vec<LaneDemand> {
    let mut lanes: Vec<LaneDemand> = Vec::new();
    let rows = submissions
        .iter()
        .flat_map(|submission| &submission.rows)
        .filter(|row| row.run_at <= now);
    for row in rows {
        if !lanes.iter().any(|demand| demand.lane == row.lane) {
            lanes.push(LaneDemand {
                key: row.lane.key(),
                lane: row.lane.clone(),
            });
        }
    }
    lanes
}

fn refusal(error: StoreError) -> SubmitError {
    match error {
        StoreError::Unavailable(detail) => SubmitError::Unavailable(detail),
        StoreError::Internal(_) | StoreError::Config(_) => {
            tracing::error!(%error, "a submission failed");
            SubmitError::Internal(error.to_string())
        }
    }
}
