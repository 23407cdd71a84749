//! Strategies, explanations, the queue's status.

use serde_json::json;
use sluice_shared::domain::Lane;

use crate::http::testing::Api;

#[tokio::test]
async fn a_strategy_is_chosen_at_run_time() {
    let api = Api::start().await;
    assert_eq!(
        api.ask("GET /api/routing", "").await.json(),
        json!({"strategy": "round-robin", "source": "configuration", "lanes": {}})
    );
    let body =
        r#"{"strategy": "headroom", "lanes": {"tag=eu&model=m1": "weighted", "any": "expiring"}}"#;
    let chosen = api.ask("PUT /api/routing", body).await;
    assert_eq!(chosen.status, 200);
    let expected = json!({
        "strategy": "headroom", "source": "api",
        "lanes": {"any": "expiring", "model=m1&tag=eu": "weighted"},
    });
    assert_eq!(chosen.json(), expected);
    assert_eq!(api.ask("GET /api/routing", "").await.json(), expected);
    let back = api.ask("PUT /api/routing", "{}").await.json();
    assert_eq!(
        back,
        json!({"strategy": "round-robin", "source": "configuration", "lanes": {}})
    );
}

#[tokio::test]
async fn another_process_follows() {
    let api = Api::start().await;
    let other = crate::routes::Routes::new(sluice_shared::domain::route::Strategy::RoundRobin);
    api.ask("PUT /api/routing", r#"{"lanes": {"any": "weighted"}}"#)
        .await;
    other.refresh(&api.app.store).await.unwrap();
    assert_eq!(other.routing().of("any").as_str(), "weighted");
    assert_eq!(other.routing().of("tag=x").as_str(), "round-robin");
}

#[tokio::test]
async fn what_is_no_routing_is_refused_by_name() {
    let api = Api::start().await;
    let cases = [
        (r#"{"strategy": "fastest"}"#, "strategy"),
        (
            r#"{"lanes": {"colour=red": "weighted"}}"#,
            "lanes.colour=red",
        ),
        (r#"{"lanes": {"any": "best"}}"#, "lanes.any"),
        (
            r#"{"lanes": {"tag=a&tag=b": "weighted", "tag=b&tag=a": "weighted"}}"#,
            "lanes.tag=b&tag=a",
        ),
        (r#"{"lane": {}}"#, "lane"),
        (r"[]", "body"),
    ];
    for (body, field) in cases {
        let answer = api.ask("PUT /api/routing", body).await;
        let problem = (422, "invalid_routing".to_owned(), field.to_owned());
        assert_eq!(answer.problem(), problem, "{body}");
    }
    let reader = api.mint("reader", sluice_shared::api::Scope::Submit).await;
    assert_eq!(
        api.ask_as(&reader, "GET /api/routing", "").await.status,
        200
    );
    assert_eq!(
        api.ask_as(&reader, "PUT /api/routing", "{}").await.status,
        403
    );
}

#[tokio::test]
async fn a_waiting_job_says_what_it_waits_for() {
    let api = Api::start().await;
    let first = api
        .submit(r#"{"prompt": "a", "account": "main", "session": "s"}"#)
        .await;
    let second = api.submit(r#"{"prompt": "b", "account": "main"}"#).await;
    let explained = api
        .ask(&format!("GET /api/jobs/{second}/explain"), "")
        .await;
    let explained = explained.json();
    // No worker is there in this test, and none was ever heard of.
    assert_eq!(explained["waits"]["for"], "worker", "{explained:#}");
    assert_eq!(explained["waits"]["ahead"], json!({"jobs": 1}));
    assert_eq!(explained["accounts"][0]["account"], "main");
    assert_eq!(
        explained["accounts"][0]["refused"],
        json!({"why": "no_worker"})
    );
    api.ask("POST /api/accounts/main/pause", "").await;
    let explained = api.ask(&format!("GET /api/jobs/{first}/explain"), "").await;
    assert_eq!(explained.json()["waits"]["for"], "operator");
    let later = api
        .submit(r#"{"prompt": "c", "delay": "1h", "account": "main"}"#)
        .await;
    let explained = api.ask(&format!("GET /api/jobs/{later}/explain"), "").await;
    let explained = explained.json();
    assert_eq!(explained["waits"]["for"], "time", "{explained:#}");
    assert!(explained["waits"]["until"].is_string());

    let status = api.ask("GET /api/queue/status", "").await.json();
    assert_eq!(status["waiting"], json!({"jobs": 2}), "{status:#}");
    assert_eq!(status["scheduled"], json!({"jobs": 1}));
    assert_eq!(status["lanes"][0]["lane"], "account=main");
    assert_eq!(status["lanes"][0]["for"], "operator");
    assert_eq!(status["lanes"][0]["accounts"], 1);
    assert!(status["oldest"].is_string());
    assert_eq!(status["accounts"].as_array().unwrap().len(), 2);
    assert_eq!(
        status["accounts"][0]["refused"],
        json!({"why": "out", "standing": "paused"})
    );
}

#[tokio::test]
async fn a_dispatch_is_explained_as_it_was() {
    let api = Api::start().await;
    let job = api.submit(r#"{"prompt": "a", "tags": ["eu"]}"#).await;
    let lane = Lane::new(None, None, vec!["eu".into()]);
    let dispatch = api.dispatch(&lane).await.remove(0);
    let explained = api.ask(&format!("GET /api/jobs/{job}/explain"), "").await;
    let explained = explained.json();
    let dispatched = &explained["dispatches"][0];
    assert_eq!(dispatched["account"], dispatch.account.as_str());
    assert_eq!(dispatched["attempt"], 1);
    assert!(dispatched.get("outcome").is_none() && explained.get("waits").is_none());
    api.succeed(&dispatch).await;
    let explained = api.ask(&format!("GET /api/jobs/{job}/explain"), "").await;
    assert_eq!(explained.json()["dispatches"][0]["outcome"], "completed");
}

#[tokio::test]
async fn fallbacks_that_cannot_be_are_refused_by_name() {
    let api = Api::start().await;
    let cases = [
        (r#""fallbacks": [{"model": "m2"}]"#, "fallbacks[0]"),
        (
            r#""fallbacks": [{"model": "m9", "on": "failure"}]"#,
            "fallbacks[0].model",
        ),
        (
            r#""fallbacks": [{"tags": ["x"], "after": "5s"}]"#,
            "fallbacks[0].tags",
        ),
        (
            r#""fallbacks": [{"account": "gone", "after": "5s"}]"#,
            "fallbacks[0].account",
        ),
        (
            r#""fallbacks": [{"tags": [""], "after": "5s"}]"#,
            "fallbacks[0].tags[0]",
        ),
        (
            r#""fallbacks": [{"model": "m2", "after": "0s"}]"#,
            "fallbacks[0].after",
        ),
        (
            r#""fallbacks": [{"model": "m2", "after": "soon"}]"#,
            "fallbacks[0].after",
        ),
        (
            r#""fallbacks": [{"model": "m2", "on": "sunday"}]"#,
            "fallbacks[0].on",
        ),
        (
            r#""fallbacks": [{"modell": "m2", "on": "failure"}]"#,
            "fallbacks[0].modell",
        ),
        (r#""fallbacks": [{"on": "failure"}]"#, "fallbacks[0]"),
        (
            r#""fallbacks": [{"model": "m2", "after": "5s"}, {"model": "m2", "after": "5s"}]"#,
            "fallbacks[1]",
        ),
        (
            r#""delivery": "at_most_once", "fallbacks": [{"model": "m2", "on": "failure"}]"#,
            "fallbacks[0].on",
        ),
        (
            r#""max_attempts": 1, "fallbacks": [{"model": "m2", "on": "failure"}]"#,
            "fallbacks[0].on",
        ),
        (
            r#""fallbacks": [{"model": "m2", "after": "31d"}]"#,
            "fallbacks[0].after",
        ),
        (r#""models": ["m1", "m2"], "model": "m1""#, "models"),
        (r#""models": ["m1", "m9"]"#, "models[1]"),
        (r#""models": ["m9", "m1"]"#, "models[0]"),
        (r#""models": ["m1", "m1"]"#, "models[1]"),
        (r#""models": ["m1", ""]"#, "models[1]"),
        (
            r#""models": ["m1"], "fallbacks": [{"model": "m2", "on": "failure"}]"#,
            "fallbacks",
        ),
    ];
    for (options, field) in cases {
        let answer = api
            .ask(
                "POST /api/jobs",
                &format!("{{\"prompt\": \"a\", {options}}}"),
            )
            .await;
        let (status, _, named) = answer.problem();
        assert_eq!(
            (status, named.as_str()),
            (422, field),
            "{options}: {answer:?}"
        );
    }
    let soon = sluice_shared::clock::now() + std::time::Duration::from_secs(20);
    let body = format!(
        r#"{{"prompt": "a", "expires_at": "{soon}", "fallbacks": [{{"tags": ["eu"], "after": "30s"}}]}}"#
    );
    let (_, _, named) = api.ask("POST /api/jobs", &body).await.problem();
    assert_eq!(named, "fallbacks[0].after");
}

#[tokio::test]
async fn a_job_shows_its_way_and_a_retry_begins_it_anew() {
    let api = Api::start().await;
    let job = api
        .submit(r#"{"prompt": "a", "models": ["m1", "m3"], "max_attempts": 2}"#)
        .await;
    let way = |job: sluice_shared::domain::JobId| {
        let line = format!("GET /api/jobs/{job}/explain");
        let api = &api;
        async move { api.ask(&line, "").await.json()["steps"].clone() }
    };
    let steps = way(job).await;
    assert_eq!(steps[0]["current"], true, "{steps:#}");
    assert_eq!(
        (
            &steps[1]["lane"],
            &steps[1]["after"],
            &steps[1]["on_failure"]
        ),
        (&json!("model=m3"), &json!("30s"), &json!(true))
    );
    assert!(steps[1]["due"].is_string());
    let later = sluice_shared::clock::now() + std::time::Duration::from_secs(31);
    assert_eq!(api.app.store.fall_back(later).await.unwrap(), ["model=m3"]);
    let shown = api.ask(&format!("GET /api/jobs/{job}"), "").await.json();
    assert_eq!(
        (&shown["lane"], &shown["model"], &shown["request"]["model"]),
        (&json!("model=m3"), &json!("m3"), &json!("m3"))
    );
    api.ask(&format!("POST /api/jobs/{job}/cancel"), "").await;
    let again = api.ask(&format!("POST /api/jobs/{job}/retry"), "").await;
    let again = again.json()["id"].as_str().unwrap().to_owned();
    let shown = api.ask(&format!("GET /api/jobs/{again}"), "").await.json();
    assert_eq!(
        (&shown["lane"], &shown["request"]["model"]),
        (&json!("model=m1"), &json!("m1"))
    );
    assert_eq!(way(again.parse().unwrap()).await[0]["current"], true);
}
