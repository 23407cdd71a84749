//! One try of a delivery: one request, one outcome.

use std::{error::Error as _, time::Duration};

use reqwest::{
    Client, Response,
    header::{CONTENT_TYPE, RETRY_AFTER},
};
use sluice_shared::{
    clock,
    config::Webhooks,
    domain::{
        Span, Time,
        webhook::{self, Answer, Next},
    },
};
use tokio::time::Instant;

use super::{Guard, Letter, Names};
use crate::store::{ClaimedDelivery, Then, Tried};

/// Of an answer's body, no more than this is read and kept.
const MOST_BODY: usize = 4096;

/// How long a connection that is not used is kept.
const IDLE: Duration = Duration::from_secs(30);

/// What sends deliveries.
#[derive(Debug)]
pub struct Sender {
    client: Client,
    guard: Guard,
    timeout: Span,
    schedule: Vec<Span>,
}

/// What a try found.
#[derive(Debug, Default)]
struct Heard {
    answer: Answer,
    error: Option<String>,
    response: Option<String>,
}

impl Sender {
    /// A sender by these settings, which asks `names` for addresses.
    ///
    /// # Errors
    /// When there can be no HTTP client.
    pub fn new(settings: &Webhooks, names: Names) -> Result<Self, reqwest::Error> {
        // reqwest panics when nobody has chosen.
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            drop(rustls::crypto::ring::default_provider().install_default());
        }
        let guard = Guard::new(names, settings.egress());
        let client = Client::builder()
            .dns_resolver(std::sync::Arc::new(guard.clone()))
            // A redirect is a failure: followed, it would lead past what was allowed.
            .redirect(reqwest::redirect::Policy::none())
            // A proxy would resolve names itself, and reach what is refused here.
            .no_proxy()
            .connect_timeout(settings.timeout.0)
            .pool_idle_timeout(IDLE)
            .user_agent(concat!("sluice/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Self {
            client,
            guard,
            timeout: settings.timeout,
            schedule: settings.schedule.clone(),
        })
    }

    /// Tries once, and says what is to be done.
    pub async fn send(&self, delivery: ClaimedDelivery, letter: Letter) -> Tried {
        let (began_at, began) = (clock::now(), Instant::now());
        let asked = self.ask(&delivery, &letter, began_at);
        let heard = match tokio::time::timeout(self.timeout.0, asked).await {
            Ok(heard) => heard,
            Err(_) => Heard {
                error: Some(format!("it took longer than {}", self.timeout)),
                ..Heard::default()
            },
        };
        let tries = delivery.step.saturating_add(1);
        let next = webhook::next(&self.schedule, tries, heard.answer, clock::chance());
        let then = match next {
            Next::Delivered => Then::Delivered,
            Next::Again(rest) => Then::Again(clock::now() + rest),
            Next::GiveUp => Then::Failed,
            Next::Gone => Then::Gone,
        };
        Tried {
            delivery,
            began_at,
            took: Span(began.elapsed()),
            status: heard.answer.status,
            error: heard.error,
            response: heard.response,
            then,
        }
    }

    async fn ask(&self, delivery: &ClaimedDelivery, letter: &Letter, now: Time) -> Heard {
        let failed = |error: String| Heard {
            error: Some(error),
            ..Heard::default()
        };
        // An address in the URL never comes by the resolver.
        let url = match self.guard.egress().url(&letter.url) {
            Ok(url) => url,
            Err(error) => return failed(format!("its URL {error}")),
        };
        let (id, timestamp) = (delivery.event.to_string(), now.as_millis() / 1000);
        let signatures: Vec<String> = letter
            .secrets
            .iter()
            .filter_map(|secret| secret.sign(&id, timestamp, &letter.body))
            .collect();
        if signatures.is_empty() {
            return failed("it cannot be signed".into());
        }
        let request = self
            .client
            .post(url)
            .header(CONTENT_TYPE, "application/json")
            .header(standardwebhooks::HEADER_WEBHOOK_ID, id)
            .header(standardwebhooks::HEADER_WEBHOOK_TIMESTAMP, timestamp)
            .header(
                standardwebhooks::HEADER_WEBHOOK_SIGNATURE,
                signatures.join(" "),
            )
            .body(letter.body.clone());
        match request.send().await {
            Ok(response) => hear(response, now).await,
            Err(error) => failed(chain(&error.without_url())),
        }
    }
}

async fn hear(mut response: Response, now: Time) -> Heard {
    let status = response.status();
    let retry_after = response
        .headers()
        .get(RETRY_AFTER)
        .and_then(|value| webhook::retry_after(value.to_str().ok()?, now));
    let mut body = Vec::new();
    // What the status says is said, even if the body breaks off.
    while body.len() < MOST_BODY
        && let Ok(Some(chunk)) = response.chunk().await
    {
        body.extend_from_slice(&chunk);
    }
    body.truncate(MOST_BODY);
    let error = match status.as_u16() {
        200..=299 => None,
        300..=399 => Some("it redirects, and redirects are not followed".into()),
        410 => Some("it wants nothing more".into()),
        _ => Some(format!("it answered {status}")),
    };
    Heard {
        answer: Answer {
            status: Some(status.as_u16()),
            retry_after,
        },
        error,
        response: text(&body),
    }
}

/// The body as far as it can be kept: Postgres has no way to write NUL.
fn text(body: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(body).replace('\0', "\u{fffd}");
    (!text.is_empty()).then_some(text)
}

fn chain(error: &reqwest::Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        words = format!("{words}: {error}");
        cause = error.source();
    }
    words
}
