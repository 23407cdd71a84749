//! The endpoints for the SDKs of other APIs, each answer as its maker's API gives it.

use std::future::Future;

use axum::{
    body::Body,
    http::{Method, Request},
};
use futures::StreamExt;
use serde_json::{Value, json};
use sluice_shared::{
    domain::{Completion, JobId, Lane, Outcome, Usage},
    live::Piece,
    message::{Dispatch, Reply, Report},
};
use tokio::task::JoinSet;
use tower::ServiceExt;

use crate::{
    http::testing::{Answer, Api},
    store::Verdict,
};

/// Asks, and plays the worker meanwhile.
pub(super) async fn played<T>(
    api: &Api,
    line: &str,
    body: &Value,
    worker: impl AsyncFnOnce(Dispatch) -> T,
) -> (Answer, T)
where
    T: Send,
{
    let body = body.to_string();
    let work = async {
        let dispatch = dispatched(api).await;
        worker(dispatch).await
    };
    tokio::join!(api.ask(line, &body), work)
}

/// The one job of the lane of the model m1, as soon as it is there.
pub(super) async fn dispatched(api: &Api) -> Dispatch {
    let lane = Lane::new(None, Some("m1".into()), Vec::new());
    for _ in 0..1000 {
        if let Some(dispatch) = api.dispatch(&lane).await.pop() {
            return dispatch;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    panic!("no job came");
}

pub(super) fn answer(text: &str, stop_reason: &str) -> Completion {
    Completion {
        text: text.into(),
        model: Some("m1-2026".into()),
        stop_reason: Some(stop_reason.into()),
        usage: Usage {
            input_tokens: 7,
            output_tokens: 3,
            cache_read_tokens: 4,
            ..Usage::default()
        },
    }
}

pub(super) async fn fail(api: &Api, dispatch: &Dispatch, outcome: Outcome) {
    let now = sluice_shared::clock::now();
    let reply = Reply {
        learned: Box::default(),
        job: dispatch.job,
        attempt: dispatch.attempt,
        account: dispatch.account.clone(),
        worker: "w".into(),
        report: Report::Finished {
            started_at: Some(now),
            finished_at: now,
            outcome,
        },
    };
    assert!(api.app.settle(&[Verdict::Report(reply)]).await);
}

/// The data of each event of a stream.
pub(super) fn events(text: &str) -> Vec<Value> {
    text.lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .map(|data| serde_json::from_str(data).unwrap_or_else(|_| data.into()))
        .collect()
}

fn chat(more: &Value) -> Value {
    let mut body = json!({"model": "m1", "messages": [{"role": "user", "content": "hello"}]});
    let fields = body.as_object_mut().unwrap();
    fields.extend(more.as_object().unwrap().clone());
    body
}

const CHAT: &str = "POST /v1/chat/completions";

#[tokio::test]
async fn a_chat_completion_is_a_job() {
    let api = Api::start().await;
    let body = json!({
        "model": "m1",
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]},
            {"role": "assistant", "content": "yes", "refusal": null},
            {"role": "user", "content": "three"},
        ],
        "temperature": 0.5,
        "stop": ["x"],
        "metadata": {"project": "p1"},
        "sluice": {"session": "s1", "tags": ["fast"], "timeout": "1m"},
        "n": 1,
    });
    let lane = Lane::new(None, Some("m1".into()), vec!["fast".into()]);
    let work = async {
        let dispatch = loop {
            if let Some(dispatch) = api.dispatch(&lane).await.pop() {
                break dispatch;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        };
        api.answer(&dispatch, answer("the answer", "end_turn"))
            .await;
        dispatch
    };
    let body = body.to_string();
    let (got, dispatch) = tokio::join!(api.ask(CHAT, &body), work);
    assert_eq!(got.status, 200, "{got:?}");
    let id = dispatch.job.0.simple().to_string();
    assert_eq!(got.header("sluice-job"), dispatch.job.to_string());
    assert_eq!(got.header("x-request-id"), format!("req_{id}"));
    let mut json = got.json();
    assert!(json["created"].take().as_i64().unwrap() > 1_700_000_000);
    assert_eq!(
        json,
        json!({
            "id": format!("chatcmpl-{id}"),
            "object": "chat.completion",
            "created": null,
            "model": "m1-2026",
            "choices": [{
                "index": 0,
                "message": {"role": "assistant", "content": "the answer", "refusal": null},
                "logprobs": null,
                "finish_reason": "stop",
            }],
            "usage": {
                "prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10,
                "prompt_tokens_details": {"cached_tokens": 4},
            },
        })
    );
    let job = api
        .ask(&format!("GET /api/jobs/{}", dispatch.job), "")
        .await
        .json();
    assert_eq!(
        (&job["priority"], &job["session"]),
        (&json!(50), &json!("s1"))
    );
    assert_eq!(job["metadata"], json!({"project": "p1"}));
    assert_eq!(
        job["request"],
        json!({
            "model": "m1",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "one two"},
                {"role": "assistant", "content": "yes"},
                {"role": "user", "content": "three"},
            ],
            "params": {"temperature": 0.5, "stop": ["x"]},
        })
    );
}

