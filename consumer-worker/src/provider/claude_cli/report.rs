//! What the CLI says while it runs, line by line, and what that comes to.
//!
//! Neither the exit code nor `subtype` decides: an API error comes as `subtype: "success"`, and
//! a slash command that did nothing as exit code 0. What decides is, in this order: whether there
//! is a result at all, `is_error` with `num_turns`, a rejected `rate_limit_event`, the API's
//! status, the class of the error, and the CLI's words where nothing else tells.

use serde::Deserialize;
use serde_json::{Map, Value};
use sluice_shared::{
    clock,
    domain::{Completion, Figure, Outcome, ThrottleKind, Time, Usage},
};

use super::{
    super::{
        answer::Answer,
        anthropic::{Counts, is_extra_usage_required, is_low_credit, spend_limit},
        limits,
    },
    from_seconds,
};

/// One line; the kinds that say nothing to us are `Other`, new ones too.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Line {
    System {
        session_id: Option<String>,
    },
    StreamEvent {
        event: Value,
        parent_tool_use_id: Option<String>,
        session_id: Option<String>,
    },
    RateLimitEvent {
        rate_limit_info: RateLimit,
    },
    Assistant {
        error: Option<String>,
    },
    Result(Box<Verdict>),
    #[serde(other)]
    Other,
}

/// What a subscription's limits are at; the CLI tells it after an answer and with a refusal.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RateLimit {
    status: String,
    resets_at: Option<f64>,
    rate_limit_type: Option<String>,
    utilization: Option<f64>,
    is_using_overage: Option<bool>,
}

impl RateLimit {
    /// What it says, when it says which limit it is about.
    fn figure(&self, now: Time) -> Option<Figure> {
        Some(Figure {
            name: self.rate_limit_type.clone()?.chars().take(64).collect(),
            utilization: self.utilization.filter(|share| share.is_finite()),
            resets_at: self.resets_at.and_then(from_seconds),
            status: (!self.status.is_empty()).then(|| self.status.chars().take(64).collect()),
            heard_at: now,
            ..Figure::default()
        })
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Verdict {
    subtype: String,
    is_error: bool,
    api_error_status: Option<u16>,
    num_turns: u64,
    result: Option<String>,
    errors: Vec<String>,
    stop_reason: Option<String>,
    terminal_reason: Option<String>,
    total_cost_usd: Option<f64>,
    session_id: Option<String>,
    usage: Option<Counts>,
    #[serde(rename = "modelUsage")]
    model_usage: Map<String, Value>,
}

/// All that was said so far.
pub(super) struct Report<'a> {
    answer: Answer<'a>,
    model: Option<String>,
    limit: Option<RateLimit>,
    /// The class of the last error, such as `authentication_failed`.
    class: Option<String>,
    verdict: Option<Verdict>,
    conversation: Conversation,
    /// Something was said of another conversation than this one.
    strayed: bool,
}

/// The conversation that a process is in. One of its own, for a process that runs one prompt.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Conversation {
    /// The CLI's id of it; unknown until the CLI speaks.
    pub(super) id: Option<String>,
    /// What the process had cost before it, which the CLI counts on from, in dollars.
    pub(super) cost_before: f64,
}

impl<'a> Report<'a> {
    pub(super) fn new(answer: Answer<'a>) -> Self {
        Self {
            answer,
            model: None,
            limit: None,
            class: None,
            verdict: None,
            conversation: Conversation::default(),
            strayed: false,
        }
    }

    /// The same, of this conversation.
    pub(super) fn of(mut self, conversation: Conversation) -> Self {
        self.conversation = conversation;
        self
    }

    /// Whether the result was told.
    pub(super) fn is_over(&self) -> bool {
        self.verdict.is_some()
    }

    /// Whether something was told of another conversation.
    pub(super) fn has_strayed(&self) -> bool {
        self.strayed
    }

    /// The conversation with what is known of it now.
    pub(super) fn conversation(&self) -> Conversation {
        let total = self.verdict.as_ref().and_then(|told| told.total_cost_usd);
        Conversation {
            id: self.conversation.id.clone(),
            cost_before: total.unwrap_or(self.conversation.cost_before),
        }
    }

    fn said_in(&mut self, id: Option<String>) {
        match (&self.conversation.id, id) {
            (Some(known), Some(id)) => self.strayed |= *known != id,
            (None, Some(id)) => self.conversation.id = Some(id),
            (_, None) => {}
        }
    }

