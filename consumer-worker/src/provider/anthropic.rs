//! Anthropic's Messages API, streamed.
//!
//! Where a rule is the provider's, its source is <https://platform.claude.com/docs/en/api/errors>,
//! `.../rate-limits` and `.../messages-streaming`, or the issue that is named.

use reqwest::{
    Url,
    header::{HeaderMap, HeaderName, HeaderValue},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use sluice_shared::{
    clock,
    config::HttpApi,
    domain::{Completion, Outcome, Request, Role, ThrottleKind, Time, Usage},
};

use super::{
    Account, BuildError, Check, Prompt, Sink,
    answer::Answer,
    api_error::ApiError,
    credential::{self, API_KEY},
    http::{self, Endpoint, Events},
    limits, params,
    secrets::Secrets,
    stop::Stop,
};

const BASE_URL: &str = "https://api.anthropic.com";
/// The API has no default of its own.
const MAX_TOKENS: u32 = 4096;
/// What says how to answer is no part of a count, and is refused there.
const NOT_COUNTED: [&str; 7] = [
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "stop_sequences",
    "metadata",
    "service_tier",
];

/// An account at Anthropic's API.
#[derive(Debug)]
pub struct Anthropic {
    endpoint: Endpoint,
    default_model: Option<String>,
    max_tokens: u32,
    key_source: Option<String>,
    max_output_bytes: usize,
    pub(super) secrets: Secrets,
}

impl Anthropic {
    pub(super) fn build(account: &Account<'_>, settings: &HttpApi) -> Result<Self, BuildError> {
        let key = credential::resolve(account, &API_KEY, &settings.credential)?;
        let mut headers = HeaderMap::new();
        headers.insert(
            HeaderName::from_static("anthropic-version"),
            HeaderValue::from_static("2023-06-01"),
        );
        if let Some(key) = &key {
            let value = http::secret_header("", key).ok_or_else(|| {
                account.error(
                    "api_key",
                    "has characters that no key has; see how it was copied",
                )
            })?;
            headers.insert(HeaderName::from_static("x-api-key"), value);
        }
        let base = match &settings.base_url {
            Some(url) => url.clone(),
            None => Url::parse(BASE_URL)
                .map_err(|error| account.error("base_url", error.to_string()))?,
        };
        Ok(Self {
            endpoint: Endpoint::build(account, base, headers)?,
            default_model: account.default_model(),
            max_tokens: settings.max_tokens.unwrap_or(MAX_TOKENS),
            key_source: credential::source(&API_KEY, &settings.credential),
            max_output_bytes: account.max_output_bytes,
            secrets: Secrets::new(key),
        })
    }

    pub(super) async fn check(&self) -> Check {
        self.endpoint.check(self.key_source.as_deref()).await
    }

    pub(super) async fn run(&self, prompt: Prompt<'_>, stop: Stop<'_>, sink: &Sink) -> Outcome {
        let answer = Answer::new(self.max_output_bytes, sink);
        match stop.race(self.ask(prompt.request, answer)).await {
            Ok(Ok(completion)) => Outcome::Completed(completion),
            Ok(Err(outcome)) | Err(outcome) => outcome,
        }
    }

    async fn ask(&self, request: &Request, answer: Answer<'_>) -> Result<Completion, Outcome> {
        let body = self.body(request)?;
        match self.endpoint.post(&["messages"], body).await? {
            Ok(events) => {
                answer.learn(limits::anthropic_figures(events.headers(), clock::now()));
                read(events, answer).await
            }
            Err(refusal) => {
                let now = clock::now();
                answer.learn(limits::anthropic_figures(&refusal.headers, now));
                Err(judge(&refusal.error, &refusal.headers, now))
            }
        }
    }

    /// How many tokens the request has. It costs nothing, and has rate limits of its own.
    pub(super) async fn count(&self, request: &Request) -> Result<u64, Outcome> {
        #[derive(Deserialize)]
        struct Size {
            input_tokens: u64,
        }
        let mut body = self.fields(request)?;
        for name in NOT_COUNTED {
            body.remove(name);
        }
        let body = to_json(&body)?;
        match self
            .endpoint
            .ask(&["messages", "count_tokens"], body)
            .await?
        {
            Ok(Size { input_tokens }) => Ok(input_tokens),
            Err(refusal) => Err(judge(&refusal.error, &refusal.headers, clock::now())),
        }
    }

    /// The request: the job's parameters as they are, under what is ours to say.
    fn body(&self, request: &Request) -> Result<Vec<u8>, Outcome> {
        let mut body = self.fields(request)?;
        body.insert("stream".into(), true.into());
        to_json(&body)
    }

    fn fields(&self, request: &Request) -> Result<Map<String, Value>, Outcome> {
        let Some(model) = request.model.as_ref().or(self.default_model.as_ref()) else {
            return Err(Outcome::rejected(
                "model_required",
                "the job names no model and the account has no default_model",
            ));
        };
        let messages: Vec<Value> = request
            .messages
            .iter()
            .filter(|message| message.role != Role::System)
            .map(|message| json!({"role": message.role, "content": message.content}))
            .collect();
        let mut body = params::for_anthropic(request.params.clone());
        body.entry("max_tokens").or_insert(self.max_tokens.into());
        body.insert("model".into(), model.as_str().into());
        body.insert("messages".into(), messages.into());
        if let Some(system) = request.system_text() {
            body.insert("system".into(), system.into());
        }
        Ok(body)
    }
}

fn to_json(body: &Map<String, Value>) -> Result<Vec<u8>, Outcome> {
    serde_json::to_vec(body).map_err(|error| Outcome::failed("internal", error.to_string()))
}

/// One event of the stream; the kinds that say nothing to us are `Other`, new ones too.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum StreamEvent {
    MessageStart {
        message: Start,
    },
    ContentBlockDelta {
        delta: Delta,
    },
    MessageDelta {
        delta: Ending,
        usage: Option<Counts>,
    },
    MessageStop,
    Error {
        error: Value,
    },
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct Start {
    model: Option<String>,
    usage: Option<Counts>,
}

#[derive(Deserialize)]
struct Delta {
    text: Option<String>,
}

#[derive(Deserialize)]
struct Ending {
    stop_reason: Option<String>,
}

/// Token counts of the API. Those of `message_delta` are cumulative, and some are left out there.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub(super) struct Counts {
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    cache_creation_input_tokens: Option<u64>,
    cache_read_input_tokens: Option<u64>,
}

