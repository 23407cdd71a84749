//! What a client and the API say to each other over HTTP. The server, the command line and the
//! tests all use these types; the OpenAPI document is made from them.

mod accounts;
mod batches;
mod dashboard;
mod routing;
mod schedules;
mod webhooks;

use std::{borrow::Cow, collections::BTreeMap};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use self::{
    accounts::{
        AccountChange, AccountSource, AccountTest, AccountTrouble, AttemptInHand, NewAccount,
        WorkerList, WorkerView,
    },
    batches::{BatchCounts, BatchPage, BatchResult, BatchState, BatchView, LineError},
    dashboard::{
        JobChange, JobChanges, LaneBacklog, NewSession, Overview, Pulse, PulsePoint, SessionView,
        UnfinishedJobs, WaitsFor,
    },
    routing::{
        AccountStatus, Candidate, DispatchChoice, Dispatched, Explanation, JobCount, LaneStatus,
        NewRouting, QueueStatus, RoutingSource, RoutingView, StepView, Waiting,
    },
    schedules::{Missed, NewSchedule, ScheduleChange, ScheduleList, ScheduleRun, ScheduleView},
    webhooks::{
        CreatedWebhook, DeliveryDetail, DeliveryPage, DeliveryState, DeliveryTry, DeliveryView,
        JobEvent, JobWebhook, NewWebhook, Replay, Replayed, SecretRotation, WebhookChange,
        WebhookEvent, WebhookList, WebhookSecret, WebhookView,
    },
};
use crate::domain::{
    AccountId, BatchId, Cause, Completion, Delivery, Figure, JobId, Kind, Message, OnParentFailure,
    Quota, Span, State, Time, Usage,
};

/// A job to run. Give either `prompt` or `messages`; all else is optional.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NewJob {
    /// The prompt, as one user message.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "Say hello.")]
    pub prompt: Option<String>,
    /// The conversation, instead of `prompt`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages: Option<Vec<Message>>,
    /// The system prompt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// The model; only accounts that offer it can run the job. The account's default otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Provider parameters such as `max_tokens` or `temperature`, passed on as they are.
    #[serde(skip_serializing_if = "serde_json::Map::is_empty")]
    #[schema(value_type = Object)]
    pub params: serde_json::Map<String, serde_json::Value>,
    /// Higher goes first, from -100 to 100. Default 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<i16>,
    /// Not before this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_at: Option<Time>,
    /// Not before this long from now; instead of `run_at`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay: Option<Span>,
    /// If it has not begun by this time, it ends `expired`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,
    /// How long the provider may take. Default 10 minutes, at most 24 hours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Span>,
    /// Failed attempts after which it ends `failed`, from 1 to 100. Default 3. Between attempts it
    /// waits 1 s doubling to 5 min, with jitter. A throttled attempt does not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
    /// How often it may be handed to a provider.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delivery: Option<Delivery>,
    /// Jobs of one session prefer the same account.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// Only this account.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountId>,
    /// Only accounts with all of these tags.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Models in order of preference, instead of `model`. The next one is taken when the job has
    /// waited for 30 s, or when an attempt fails and it may run again.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<String>,
    /// Where else it may run, and when; one after the other. At most 8.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fallbacks: Vec<NewFallback>,
    /// Jobs that must have ended before it may run, at most 100. In its texts, `{{ results[0] }}` or
    /// `{{ results.ID }}` stands for the text of such a job's result.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<JobId>,
    /// What becomes of it when a job in `after` does not succeed. Default `fail`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_parent_failure: Option<OnParentFailure>,
    /// Yours: kept with the job and searchable. At most 32 entries.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// Whom to tell of its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub webhook: Option<JobWebhook>,
}

