//! OpenAI's chat completions, as the stub plays them.

use serde_json::{Value, json};
use sluice_consumer_worker::provider::Provider;
use sluice_shared::domain::{Message, Outcome, Request, Role};

use crate::{
    stub::{End, Play, Stub, openai_events},
    support::{KEY, build, cancel_when, run},
};

fn account(stub: &Stub) -> Provider {
    build(&format!(
        "provider = \"openai\"\napi_key = \"{KEY}\"\nbase_url = \"{}/v1\"\n\
         default_model = \"gpt-5\"\nmax_tokens = 50",
        stub.url
    ))
}

fn events(pieces: &[&str]) -> Vec<String> {
    let pieces: Vec<String> = pieces.iter().map(|piece| (*piece).to_owned()).collect();
    openai_events("gpt-5", &pieces)
}

fn chunk(data: Value) -> String {
    format!("data: {data}\n\n")
}

#[tokio::test]
async fn the_request_is_the_jobs_under_what_is_ours_to_say() {
    let stub = Stub::start().await;
    let provider = account(&stub);
    let message = |role, content: &str| Message {
        role,
        content: content.into(),
    };
    let request = Request {
        messages: vec![
            message(Role::System, "Speak German."),
            message(Role::User, "hi"),
        ],
        system: Some("Be short.".into()),
        model: Some("gpt-5-mini".into()),
        params: json!({"max_completion_tokens": 9, "stream": false, "top_p": 0.1})
            .as_object()
            .unwrap()
            .clone(),
    };
    run(&provider, &request).await;
    run(&provider, &Request::prompt("bare")).await;
    let asked = stub.asked();
    let [full, bare] = asked.as_slice() else {
        panic!("{asked:?}")
    };
    assert_eq!(full.path, "/v1/chat/completions");
    assert_eq!(full.headers["authorization"], format!("Bearer {KEY}"));
    insta::assert_snapshot!(serde_json::to_string_pretty(&[&full.body, &bare.body]).unwrap());
}

#[tokio::test]
async fn a_server_of_ones_own_needs_no_key_no_model_and_no_version() {
    let stub = Stub::start().await;
    let provider = build(&format!(
        "provider = \"openai\"\nbase_url = \"{}\"",
        stub.url
    ));
    assert_eq!(
        run(&provider, &Request::prompt("hi")).await.text(),
        "Hello there"
    );
    let asked = stub.asked().remove(0);
    assert_eq!(asked.path, "/v1/chat/completions");
    assert!(!asked.headers.contains_key("authorization"));
    assert!(asked.body.get("model").is_none() && asked.body.get("max_tokens").is_none());
}

