//! Webhooks: endpoints, what is sent to them, and what came of it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::JobView;
use crate::domain::{EventKind, JobId, Span, Time};

/// A job's own webhook: whom to tell of its end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JobWebhook {
    /// Where to send it.
    #[schema(example = "https://example.com/hook")]
    pub url: String,
    /// Which kinds of events of the job, such as `job.failed`; none in particular for all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<EventKind>,
}

/// An endpoint to register.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewWebhook {
    /// Where to send events.
    #[schema(example = "https://example.com/hook")]
    pub url: String,
    /// Which kinds; none in particular for all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<EventKind>,
    /// Only of this client's jobs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// What it is for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
}

/// What to change about an endpoint. What is left out stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WebhookChange {
    /// Where to send events; deliveries under way go there, too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Which kinds; an empty array for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub events: Option<Vec<EventKind>>,
    /// What it is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// False holds its deliveries; true lets new ones go. Those that were held go when they are
    /// replayed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
}

/// An endpoint, without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WebhookView {
    /// Its id.
    pub id: Uuid,
    /// Where events are sent.
    pub url: String,
    /// Which kinds; none in particular for all.
    pub events: Vec<EventKind>,
    /// Only of this client's jobs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// What it is for.
    pub description: String,
    /// Whether it gets anything. Otherwise its deliveries are held.
    pub enabled: bool,
    /// Why it gets nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disabled_reason: Option<String>,
    /// Since when nothing but failures came of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failing_since: Option<Time>,
    /// Until when the secret before this one signs, too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous_secret_until: Option<Time>,
    /// When it was made.
    pub created_at: Time,
}

/// An endpoint and its secret, which is shown this once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CreatedWebhook {
    /// What its deliveries are signed with, as the libraries of Standard Webhooks take it.
    pub secret: String,
    /// The rest.
    #[serde(flatten)]
    pub view: WebhookView,
}

/// How a secret is to be replaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SecretRotation {
    /// How long the one before signs, too: 24 hours unless said otherwise, at most 30 days.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_previous: Option<Span>,
}

/// A new secret, which is shown this once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WebhookSecret {
    /// The secret.
    pub secret: String,
    /// Until when the one before signs, too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous_secret_until: Option<Time>,
}

/// All endpoints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WebhookList {
    /// Oldest first.
    pub webhooks: Vec<WebhookView>,
}

/// How a delivery is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryState {
    /// It waits for its next try, or is being tried.
    Pending,
    /// Its endpoint is disabled.
    Held,
    /// It has arrived.
    Delivered,
    /// It was tried often enough, or its receiver is gone.
    Failed,
}

impl DeliveryState {
    /// Every state.
    pub const ALL: [Self; 4] = [Self::Pending, Self::Held, Self::Delivered, Self::Failed];

    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Held => "held",
            Self::Delivered => "delivered",
            Self::Failed => "failed",
        }
    }

    /// The state of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == name)
    }
}

/// One notification and its tries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeliveryView {
    /// Its id.
    pub id: Uuid,
    /// The event's id: the header `webhook-id`, the same in every try.
    pub event: Uuid,
    /// The kind of event.
    pub r#type: EventKind,
    /// When it happened.
    pub event_at: Time,
    /// The job that it tells of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<JobId>,
    /// The endpoint; none when the job named its URL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub webhook: Option<Uuid>,
    /// Where it is sent.
    pub url: String,
    /// How it is doing.
    pub state: DeliveryState,
    /// Tries so far.
    pub tries: u32,
    /// When the next one is due.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_try_at: Option<Time>,
    /// When it had arrived or was given up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Time>,
}

/// A page of deliveries, newest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeliveryPage {
    /// The deliveries.
    pub deliveries: Vec<DeliveryView>,
    /// For the next page; none on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// One delivery with what was sent and what was answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DeliveryDetail {
    /// The delivery.
    #[serde(flatten)]
    pub delivery: DeliveryView,
    /// The body that is sent. The headers beside it: `webhook-id`, `webhook-timestamp` (the time
    /// of the try in seconds) and `webhook-signature`.
    #[schema(value_type = Object)]
    pub request: serde_json::Value,
    /// Each try, oldest first.
    pub attempts: Vec<DeliveryTry>,
}

/// One try of a delivery.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeliveryTry {
    /// Its number, from 1.
    pub number: u32,
    /// When it began.
    pub at: Time,
    /// How long it took, in milliseconds.
    pub millis: u64,
    /// The HTTP status that was answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Why there was no answer, or why it does not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The beginning of the answer's body.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response: Option<String>,
}

/// Which deliveries of an endpoint to send anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Replay {
    /// Of events since then.
    pub since: Time,
    /// Of events before then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Time>,
    /// In which states; those that failed or were held unless said otherwise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub states: Vec<DeliveryState>,
}

/// How many deliveries are sent anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Replayed {
    /// So many.
    pub replayed: u64,
}

/// The body of a webhook.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct WebhookEvent<T = serde_json::Value> {
    /// The kind of event.
    pub r#type: EventKind,
    /// When it happened.
    pub timestamp: Time,
    /// What happened.
    pub data: T,
}

/// What a webhook says of a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobEvent {
    /// The job at its end, without what it was asked.
    #[serde(flatten)]
    pub job: JobView,
    /// Where to ask for it.
    pub url: String,
    /// Fields that were left out because they are too large for a webhook: ask for the job.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub omitted: Vec<String>,
}

/// The largest body of a webhook in bytes, as Standard Webhooks recommends.
const MOST_BYTES: usize = 20_000;

impl JobEvent {
    /// What is said of `job`, and never more than fits: a result that is too large is left out,
    /// and so are the client's notes when that is not enough.
    #[must_use]
    pub fn new(job: JobView) -> Self {
        let mut event = Self {
            url: format!("/api/jobs/{}", job.id),
            job: JobView {
                request: None,
                attempts: None,
                webhook: None,
                ..job
            },
            omitted: Vec::new(),
        };
        if event.is_too_large() && event.job.result.take().is_some() {
            event.omitted.push("result".into());
        }
        if event.is_too_large() && !event.job.metadata.is_empty() {
            event.job.metadata.clear();
            event.omitted.push("metadata".into());
        }
        event
    }

    fn is_too_large(&self) -> bool {
        // With what stands around it.
        serde_json::to_vec(self).map_or(0, |json| json.len()) + 120 > MOST_BYTES
    }
}
