//! `/v1/responses`, as OpenAI's API has it.

use serde_json::{Value, json};
use sluice_shared::{api::Scope, domain::Outcome};

use super::gateway::{answer, dispatched, fail, played};
use crate::http::testing::Api;

const RESPONSES: &str = "POST /v1/responses";

fn body(more: &Value) -> Value {
    let mut body = json!({"model": "m1", "input": "hello"});
    let fields = body.as_object_mut().unwrap();
    fields.extend(more.as_object().unwrap().clone());
    body
}

#[tokio::test]
async fn a_response_asks_a_provider_in_its_words() {
    let api = Api::start().await;
    let schema = json!({"type": "json_schema", "name": "n", "schema": {"type": "object"}});
    let asked = body(&json!({
        "instructions": "Be brief.",
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "a"}]}],
        "max_output_tokens": 9,
        "reasoning": {"effort": "low"},
        "text": {"format": schema},
        "store": false,
    }));
    let (got, dispatch) = played(&api, RESPONSES, &asked, async |dispatch| {
        api.answer(&dispatch, answer("cut", "length")).await;
        dispatch
    })
    .await;
    assert_eq!(got.status, 200, "{got:?}");
    let json = got.json();
    assert_eq!(
        (&json["status"], &json["incomplete_details"]["reason"]),
        (&json!("incomplete"), &json!("max_output_tokens"))
    );
    assert_eq!(json["output"][0]["content"][0]["text"], "cut");
    assert_eq!(
        serde_json::to_value(&dispatch.request.params).unwrap(),
        json!({
            "max_completion_tokens": 9,
            "reasoning_effort": "low",
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "n", "schema": {"type": "object"}},
            },
        })
    );
}

#[tokio::test]
async fn a_response_in_the_background_is_asked_for() {
    let api = Api::start().await;
    let begun = api
        .ask(RESPONSES, &body(&json!({"background": true})).to_string())
        .await;
    assert_eq!(begun.status, 200, "{begun:?}");
    let json = begun.json();
    let id = json["id"].as_str().unwrap().to_owned();
    assert_eq!(
        (&json["status"], &json["background"]),
        (&json!("queued"), &json!(true))
    );
    let line = format!("GET /v1/responses/{id}");
    assert_eq!(api.ask(&line, "").await.json()["status"], "queued");
    // Nobody else's.
    let stranger = api.mint("stranger", Scope::Submit).await;
    assert_eq!(api.ask_as(&stranger, &line, "").await.status, 404);
    let dispatch = dispatched(&api).await;
    let job = api
        .ask(&format!("GET /api/jobs/{}", dispatch.job), "")
        .await
        .json();
    assert_eq!(job["priority"], 0);
    api.answer(&dispatch, answer("the answer", "stop")).await;
    let ended = api.ask(&line, "").await.json();
    assert_eq!(
        (&ended["status"], &ended["id"]),
        (&json!("completed"), &json!(id))
    );
    assert_eq!(ended["output"][0]["content"][0]["text"], "the answer");
    // One that has ended is not cancelled any more.
    let cancelled = api
        .ask(&format!("POST /v1/responses/{id}/cancel"), "")
        .await;
    assert_eq!(
        (cancelled.status.as_u16(), &cancelled.json()["status"]),
        (200, &json!("completed"))
    );
}

#[tokio::test]
async fn a_response_that_fails_or_is_cancelled_says_so() {
    let api = Api::start().await;
    let asked = body(&json!({"background": true})).to_string();
    let failed = api.ask(RESPONSES, &asked).await.json();
    fail(
        &api,
        &dispatched(&api).await,
        Outcome::rejected("bad", "too hot"),
    )
    .await;
    let line = format!("GET /v1/responses/{}", failed["id"].as_str().unwrap());
    let failed = api.ask(&line, "").await.json();
    assert_eq!(
        (&failed["status"], &failed["error"]["message"]),
        (&json!("failed"), &json!("too hot"))
    );
    let cancelled = api.ask(RESPONSES, &asked).await.json();
    let line = format!(
        "POST /v1/responses/{}/cancel",
        cancelled["id"].as_str().unwrap()
    );
    assert_eq!(api.ask(&line, "").await.json()["status"], "cancelled");
}

#[tokio::test]
async fn what_is_not_carried_is_refused() {
    let api = Api::start().await;
    for (more, param) in [
        (json!({"tools": [{"type": "web_search"}]}), "tools"),
        (
            json!({"previous_response_id": "resp_1"}),
            "previous_response_id",
        ),
        (json!({"background": true, "stream": true}), "stream"),
        (json!({"include": ["x"]}), "include"),
        (
            json!({"reasoning": {"summary": "auto"}}),
            "reasoning.summary",
        ),
        (
            json!({"input": [{"type": "function_call_output"}]}),
            "input[0].type",
        ),
        (json!({"input": null}), "input"),
    ] {
        let got = api.ask(RESPONSES, &body(&more).to_string()).await;
        assert_eq!(got.status, 400, "{more}: {got:?}");
        assert_eq!(got.json()["error"]["param"], param, "{got:?}");
    }
    assert_eq!(api.ask("GET /v1/responses/resp_no", "").await.status, 404);
}
