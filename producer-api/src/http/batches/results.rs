//! The results of a batch, line by line in the order of its upload. A page of them is in memory
//! at a time, and the next one is read when the client has taken it.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{RawQuery, State},
    http::{HeaderName, HeaderValue, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures::stream;
use serde::Serialize;
use serde_json::value::RawValue;
use sluice_shared::{
    api::{BatchResult, JobError},
    domain::{BatchId, JobId, Span, State as JobState},
};
use tokio::time::Instant;

use super::{find, state_of};
use crate::{
    http::{
        Edge,
        extract::{Caller, Id, Params, bad_parameter},
        problem::ApiError,
    },
    store::{BatchRow, LineOutcome},
};

/// Where the batch was in its life when its results began.
const STATE: HeaderName = HeaderName::from_static("sluice-batch-state");

/// Bytes of a page, about, and its lines at most; the first page is small, since nobody knows yet
/// how long its lines are.
const PAGE: usize = 1024 * 1024;
const MOST_LINES: u32 = 1_000;
const FIRST_LINES: u32 = 50;

/// How long to wait for lines that have not become jobs yet.
const SOON: Duration = Duration::from_millis(100);

/// Get the results of a batch.
///
/// One JSON document a line, in the order of the upload. They end before the first job that has
/// not ended; with `wait` they go on as jobs end, for so long. Whoever has read up to line N goes
/// on with `after=N`. They are all there when the header `Sluice-Batch-State` said `ended`.
#[utoipa::path(
    get, path = "/api/batches/{id}/results", tag = "batches", security(("key" = ["read"])),
    params(
        ("id" = BatchId, Path, description = "the batch"),
        ("after" = Option<u64>, Query, description = "begin behind this line of the upload"),
        ("wait" = Option<Span>, Query,
            description = "go on for this long while the batch runs, at most 60s unless configured otherwise"),
    ),
    responses(
        (status = 200, description = "A `BatchResult` a line.", body = BatchResult,
            content_type = "application/jsonl",
            headers(("Sluice-Batch-State" = String, description = "`running`, `cancelling` or `ended`"))),
        (status = 404, description = "`no_such_batch`"),
    )
)]
pub(in crate::http) async fn batch_results(
    State(edge): State<Arc<Edge>>,
    _: Caller,
    id: Id,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let params = Params::parse(query.as_deref(), |name| ["after", "wait"].contains(&name))?;
    let after = params
        .parsed::<u64>("after", |text, _| format!("is `{text}`, not a number"))?
        .unwrap_or(0);
    let wait: Option<Span> = params.parsed("wait", |text, _| {
        format!("is `{text}`, not a span of time; write for example 30s")
    })?;
    let most = edge.app.config.api.max_wait;
    if let Some(wait) = wait
        && wait > most
    {
        let detail = format!("is {wait}; the most is {most}");
        return Err(bad_parameter("wait", &detail));
    }
    let batch = find(&edge, BatchId(id.0)).await?;
    let state = match state_of(&batch) {
        sluice_shared::api::BatchState::Running => "running",
        sluice_shared::api::BatchState::Cancelling => "cancelling",
        sluice_shared::api::BatchState::Ended => "ended",
    };
    let until = wait.map(|wait| Instant::now() + wait.0);
    let mut answer = stream(edge, batch, after, until, Arc::new(line)).into_response();
    let headers = answer.headers_mut();
    headers.insert(STATE, HeaderValue::from_static(state));
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/jsonl"),
    );
    Ok(answer)
}

/// Writes the line of an outcome; one of which nothing is to be said is left out.
pub(in crate::http) type Write =
    Arc<dyn Fn(&BatchRow, &LineOutcome, &mut Vec<u8>) -> Result<(), ApiError> + Send + Sync>;

