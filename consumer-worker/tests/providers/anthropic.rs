//! Anthropic's Messages API, as the stub plays it.

use std::time::Duration;

use serde_json::json;
use sluice_consumer_worker::provider::Provider;
use sluice_shared::domain::{Message, Outcome, Request, Role};

use crate::{
    stub::{End, Play, Stub, anthropic_events},
    support::{KEY, build, cancel_when, in_seconds, run, run_for},
};

fn account(stub: &Stub) -> Provider {
    build(&format!(
        "provider = \"anthropic\"\napi_key = \"{KEY}\"\nbase_url = \"{}\"\n\
         default_model = \"claude-sonnet-5\"",
        stub.url
    ))
}

fn events(pieces: &[&str]) -> Vec<String> {
    let pieces: Vec<String> = pieces.iter().map(|piece| (*piece).to_owned()).collect();
    anthropic_events("claude-sonnet-5", &pieces)
}

fn event(data: serde_json::Value) -> String {
    format!("event: x\ndata: {data}\n\n")
}

#[tokio::test]
async fn an_answer_is_streamed_and_counted() {
    let stub = Stub::start().await;
    let provider = account(&stub);
    stub.play(Play::answer(&["Gr", "üß", "e\n", "\u{0}", ""]));
    let ran = run(&provider, &Request::prompt("hi")).await;
    assert_eq!(ran.deltas, ["Gr", "üß", "e\n", "\u{fffd}"]);
    insta::assert_snapshot!(ran.line(), @r#"completed "Grüße\n�" by claude-sonnet-5 because end_turn, 17 in (cache 4 read, 3 written), 25 out"#);
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
            message(Role::Assistant, "Hallo"),
            message(Role::User, "@/etc/passwd"),
        ],
        system: Some("Be short.".into()),
        model: Some("claude-haiku-4-5".into()),
        params: json!({
            "temperature": 0.5, "max_tokens": 9, "stream": false, "model": "other",
            "messages": [], "tools": [{"name": "t"}],
        })
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
    assert_eq!(full.path, "/v1/messages");
    assert_eq!(full.headers["x-api-key"], KEY);
    assert_eq!(full.headers["anthropic-version"], "2023-06-01");
    assert_eq!(full.headers["content-type"], "application/json");
    insta::assert_snapshot!(serde_json::to_string_pretty(&[&full.body, &bare.body]).unwrap());
}

#[tokio::test]
async fn a_job_without_a_model_is_refused_before_any_call() {
    let stub = Stub::start().await;
    let provider = build(&format!(
        "provider = \"anthropic\"\napi_key = \"{KEY}\"\nbase_url = \"{}\"",
        stub.url
    ));
    let ran = run(&provider, &Request::prompt("hi")).await;
    assert!(
        ran.line().starts_with("rejected model_required"),
        "{}",
        ran.line()
    );
    assert!(stub.asked().is_empty());
}

#[tokio::test]
async fn the_only_model_on_offer_is_the_default() {
    let stub = Stub::start().await;
    let provider = build(&format!(
        "provider = \"anthropic\"\napi_key = \"{KEY}\"\nbase_url = \"{}\"\nmodels = [\"only\"]",
        stub.url
    ));
    run(&provider, &Request::prompt("hi")).await.text();
    assert_eq!(stub.asked()[0].body["model"], "only");
}

