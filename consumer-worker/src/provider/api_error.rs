//! What an HTTP API says when it says no, in the shapes that servers really use.

use reqwest::{StatusCode, header::HeaderMap};
use serde_json::Value;

/// An error as the body of an answer or as an event of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ApiError {
    /// The HTTP status; `None` when it came in a stream after a 200.
    pub(super) status: Option<u16>,
    /// `error.type`.
    pub(super) kind: String,
    /// `error.code`, or `error.details.error_code` of Anthropic's API.
    pub(super) code: String,
    /// `error.message`, or whatever the body says.
    pub(super) message: String,
    /// The provider's own id of the request, which its support asks for.
    request_id: Option<String>,
}

impl ApiError {
    /// From an answer that is no success.
    pub(super) fn from_answer(status: StatusCode, headers: &HeaderMap, body: &str) -> Self {
        let mut error = match serde_json::from_str(body) {
            Ok(value) => Self::from_value(&value),
            Err(_) => Self {
                message: body.trim().to_owned(),
                ..Self::default()
            },
        };
        error.status = Some(status.as_u16());
        error.request_id = ["request-id", "x-request-id"]
            .into_iter()
            .find_map(|name| headers.get(name)?.to_str().ok())
            .map(str::to_owned);
        error
    }

    /// From an event of a stream, or from a body: `{"error": {...}}`, `{"error": "text"}`,
    /// `{"detail": "text"}` and `{"message": "text"}` are all to be met.
    pub(super) fn from_value(value: &Value) -> Self {
        let error = value.get("error").unwrap_or(value);
        let text = |value: &Value, key: &str| match value.get(key) {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Number(number)) => number.to_string(),
            _ => String::new(),
        };
        let mut code = text(error, "code");
        if code.is_empty() {
            code = error
                .get("details")
                .map(|details| text(details, "error_code"))
                .unwrap_or_default();
        }
        let mut message = text(error, "message");
        if message.is_empty() {
            message = match (error, value.get("detail")) {
                (Value::String(error), _) => error.clone(),
                (_, Some(Value::String(detail))) => detail.clone(),
                _ => value.to_string(),
            };
        }
        // Some servers put the status in `code`, and say no more of it in a stream.
        let status = code
            .parse()
            .ok()
            .filter(|status| (400..600).contains(status));
        Self {
            status,
            kind: text(error, "type"),
            code,
            message,
            request_id: None,
        }
    }

    /// A stable code: the provider's own when it has one that may be shown, else the status.
    pub(super) fn stable_code(&self, own: &str) -> String {
        let fit = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if !own.is_empty() && own.len() <= 64 && own.chars().all(fit) && own.parse::<u64>().is_err()
        {
            return own.to_owned();
        }
        self.status.map_or_else(
            || "provider_error".into(),
            |status| format!("http_{status}"),
        )
    }

    /// All of it in one line, for people.
    pub(super) fn detail(&self) -> String {
        let status = self.status.map(|status| status.to_string());
        let mut parts: Vec<&str> = status.iter().flat_map(|status| ["HTTP", status]).collect();
        parts.extend([self.kind.as_str(), self.code.as_str()]);
        parts.retain(|part| !part.is_empty());
        parts.dedup();
        let mut detail = parts.join(" ");
        if !self.message.is_empty() {
            detail = if detail.is_empty() {
                self.message.clone()
            } else {
                format!("{detail}: {}", self.message)
            };
        }
        // Behind a long message it would be cut off.
        match &self.request_id {
            Some(id) => format!("[{id}] {detail}"),
            None => detail,
        }
    }
}
