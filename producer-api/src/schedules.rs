//! Schedules fire: each due time submits one job, whichever API process is first.
//!
//! **The promise.** A time fires once. Its submit has an idempotency key made of the schedule and
//! the time, so that it may be repeated by anyone until the schedule has moved on; and the
//! schedule moves on only behind it. Whoever comes second finds the job of the first.

pub mod due;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use sluice_shared::{
    api::NewJob,
    clock,
    domain::{JobId, Time},
};
use tokio_util::sync::CancellationToken;

use self::due::Times;
use crate::{
    app::App,
    http,
    store::{Idempotency, ScheduleRow, StoreError, Submission, Submitted},
    submitter::SubmitError,
};

/// How often due times are looked for.
const TICK: Duration = Duration::from_secs(1);

/// How often old runs are forgotten, and how long they are kept.
const FORGET: Duration = Duration::from_secs(3_600);
const KEPT: Duration = Duration::from_secs(90 * 86_400);

/// The note by which a job says which schedule it is of.
pub const NOTE: &str = "schedule";

/// Fires until `shutdown`.
pub async fn run(app: Arc<App>, shutdown: CancellationToken) {
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut forgot = Time::EPOCH;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = tick.tick() => {}
        }
        let now = clock::now();
        if let Err(error) = fire_due(&app, now).await {
            tracing::debug!(%error, "due schedules could not be looked for");
        }
        if now.since(forgot) >= FORGET {
            forgot = now;
            if let Err(error) = app.store.forget_schedule_runs(now - KEPT).await {
                tracing::debug!(%error, "old runs of schedules could not be forgotten");
            }
        }
    }
}

async fn fire_due(app: &App, now: Time) -> Result<(), StoreError> {
    for schedule in app.store.due_schedules(now).await? {
        let Some(next) = schedule.next_at else {
            continue;
        };
        let due = match Times::parse(&schedule.cron, &schedule.timezone) {
            Ok(times) => times.due(next, now, schedule.missed),
            Err(error) => {
                tracing::error!(schedule = %schedule.id, ?error, "its times cannot be read");
                continue;
            }
        };
        let mut all = true;
        for time in due.fire {
            let key = Idempotency {
                key: format!("schedule {} {}", schedule.id, time.as_millis()),
                fingerprint: "schedule".into(),
            };
            match fire(app, &schedule, Some(key)).await {
                Ok(outcome) => app.store.note_run(schedule.id, time, now, &outcome).await?,
                Err(error) => {
                    // It is tried again, and finds what was submitted.
                    tracing::debug!(%error, schedule = %schedule.id, "it fires later");
                    all = false;
                    break;
                }
            }
        }
        if all {
            app.store.move_schedule(schedule.id, next, due.next).await?;
        }
    }
    Ok(())
}

/// Submits a job of a schedule. Gives it, or why there is none.
///
/// # Errors
/// When nobody knows whether it was submitted; with a key it is safe to try again.
pub async fn fire(
    app: &App,
    schedule: &ScheduleRow,
    key: Option<Idempotency>,
) -> Result<Result<JobId, String>, SubmitError> {
    let job: NewJob = match serde_json::from_str(&schedule.job) {
        Ok(job) => job,
        Err(error) => return Ok(Err(format!("the job cannot be read: {error}"))),
    };
    let mut notes: BTreeMap<String, String> = job.metadata.clone();
    notes
        .entry(NOTE.into())
        .or_insert_with(|| schedule.id.to_string());
    let row = match http::row_of(
        app,
        NewJob {
            metadata: notes,
            ..job
        },
    ) {
        Ok(row) => row,
        Err(why) => return Ok(Err(why)),
    };
    let id = row.id;
    let submission = Submission {
        client: schedule.client.clone(),
        rows: vec![row],
        idempotency: key,
    };
    Ok(match app.submitter.submit(submission).await? {
        Submitted::Accepted => {
            app.pulse.accepted(1, clock::now());
            app.tell(vec![(id, sluice_shared::domain::State::Queued)]);
            Ok(id)
        }
        Submitted::Replayed(ids) => ids.first().copied().ok_or_else(|| "it had no job".into()),
        Submitted::Mismatch => Err("its time was used by another request".into()),
        Submitted::OverQuota(violation) => {
            let (policy, limit) = (violation.policy.as_str(), violation.limit);
            Err(format!(
                "the client's quota does not allow it: {policy} {limit}"
            ))
        }
    })
}
