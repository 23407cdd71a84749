//! Schedules: jobs that recur.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::NewJob;
use crate::domain::{JobId, Time};

/// What becomes of times that passed while nothing could fire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Missed {
    /// Nothing; one that is less than a minute late is not missed.
    #[default]
    Skip,
    /// One job for all of them.
    RunOnce,
    /// A job for each, for the last 100 at most.
    RunAll,
}

/// A schedule to make.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewSchedule {
    /// A name, at most 255 characters.
    pub name: String,
    /// When: minute, hour, day of the month, month, day of the week.
    #[schema(example = "0 7 * * MON-FRI")]
    pub cron: String,
    /// The IANA time zone of `cron`. Default `UTC`.
    #[serde(default = "utc")]
    #[schema(example = "Europe/Berlin")]
    pub timezone: String,
    /// The job, as a submit takes it, without `run_at`, `expires_at` and `after`.
    pub job: NewJob,
    /// What becomes of times that passed while nothing could fire.
    #[serde(default)]
    pub missed: Missed,
    /// It fires only on request.
    #[serde(default)]
    pub paused: bool,
}

fn utc() -> String {
    "UTC".into()
}

/// What to change of a schedule; what is left out stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ScheduleChange {
    /// Another name.
    pub name: Option<String>,
    /// Other times.
    pub cron: Option<String>,
    /// Another time zone.
    pub timezone: Option<String>,
    /// Another job.
    pub job: Option<NewJob>,
    /// Something else for times that were missed.
    pub missed: Option<Missed>,
    /// Whether it fires only on request. Times that pass meanwhile are not missed.
    pub paused: Option<bool>,
}

/// A schedule as it is now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ScheduleView {
    /// Its id.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// Whose jobs it submits: the name of the API key that made it.
    pub client: String,
    /// When.
    pub cron: String,
    /// The time zone of `cron`.
    pub timezone: String,
    /// The job.
    pub job: NewJob,
    /// What becomes of times that were missed.
    pub missed: Missed,
    /// It fires only on request.
    pub paused: bool,
    /// When it fires next; none when it is paused or no time will come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_at: Option<Time>,
    /// Its next five times; only when one is read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub upcoming: Vec<Time>,
    /// Its last runs, newest first, at most 20; only when one is read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub runs: Vec<ScheduleRun>,
    /// When it was made.
    pub created_at: Time,
    /// When it was changed last.
    pub updated_at: Time,
}

/// What became of one time of a schedule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ScheduleRun {
    /// When it was due, or asked for.
    pub due_at: Time,
    /// When its job was submitted.
    pub fired_at: Time,
    /// The job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobId>,
    /// Why there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// All schedules.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ScheduleList {
    /// By name.
    pub schedules: Vec<ScheduleView>,
}
