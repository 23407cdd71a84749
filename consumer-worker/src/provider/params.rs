//! Parameters that mean the same in both HTTP APIs under different names: a job may carry either,
//! since it is written before it is known which account runs it.

use serde_json::{Map, Value};

/// OpenAI's name and Anthropic's.
const SAME: [(&str, &str); 2] = [
    ("stop", "stop_sequences"),
    ("max_completion_tokens", "max_tokens"),
];

/// Parameters under Anthropic's names.
pub(super) fn for_anthropic(mut params: Map<String, Value>) -> Map<String, Value> {
    for (theirs, own) in SAME {
        let Some(value) = params.remove(theirs) else {
            continue;
        };
        // One stop sequence may stand without an array there.
        let value = match value {
            Value::String(text) if own == "stop_sequences" => vec![text].into(),
            other => other,
        };
        params.entry(own).or_insert(value);
    }
    params
}

/// Parameters under OpenAI's names; `max_tokens` is one of them, too.
pub(super) fn for_openai(mut params: Map<String, Value>) -> Map<String, Value> {
    if let Some(value) = params.remove("stop_sequences") {
        params.entry("stop").or_insert(value);
    }
    params
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_api_gets_its_own_names() {
        let map = |value: Value| value.as_object().unwrap().clone();
        let openai = json!({"stop": "x", "max_completion_tokens": 5, "top_p": 1});
        let anthropic = json!({"stop_sequences": ["x"], "max_tokens": 5, "top_p": 1});
        assert_eq!(for_anthropic(map(openai)), map(anthropic.clone()));
        assert_eq!(
            for_anthropic(map(anthropic.clone())),
            map(anthropic.clone())
        );
        assert_eq!(
            for_openai(map(anthropic)),
            map(json!({"stop": ["x"], "max_tokens": 5, "top_p": 1}))
        );
    }
}