impl Counts {
    fn update(&mut self, later: Counts) {
        self.input_tokens = later.input_tokens.or(self.input_tokens);
        self.output_tokens = later.output_tokens.or(self.output_tokens);
        self.cache_creation_input_tokens = later
            .cache_creation_input_tokens
            .or(self.cache_creation_input_tokens);
        self.cache_read_input_tokens = later
            .cache_read_input_tokens
            .or(self.cache_read_input_tokens);
    }

    /// The same as our usage: here the API's three kinds of input are one.
    pub(super) fn usage(self) -> Usage {
        let cache_read_tokens = self.cache_read_input_tokens.unwrap_or(0);
        let cache_write_tokens = self.cache_creation_input_tokens.unwrap_or(0);
        let fresh = self.input_tokens.unwrap_or(0);
        Usage {
            input_tokens: fresh
                .saturating_add(cache_read_tokens)
                .saturating_add(cache_write_tokens),
            output_tokens: self.output_tokens.unwrap_or(0),
            cache_read_tokens,
            cache_write_tokens,
            cost_microusd: None,
        }
    }
}

/// Reads the stream to its `message_stop`; without one there is no answer.
async fn read(mut events: Events, mut answer: Answer<'_>) -> Result<Completion, Outcome> {
    let mut model = None;
    let mut counts = Counts::default();
    let mut stop_reason = None;
    loop {
        match http::parse(&events.next().await?)? {
            StreamEvent::MessageStart { message } => {
                model = message.model;
                counts.update(message.usage.unwrap_or_default());
            }
            StreamEvent::ContentBlockDelta { delta } => {
                answer.push(delta.text.as_deref().unwrap_or_default())?;
            }
            StreamEvent::MessageDelta { delta, usage } => {
                stop_reason = delta.stop_reason.or(stop_reason);
                counts.update(usage.unwrap_or_default());
            }
            StreamEvent::MessageStop => {
                let usage = counts.usage();
                return Ok(Completion {
                    text: answer.into_text(),
                    model,
                    stop_reason,
                    usage,
                });
            }
            StreamEvent::Error { error } => {
                let error = ApiError::from_value(&json!({ "error": error }));
                return Err(judge(&error, &HeaderMap::new(), clock::now()));
            }
            StreamEvent::Other => {}
        }
    }
}

