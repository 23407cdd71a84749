//! Strategies, and why jobs wait.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::JobError;
use crate::domain::{
    AccountId, JobId, Span, State, Time,
    route::{Refusal, Strategy, Wait},
};

/// How accounts are chosen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RoutingView {
    /// The strategy of every lane without one of its own.
    pub strategy: Strategy,
    /// Whether `strategy` was chosen here or comes from the configuration.
    pub source: RoutingSource,
    /// The strategies of lanes with one of their own, by the lane's key.
    pub lanes: BTreeMap<String, Strategy>,
}

/// Where a strategy comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RoutingSource {
    /// It was chosen at run time.
    Api,
    /// It is `dispatch.strategy` of the configuration.
    Configuration,
}

/// How accounts are to be chosen from now on: all of it, in place of what was chosen before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NewRouting {
    /// The strategy of every lane without one of its own; none for that of the configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strategy: Option<Strategy>,
    /// Strategies for single lanes, by the lane's key as jobs show it, such as `any` or
    /// `model=m1&tag=eu`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub lanes: BTreeMap<String, Strategy>,
}

/// Why a job is where it is: what it waits for now, and how each of its dispatches came about.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    /// The job.
    pub id: JobId,
    /// Its state.
    pub state: State,
    /// The set of accounts that it may run on.
    pub lane: String,
    /// How one of them is chosen.
    pub strategy: Strategy,
    /// What it waits for; none when it does not wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waits: Option<Waiting>,
    /// Every account of its lane as it is now, the best first.
    pub accounts: Vec<Candidate>,
    /// Its dispatches, oldest first.
    pub dispatches: Vec<Dispatched>,
    /// The steps of its way, when it has fallbacks: the first is as it was submitted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<StepView>,
}

/// One step of the way of a job with fallbacks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StepView {
    /// The set of accounts that it may run on.
    pub lane: String,
    /// The model that it asks for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// It is taken after this time on the step before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<Span>,
    /// It is taken on a failure on the step before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub on_failure: bool,
    /// The job is on this step now.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub current: bool,
    /// When it is taken if the job still waits then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub due: Option<Time>,
}

/// What a job waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Waiting {
    /// What it is.
    #[serde(flatten)]
    pub wait: Wait,
    /// The same in words.
    pub detail: String,
    /// Jobs of its lane that go before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ahead: Option<JobCount>,
}

/// A number of jobs, counted up to a bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JobCount {
    /// How many there are, at least.
    pub jobs: u64,
    /// There are more than that; they are not counted one by one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub more: bool,
}

/// An account that a job may run on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Candidate {
    /// Which account.
    pub account: AccountId,
    /// What the strategy makes of it; the highest is chosen. Each strategy has a scale of its own:
    /// see docs/routing.md. None for an account that was out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
    /// The strategy would rather keep it for jobs of a higher priority.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub kept_back: bool,
    /// The job's session ran here last, so it goes here while it can.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub home: bool,
    /// It is the one that was chosen.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub chosen: bool,
    /// Attempts in flight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_flight: Option<u32>,
    /// How long it takes to give a result, as this process has measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_to_result: Option<Span>,
    /// Why it takes no job; none when it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<Refusal>,
}

/// One dispatch of a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Dispatched {
    /// The attempt's number.
    pub attempt: u32,
    /// The account that it was bound to.
    pub account: AccountId,
    /// When.
    pub at: Time,
    /// How it ended; none while it is in flight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
    /// What went wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<JobError>,
    /// How the account was chosen. The API process that chose remembers its last 20,000 dispatches
    /// and tells them; any other has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub choice: Option<DispatchChoice>,
}

/// How an account was chosen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DispatchChoice {
    /// By which strategy.
    pub strategy: Strategy,
    /// The session's account was taken, whatever the strategy would have said.
    pub by_session: bool,
    /// What there was to choose from when the batch was planned, the best first.
    pub accounts: Vec<Candidate>,
}

/// What waits, where and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct QueueStatus {
    /// Jobs that wait and could go at once, over the lanes that are listed.
    pub waiting: JobCount,
    /// Jobs whose time has not come.
    pub scheduled: JobCount,
    /// When the next of those may go.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_due: Option<Time>,
    /// Attempts in flight.
    pub in_flight: u64,
    /// When the oldest of the jobs that go next was accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oldest: Option<Time>,
    /// Lanes with jobs waiting, by key.
    pub lanes: Vec<LaneStatus>,
    /// There are more lanes than are listed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub more_lanes: bool,
    /// Every account, by name.
    pub accounts: Vec<AccountStatus>,
}

/// One lane's backlog.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LaneStatus {
    /// The lane's key.
    pub lane: String,
    /// How an account is chosen for its jobs.
    pub strategy: Strategy,
    /// Jobs that wait in it.
    pub waiting: JobCount,
    /// When the oldest of those that go next was accepted; one job a priority is looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oldest: Option<Time>,
    /// What they wait for.
    #[serde(flatten)]
    pub wait: Wait,
    /// Accounts that belong to it, whatever their state.
    pub accounts: u64,
}

/// One account's part in the queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AccountStatus {
    /// Which account.
    pub account: AccountId,
    /// Attempts in flight.
    pub in_flight: u32,
    /// Prompts it runs at once, at most.
    pub max_concurrency: u32,
    /// How long it takes to give a result, as this process has measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_to_result: Option<Span>,
    /// Why it takes no job; none when it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<Refusal>,
}
