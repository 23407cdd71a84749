//! The lines of a batch's output and error files.

use std::sync::Arc;

use serde_json::{Value, json};
use sluice_shared::domain::{Completion, State};

use crate::{
    http::{batches::results::Write, conversation::CUSTOM_ID, problem::ApiError},
    store::LineOutcome,
};

/// Writes those lines that have an answer, or those that have none.
pub(super) fn line(answered: bool) -> Write {
    Arc::new(move |_, outcome, page| {
        if outcome.answer.is_some() != answered {
            return Ok(());
        }
        serde_json::to_writer(&mut *page, &view(outcome)?).map_err(ApiError::internal)?;
        page.push(b'\n');
        Ok(())
    })
}

fn view(outcome: &LineOutcome) -> Result<Value, ApiError> {
    let notes: Value = serde_json::from_str(&outcome.metadata).map_err(ApiError::internal)?;
    let job = outcome
        .job
        .map_or(String::new(), |(job, _)| job.to_string());
    let mut line = json!({
        "id": format!("batch_req_{job}"),
        "custom_id": notes[CUSTOM_ID],
        "response": null,
        "error": null,
    });
    if let Some(answer) = &outcome.answer {
        let answer: Completion = serde_json::from_str(answer).map_err(ApiError::internal)?;
        line["response"] = json!({
            "status_code": 200,
            "request_id": job,
            "body": completion(outcome, &job, &answer),
        });
    } else {
        let (code, message) = outcome.error.clone().unwrap_or_default();
        let code = match outcome.job {
            Some((_, State::Expired)) => "batch_expired".into(),
            Some((_, State::Cancelled)) => "batch_cancelled".into(),
            _ => code,
        };
        line["error"] = json!({"code": code, "message": message});
    }
    Ok(line)
}

fn completion(outcome: &LineOutcome, job: &str, answer: &Completion) -> Value {
    let finish_reason = match answer.stop_reason.as_deref() {
        Some("max_tokens" | "length") => "length",
        Some("content_filter" | "refusal") => "content_filter",
        _ => "stop",
    };
    let used = answer.usage;
    json!({
        "id": format!("chatcmpl-{job}"),
        "object": "chat.completion",
        "created": outcome.finished_at.map_or(0, super::seconds),
        "model": answer.model,
        "choices": [{
            "index": 0,
            "message": {"role": "assistant", "content": answer.text, "refusal": null},
            "logprobs": null,
            "finish_reason": finish_reason,
        }],
        "usage": {
            "prompt_tokens": used.input_tokens,
            "completion_tokens": used.output_tokens,
            "total_tokens": used.input_tokens.saturating_add(used.output_tokens),
        },
    })
}
