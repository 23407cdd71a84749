//! What the dashboard asks for beside the resources themselves: sign-ins, the overview, workers,
//! and what is told as it happens.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Scope;
use crate::domain::{AccountId, JobId, State, Time};

/// A sign-in. Give one of the two.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NewSession {
    /// An API key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The token of a link that signs in once, as `sluice up` prints it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SessionView {
    /// The id of the API key.
    pub key: uuid::Uuid,
    /// The name of the API key: the client that jobs are counted for.
    pub client: String,
    /// What it may do at most; each scope includes those before it.
    pub scope: Scope,
    /// The version of Sluice.
    pub version: String,
}

/// How all goes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Overview {
    /// When this was so.
    pub at: Time,
    /// Jobs that have not ended.
    pub jobs: UnfinishedJobs,
    /// Where jobs wait and why, the longest queue first.
    pub backlog: Vec<LaneBacklog>,
    /// The last hour, as this API process saw it.
    pub pulse: Pulse,
}

/// How many jobs have not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UnfinishedJobs {
    /// They wait for an account.
    pub queued: u64,
    /// They wait for their time.
    pub scheduled: u64,
    /// They are bound to an account and have not begun.
    pub dispatched: u64,
    /// They run.
    pub running: u64,
}

/// The jobs that wait in one lane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LaneBacklog {
    /// The lane's key.
    pub lane: String,
    /// How many wait.
    pub jobs: u64,
    /// What they wait for.
    pub waits_for: WaitsFor,
    /// When the first cooldown ends, if that is what they wait for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Time>,
    /// The accounts that could run them.
    pub accounts: Vec<AccountId>,
}

/// What the jobs of a lane wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WaitsFor {
    /// No account fits any more.
    Account,
    /// Every account that fits is paused, or its credential or credit fails.
    Resume,
    /// No worker serves an account that fits.
    Worker,
    /// Every account that fits cools down.
    Cooldown,
    /// Every slot of the accounts that fit is taken.
    Slot,
    /// Nothing: they are about to be dispatched.
    Turn,
}

/// What happened lately, in steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Pulse {
    /// The length of a step in milliseconds.
    pub step_ms: u64,
    /// What is counted begins here.
    pub since: Time,
    /// The steps in which something happened, oldest first.
    pub points: Vec<PulsePoint>,
}

/// What happened in one step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PulsePoint {
    /// When the step begins, in milliseconds since the Unix epoch.
    pub at_ms: i64,
    /// Jobs accepted.
    pub accepted: u64,
    /// Jobs that succeeded.
    pub succeeded: u64,
    /// Jobs that failed.
    pub failed: u64,
    /// Jobs that were cancelled.
    pub cancelled: u64,
    /// Jobs that expired.
    pub expired: u64,
    /// Attempts that ended without an answer, for whatever reason.
    pub unanswered: u64,
    /// Tokens read.
    pub input_tokens: u64,
    /// Tokens written.
    pub output_tokens: u64,
    /// Cost in millionths of a US dollar, as far as it is known.
    pub cost_microusd: u64,
}

/// A job has come into a state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JobChange {
    /// Which job.
    pub job: JobId,
    /// Its state.
    pub state: State,
    /// The number of its last attempt, when it is told here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// The account that it is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountId>,
}

/// State changes that came about at nearly the same time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JobChanges {
    /// In order, at most 200.
    pub changes: Vec<JobChange>,
    /// How many more there were, which are not told: look anew.
    pub missed: u64,
}
