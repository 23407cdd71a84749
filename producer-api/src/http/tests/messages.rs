//! `/v1/messages`, as Anthropic's API has it.

use serde_json::{Value, json};
use sluice_shared::domain::Outcome;

use super::gateway::{answer, dispatched, events, fail, played, say};
use crate::http::testing::Api;

const MESSAGES: &str = "POST /v1/messages";

fn body(more: &Value) -> Value {
    let mut body = json!({
        "model": "m1",
        "max_tokens": 50,
        "messages": [{"role": "user", "content": "hello"}],
    });
    let fields = body.as_object_mut().unwrap();
    fields.extend(more.as_object().unwrap().clone());
    body
}

#[tokio::test]
async fn a_message_is_a_job() {
    let api = Api::start().await;
    let asked = body(&json!({
        "system": [{"type": "text", "text": "Be"}, {"type": "text", "text": "brief."}],
        "stop_sequences": ["x"],
        "thinking": {"type": "disabled"},
    }));
    let (got, dispatch) = played(&api, MESSAGES, &asked, async |dispatch| {
        api.answer(&dispatch, answer("the answer", "length")).await;
        dispatch
    })
    .await;
    assert_eq!(got.status, 200, "{got:?}");
    let id = dispatch.job.0.simple().to_string();
    assert_eq!(got.header("request-id"), format!("req_{id}"));
    assert_eq!(
        got.json(),
        json!({
            "id": format!("msg_{id}"),
            "type": "message",
            "role": "assistant",
            "model": "m1-2026",
            "content": [{"type": "text", "text": "the answer"}],
            "stop_reason": "max_tokens",
            "stop_sequence": null,
            "usage": {
                "input_tokens": 3,
                "output_tokens": 3,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 4,
            },
        })
    );
    let request = serde_json::to_value(&dispatch.request).unwrap();
    assert_eq!(
        request,
        json!({
            "model": "m1",
            "system": "Be\n\nbrief.",
            "messages": [{"role": "user", "content": "hello"}],
            "params": {"max_tokens": 50, "stop_sequences": ["x"]},
        })
    );
}

#[tokio::test]
async fn a_stream_has_every_event_in_its_place() {
    let api = Api::start().await;
    let asked = body(&json!({"stream": true})).to_string();
    let work = async {
        let dispatch = dispatched(&api).await;
        say(&api, dispatch.job, 1, "he").await;
        api.answer(&dispatch, answer("hello", "end_turn")).await;
    };
    let (got, ()) = tokio::join!(api.ask(MESSAGES, &asked), work);
    let events = events(&got.text);
    let mut names: Vec<&str> = events
        .iter()
        .map(|event| event["type"].as_str().unwrap())
        .collect();
    let told: Vec<&str> = got
        .text
        .lines()
        .filter_map(|line| line.strip_prefix("event: "))
        .collect();
    assert_eq!(names, told);
    names.dedup();
    assert_eq!(
        names,
        [
            "message_start",
            "content_block_start",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop",
        ]
    );
    let text: String = events
        .iter()
        .filter_map(|event| event["delta"]["text"].as_str())
        .collect();
    assert_eq!(text, "hello");
    let ending = &events[events.len() - 2];
    assert_eq!(ending["delta"]["stop_reason"], "end_turn");
    assert_eq!(ending["usage"]["output_tokens"], 3);
}

#[tokio::test]
async fn refusals_have_the_shape_of_the_api() {
    let api = Api::start().await;
    for (more, status, kind) in [
        (json!({"model": "m9"}), 404, "not_found_error"),
        (json!({"messages": null}), 400, "invalid_request_error"),
        (
            json!({"messages": [{"role": "system", "content": "a"}]}),
            400,
            "invalid_request_error",
        ),
        (
            json!({"tools": [{"name": "f"}]}),
            400,
            "invalid_request_error",
        ),
        (
            json!({"thinking": {"type": "enabled"}}),
            400,
            "invalid_request_error",
        ),
        (
            json!({"system": [{"type": "text", "text": "a", "cache_control": {}}]}),
            400,
            "invalid_request_error",
        ),
    ] {
        let got = api.ask(MESSAGES, &body(&more).to_string()).await;
        assert_eq!(got.status, status, "{more}: {got:?}");
        let json = got.json();
        assert_eq!(
            (&json["type"], &json["error"]["type"]),
            (&json!("error"), &json!(kind))
        );
    }
    let wrong = api
        .ask_as("no", MESSAGES, &body(&json!({})).to_string())
        .await;
    assert_eq!(wrong.json()["error"]["type"], "authentication_error");
    let (got, ()) = played(&api, MESSAGES, &body(&json!({})), async |dispatch| {
        fail(
            &api,
            &dispatch,
            Outcome::rejected("invalid_request_error", "too hot"),
        )
        .await;
    })
    .await;
    assert_eq!(got.status, 400);
    let request_id = got.json()["request_id"].clone();
    assert_eq!(request_id, got.header("request-id"));
    assert_eq!(got.json()["error"]["message"], "too hot");
    // No account of this API can count tokens.
    let line = "POST /v1/messages/count_tokens";
    let got = api.ask(line, &body(&json!({})).to_string()).await;
    assert_eq!(
        (got.status.as_u16(), &got.json()["error"]["type"]),
        (400, &json!("invalid_request_error"))
    );
}