/// The whole mapping is one table: a changed rule is a changed line in review.
#[tokio::test]
async fn every_answer_has_its_outcome() {
    let stub = Stub::start().await;
    let provider = account(&stub);
    let error = Play::anthropic_error;
    let limited = || {
        error(
            429,
            "rate_limit_error",
            "This request would exceed the rate limit",
        )
    };
    let spend = json!({"type": "error", "error": {
        "type": "rate_limit_error", "message": "Spend limit reached",
        "details": {"error_code": "enforced_spend_limit_reached"},
    }});
    let in_stream = |kind: &str| {
        let error = json!({"type": kind, "message": "in the stream"});
        let events = events(&["Hel"]).into_iter().take(3);
        Play::stream(
            events.chain([event(json!({"type": "error", "error": error}))]),
            End::Whole,
        )
    };
    let cases = [
        ("429 with retry-after", limited().with("retry-after", "30")),
        (
            "429 with retry-after-ms",
            limited().with("retry-after-ms", "20000"),
        ),
        (
            "429 with a long retry-after",
            limited().with("retry-after", "3600"),
        ),
        (
            "429 with an exhausted limit",
            limited()
                .with("anthropic-ratelimit-requests-remaining", "7")
                .with("anthropic-ratelimit-requests-reset", in_seconds(1))
                .with("anthropic-ratelimit-tokens-remaining", "0")
                .with("anthropic-ratelimit-tokens-reset", in_seconds(90))
                .with("anthropic-ratelimit-output-tokens-remaining", "0")
                .with("anthropic-ratelimit-output-tokens-reset", in_seconds(60)),
        ),
        ("429 without a figure", limited()),
        ("429 enforced spend limit", Play::json(429, &spend)),
        (
            "429 spend limit with a wait",
            Play::json(429, &spend).with("retry-after", "30"),
        ),
        (
            "429 extra usage",
            error(
                429,
                "rate_limit_error",
                "Extra usage is required for long context requests.",
            ),
        ),
        ("529", error(529, "overloaded_error", "Overloaded")),
        (
            "529 with retry-after",
            error(529, "overloaded_error", "x").with("retry-after", "40"),
        ),
        ("503", error(503, "api_error", "unavailable")),
        ("500", error(500, "api_error", "Internal server error")),
        ("504", error(504, "timeout_error", "took too long")),
        (
            "502 of a proxy",
            Play::Http {
                status: 502,
                headers: vec![("content-type", "text/html".into())],
                body: "<html>\n<h1>502 Bad Gateway</h1>\n</html>".into(),
            },
        ),
        ("408", error(408, "timeout_error", "x")),
        ("409", error(409, "conflict_error", "x")),
        (
            "401 that quotes the key",
            error(401, "authentication_error", &format!("bad {KEY}!")),
        ),
        (
            "401 that quotes it in part",
            error(401, "authentication_error", "bad sk-ant-s**89"),
        ),
        ("403", error(403, "permission_error", "not for you")),
        ("402", error(402, "billing_error", "pay first")),
        (
            "400 low credit",
            error(
                400,
                "invalid_request_error",
                "Your credit balance is too low to access it",
            ),
        ),
        (
            "400 spend limit of a user",
            error(
                400,
                "invalid_request_error",
                "You have reached your specified API usage limits. You will regain access soon",
            ),
        ),
        (
            "400 disabled",
            error(
                400,
                "invalid_request_error",
                "This organization has been disabled.",
            ),
        ),
        (
            "400 long",
            error(
                400,
                "invalid_request_error",
                "prompt is too long: 9 tokens > 8",
            ),
        ),
        (
            "400",
            error(400, "invalid_request_error", "messages: must not be empty"),
        ),
        ("404", error(404, "not_found_error", "model: claude-nope")),
        ("413", error(413, "request_too_large", "too large")),
        (
            "422 of another server",
            Play::json(422, &json!({"detail": "unprocessable"})),
        ),
        (
            "405",
            Play::Http {
                status: 405,
                headers: vec![],
                body: String::new(),
            },
        ),
        (
            "a redirect",
            Play::Http {
                status: 302,
                headers: vec![("location", format!("{}/v1/elsewhere", stub.url))],
                body: String::new(),
            },
        ),
        (
            "a 200 that is cut JSON",
            Play::Http {
                status: 200,
                headers: vec![("content-type", "application/json".into())],
                body: "{\"type\":\"mess".into(),
            },
        ),
        (
            "an empty 200",
            Play::Http {
                status: 200,
                headers: vec![],
                body: String::new(),
            },
        ),
        (
            "garbage in an event",
            Play::stream(["data: {nope\n\n".to_owned()], End::Whole),
        ),
        (
            "garbage",
            Play::Stream {
                chunks: vec![vec![0xff, 0xfe, 0, 10, 10].into()],
                end: End::Whole,
            },
        ),
        (
            "no message_stop",
            Play::stream(events(&["Hel", "lo"]).into_iter().take(6), End::Whole),
        ),
        (
            "a cut stream",
            Play::stream(events(&["Hel", "lo"]).into_iter().take(4), End::Cut),
        ),
        ("overloaded in the stream", in_stream("overloaded_error")),
        ("limited in the stream", in_stream("rate_limit_error")),
        ("refused in the stream", in_stream("authentication_error")),
        ("wrong in the stream", in_stream("invalid_request_error")),
        ("broken in the stream", in_stream("api_error")),
        ("unknown in the stream", in_stream("new_error")),
        (
            "too long",
            Play::answer(&["x".repeat(60_000).as_str(), "y".repeat(60_000).as_str()]),
        ),
        (
            "one event too long",
            Play::stream([format!("data: {}", "z".repeat(1_000_000))], End::Never),
        ),
        (
            "all kinds of events",
            Play::stream(
                [
                    "\u{feff}: comment\r\n\r\n".to_owned(),
                    event(json!({"type": "ping"})),
                    event(json!({"type": "from_the_future", "delta": 1})),
                    event(json!({"type": "content_block_delta", "index": 0,
                        "delta": {"type": "thinking_delta", "thinking": "hm"}})),
                    event(json!({"type": "content_block_delta", "index": 1,
                        "delta": {"type": "text_delta", "text": "A"}})),
                    event(json!({"type": "content_block_delta", "index": 2,
                        "delta": {"type": "input_json_delta", "partial_json": "{"}})),
                    event(
                        json!({"type": "message_delta", "delta": {"stop_reason": "tool_use"},
                        "usage": {"input_tokens": 5, "output_tokens": 6}}),
                    ),
                    event(json!({"type": "message_stop"})),
                    "data: never read".to_owned(),
                ],
                End::Never,
            ),
        ),
    ];
    let mut table = String::new();
    for (name, play) in cases {
        stub.play(play);
        let ran = run(&provider, &Request::prompt("hi")).await;
        table += &format!("{name}\n    {}\n", ran.line().replace(&stub.url, "[stub]"));
    }
    insta::assert_snapshot!(table);
    assert!(
        stub.asked()
            .iter()
            .all(|asked| asked.path == "/v1/messages"),
        "it was redirected"
    );
}

#[tokio::test]
async fn a_stream_without_an_end_ends_with_the_timeout() {
    let stub = Stub::start().await;
    let provider = account(&stub);
    stub.play(Play::stream(
        events(&["Hel"]).into_iter().take(3),
        End::Never,
    ));
    let ran = run_for(&provider, &Request::prompt("hi"), Duration::from_secs(2)).await;
    assert_eq!(ran.failure(), "timeout");
    assert_eq!(ran.deltas, ["Hel"]);
    stub.is_alone().await;
}

#[tokio::test]
async fn a_cancel_closes_the_connection() {
    let stub = Stub::start().await;
    let provider = account(&stub);
    stub.play(Play::stream(
        events(&["Hel"]).into_iter().take(3),
        End::Never,
    ));
    let ran = cancel_when(&provider, &Request::prompt("hi"), |text| text == "Hel").await;
    assert_eq!(ran.outcome, Outcome::Cancelled);
    stub.is_alone().await;
}
