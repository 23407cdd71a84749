//! The life of a job over HTTP.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sluice_shared::domain::{JobId, Lane};
use tokio::task::JoinSet;

use axum::{body::Body, http::Request};

use crate::http::testing::{Answer, Api, until};

async fn with_key(api: &Api, key: &str, body: &str) -> Answer {
    let request = Request::post("/api/jobs")
        .header("authorization", format!("Bearer {}", api.key))
        .header("content-type", "application/json")
        .header("idempotency-key", key);
    api.send(request.body(Body::from(body.to_owned())).unwrap())
        .await
}

#[tokio::test]
async fn a_job_is_kept_and_shown() {
    let api = Api::start().await;
    let body = json!({
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"}],
        "system": "s", "model": "m1", "params": {"max_tokens": 5}, "priority": -100,
        "timeout": "1m", "max_attempts": 7, "delivery": "at_most_once", "session": "s1",
        "account": "main", "tags": ["fast", "eu"], "metadata": {"team": "a"}, "delay": "1h",
        "expires_at": "2099-01-01T00:00:00Z",
    });
    let answer = api.ask("POST /api/jobs", &body.to_string()).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    let receipt = answer.json();
    assert_eq!(receipt["state"], "queued");
    assert_eq!(answer.header("location"), receipt["url"]);
    assert_eq!(answer.header("cache-control"), "no-store");
    assert_eq!(answer.header("x-content-type-options"), "nosniff");

    let job = api
        .ask(&format!("GET {}", receipt["url"].as_str().unwrap()), "")
        .await
        .json();
    let field = |name: &str| job[name].clone();
    assert_eq!(field("id"), receipt["id"]);
    assert_eq!(field("client"), "admin");
    assert_eq!(field("lane"), "account=main&model=m1&tag=eu&tag=fast");
    assert_eq!(
        (field("priority"), field("max_attempts")),
        (json!(-100), json!(7))
    );
    assert_eq!(
        (field("timeout"), field("delivery")),
        (json!("1m"), json!("at_most_once"))
    );
    assert_eq!(
        (field("session"), field("metadata")),
        (json!("s1"), json!({"team": "a"}))
    );
    assert_eq!(field("expires_at"), "2099-01-01T00:00:00.000Z");
    assert!(field("run_at").is_string());
    assert_eq!(field("request")["messages"], body["messages"]);
    assert_eq!(field("request")["params"], body["params"]);
    assert_eq!(field("attempts"), json!([]));
}

#[tokio::test]
async fn an_array_is_kept_in_its_order() {
    let api = Api::start().await;
    let bodies: Vec<Value> = (0..30).map(|n| json!({"prompt": n.to_string()})).collect();
    let answer = api
        .ask("POST /api/jobs", &Value::from(bodies).to_string())
        .await;
    assert_eq!(
        (answer.status.as_u16(), answer.header("location")),
        (202, "")
    );
    let receipts = answer.json();
    for (n, receipt) in receipts["jobs"].as_array().unwrap().iter().enumerate() {
        let job = api
            .ask(&format!("GET {}", receipt["url"].as_str().unwrap()), "")
            .await
            .json();
        assert_eq!(job["request"]["messages"][0]["content"], n.to_string());
    }
    let one = api.ask("POST /api/jobs", "[{\"prompt\": \"a\"}]").await;
    assert_eq!(one.header("location"), one.json()["jobs"][0]["url"]);
}

#[tokio::test]
async fn the_largest_array_is_taken_whole() {
    let api = Api::start().await;
    let body = Value::from(vec![json!({"prompt": "x".repeat(500)}); 1000]);
    let answer = api.ask("POST /api/jobs", &body.to_string()).await;
    assert_eq!(answer.status, 202);
    assert_eq!(api.app.store.backlog().await.unwrap(), 1000);
}

