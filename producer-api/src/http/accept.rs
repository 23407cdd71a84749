//! Accepting jobs: new ones, and ended ones once more.

use std::{marker::PhantomData, sync::Arc};

use axum::{
    Json,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use sluice_shared::{
    api::{JobView, NewJob, Receipt, Receipts, Scope},
    clock,
    domain::{self, After, JobId, Lane, OnParentFailure, State as JobState, after::HELD},
};
use tracing::Instrument;
use utoipa::ToSchema;

use super::{
    Edge, PATIENCE,
    extract::{Caller, Id, NoParams},
    idempotency::{self, REPLAYED},
    jobs, json, lane,
    problem::{ApiError, Code},
    submit::{self, Flaws, Rules},
    trace, webhooks,
};
use crate::{
    app::App,
    store::{Idempotency, NewRow, Submission, Submitted, Way},
};

/// A body beyond this size is looked into where it does not keep other requests waiting.
const LARGE: usize = 256 * 1024;

/// One job or many.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
#[expect(
    dead_code,
    clippy::large_enum_variant,
    reason = "it only says in the API's document what the body may be"
)]
enum NewJobs {
    /// One job.
    One(NewJob),
    /// Jobs that are accepted together or not at all.
    Many(Vec<NewJob>),
}

/// What came of a submit, in the shape of what was submitted.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
enum Accepted {
    /// Of one job.
    One(Receipt),
    /// Of an array.
    Many(Receipts),
}

/// A submit that is checked and not yet kept.
struct Checked {
    rows: Vec<NewRow>,
    is_array: bool,
    idempotency: Option<Idempotency>,
}

/// Submit a job, or up to 1,000 as one.
///
/// The answer comes when the jobs are on disk: an accepted job is never lost. An array is
/// accepted as a whole or refused as a whole. With an `Idempotency-Key` the same request gives
/// the same jobs again, for 24 hours unless configured otherwise.
#[utoipa::path(
    post, path = "/api/jobs", tag = "jobs", security(("key" = ["submit"])),
    params(
        ("Idempotency-Key" = Option<String>, Header,
            description = "1 to 255 printable characters that stand for this request"),
        ("traceparent" = Option<String>, Header, description = "the W3C trace that it belongs to"),
    ),
    request_body(content = NewJobs, content_type = "application/json"),
    responses(
        (status = 202, description = "Kept. `url` says where to ask for each job.", body = Accepted,
            headers(
                ("Location" = String, description = "where to ask for the job; only of one job"),
                ("Idempotency-Replayed" = String, description = "`true` when it was kept before"),
            )),
        (status = 408, description = "`request_timeout`"),
        (status = 413, description = "`body_too_large`, `prompt_too_large`"),
        (status = 415, description = "`unsupported_media_type`"),
        (status = 422, description = "`invalid_job`, `invalid_character`, `too_many_jobs`, \
            `no_such_lane`, `idempotency_key_reused`"),
        (status = 429, description = "`too_many_waiting`, `budget_spent`, `too_many_requests`"),
    )
)]
pub(super) async fn submit_jobs(
    State(edge): State<Arc<Edge>>,
    caller: Caller,
    _: NoParams,
    request: Request,
) -> Result<Response, ApiError> {
    caller.needs(Scope::Submit)?;
    let (parts, body) = request.into_parts();
    let key = idempotency::key(&parts.headers)?;
    let payload = edge.bodies.read(&parts.headers, body).await?;
    let (span, traceparent) = edge.trace(&parts.headers);
    let submit = async {
        let mut checked = if payload.bytes.len() > LARGE {
            let (app, bytes) = (edge.app.clone(), payload.bytes);
            tokio::task::spawn_blocking(move || check(&app, &bytes, key))
                .await
                .map_err(ApiError::internal)??
        } else {
            check(&edge.app, &payload.bytes, key)?
        };
        for row in &mut checked.rows {
            row.traceparent.clone_from(&traceparent);
        }
        check_parents(&edge, &checked).await?;
        keep(&edge, caller.0.name.as_ref().to_owned(), checked).await
    };
    let answer = submit.instrument(span).await;
    drop(payload.room);
    answer
}

