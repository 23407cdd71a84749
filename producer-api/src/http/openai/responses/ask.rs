//! What a call for a response asks for. Pure.

use serde_json::{Value, json};
use sluice_shared::{
    api::NewJob,
    domain::{Message, Role},
};

use crate::http::{
    gateway::{
        fault::Fault,
        fields::{Fields, missing, wrong},
        options,
    },
    openai::chat,
};

/// A call for a response.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) job: NewJob,
    pub(super) model: String,
    pub(super) background: bool,
    pub(super) streamed: bool,
}

/// Parameters that have no meaning for a provider of chat completions, or whose effect would be
/// lost on the way back.
const NOT_CARRIED: [(&str, &str); 8] = [
    ("tools", "tools are not carried"),
    ("tool_choice", "tools are not carried"),
    ("max_tool_calls", "tools are not carried"),
    (
        "previous_response_id",
        "give the whole conversation as input",
    ),
    ("conversation", "give the whole conversation as input"),
    ("prompt", "prompts that are kept elsewhere are not carried"),
    ("top_logprobs", "probabilities are not carried"),
    ("context_management", "it is not carried"),
];

pub(super) fn ask(mut fields: Fields) -> Result<Asked, Fault> {
    let background = fields.flag("background")?;
    let streamed = fields.flag("stream")?;
    if background && streamed {
        let why = "a response in the background is not streamed; ask for it until it has ended";
        return Err(Fault::unsupported("stream", why));
    }
    let mut job = if background {
        options::background_job(&mut fields)?
    } else {
        options::job(&mut fields)?
    };
    let model = job.model.clone().or_else(|| job.models.first().cloned());
    job.system = fields.text("instructions")?;
    let input = fields.take("input").ok_or_else(|| missing("input"))?;
    job.messages = Some(messages(input)?);
    chat::notes(&mut fields, &mut job)?;
    // What is empty or off by itself asks for nothing.
    let tools = fields.array("tools")?.filter(|tools| !tools.is_empty());
    if tools.is_some() {
        return Err(Fault::unsupported("tools", "tools are not carried"));
    }
    fields.take("parallel_tool_calls");
    for (name, why) in NOT_CARRIED {
        match fields.take(name) {
            None => {}
            Some(Value::String(mode)) if name == "tool_choice" && mode == "auto" => {}
            Some(_) => return Err(Fault::unsupported(name, why)),
        }
    }
    if fields
        .array("include")?
        .is_some_and(|more| !more.is_empty())
    {
        return Err(Fault::unsupported("include", "an answer has its text only"));
    }
    if fields
        .text("truncation")?
        .is_some_and(|mode| mode != "disabled")
    {
        return Err(Fault::unsupported("truncation", "nothing is cut off"));
    }
    // Jobs are in the history in any case.
    fields.flag("store")?;
    if let Some(mut stream) = fields.object("stream_options")? {
        stream.flag("include_obfuscation")?;
        stream.none_left("stream_options")?;
    }
    rename(&mut fields, &mut job)?;
    job.params.extend(fields.rest());
    Ok(Asked {
        job,
        model: model.unwrap_or_default(),
        background,
        streamed,
    })
}

/// What chat completions call by another name.
fn rename(fields: &mut Fields, job: &mut NewJob) -> Result<(), Fault> {
    if let Some(most) = fields.take("max_output_tokens") {
        job.params.insert("max_completion_tokens".into(), most);
    }
    if let Some(mut reasoning) = fields.object("reasoning")? {
        if let Some(effort) = reasoning.take("effort") {
            job.params.insert("reasoning_effort".into(), effort);
        }
        reasoning.none_left("reasoning")?;
    }
    if let Some(mut text) = fields.object("text")? {
        if let Some(verbosity) = text.take("verbosity") {
            job.params.insert("verbosity".into(), verbosity);
        }
        if let Some(format) = text.take("format") {
            let format = match format["type"].as_str() {
                Some("text") => None,
                Some("json_schema") => {
                    let Value::Object(mut schema) = format else {
                        return Err(missing("text.format"));
                    };
                    schema.remove("type");
                    Some(json!({"type": "json_schema", "json_schema": schema}))
                }
                _ => Some(format),
            };
            if let Some(format) = format {
                job.params.insert("response_format".into(), format);
            }
        }
        text.none_left("text")?;
    }
    Ok(())
}

/// The conversation: a text, or messages.
fn messages(input: Value) -> Result<Vec<Message>, Fault> {
    let items = match input {
        Value::String(content) => {
            let role = Role::User;
            return Ok(vec![Message { role, content }]);
        }
        Value::Array(items) => items,
        other => return Err(wrong("input", "a string or an array", &other)),
    };
    if items.is_empty() {
        return Err(Fault::invalid("input", "is empty"));
    }
    items
        .into_iter()
        .enumerate()
        .map(|(index, item)| {
            let path = format!("input[{index}]");
            let mut fields = Fields::of(&path, item)?;
            let kind = fields.text("type")?.unwrap_or_else(|| "message".into());
            if kind != "message" {
                return Err(Fault::unsupported(
                    format!("{path}.type"),
                    format!("`{kind}` is not carried; only messages are"),
                ));
            }
            // What a client hands back of an earlier answer.
            for name in ["id", "status", "phase"] {
                fields.take(name);
            }
            chat::turn(&path, fields.rest().into())
        })
        .collect()
}
