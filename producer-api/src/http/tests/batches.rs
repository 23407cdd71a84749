//! Batches over HTTP.

use axum::{body::Body, http::Request};
use serde_json::{Value, json};
use sluice_shared::{
    api::{BatchState, BatchView, Scope},
    clock,
    domain::{BatchId, Lane},
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    batches,
    http::testing::{Answer, Api},
};

/// An API where batches are looked after.
async fn start(settings: &str) -> (Api, JoinSet<()>) {
    let api = Api::with(settings).await;
    let mut tasks = JoinSet::new();
    tasks.spawn(batches::run(api.app.clone(), CancellationToken::new()));
    (api, tasks)
}

async fn upload_with(api: &Api, query: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let mut request = Request::post(format!("/api/batches{query}"))
        .header("authorization", format!("Bearer {}", api.key))
        .header("content-type", "application/jsonl");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    api.send(request.body(Body::from(body.to_owned())).unwrap())
        .await
}

async fn upload(api: &Api, query: &str, body: &str) -> Answer {
    upload_with(api, query, &[], body).await
}

fn view(answer: &Answer, status: u16) -> BatchView {
    assert_eq!(answer.status.as_u16(), status, "{answer:?}");
    serde_json::from_str(&answer.text).unwrap()
}

fn prompts(count: usize) -> String {
    (0..count)
        .map(|n| format!("{}\n", json!({"prompt": n.to_string()})))
        .collect()
}

async fn batch(api: &Api, id: BatchId) -> BatchView {
    view(&api.ask(&format!("GET /api/batches/{id}"), "").await, 200)
}

async fn results(api: &Api, id: BatchId, query: &str) -> (String, Vec<Value>) {
    let line = format!("GET /api/batches/{id}/results{query}");
    let answer = api.ask(&line, "").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.header("content-type"), "application/jsonl");
    let lines = answer.text.lines();
    (
        answer.header("sluice-batch-state").to_owned(),
        lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect(),
    )
}