    /// Takes in one line. One that cannot be read says nothing; if it was the result, there is
    /// none.
    pub(super) fn line(&mut self, line: &[u8]) -> Result<(), Outcome> {
        match serde_json::from_slice(line) {
            Ok(Line::System { session_id }) => {
                self.said_in(session_id);
                Ok(())
            }
            // Deltas of a subagent are no part of the answer.
            Ok(Line::StreamEvent {
                event,
                parent_tool_use_id: None,
                session_id,
            }) => {
                self.said_in(session_id);
                self.event(&event)
            }
            Ok(Line::RateLimitEvent { rate_limit_info }) => {
                self.answer.learn(rate_limit_info.figure(clock::now()));
                self.limit = Some(rate_limit_info);
                Ok(())
            }
            Ok(Line::Assistant { error }) => {
                self.class = error.or(self.class.take());
                Ok(())
            }
            Ok(Line::Result(verdict)) => {
                self.said_in(verdict.session_id.clone());
                self.verdict = Some(*verdict);
                Ok(())
            }
            Ok(Line::StreamEvent { .. } | Line::Other) | Err(_) => Ok(()),
        }
    }

    /// An event of the API, as it is.
    fn event(&mut self, event: &Value) -> Result<(), Outcome> {
        if let Some(text) = event.pointer("/delta/text").and_then(Value::as_str) {
            self.answer.push(text)?;
        }
        if let Some(model) = event.pointer("/message/model").and_then(Value::as_str) {
            self.model = Some(model.to_owned());
        }
        Ok(())
    }

    /// That a window of the plan is nearly used up, if it said so with an answer.
    pub(super) fn warning(&self) -> Option<String> {
        let limit = self
            .limit
            .as_ref()
            .filter(|limit| limit.status == "allowed_warning")?;
        let kind = limit.rate_limit_type.as_deref().unwrap_or("unknown");
        let used = limit.utilization.unwrap_or_default() * 100.0;
        let resets = limit.resets_at.and_then(from_seconds);
        let resets = resets.map_or_else(String::new, |resets| format!(", resets at {resets}"));
        Some(format!(
            "the plan's {kind} limit is {used:.0} % used{resets}"
        ))
    }

    /// What it all comes to, with the exit code and standard error for people.
    pub(super) fn judge(self, code: i32, stderr: &str, now: Time) -> Outcome {
        let Some(verdict) = &self.verdict else {
            return Outcome::failed(
                "no_result",
                format!("claude ended with code {code} and gave no result: {stderr}"),
            );
        };
        if !verdict.is_error && verdict.subtype == "success" {
            return self.complete();
        }
        let words = verdict.words();
        self.limited(verdict, &words, now).unwrap_or_else(|| {
            let class = self.class.as_deref().unwrap_or_default();
            judge_error(verdict, class, words, now)
        })
    }

    fn complete(self) -> Outcome {
        let Some(verdict) = self.verdict else {
            return Outcome::failed("no_result", "");
        };
        let text = verdict.result.unwrap_or_default();
        // No call was made: the CLI took the prompt for a command of its own.
        if verdict.num_turns == 0 {
            return Outcome::failed("not_run", format!("the CLI did not ask the model: {text}"));
        }
        let mut answer = self.answer;
        if answer.is_empty()
            && let Err(too_large) = answer.push(&text)
        {
            return too_large;
        }
        let usage = verdict.usage.unwrap_or_default().usage();
        let cost = verdict
            .total_cost_usd
            .map(|total| (total - self.conversation.cost_before).max(0.0));
        Outcome::Completed(Completion {
            text,
            model: self
                .model
                .or_else(|| verdict.model_usage.keys().next().cloned()),
            stop_reason: verdict.stop_reason,
            usage: Usage {
                cost_microusd: cost.and_then(microusd),
                ..usage
            },
        })
    }

    /// The outcome of a limit of the plan, which the CLI tells by an event with the reset time.
    fn limited(&self, verdict: &Verdict, words: &str, now: Time) -> Option<Outcome> {
        let limit = self
            .limit
            .as_ref()
            .filter(|limit| limit.status == "rejected")?;
        // A used-up window with paid extra usage goes on; then the error is another one.
        if limit.is_using_overage == Some(true) && verdict.api_error_status != Some(429) {
            return None;
        }
        if !matches!(verdict.api_error_status, None | Some(429)) {
            return None;
        }
        let until = limit.resets_at.and_then(from_seconds)?;
        let throttle = limits::plan_limit(limit.rate_limit_type.as_deref());
        let until = limits::plausible(until, now);
        Some(Outcome::Throttled {
            until,
            throttle,
            detail: words.to_owned(),
        })
    }
}

impl Verdict {
    /// What it says, for people: errors of the CLI itself come apart from the result.
    fn words(&self) -> String {
        match &self.result {
            Some(result) if !result.is_empty() => result.clone(),
            _ if !self.errors.is_empty() => self.errors.join("; "),
            _ => self.subtype.clone(),
        }
    }
}