/// Retry a job that has ended, as a new job linked to it.
///
/// The new job asks the same of the same lane with the same options, and counts for the same
/// client. It may run at once, and it does not expire.
#[utoipa::path(
    post, path = "/api/jobs/{id}/retry", tag = "jobs", security(("key" = ["submit"])),
    params(
        ("id" = JobId, Path, description = "the job"),
        ("Idempotency-Key" = Option<String>, Header,
            description = "1 to 255 printable characters that stand for this request"),
    ),
    responses(
        (status = 202, description = "Kept, as a new job.", body = Receipt,
            headers(
                ("Location" = String, description = "where to ask for the new job"),
                ("Idempotency-Replayed" = String, description = "`true` when it was kept before"),
            )),
        (status = 404, description = "`no_such_job`"),
        (status = 409, description = "`not_ended`"),
        (status = 422, description = "`no_such_lane`, `idempotency_key_reused`"),
        (status = 429, description = "`too_many_waiting`, `budget_spent`, `too_many_requests`"),
    )
)]
pub(super) async fn retry_job(
    State(edge): State<Arc<Edge>>,
    caller: Caller,
    id: Id,
    _: NoParams,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let key = idempotency::key(&headers)?;
    let job = jobs::find_to_change(&edge, &caller, id.job()).await?;
    if !job.state.is_terminal() {
        let detail = format!(
            "the job is {}; cancel it first, or wait for its end",
            job.state
        );
        return Err(ApiError::new(Code::NotEnded, detail));
    }
    let (span, traceparent) = edge.trace(&headers);
    let retry = async {
        let request = edge.truth(edge.app.store.request(job.id)).await?;
        let request = request.ok_or_else(|| ApiError::internal("a job has no request"))?;
        let way = edge.truth(edge.app.store.way(job.id)).await?;
        let idempotency = key
            .map(|key| idempotency::of(key, &("retry", job.id)))
            .transpose()?;
        let client = job.client.clone();
        // One that never ran still has places of results in its texts.
        let after = (job.attempt == 0 && !job.after.is_empty()).then(|| After {
            parents: job.after.clone(),
            on_failure: OnParentFailure::default(),
            run_at: clock::now(),
        });
        let row = again(&edge.app, job, request, way)?;
        let rows = vec![NewRow {
            traceparent,
            run_at: if after.is_some() { HELD } else { row.run_at },
            after,
            ..row
        }];
        keep(
            &edge,
            client,
            Checked {
                rows,
                is_array: false,
                idempotency,
            },
        )
        .await
    };
    retry.instrument(span).await
}

impl Edge {
    pub(super) fn trace(&self, headers: &HeaderMap) -> (tracing::Span, Option<String>) {
        trace::of_submit(!self.app.config.telemetry.otlp_endpoint.is_empty(), headers)
    }
}

/// What the body asks for, if it can be done.
fn check(app: &App, bytes: &[u8], key: Option<String>) -> Result<Checked, ApiError> {
    let api = &app.config.api;
    let now = clock::now();
    let accounts = app.roster.accounts();
    let rules = Rules::of(app, &accounts, now);
    let is_array = bytes.trim_ascii_start().first() == Some(&b'[');
    if !is_array {
        let job = json::parse(bytes, PhantomData::<NewJob>, Code::InvalidJob)?;
        let idempotency = key.map(|key| idempotency::of(key, &job)).transpose()?;
        let rows = match submit::row(job, JobId::generate(), &rules) {
            Ok(row) => vec![row],
            Err(flaws) => return Err(flaws.into()),
        };
        return Ok(Checked {
            rows,
            is_array,
            idempotency,
        });
    }
    let jobs = json::parse(
        bytes,
        json::AtMost::<NewJob>::new(api.max_jobs_per_submit),
        Code::InvalidJob,
    )?;
    if jobs.total > jobs.elements.len() {
        let (most, total) = (jobs.elements.len(), jobs.total);
        let detail =
            format!("the array has {total} jobs; the most is {most}; nothing was accepted");
        return Err(ApiError::new(Code::TooManyJobs, detail));
    }
    if jobs.total == 0 {
        return Err(ApiError::field(
            Code::InvalidJob,
            "body",
            "is an array without a job",
        ));
    }
    let idempotency = key
        .map(|key| idempotency::of(key, &jobs.elements))
        .transpose()?;
    let mut rows = Vec::with_capacity(jobs.total);
    let mut flaws = Flaws::default();
    for (index, job) in jobs.elements.into_iter().enumerate() {
        match submit::row(job, JobId::generate(), &rules) {
            Ok(row) => rows.push(row),
            Err(found) => flaws.of_element(index, found),
        }
        if flaws.is_full() {
            break;
        }
    }
    flaws.refuse()?;
    Ok(Checked {
        rows,
        is_array,
        idempotency,
    })
}

/// The row of a job that tries an ended one again.
fn again(
    app: &App,
    job: JobView,
    mut request: domain::Request,
    way: Option<Way>,
) -> Result<NewRow, ApiError> {
    let steps = way.map(|way| way.steps).unwrap_or_default();
    // One that fell back begins its way anew.
    let lane = match steps.first() {
        Some(first) => {
            request.model.clone_from(&first.model);
            Lane::parse(&first.lane)
        }
        None => Lane::parse(&job.lane),
    };
    let lane = lane.map_err(ApiError::internal)?;
    let mut flaws = Flaws::default();
    lane::check(&lane, &app.roster.accounts(), &mut flaws);
    flaws.refuse()?;
    Ok(NewRow {
        id: JobId::generate(),
        lane,
        priority: job.priority,
        run_at: clock::now(),
        expires_at: None,
        timeout_ms: job.timeout.as_millis(),
        max_attempts: job.max_attempts,
        delivery: job.delivery,
        session: job.session,
        metadata: submit::metadata_text(job.metadata),
        retry_of: Some(job.id),
        traceparent: None,
        request,
        steps,
        webhook: job.webhook,
        after: None,
    })
}

