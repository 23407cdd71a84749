//! An answer as Anthropic's API gives it. Pure.

use serde_json::{Value, json};
use sluice_shared::domain::{Completion, Usage};

use crate::http::gateway::run::Running;

/// What an answer names.
#[derive(Clone, Debug)]
pub(super) struct Names {
    pub(super) id: String,
    /// The model that was asked for.
    pub(super) model: String,
}

impl Names {
    pub(super) fn new(running: &Running, model: String) -> Self {
        Self {
            id: format!("msg_{}", running.job.0.simple()),
            model,
        }
    }
}

/// The whole of an answer.
pub(super) fn whole(names: &Names, answer: &Completion) -> Value {
    json!({
        "id": names.id,
        "type": "message",
        "role": "assistant",
        "model": answer.model.as_ref().unwrap_or(&names.model),
        "content": [{"type": "text", "text": answer.text}],
        "stop_reason": stop_reason(answer),
        "stop_sequence": null,
        "usage": usage(answer.usage),
    })
}

/// The beginning of a streamed answer. What it will use is not known yet.
pub(super) fn start(names: &Names) -> Value {
    json!({
        "id": names.id,
        "type": "message",
        "role": "assistant",
        "model": names.model,
        "content": [],
        "stop_reason": null,
        "stop_sequence": null,
        "usage": usage(Usage::default()),
    })
}

/// Why the model stopped, in Anthropic's words, whatever the provider's were.
pub(super) fn stop_reason(answer: &Completion) -> &str {
    match answer.stop_reason.as_deref() {
        Some("length" | "max_tokens") => "max_tokens",
        Some("content_filter" | "refusal") => "refusal",
        Some(own @ ("stop_sequence" | "pause_turn" | "model_context_window_exceeded")) => own,
        _ => "end_turn",
    }
}

/// Cached tokens stand apart from the others here.
pub(super) fn usage(used: Usage) -> Value {
    let cached = used
        .cache_read_tokens
        .saturating_add(used.cache_write_tokens);
    json!({
        "input_tokens": used.input_tokens.saturating_sub(cached),
        "output_tokens": used.output_tokens,
        "cache_creation_input_tokens": used.cache_write_tokens,
        "cache_read_input_tokens": used.cache_read_tokens,
    })
}