#[tokio::test]
async fn why_the_model_stopped_is_said_in_openais_words() {
    let api = Api::start().await;
    for (reason, expected) in [
        ("end_turn", "stop"),
        ("stop", "stop"),
        ("max_tokens", "length"),
        ("length", "length"),
        ("content_filter", "content_filter"),
        ("refusal", "content_filter"),
    ] {
        let (got, ()) = played(&api, CHAT, &chat(&json!({})), async |dispatch| {
            api.answer(&dispatch, answer("a", reason)).await;
        })
        .await;
        assert_eq!(got.json()["choices"][0]["finish_reason"], expected);
    }
}

#[tokio::test]
async fn a_stream_has_the_whole_text_once() {
    let api = Api::start().await;
    let body = chat(&json!({"stream": true, "stream_options": {"include_usage": true}}));
    let (got, ()) = played(&api, CHAT, &body, async |dispatch| {
        say(&api, dispatch.job, 1, "he").await;
        say(&api, dispatch.job, 1, "llo").await;
        api.answer(&dispatch, answer("hello you", "stop")).await;
    })
    .await;
    assert_eq!(got.status, 200, "{got:?}");
    assert_eq!(got.header("content-type"), "text/event-stream");
    let mut events = events(&got.text);
    assert_eq!(events.pop().unwrap(), "[DONE]");
    let usage = events.pop().unwrap();
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["total_tokens"], 10);
    let last = events.last().unwrap();
    assert_eq!(last["choices"][0]["finish_reason"], "stop");
    let text: String = events
        .iter()
        .filter_map(|event| event["choices"][0]["delta"]["content"].as_str())
        .collect();
    assert_eq!(text, "hello you");
    assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
    assert!(
        events
            .iter()
            .all(|event| event["object"] == "chat.completion.chunk")
    );
}

#[tokio::test]
async fn a_stream_whose_text_is_void_ends_with_an_error() {
    let api = Api::start().await;
    let request = Request::post("/v1/chat/completions")
        .header("authorization", format!("Bearer {}", api.key))
        .header("content-type", "application/json");
    let body = Body::from(chat(&json!({"stream": true})).to_string());
    let asked = api.router.clone().oneshot(request.body(body).unwrap());
    let work = async {
        let dispatch = dispatched(&api).await;
        say(&api, dispatch.job, 1, "one thing").await;
        dispatch
    };
    let (got, dispatch) = tokio::join!(asked, work);
    let mut pieces = got.unwrap().into_body().into_data_stream();
    let mut text = String::new();
    while !text.contains("one thing") {
        text += std::str::from_utf8(&pieces.next().await.unwrap().unwrap()).unwrap();
    }
    api.answer(&dispatch, answer("another thing", "stop")).await;
    while let Some(piece) = pieces.next().await {
        text += std::str::from_utf8(&piece.unwrap()).unwrap();
    }
    let events = events(&text);
    let last = events.last().unwrap();
    assert_eq!(last["error"]["code"], "stream_cut", "{text}");
    assert!(!text.contains("[DONE]") && !text.contains("another"));
}

