//! Bad input: each a problem document with a stable code, and nothing kept.

use axum::{body::Body, http::Request};
use sluice_shared::domain::JobId;

use crate::http::testing::Api;

/// Sends each body to `POST /api/jobs`.
async fn check(api: &Api, body: &str, status: u16, code: &str, field: &str) {
    let answer = api.ask("POST /api/jobs", body).await;
    let shown: String = body.chars().take(200).collect();
    assert_eq!(
        answer.problem(),
        (status, code.into(), field.into()),
        "{shown}\n{}",
        answer.text
    );
}

#[tokio::test]
async fn a_body_that_is_no_job_is_refused() {
    let api = Api::start().await;
    for (body, status, code, field) in [
        (" ", 400, "malformed_json", ""),
        ("{", 400, "malformed_json", ""),
        ("{\"prompt\": \"a\"} {", 400, "malformed_json", ""),
        ("{\"prompt\": \"a\",}", 400, "malformed_json", ""),
        ("[{\"prompt\": \"a\"}", 400, "malformed_json", ""),
        ("nonsense", 400, "malformed_json", ""),
        ("{\"prompt\": \"\\ud800\"}", 400, "malformed_json", ""),
        ("7", 422, "invalid_job", "body"),
        ("null", 422, "invalid_job", "body"),
        ("[]", 422, "invalid_job", "body"),
        ("[7]", 422, "invalid_job", "[0]"),
        ("{\"prompt\": 7}", 422, "invalid_job", "prompt"),
        ("{\"promt\": \"a\"}", 422, "invalid_job", "promt"),
        (
            "[{\"prompt\": \"a\"}, {\"prompt\": \"a\", \"x\": 1}]",
            422,
            "invalid_job",
            "[1].x",
        ),
        (
            "{\"messages\": [{\"role\": \"user\", \"content\": \"a\", \"name\": \"b\"}]}",
            422,
            "invalid_job",
            "messages[0].name",
        ),
    ] {
        check(&api, body, status, code, field).await;
    }
    assert_eq!(api.app.store.backlog().await.unwrap(), 0);
}

