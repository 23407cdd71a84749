//! A call as a job: submitted through the same group commit, quotas and fairness as any other,
//! waited for in this process, and cancelled when nobody waits any more.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    http::{HeaderMap, request::Parts},
};
use sluice_shared::{
    api::{JobView, NewJob, Scope},
    clock,
    domain::{Completion, JobId, State, Time},
};
use tokio::runtime::Handle;
use tracing::Instrument;

use super::{fault::Fault, fields::Fields};
use crate::{
    http::{
        Edge,
        accept::{Kept, commit},
        extract::Caller,
        idempotency, jobs,
        problem::{ApiError, Code},
        submit::{self, Rules},
    },
    store::Submission,
    waiters::Waiter,
};

/// How long a call may wait for an account: as long as the SDKs do unless told otherwise.
const MOST_WAIT: Duration = Duration::from_secs(600);

/// A job that somebody waits for. When it is dropped before its end, the job is cancelled.
#[derive(Debug)]
pub(in crate::http) struct Running {
    pub(in crate::http) edge: Arc<Edge>,
    pub(in crate::http) job: JobId,
    /// When it was accepted.
    pub(in crate::http) since: Time,
    waiter: Waiter,
    is_kept: bool,
    may_have_ended: bool,
}

/// The fields of a body, for a caller who may submit.
pub(in crate::http) async fn read(
    edge: &Edge,
    caller: &Caller,
    parts: &Parts,
    body: Body,
) -> Result<Fields, Fault> {
    caller.needs(Scope::Submit)?;
    let payload = edge.bodies.read(&parts.headers, body).await?;
    Fields::parse(&payload.bytes)
}

impl Running {
    /// Submits a job. One that is not begun in time ends by itself.
    pub(in crate::http) async fn submit(
        edge: &Arc<Edge>,
        caller: &Caller,
        headers: &HeaderMap,
        job: NewJob,
    ) -> Result<Self, Fault> {
        Self::accept(edge, caller, headers, job, Some(MOST_WAIT)).await
    }

    /// Submits a job that may wait as long as it takes.
    pub(in crate::http) async fn submit_unbounded(
        edge: &Arc<Edge>,
        caller: &Caller,
        headers: &HeaderMap,
        job: NewJob,
    ) -> Result<Self, Fault> {
        Self::accept(edge, caller, headers, job, None).await
    }

    async fn accept(
        edge: &Arc<Edge>,
        caller: &Caller,
        headers: &HeaderMap,
        mut job: NewJob,
        patience: Option<Duration>,
    ) -> Result<Self, Fault> {
        let since = clock::now();
        let idempotency = idempotency::key(headers)?
            .map(|key| idempotency::of(key, &job))
            .transpose()?;
        job.expires_at = patience.map(|patience| since + patience);
        let id = JobId::generate();
        let rules = Rules {
            max_prompt_bytes: edge.app.config.api.max_prompt_bytes,
            accounts: &edge.app.roster.accounts(),
            now: since,
            webhooks: None,
        };
        let mut row = submit::row(job, id, &rules).map_err(ApiError::from)?;
        let (span, traceparent) = edge.trace(headers);
        row.traceparent = traceparent;
        // Before it is submitted, or its end may be missed.
        let mut running = Self {
            edge: edge.clone(),
            job: id,
            since,
            waiter: edge.app.waiters.wait_for(id),
            // Even if the caller goes while it is submitted.
            is_kept: false,
            may_have_ended: false,
        };
        let submission = Submission {
            client: caller.0.name.as_ref().to_owned(),
            rows: vec![row],
            idempotency,
        };
        match commit(edge, submission).instrument(span).await {
            Ok(Kept::Fresh(_)) => {}
            Ok(Kept::Before(ids)) => {
                running.job = ids.first().copied().unwrap_or(id);
                running.waiter = edge.app.waiters.wait_for(running.job);
                running.may_have_ended = true;
            }
            Err(refused) => {
                running.is_kept = true;
                return Err(refused.into());
            }
        }
        Ok(running)
    }

    /// The job goes on without anybody who waits.
    pub(in crate::http) fn keep(mut self) {
        self.is_kept = true;
    }

    /// Waits for the answer. May be called again when the future was dropped.
    pub(in crate::http) async fn answer(&mut self) -> Result<Arc<Completion>, Fault> {
        if std::mem::take(&mut self.may_have_ended) {
            let job = look(&self.edge, self.job).await?;
            if job.state.is_terminal() {
                return self.ended(job);
            }
        }
        let shutdown = self.edge.shutdown.clone();
        let answer = tokio::select! {
            answer = self.waiter.answer() => answer,
            () = shutdown.cancelled() => return Err(Fault::stopping(self.job)),
        };
        if let Some(answer) = answer {
            self.is_kept = true;
            return Ok(answer);
        }
        let job = look(&self.edge, self.job).await?;
        self.ended(job)
    }

    fn ended(&mut self, job: JobView) -> Result<Arc<Completion>, Fault> {
        self.is_kept = true;
        match (job.state, job.result) {
            (State::Succeeded, Some(answer)) => Ok(Arc::new(answer)),
            (_, result) => Err(Fault::of(&JobView { result, ..job })),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.is_kept {
            return;
        }
        let (edge, job) = (self.edge.clone(), self.job);
        let farewell = async move {
            match jobs::end(&edge, job).await {
                Ok(_) => tracing::debug!(%job, "a job is cancelled: its caller is gone"),
                Err(error) => tracing::debug!(%job, ?error, "a job whose caller is gone goes on"),
            }
        };
        if let Ok(runtime) = Handle::try_current() {
            self.edge.chores.spawn_on(farewell, &runtime);
        }
    }
}

async fn look(edge: &Edge, id: JobId) -> Result<JobView, Fault> {
    let job = edge.truth(edge.app.store.job(id)).await?;
    let gone = || ApiError::new(Code::NoSuchJob, format!("there is no job {id}"));
    Ok(job.ok_or_else(gone)?)
}
