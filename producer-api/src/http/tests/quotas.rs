//! What a key's client may have, and what a refusal says.

use axum::{body::Body, http::Request};
use serde_json::{Value, json};
use sluice_shared::domain::{Completion, Lane, Usage};

use crate::http::testing::{Answer, Api};

const JOB: &str = "{\"prompt\": \"a\"}";

/// A key with this quota: its secret and its id.
async fn key(api: &Api, name: &str, quota: Value) -> (String, String) {
    let body = json!({ "name": name, "scopes": ["submit"], "quota": quota });
    let made = api.ask("POST /api/keys", &body.to_string()).await;
    assert_eq!(made.status, 201, "{}", made.text);
    let made = made.json();
    let text = |field: &str| made[field].as_str().unwrap().to_owned();
    (text("key"), text("id"))
}

fn violated(answer: &Answer) -> Value {
    answer.json()["violated-policies"].clone()
}

#[tokio::test]
async fn a_key_that_asks_too_often_is_told_how_long_to_wait() {
    let api = Api::start().await;
    let (hasty, _) = key(&api, "hasty", json!({ "requests_per_minute": 3 })).await;
    for left in [2, 1, 0] {
        let answer = api.ask_as(&hasty, "GET /api/jobs", "").await;
        assert_eq!(answer.status, 200);
        let policy = answer.header("ratelimit-policy");
        assert_eq!(policy, "\"requests_per_minute\";q=3;w=60");
        let state = answer.header("ratelimit");
        let (name, seconds) = state.rsplit_once("t=").unwrap();
        assert_eq!(name, format!("\"requests_per_minute\";r={left};"));
        assert!((1..=60).contains(&seconds.parse::<u32>().unwrap()));
    }
    let refused = api.ask_as(&hasty, "GET /api/jobs", "").await;
    assert_eq!(refused.problem().1, "too_many_requests");
    assert_eq!(refused.status, 429);
    assert_eq!(violated(&refused), json!(["requests_per_minute"]));
    let state = refused.header("ratelimit").to_owned();
    let (_, resets) = state.rsplit_once("t=").unwrap();
    assert_eq!(refused.header("retry-after"), resets);
    // Nobody else is held to it, and nobody else is told of it.
    let other = api.ask("GET /api/jobs", "").await;
    assert_eq!(
        (other.status.as_u16(), other.header("ratelimit")),
        (200, "")
    );
}

#[tokio::test]
async fn a_backlog_takes_what_fits_into_it() {
    let api = Api::start().await;
    let (full, _) = key(&api, "full", json!({ "max_waiting": 3 })).await;
    let two = format!("[{JOB}, {JOB}]");
    assert_eq!(api.ask_as(&full, "POST /api/jobs", &two).await.status, 202);
    let refused = api.ask_as(&full, "POST /api/jobs", &two).await;
    assert_eq!(
        (refused.status.as_u16(), refused.problem().1),
        (429, "too_many_waiting".into())
    );
    assert_eq!(violated(&refused), json!(["max_waiting"]));
    assert!(!refused.header("retry-after").is_empty());
    // One that is scheduled waits, too.
    let later = "{\"prompt\": \"a\", \"delay\": \"1h\"}";
    assert_eq!(api.ask_as(&full, "POST /api/jobs", later).await.status, 202);
    assert_eq!(api.ask_as(&full, "POST /api/jobs", JOB).await.status, 429);
    assert_eq!(api.ask("POST /api/jobs", JOB).await.status, 202);
    api.dispatch(&Lane::default()).await;
    assert_eq!(api.ask_as(&full, "POST /api/jobs", JOB).await.status, 202);
}

#[tokio::test]
async fn a_refused_submit_leaves_its_idempotency_key_free() {
    let api = Api::start().await;
    let (full, _) = key(&api, "full", json!({ "max_waiting": 1 })).await;
    let send = async |idempotency: &str| {
        let request = Request::post("/api/jobs")
            .header("authorization", format!("Bearer {full}"))
            .header("content-type", "application/json")
            .header("idempotency-key", idempotency);
        api.send(request.body(Body::from(JOB)).unwrap()).await
    };
    assert_eq!(send("one").await.status, 202);
    assert_eq!(send("two").await.problem().1, "too_many_waiting");
    // What was taken before is still answered.
    assert_eq!(send("one").await.header("idempotency-replayed"), "true");
    api.dispatch(&Lane::default()).await;
    let again = send("two").await;
    assert_eq!(
        (again.status.as_u16(), again.header("idempotency-replayed")),
        (202, "")
    );
}