/// Where else a job may run, and when. It names at least one of `account`, `model` and `tags`, or
/// frees a job from its account; and at least one condition. The job keeps its model and tags
/// unless others are named here; the account that it is pinned to is kept by no fallback.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NewFallback {
    /// Only this account.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountId>,
    /// This model instead of the job's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// These tags instead of the job's; an empty array for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tags: Option<Vec<String>>,
    /// When the job has been where it was for so long, and waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<Span>,
    /// When an attempt fails or is rejected, and the job may run again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on: Option<FallbackOn>,
}

/// What a fallback is taken on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FallbackOn {
    /// A failed or a rejected attempt.
    Failure,
}

/// The receipt of one job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Receipt {
    /// The job's id.
    pub id: JobId,
    /// Its state at this moment.
    pub state: State,
    /// Where to ask for it.
    pub url: String,
}

/// The receipt of an array of jobs, in the order in which they were given.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Receipts {
    /// One receipt a job.
    pub jobs: Vec<Receipt>,
}

/// A job as it is now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobView {
    /// Its id.
    pub id: JobId,
    /// Its state.
    pub state: State,
    /// Whether someone asked for its end while it was in flight.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cancel_requested: bool,
    /// Who submitted it: the name of the API key.
    pub client: String,
    /// The set of accounts that it may run on.
    pub lane: String,
    /// The account that it runs or ran on last; none while it waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountId>,
    /// The model that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Its priority.
    pub priority: i16,
    /// The number of its last attempt; 0 before the first.
    pub attempt: u32,
    /// Failed attempts that count.
    pub failures: u32,
    /// Failed attempts after which it ends.
    pub max_attempts: u32,
    /// How often it may be handed to a provider.
    pub delivery: Delivery,
    /// How long the provider may take.
    pub timeout: Span,
    /// The client's session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// The client's own notes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// Whom it tells of its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook: Option<JobWebhook>,
    /// The job that this one tries again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_of: Option<JobId>,
    /// The batch that it came with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<BatchId>,
    /// When it was accepted.
    pub created_at: Time,
    /// Before this time it is not dispatched; shown while it waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_at: Option<Time>,
    /// When the first account that may run it comes back, when all of them are out; only when one
    /// job is read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_until: Option<Time>,
    /// Why all accounts that may run it are out, or that it waits for the jobs in `after`; only when
    /// one job is read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_for: Option<String>,
    /// If it has not begun by this time, it ends `expired`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,
    /// When its last attempt was bound to an account.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dispatched_at: Option<Time>,
    /// When its last attempt really began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
    /// The answer, when it succeeded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<Completion>,
    /// What went wrong, when it did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<JobError>,
    /// What it was asked; only when one job is read.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub request: Option<serde_json::Value>,
    /// The jobs that it comes after; only when one job is read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<JobId>,
    /// Every attempt that has ended, oldest first; only when one job is read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempts: Option<Vec<AttemptView>>,
    /// Where it stands in its lane, from 1; only when one job is read that waits for capacity.
    /// Counted up to 10,001, without an estimate then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<u64>,
    /// When it may start, by what waits and runs now and how long jobs took lately; only when one
    /// job is read that waits for capacity. Not when no account could run it now, nor when its
    /// client's quota may hold it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimated_start_at: Option<Time>,
}

/// What would become of a batch that is submitted now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Forecast {
    /// How many jobs it has.
    pub jobs: u64,
    /// The set of accounts that they may run on.
    pub lane: String,
    /// Jobs that wait already, anywhere; they go before it or share its accounts.
    pub waiting: u64,
    /// When its first job would start; none when no account could run it now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub starts_at: Option<Time>,
    /// When its last job would be done; none when it never would.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub done_at: Option<Time>,
    /// How fast it would go, from its first start to its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jobs_per_hour: Option<u64>,
    /// What would hold it up for longest; none when nothing would.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bottleneck: Option<Bottleneck>,
    /// The accounts of its lane, and what each would do of it.
    pub accounts: Vec<AccountForecast>,
    /// How many accounts like the slowest of the lane it takes for `per_hour`; none when that was
    /// not asked for, or 1,000 are not enough.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accounts_needed: Option<u32>,
}