/// The lines behind `after`, and those that come until `until`.
pub(in crate::http) fn stream(
    edge: Arc<Edge>,
    batch: BatchRow,
    after: u64,
    until: Option<Instant>,
    write: Write,
) -> Body {
    let reader = Reader {
        edge,
        batch,
        after,
        until,
        write,
        lines: FIRST_LINES,
    };
    // An error in the middle breaks the answer off, so that it is not taken for the end.
    Body::from_stream(stream::try_unfold(
        reader,
        async |mut reader| match reader.next().await {
            Ok(Some(page)) => Ok(Some((page, reader))),
            Ok(None) => Ok(None),
            Err(error) => Err(std::io::Error::other(error.detail().to_owned())),
        },
    ))
}

struct Reader {
    edge: Arc<Edge>,
    batch: BatchRow,
    after: u64,
    until: Option<Instant>,
    write: Write,
    /// Lines of the next page.
    lines: u32,
}

impl Reader {
    /// The next page; none at the end.
    async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        loop {
            // Before looking, or an end may be missed.
            let outcomes = self
                .edge
                .app
                .store
                .batch_outcomes(&self.batch, self.after, self.lines);
            let outcomes = self.edge.truth(outcomes).await?;
            let found = outcomes.len();
            let is_out =
                |outcome: &LineOutcome| outcome.job.is_none_or(|(_, state)| state.is_terminal());
            let missing = outcomes.iter().find(|outcome| !is_out(outcome));
            let missing = missing.and_then(|outcome| outcome.job).map(|(job, _)| job);
            let mut page = Vec::new();
            let mut last = self.after;
            for outcome in outcomes.iter().take_while(|outcome| is_out(outcome)) {
                (self.write)(&self.batch, outcome, &mut page)?;
                last = outcome.line;
            }
            let lines = outcomes
                .iter()
                .take_while(|outcome| is_out(outcome))
                .count();
            if lines > 0 {
                self.after = last;
                let each = page.len().div_ceil(lines).max(1);
                self.lines = u32::try_from(PAGE / each)
                    .unwrap_or(MOST_LINES)
                    .clamp(1, MOST_LINES);
                if page.is_empty() {
                    continue;
                }
                return Ok(Some(page.into()));
            }
            if missing.is_none() && found == 0 && self.batch.is_fed {
                return Ok(None);
            }
            if !self.wait(missing).await {
                return Ok(None);
            }
            self.batch = find(&self.edge, self.batch.id).await?;
        }
    }

    /// Waits for a job's end, or for lines to become jobs. Whether it is worth another look.
    async fn wait(&self, job: Option<JobId>) -> bool {
        let Some(until) = self.until else {
            // Without `wait` it looks again only when the first look was at an older state.
            return false;
        };
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() || self.edge.shutdown.is_cancelled() {
            return false;
        }
        let Some(job) = job else {
            tokio::time::sleep(left.min(SOON)).await;
            return true;
        };
        let mut waiter = self.edge.app.waiters.wait_for(job);
        if let Ok(states) = self.edge.app.store.states(&[job]).await
            && states.iter().any(|(_, state)| state.is_terminal())
        {
            return true;
        }
        tokio::select! {
            _ = waiter.wait(left) => {}
            () = self.edge.shutdown.cancelled() => {}
        }
        true
    }
}

/// A line of results; what the truth plane keeps as JSON is passed on as it is.
#[derive(Serialize)]
struct ResultLine<'a> {
    line: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    job: Option<JobId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<JobState>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<JobError>,
}

fn line(_: &BatchRow, outcome: &LineOutcome, page: &mut Vec<u8>) -> Result<(), ApiError> {
    let raw = |text| serde_json::from_str::<&RawValue>(text).map_err(ApiError::internal);
    let metadata = Some(outcome.metadata.as_str()).filter(|notes| *notes != "{}");
    let error = outcome.error.clone();
    let line = ResultLine {
        line: outcome.line,
        job: outcome.job.map(|(job, _)| job),
        state: outcome.job.map(|(_, state)| state),
        metadata: metadata.map(raw).transpose()?,
        result: outcome.answer.as_deref().map(raw).transpose()?,
        error: error.map(|(code, message)| JobError { code, message }),
    };
    serde_json::to_writer(&mut *page, &line).map_err(ApiError::internal)?;
    page.push(b'\n');
    Ok(())
}