#[tokio::test]
async fn a_key_stands_for_one_request() {
    let api = Api::start().await;
    let first = with_key(
        &api,
        "\"k 1\"",
        r#"{"prompt": "a", "params": {"x": 1, "y": 2}}"#,
    )
    .await;
    assert_eq!(
        (first.status.as_u16(), first.header("idempotency-replayed")),
        (202, "")
    );
    api.dispatch(&Lane::default()).await;

    let body = r#" {"params": {"y": 2, "x": 1},  "prompt": "a"} "#;
    let again = with_key(&api, "\"k 1\"", body).await;
    assert_eq!(
        (again.status.as_u16(), again.header("idempotency-replayed")),
        (202, "true")
    );
    assert_eq!(again.header("location"), first.header("location"));
    assert_eq!(again.json()["id"], first.json()["id"]);
    assert_eq!(again.json()["state"], "dispatched");

    for other in [
        r#"{"prompt": "b"}"#,
        r#"[{"prompt": "a", "params": {"x": 1, "y": 2}}]"#,
    ] {
        let refused = with_key(&api, "\"k 1\"", other).await;
        assert_eq!(
            refused.problem(),
            (422, "idempotency_key_reused".into(), String::new())
        );
    }
    assert_eq!(api.app.store.backlog().await.unwrap(), 0);
}

#[tokio::test]
async fn a_key_may_come_quoted_or_bare_and_stands_for_an_array_too() {
    let api = Api::start().await;
    let body = r#"[{"prompt": "a"}, {"prompt": "b"}]"#;
    let first = with_key(&api, "order-7", body).await.json();
    let again = with_key(&api, "\"order-7\"", body).await;
    assert_eq!(again.header("idempotency-replayed"), "true");
    assert_eq!(again.json(), first);
    assert_eq!(api.app.store.backlog().await.unwrap(), 2);
}

#[tokio::test]
async fn the_same_request_many_times_at_once_is_one_job() {
    let api = Api::start().await;
    let sends = (0..20).map(|_| with_key(&api, "k", r#"{"prompt": "a"}"#));
    let answers = futures::future::join_all(sends).await;
    let fresh = answers
        .iter()
        .filter(|answer| answer.header("idempotency-replayed").is_empty());
    assert_eq!(fresh.count(), 1);
    assert!(
        answers
            .iter()
            .all(|answer| answer.json()["id"] == answers[0].json()["id"])
    );
    assert_eq!(api.app.store.backlog().await.unwrap(), 1);
}

#[tokio::test]
async fn a_long_poll_answers_when_the_job_ends() {
    let api = Api::start().await;
    let id = api.submit("{\"prompt\": \"a\"}").await;
    let dispatch = api.dispatch(&Lane::default()).await.remove(0);
    let line = format!("GET /api/jobs/{id}?wait=30s");
    let started = Instant::now();
    let end = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        api.succeed(&dispatch).await;
    };
    let (answer, ()) = tokio::join!(api.ask(&line, ""), end);
    assert!(started.elapsed() < Duration::from_secs(10));
    let job = answer.json();
    assert_eq!(
        (&job["state"], &job["result"]["text"]),
        (&json!("succeeded"), &json!("done"))
    );
    assert_eq!(job["attempts"][0]["outcome"], "completed");
    // One that has ended is answered at once.
    assert_eq!(api.ask(&line, "").await.json()["state"], "succeeded");
}

#[tokio::test]
async fn a_long_poll_ends_with_its_time_or_with_the_server() {
    let api = Api::start().await;
    let id = api.submit("{\"prompt\": \"a\"}").await;
    for wait in ["0s", "20ms"] {
        let answer = api
            .ask(&format!("GET /api/jobs/{id}?wait={wait}"), "")
            .await;
        assert_eq!(
            (answer.status.as_u16(), &answer.json()["state"]),
            (200, &json!("queued"))
        );
    }
    let line = format!("GET /api/jobs/{id}?wait=30s");
    let stop = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        api.shutdown.cancel();
    };
    let (answer, ()) = tokio::join!(api.ask(&line, ""), stop);
    assert_eq!(
        (answer.status.as_u16(), &answer.json()["state"]),
        (200, &json!("queued"))
    );
}

