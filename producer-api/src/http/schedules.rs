//! Schedules: jobs that recur.

use std::{marker::PhantomData, sync::Arc};

use axum::{
    Json,
    extract::{Request, State},
    http::StatusCode,
};
use sluice_shared::{
    api::{NewJob, NewSchedule, ScheduleChange, ScheduleList, ScheduleView, Scope},
    clock,
    domain::{JobId, Time},
};
use uuid::Uuid;

use super::{
    Edge,
    extract::{Caller, Id, NoParams},
    json,
    problem::{ApiError, Code},
    submit::{self, Flaws, MOST_NAME, Rules},
    webhooks,
};
use crate::{
    app::App,
    schedules::{self, due::Times},
    store::{NewRow, ScheduleRow},
    submitter::SubmitError,
};

/// Times to come that are shown.
const UPCOMING: usize = 5;

/// List schedules, by name.
#[utoipa::path(
    get, path = "/api/schedules", tag = "schedules", security(("key" = ["read"])),
    responses((status = 200, description = "All of them.", body = ScheduleList))
)]
pub(super) async fn list_schedules(
    State(edge): State<Arc<Edge>>,
    _: Caller,
    _: NoParams,
) -> Result<Json<ScheduleList>, ApiError> {
    let rows = edge.truth(edge.app.store.schedules()).await?;
    let schedules = rows.into_iter().map(view).collect::<Result<_, _>>()?;
    Ok(Json(ScheduleList { schedules }))
}

/// Make a schedule.
///
/// At each of its times it submits the job, for the client that made it. Each time fires once,
/// however many API processes there are.
#[utoipa::path(
    post, path = "/api/schedules", tag = "schedules", security(("key" = ["submit"])),
    request_body(content = NewSchedule, content_type = "application/json"),
    responses(
        (status = 201, description = "Made.", body = ScheduleView),
        (status = 408, description = "`request_timeout`"),
        (status = 413, description = "`body_too_large`, `prompt_too_large`"),
        (status = 415, description = "`unsupported_media_type`"),
        (status = 422, description = "`invalid_schedule`, `invalid_job`, `invalid_character`, `no_such_lane`"),
    )
)]
pub(super) async fn create_schedule(
    State(edge): State<Arc<Edge>>,
    caller: Caller,
    _: NoParams,
    request: Request,
) -> Result<(StatusCode, Json<ScheduleView>), ApiError> {
    caller.needs(Scope::Submit)?;
    let (parts, body) = request.into_parts();
    let payload = edge.bodies.read(&parts.headers, body).await?;
    let new = json::parse(
        &payload.bytes,
        PhantomData::<NewSchedule>,
        Code::InvalidSchedule,
    )?;
    let now = clock::now();
    let mut row = ScheduleRow {
        id: Uuid::now_v7(),
        client: caller.0.name.as_ref().to_owned(),
        name: new.name,
        cron: new.cron,
        timezone: new.timezone,
        job: text_of(&new.job)?,
        missed: new.missed,
        paused: new.paused,
        next_at: None,
        created_at: now,
        updated_at: now,
    };
    let tells = new.job.webhook.is_some();
    check(&edge.app, &row, new.job)?;
    if tells {
        webhooks::ensure_signer(&edge, &row.client).await?;
    }
    plan(&mut row, now);
    edge.truth(edge.app.store.put_schedule(&row)).await?;
    Ok((StatusCode::CREATED, Json(show(&edge, row).await?)))
}

/// Get a schedule, with its next times and its last runs.
#[utoipa::path(
    get, path = "/api/schedules/{id}", tag = "schedules", security(("key" = ["read"])),
    params(("id" = Uuid, Path, description = "the schedule")),
    responses(
        (status = 200, description = "The schedule as it is now.", body = ScheduleView),
        (status = 404, description = "`no_such_schedule`"),
    )
)]
pub(super) async fn get_schedule(
    State(edge): State<Arc<Edge>>,
    _: Caller,
    Id(id): Id,
    _: NoParams,
) -> Result<Json<ScheduleView>, ApiError> {
    let row = find(&edge, id).await?;
    show(&edge, row).await.map(Json)
}

