//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use serde_json::Value;
use sluice_shared::{
    api::NewJob,
    domain::{Message, Role},
};

use super::{
    Refusal,
    answer::{self, Names},
    stream,
};
use crate::http::{
    Edge,
    extract::Caller,
    gateway::{
        fault::Fault,
        fields::{Fields, missing, wrong},
        headers::OfJob,
        live::Follow,
        options,
        run::{self, Running},
    },
    problem::{ApiError, clip},
};

/// What a call asks for.
#[derive(Debug)]
struct Asked {
    job: NewJob,
    model: String,
    streamed: bool,
    include_usage: bool,
}

/// Runs a conversation as a job, and answers when it has ended or as it is written.
pub(in crate::http) async fn create(
    State(edge): State<Arc<Edge>>,
    caller: Result<Caller, ApiError>,
    request: Request,
) -> Result<Response, Refusal> {
    let caller = caller?;
    let (parts, body) = request.into_parts();
    let asked = ask(run::read(&edge, &caller, &parts, body).await?)?;
    let mut running = Running::submit(&edge, &caller, &parts.headers, asked.job).await?;
    let names = Names::new(&running, asked.model);
    let job = OfJob(running.job);
    let mut response = if asked.streamed {
        stream::answer(Follow::new(running)?, names, asked.include_usage).await?
    } else {
        let completion = running.answer().await?;
        Json(answer::whole(&names, &completion)).into_response()
    };
    response.extensions_mut().insert(job);
    Ok(response)
}

/// Parameters whose effect would be lost on the way back.
const NOT_CARRIED: [(&str, &str); 7] = [
    ("audio", "audio is not carried"),
    ("functions", "functions are not carried"),
    ("function_call", "functions are not carried"),
    ("tools", "tools are not carried"),
    ("tool_choice", "tools are not carried"),
    (
        "web_search_options",
        "the sources of an answer are not carried",
    ),
    ("top_logprobs", "probabilities are not carried"),
];

/// What a request asks for: the conversation, what is ours, and the rest for the provider.
fn ask(mut fields: Fields) -> Result<Asked, Fault> {
    let mut job = options::job(&mut fields)?;
    let model = job.model.clone().or_else(|| job.models.first().cloned());
    let messages = fields
        .array("messages")?
        .ok_or_else(|| missing("messages"))?;
    let messages: Vec<Message> = messages
        .into_iter()
        .enumerate()
        .map(|(index, message)| turn(&format!("messages[{index}]"), message))
        .collect::<Result<_, _>>()?;
    if messages.is_empty() {
        return Err(Fault::invalid("messages", "is empty"));
    }
    job.messages = Some(messages);
    let streamed = fields.flag("stream")?;
    let mut include_usage = false;
    if let Some(mut stream) = fields.object("stream_options")? {
        include_usage = stream.flag("include_usage")?;
        // Padding that hides how long each piece is; there is none here.
        stream.flag("include_obfuscation")?;
        stream.none_left("stream_options")?;
    }
    notes(&mut fields, &mut job)?;
    for (name, why) in NOT_CARRIED {
        if fields.take(name).is_some() {
            return Err(Fault::unsupported(name, why));
        }
    }
    if fields.flag("logprobs")? {
        return Err(Fault::unsupported(
            "logprobs",
            "probabilities are not carried",
        ));
    }
    match fields.take("n") {
        None => {}
        Some(Value::Number(n)) if n.as_u64() == Some(1) => {}
        Some(_) => return Err(Fault::unsupported("n", "a call has one answer")),
    }
    let modalities = fields.array("modalities")?.unwrap_or_default();
    if modalities.iter().any(|modality| modality != "text") {
        return Err(Fault::unsupported("modalities", "answers are text"));
    }
    job.params = fields.rest();
    Ok(Asked {
        job,
        model: model.unwrap_or_default(),
        streamed,
        include_usage,
    })
}

/// The caller's own notes are those of the job.
pub(super) fn notes(fields: &mut Fields, job: &mut NewJob) -> Result<(), Fault> {
    if let Some(notes) = fields.take("metadata") {
        job.metadata = serde_json::from_value(notes)
            .map_err(|error| Fault::invalid("metadata", error.to_string()))?;
    }
    Ok(())
}

/// One message of the conversation.
pub(super) fn turn(path: &str, message: Value) -> Result<Message, Fault> {
    let mut fields = Fields::of(path, message)?;
    let at = |name: &str| format!("{path}.{name}");
    let role = match fields
        .needed_text("role")
        .map_err(|_| missing(&at("role")))?
        .as_str()
    {
        "system" | "developer" => Role::System,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        "tool" | "function" => {
            return Err(Fault::unsupported(at("role"), "tools are not carried"));
        }
        other => {
            return Err(Fault::invalid(at("role"), format!("is `{}`", clip(other))));
        }
    };
    let content = match (fields.take("content"), fields.take("refusal")) {
        (Some(content), _) => text(&at("content"), content)?,
        (None, Some(Value::String(refusal))) => refusal,
        (None, _) => return Err(missing(&at("content"))),
    };
    // What a client hands back of an earlier answer; it says nothing.
    fields.take("annotations");
    fields.none_left(path)?;
    Ok(Message { role, content })
}

/// Content that is text, whole or in parts.
fn text(path: &str, content: Value) -> Result<String, Fault> {
    let parts = match content {
        Value::String(text) => return Ok(text),
        Value::Array(parts) => parts,
        other => return Err(wrong(path, "a string or an array", &other)),
    };
    let mut whole = String::new();
    for (index, part) in parts.into_iter().enumerate() {
        let path = format!("{path}[{index}]");
        let mut fields = Fields::of(&path, part)?;
        let kind = fields.text("type")?.unwrap_or_default();
        let field = match kind.as_str() {
            "text" | "input_text" | "output_text" => "text",
            "refusal" => "refusal",
            other => {
                let why = format!("`{}` is not carried; only text is", clip(other));
                return Err(Fault::unsupported(format!("{path}.type"), why));
            }
        };
        let text = fields
            .needed_text(field)
            .map_err(|_| missing(&format!("{path}.{field}")))?;
        whole.push_str(&text);
    }
    Ok(whole)
}