#[tokio::test]
async fn a_spent_budget_says_when_it_starts_anew() {
    let api = Api::start().await;
    let (poor, _) = key(&api, "poor", json!({ "tokens_per_day": 100 })).await;
    assert_eq!(api.ask_as(&poor, "POST /api/jobs", JOB).await.status, 202);
    let bound = api.dispatch(&Lane::default()).await;
    let usage = Usage {
        input_tokens: 60,
        output_tokens: 60,
        ..Usage::default()
    };
    api.answer(
        &bound[0],
        Completion {
            usage,
            ..Completion::default()
        },
    )
    .await;
    let refused = api.ask_as(&poor, "POST /api/jobs", JOB).await;
    assert_eq!(
        (refused.status.as_u16(), refused.problem().1),
        (429, "budget_spent".into())
    );
    assert_eq!(violated(&refused), json!(["tokens_per_day"]));
    let resets = refused.json()["resets_at"].as_str().unwrap().to_owned();
    assert!(resets.ends_with("T00:00:00.000Z"), "{resets}");
    let wait: u64 = refused.header("retry-after").parse().unwrap();
    assert!((1..=86_400).contains(&wait));
    assert_eq!(api.ask("POST /api/jobs", JOB).await.status, 202);
}

#[tokio::test]
async fn a_quota_is_changed_and_lifted() {
    let api = Api::start().await;
    let (secret, id) = key(&api, "one", json!({ "max_waiting": 1, "max_running": 2 })).await;
    let line = format!("PATCH /api/keys/{id}");
    let change = r#"{"weight": 7, "quota": {"max_waiting": null, "requests_per_minute": 1}}"#;
    let changed = api.ask(&line, change).await;
    assert_eq!(changed.status, 200, "{}", changed.text);
    assert_eq!(changed.json()["weight"], 7);
    let quota = json!({ "max_running": 2, "requests_per_minute": 1 });
    assert_eq!(changed.json()["quota"], quota);
    let listed = api.ask("GET /api/keys", "").await.json();
    assert_eq!(listed["keys"][0]["quota"], quota);
    assert_eq!(listed["keys"][1]["weight"], 1);
    assert_eq!(api.ask_as(&secret, "GET /api/jobs", "").await.status, 200);
    assert_eq!(api.ask_as(&secret, "GET /api/jobs", "").await.status, 429);
    api.ask(&line, r#"{"quota": {"requests_per_minute": null}}"#)
        .await;
    assert_eq!(api.ask_as(&secret, "GET /api/jobs", "").await.status, 200);
    // A key of the same name is the same client.
    let body = r#"{"name": "one", "scopes": ["read"]}"#;
    let second = api.ask("POST /api/keys", body).await.json();
    assert_eq!(
        (&second["weight"], &second["quota"]),
        (&json!(7), &json!({ "max_running": 2 }))
    );
}

#[tokio::test]
async fn a_quota_that_cannot_be_is_refused() {
    let api = Api::start().await;
    let (_, id) = key(&api, "one", json!({})).await;
    let line = format!("PATCH /api/keys/{id}");
    for (body, field) in [
        (r#"{"weight": 0}"#, "weight"),
        (r#"{"weight": 1001}"#, "weight"),
        (r#"{"weight": "much"}"#, "weight"),
        (r#"{"quota": {"max_waiting": 0}}"#, "quota.max_waiting"),
        (r#"{"quota": {"max_waiting": -1}}"#, "max_waiting"),
        (
            r#"{"quota": {"tokens_per_day": 18446744073709551615}}"#,
            "quota.tokens_per_day",
        ),
        (r#"{"quota": {"tokens_per_week": 1}}"#, "tokens_per_week"),
        (r#"{"quota": 1}"#, "quota"),
        (r#"{"name": "other"}"#, "name"),
    ] {
        let refused = api.ask(&line, body).await;
        let expected = (422, "invalid_key".into(), field.into());
        assert_eq!(refused.problem(), expected, "{body}: {}", refused.text);
    }
    let new = r#"{"name": "x", "scopes": ["read"], "quota": {"max_running": 0}}"#;
    assert_eq!(
        api.ask("POST /api/keys", new).await.problem().2,
        "quota.max_running"
    );
    let unknown = format!("PATCH /api/keys/{}", uuid::Uuid::now_v7());
    assert_eq!(api.ask(&unknown, "{}").await.problem().1, "no_such_key");
}

#[tokio::test]
async fn without_the_live_plane_nobody_is_refused() {
    let api = Api::cut_off().await;
    let (hasty, _) = key(&api, "hasty", json!({ "requests_per_minute": 1 })).await;
    for _ in 0..3 {
        let answer = api.ask_as(&hasty, "GET /api/jobs", "").await;
        assert_eq!(
            (answer.status.as_u16(), answer.header("ratelimit")),
            (200, "")
        );
    }
}
