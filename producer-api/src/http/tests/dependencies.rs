//! Jobs that come after others, over HTTP.

use serde_json::json;
use sluice_shared::domain::{JobId, Lane};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{dependents, http::testing::Api};

#[tokio::test]
async fn a_job_gets_the_results_of_those_before_it() {
    let api = Api::start().await;
    let mut tasks = JoinSet::new();
    tasks.spawn(dependents::run(api.app.clone(), CancellationToken::new()));
    let first = api.submit(r#"{"prompt": "a"}"#).await;
    let body = json!({"messages": [{"role": "user", "content": "b: {{ results[0] }}"}],
        "system": format!("{{{{ results.{first} }}}}"), "after": [first]});
    let second = api.submit(&body.to_string()).await;
    let shown = api.ask(&format!("GET /api/jobs/{second}"), "").await.json();
    assert_eq!(shown["after"], json!([first]));
    assert_eq!(shown["waiting_for"], "the jobs that it comes after");
    assert!(shown.get("run_at").is_none());
    for dispatch in api.dispatch(&Lane::default()).await {
        assert_eq!(dispatch.job, first);
        api.succeed(&dispatch).await;
    }
    let mut bound = Vec::new();
    for _ in 0..1_000 {
        bound = api.dispatch(&Lane::default()).await;
        if !bound.is_empty() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert_eq!(bound[0].job, second);
    assert_eq!(bound[0].request.messages[0].content, "b: done");
    assert_eq!(bound[0].request.system.as_deref(), Some("done"));
    // One that comes when those before it have ended does not wait.
    let third = api
        .submit(&json!({"prompt": "c", "after": [first]}).to_string())
        .await;
    for _ in 0..1_000 {
        bound = api.dispatch(&Lane::default()).await;
        if !bound.is_empty() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert_eq!(bound[0].job, third);
}

#[tokio::test]
async fn what_cannot_come_after_anything_is_refused() {
    let api = Api::start().await;
    let first = api.submit(r#"{"prompt": "a"}"#).await;
    let none = JobId::generate();
    let check = async |body: serde_json::Value, field: &str| {
        let answer = api.ask("POST /api/jobs", &body.to_string()).await;
        assert_eq!(
            answer.problem(),
            (422, "invalid_job".into(), field.into()),
            "{answer:?}"
        );
    };
    check(json!({"prompt": "b", "after": [none]}), "after[0]").await;
    check(
        json!([{"prompt": "b"}, {"prompt": "b", "after": [first, none]}]),
        "[1].after[1]",
    )
    .await;
    check(json!({"prompt": "b", "after": [first, first]}), "after[1]").await;
    check(json!({"prompt": "b", "after": ["x"]}), "after[0]").await;
    check(
        json!({"prompt": "b", "on_parent_failure": "run"}),
        "on_parent_failure",
    )
    .await;
    check(
        json!({"prompt": "{{ results[1] }}", "after": [first]}),
        "prompt",
    )
    .await;
    check(json!({"prompt": "{{ 7 * 7 }}", "after": [first]}), "prompt").await;
    check(json!({"prompt": "b", "after": vec![first; 101]}), "after").await;
    // Without `after`, braces are nothing but braces.
    api.submit(r#"{"prompt": "{{ results[1] }}"}"#).await;
}