#[tokio::test]
async fn lists_are_filtered_and_paged() {
    let api = Api::start().await;
    for n in 0..7 {
        let body = json!({"prompt": "a", "model": if n < 2 { "m3" } else { "m1" },
            "metadata": {"n": n.to_string(), "team.name": "blue & green"}});
        api.submit(&body.to_string()).await;
    }
    api.dispatch(&Lane::new(None, Some("m3".into()), vec![]))
        .await;
    let count = async |query: &str| {
        let answer = api.ask(&format!("GET /api/jobs?{query}"), "").await;
        assert_eq!(answer.status, 200, "{query}: {answer:?}");
        answer.json()["jobs"].as_array().unwrap().len()
    };
    for (query, expected) in [
        ("", 7),
        ("state=queued", 5),
        ("state=queued,dispatched", 7),
        ("state=failed", 0),
        ("account=spare", 2),
        ("client=admin", 7),
        ("client=nobody", 0),
        ("model=m1", 5),
        ("metadata.n=3", 1),
        ("metadata.team.name=blue+%26+green", 7),
        (
            "metadata.team.name=blue+%26+green&metadata.n=3&state=queued",
            1,
        ),
        ("from=2026-01-01T00:00:00Z", 7),
        ("to=2026-01-01T00:00:00Z", 0),
    ] {
        assert_eq!(count(query).await, expected, "{query}");
    }
    let mut seen: Vec<Value> = Vec::new();
    let mut query = "limit=3&model=m1".to_owned();
    let mut pages = 0;
    loop {
        let page = api.ask(&format!("GET /api/jobs?{query}"), "").await.json();
        seen.extend(
            page["jobs"]
                .as_array()
                .unwrap()
                .iter()
                .map(|job| job["metadata"]["n"].clone()),
        );
        pages += 1;
        let Some(cursor) = page["next_cursor"].as_str() else {
            break;
        };
        query = format!("limit=3&model=m1&cursor={cursor}");
    }
    assert_eq!(
        (pages, seen),
        (
            2,
            vec![json!("6"), json!("5"), json!("4"), json!("3"), json!("2")]
        )
    );
}

#[tokio::test]
async fn a_waiting_job_is_cancelled_at_once_and_its_waiters_hear_it() {
    let api = Api::start().await;
    let id = api.submit("{\"prompt\": \"a\"}").await;
    let line = format!("GET /api/jobs/{id}?wait=30s");
    let cancel = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        api.ask(&format!("POST /api/jobs/{id}/cancel"), "").await
    };
    let (waited, cancelled) = tokio::join!(api.ask(&line, ""), cancel);
    assert_eq!(cancelled.status, 200);
    for job in [waited.json(), cancelled.json()] {
        assert_eq!(
            (&job["state"], &job["error"]["code"]),
            (&json!("cancelled"), &json!("cancelled"))
        );
    }
    let again = api.ask(&format!("POST /api/jobs/{id}/cancel"), "").await;
    assert_eq!(
        again.problem(),
        (409, "already_ended".into(), String::new())
    );
}

#[tokio::test]
async fn the_worker_of_a_running_job_is_told_to_stop() {
    let api = Api::start().await;
    let mut controls = api.app.broker.controls().await.unwrap();
    let id = api.submit("{\"prompt\": \"a\"}").await;
    api.dispatch(&Lane::default()).await;
    let answer = api.ask(&format!("POST /api/jobs/{id}/cancel"), "").await;
    assert_eq!(answer.status, 202);
    let job = answer.json();
    assert_eq!(
        (&job["state"], &job["cancel_requested"]),
        (&json!("dispatched"), &json!(true))
    );
    let told = controls.recv().await.unwrap();
    assert_eq!(
        told,
        sluice_shared::message::Control::Cancel {
            job: id,
            attempt: 1
        }
    );
}

