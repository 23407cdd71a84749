//! Group commit: submissions that come at the same time share a transaction.
//!
//! The group is formed by load, never by a sleep: while one transaction is on its way to disk, the
//! next one's submissions gather.

use std::time::Duration;

use sluice_shared::clock;
use tokio::sync::{mpsc, oneshot};

use crate::{
    dispatcher::Backlog,
    store::{Store, StoreError, Submission, Submitted},
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

/// The other end: runs until every [`Submitter`] is gone.
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
    /// Takes submissions until there is no submitter left.
    pub async fn run(mut self, store: Store, backlog: Backlog) {
        let mut waiting = Vec::new();
        while let Some(first) = self.queue.recv().await {
            let mut jobs = first.0.rows.len();
            waiting.push(first);
            while jobs < GROUP
                && let Ok(next) = self.queue.try_recv()
            {
                jobs += next.0.rows.len();
                waiting.push(next);
            }
            commit(&store, &backlog, &mut waiting).await;
        }
    }
}

async fn commit(store: &Store, backlog: &Backlog, waiting: &mut Vec<(Submission, Answer)>) {
    let (submissions, answers): (Vec<Submission>, Vec<Answer>) = waiting.drain(..).unzip();
    let now = clock::now();
    let results = match store.submit(&submissions, now).await {
        Ok(results) => results.into_iter().map(Ok).collect(),
        Err(error) => {
            let error = match error {
                StoreError::Unavailable(detail) => SubmitError::Unavailable(detail),
                StoreError::Internal(_) | StoreError::Config(_) => {
                    tracing::error!(%error, "a submission failed");
                    SubmitError::Internal(error.to_string())
                }
            };
            vec![Err(error); submissions.len()]
        }
    };
    let mut accepted = 0;
    for ((submission, answer), result) in submissions.into_iter().zip(answers).zip(results) {
        if matches!(result, Ok(Submitted::Accepted)) {
            accepted += submission.rows.len() as u64;
            for row in submission.rows.into_iter().filter(|row| row.run_at <= now) {
                backlog.add(row.lane);
            }
        }
        // A client that has hung up is no reason not to run its jobs.
        drop(answer.send(result));
    }
    metrics::counter!("sluice_jobs_submitted_total").increment(accepted);
    backlog.wake();
}