/// What holds jobs up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Bottleneck {
    /// `slots`, `cooldown`, a limit (`requests`, `input_tokens`, `output_tokens`, `cost`), the
    /// client's own `max_running`, or `no_account` when none of the lane can run anything now.
    pub kind: String,
    /// At which account.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountId>,
    /// How much there is of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// In which window.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<Span>,
}

/// What one account would do of a batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AccountForecast {
    /// Its name.
    pub id: AccountId,
    /// Jobs of the batch that it would run.
    pub jobs: u64,
    /// How long a job takes there, in milliseconds.
    pub millis_per_job: u64,
    /// Attempts that this was measured from; with 0 it is what other accounts take, or 30 s.
    pub measured: u64,
}

/// Why a job or an attempt did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JobError {
    /// A stable code.
    pub code: String,
    /// What happened, for people.
    pub message: String,
}

/// One dispatch of a job that has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AttemptView {
    /// Its number, from 1.
    pub number: u32,
    /// The account that it was bound to.
    pub account: AccountId,
    /// The worker that had it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// How it ended: `completed`, `throttled`, `overloaded`, `auth_failed`, `out_of_credit`,
    /// `rejected`, `failed`, `cancelled`, `lost` or `returned`.
    pub outcome: String,
    /// What went wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<JobError>,
    /// When it was bound.
    pub dispatched_at: Time,
    /// When the provider was called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When it ended.
    pub finished_at: Time,
    /// What it used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// A page of jobs, newest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobPage {
    /// The jobs, without their requests and attempts.
    pub jobs: Vec<JobView>,
    /// Give this as `cursor` for the next page; none on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// An account as it is now. No secret is ever in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AccountView {
    /// Its name.
    pub id: AccountId,
    /// The kind of provider.
    pub provider: String,
    /// The models it offers; empty means any.
    pub models: Vec<String>,
    /// The tags that lanes can ask for.
    pub tags: Vec<String>,
    /// Prompts it runs at once, at most.
    pub max_concurrency: u32,
    /// Its share under the weighted strategy.
    pub weight: u32,
    /// Who made it, and where it is changed.
    #[serde(default)]
    pub source: AccountSource,
    /// The settings of one that was made by the API, but for its secrets; shown to those who may
    /// steer accounts.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    #[schema(value_type = Object)]
    pub settings: serde_json::Map<String, serde_json::Value>,
    /// The secrets that it was given by the API, by name. They are sealed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<String>,
    /// Whether it may take jobs at all: `active`, `paused`, `draining` (empty when `in_flight` is
    /// 0), `auth_failed`, `out_of_credit`.
    pub standing: crate::domain::Standing,
    /// Attempts in flight now.
    pub in_flight: u32,
    /// No new job before this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cooldown_until: Option<Time>,
    /// Why it cools or is out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Workers that serve it now; none when the live plane cannot tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workers: Option<u32>,
    /// Workers that should serve it and cannot.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub troubles: Vec<AccountTrouble>,
}

/// All accounts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AccountList {
    /// By name.
    pub accounts: Vec<AccountView>,
}

/// How far an account has used its limits, why it cools, and what its provider says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AccountWindows {
    /// The account.
    pub account: AccountId,
    /// Each configured limit.
    pub limits: Vec<WindowView>,
    /// Each cause for which it takes no jobs, or none of one family of models.
    pub cooldowns: Vec<CooldownView>,
    /// What its provider has said about its own limits last.
    pub learned: Vec<Figure>,
}

/// One limit as it is now. Cost is in millionths of a US dollar.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WindowView {
    /// What is counted.
    pub kind: Kind,
    /// The length of the window.
    pub window: Span,
    /// How much any window of this length may hold.
    pub limit: u64,
    /// What the provider may have seen within the last window.
    pub used: u64,
    /// Reserved for attempts of which it is not known yet that they have reached the provider.
    pub reserved: u64,
    /// How much more can be dispatched now.
    pub left: u64,
    /// When there is room for one more; none when there is now, or when that depends on attempts
    /// under way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resets_at: Option<Time>,
}

