//! Accounts, health, metrics and the pages.

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, Request, header},
    response::IntoResponse,
    routing::get,
};
use serde_json::json;
use sluice_shared::{
    clock,
    domain::{Lane, Span},
    live::Presence,
};
use tower::ServiceExt;

use crate::http::{testing::Api, wrap};

fn pinned(account: &str) -> Lane {
    Lane::new(Some(account.parse().unwrap()), None, vec![])
}

#[tokio::test]
async fn accounts_are_shown_paused_and_resumed() {
    let api = Api::start().await;
    let presence = Presence {
        worker: "w".into(),
        host: "h".into(),
        pid: 1,
        version: "0".into(),
        since: clock::now(),
        beat_at: clock::now(),
        accounts: vec!["main".parse().unwrap()],
        serves_all: false,
        troubles: Default::default(),
        in_flight: vec![],
    };
    api.app
        .live
        .beat(&presence, Span::seconds(60))
        .await
        .unwrap();
    api.app.workers.refresh(&api.app.live).await.unwrap();
    let accounts = api.ask("GET /api/accounts", "").await.json();
    assert_eq!(
        accounts["accounts"][0],
        json!({
            "id": "main", "provider": "simulated", "models": ["m1", "m2"], "tags": ["fast", "eu"],
            "max_concurrency": 8, "weight": 1, "source": "configuration",
            "standing": "active", "in_flight": 0, "workers": 1,
        })
    );
    assert_eq!(
        (
            &accounts["accounts"][1]["id"],
            &accounts["accounts"][1]["workers"]
        ),
        (&json!("spare"), &json!(0))
    );

    api.submit("{\"prompt\": \"a\", \"account\": \"main\"}")
        .await;
    let lane = pinned("main");
    let paused = api.ask("POST /api/accounts/main/pause", "").await;
    assert_eq!(paused.status, 200);
    assert_eq!(paused.json()["standing"], "paused");
    assert_eq!(paused.json()["reason"], "paused by admin");
    assert!(api.dispatch(&lane).await.is_empty());
    let resumed = api.ask("POST /api/accounts/main/resume", "").await.json();
    assert_eq!(
        (&resumed["standing"], &resumed["reason"]),
        (&json!("active"), &json!(null))
    );
    assert_eq!(api.dispatch(&lane).await.len(), 1);
    assert_eq!(
        api.ask("GET /api/accounts/main", "").await.json()["in_flight"],
        1
    );
}

#[tokio::test]
async fn health_needs_no_key_and_names_the_planes() {
    let api = Api::start().await;
    for path in ["/health", "/health/ready"] {
        let answer = api.ask_as("none", &format!("GET {path}"), "").await;
        assert_eq!(answer.status, 200);
        assert_eq!(
            answer.json(),
            json!({
                "status": "ok", "version": env!("CARGO_PKG_VERSION"),
                "planes": {
                    "truth": {"kind": "sqlite", "up": true},
                    "work": {"kind": "in-process", "up": true},
                    "live": {"kind": "memory", "up": true},
                },
            })
        );
    }
    assert_eq!(api.ask_as("none", "GET /health/live", "").await.status, 200);
}

#[tokio::test]
async fn without_broker_and_live_plane_jobs_are_accepted() {
    let api = Api::cut_off().await;
    let health = api.ask("GET /health", "").await;
    assert_eq!(health.status, 200);
    let health = health.json();
    assert_eq!(health["status"], "degraded");
    for (plane, kind) in [("work", "rabbitmq"), ("live", "redis")] {
        let plane = &health["planes"][plane];
        assert_eq!(
            (&plane["kind"], &plane["up"]),
            (&json!(kind), &json!(false))
        );
        assert!(plane["error"].is_string());
    }
    // Nothing of where they are is told to who has no key.
    assert!(!health.to_string().contains("127.0.0.1"));
    assert_eq!(api.ask("GET /health/ready", "").await.status, 200);

    let id = api.submit("{\"prompt\": \"a\"}").await;
    api.dispatch(&Lane::default()).await;
    let cancelled = api.ask(&format!("POST /api/jobs/{id}/cancel"), "").await;
    assert_eq!(cancelled.status, 202);
    api.app.workers.refresh(&api.app.live).await.unwrap_err();
    let accounts = api.ask("GET /api/accounts", "").await.json();
    assert_eq!(accounts["accounts"][0].get("workers"), None);
}

