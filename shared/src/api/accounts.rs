//! Accounts and workers, as the API shows and takes them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::domain::{AccountId, JobId, Span, Time, Usage};

/// Who made an account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AccountSource {
    /// The configuration; it is changed there.
    #[default]
    Configuration,
    /// Someone at run time, by the API; it is changed by the API.
    Api,
}

/// An account to make. Settings are named as in a configuration file, and those that are not
/// listed here depend on the provider. `api_key`, `oauth_token` and `env` are secrets: they are
/// sealed, and never shown again.
#[derive(Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NewAccount {
    /// Its name.
    pub id: AccountId,
    /// `anthropic`, `openai`, `claude-cli`, `command` or `simulated`.
    pub provider: String,
    /// `models`, `tags`, `max_concurrency`, `weight`, and those of the provider.
    #[serde(flatten)]
    #[schema(value_type = BTreeMap<String, Value>)]
    pub settings: Map<String, Value>,
}

/// What is to change about an account: settings by name, `null` for one that is to go. What is
/// not named stays.
#[derive(Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = BTreeMap<String, Value>)]
pub struct AccountChange(pub Map<String, Value>);

/// A worker that should serve an account and cannot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AccountTrouble {
    /// Which worker.
    pub worker: String,
    /// Why, and what to do.
    pub problem: String,
}

/// How one real call through an account's worker went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AccountTest {
    /// The account.
    pub account: AccountId,
    /// The worker that made the call.
    pub worker: String,
    /// `completed` when all is well; otherwise as an attempt's outcome, or `no_answer` when the
    /// worker said nothing in time.
    pub outcome: String,
    /// What went wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The beginning of the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The model that answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// What it used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// How long the call took.
    pub took: Span,
}

/// A worker, as it was last heard of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WorkerView {
    /// Its unique name.
    pub id: String,
    /// The machine it is on.
    pub host: String,
    /// Its process.
    pub pid: u32,
    /// Its version of Sluice.
    pub version: String,
    /// When it started.
    pub since: Time,
    /// When it last said that it is there, by its own clock.
    pub last_heartbeat: Time,
    /// The accounts whose queues it consumes.
    pub accounts: Vec<AccountId>,
    /// Whether it serves every account that is made at run time, too.
    pub serves_all: bool,
    /// Attempts in its hands.
    pub in_flight: u32,
    /// The first of them, at most 100.
    pub attempts: Vec<AttemptInHand>,
    /// The accounts that it should serve and cannot, each with the reason.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub troubles: BTreeMap<AccountId, String>,
}

/// An attempt in a worker's hands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AttemptInHand {
    /// Which job.
    pub job: JobId,
    /// Which attempt.
    pub attempt: u32,
}

/// The workers that are there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WorkerList {
    /// By name.
    pub workers: Vec<WorkerView>,
    /// Whether the live plane could be asked just now; otherwise they are those last heard of.
    pub current: bool,
}
