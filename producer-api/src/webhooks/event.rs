//! What a delivery says. It is made up anew for each try from what no longer changes: a job that
//! has ended, or what was written with the event.

use sluice_shared::{
    api::{JobEvent, JobView, WebhookEvent},
    domain::EventKind,
};

use super::secret::Secret;
use crate::store::ClaimedDelivery;

/// A delivery that is ready to be sent.
#[derive(Debug)]
pub struct Letter {
    /// Where it goes.
    pub url: String,
    /// The body, as JSON.
    pub body: String,
    /// What it is signed with, newest first.
    pub secrets: Vec<Secret>,
}

/// The body of a delivery: about `job`, or with what was written with the event. `None` when it
/// cannot be made.
#[must_use]
pub fn body_of(delivery: &ClaimedDelivery, job: Option<&JobView>) -> Option<String> {
    let kind = EventKind::from_name(&delivery.event_type)?;
    let timestamp = delivery.event_at;
    let body = match (job, &delivery.data) {
        (Some(job), _) => serde_json::to_string(&WebhookEvent {
            r#type: kind,
            timestamp,
            data: JobEvent::new(job.clone()),
        }),
        (None, Some(data)) => serde_json::to_string(&WebhookEvent {
            r#type: kind,
            timestamp,
            data: serde_json::from_str::<serde_json::Value>(data).ok()?,
        }),
        (None, None) => return None,
    };
    body.ok()
}
