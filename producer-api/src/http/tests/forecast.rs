//! What will become of jobs.

use serde_json::json;
use sluice_shared::{
    clock,
    domain::{Lane, Span, Time},
    live::Presence,
};

use crate::http::testing::Api;

fn time(value: &serde_json::Value) -> Time {
    value.as_str().unwrap().parse().unwrap()
}

/// An API whose accounts have a worker.
async fn with_a_worker() -> Api {
    let api = Api::start().await;
    let now = clock::now();
    let presence = Presence {
        worker: "w".into(),
        host: "h".into(),
        pid: 1,
        version: "0".into(),
        since: now,
        beat_at: now,
        accounts: api
            .app
            .roster
            .accounts()
            .iter()
            .map(|account| account.id.clone())
            .collect(),
        in_flight: vec![],
        serves_all: false,
        troubles: Default::default(),
    };
    api.app
        .live
        .beat(&presence, Span::seconds(60))
        .await
        .unwrap();
    api.app.workers.refresh(&api.app.live).await.unwrap();
    api
}

#[tokio::test]
async fn a_job_that_waits_says_where_it_stands_and_when_it_may_start() {
    let api = with_a_worker().await;
    // Two accounts with eight slots each take sixteen jobs; the others wait for 30 s.
    let mut ids = Vec::new();
    for _ in 0..20 {
        ids.push(api.submit("{\"prompt\": \"a\"}").await);
    }
    let first = api
        .ask(&format!("GET /api/jobs/{}", ids[0]), "")
        .await
        .json();
    assert_eq!(first["position"], 1);
    api.dispatch(&Lane::default()).await;
    let running = api
        .ask(&format!("GET /api/jobs/{}", ids[0]), "")
        .await
        .json();
    assert_eq!(
        (&running["position"], &running["estimated_start_at"]),
        (&json!(null), &json!(null))
    );
    let before = clock::now();
    let mut last = before;
    for (index, id) in ids[16..].iter().enumerate() {
        let job = api.ask(&format!("GET /api/jobs/{id}"), "").await.json();
        assert_eq!(job["position"], index + 1);
        let start = time(&job["estimated_start_at"]);
        assert!(
            start > before && start.since(before).as_secs() <= 30,
            "{job}"
        );
        assert!(start.as_millis() + 1_000 >= last.as_millis(), "{job}");
        last = start;
    }
    let pinned = api
        .submit("{\"prompt\": \"a\", \"account\": \"main\", \"priority\": 5}")
        .await;
    let job = api.ask(&format!("GET /api/jobs/{pinned}"), "").await.json();
    assert_eq!(job["position"], 1);
    let scheduled = api.submit("{\"prompt\": \"a\", \"delay\": \"1h\"}").await;
    let job = api
        .ask(&format!("GET /api/jobs/{scheduled}"), "")
        .await
        .json();
    assert_eq!(job["position"], json!(null));
}

#[tokio::test]
async fn a_batch_is_forecast_with_its_bottleneck() {
    let api = with_a_worker().await;
    let asked = api
        .ask("GET /api/forecast?jobs=160&per_hour=1920", "")
        .await;
    assert_eq!(asked.status, 200, "{}", asked.text);
    let forecast = asked.json();
    // Sixteen slots of 30 s each: ten rounds.
    let (start, end) = (time(&forecast["starts_at"]), time(&forecast["done_at"]));
    assert_eq!(end.since(start).as_secs(), 300);
    assert_eq!(forecast["jobs_per_hour"], 1920);
    assert_eq!(forecast["bottleneck"]["kind"], "slots");
    assert_eq!(forecast["accounts"][0]["jobs"], 80);
    assert_eq!(forecast["accounts_needed"], 2);
    let narrow = api
        .ask("GET /api/forecast?jobs=160&model=m3&tags=slow,eu", "")
        .await
        .json();
    assert_eq!(narrow["accounts"][0]["id"], "spare");
    assert_eq!(
        time(&narrow["done_at"])
            .since(time(&narrow["starts_at"]))
            .as_secs(),
        600
    );
    for account in ["main", "spare"] {
        api.ask(&format!("POST /api/accounts/{account}/pause"), "")
            .await;
    }
    let none = api.ask("GET /api/forecast?jobs=5", "").await.json();
    assert_eq!(
        (&none["done_at"], &none["bottleneck"]["kind"]),
        (&json!(null), &json!("no_account"))
    );
}

#[tokio::test]
async fn a_forecast_of_nothing_is_refused() {
    let api = Api::start().await;
    for (query, status, field) in [
        ("jobs=0", 400, "jobs"),
        ("jobs=10000001", 400, "jobs"),
        ("jobs=-1", 400, "jobs"),
        ("jobs=many", 400, "jobs"),
        ("per_hour=0", 400, "per_hour"),
        ("priority=101", 400, "priority"),
        ("account=No%20One", 400, "account"),
        ("model=a%00b", 400, "model"),
        ("lane=any", 400, "lane"),
        ("model=none-such", 422, "model"),
        ("tags=none-such", 422, "tags"),
        ("account=none-such", 422, "account"),
    ] {
        let refused = api.ask(&format!("GET /api/forecast?{query}"), "").await;
        let problem = refused.problem();
        assert_eq!(
            (problem.0, problem.2),
            (status, field.to_owned()),
            "{query}: {}",
            refused.text
        );
    }
}
