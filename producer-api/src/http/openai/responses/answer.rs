//! A response as OpenAI's API gives it. Pure.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use sluice_shared::{
    api::JobView,
    domain::{Completion, JobId, State, Time, Usage},
};

/// What the id of every response begins with.
pub(super) const PREFIX: &str = "resp_";

/// What a response repeats of what was asked.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    pub(super) background: bool,
    pub(super) model: String,
    pub(super) instructions: Option<String>,
    pub(super) metadata: BTreeMap<String, String>,
    pub(super) params: Map<String, Value>,
}

/// A response that has no answer yet.
pub(super) fn begun(id: JobId, since: Time, known: &Known, status: &str) -> Value {
    json!({
        "id": format!("{PREFIX}{}", id.0.simple()),
        "object": "response",
        "created_at": since.as_millis() / 1000,
        "completed_at": null,
        "status": status,
        "background": known.background,
        "error": null,
        "incomplete_details": null,
        "instructions": known.instructions,
        "max_output_tokens": known.params.get("max_completion_tokens"),
        "metadata": known.metadata,
        "model": known.model,
        "output": [],
        "parallel_tool_calls": false,
        "previous_response_id": null,
        "temperature": known.params.get("temperature"),
        "top_p": known.params.get("top_p"),
        "tool_choice": "auto",
        "tools": [],
        "usage": null,
    })
}

/// A response with its answer.
pub(super) fn ended(id: JobId, since: Time, at: Time, known: &Known, answer: &Completion) -> Value {
    let mut response = begun(id, since, known, "completed");
    let reason = match answer.stop_reason.as_deref() {
        Some("length" | "max_tokens" | "model_context_window_exceeded") => {
            Some("max_output_tokens")
        }
        Some("content_filter") => Some("content_filter"),
        _ => None,
    };
    if let Some(reason) = reason {
        response["status"] = "incomplete".into();
        response["incomplete_details"] = json!({ "reason": reason });
    }
    if let Some(model) = &answer.model {
        response["model"] = model.as_str().into();
    }
    response["completed_at"] = (at.as_millis() / 1000).into();
    response["output"] = json!([message(id, answer)]);
    response["usage"] = usage(answer.usage);
    response
}

/// A response as its job says it.
pub(super) fn of(job: &JobView) -> Value {
    let request = job.request.as_ref();
    let text = |name: &str| {
        let text = request.and_then(|request| request[name].as_str());
        text.map(str::to_owned)
    };
    let params = request.and_then(|request| request["params"].as_object());
    let known = Known {
        background: true,
        model: job.model.clone().unwrap_or_default(),
        instructions: text("system"),
        metadata: job.metadata.clone(),
        params: params.cloned().unwrap_or_default(),
    };
    let since = job.created_at;
    if let Some(answer) = &job.result {
        let at = job.finished_at.unwrap_or(since);
        return ended(job.id, since, at, &known, answer);
    }
    let status = match job.state {
        State::Queued | State::Dispatched => "queued",
        State::Running => "in_progress",
        State::Cancelled => "cancelled",
        State::Succeeded | State::Failed | State::Expired => "failed",
    };
    let mut response = begun(job.id, since, &known, status);
    if status == "failed" {
        let message = job.error.as_ref().map(|error| error.message.as_str());
        response["error"] = json!({
            "code": "server_error",
            "message": message.unwrap_or("the job expired before it began"),
        });
    }
    response
}

/// The one message of an answer.
pub(super) fn message(id: JobId, answer: &Completion) -> Value {
    let part = if answer.stop_reason.as_deref() == Some("refusal") {
        json!({"type": "refusal", "refusal": answer.text})
    } else {
        part(&answer.text)
    };
    json!({
        "id": message_id(id),
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [part],
    })
}

/// A piece of text of a message.
pub(super) fn part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

pub(super) fn message_id(id: JobId) -> String {
    format!("msg_{}", id.0.simple())
}

fn usage(used: Usage) -> Value {
    json!({
        "input_tokens": used.input_tokens,
        "input_tokens_details": {
            "cached_tokens": used.cache_read_tokens,
            "cache_write_tokens": used.cache_write_tokens,
        },
        "output_tokens": used.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": used.input_tokens.saturating_add(used.output_tokens),
    })
}
