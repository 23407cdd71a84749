//! What batches of OpenAI's and Anthropic's APIs have in common: their conversations become jobs.

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
};

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use sluice_shared::{
    api::NewJob,
    domain::{JobId, Message, Role, Time},
};

use super::{
    batches::upload::Wrong,
    problem::{Code, clip},
    submit::{self, Rules},
};
use crate::store::NewRow;

/// The note by which a job keeps its `custom_id`.
pub(super) const CUSTOM_ID: &str = "custom_id";

/// Longest `custom_id`.
const MOST_ID: usize = 512;

/// Parameters whose effect would be lost on the way back.
const NOT_CARRIED: [&str; 9] = [
    "audio",
    "functions",
    "function_call",
    "tools",
    "tool_choice",
    "mcp_servers",
    "container",
    "logprobs",
    "stream",
];

/// The ids that an upload has used so far, as digests: each may come once.
#[derive(Debug, Default)]
pub(super) struct Seen(Mutex<HashSet<[u8; 16]>>);

impl Seen {
    /// The id of a line, which must be there, short, and new.
    pub(super) fn custom_id(&self, line: &mut Map<String, Value>) -> Result<String, Wrong> {
        let id = match line.remove(CUSTOM_ID) {
            Some(Value::String(id)) if (1..=MOST_ID).contains(&id.chars().count()) => id,
            _ => return Err(wrong(CUSTOM_ID, "must be a text of 1 to 512 characters")),
        };
        let mut short = [0; 16];
        short.copy_from_slice(&Sha256::digest(&id)[..16]);
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.insert(short) {
            Ok(id)
        } else {
            Err(wrong(CUSTOM_ID, &format!("`{}` came before", clip(&id))))
        }
    }
}

/// A line as an object.
pub(super) fn object(line: &[u8]) -> Result<Map<String, Value>, Wrong> {
    match serde_json::from_slice(line) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(wrong("body", "expected an object")),
        Err(error) => {
            let words = error.to_string().replace(" at line 1 column", " at column");
            Err(wrong("body", &format!("is no JSON: {words}")))
        }
    }
}

/// The job of a conversation, which does not begin after `expires_at`.
pub(super) fn job(
    mut asked: Map<String, Value>,
    custom_id: String,
    expires_at: Time,
    rules: &Rules<'_>,
) -> Result<NewRow, Wrong> {
    for name in NOT_CARRIED {
        let set = asked
            .remove(name)
            .is_some_and(|value| !matches!(value, Value::Null | Value::Bool(false)));
        if set {
            return Err(wrong(name, "is not carried by batches"));
        }
    }
    let model = match asked.remove("model") {
        Some(Value::String(model)) => Some(model),
        _ => return Err(wrong("model", "must be the name of a model")),
    };
    let messages = match asked.remove("messages") {
        Some(Value::Array(messages)) => messages,
        _ => return Err(wrong("messages", "must be an array")),
    };
    let messages = messages
        .into_iter()
        .enumerate()
        .map(|(index, message)| turn(index, message))
        .collect::<Result<Vec<_>, _>>()?;
    let system = asked
        .remove("system")
        .map(|system| text("system", system))
        .transpose()?;
    let mut job = NewJob {
        messages: Some(messages),
        system,
        model,
        expires_at: Some(expires_at),
        ..NewJob::default()
    };
    if let Some(notes) = asked.remove("metadata").filter(|notes| !notes.is_null()) {
        job.metadata = serde_json::from_value(notes)
            .map_err(|_| wrong("metadata", "must be an object of texts"))?;
    }
    job.metadata.insert(CUSTOM_ID.into(), custom_id);
    job.params = asked;
    submit::row(job, JobId::generate(), rules).map_err(Wrong::from)
}

fn turn(index: usize, message: Value) -> Result<Message, Wrong> {
    let at = |name: &str| format!("messages[{index}].{name}");
    let Value::Object(mut message) = message else {
        return Err(wrong(&format!("messages[{index}]"), "must be an object"));
    };
    let role = match message.get("role").and_then(Value::as_str) {
        Some("system" | "developer") => Role::System,
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        _ => return Err(wrong(&at("role"), "must be system, user or assistant")),
    };
    let content = message.remove("content").unwrap_or(Value::Null);
    Ok(Message {
        role,
        content: text(&at("content"), content)?,
    })
}

/// Content that is text, whole or in parts.
fn text(path: &str, content: Value) -> Result<String, Wrong> {
    let parts = match content {
        Value::String(text) => return Ok(text),
        Value::Array(parts) => parts,
        _ => return Err(wrong(path, "must be a text or parts of the type text")),
    };
    let mut whole = String::new();
    for part in &parts {
        match (part["type"].as_str(), part["text"].as_str()) {
            (Some("text"), Some(text)) => whole.push_str(text),
            _ => return Err(wrong(path, "must be a text or parts of the type text")),
        }
    }
    Ok(whole)
}

pub(super) fn wrong(field: &str, detail: &str) -> Wrong {
    Wrong {
        code: Code::InvalidJob,
        detail: format!("{field}: {detail}"),
    }
}
