//! An answer as OpenAI's API gives it. Pure.

use serde_json::{Value, json};
use sluice_shared::domain::{Completion, Usage};

use crate::http::gateway::run::Running;

/// What every part of an answer names.
#[derive(Clone, Debug)]
pub(super) struct Names {
    pub(super) id: String,
    /// Seconds since 1970.
    pub(super) created: i64,
    /// The model that was asked for.
    pub(super) model: String,
}

impl Names {
    pub(super) fn new(running: &Running, model: String) -> Self {
        Self {
            id: format!("chatcmpl-{}", running.job.0.simple()),
            created: running.since.as_millis() / 1000,
            model,
        }
    }
}

/// The whole of an answer.
pub(super) fn whole(names: &Names, answer: &Completion) -> Value {
    let refused = answer.stop_reason.as_deref() == Some("refusal");
    let (content, refusal) = if refused {
        (None, Some(&answer.text))
    } else {
        (Some(&answer.text), None)
    };
    json!({
        "id": names.id,
        "object": "chat.completion",
        "created": names.created,
        "model": answer.model.as_ref().unwrap_or(&names.model),
        "choices": [{
            "index": 0,
            "message": {"role": "assistant", "content": content, "refusal": refusal},
            "logprobs": null,
            "finish_reason": finish_reason(answer),
        }],
        "usage": usage(answer.usage),
    })
}

/// One piece of a streamed answer.
pub(super) fn chunk(names: &Names, delta: &Value, finish_reason: Option<&str>) -> Value {
    json!({
        "id": names.id,
        "object": "chat.completion.chunk",
        "created": names.created,
        "model": names.model,
        "choices": [{
            "index": 0,
            "delta": delta,
            "logprobs": null,
            "finish_reason": finish_reason,
        }],
    })
}

/// The last piece of a streamed answer, for a caller that asks for it.
pub(super) fn usage_chunk(names: &Names, answer: &Completion) -> Value {
    json!({
        "id": names.id,
        "object": "chat.completion.chunk",
        "created": names.created,
        "model": answer.model.as_ref().unwrap_or(&names.model),
        "choices": [],
        "usage": usage(answer.usage),
    })
}

/// Why the model stopped, in OpenAI's words, whatever the provider's were.
pub(super) fn finish_reason(answer: &Completion) -> &'static str {
    match answer.stop_reason.as_deref() {
        Some("length" | "max_tokens" | "model_context_window_exceeded") => "length",
        Some("content_filter" | "refusal") => "content_filter",
        _ => "stop",
    }
}

fn usage(used: Usage) -> Value {
    json!({
        "prompt_tokens": used.input_tokens,
        "completion_tokens": used.output_tokens,
        "total_tokens": used.input_tokens.saturating_add(used.output_tokens),
        "prompt_tokens_details": {"cached_tokens": used.cache_read_tokens},
    })
}
