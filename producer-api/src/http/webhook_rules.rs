//! What an endpoint, and a webhook of a job, must be. Pure.

use sluice_shared::{
    api::{FieldError, JobWebhook, NewWebhook, WebhookChange},
    domain::{Egress, EventKind, Span},
};

use super::{
    problem::{ApiError, Code, clip},
    submit::Flaws,
};

/// Longest description of an endpoint.
const MOST_DESCRIPTION: usize = 500;
/// Longest name of a client.
const MOST_CLIENT: usize = 64;

const DEFAULT_KEPT: Span = Span::seconds(24 * 3600);
const MOST_KEPT: Span = Span::seconds(30 * 86_400);

/// What is wrong with an endpoint.
#[derive(Debug, Default)]
struct Wrong(Vec<FieldError>);

impl Wrong {
    fn add(&mut self, field: &str, detail: &str) {
        self.0.push(FieldError {
            field: field.into(),
            detail: clip(detail),
        });
    }

    fn url(&mut self, url: &str, egress: &Egress) {
        if let Err(error) = egress.url(url) {
            self.add("url", &error.to_string());
        }
    }

    fn text(&mut self, field: &str, text: &str, most: usize) {
        if text.chars().count() > most {
            self.add(field, &format!("is longer than {most} characters"));
        }
        if text.chars().any(|c| c.is_control() && c != '\n') {
            self.add(field, "holds a character that cannot be printed");
        }
    }

    fn refuse(self) -> Result<(), ApiError> {
        let Some(first) = self.0.first() else {
            return Ok(());
        };
        let whole = format!("{}: {}", first.field, first.detail);
        Err(ApiError::new(Code::InvalidWebhook, whole).with(self.0))
    }
}

/// An endpoint that can be, each kind of event once.
pub(super) fn new(mut webhook: NewWebhook, egress: &Egress) -> Result<NewWebhook, ApiError> {
    let mut wrong = Wrong::default();
    wrong.url(&webhook.url, egress);
    wrong.text("description", &webhook.description, MOST_DESCRIPTION);
    if let Some(client) = &webhook.client {
        wrong.text("client", client, MOST_CLIENT);
        if client.is_empty() {
            wrong.add("client", "is empty");
        }
    }
    wrong.refuse()?;
    tidy(&mut webhook.events);
    Ok(webhook)
}

/// A change that can be.
pub(super) fn change(
    mut change: WebhookChange,
    egress: &Egress,
) -> Result<WebhookChange, ApiError> {
    let mut wrong = Wrong::default();
    if let Some(url) = &change.url {
        wrong.url(url, egress);
    }
    if let Some(description) = &change.description {
        wrong.text("description", description, MOST_DESCRIPTION);
    }
    wrong.refuse()?;
    if let Some(events) = &mut change.events {
        tidy(events);
    }
    Ok(change)
}

/// How long the secret before a new one signs.
pub(super) fn kept(asked: Option<Span>) -> Result<Span, ApiError> {
    let kept = asked.unwrap_or(DEFAULT_KEPT);
    if kept > MOST_KEPT {
        let detail = format!("is {kept}; the most is {MOST_KEPT}");
        return Err(ApiError::field(
            Code::InvalidWebhook,
            "keep_previous",
            detail,
        ));
    }
    Ok(kept)
}

/// A webhook of a job; `egress` is none where nothing can be signed.
pub(super) fn of_job(webhook: &mut JobWebhook, egress: Option<&Egress>, flaws: &mut Flaws) {
    let Some(egress) = egress else {
        let detail = "cannot be: this API process has no master key to sign it with; start it \
                      with SLUICE_MASTER_KEY";
        flaws.add(Code::NoMasterKey, "webhook", detail);
        return;
    };
    if let Err(error) = egress.url(&webhook.url) {
        flaws.invalid("webhook.url", error.to_string());
    }
    if let Some(kind) = webhook.events.iter().find(|kind| !kind.is_of_a_job()) {
        let detail = format!("has {}, which tells of no job", kind.as_str());
        flaws.invalid("webhook.events", detail);
    }
    tidy(&mut webhook.events);
}

fn tidy(events: &mut Vec<EventKind>) {
    events.sort_unstable();
    events.dedup();
}