#[tokio::test]
async fn an_ended_job_is_retried_as_a_new_one() {
    let api = Api::start().await;
    let body = json!({"prompt": "a", "model": "m1", "tags": ["eu"], "priority": 5, "timeout": "5s",
        "max_attempts": 1, "delivery": "at_most_once", "session": "s", "metadata": {"a": "b"},
        "params": {"x": 1}});
    let id = api.submit(&body.to_string()).await;
    let line = format!("POST /api/jobs/{id}/retry");
    assert_eq!(
        api.ask(&line, "").await.problem(),
        (409, "not_ended".into(), String::new())
    );
    api.ask(&format!("POST /api/jobs/{id}/cancel"), "").await;

    let receipt = api.ask(&line, "").await;
    assert_eq!(
        (receipt.status.as_u16(), &receipt.json()["state"]),
        (202, &json!("queued"))
    );
    let url = receipt.header("location").to_owned();
    let retried = api.ask(&format!("GET {url}"), "").await.json();
    let first = api.ask(&format!("GET /api/jobs/{id}"), "").await.json();
    assert_eq!(retried["retry_of"], id.to_string());
    for field in [
        "lane",
        "priority",
        "timeout",
        "max_attempts",
        "delivery",
        "session",
        "metadata",
        "client",
        "model",
        "request",
    ] {
        assert_eq!(retried[field], first[field], "{field}");
    }
    assert_eq!(
        (&first["state"], &retried["state"]),
        (&json!("cancelled"), &json!("queued"))
    );
}

#[tokio::test]
async fn a_retry_with_a_key_is_one_retry() {
    let api = Api::start().await;
    let id = api.submit("{\"prompt\": \"a\"}").await;
    api.ask(&format!("POST /api/jobs/{id}/cancel"), "").await;
    let retry = async |id: JobId| {
        let request = Request::post(format!("/api/jobs/{id}/retry"))
            .header("authorization", format!("Bearer {}", api.key))
            .header("idempotency-key", "again");
        api.send(request.body(Body::empty()).unwrap()).await
    };
    let (first, second) = (retry(id).await, retry(id).await);
    assert_eq!(first.json(), second.json());
    assert_eq!(second.header("idempotency-replayed"), "true");
    let other = api.submit("{\"prompt\": \"b\"}").await;
    api.ask(&format!("POST /api/jobs/{other}/cancel"), "").await;
    assert_eq!(retry(other).await.problem().1, "idempotency_key_reused");
}

#[tokio::test]
async fn a_client_that_hangs_up_leaves_no_waiter_behind() {
    let api = Api::start().await;
    let id = api.submit("{\"prompt\": \"a\"}").await;
    let router = api.router.clone();
    let key = api.key.clone();
    let mut polls = JoinSet::new();
    polls.spawn(async move {
        let request = Request::get(format!("/api/jobs/{id}?wait=30s"))
            .header("authorization", format!("Bearer {key}"))
            .body(Body::empty())
            .unwrap();
        tower::ServiceExt::oneshot(router, request).await
    });
    let waiting = |text: &str| format!("{:?}", api.app.waiters).contains(text);
    until(|| waiting(&id.to_string())).await;
    polls.shutdown().await;
    assert!(!waiting(&id.to_string()));
}

#[tokio::test]
async fn a_trace_context_goes_along() {
    let api = Api::start().await;
    let context = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    for given in [Some(context), None, Some("garbage")] {
        let mut request = Request::post("/api/jobs")
            .header("authorization", format!("Bearer {}", api.key))
            .header("content-type", "application/json");
        if let Some(given) = given {
            request = request.header("traceparent", given);
        }
        api.send(request.body(Body::from("{\"prompt\": \"a\"}")).unwrap())
            .await;
        let dispatch = api.dispatch(&Lane::default()).await.remove(0);
        let expected = given.filter(|given| *given == context);
        assert_eq!(dispatch.traceparent.as_deref(), expected);
    }
}
