//! `POST /v1/messages`.

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
pub(super) struct Asked {
    pub(super) job: NewJob,
    model: String,
    streamed: bool,
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
        stream::answer(Follow::new(running)?, names).await?
    } else {
        let completion = running.answer().await?;
        Json(answer::whole(&names, &completion)).into_response()
    };
    response.extensions_mut().insert(job);
    Ok(response)
}

/// Parameters whose effect would be lost on the way back.
const NOT_CARRIED: [(&str, &str); 5] = [
    ("tools", "tools are not carried"),
    ("tool_choice", "tools are not carried"),
    ("mcp_servers", "tools are not carried"),
    ("container", "tools are not carried"),
    ("context_management", "it is not carried"),
];

/// What a request asks for: the conversation, what is ours, and the rest for the provider.
pub(super) fn ask(mut fields: Fields) -> Result<Asked, Fault> {
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
    if let Some(system) = fields.take("system") {
        job.system = Some(text("system", system, "\n\n")?);
    }
    let streamed = fields.flag("stream")?;
    for (name, why) in NOT_CARRIED {
        if fields.take(name).is_some() {
            return Err(Fault::unsupported(name, why));
        }
    }
    if let Some(thinking) = fields.take("thinking")
        && thinking["type"] != "disabled"
    {
        return Err(Fault::unsupported("thinking", "thoughts are not carried"));
    }
    job.params = fields.rest();
    Ok(Asked {
        job,
        model: model.unwrap_or_default(),
        streamed,
    })
}

/// One message of the conversation.
fn turn(path: &str, message: Value) -> Result<Message, Fault> {
    let mut fields = Fields::of(path, message)?;
    let at = |name: &str| format!("{path}.{name}");
    let role = fields.text("role")?.ok_or_else(|| missing(&at("role")))?;
    let role = match role.as_str() {
        "user" => Role::User,
        "assistant" => Role::Assistant,
        other => {
            let why = format!("is `{}`, expected user or assistant", clip(other));
            return Err(Fault::invalid(at("role"), why));
        }
    };
    let content = fields.take("content");
    let content = content.ok_or_else(|| missing(&at("content")))?;
    fields.none_left(path)?;
    Ok(Message {
        role,
        content: text(&at("content"), content, "")?,
    })
}

/// Content that is text, whole or in blocks.
fn text(path: &str, content: Value, between: &str) -> Result<String, Fault> {
    let blocks = match content {
        Value::String(text) => return Ok(text),
        Value::Array(blocks) => blocks,
        other => return Err(wrong(path, "a string or an array", &other)),
    };
    let texts: Vec<String> = blocks
        .into_iter()
        .enumerate()
        .map(|(index, block)| {
            let path = format!("{path}[{index}]");
            let mut fields = Fields::of(&path, block)?;
            let kind = fields.text("type")?.unwrap_or_default();
            if kind != "text" {
                let why = format!("`{}` is not carried; only text is", clip(&kind));
                return Err(Fault::unsupported(format!("{path}.type"), why));
            }
            let text = fields.text("text")?;
            // What a client hands back of an earlier answer.
            fields.take("citations");
            fields.none_left(&path)?;
            text.ok_or_else(|| missing(&format!("{path}.text")))
        })
        .collect::<Result<_, _>>()?;
    Ok(texts.join(between))
}
