//! How one attempt ended, as a provider adapter tells it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Time;

/// Tokens and money that an attempt used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Usage {
    /// Tokens read, cached ones included.
    pub input_tokens: u64,
    /// Tokens written.
    pub output_tokens: u64,
    /// Of `input_tokens`, those read from the provider's prompt cache.
    #[serde(skip_serializing_if = "is_zero")]
    pub cache_read_tokens: u64,
    /// Of `input_tokens`, those written to the provider's prompt cache.
    #[serde(skip_serializing_if = "is_zero")]
    pub cache_write_tokens: u64,
    /// Cost in millionths of a US dollar, when the provider tells or the price is configured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost_microusd: Option<u64>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// An answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Completion {
    /// The text that the model wrote.
    pub text: String,
    /// The model that wrote it, as the provider names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Why the model stopped, in the provider's words (`end_turn`, `stop`, `max_tokens`, ...).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<String>,
    /// What it used.
    #[serde(default)]
    pub usage: Usage,
}

/// Which kind of limit stopped an account. Each has its own exit, so one is never taken for
/// another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ThrottleKind {
    /// A short burst limit: seconds to minutes.
    Burst,
    /// A long window, such as a plan's 5 hours or week.
    Window,
    /// A long window of one model family only.
    Model,
    /// A spend cap: until it is raised or its period ends.
    SpendCap,
    /// The provider limits this host, whatever the account.
    Host,
}

/// How one attempt ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Outcome {
    /// The provider answered.
    Completed(Completion),
    /// The account is over a limit; the job is put back and does not lose an attempt.
    Throttled {
        /// When it may be tried again, if the provider says.
        until: Option<Time>,
        /// Which limit.
        throttle: ThrottleKind,
        /// The provider's words.
        detail: String,
    },
    /// The provider itself is overloaded; as a throttle, but not this account's fault.
    Overloaded {
        /// When it may be tried again, if the provider says.
        until: Option<Time>,
        /// The provider's words.
        detail: String,
    },
    /// The credential is not accepted: the account is out until someone acts.
    AuthFailed {
        /// The provider's words.
        detail: String,
    },
    /// The account has no credit: out until someone acts.
    OutOfCredit {
        /// The provider's words.
        detail: String,
    },
    /// The caller's fault: the same request will never work, so it is not retried.
    Rejected {
        /// A stable code, such as `invalid_request` or `prompt_too_long`.
        code: String,
        /// The provider's words.
        detail: String,
    },
    /// It went wrong and may go well next time; counts against `max_attempts`.
    Failed {
        /// A stable code, such as `timeout` or `stream_cut`.
        code: String,
        /// What happened.
        detail: String,
    },
    /// It was cancelled and has stopped.
    Cancelled,
}

impl Outcome {
    /// A failure that may be retried.
    #[must_use]
    pub fn failed(code: &str, detail: impl Into<String>) -> Self {
        Self::Failed {
            code: code.into(),
            detail: detail.into(),
        }
    }

    /// A request that will never work.
    #[must_use]
    pub fn rejected(code: &str, detail: impl Into<String>) -> Self {
        Self::Rejected {
            code: code.into(),
            detail: detail.into(),
        }
    }

    /// The outcome's name, as in history and metrics.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Completed(_) => "completed",
            Self::Throttled { .. } => "throttled",
            Self::Overloaded { .. } => "overloaded",
            Self::AuthFailed { .. } => "auth_failed",
            Self::OutOfCredit { .. } => "out_of_credit",
            Self::Rejected { .. } => "rejected",
            Self::Failed { .. } => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// The stable code and the words of what went wrong; `None` when nothing did.
    #[must_use]
    pub fn error(&self) -> Option<(&str, &str)> {
        match self {
            Self::Completed(_) => None,
            Self::Throttled { detail, .. } => Some(("throttled", detail)),
            Self::Overloaded { detail, .. } => Some(("overloaded", detail)),
            Self::AuthFailed { detail } => Some(("auth_failed", detail)),
            Self::OutOfCredit { detail } => Some(("out_of_credit", detail)),
            Self::Rejected { code, detail } | Self::Failed { code, detail } => Some((code, detail)),
            Self::Cancelled => Some(("cancelled", "cancelled on request")),
        }
    }
}