/// The whole mapping is one table: a changed rule is a changed line in review.
#[tokio::test]
async fn every_answer_has_its_outcome() {
    let stub = Stub::start().await;
    let provider = account(&stub);
    let error = |status, kind: &str, code: &str, message: &str| {
        Play::openai_error(status, kind, json!(code), message)
    };
    let limited = || error(429, "requests", "rate_limit_exceeded", "Rate limit reached");
    let quota = |code: &str| error(429, "insufficient_quota", code, "You exceeded your quota");
    let in_stream = |error: Value| {
        let events = events(&["Hel"]).into_iter().take(1);
        Play::stream(events.chain([chunk(json!({ "error": error }))]), End::Whole)
    };
    let delta = |delta: Value, finish: Value| {
        chunk(json!({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}))
    };
    let cases = [
        ("an answer", Play::answer(&["Hello", " there"])),
        ("429 with retry-after", limited().with("retry-after", "30")),
        (
            "429 with retry-after-ms",
            limited().with("retry-after-ms", "20000"),
        ),
        (
            "429 with an exhausted limit",
            limited()
                .with("x-ratelimit-remaining-requests", "0")
                .with("x-ratelimit-reset-requests", "6m0s")
                .with("x-ratelimit-remaining-tokens", "100")
                .with("x-ratelimit-reset-tokens", "1s"),
        ),
        ("429 without a figure", limited()),
        (
            "429 slow down",
            error(429, "requests", "slow_down", "Slow down"),
        ),
        (
            "429 of another server",
            Play::Http {
                status: 429,
                headers: vec![],
                body: "Too Many Requests".into(),
            },
        ),
        ("429 quota", quota("insufficient_quota")),
        ("429 credit", quota("credit_balance_exhausted")),
        (
            "429 spend of the organization",
            quota("organization_spend_limit_exceeded"),
        ),
        (
            "429 spend of the project",
            quota("project_spend_limit_exceeded"),
        ),
        (
            "429 usage of the organization",
            quota("organization_usage_limit_exceeded"),
        ),
        (
            "400 hard limit",
            error(
                400,
                "invalid_request_error",
                "billing_hard_limit_reached",
                "x",
            ),
        ),
        (
            "503 slow down",
            error(503, "server_error", "slow_down", "x").with("retry-after", "30"),
        ),
        (
            "500",
            error(500, "server_error", "", "The server had an error"),
        ),
        (
            "502 of a proxy",
            Play::Http {
                status: 502,
                headers: vec![],
                body: "bad".into(),
            },
        ),
        (
            "401 that quotes the key",
            error(
                401,
                "invalid_request_error",
                "invalid_api_key",
                &format!("bad: {KEY}"),
            ),
        ),
        (
            "401 that quotes it in part",
            error(
                401,
                "x",
                "invalid_api_key",
                "Incorrect API key provided: sk-ant-s*****89.",
            ),
        ),
        (
            "403",
            error(
                403,
                "x",
                "unsupported_country_region_territory",
                "Not there",
            ),
        ),
        (
            "403 model",
            error(
                403,
                "invalid_request_error",
                "model_not_found",
                "no access to it",
            ),
        ),
        (
            "402 of another server",
            Play::json(402, &json!({"error": "Insufficient Balance"})),
        ),
        (
            "400",
            Play::openai_error(400, "invalid_request_error", Value::Null, "bad"),
        ),
        (
            "400 long",
            error(
                400,
                "invalid_request_error",
                "context_length_exceeded",
                "long",
            ),
        ),
        (
            "400 of another server",
            Play::json(400, &json!({"message": "no", "code": 400})),
        ),
        (
            "404",
            error(
                404,
                "invalid_request_error",
                "model_not_found",
                "no such model",
            ),
        ),
        (
            "no end",
            Play::stream(events(&["Hel", "lo"]).into_iter().take(2), End::Whole),
        ),
        (
            "a cut stream",
            Play::stream(events(&["Hel", "lo"]).into_iter().take(2), End::Cut),
        ),
        (
            "no [DONE] and no usage",
            Play::stream(events(&["Hel", "lo"]).into_iter().take(3), End::Whole),
        ),
        (
            "cut behind the finish reason",
            Play::stream(events(&["Hel", "lo"]).into_iter().take(3), End::Cut),
        ),
        (
            "no finish reason",
            Play::stream(
                [
                    delta(json!({"content": "Hi"}), Value::Null),
                    "data: [DONE]\n\n".to_owned(),
                ],
                End::Never,
            ),
        ),
        (
            "odd deltas",
            Play::stream(
                [
                    delta(json!({"role": "assistant", "content": null}), Value::Null),
                    delta(
                        json!({"content": [{"type": "text"}], "tool_calls": []}),
                        Value::Null,
                    ),
                    delta(
                        json!({"content": "A", "reasoning_content": "hm"}),
                        Value::Null,
                    ),
                    chunk(json!({"choices": [{"index": 1, "delta": {"content": "B"}}]})),
                    delta(json!({}), json!("length")),
                    "data: [DONE]\n\n".to_owned(),
                ],
                End::Whole,
            ),
        ),
        (
            "a refusal",
            Play::stream(
                [
                    delta(json!({"refusal": "I can't help with that."}), json!("stop")),
                    "data: [DONE]\n\n".to_owned(),
                ],
                End::Whole,
            ),
        ),
        (
            "filtered",
            Play::stream(
                [delta(json!({"content": "A"}), json!("content_filter"))],
                End::Whole,
            ),
        ),
        (
            "broken in the stream",
            in_stream(json!({"message": "oops", "type": "server_error"})),
        ),
        (
            "limited in the stream",
            in_stream(json!({"message": "oops", "code": "rate_limit_exceeded"})),
        ),
        (
            "a status in the stream",
            in_stream(json!({"message": "oops", "code": 502})),
        ),
        ("words in the stream", in_stream(json!("out of memory"))),
        ("a whole JSON", Play::json(200, &json!({"choices": []}))),
        (
            "garbage in an event",
            Play::stream(["data: nope\n\n".to_owned()], End::Whole),
        ),
        (
            "too long",
            Play::answer(&["x".repeat(60_000).as_str(), "y".repeat(60_000).as_str()]),
        ),
    ];
    let mut table = String::new();
    for (name, play) in cases {
        stub.play(play);
        let ran = run(&provider, &Request::prompt("hi")).await;
        table += &format!("{name}\n    {}\n", ran.line());
    }
    insta::assert_snapshot!(table);
}

#[tokio::test]
async fn a_cancel_closes_the_connection() {
    let stub = Stub::start().await;
    let provider = account(&stub);
    stub.play(Play::stream(
        events(&["Hel"]).into_iter().take(1),
        End::Never,
    ));
    let ran = cancel_when(&provider, &Request::prompt("hi"), |text| text == "Hel").await;
    assert_eq!(ran.outcome, Outcome::Cancelled);
    stub.is_alone().await;
}
