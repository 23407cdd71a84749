//! Schedules over HTTP, and that each time fires once.

use std::time::Duration;

use serde_json::{Value, json};
use sluice_shared::{
    api::{Missed, Scope},
    clock,
    domain::Time,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{http::testing::Api, schedules, store::ScheduleRow};

async fn make(api: &Api, change: Value) -> Value {
    let mut body = json!({"name": "daily", "cron": "0 7 * * *", "timezone": "Europe/Berlin",
        "job": {"prompt": "a", "priority": -5}});
    for (key, value) in change.as_object().unwrap() {
        body[key] = value.clone();
    }
    let answer = api.ask("POST /api/schedules", &body.to_string()).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    answer.json()
}

#[tokio::test]
async fn a_schedule_is_made_shown_changed_and_removed() {
    let api = Api::start().await;
    let made = make(&api, json!({})).await;
    let line = format!("/api/schedules/{}", made["id"].as_str().unwrap());
    assert_eq!(
        (&made["missed"], &made["paused"]),
        (&json!("skip"), &json!(false))
    );
    assert_eq!(made["upcoming"].as_array().unwrap().len(), 5);
    assert_eq!(made["upcoming"][0], made["next_at"]);
    let list = api.ask("GET /api/schedules", "").await.json();
    assert_eq!(list["schedules"][0]["id"], made["id"]);

    let body = r#"{"paused": true, "cron": "* * * * *", "missed": "run_all"}"#;
    let changed = api.ask(&format!("PATCH {line}"), body).await.json();
    assert_eq!(
        (&changed["cron"], &changed["name"]),
        (&json!("* * * * *"), &json!("daily"))
    );
    assert!(changed.get("next_at").is_none());
    let ran = api.ask(&format!("POST {line}/run"), "").await;
    assert_eq!(ran.status, 202, "{ran:?}");
    let job = ran.json()["runs"][0]["job"].as_str().unwrap().to_owned();
    let job = api.ask(&format!("GET /api/jobs/{job}"), "").await.json();
    assert_eq!(
        (&job["priority"], &job["metadata"]["schedule"]),
        (&json!(-5), &made["id"])
    );

    let other = api.mint("other", Scope::Submit).await;
    let refused = api.ask_as(&other, &format!("DELETE {line}"), "").await;
    assert_eq!(refused.problem().1, "forbidden");
    assert_eq!(api.ask(&format!("DELETE {line}"), "").await.status, 204);
    assert_eq!(
        api.ask(&format!("GET {line}"), "").await.problem().1,
        "no_such_schedule"
    );
}

#[tokio::test]
async fn what_cannot_recur_is_refused() {
    let api = Api::start().await;
    let check = async |change: Value, code: &str, field: &str| {
        let mut body = json!({"name": "n", "cron": "* * * * *", "job": {"prompt": "a"}});
        for (key, value) in change.as_object().unwrap() {
            body[key] = value.clone();
        }
        let answer = api.ask("POST /api/schedules", &body.to_string()).await;
        assert_eq!(
            answer.problem(),
            (422, code.into(), field.into()),
            "{answer:?}"
        );
    };
    check(json!({"name": ""}), "invalid_job", "name").await;
    check(json!({"cron": "* * * * * *"}), "invalid_schedule", "cron").await;
    check(json!({"cron": "hourly"}), "invalid_schedule", "cron").await;
    check(
        json!({"timezone": "Mars/Base"}),
        "invalid_schedule",
        "timezone",
    )
    .await;
    check(json!({"colour": "red"}), "invalid_schedule", "colour").await;
    check(json!({"job": {"prompt": ""}}), "invalid_job", "job.prompt").await;
    check(
        json!({"job": {"prompt": "a", "model": "m9"}}),
        "no_such_lane",
        "job.model",
    )
    .await;
    check(
        json!({"job": {"prompt": "a", "run_at": "2030-01-01T00:00:00Z"}}),
        "invalid_schedule",
        "job.run_at",
    )
    .await;
}

#[tokio::test]
async fn each_time_fires_once_whoever_ticks() {
    let api = Api::start().await;
    let now = clock::now();
    let first = Time::from_millis(now.as_millis() / 60_000 * 60_000) - Duration::from_secs(600);
    let row = |job: &str, missed| ScheduleRow {
        id: Uuid::now_v7(),
        client: "admin".into(),
        name: "n".into(),
        cron: "* * * * *".into(),
        timezone: "UTC".into(),
        job: job.into(),
        missed,
        paused: false,
        next_at: Some(first),
        created_at: first,
        updated_at: first,
    };
    let all = row(r#"{"prompt": "a"}"#, Missed::RunAll);
    let once = row(r#"{"prompt": "b"}"#, Missed::RunOnce);
    let wrong = row(r#"{"prompt": "c", "model": "m9"}"#, Missed::RunOnce);
    for row in [&all, &once, &wrong] {
        api.app.store.put_schedule(row).await.unwrap();
    }
    let mut tickers = JoinSet::new();
    for _ in 0..4 {
        tickers.spawn(schedules::run(api.app.clone(), CancellationToken::new()));
    }
    for row in [&all, &once, &wrong] {
        let mut waited = 0;
        while api
            .app
            .store
            .schedule(row.id)
            .await
            .unwrap()
            .unwrap()
            .next_at
            == Some(first)
        {
            waited += 1;
            assert!(waited < 1_000, "it does not fire");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    let jobs = async |row: &ScheduleRow| {
        let line = format!("GET /api/jobs?metadata.schedule={}&limit=500", row.id);
        api.ask(&line, "").await.json()["jobs"]
            .as_array()
            .unwrap()
            .len()
    };
    let runs = api.app.store.schedule_runs(all.id).await.unwrap();
    assert!((11..=12).contains(&runs.len()), "{runs:?}");
    assert_eq!(jobs(&all).await, runs.len());
    assert!(jobs(&once).await <= 2);
    let failed = api.app.store.schedule_runs(wrong.id).await.unwrap();
    assert!(
        failed[0].error.as_ref().unwrap().contains("m9"),
        "{failed:?}"
    );
}