#[tokio::test]
async fn metrics_count_what_waits_and_what_runs() {
    // Of this thread alone: other tests may run in this process.
    let recorder = sluice_shared::telemetry::recorder().unwrap();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let recorded = recorder.handle();
    let api = Api::start().await;
    for _ in 0..3 {
        api.submit("{\"prompt\": \"a\"}").await;
    }
    api.submit("{\"prompt\": \"a\", \"account\": \"spare\"}")
        .await;
    api.dispatch(&pinned("spare")).await;
    let answer = api.ask_as("none", "GET /metrics", "").await;
    assert_eq!(answer.status, 200);
    assert!(
        answer
            .header("content-type")
            .starts_with("text/plain; version=0.0.4")
    );
    let text = recorded.render();
    for line in [
        "sluice_backlog_jobs 3",
        "sluice_in_flight{account=\"main\"} 0",
        "sluice_in_flight{account=\"spare\"} 1",
        "sluice_jobs_submitted_total 4",
        "sluice_http_responses_total{class=\"2xx\"} 5",
    ] {
        assert!(text.lines().any(|other| other == line), "{line}\n{text}");
    }
}

#[tokio::test]
async fn a_panic_is_a_problem_that_tells_nothing() {
    async fn panics() {
        panic!("the password is hunter2");
    }
    let router: Router = wrap(Router::new().route("/", get(panics)));
    let request = Request::get("/").body(Body::empty()).unwrap();
    let response = router.oneshot(request).await.unwrap();
    assert_eq!(response.status(), 500);
    assert_eq!(
        response.headers()["content-type"],
        "application/problem+json"
    );
    assert_eq!(response.headers()["x-content-type-options"], "nosniff");
    let body = axum::body::to_bytes(response.into_body(), usize::MAX)
        .await
        .unwrap();
    let text = String::from_utf8(body.into()).unwrap();
    assert!(
        text.contains("\"internal\"") && !text.contains("hunter2"),
        "{text}"
    );
}

#[tokio::test]
async fn the_pages_are_there() {
    let api = Api::start().await;
    assert_eq!(api.ask_as("none", "GET /", "").await.status, 200);
    let (page, policy) = plain_home("sluice.example").await;
    assert!(page.contains(env!("CARGO_PKG_VERSION")) && page.contains("/api/jobs"));
    assert!(!page.contains("{host}") && !page.contains("{version}"));
    assert!(policy.contains("default-src 'none'"));
    let problems = api.ask_as("none", "GET /docs/problems", "").await;
    assert!(problems.text.contains("id=\"no_such_lane\""));
    let docs = api.ask_as("none", "GET /docs", "").await;
    assert_eq!(
        (docs.status.as_u16(), docs.header("location")),
        (303, "/docs/")
    );
    assert!(
        api.ask_as("none", "GET /docs/", "")
            .await
            .text
            .contains("swagger")
    );
    let script = api
        .ask_as("none", "GET /docs/swagger-initializer.js", "")
        .await;
    assert!(script.text.contains("/api/openapi.json"), "{}", script.text);
}

#[tokio::test]
async fn a_host_is_shown_only_if_it_is_one() {
    for (host, shown) in [
        ("sluice.example:8080", "http://sluice.example:8080/"),
        ("<b>", "http://127.0.0.1:3000/"),
    ] {
        let (page, _) = plain_home(host).await;
        assert!(page.contains(shown) && !page.contains("<b>"), "{host}");
    }
}

/// The page at the root of a server without the dashboard, with its content policy.
async fn plain_home(host: &str) -> (String, String) {
    let headers = HeaderMap::from_iter([(header::HOST, host.parse().unwrap())]);
    let answer = crate::http::pages::home(&headers).into_response();
    let policy = answer.headers()[header::CONTENT_SECURITY_POLICY]
        .to_str()
        .unwrap()
        .to_owned();
    let body = axum::body::to_bytes(answer.into_body(), 1 << 20)
        .await
        .unwrap();
    (String::from_utf8(body.into()).unwrap(), policy)
}