/// Change a schedule, pause it or let it go on.
#[utoipa::path(
    patch, path = "/api/schedules/{id}", tag = "schedules", security(("key" = ["submit"])),
    params(("id" = Uuid, Path, description = "the schedule")),
    request_body(content = ScheduleChange, content_type = "application/json"),
    responses(
        (status = 200, description = "Changed.", body = ScheduleView),
        (status = 404, description = "`no_such_schedule`"),
        (status = 408, description = "`request_timeout`"),
        (status = 413, description = "`body_too_large`, `prompt_too_large`"),
        (status = 415, description = "`unsupported_media_type`"),
        (status = 422, description = "`invalid_schedule`, `invalid_job`, `invalid_character`, `no_such_lane`"),
    )
)]
pub(super) async fn change_schedule(
    State(edge): State<Arc<Edge>>,
    caller: Caller,
    Id(id): Id,
    _: NoParams,
    request: Request,
) -> Result<Json<ScheduleView>, ApiError> {
    let mut row = find_to_change(&edge, &caller, id).await?;
    let (parts, body) = request.into_parts();
    let payload = edge.bodies.read(&parts.headers, body).await?;
    let change = json::parse(
        &payload.bytes,
        PhantomData::<ScheduleChange>,
        Code::InvalidSchedule,
    )?;
    let job = match change.job {
        Some(job) => job,
        None => job_of(&row)?,
    };
    row.name = change.name.unwrap_or(row.name);
    row.cron = change.cron.unwrap_or(row.cron);
    row.timezone = change.timezone.unwrap_or(row.timezone);
    row.job = text_of(&job)?;
    row.missed = change.missed.unwrap_or(row.missed);
    row.paused = change.paused.unwrap_or(row.paused);
    let tells = job.webhook.is_some();
    check(&edge.app, &row, job)?;
    if tells {
        webhooks::ensure_signer(&edge, &row.client).await?;
    }
    let now = clock::now();
    row.updated_at = now;
    plan(&mut row, now);
    edge.truth(edge.app.store.put_schedule(&row)).await?;
    show(&edge, row).await.map(Json)
}

/// Remove a schedule. Jobs that it has submitted stay.
#[utoipa::path(
    delete, path = "/api/schedules/{id}", tag = "schedules", security(("key" = ["submit"])),
    params(("id" = Uuid, Path, description = "the schedule")),
    responses(
        (status = 204, description = "Removed."),
        (status = 404, description = "`no_such_schedule`"),
    )
)]
pub(super) async fn remove_schedule(
    State(edge): State<Arc<Edge>>,
    caller: Caller,
    Id(id): Id,
    _: NoParams,
) -> Result<StatusCode, ApiError> {
    find_to_change(&edge, &caller, id).await?;
    edge.truth(edge.app.store.remove_schedule(id)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Run a schedule's job now, whether it is paused or not. Its times stay as they are.
#[utoipa::path(
    post, path = "/api/schedules/{id}/run", tag = "schedules", security(("key" = ["submit"])),
    params(("id" = Uuid, Path, description = "the schedule")),
    responses(
        (status = 202, description = "Submitted, as the first of its runs.", body = ScheduleView),
        (status = 404, description = "`no_such_schedule`"),
        (status = 422, description = "`invalid_schedule`: its job cannot be now"),
    )
)]
pub(super) async fn run_schedule(
    State(edge): State<Arc<Edge>>,
    caller: Caller,
    Id(id): Id,
    _: NoParams,
) -> Result<(StatusCode, Json<ScheduleView>), ApiError> {
    let row = find_to_change(&edge, &caller, id).await?;
    let now = clock::now();
    let outcome = schedules::fire(&edge.app, &row, None)
        .await
        .map_err(|error: SubmitError| ApiError::from(error))?;
    if let Err(why) = &outcome {
        return Err(ApiError::field(Code::InvalidSchedule, "job", why));
    }
    let noted = edge.app.store.note_run(id, now, now, &outcome);
    edge.truth(noted).await?;
    Ok((StatusCode::ACCEPTED, Json(show(&edge, row).await?)))
}

