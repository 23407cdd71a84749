//! What a job asks a provider to do.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Who speaks in a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// An instruction to the model. Providers with a separate system prompt get it there.
    System,
    /// The person or program that asks.
    User,
    /// The model.
    Assistant,
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said, as plain text.
    pub content: String,
}

/// One prompt with its options, as a worker hands it to a provider.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// The conversation; a bare prompt is one user message. Never empty.
    pub messages: Vec<Message>,
    /// The system prompt, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// The model asked for; the account's own default when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Provider parameters such as `max_tokens` or `temperature`, passed on as they are.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub params: serde_json::Map<String, serde_json::Value>,
}

impl Request {
    /// A request of one user message.
    #[must_use]
    pub fn prompt(text: impl Into<String>) -> Self {
        Self {
            messages: vec![Message {
                role: Role::User,
                content: text.into(),
            }],
            system: None,
            model: None,
            params: serde_json::Map::new(),
        }
    }

    /// The system prompt and every system message, joined: for providers that take one only.
    #[must_use]
    pub fn system_text(&self) -> Option<String> {
        let parts: Vec<&str> = self
            .system
            .as_deref()
            .into_iter()
            .chain(
                self.messages
                    .iter()
                    .filter(|message| message.role == Role::System)
                    .map(|message| message.content.as_str()),
            )
            .collect();
        (!parts.is_empty()).then(|| parts.join("\n\n"))
    }

    /// The conversation as one text, for providers that read a single prompt. One message is
    /// given as it is; more are marked with who speaks.
    #[must_use]
    pub fn as_text(&self) -> String {
        let turns: Vec<&Message> = self
            .messages
            .iter()
            .filter(|message| message.role != Role::System)
            .collect();
        match turns.as_slice() {
            [only] => only.content.clone(),
            many => many
                .iter()
                .map(|message| {
                    let speaker = match message.role {
                        Role::Assistant => "Assistant",
                        Role::User | Role::System => "User",
                    };
                    format!("{speaker}: {}", message.content)
                })
                .collect::<Vec<_>>()
                .join("\n\n"),
        }
    }
}
