//! OpenAI's chat completions, streamed, and the many servers that speak them.
//!
//! The servers differ, so what is asked for is little: events with deltas, and a `[DONE]` or a
//! finish reason at the end. The sources of the mapping are OpenAI's pages on errors and rate
//! limits; what other servers do is tolerated where it is unmistakable.

use std::time::Duration;

use reqwest::{
    Url,
    header::{AUTHORIZATION, HeaderMap},
};
use serde::Deserialize;
use serde_json::{Value, json};
use sluice_shared::{
    clock,
    config::HttpApi,
    domain::{Completion, Outcome, Request, ThrottleKind, Time, Usage},
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

const BASE_URL: &str = "https://api.openai.com";
/// How long usage and `[DONE]` may come after the finish reason: then the answer is whole.
const TAIL: Duration = Duration::from_secs(5);

/// An account at OpenAI's API or a server that speaks it.
#[derive(Debug)]
pub struct OpenAi {
    endpoint: Endpoint,
    default_model: Option<String>,
    max_tokens: Option<u32>,
    /// Whether it is OpenAI itself.
    is_openai: bool,
    key_source: Option<String>,
    max_output_bytes: usize,
    pub(super) secrets: Secrets,
}

impl OpenAi {
    pub(super) fn build(account: &Account<'_>, settings: &HttpApi) -> Result<Self, BuildError> {
        let key = credential::resolve(account, &API_KEY, &settings.credential)?;
        let mut headers = HeaderMap::new();
        if let Some(key) = &key {
            let value = http::secret_header("Bearer ", key).ok_or_else(|| {
                account.error(
                    "api_key",
                    "has characters that no key has; see how it was copied",
                )
            })?;
            headers.insert(AUTHORIZATION, value);
        }
        let base = match &settings.base_url {
            Some(url) => url.clone(),
            None => Url::parse(BASE_URL)
                .map_err(|error| account.error("base_url", error.to_string()))?,
        };
        Ok(Self {
            endpoint: Endpoint::build(account, base, headers)?,
            default_model: account.default_model(),
            max_tokens: settings.max_tokens,
            is_openai: settings.base_url.is_none(),
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
        match self.endpoint.post(&["chat", "completions"], body).await? {
            Ok(events) => {
                answer.learn(limits::openai_figures(events.headers(), clock::now()));
                read(events, answer).await
            }
            Err(refusal) => {
                let now = clock::now();
                answer.learn(limits::openai_figures(&refusal.headers, now));
                Err(judge(&refusal.error, &refusal.headers, now))
            }
        }
    }

    /// The request: the job's parameters as they are, under what is ours to say.
    fn body(&self, request: &Request) -> Result<Vec<u8>, Outcome> {
        let model = request.model.as_ref().or(self.default_model.as_ref());
        // A self-hosted server often has one model and asks for no name.
        if model.is_none() && self.is_openai {
            return Err(Outcome::rejected(
                "model_required",
                "the job names no model and the account has no default_model",
            ));
        }
        let system = request
            .system
            .iter()
            .map(|text| json!({"role": "system", "content": text}));
        let turns = request
            .messages
            .iter()
            .map(|message| json!({"role": message.role, "content": message.content}));
        let mut body = params::for_openai(request.params.clone());
        // OpenAI's newer models refuse the old name; other servers may not know the new one.
        let names = ["max_completion_tokens", "max_tokens"];
        if let Some(max_tokens) = self.max_tokens
            && !names.iter().any(|name| body.contains_key(*name))
        {
            body.insert("max_tokens".into(), max_tokens.into());
        }
        if self.is_openai
            && let [new, old] = names
            && let Some(max_tokens) = body.remove(old)
        {
            body.entry(new).or_insert(max_tokens);
        }
        if let Some(model) = model {
            body.insert("model".into(), model.as_str().into());
        }
        body.insert("messages".into(), system.chain(turns).collect());
        body.insert("stream".into(), true.into());
        body.insert("stream_options".into(), json!({"include_usage": true}));
        serde_json::to_vec(&body).map_err(|error| Outcome::failed("internal", error.to_string()))
    }
}

#[derive(Deserialize)]
struct Chunk {
    model: Option<String>,
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Counts>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    index: u32,
    #[serde(default)]
    delta: Delta,
    finish_reason: Option<String>,
}

/// Some servers send content that is no text (parts, `null`); only text is an answer.
#[derive(Default, Deserialize)]
struct Delta {
    #[serde(default)]
    content: Value,
    #[serde(default)]
    refusal: Value,
}

#[derive(Clone, Copy, Default, Deserialize)]
struct Counts {
    #[serde(default)]
    prompt_tokens: u64,
    #[serde(default)]
    completion_tokens: u64,
    prompt_tokens_details: Option<PromptDetails>,
}

#[derive(Clone, Copy, Default, Deserialize)]
struct PromptDetails {
    cached_tokens: Option<u64>,
}

/// Reads the stream to `[DONE]`, or to its end when a finish reason has come before.
async fn read(mut events: Events, mut answer: Answer<'_>) -> Result<Completion, Outcome> {
    let mut model = None;
    let mut stop_reason: Option<String> = None;
    let mut refused = false;
    let mut counts = Counts::default();
    loop {
        let event = if stop_reason.is_some() {
            match tokio::time::timeout(TAIL, events.next()).await {
                Ok(Ok(event)) => event,
                // The answer is whole; only the usage may be missing.
                Ok(Err(_)) | Err(_) => break,
            }
        } else {
            events.next().await?
        };
        if event.data.trim() == "[DONE]" {
            break;
        }
        let chunk: Chunk = http::parse(&event)?;
        if let Some(error) = chunk.error.filter(|error| !error.is_null()) {
            let error = ApiError::from_value(&json!({ "error": error }));
            return Err(judge(&error, &HeaderMap::new(), clock::now()));
        }
        model = chunk.model.or(model);
        counts = chunk.usage.unwrap_or(counts);
        // With the parameter `n` there are more; one job has one answer.
        for choice in chunk.choices.into_iter().filter(|choice| choice.index == 0) {
            answer.push(choice.delta.content.as_str().unwrap_or_default())?;
            if let Some(refusal) = choice.delta.refusal.as_str() {
                refused = true;
                answer.push(refusal)?;
            }
            stop_reason = choice.finish_reason.or(stop_reason);
        }
    }
    if refused {
        stop_reason = Some("refusal".into());
    }
    let details = counts.prompt_tokens_details.unwrap_or_default();
    let usage = Usage {
        input_tokens: counts.prompt_tokens,
        output_tokens: counts.completion_tokens,
        cache_read_tokens: details.cached_tokens.unwrap_or(0),
        ..Usage::default()
    };
    Ok(Completion {
        text: answer.into_text(),
        model,
        stop_reason,
        usage,
    })
}

/// The outcome of an error of the API, as an answer or in the middle of a stream.
fn judge(error: &ApiError, headers: &HeaderMap, now: Time) -> Outcome {
    let detail = error.detail();
    let code = if error.code.is_empty() {
        &error.kind
    } else {
        &error.code
    };
    let is = |name: &str| error.kind == name || error.code == name;
    let spend_cap = |detail| Outcome::Throttled {
        until: limits::next_month(now),
        throttle: ThrottleKind::SpendCap,
        detail,
    };
    let retry_after = limits::retry_after(headers, now);
    // Money first: it comes as a 429 like any other, and no waiting helps.
    match error.code.as_str() {
        "organization_spend_limit_exceeded"
        | "project_spend_limit_exceeded"
        | "organization_usage_limit_exceeded"
        | "billing_hard_limit_reached" => return spend_cap(detail),
        "credit_balance_exhausted" => return Outcome::OutOfCredit { detail },
        _ if is("insufficient_quota") => return Outcome::OutOfCredit { detail },
        _ => {}
    }
    // In a stream the code stands for the status that the answer would have had.
    let status = error.status.unwrap_or(match code.as_str() {
        "invalid_api_key" | "authentication_error" => 401,
        "rate_limit_exceeded" | "rate_limit_error" | "tokens" | "requests" => 429,
        "slow_down" | "overloaded_error" | "server_overloaded" => 503,
        "invalid_request_error" | "context_length_exceeded" | "content_filter" => 400,
        "model_not_found" => 404,
        _ => 500,
    });
    match status {
        // A model that the project may not use is no fault of the key
        // (Aider-AI/aider#1903: 403 with the code model_not_found).
        403 if is("model_not_found") => Outcome::rejected("model_not_found", detail),
        401 | 403 => Outcome::AuthFailed { detail },
        402 => Outcome::OutOfCredit { detail },
        408 | 409 => Outcome::failed(&error.stable_code(code), detail),
        429 => {
            let until = retry_after.or_else(|| limits::openai_reset(headers, now));
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
        400..=499 => Outcome::rejected(&error.stable_code(code), detail),
        _ => Outcome::failed(&error.stable_code(code), detail),
    }
}