/// The row of a job that nobody asks for just now, or what is wrong with it.
pub(crate) fn row_of(app: &App, job: NewJob) -> Result<NewRow, String> {
    let row = row(app, job);
    row.map_err(|flaws| ApiError::from(flaws).detail().to_owned())
}

fn row(app: &App, job: NewJob) -> Result<NewRow, Flaws> {
    let accounts = app.roster.accounts();
    submit::row(
        job,
        JobId::generate(),
        &Rules::of(app, &accounts, clock::now()),
    )
}

/// Refuses a schedule that cannot be.
fn check(app: &App, schedule: &ScheduleRow, job: NewJob) -> Result<(), ApiError> {
    let mut flaws = Flaws::default();
    flaws.name("name", &schedule.name, MOST_NAME);
    if let Err(bad) = Times::parse(&schedule.cron, &schedule.timezone) {
        flaws.add(Code::InvalidSchedule, bad.field, bad.detail);
    }
    let set = [
        ("job.run_at", job.run_at.is_some()),
        ("job.expires_at", job.expires_at.is_some()),
        ("job.after", !job.after.is_empty()),
    ];
    for (field, _) in set.into_iter().filter(|(_, set)| *set) {
        flaws.add(
            Code::InvalidSchedule,
            field,
            "cannot be of a job that recurs",
        );
    }
    if let Err(found) = row(app, job) {
        flaws.of_part("job", found);
    }
    flaws.refuse()
}

/// Times that have passed before it was made or changed are not missed.
fn plan(row: &mut ScheduleRow, now: Time) {
    let times = Times::parse(&row.cron, &row.timezone).ok();
    row.next_at = times.and_then(|times| times.after(now));
}

fn text_of(job: &NewJob) -> Result<String, ApiError> {
    serde_json::to_string(job).map_err(ApiError::internal)
}

fn job_of(row: &ScheduleRow) -> Result<NewJob, ApiError> {
    serde_json::from_str(&row.job).map_err(ApiError::internal)
}

async fn find(edge: &Edge, id: Uuid) -> Result<ScheduleRow, ApiError> {
    let row = edge.truth(edge.app.store.schedule(id)).await?;
    let none = || ApiError::new(Code::NoSuchSchedule, format!("there is no schedule {id}"));
    row.ok_or_else(none)
}

/// The schedule, for its own client or an operator.
async fn find_to_change(edge: &Edge, caller: &Caller, id: Uuid) -> Result<ScheduleRow, ApiError> {
    caller.needs(Scope::Submit)?;
    let row = find(edge, id).await?;
    if *row.client != *caller.0.name {
        caller.needs(Scope::Operate)?;
    }
    Ok(row)
}

fn view(row: ScheduleRow) -> Result<ScheduleView, ApiError> {
    Ok(ScheduleView {
        job: job_of(&row)?,
        id: row.id,
        name: row.name,
        client: row.client,
        cron: row.cron,
        timezone: row.timezone,
        missed: row.missed,
        paused: row.paused,
        next_at: row.next_at.filter(|_| !row.paused),
        upcoming: Vec::new(),
        runs: Vec::new(),
        created_at: row.created_at,
        updated_at: row.updated_at,
    })
}

/// As [`view`], with what is told of one schedule alone.
async fn show(edge: &Edge, row: ScheduleRow) -> Result<ScheduleView, ApiError> {
    let mut view = view(row)?;
    if let Ok(times) = Times::parse(&view.cron, &view.timezone) {
        let mut next = view.next_at;
        while let Some(time) = next.filter(|_| view.upcoming.len() < UPCOMING) {
            view.upcoming.push(time);
            next = times.after(time);
        }
    }
    view.runs = edge.truth(edge.app.store.schedule_runs(view.id)).await?;
    Ok(view)
}