/// The outcome of an error that is not a known limit of the plan.
fn judge_error(verdict: &Verdict, class: &str, words: String, now: Time) -> Outcome {
    let lower = words.to_lowercase();
    let says = |part: &str| lower.contains(part);
    let terminal = verdict.terminal_reason.as_deref().unwrap_or_default();
    let detail = words.clone();
    if let Some(outcome) = judge_subtype(verdict, terminal, &detail) {
        return outcome;
    }
    if says("not your usage limit") {
        return Outcome::Throttled {
            until: None,
            throttle: ThrottleKind::Host,
            detail,
        };
    }
    if class == "billing_error" || verdict.api_error_status == Some(402) || is_low_credit(&words) {
        return Outcome::OutOfCredit { detail };
    }
    if let Some(outcome) = spend_limit(&words, now) {
        return outcome;
    }
    if is_extra_usage_required(&words) {
        return Outcome::rejected("extra_usage_required", detail);
    }
    if let Some(throttle) = throttle_by_words(&words) {
        let spend_cap = throttle == ThrottleKind::SpendCap && says("monthly");
        let until = if spend_cap {
            limits::next_month(now)
        } else {
            None
        };
        return Outcome::Throttled {
            until,
            throttle,
            detail,
        };
    }
    if matches!(class, "authentication_failed" | "oauth_org_not_allowed")
        || [
            "not logged in",
            "organization has been disabled",
            "is disabled for your org",
        ]
        .into_iter()
        .any(says)
    {
        return Outcome::AuthFailed { detail };
    }
    match verdict.api_error_status {
        Some(401 | 403) => Outcome::AuthFailed { detail },
        Some(429) => Outcome::Throttled {
            until: None,
            throttle: ThrottleKind::Burst,
            detail,
        },
        Some(503 | 529) => Outcome::Overloaded {
            until: None,
            detail,
        },
        Some(status @ (408 | 409 | 500..)) => Outcome::failed(&format!("http_{status}"), detail),
        Some(404) => Outcome::rejected("model_not_found", detail),
        Some(413) => Outcome::rejected("request_too_large", detail),
        Some(400..=499) => Outcome::rejected("invalid_request", detail),
        // Without a status: in the middle of a stream, or no connection at all.
        _ if class == "overloaded" || says("overloaded") => Outcome::Overloaded {
            until: None,
            detail,
        },
        _ if class == "rate_limit" => Outcome::Throttled {
            until: None,
            throttle: ThrottleKind::Burst,
            detail,
        },
        _ if says("timed out") => Outcome::failed("timeout", detail),
        _ if says("unable to connect") => Outcome::failed("connection", detail),
        _ if says("connection") => Outcome::failed("stream_cut", detail),
        _ if says("malformed") || says("parse json") => Outcome::failed("bad_response", detail),
        _ => Outcome::failed("api_error", detail),
    }
}

/// The outcome of what no second try would change, by the CLI's own names for it.
fn judge_subtype(verdict: &Verdict, terminal: &str, detail: &str) -> Option<Outcome> {
    let code = match (verdict.subtype.as_str(), terminal) {
        ("error_max_turns", _) => "max_turns",
        ("error_max_budget_usd", _) => "max_budget",
        ("error_max_structured_output_retries", _) => "no_structured_output",
        (_, "prompt_too_long" | "blocking_limit") => "prompt_too_long",
        (_, "image_error") => "request_too_large",
        _ if verdict.stop_reason.as_deref() == Some("refusal") => "refusal",
        _ if detail.contains("output token maximum") => "max_output_tokens",
        _ => return None,
    };
    Some(Outcome::rejected(code, detail))
}

/// The limit of a plan that only the words tell: an older CLI, or one without the reset time.
/// The prefixes are those in the CLI; a time in the words has no date and is left alone.
fn throttle_by_words(words: &str) -> Option<ThrottleKind> {
    let begins = |prefixes: &[&str]| prefixes.iter().any(|prefix| words.starts_with(prefix));
    if begins(&[
        "You're out of usage credits",
        "You're out of extra usage",
        "Your org is out of usage",
        "You've hit your monthly spend limit",
    ]) {
        return Some(ThrottleKind::SpendCap);
    }
    if begins(&["You've hit your", "You've reached your"]) {
        let of_a_model = ["Opus limit", "Sonnet limit", "Fable"];
        let of_a_model = of_a_model.into_iter().any(|name| words.contains(name));
        return Some(if of_a_model {
            ThrottleKind::Model
        } else {
            ThrottleKind::Window
        });
    }
    None
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "checked to be in range"
)]
fn microusd(dollars: f64) -> Option<u64> {
    let micro = (dollars * 1e6).round();
    (0.0..1e15).contains(&micro).then_some(micro as u64)
}

#[cfg(test)]
mod tests;