/// Whether `message` says that the account's money is used up, in the words of the API.
pub(super) fn is_low_credit(message: &str) -> bool {
    message.contains("credit balance is too low") || message.contains("Credit balance is too low")
}

/// Whether `message` says that a long context costs extra on this plan. It comes as a 429, but
/// no waiting helps (anthropics/claude-code#29584 and #64982).
pub(super) fn is_extra_usage_required(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    (message.contains("extra usage") || message.contains("usage credits"))
        && message.contains("required")
}

/// The outcome of a spend limit that a user has set: a 400 with the words "You have reached your
/// specified API usage limits. You will regain access on 2026-12-01 at 00:00 UTC."
/// (anthropics/claude-code#2127).
pub(super) fn spend_limit(message: &str, now: Time) -> Option<Outcome> {
    message
        .contains("specified API usage limits")
        .then(|| Outcome::Throttled {
            until: limits::regain_access(message)
                .and_then(|until| limits::plausible(until, now))
                .or_else(|| limits::next_month(now)),
            throttle: ThrottleKind::SpendCap,
            detail: message.to_owned(),
        })
}

/// The outcome of an error of the API, as an answer or in the middle of a stream.
fn judge(error: &ApiError, headers: &HeaderMap, now: Time) -> Outcome {
    let detail = error.detail();
    let message = error.message.as_str();
    // In a stream the type stands for the status that the answer would have had.
    let status = error.status.unwrap_or(match error.kind.as_str() {
        "authentication_error" => 401,
        "billing_error" => 402,
        "permission_error" => 403,
        "invalid_request_error" => 400,
        "not_found_error" => 404,
        "request_too_large" => 413,
        "rate_limit_error" => 429,
        "overloaded_error" => 529,
        _ => 500,
    });
    if status == 400
        && let Some(outcome) = spend_limit(message, now)
    {
        return outcome;
    }
    let retry_after = limits::retry_after(headers, now);
    match status {
        400 if is_low_credit(message) => Outcome::OutOfCredit { detail },
        400 if message.contains("organization has been disabled") => Outcome::AuthFailed { detail },
        400 if message.contains("prompt is too long") => {
            Outcome::rejected("prompt_too_long", detail)
        }
        401 | 403 => Outcome::AuthFailed { detail },
        402 => Outcome::OutOfCredit { detail },
        408 | 409 => Outcome::failed(&error.stable_code(&error.kind), detail),
        429 if is_extra_usage_required(message) => {
            Outcome::rejected("extra_usage_required", detail)
        }
        // The limit on spend of the organization itself says so and names no wait: it ends with
        // the month.
        429 if retry_after.is_none() && error.code == "enforced_spend_limit_reached" => {
            let throttle = ThrottleKind::SpendCap;
            Outcome::Throttled {
                until: limits::next_month(now),
                throttle,
                detail,
            }
        }
        429 if let Some((throttle, until)) = limits::unified_rejection(headers, now) => {
            Outcome::Throttled {
                until: until.or(retry_after),
                throttle,
                detail,
            }
        }
        429 => {
            let until = retry_after.or_else(|| limits::anthropic_reset(headers, now));
            Outcome::Throttled {
                until,
                throttle: limits::kind(until, now),
                detail,
            }
        }
        503 | 529 => Outcome::Overloaded {
            until: retry_after,
            detail,
        },
        400..=499 => Outcome::rejected(&error.stable_code(&error.kind), detail),
        _ => Outcome::failed(&error.stable_code(&error.kind), detail),
    }
}