#[tokio::test]
async fn a_job_that_cannot_be_is_refused() {
    let api = Api::with("[api]\nmax_prompt_bytes = 1000\nmax_jobs_per_submit = 3").await;
    let long = "x".repeat(1001);
    let with = |fields: &str| format!("{{\"prompt\": \"a\", {fields}}}");
    for (body, status, code, field) in [
        ("{}".into(), 422, "invalid_job", "prompt"),
        ("{\"prompt\": \"\"}".into(), 422, "invalid_job", "prompt"),
        ("{\"prompt\": \" \\n\"}".into(), 422, "invalid_job", "prompt"),
        ("{\"messages\": []}".into(), 422, "invalid_job", "messages"),
        ("{\"messages\": [{\"role\": \"system\", \"content\": \"a\"}]}".into(), 422, "invalid_job", "messages"),
        ("{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"user\", \"content\": \" \"}]}".into(), 422, "invalid_job", "messages[1].content"),
        (with("\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]"), 422, "invalid_job", "messages"),
        (format!("{{\"prompt\": \"{long}\"}}"), 413, "prompt_too_large", "prompt"),
        (with(&format!("\"system\": \"{}\"", &long[1..])), 413, "prompt_too_large", "prompt"),
        (format!("[{{\"prompt\": \"a\"}}, {{\"prompt\": \"{long}\"}}]"), 413, "prompt_too_large", "[1].prompt"),
        (with("\"priority\": 101"), 422, "invalid_job", "priority"),
        (with("\"priority\": -101"), 422, "invalid_job", "priority"),
        (with("\"priority\": 1.5"), 422, "invalid_job", "priority"),
        (with("\"timeout\": \"999ms\""), 422, "invalid_job", "timeout"),
        (with("\"timeout\": \"24h 1s\""), 422, "invalid_job", "timeout"),
        (with("\"timeout\": \"long\""), 422, "invalid_job", "timeout"),
        (with("\"max_attempts\": 0"), 422, "invalid_job", "max_attempts"),
        (with("\"max_attempts\": 101"), 422, "invalid_job", "max_attempts"),
        (with("\"max_attempts\": -1"), 422, "invalid_job", "max_attempts"),
        (with("\"delay\": \"1s\", \"run_at\": \"2026-01-01T00:00:00Z\""), 422, "invalid_job", "delay"),
        (with("\"delay\": \"366days\""), 422, "invalid_job", "delay"),
        (with("\"delay\": \"99999999999years\""), 422, "invalid_job", "delay"),
        (with("\"run_at\": \"9999-01-01T00:00:00Z\""), 422, "invalid_job", "run_at"),
        (with("\"run_at\": \"tomorrow\""), 422, "invalid_job", "run_at"),
        (with("\"run_at\": 1700000000"), 422, "invalid_job", "run_at"),
        (with("\"expires_at\": \"2020-01-01T00:00:00Z\""), 422, "invalid_job", "expires_at"),
        (with("\"expires_at\": \"-009999-01-01T00:00:00Z\""), 422, "invalid_job", "expires_at"),
        (with("\"delay\": \"300days\", \"expires_at\": \"2027-01-01T00:00:00Z\""), 422, "invalid_job", "expires_at"),
        (with("\"delivery\": \"exactly_once\""), 422, "invalid_job", "delivery"),
        (with("\"session\": \"\""), 422, "invalid_job", "session"),
        (with(&format!("\"session\": \"{}\"", &long[..256])), 422, "invalid_job", "session"),
        (with("\"model\": \"\""), 422, "invalid_job", "model"),
        (with(&format!("\"model\": \"{}\"", &long[..256])), 422, "invalid_job", "model"),
        (with("\"tags\": [\"\"]"), 422, "invalid_job", "tags[0]"),
        (with(&format!("\"tags\": [\"fast\", \"{}\"]", &long[..65])), 422, "invalid_job", "tags[1]"),
        (with(&format!("\"tags\": [{}\"t\"]", "\"t\",".repeat(16))), 422, "invalid_job", "tags"),
        (with("\"metadata\": {\"\": \"a\"}"), 422, "invalid_job", "metadata"),
        (with("\"metadata\": {\"a\": null}"), 422, "invalid_job", "metadata.a"),
        (with(&format!("\"metadata\": {{\"a\": \"{}\"}}", &long[..513])), 422, "invalid_job", "metadata.a"),
        (with(&format!("\"metadata\": {{\"{0}\": \"\"}}", &long[..65])), 422, "invalid_job", &format!("metadata.{}", &long[..65])),
        (with(&format!("\"metadata\": {{{}\"z\": \"\"}}", (0..32).map(|n| format!("\"{n}\": \"\",")).collect::<String>())), 422, "invalid_job", "metadata"),
        (with(&format!("\"params\": {{\"a\": \"{}\"}}", "x".repeat(70_000))), 422, "invalid_job", "params"),
        (format!("[{}{{\"prompt\": \"a\"}}]", "{\"prompt\": \"a\"},".repeat(3)), 422, "too_many_jobs", ""),
    ] {
        check(&api, &body, status, code, field).await;
    }
    assert_eq!(api.app.store.backlog().await.unwrap(), 0);
}