/// Refuses jobs that come after jobs that there are not.
async fn check_parents(edge: &Edge, checked: &Checked) -> Result<(), ApiError> {
    let parents = |row: &NewRow| row.after.clone().map_or(Vec::new(), |after| after.parents);
    let missing = missing_parents(edge, &checked.rows).await?;
    if missing.is_empty() {
        return Ok(());
    }
    let mut flaws = Flaws::default();
    for (index, row) in checked.rows.iter().enumerate() {
        let mut own = Flaws::default();
        for (place, parent) in parents(row).iter().enumerate() {
            if missing.contains(parent) {
                own.invalid(
                    format!("after[{place}]"),
                    format!("there is no job {parent}"),
                );
            }
        }
        if checked.is_array {
            flaws.of_element(index, own);
        } else {
            flaws = own;
        }
    }
    flaws.refuse()
}

/// Which of the jobs that these come after there are not.
pub(super) async fn missing_parents(
    edge: &Edge,
    rows: &[NewRow],
) -> Result<std::collections::BTreeSet<JobId>, ApiError> {
    let mut missing: std::collections::BTreeSet<JobId> = rows
        .iter()
        .filter_map(|row| row.after.as_ref())
        .flat_map(|after| after.parents.iter().copied())
        .collect();
    if !missing.is_empty() {
        let wanted: Vec<JobId> = missing.iter().copied().collect();
        for (job, _) in edge.truth(edge.app.store.states(&wanted)).await? {
            missing.remove(&job);
        }
    }
    Ok(missing)
}

/// Keeps the jobs, or finds those that the same request brought before.
async fn keep(edge: &Edge, client: String, checked: Checked) -> Result<Response, ApiError> {
    let Checked {
        rows,
        is_array,
        idempotency,
    } = checked;
    if rows.iter().any(|row| row.webhook.is_some()) {
        webhooks::ensure_signer(edge, &client).await?;
    }
    let submission = Submission {
        client,
        rows,
        idempotency,
    };
    let (jobs, replayed) = match commit(edge, submission).await? {
        Kept::Fresh(jobs) => (jobs, false),
        Kept::Before(ids) => (states_of(edge, &ids).await?, true),
    };
    let mut receipts = jobs
        .into_iter()
        .map(|(id, state)| Receipt {
            id,
            state,
            url: format!("/api/jobs/{id}"),
        })
        .collect::<Vec<_>>();
    let mut headers = HeaderMap::new();
    if let [only] = receipts.as_slice() {
        headers.insert(
            header::LOCATION,
            HeaderValue::try_from(&only.url).map_err(ApiError::internal)?,
        );
    }
    if replayed {
        headers.insert(REPLAYED, HeaderValue::from_static("true"));
    }
    let accepted = match (is_array, receipts.pop()) {
        (false, Some(receipt)) => Accepted::One(receipt),
        (_, last) => {
            receipts.extend(last);
            Accepted::Many(Receipts { jobs: receipts })
        }
    };
    Ok((StatusCode::ACCEPTED, headers, Json(accepted)).into_response())
}

/// What is on disk now.
pub(super) enum Kept {
    /// New jobs.
    Fresh(Vec<(JobId, JobState)>),
    /// Those that the same request brought before.
    Before(Vec<JobId>),
}

/// Hands jobs to the group commit.
pub(super) async fn commit(edge: &Edge, submission: Submission) -> Result<Kept, ApiError> {
    let rows = submission.rows.iter();
    let parents: Vec<JobId> = rows
        .clone()
        .filter_map(|row| row.after.as_ref())
        .flat_map(|after| after.parents.iter().copied())
        .collect();
    let fresh: Vec<(JobId, JobState)> = rows.map(|row| (row.id, JobState::Queued)).collect();
    let answer = tokio::time::timeout(PATIENCE, edge.app.submitter.submit(submission)).await;
    match answer.map_err(|_| ApiError::submit_unknown())?? {
        Submitted::Accepted => {
            edge.app.pulse.accepted(fresh.len(), clock::now());
            edge.app.tell(fresh.clone());
            // They may have ended already.
            edge.app.dependents.add(parents);
            Ok(Kept::Fresh(fresh))
        }
        Submitted::Replayed(ids) => Ok(Kept::Before(ids)),
        Submitted::OverQuota(violation) => Err(ApiError::over_quota(
            &violation,
            Some(fresh.len()),
            clock::now(),
        )),
        Submitted::Mismatch => {
            let detail = "this Idempotency-Key came with another request before; take a new one";
            Err(ApiError::new(Code::IdempotencyKeyReused, detail))
        }
    }
}

async fn states_of(edge: &Edge, ids: &[JobId]) -> Result<Vec<(JobId, JobState)>, ApiError> {
    let states: std::collections::HashMap<JobId, JobState> = edge
        .truth(edge.app.store.states(ids))
        .await?
        .into_iter()
        .collect();
    ids.iter()
        .map(|id| {
            let state = states.get(id).copied();
            let state =
                state.ok_or_else(|| ApiError::internal("a job of an idempotency key is gone"))?;
            Ok((*id, state))
        })
        .collect()
}