#[tokio::test]
async fn what_a_provider_refuses_is_refused_in_its_words() {
    let api = Api::start().await;
    for (streamed, code, status) in [
        (false, "invalid_request_error", 400),
        (true, "invalid_request_error", 400),
        (false, "model_not_found", 404),
    ] {
        let body = chat(&json!({"stream": streamed}));
        let (got, job) = played(&api, CHAT, &body, async |dispatch| {
            let outcome = Outcome::rejected(code, "temperature: is too hot");
            fail(&api, &dispatch, outcome).await;
            dispatch.job
        })
        .await;
        assert_eq!(got.status, status, "{got:?}");
        assert_eq!(got.header("x-should-retry"), "false");
        assert_eq!(got.header("sluice-job"), job.to_string());
        assert_eq!(
            got.json()["error"],
            json!({
                "message": "temperature: is too hot",
                "type": "invalid_request_error",
                "param": null,
                "code": code,
            })
        );
    }
}

#[tokio::test]
async fn what_cannot_be_is_refused_and_becomes_no_job() {
    let api = Api::start().await;
    let tool = json!([{"type": "function", "function": {"name": "f"}}]);
    let image = json!([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]);
    for (more, status, param) in [
        (json!({"model": "m9"}), 404, "model"),
        (json!({"model": 1}), 400, "model"),
        (json!({"model": null}), 400, "model"),
        (json!({"messages": []}), 400, "messages"),
        (json!({"messages": null}), 400, "messages"),
        (json!({"messages": [1]}), 400, "messages[0]"),
        (
            json!({"messages": [{"role": "user"}]}),
            400,
            "messages[0].content",
        ),
        (
            json!({"messages": [{"role": "robot", "content": "a"}]}),
            400,
            "messages[0].role",
        ),
        (
            json!({"messages": [{"role": "user", "content": "a", "x": 1}]}),
            400,
            "messages[0].x",
        ),
        (
            json!({"messages": image}),
            400,
            "messages[0].content[0].type",
        ),
        (json!({"tools": tool}), 400, "tools"),
        (json!({"n": 2}), 400, "n"),
        (json!({"logprobs": true}), 400, "logprobs"),
        (json!({"stream": "yes"}), 400, "stream"),
        (json!({"metadata": {"a": 1}}), 400, "metadata"),
        (json!({"sluice": {"colour": 1}}), 400, "sluice"),
        (json!({"sluice": {"tags": ["nowhere"]}}), 400, "tags"),
    ] {
        let got = api.ask(CHAT, &chat(&more).to_string()).await;
        assert_eq!(got.status, status, "{more}: {got:?}");
        let error = got.json()["error"].clone();
        assert_eq!(
            (&error["type"], &error["param"]),
            (&json!("invalid_request_error"), &json!(param))
        );
    }
    for body in ["", "{", "[]", "3", "{\"model\": \"m1\"} x"] {
        let got = api.ask(CHAT, body).await;
        assert!(matches!(got.status.as_u16(), 400 | 415), "{body}: {got:?}");
        assert!(got.json()["error"]["message"].is_string());
    }
    let jobs = api.ask("GET /api/jobs", "").await.json();
    assert_eq!(jobs["jobs"], json!([]));
}

#[tokio::test]
async fn whoever_may_not_is_told_in_the_dialect() {
    let api = Api::start().await;
    let body = chat(&json!({})).to_string();
    let wrong = api.ask_as("sluice_no", CHAT, &body).await;
    assert_eq!(
        (wrong.status.as_u16(), &wrong.json()["error"]["code"]),
        (401, &json!("invalid_api_key"))
    );
    let reader = api.mint("reader", sluice_shared::api::Scope::Read).await;
    assert_eq!(api.ask_as(&reader, CHAT, &body).await.status, 403);
    let nowhere = api.ask("GET /v1/nowhere", "").await;
    assert_eq!(
        (nowhere.status.as_u16(), &nowhere.json()["error"]["code"]),
        (404, &json!("no_such_route"))
    );
    let method = api.ask("DELETE /v1/chat/completions", "").await;
    assert_eq!(
        (method.status.as_u16(), method.header("allow")),
        (405, "POST")
    );
    assert!(method.json()["error"]["message"].is_string());
}

