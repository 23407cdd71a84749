//! Long polls: who waits for which job to end.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use sluice_shared::{
    domain::{Completion, JobId, Outcome, State},
    live::{Live, Wake},
    message::{Reply, Report},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::store::{Store, Verdict};

/// How often the truth plane is asked about all waited-for jobs at once: the safety net behind
/// wake-ups, and all there is while the live plane is away.
const POLL: Duration = Duration::from_millis(500);

/// Who waits for which job; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Waiters {
    jobs: Arc<Mutex<HashMap<JobId, watch::Sender<End>>>>,
}

/// Whether a job has ended, and its answer when it succeeded and this process settled it.
#[derive(Clone, Debug, Default)]
enum End {
    #[default]
    NotYet,
    Ended(Option<Arc<Completion>>),
}

/// One who waits. Make it before looking at the job, or its end may be missed.
#[derive(Debug)]
pub struct Waiter {
    waiters: Waiters,
    job: JobId,
    ended: watch::Receiver<End>,
}

impl Waiters {
    fn jobs(&self) -> std::sync::MutexGuard<'_, HashMap<JobId, watch::Sender<End>>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to wait for a job's end.
    #[must_use]
    pub fn wait_for(&self, job: JobId) -> Waiter {
        let ended = self
            .jobs()
            .entry(job)
            .or_insert_with(|| watch::Sender::new(End::NotYet))
            .subscribe();
        Waiter {
            waiters: self.clone(),
            job,
            ended,
        }
    }

    /// These jobs have ended.
    pub fn ended(&self, jobs: impl IntoIterator<Item = JobId>) {
        let mut waiting = self.jobs();
        if waiting.is_empty() {
            return;
        }
        for job in jobs {
            if let Some(sender) = waiting.remove(&job) {
                sender.send_replace(End::Ended(None));
            }
        }
    }

    /// These jobs were ended by these verdicts: who waits for one that succeeded gets its answer
    /// with the news, and need not read it.
    pub fn answered(&self, verdicts: &[Verdict], ended: &[(JobId, State)]) {
        let mut waiting = self.jobs();
        if waiting.is_empty() {
            return;
        }
        let mut answers: HashMap<JobId, Option<&Completion>> = HashMap::new();
        for verdict in verdicts {
            if let Verdict::Report(Reply { job, report, .. }) = verdict
                && let Report::Finished { outcome, .. } = report
                && let Outcome::Completed(answer) = outcome
                && waiting.contains_key(job)
            {
                // Of two, one was superseded; the truth plane knows which.
                let is_first = !answers.contains_key(job);
                answers.insert(*job, is_first.then_some(answer));
            }
        }
        for (job, state) in ended {
            if *state == State::Succeeded
                && let Some(Some(answer)) = answers.get(job)
                && let Some(sender) = waiting.remove(job)
            {
                sender.send_replace(End::Ended(Some(Arc::new((*answer).clone()))));
            }
        }
    }

    /// Hears of ends from other API processes, and asks the truth plane now and then. `accounts`
    /// is called when another one has changed an account.
    pub async fn run(
        self,
        store: Store,
        live: Live,
        accounts: impl Fn() + Send,
        shutdown: CancellationToken,
    ) {
        let mut wakes = live.wakes();
        let mut poll = tokio::time::interval(POLL);
        poll.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                Some(wake) = wakes.recv() => match wake {
                    Wake::Ended { jobs } => self.ended(jobs),
                    Wake::Homes { .. } | Wake::Watched | Wake::Changed { .. } => {}
                    Wake::Accounts => accounts(),
                },
                _ = poll.tick() => self.look(&store).await,
            }
        }
    }

    async fn look(&self, store: &Store) {
        let waited: Vec<JobId> = self.jobs().keys().copied().collect();
        if waited.is_empty() {
            return;
        }
        match store.states(&waited).await {
            Ok(states) => self.ended(
                states
                    .into_iter()
                    .filter(|(_, state)| state.is_terminal())
                    .map(|(job, _)| job),
            ),
            Err(error) => tracing::debug!(%error, "waited-for jobs could not be looked at"),
        }
    }
}

impl Waiter {
    /// Waits until the job has ended, at most `most`. Whether it has.
    pub async fn wait(&mut self, most: Duration) -> bool {
        let ended = self.ended.wait_for(|end| matches!(end, End::Ended(_)));
        matches!(tokio::time::timeout(most, ended).await, Ok(Ok(_)))
    }

    /// Waits until the job has ended, however long. Its answer, when it succeeded and this process
    /// heard so first; otherwise the truth plane knows how it ended.
    pub async fn answer(&mut self) -> Option<Arc<Completion>> {
        let ended = self.ended.wait_for(|end| matches!(end, End::Ended(_)));
        match ended.await.as_deref() {
            Ok(End::Ended(answer)) => answer.clone(),
            _ => None,
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut waiting = self.waiters.jobs();
        // This receiver is one of those counted.
        if waiting
            .get(&self.job)
            .is_some_and(|sender| sender.receiver_count() <= 1)
        {
            waiting.remove(&self.job);
        }
    }
}