#[tokio::test]
async fn a_character_that_cannot_be_kept_is_refused() {
    let api = Api::start().await;
    for (body, field) in [
        (r#"{"prompt": "a\u0000b"}"#, "prompt"),
        (r#"{"prompt": "a", "system": "\u0000"}"#, "system"),
        (
            r#"{"messages": [{"role": "user", "content": "a\u0000"}]}"#,
            "messages[0].content",
        ),
        (r#"{"prompt": "a", "model": "m\u0000"}"#, "model"),
        (r#"{"prompt": "a", "session": "\u0000"}"#, "session"),
        (r#"{"prompt": "a", "tags": ["\u0000"]}"#, "tags[0]"),
        (
            r#"{"prompt": "a", "metadata": {"a": "\u0000"}}"#,
            "metadata.a",
        ),
        (
            r#"{"prompt": "a", "metadata": {"a\u0000": ""}}"#,
            "metadata",
        ),
        (
            r#"{"prompt": "a", "params": {"stop": ["\u0000"]}}"#,
            "params",
        ),
        (
            r#"{"prompt": "a", "params": {"a": {"b\u0000": 1}}}"#,
            "params",
        ),
        (r#"[{"prompt": "a"}, {"prompt": "\u0000"}]"#, "[1].prompt"),
    ] {
        check(&api, body, 422, "invalid_character", field).await;
    }
}

#[tokio::test]
async fn a_lane_without_an_account_is_refused_and_says_what_there_is() {
    let api = Api::start().await;
    for (options, field, words) in [
        (
            r#""account": "other""#,
            "account",
            "there are `main`, `spare`",
        ),
        (r#""model": "m9""#, "model", "there are `m1`, `m2`, `m3`"),
        (
            r#""account": "main", "model": "m3""#,
            "model",
            "`main` does not have the model `m3`; there are `m1`, `m2`",
        ),
        (
            r#""tags": ["eu", "us"]"#,
            "tags",
            "no account has the tag `us`; there are `eu`, `fast`, `slow`",
        ),
        (
            r#""account": "spare", "tags": ["fast"]"#,
            "tags",
            "`spare` does not have the tag `fast`",
        ),
        (
            r#""tags": ["fast", "slow"]"#,
            "tags",
            "no account has all of the tags `fast`, `slow`",
        ),
        (
            r#""model": "m1", "tags": ["slow"]"#,
            "tags",
            "together with the model",
        ),
    ] {
        let body = format!("{{\"prompt\": \"a\", {options}}}");
        let answer = api.ask("POST /api/jobs", &body).await;
        assert_eq!(
            answer.problem(),
            (422, "no_such_lane".into(), field.into()),
            "{body}"
        );
        assert!(answer.text.contains(words), "{}", answer.text);
    }
    let bare = Api::of("").await;
    check(&bare, "{\"prompt\": \"a\"}", 422, "no_such_lane", "account").await;
}

#[tokio::test]
async fn a_lane_key_fits_its_index() {
    let api = Api::of("[accounts.any]\nprovider = \"simulated\"").await;
    let wide = |count: usize| {
        format!(
            "{{\"prompt\": \"a\", \"model\": \"{}\"}}",
            "😀".repeat(count)
        )
    };
    check(&api, &wide(255), 422, "invalid_job", "model").await;
    api.submit(&wide(100)).await;
}

#[tokio::test]
async fn every_mistake_is_named_at_once() {
    let api = Api::start().await;
    let body =
        r#"[{"prompt": "", "priority": 500}, {"prompt": "a"}, {"prompt": "a", "timeout": "0s"}]"#;
    let answer = api.ask("POST /api/jobs", body).await;
    let errors = answer.json()["errors"].clone();
    let fields: Vec<&str> = errors
        .as_array()
        .unwrap()
        .iter()
        .map(|error| error["field"].as_str().unwrap())
        .collect();
    assert_eq!(fields, ["[0].prompt", "[0].priority", "[2].timeout"]);
    let many = format!("[{}{{}}]", "{},".repeat(900));
    let answer = api.ask("POST /api/jobs", &many).await;
    assert_eq!(answer.json()["errors"].as_array().unwrap().len(), 50);
}

#[tokio::test]
async fn the_frame_of_a_request_is_checked() {
    let api = Api::with("[api]\nmax_body_bytes = 2000\nmax_wait = \"10s\"").await;
    let good = "{\"prompt\": \"a\"}".to_owned();
    let id = JobId::generate();
    let json = ("content-type", "application/json");
    let one = format!("GET /api/jobs/{id}");
    let wait = |text: &str| format!("GET /api/jobs/{id}?wait={text}");
    for (line, headers, body, expected) in [
        (
            "POST /api/jobs".to_owned(),
            vec![],
            good.clone(),
            (415, "unsupported_media_type", ""),
        ),
        (
            "POST /api/jobs".into(),
            vec![("content-type", "text/plain")],
            good.clone(),
            (415, "unsupported_media_type", ""),
        ),
        (
            "POST /api/jobs".into(),
            vec![("content-type", "application/x-www-form-urlencoded")],
            good.clone(),
            (415, "unsupported_media_type", ""),
        ),
        (
            "POST /api/jobs".into(),
            vec![json, json],
            good.clone(),
            (400, "duplicate_header", "content-type"),
        ),
        (
            "POST /api/jobs".into(),
            vec![json, ("content-encoding", "gzip")],
            good.clone(),
            (415, "unsupported_media_type", ""),
        ),
        (
            "POST /api/jobs".into(),
            vec![json, ("idempotency-key", "")],
            good.clone(),
            (400, "bad_header", "idempotency-key"),
        ),
        (
            "POST /api/jobs".into(),
            vec![json, ("idempotency-key", "two words")],
            good.clone(),
            (400, "bad_header", "idempotency-key"),
        ),
        (
            "POST /api/jobs".into(),
            vec![json, ("idempotency-key", "a"), ("idempotency-key", "b")],
            good.clone(),
            (400, "duplicate_header", "idempotency-key"),
        ),
        (
            "POST /api/jobs".into(),
            vec![json, ("authorization", "Bearer x")],
            good.clone(),
            (400, "duplicate_header", "authorization"),
        ),
        (
            "POST /api/jobs".into(),
            vec![json],
            "x".repeat(2001),
            (413, "body_too_large", ""),
        ),
        (
            "POST /api/jobs?wait=30s".into(),
            vec![json],
            good,
            (400, "bad_parameter", "wait"),
        ),
        (
            "GET /api/jobs/7".into(),
            vec![],
            String::new(),
            (400, "bad_id", ""),
        ),
        (
            "GET /api/jobs/%FF".into(),
            vec![],
            String::new(),
            (400, "bad_id", ""),
        ),
        (
            "POST /api/jobs/x/cancel".into(),
            vec![],
            String::new(),
            (400, "bad_id", ""),
        ),
        (
            "POST /api/jobs/x/retry".into(),
            vec![],
            String::new(),
            (400, "bad_id", ""),
        ),
        (
            "DELETE /api/keys/x".into(),
            vec![],
            String::new(),
            (400, "bad_id", ""),
        ),
        (one.clone(), vec![], String::new(), (404, "no_such_job", "")),
        (
            format!("POST /api/jobs/{id}/cancel"),
            vec![],
            String::new(),
            (404, "no_such_job", ""),
        ),
        (
            format!("POST /api/jobs/{id}/retry"),
            vec![],
            String::new(),
            (404, "no_such_job", ""),
        ),
        (
            format!("DELETE /api/keys/{id}"),
            vec![],
            String::new(),
            (404, "no_such_key", ""),
        ),
        (
            "GET /api/accounts/other".into(),
            vec![],
            String::new(),
            (404, "no_such_account", ""),
        ),
        (
            "POST /api/accounts/other/pause".into(),
            vec![],
            String::new(),
            (404, "no_such_account", ""),
        ),
        (
            wait("soon"),
            vec![],
            String::new(),
            (400, "bad_parameter", "wait"),
        ),
        (
            wait("11s"),
            vec![],
            String::new(),
            (400, "bad_parameter", "wait"),
        ),
        (
            wait("1s&wait=1s"),
            vec![],
            String::new(),
            (400, "bad_parameter", "wait"),
        ),
        (
            wait("1s&what=1"),
            vec![],
            String::new(),
            (400, "bad_parameter", "what"),
        ),
        (
            "GET /api/jobs?cursor=x".into(),
            vec![],
            String::new(),
            (400, "bad_cursor", ""),
        ),
        (
            "GET /api/jobs?colour=red".into(),
            vec![],
            String::new(),
            (400, "bad_parameter", "colour"),
        ),
        (
            "GET /api/accounts?x=1".into(),
            vec![],
            String::new(),
            (400, "bad_parameter", "x"),
        ),
        (
            "GET /api/nothing".into(),
            vec![],
            String::new(),
            (404, "no_such_route", ""),
        ),
        (
            "GET /api/jobs/".into(),
            vec![],
            String::new(),
            (404, "no_such_route", ""),
        ),
    ] {
        let (method, path) = line.split_once(' ').unwrap();
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("authorization", format!("Bearer {}", api.key));
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let answer = api.send(request.body(Body::from(body)).unwrap()).await;
        let (status, code, field) = expected;
        assert_eq!(
            answer.problem(),
            (status, code.into(), field.into()),
            "{line}\n{}",
            answer.text
        );
    }
    assert_eq!(api.app.store.backlog().await.unwrap(), 0);
}

#[tokio::test]
async fn a_wrong_method_is_told_the_right_ones() {
    let api = Api::start().await;
    for (line, allowed) in [
        ("PUT /api/jobs", ["GET", "POST"].as_slice()),
        ("DELETE /api/jobs/x", &["GET"]),
        ("GET /api/jobs/x/cancel", &["POST"]),
        ("POST /health", &["GET"]),
    ] {
        let answer = api.ask(line, "").await;
        assert_eq!(
            answer.problem(),
            (405, "method_not_allowed".into(), String::new()),
            "{line}"
        );
        let allow = answer.header("allow");
        assert!(
            allowed.iter().all(|method| allow.contains(method)),
            "{line}: {allow}"
        );
    }
}