/// A cause for which an account takes no jobs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CooldownView {
    /// Why.
    pub cause: Cause,
    /// The family of models that it is about, with the cause `model`; none for the default model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub family: Option<String>,
    /// From this time on one job is let through, and its answer opens the account.
    pub until: Time,
    /// When the limit ends, by the provider's word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resets_at: Option<Time>,
    /// That one job is under way.
    pub probing: bool,
    /// The provider's words.
    pub reason: String,
}

/// What an API key may do. Each includes what stands before it.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Look at everything.
    Read,
    /// Submit jobs, and cancel and retry its own.
    Submit,
    /// Cancel and retry anyone's jobs, steer accounts.
    Operate,
    /// Make and revoke keys.
    Admin,
}

/// An API key to make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewKey {
    /// Its name: the client that jobs are counted for.
    pub name: String,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// Its client's share beside other clients that have jobs waiting; 1 when no key of this name
    /// was given another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 1000)]
    pub weight: Option<u32>,
    /// What its client may have at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota: Option<Quota>,
}

/// What to change about an API key. What is left out stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct KeyChange {
    /// Its client's share.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 1000)]
    pub weight: Option<u32>,
    /// Only the limits that are to change; `null` lifts one.
    #[serde(skip_serializing_if = "serde_json::Map::is_empty")]
    #[schema(value_type = Quota)]
    pub quota: serde_json::Map<String, serde_json::Value>,
}

/// An API key, without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeyView {
    /// Its id.
    pub id: uuid::Uuid,
    /// Its name.
    pub name: String,
    /// The beginning of the key, to tell keys apart.
    pub prefix: String,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// Its client's share beside other clients that have jobs waiting. Keys of one name are one
    /// client, with one weight and one quota.
    pub weight: u32,
    /// What its client may have at most.
    pub quota: Quota,
    /// When it was made.
    pub created_at: Time,
    /// When it was revoked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<Time>,
}

/// A new API key; its secret is shown this once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CreatedKey {
    /// The secret.
    pub key: String,
    /// The rest.
    #[serde(flatten)]
    pub view: KeyView,
}

/// All API keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeyList {
    /// Newest first.
    pub keys: Vec<KeyView>,
}

/// How the whole is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// `ok`; `degraded` when something is down that submits can do without; `down` otherwise.
    pub status: HealthStatus,
    /// Each plane by name: `truth`, `work`, `live`.
    pub planes: BTreeMap<Cow<'static, str>, PlaneHealth>,
    /// The version of Sluice.
    pub version: String,
}

/// In one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum HealthStatus {
    /// All is well.
    Ok,
    /// Jobs are accepted, but something is down.
    Degraded,
    /// Jobs cannot be accepted.
    Down,
}

/// How one plane is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlaneHealth {
    /// What it is: `postgres`, `sqlite`, `rabbitmq`, `in-process`, `redis`, `memory`.
    pub kind: String,
    /// Whether it can be used.
    pub up: bool,
    /// What is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What the API says when it says no (RFC 9457, `application/problem+json`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// A URI reference that names the kind of problem.
    pub r#type: String,
    /// The kind of problem in a few words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What was wrong this time, and what to do.
    pub detail: String,
    /// A stable code to branch on.
    pub code: String,
    /// The fields at fault.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
    /// The rules of the key's quota that stand against it.
    #[serde(
        default,
        rename = "violated-policies",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub violated_policies: Vec<String>,
    /// When the quota starts anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resets_at: Option<Time>,
}

/// One field at fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FieldError {
    /// Where it is in the request, such as `[3].prompt`.
    pub field: String,
    /// What is wrong with it.
    pub detail: String,
}