/// Until all lines are jobs.
async fn fed(api: &Api, id: BatchId) {
    for _ in 0..1_000 {
        if api.app.store.batch(id).await.unwrap().unwrap().is_fed {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    panic!("it is not fed");
}

async fn ended(api: &Api, id: BatchId) -> BatchView {
    for _ in 0..1_000 {
        let batch = batch(api, id).await;
        if batch.state == BatchState::Ended {
            return batch;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    panic!("it does not end");
}

#[tokio::test]
async fn a_batch_is_taken_run_and_read() {
    let (api, _tasks) = start("").await;
    let body = format!(
        "{}\r\n\r\n{}",
        json!({"prompt": "a", "metadata": {"n": "1"}}),
        prompts(2)
    );
    let answer = upload(&api, "?name=nightly", &body).await;
    let taken = view(&answer, 202);
    assert_eq!(answer.header("location"), taken.url);
    assert_eq!((taken.total, taken.rejected), (3, 0));
    assert_eq!(
        (taken.name.as_deref(), taken.client.as_str()),
        (Some("nightly"), "admin")
    );
    assert_eq!((taken.state, taken.counts.queued), (BatchState::Running, 3));

    fed(&api, taken.id).await;
    assert_eq!(
        results(&api, taken.id, "").await,
        ("running".into(), vec![])
    );
    let dispatched = api.dispatch(&Lane::default()).await;
    assert_eq!(dispatched.len(), 3);
    // The second one ends first, and its result waits for the first one's.
    api.succeed(&dispatched[1]).await;
    assert_eq!(results(&api, taken.id, "").await.1, Vec::<Value>::new());
    api.succeed(&dispatched[0]).await;
    let (_, first) = results(&api, taken.id, "").await;
    assert_eq!(first.len(), 2);
    assert_eq!(
        (&first[0]["line"], &first[0]["metadata"]),
        (&json!(1), &json!({"n": "1"}))
    );
    assert_eq!(first[0]["result"]["text"], "done");
    api.succeed(&dispatched[2]).await;

    let last = ended(&api, taken.id).await;
    assert_eq!((last.counts.succeeded, last.counts.unfinished()), (3, 0));
    let (state, rest) = results(&api, taken.id, "?after=3").await;
    assert_eq!((state.as_str(), rest.len()), ("ended", 1));
    assert_eq!(
        (&rest[0]["line"], &rest[0]["state"]),
        (&json!(4), &json!("succeeded"))
    );
    let page = api.ask("GET /api/batches?limit=1", "").await.json();
    assert_eq!(page["batches"][0]["id"], json!(taken.id));
    let jobs = api
        .ask(&format!("GET /api/jobs?batch={}", taken.id), "")
        .await
        .json();
    assert_eq!(jobs["jobs"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn results_go_on_while_one_waits() {
    let (api, _tasks) = start("").await;
    let id = view(&upload(&api, "", &prompts(2)).await, 202).id;
    let mut read = JoinSet::new();
    {
        let (router, key) = (api.router.clone(), api.key.clone());
        read.spawn(async move {
            use tower::ServiceExt;
            let request = Request::get(format!("/api/batches/{id}/results?wait=30s"))
                .header("authorization", format!("Bearer {key}"));
            let answer = router
                .oneshot(request.body(Body::empty()).unwrap())
                .await
                .unwrap();
            axum::body::to_bytes(answer.into_body(), usize::MAX)
                .await
                .unwrap()
        });
    }
    fed(&api, id).await;
    for dispatch in api.dispatch(&Lane::default()).await {
        api.succeed(&dispatch).await;
    }
    let text = String::from_utf8(read.join_next().await.unwrap().unwrap().into()).unwrap();
    assert_eq!(text.lines().count(), 2, "{text}");
}

#[tokio::test]
async fn wrong_lines_are_named_and_nothing_is_taken() {
    let (api, _tasks) = start("").await;
    let body = "{\"prompt\": \"a\"}\n\n{\"prompt\": \"\"}\nnot json\n{\"promt\": \"b\"}\n{\"prompt\": \"c\", \"model\": \"m9\"}";
    let answer = upload(&api, "", body).await;
    assert_eq!(
        answer.problem(),
        (422, "invalid_batch".into(), "line 3".into())
    );
    let errors = answer.json()["errors"].clone();
    let fields: Vec<&str> = errors
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["field"].as_str().unwrap())
        .collect();
    assert_eq!(fields, ["line 3", "line 4", "line 5", "line 6"]);
    let text = errors.to_string();
    assert!(
        text.contains("prompt: is empty") && text.contains("unknown field `promt`"),
        "{text}"
    );
    assert!(
        text.contains("is no JSON") && !text.contains("line 1"),
        "{text}"
    );
    assert_eq!(api.app.store.backlog().await.unwrap(), 0);
    let page = api.ask("GET /api/batches", "").await.json();
    assert_eq!(page["batches"], json!([]));

    let many = "{}\n".repeat(5_000);
    let answer = upload(&api, "", &many).await;
    assert_eq!(answer.json()["errors"].as_array().unwrap().len(), 50);
}

#[tokio::test]
async fn wrong_lines_are_left_out_on_request() {
    let (api, _tasks) = start("[api]\nmax_body_bytes = 2000").await;
    let long = "x".repeat(3_000);
    let body = format!("{{}}\n{}{{\"prompt\": \"{long}\"}}\n", prompts(2));
    let taken = view(&upload(&api, "?partial=true", &body).await, 202);
    assert_eq!((taken.total, taken.rejected), (2, 2));
    let errors: Vec<(u64, &str)> = taken
        .errors
        .iter()
        .map(|e| (e.line, e.code.as_str()))
        .collect();
    assert_eq!(errors, [(1, "invalid_job"), (4, "body_too_large")]);
    fed(&api, taken.id).await;
    for dispatch in api.dispatch(&Lane::default()).await {
        api.succeed(&dispatch).await;
    }
    ended(&api, taken.id).await;
    let (_, lines) = results(&api, taken.id, "").await;
    let lines: Vec<(u64, bool)> = lines
        .iter()
        .map(|line| (line["line"].as_u64().unwrap(), line["error"].is_object()))
        .collect();
    assert_eq!(lines, [(1, true), (2, false), (3, false), (4, true)]);

    let answer = upload(&api, "?partial=true", "{}\n{}").await;
    assert_eq!(answer.problem().1, "invalid_batch");
}

#[tokio::test]
async fn what_cannot_be_an_upload_is_refused() {
    let (api, _tasks) = start("[batches]\nmax_jobs = 3\nmax_bytes = 500").await;
    let check = |answer: &Answer, status: u16, code: &str| {
        let (is, said, _) = answer.problem();
        assert_eq!((is, said.as_str()), (status, code), "{answer:?}");
    };
    check(&upload(&api, "", "").await, 422, "invalid_batch");
    check(&upload(&api, "", " \n\n").await, 422, "invalid_batch");
    check(&upload(&api, "", &prompts(4)).await, 422, "too_many_jobs");
    check(
        &upload(&api, "", &" ".repeat(501)).await,
        413,
        "body_too_large",
    );
    check(
        &upload(&api, "?partial=maybe", "{}").await,
        400,
        "bad_parameter",
    );
    check(&upload(&api, "?name=", "{}").await, 400, "bad_parameter");
    check(
        &upload(&api, "?colour=red", "{}").await,
        400,
        "bad_parameter",
    );
    check(
        &api.ask("POST /api/batches", "{}").await,
        415,
        "unsupported_media_type",
    );
    let compressed = upload_with(&api, "", &[("content-encoding", "gzip")], "x").await;
    check(&compressed, 415, "unsupported_media_type");
    let none = BatchId::generate();
    check(
        &api.ask(&format!("GET /api/batches/{none}"), "").await,
        404,
        "no_such_batch",
    );
    check(
        &api.ask(&format!("GET /api/batches/{none}/results"), "")
            .await,
        404,
        "no_such_batch",
    );
    check(
        &api.ask(&format!("POST /api/batches/{none}/cancel"), "")
            .await,
        404,
        "no_such_batch",
    );
    check(
        &api.ask("GET /api/batches?cursor=x", "").await,
        400,
        "bad_cursor",
    );
    check(
        &api.ask("GET /api/batches?limit=0", "").await,
        400,
        "bad_parameter",
    );
    let reader = api.mint("reader", Scope::Read).await;
    check(
        &api.ask_as(&reader, "POST /api/batches", "{}").await,
        403,
        "forbidden",
    );
    assert!(api.app.store.open_batches().await.unwrap().is_empty());
    assert_eq!(api.app.store.sweep_stages(clock::now()).await.unwrap(), 0);
}

#[tokio::test]
async fn a_key_stands_for_one_upload() {
    let (api, _tasks) = start("").await;
    let key = [("idempotency-key", "k")];
    let first = view(&upload_with(&api, "", &key, &prompts(3)).await, 202);
    let again = upload_with(&api, "", &key, &prompts(3)).await;
    assert_eq!(again.header("idempotency-replayed"), "true");
    assert_eq!(view(&again, 202).id, first.id);
    let other = upload_with(&api, "", &key, &prompts(4)).await;
    assert_eq!(other.problem().1, "idempotency_key_reused");
    let other = upload_with(&api, "?partial=true", &key, &prompts(3)).await;
    assert_eq!(other.problem().1, "idempotency_key_reused");
    let request = Request::post("/api/jobs")
        .header("authorization", format!("Bearer {}", api.key))
        .header("content-type", "application/json")
        .header("idempotency-key", "k")
        .body(Body::from("{\"prompt\": \"0\"}"));
    let job = api.send(request.unwrap()).await;
    assert_eq!(job.problem().1, "idempotency_key_reused");
    fed(&api, first.id).await;
    assert_eq!(api.app.store.backlog().await.unwrap(), 3);
}

#[tokio::test]
async fn a_batch_is_cancelled_by_its_client_or_an_operator() {
    let (api, _tasks) = start("").await;
    let id = view(&upload(&api, "", &prompts(2_500)).await, 202).id;
    let other = api.mint("other", Scope::Submit).await;
    let line = format!("POST /api/batches/{id}/cancel");
    assert_eq!(api.ask_as(&other, &line, "").await.problem().1, "forbidden");
    let cancelled = view(&api.ask(&line, "").await, 202);
    assert!(cancelled.cancel_requested_at.is_some());
    let last = ended(&api, id).await;
    assert_eq!(last.counts.cancelled, 2_500);
    assert_eq!(api.ask(&line, "").await.problem().1, "already_ended");
    let (_, lines) = results(&api, id, "").await;
    assert_eq!(lines.len(), 2_500);
    assert!(
        lines
            .iter()
            .all(|line| line["error"]["code"] == "cancelled")
    );
}