#[tokio::test]
async fn a_quota_refuses_as_a_rate_limit_of_the_dialect() {
    let api = Api::start().await;
    let quota = json!({"name": "hasty", "scopes": ["submit"], "quota": {"requests_per_minute": 1}});
    let key = api.ask("POST /api/keys", &quota.to_string()).await.json();
    let key = key["key"].as_str().unwrap();
    let first = api.ask_as(key, "GET /v1/models", "").await;
    assert_eq!(first.header("x-ratelimit-limit-requests"), "1");
    assert_eq!(first.header("x-ratelimit-remaining-requests"), "0");
    assert!(first.header("x-ratelimit-reset-requests").ends_with('s'));
    let refused = api.ask_as(key, CHAT, &chat(&json!({})).to_string()).await;
    assert_eq!(refused.status, 429);
    let error = refused.json()["error"].clone();
    assert_eq!(
        (&error["type"], &error["code"]),
        (&json!("requests"), &json!("rate_limit_exceeded"))
    );
    assert!(refused.header("retry-after").parse::<u64>().unwrap() <= 60);
}

#[tokio::test]
async fn a_job_whose_caller_goes_is_cancelled() {
    let api = Api::start().await;
    for streamed in [false, true] {
        let body = chat(&json!({"stream": streamed})).to_string();
        let request = Request::builder()
            .method(Method::POST)
            .uri("/v1/chat/completions")
            .header("authorization", format!("Bearer {}", api.key))
            .header("content-type", "application/json")
            .body(Body::from(body))
            .unwrap();
        let mut caller = JoinSet::new();
        let router = api.router.clone();
        caller.spawn(async move { router.oneshot(request).await });
        let dispatch = dispatched(&api).await;
        caller.shutdown().await;
        let line = format!("GET /api/jobs/{}", dispatch.job);
        eventually(async || api.ask(&line, "").await.json()["cancel_requested"] == true).await;
        api.succeed(&dispatch).await;
    }
}

#[tokio::test]
async fn the_same_call_again_gets_the_same_answer() {
    let api = Api::start().await;
    let send = async || {
        let request = Request::post("/v1/chat/completions")
            .header("authorization", format!("Bearer {}", api.key))
            .header("content-type", "application/json")
            .header("idempotency-key", "once");
        let body = Body::from(chat(&json!({})).to_string());
        api.send(request.body(body).unwrap()).await
    };
    let work = async {
        let dispatch = dispatched(&api).await;
        api.succeed(&dispatch).await;
    };
    let (first, ()) = tokio::join!(send(), work);
    let second = send().await;
    assert_eq!((first.status.as_u16(), second.status.as_u16()), (200, 200));
    assert_eq!(first.json()["id"], second.json()["id"]);
    assert_eq!(second.json()["choices"][0]["message"]["content"], "done");
}

#[tokio::test]
async fn models_are_listed_for_both_dialects() {
    let api = Api::start().await;
    let list = api.ask("GET /v1/models", "").await.json();
    assert_eq!(list["object"], "list");
    let ids = |list: &Value| -> Vec<String> {
        let data = list["data"].as_array().unwrap().iter();
        data.map(|model| model["id"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(ids(&list), ["m1", "m2", "m3"]);
    assert_eq!(list["data"][0]["object"], "model");
    assert_eq!(api.ask("GET /v1/models/m2", "").await.json()["id"], "m2");
    let missing = api.ask("GET /v1/models/some/model", "").await;
    assert_eq!(
        (missing.status.as_u16(), &missing.json()["error"]["code"]),
        (404, &json!("model_not_found"))
    );
    let request = Request::get("/v1/models")
        .header("x-api-key", &api.key)
        .header("anthropic-version", "2023-06-01");
    let got = api.send(request.body(Body::empty()).unwrap()).await;
    let list = got.json();
    assert_eq!(ids(&list), ["m1", "m2", "m3"]);
    assert_eq!(
        (&list["first_id"], &list["last_id"], &list["has_more"]),
        (&json!("m1"), &json!("m3"), &json!(false))
    );
    assert!(got.header("request-id").starts_with("req_"));
    // The other API takes no such key.
    let request = Request::get("/api/jobs").header("x-api-key", &api.key);
    assert_eq!(
        api.send(request.body(Body::empty()).unwrap()).await.status,
        401
    );
}

pub(super) async fn say(api: &Api, job: JobId, attempt: u32, text: &str) {
    let piece = Piece::Text {
        attempt,
        text: text.into(),
    };
    let kept = sluice_shared::domain::Span::seconds(60);
    api.app.live.append(job, &[piece], kept).await.unwrap();
}

async fn eventually<F: Future<Output = bool>>(is: impl Fn() -> F) {
    for _ in 0..1000 {
        if is().await {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    panic!("it did not come about");
}
