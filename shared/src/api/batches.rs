//! Batches: many jobs in one upload.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::JobError;
use crate::domain::{BatchId, Completion, JobId, State, Time};

/// Where a batch is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BatchState {
    /// Some of its jobs have not ended.
    Running,
    /// Its end was asked for, and some of its jobs have not ended yet.
    Cancelling,
    /// All of its jobs have ended.
    Ended,
}

/// How many jobs of a batch are in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct BatchCounts {
    /// They wait.
    pub queued: u64,
    /// They are on their way to a worker.
    pub dispatched: u64,
    /// They run.
    pub running: u64,
    /// They have an answer.
    pub succeeded: u64,
    /// They ended with an error.
    pub failed: u64,
    /// They were cancelled.
    pub cancelled: u64,
    /// They had not begun in time.
    pub expired: u64,
}

impl BatchCounts {
    /// The count of one state.
    pub fn of(&mut self, state: State) -> &mut u64 {
        match state {
            State::Queued => &mut self.queued,
            State::Dispatched => &mut self.dispatched,
            State::Running => &mut self.running,
            State::Succeeded => &mut self.succeeded,
            State::Failed => &mut self.failed,
            State::Cancelled => &mut self.cancelled,
            State::Expired => &mut self.expired,
        }
    }

    /// Jobs that have not ended.
    #[must_use]
    pub fn unfinished(&self) -> u64 {
        self.queued + self.dispatched + self.running
    }

    /// Jobs that have ended.
    #[must_use]
    pub fn ended(&self) -> u64 {
        self.succeeded + self.failed + self.cancelled + self.expired
    }
}

/// A line of an upload that is no job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LineError {
    /// Its number in the upload, from 1.
    pub line: u64,
    /// A stable code, as of a problem.
    pub code: String,
    /// What is wrong with it.
    pub detail: String,
}

/// A batch as it is now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BatchView {
    /// Its id.
    pub id: BatchId,
    /// Where it is in its life.
    pub state: BatchState,
    /// Its name, if it was given one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Who submitted it: the name of the API key.
    pub client: String,
    /// How many jobs it has.
    pub total: u64,
    /// Lines of the upload that are no jobs; only with `partial=true` can there be any.
    pub rejected: u64,
    /// How many of its jobs are in each state.
    pub counts: BatchCounts,
    /// When its upload began.
    pub created_at: Time,
    /// When its end was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancel_requested_at: Option<Time>,
    /// When its last job ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Time>,
    /// When its last job may be done, by what waits and runs now and how long jobs took lately;
    /// only when one batch is read that runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimated_end_at: Option<Time>,
    /// The first lines that were rejected, at most 50; only when one batch is read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<LineError>,
    /// Where to ask for it.
    pub url: String,
    /// Where its results are.
    pub results_url: String,
}

/// A page of batches, newest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BatchPage {
    /// The batches.
    pub batches: Vec<BatchView>,
    /// Give this as `cursor` for the next page; none on the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// One line of a batch's results.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BatchResult {
    /// The number of its line in the upload, from 1.
    pub line: u64,
    /// Its job; none for a line that was rejected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobId>,
    /// How the job ended; none for a line that was rejected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<State>,
    /// The job's notes, as they were given.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// The answer, when it succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Completion>,
    /// What went wrong, when it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<JobError>,
}
